"""The checker of the other tests: it passes what is exact and sees each kind of thing that is not."""

from __future__ import annotations

import copy
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.checker import DeadLetter, RawRecord, Rules, Score, Session, Verdict, check, expected_of
from worker.processing.session_rules import SessionRules
from worker.processing.sessions import Sessions

RULES = Rules(gap_ms=10_000, max_age_ms=30_000, max_events=4, max_open=3, max_future_skew_ms=60_000)
TOPIC = "raw"


def line(second: int, block: str) -> bytes:
    hour, rest = divmod(second, 3_600)
    return b"240301 %02d%02d%02d 7 INFO something about blk_%b" % (12 + hour, *divmod(rest, 60), block.encode())


def records(*values: bytes | None, partition: int = 0) -> list[RawRecord]:
    return [RawRecord(partition, offset, value) for offset, value in enumerate(values)]


INPUT = [
    *records(line(0, "1"), line(1, "2"), b"", line(2, "1"), line(20, "3"), line(21, "2"), partition=0),
    *records(line(0, "4"), line(0, "5"), line(5, "4"), line(5, "4"), line(6, "4"), partition=1),
]


# -- what must exist ---------------------------------------------------------------------------------------------------


def closings(*values: bytes | None, rules: Rules = RULES) -> list[tuple[str, list[int], str, int]]:
    sessions = expected_of(records(*values), rules).sessions
    return [(each.key.removeprefix("blk_"), each.offsets, each.closed_by, each.cause_offset) for each in sessions]


def test_a_gap_closes_sessions_by_first_offset_with_the_record_that_showed_it_as_cause() -> None:
    found = closings(line(0, "1"), line(1, "2"), line(2, "1"), line(12, "3"), line(12, "1"))
    assert found == [
        ("1", [0, 2], "gap", 3),
        ("2", [1], "gap", 3),
        ("3", [3], "idle", 5),
        ("1", [4], "idle", 5),
    ]


def test_a_late_record_keeps_its_session_open_and_moves_no_time() -> None:
    found = closings(line(0, "1"), line(9, "2"), line(1, "1"), line(18, "2"), line(19, "2"))
    assert found == [("1", [0, 2], "gap", 4), ("2", [1, 3, 4], "idle", 5)]


def test_age_counts_from_the_opening_and_comes_after_the_gap() -> None:
    found = closings(line(0, "1"), line(9, "1"), line(18, "1"), line(25, "2"), line(36, "3"))
    assert found == [("1", [0, 1, 2], "gap", 4), ("2", [3], "gap", 4), ("3", [4], "idle", 5)]
    steady = [line(second, "1") for second in (0, 9, 18, 27, 36)]
    assert closings(*steady, rules=Rules(10_000, 30_000, 9, 3)) == [
        ("1", [0, 1, 2, 3], "max_age", 4),
        ("1", [4], "idle", 5),
    ]


def test_a_full_session_closes_with_its_last_event_and_the_oldest_goes_when_there_are_too_many() -> None:
    assert closings(*[line(0, "1")] * 5) == [("1", [0, 1, 2, 3], "max_events", 3), ("1", [4], "idle", 5)]
    found = closings(line(0, "1"), line(0, "2"), line(0, "3"), line(0, "4"))
    assert found[0] == ("1", [0], "max_open", 3)


BEGUN = [line(0, "1"), line(0, "1"), line(0, "1")]


def test_a_line_too_far_ahead_that_the_next_one_refutes_moves_no_time() -> None:
    assert closings(*BEGUN, line(61, "2"), line(0, "3")) == [
        ("1", [0, 1, 2], "idle", 5), ("2", [3], "idle", 5), ("3", [4], "idle", 5)
    ]  # fmt: skip
    assert closings(*BEGUN, line(61, "2"), line(0, "3"), line(10, "1"))[:2] == [
        ("1", [0, 1, 2], "gap", 5), ("2", [3], "gap", 5)
    ]  # fmt: skip


def test_three_lines_too_far_ahead_move_time_and_the_third_is_their_cause() -> None:
    assert closings(*BEGUN, line(601, "2"), line(600, "3"), line(602, "2")) == [
        ("1", [0, 1, 2], "gap", 5), ("2", [3, 5], "idle", 6), ("3", [4], "idle", 6)
    ]  # fmt: skip


def test_a_first_line_that_the_others_refute_counts_for_nothing() -> None:
    for first in (line(3_599, "9"), line(-3_600, "9")):
        found = closings(first, line(0, "1"), line(1, "1"), line(2, "1"), line(12, "2"))
        assert found[-2:] == [("1", [1, 2, 3], "gap", 4), ("2", [4], "idle", 5)]


def test_a_thousand_lines_behind_turn_time_back() -> None:
    found = closings(
        *[line(7_200, "9")] * 3, *[line(0, "1")] * 1_000, line(10, "2"), rules=Rules(10_000, 10**9, 10**6, 9)
    )
    assert found == [
        ("9", [0, 1, 2], "gap", 1_003),
        ("1", [*range(3, 1_003)], "gap", 1_003),
        ("2", [1_003], "idle", 1_004),
    ]


def test_what_waits_at_the_end_is_believed() -> None:
    assert closings(line(0, "1"), line(1_000, "1")) == [("1", [0], "gap", 2), ("1", [1], "idle", 2)]


def test_what_is_no_event_is_a_dead_letter_and_touches_no_session() -> None:
    found = expected_of(records(line(0, "1"), None, b" ", b"\xff", b"240301 120000 no key", b"blk_1"), RULES)
    assert [(each.offset, each.reason) for each in found.dead_letters] == [
        (1, "null"),
        (2, "empty"),
        (3, "not_utf8"),
        (4, "no_key"),
        (5, "bad_timestamp"),
    ]
    assert [each.offsets for each in found.sessions] == [[0]]
    assert found.sessions[0].cause_offset == 6


# -- what is wrong -----------------------------------------------------------------------------------------------------


def value_of(session: Session, kind: str = "final", events: int | None = None) -> dict[str, Any]:
    """What a worker would write."""
    events = events or len(session.offsets)
    cause = session.cause_offset if kind == "final" else session.offsets[events - 1]
    first, last = (
        f"2024-03-01T12:{time // 60_000 % 60:02d}:{time // 1000 % 60:02d}.000Z"
        for time in (session.times[0], session.times[events - 1])
    )
    told = "" if kind == "final" else "warning"
    nth = int(session.causes[0] == session.cause_offset)
    place = f"{TOPIC}\n{session.partition}\n{session.offsets[0]}\n{nth}\n{kind}\n{told}\n{session.key}"
    return {
        "schema": "logmamba.score/1",
        "id": sha256(place.encode()).hexdigest()[:32],
        "session": session.key,
        "kind": kind,
        "score": 0.75,
        "severity": "warning",
        "thresholds": {"warning": 0.7, "critical": 0.95},
        "surprise": 1.5,
        "events": events,
        "unknown_events": 0,
        "first_event_time": first,
        "last_event_time": last,
        "closed_by": session.closed_by if kind == "final" else None,
        "top_events": [{"offset": session.offsets[0], "template": "something", "surprise": 1.5}],
        "lines": session.offsets[:events],
        "source": {
            "topic": TOPIC,
            "partition": session.partition,
            "first_offset": session.offsets[0],
            "last_offset": session.offsets[events - 1],
            "cause_offset": cause,
        },
        "model": {"checkpoint": "sha256:a", "vocabulary": "sha256:b"},
    }


class Output:
    """An exact output of INPUT with an early score, to be spoilt; every score is in partition 0 of the score topic."""

    def __init__(self) -> None:
        self.expected = expected_of(INPUT, RULES)
        self.values: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
        for session in self.expected.sessions:
            value = value_of(session)
            value["source"] |= {"topic": "a.log", "partition": 0}
            value["closed_by"] = value["closed_by"].replace("idle", "end_of_input")
            self.values[session.partition].append(value)
        self.scores = [value_of(session) for session in self.expected.sessions]
        (alarmed,) = [each for each in self.expected.sessions if len(each.offsets) == 4]
        self.early = [value_of(alarmed, "early", 2)]
        self.scores.insert(self.scores.index(value_of(alarmed)), copy.deepcopy(self.early[0]))
        self.dead_letters = list(self.expected.dead_letters)

    def verdict(self) -> Verdict:
        return check(
            self.expected,
            topic=TOPIC,
            scores=[Score(0, value) for value in self.scores],
            dead_letters=self.dead_letters,
            values=self.values,
            early=self.early,
        )


def test_an_exact_output_passes() -> None:
    output = Output()
    verdict = output.verdict()
    assert verdict.exact
    assert str(verdict) == ""
    assert {each["closed_by"] for each in output.scores} == {"gap", "max_events", "idle", None}
    output.scores.sort(key=lambda value: value["source"]["partition"], reverse=True)
    assert output.verdict().exact, "partitions of the input have no order among each other"


EVERY_SCORE = range(len(Output().scores))


@pytest.mark.parametrize("at", EVERY_SCORE)
def test_a_score_that_is_not_there_is_missing(at: int) -> None:
    output = Output()
    lost = output.scores.pop(at)
    assert_only(output.verdict(), "missing", lost["session"])


@pytest.mark.parametrize("at", EVERY_SCORE)
def test_a_score_that_is_there_twice_is_a_duplicate(at: int) -> None:
    output = Output()
    output.scores.insert(at, copy.deepcopy(output.scores[at]))
    assert_only(output.verdict(), "duplicate", output.scores[at]["session"])


def test_a_duplicate_that_says_something_else_is_a_duplicate_and_different() -> None:
    output = Output()
    output.scores.append({**output.scores[-1], "score": 0.1})
    verdict = output.verdict()
    assert len(verdict.duplicate) == len(verdict.different) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [(0, 1), (1, 2), (2, 3)],
    ids=["two sessions of one cause", "two causes", "two sessions of the input's end"],
)
def test_scores_of_a_partition_in_another_order_than_their_causes_are_out_of_order(first: int, second: int) -> None:
    output = Output()
    scores = output.scores
    scores[first], scores[second] = scores[second], scores[first]
    assert_only(output.verdict(), "out_of_order", "")


def test_an_early_score_after_the_final_one_is_out_of_order() -> None:
    output = Output()
    (early,) = [value for value in output.scores if value["kind"] == "early"]
    output.scores.remove(early)
    output.scores.append(early)
    assert_only(output.verdict(), "out_of_order", early["session"])


@pytest.mark.parametrize("at", EVERY_SCORE)
# Kind and session tell records apart, and so does an early score's severity.
@pytest.mark.parametrize("name", sorted(set(Output().scores[0]) - {"kind", "session", "severity"}))
def test_a_field_that_says_something_else_is_different(name: str, at: int) -> None:
    output = Output()
    if name == "source":
        output.scores[at]["source"]["last_offset"] += 1
    else:
        output.scores[at][name] = "?"
    assert_only(output.verdict(), "different", name)


def test_another_severity_of_a_final_score_is_different() -> None:
    output = Output()
    output.scores[0]["severity"] = "critical"
    assert_only(output.verdict(), "different", "severity")


def test_a_final_score_must_take_back_what_an_early_one_told_and_it_does_not_bear_out_and_nothing_else() -> None:
    output = Output()
    (early,) = output.early
    (final,) = [each for each in output.scores if each["session"] == early["session"] and each["kind"] == "final"]
    (value,) = [each for part in output.values.values() for each in part if each["session"] == early["session"]]
    final["retracts"] = [{"id": early["id"], "severity": "warning"}]
    assert_only(output.verdict(), "different", "retracts")
    final["severity"] = value["severity"] = "normal"
    assert output.verdict().exact
    del final["retracts"]
    assert_only(output.verdict(), "different", "retracts")


def test_a_moved_cause_is_different() -> None:
    output = Output()
    output.scores[0]["source"]["cause_offset"] -= 1
    assert "cause_offset" in output.verdict().different[0]
    output = Output()
    (early,) = [value for value in output.scores if value["kind"] == "early"]
    early["source"]["cause_offset"] = 99
    assert "events is 2" in output.verdict().different[0]
    output = Output()
    (early,) = [value for value in output.scores if value["kind"] == "early"]
    early["events"] += 1
    assert "events is 3" in output.verdict().different[0]


def test_a_field_more_or_less_is_different() -> None:
    output = Output()
    output.scores[0]["more"] = 1
    del output.scores[1]["surprise"]
    assert len(output.verdict().different) == 2


@pytest.mark.parametrize("change", [{"session": "blk_9"}, {"kind": "early"}], ids=["session", "kind"])
def test_a_score_of_no_session_is_unexpected_and_the_sessions_own_is_missing(change: dict[str, str]) -> None:
    output = Output()
    output.scores[0] |= change
    verdict = output.verdict()
    assert len(verdict.unexpected) == len(verdict.missing) == 1


def test_a_fragment_of_a_session_is_unexpected() -> None:
    output = Output()
    fragment = copy.deepcopy(output.scores[0])
    fragment["source"]["first_offset"] += 2
    output.scores.append(fragment)
    assert_only(output.verdict(), "unexpected", fragment["session"])


def test_dead_letters_are_checked_as_scores_are() -> None:
    output = Output()
    (letter,) = output.dead_letters
    output.dead_letters = []
    assert_only(output.verdict(), "missing", "dead letter")
    output.dead_letters = [letter, letter]
    assert_only(output.verdict(), "duplicate", "dead letter")
    output.dead_letters = [letter, DeadLetter(1, 3, "empty")]
    assert_only(output.verdict(), "unexpected", "dead letter")
    output.dead_letters = [letter._replace(reason="null")]
    assert len(output.verdict().missing) == len(output.verdict().unexpected) == 1


def test_sessions_that_logmamba_score_and_the_checker_do_not_share_show() -> None:
    output = Output()
    value = output.values[0].pop()
    assert "no such session" in output.verdict().different[0]
    output = Output()
    output.values[0].append({**value, "session": "blk_9"})
    assert "blk_9" in output.verdict().unexpected[0]


def assert_only(verdict: Verdict, kind: str, text: str) -> None:
    found = {each: getattr(verdict, each) for each in Verdict.__slots__}
    assert [each for each in found if found[each]] == [kind]
    (only,) = found[kind]
    assert text in only
    assert kind.replace("_", " ") in str(verdict)
    assert not verdict.exact


# -- beside the worker -------------------------------------------------------------------------------------------------


def test_the_checker_shares_no_code_with_the_worker() -> None:
    code = "import sys, tests.faults.checker; print({name.partition('.')[0] for name in sys.modules})"
    root = Path(__file__).parents[2]
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    assert "'tests'" in loaded
    assert not any(f"'{name}'" in loaded for name in ("worker", "detector", "kernels"))


@settings(deadline=None)
@given(
    events=st.lists(st.tuples(st.sampled_from("1234567"), st.integers(-8, 25) | st.integers(-90, 90)), max_size=60),
    run=st.integers(0, 60),
    turns=st.booleans(),
    rules=st.builds(
        Rules,
        gap_ms=st.integers(1, 30).map(lambda s: s * 1000),
        max_age_ms=st.integers(1, 60).map(lambda s: s * 1000),
        max_events=st.integers(1, 6),
        max_open=st.integers(1, 5),
        max_future_skew_ms=st.integers(0, 20).map(lambda s: s * 1000),
    ),
)
def test_the_worker_and_the_checker_see_the_same_sessions(
    events: list[tuple[str, int]], run: int, turns: bool, rules: Rules
) -> None:
    time, lines = 3_000, []
    for at, (key, step) in enumerate(events):
        if turns and at == run:  # as many late lines as turn time back
            time = max(0, time - 100)
            lines += [("1234567"[number % 7], time) for number in range(1_000)]
        time = max(0, time + step)
        lines.append((key, time))
    sessions = Sessions(
        SessionRules(
            gap_ms=rules.gap_ms,
            max_age_ms=rules.max_age_ms,
            max_events=rules.max_events,
            max_open=rules.max_open,
            max_future_skew_ms=rules.max_future_skew_ms,
            end_tokens=frozenset(),
        )
    )
    closed = [
        *sessions.process(
            [key for key, _ in lines], [5] * len(lines), [at * 1000 for _, at in lines], range(len(lines))
        ),
        *sessions.flush(len(lines), "idle"),
    ]
    found = [(each.session.key, list(each.session.offsets), each.closed_by, each.cause_offset) for each in closed]
    assert found == closings(*(line(at, key) for key, at in lines), rules=rules)
