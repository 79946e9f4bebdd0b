"""Pauses and bursts: found where a session is slow or pours out, and never where its times cannot be believed."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.scoring.families import Families
from detector.scoring.judge import Judge
from detector.scoring.learning import learn as learn_tolerances
from detector.scoring.pace import ANY, Pace, Timed, Unusual
from detector.scoring.pace_learning import learn_pace
from detector.scoring.pace_loop import LONGEST, NO_TIME
from detector.scoring.paced import Paced, paced
from detector.scoring.reasons import duration
from detector.scoring.scores import Sequences
from detector.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("request <*> begins", "row <*> is read", "request <*> ends"))
BEGIN, ROW, END = (VOCABULARY.token_of(each) for each in VOCABULARY.templates)
UNLABELLED, NORMAL, ANOMALOUS = -1, 0, 1

Session = tuple[Sequence[int], Sequence[int]]  # tokens, times


def timed(sessions: Sequence[Session], spans: Sequence[int] | None = None) -> Timed:
    ends = np.cumsum([len(tokens) for tokens, _ in sessions], dtype=np.int64)
    tokens, times = (np.array([each for one in sessions for each in one[at]], np.int64) for at in (0, 1))
    if spans is None:
        spans = [max(each, default=0) - min(each, default=0) for _, each in sessions]
    return Timed(Sequences(tokens, ends), times, np.array(spans, np.int64))


def request(at: int, *rows: int, ends: int) -> Session:
    """A request at a time, its rows and its end so many ms later."""
    return [BEGIN, *[ROW] * len(rows), END], [at, *(at + row for row in rows), at + ends]


def usual(n: int, seed: int = 0) -> list[Session]:
    """Requests that read some rows, a second or so apart, and end half a second after the last."""
    rng, found = np.random.default_rng(seed), []
    for number in range(n):
        rows = np.cumsum(rng.integers(700, 1_500, rng.integers(1, 30))).tolist()
        found.append(request(1_700_000_000_000 + 40 * number, *rows, ends=rows[-1] + 500))
    return found


def limits(sessions: Timed, labels: Sequence[int] | None = None) -> tuple[Pace | None, list[str]]:
    n = len(sessions.spans)
    of = np.full(n, UNLABELLED, np.int8) if labels is None else np.array(labels, np.int8)
    return learn_pace(sessions, of, np.arange(n) % 5 == 0)


def learnt(sessions: Sequence[Session]) -> Pace:
    pace, _ = limits(timed(sessions))
    assert pace is not None
    return pace


@pytest.fixture(scope="module")
def pace() -> Pace:
    return learnt(usual(1_500))


def reason(pace: Pace, session: Session) -> str:
    [found] = paced(pace.unusual(timed([session])), None, VOCABULARY).values()
    assert 0.7 <= found.score < 0.95, "a warning, never critical"
    return found.reason.text


def test_a_session_that_waits_stands_out_by_where_and_how_long(pace: Pace) -> None:
    assert reason(pace, request(0, 1_000, 2_000, ends=314_100)) == (
        "request <*> ends: a pause of 312 s before it, after row <*> is read; "
        "100 % of sessions have at most 0.5 s there."
    )


def test_a_session_that_pours_out_stands_out_by_how_much_within_a_second(pace: Pace) -> None:
    burst = request(0, 1_000, *range(2_000, 2_200, 10), ends=9_000)
    assert reason(pace, burst).startswith("row <*> is read: 20 times within 1 s; ")
    spread = request(0, *range(1_000, 21_000, 1_000), ends=21_500)
    assert pace.unusual(timed([spread])) == {}, "as many of them, but over 20 s"


def test_the_further_beyond_its_limit_the_higher_a_session_scores(pace: Pace) -> None:
    waits = [request(0, 1_000, ends=1_000 + ms) for ms in (1_000, 5_000, 60_000, 3_600_000)]
    found = paced(pace.unusual(timed(waits)), None, VOCABULARY)
    scores = [found[number].score for number in (1, 2, 3)]
    assert list(found) == [1, 2, 3]
    assert scores == sorted(scores)


def test_usual_sessions_do_not_stand_out_and_a_few_are_not_learnt_from(pace: Pace) -> None:
    assert len(pace.unusual(timed(usual(2_000, seed=1)))) <= 2
    assert limits(timed(usual(120))) == (None, []), "fewer than 100 to learn from"


WAIT = request(1_700_000_000_000, 1_000, ends=600_000)


@pytest.mark.parametrize(
    ("session", "span"),
    [
        (request(NO_TIME, ends=0), 0),
        ((WAIT[0], [*WAIT[1][:2], NO_TIME]), 600_000),
        (([BEGIN, ROW, END], [0, 1_700_000_001_000, 1_700_000_001_500]), 1_500),  # a clock before it was set
        (([BEGIN, ROW, END], [1_700_000_000_000, 1_700_000_001_000, 1_900_000_000_000]), 1_500),
        (([BEGIN, ROW, END], [1_700_000_000_000, 1_900_000_000_000, 1_700_000_001_500]), 1_500),
        (WAIT, 0),  # its lines came late, all at once
    ],
)
def test_where_times_cannot_be_believed_there_is_no_evidence(pace: Pace, session: Session, span: int) -> None:
    assert pace.unusual(timed([session], [span])) == {}
    assert list(pace.unusual(timed([session, WAIT], [span, 600_000]))) == [1]


def test_a_log_without_times_has_no_limits() -> None:
    assert limits(timed([(tokens, [NO_TIME] * len(tokens)) for tokens, _ in usual(500)])) == (None, [])


def test_times_that_hold_for_nobody_else_are_left_out() -> None:
    sessions = [request(0, 1_000, ends=1_000 + (700_000 if at % 100 == 0 else 400)) for at in range(2_000)]
    pace, [told] = limits(timed(sessions))
    assert pace is None
    assert told.startswith("pauses and bursts: ")
    assert told.endswith("left out, as times do not tell here")


def slow(n: int) -> list[Session]:
    return [request(0, 1_000, ends=1_000 + 100_000 + at) for at in range(n)]


def test_labels_say_which_limits_are_kept() -> None:
    sessions = [*usual(1_500), *slow(40)]
    pace, [told] = limits(timed(sessions), [NORMAL] * 1_500 + [ANOMALOUS] * 40)
    assert pace is not None
    assert re.search("of which labels bear out [1-9]", told)
    assert ([END, ROW] in pace.pauses[:, :2].tolist(), len(pace.bursts)) == (True, 0), "no label speaks of bursts"
    labels = [NORMAL] * 1_500 + [ANOMALOUS] * 40
    pace, [told] = limits(timed([*usual(1_500), *usual(40, seed=2)]), labels)
    assert pace is None, "as usual in time"
    assert "of which labels bear out 0;" in told
    alike = [NORMAL, ANOMALOUS] * 20
    pace, _ = limits(timed([*usual(1_500), *slow(40)]), [NORMAL] * 1_500 + alike)
    assert pace is None, "as many of those that wait are normal"


def test_what_people_said_of_a_pause_counts(pace: Pace) -> None:
    def judged(*verdicts: tuple[str, str]) -> Paced | None:
        families = Families()
        for name, verdict in verdicts:
            families = families.judged(name, verdict, "2026-01-01")  # type: ignore[arg-type]
        rows = [np.array(tokens) for tokens, _ in usual(200)]
        judge = Judge(learn_tolerances(rows, np.ones(200, np.int64)), families)
        judge = Judge.from_json(judge.to_json())
        return paced(pace.unusual(timed([WAIT])), judge, VOCABULARY).get(0)

    unjudged = judged()
    assert unjudged is not None
    assert unjudged.reason.family == f"~{END}"
    assert judged((f"~{END}", "normal")) is None
    found = judged((f"~{END}", "anomalous"))
    assert found is not None
    assert found.score >= 0.95
    assert judged((f"*{END}", "normal")) == unjudged


@pytest.mark.parametrize(
    ("ms", "down", "up"),
    [
        (0, "0 s", "0 s"),
        (450, "0.4 s", "0.5 s"),
        (312_900, "312 s", "313 s"),
        (601_000, "10 min", "11 min"),
        (7_260_000, "2 h", "3 h"),
    ],
)
def test_times_are_told_so_that_no_pause_seems_longer_and_no_usual_one_shorter(ms: int, down: str, up: str) -> None:
    assert (duration(ms), duration(ms, up=True)) == (down, up)


# -- against the definition -----------------------------------------------------------------------------------------

TABLE = Pace(
    np.array([[3, ANY, 900, 900, 4_000], [4, ANY, 900, 900, 0], [4, 3, 900, 900, 20_000]], np.int64),
    np.array([[3, 900, 900, 1], [4, 900, 900, 2]], np.int64),
)


def defined(tokens: Sequence[int], times: Sequence[int], span: int) -> dict[tuple[str, int, int], int]:
    """What is unusual, and how much of it, by the words of the definition."""
    found: dict[tuple[str, int, int], int] = {}
    if NO_TIME in times:
        return found
    longest = {(token, before): 3 * ms + 1_000 for token, before, _, _, ms in TABLE.pauses.tolist()}
    for at in range(1, len(tokens)):
        pause = min(times[at:]) - max(times[:at])
        if 0 < pause <= min(span, LONGEST) * 5 // 4 + 1_000:
            token, before = tokens[at], tokens[at - 1]
            which = (token, before) if (token, before) in longest else (token, ANY)
            if pause > longest.get(which, pause):
                found["pause", *which] = max(pause, found.get(("pause", *which), 0))
    for token, _, _, most in TABLE.bursts.tolist():
        own = [time for each, time in zip(tokens, times, strict=True) if each == token]
        value = max((sum(0 <= other - time < 1_000 for other in own) for time in own), default=0)
        if value > max(2 * most, 3):
            found["burst", token, ANY] = value
    return found


moments = st.one_of(
    st.integers(0, 3_000), st.integers(0, 60_000), st.sampled_from([NO_TIME, NO_TIME + 1, 2**63 - 1, -1])
)
events = st.lists(st.tuples(st.sampled_from([-7, 2, 3, 4, 4, 4, 9]), moments), min_size=1, max_size=14)
spans = st.sampled_from([0, 3_000, 60_000, 2**63 - 1])


@given(st.lists(st.tuples(events, spans, st.booleans()), min_size=1, max_size=6))
def test_what_is_unusual_is_what_the_definition_says_whatever_the_other_sessions(
    drawn: list[tuple[list[tuple[int, int]], int, bool]],
) -> None:
    sessions = []
    for each, _, in_order in drawn:
        tokens, times = [token for token, _ in each], [time for _, time in each]
        sessions.append((tokens, sorted(times) if in_order else times))
    found = TABLE.unusual(timed(sessions, [span for _, span, _ in drawn]))

    def told(several: list[Unusual]) -> dict[tuple[str, int, int], int]:
        return {(each.kind, each.token, each.previous): each.value for each in several}

    expected = {
        at: defined([max(token, 2) for token in tokens], times, span)
        for at, ((tokens, times), (_, span, _)) in enumerate(zip(sessions, drawn, strict=True))
    }
    assert {at: told(several) for at, several in found.items()} == {at: each for at, each in expected.items() if each}
