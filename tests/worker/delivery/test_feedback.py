"""Verdicts that come while workers run: every record is judged by some version of them, and comes once."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import structlog
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detector.scoring.families import Verdict
from tests.worker.delivery.test_loop import RULES as LOOP_RULES
from tests.worker.delivery.test_loop import disturb, filled
from tests.worker.delivery.test_reload import Doing, finals, live, session_of, taken_back
from tests.worker.processing.said import counts_of, record_of
from tests.worker.small_worker import (
    FEEDBACK,
    INPUT,
    SCORES,
    VOCABULARY,
    Clock,
    OddScorer,
    SmallWorker,
    memory_broker,
    outputs,
)
from tests.worker.small_worker import settings as small_settings
from worker.delivery.feedback_topic import FeedbackTopic
from worker.delivery.memory import MemoryBroker
from worker.observability.metrics import Metrics
from worker.processing.feedback import Feedback
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition
from worker.settings.document import Settings

RULES = (*LOOP_RULES, "sessions.idle_flush=null")
PLACE = Partition(FEEDBACK, 0)
P0 = Partition(INPUT, 0)
# Of sessions of `LINES`; "a open odd" is what a session has that goes on to be another one.
ODD_ONES = [
    counts_of(VOCABULARY, *(f"<*> {word}" for word in words.split()))
    for words in ("odd", "open odd", "open odd odd", "open odd odd read", "odd close", "odd odd read open")
]
SEVERITIES = ["normal", "warning", "critical"]


class Follows:
    """`Reloads` that offers a pipeline once the topic of verdicts has more."""

    latest = None

    def __init__(self, broker: MemoryBroker, use: Settings) -> None:
        self.topic = FeedbackTopic(FEEDBACK, broker)
        self.held = self.topic.look()
        self._use = use

    def due(self) -> Pipeline | None:
        found = self.topic.look()
        return None if found is self.held else Pipeline(self._use, OddScorer(), Metrics(), feedback=found)

    def taken(self, seconds: float) -> None:
        assert seconds >= 0
        self.held = self.topic.feedback

    def refused(self, error: Exception) -> None:
        raise AssertionError(str(error))


def say(broker: MemoryBroker, pattern: str, verdict: Verdict | None) -> None:
    broker.append(PLACE, None if verdict is None else record_of(pattern, verdict).to_json(), pattern.encode())


def versions(broker: MemoryBroker) -> list[int]:
    """Of the verdicts that each score record was judged by."""
    return [int(dict(each.headers)["logmamba-feedback"] or b"") for each in broker.visible(SCORES)]


def history(broker: MemoryBroker) -> dict[int, Feedback]:
    """What held at each version."""
    found, end = {0: Feedback()}, broker.watermarks(PLACE)[1]
    for version in range(1, end + 1):
        part = MemoryBroker({FEEDBACK: 1})
        rows = broker.slice(PLACE, 0, version)
        for key, value in zip(rows.keys or (), rows.values, strict=True):
            part.append(PLACE, value, key)
        found[version] = FeedbackTopic(FEEDBACK, part).look()
    return found


@cache
def unjudged(partitions: int) -> dict[tuple[int, int, int], dict[str, Any]]:
    """Final records without verdicts, which name their patterns where they alert."""
    broker = filled(partitions, repeat=3)
    small = SmallWorker(broker, small_settings(*RULES), broker.partitions(INPUT), Clock(), feedback=Feedback())
    small.run([None] * 40)
    return finals(outputs(broker))


STEPS = st.sampled_from(
    [
        *(
            "turn",
            "turn",
            "crash",
            "abort",
            "revoke",
            "lose",
            "revoke amid a batch",
            "stop",
            "hang in commit",
            "answer",
        ),
        *[("say", pattern, verdict) for pattern in ODD_ONES for verdict in ("normal", "anomalous", None)],
    ]
)


@settings(max_examples=60)
@given(st.lists(STEPS, max_size=14), st.integers(1, 2))
@example(["turn", ("say", ODD_ONES[2], "normal"), "turn", "crash", "turn"], 1)
@example([("say", ODD_ONES[1], "normal"), "turn", "turn", "crash"], 2)
def test_whenever_verdicts_come_and_whatever_strikes_each_record_comes_once_and_is_as_one_version_of_them_says(
    steps: list[Any], partitions: int
) -> None:
    broker, use, clock = filled(partitions, repeat=3), small_settings(*RULES), Clock()

    def begin() -> tuple[SmallWorker, Doing]:
        follows = Follows(broker, use)
        numbers = broker.partitions(INPUT)
        small = SmallWorker(broker, use, numbers, clock, scorer=OddScorer(), reloads=follows, feedback=follows.held)
        return (
            small,
            lambda step: partial(say, broker, *step[1:]) if isinstance(step, tuple) else partial(disturb, small, step),
        )

    live(steps, broker, partitions, begin)
    struck = {"crash", "stop", "abort", "revoke", "lose", "revoke amid a batch", "hang in commit"} & {*map(str, steps)}
    check(broker, partitions, same_told=not (struck and any(isinstance(each, tuple) for each in steps)))


def check(broker: MemoryBroker, partitions: int, *, same_told: bool) -> None:
    records, of_version = outputs(broker), history(broker)
    expected, found = unjudged(partitions), finals(records)
    assert found.keys() == expected.keys()
    early = [each for each in records if each["kind"] == "early"]
    ids = [each["id"] for each in early]
    assert len(ids) == len(set(ids)), "an early record came twice"
    for record, version in zip(records, versions(broker), strict=True):
        if record["kind"] == "early":
            continue
        source = record["source"]
        whole = expected[source["partition"], source["first_offset"], source["cause_offset"]]
        own = ("severity", "pattern", "feedback", "retracts")
        assert {k: v for k, v in record.items() if k not in own} == {k: v for k, v in whole.items() if k not in own}
        pattern = whole.get("pattern") or record.get("pattern")
        verdict = of_version[version].verdict(pattern) if pattern else None
        if verdict is None:
            assert "feedback" not in record
            assert record["severity"] == whole["severity"]
        else:
            assert record["feedback"] == {"verdict": verdict, "scored": whole["severity"]}
            assert record["severity"] == {"normal": "normal", "anomalous": "critical"}[verdict]
        told, must = record.get("retracts", []), taken_back(record, early)
        assert all(each in told for each in must), "an alert is not taken back"
        assert not same_told or told == must


def test_an_early_record_is_held_back_as_long_as_the_session_may_still_be_of_a_muted_pattern_and_no_longer() -> None:
    muted = counts_of(VOCABULARY, "<*> odd", "<*> odd", "<*> open")

    def told(*lines: bytes) -> list[tuple[str, str, int]]:
        broker = memory_broker()
        say(broker, muted, "normal")
        for line in lines:
            broker.append(P0, line)
        use = small_settings("sessions.end_events=['<*> close']", "scoring.warning=0.4", "scoring.critical=0.6")
        SmallWorker(broker, use, feedback=FeedbackTopic(FEEDBACK, broker).look()).run([None] * 3)
        return [(each["kind"], each["severity"], each["events"]) for each in outputs(broker)]

    odd, opens, read, close = b"x odd", b"x open", b"x read", b"x close"
    assert told(odd, opens, odd) == [], "it is open, and may be of the pattern yet"
    assert told(odd, read) == [("early", "warning", 2)], "no session of the pattern has a read"
    assert told(odd, odd, odd) == [("early", "critical", 3)], "nor three odd ones"
    assert told(odd, odd, close) == [("early", "critical", 3), ("final", "critical", 3)]


def test_a_muted_session_is_normal_says_so_and_is_told_with_the_alerts_and_an_anomalous_one_is_critical() -> None:
    broker = memory_broker()
    say(broker, counts_of(VOCABULARY, "<*> odd", "<*> close"), "normal")
    say(broker, counts_of(VOCABULARY, "<*> read", "<*> read", "<*> close"), "anomalous")
    for key in (b"x odd", b"x close", b"y read", b"y read", b"y close", b"z read", b"z close"):
        broker.append(P0, key)
    use = small_settings(
        "sessions.end_events=['<*> close']", "scoring.warning=0.4", "scoring.critical=0.5", "output.include=alerts"
    )
    small = SmallWorker(broker, use, feedback=FeedbackTopic(FEEDBACK, broker).look())
    small.run([None] * 3)
    muted, raised = outputs(broker)
    assert (muted["session"], muted["score"], muted["severity"]) == ("x", 0.5, "normal")
    assert muted["feedback"] == {"verdict": "normal", "scored": "critical"}
    assert (raised["session"], raised["score"], raised["severity"]) == ("y", 0.0, "critical")
    assert raised["feedback"] == {"verdict": "anomalous", "scored": "normal"}
    sample = small.worker._metrics.registry.get_sample_value
    assert sample("logmamba_muted_total", {"severity": "critical"}) == 1
    assert sample("logmamba_raised_total", {"severity": "normal"}) == 1
    assert [each.record["session"] for each in small.worker.alerts.latest()] == ["y"]


def test_a_verdict_on_what_was_told_early_takes_the_alert_back() -> None:
    broker = memory_broker()
    for line in (b"x odd", b"x odd"):
        broker.append(P0, line)
    use = small_settings("sessions.end_events=['<*> close']", "scoring.warning=0.4", "scoring.critical=0.6")
    follows = Follows(broker, use)
    small = SmallWorker(broker, use, reloads=follows, feedback=follows.held)
    pattern = counts_of(VOCABULARY, "<*> odd", "<*> odd", "<*> close")
    small.run([None, None, partial(say, broker, pattern, "normal"), None, partial(broker.append, P0, b"x close"), None])
    early, final = outputs(broker)
    assert (early["kind"], early["severity"], final["severity"]) == ("early", "critical", "normal")
    assert final["retracts"] == [{"id": early["id"], "severity": "critical"}]
    assert session_of(early) == session_of(final)


def crashed(said_before: bool, *later: bytes) -> list[dict[str, Any]]:
    """A session looks like one of a muted pattern when its worker is killed, behind the latest snapshot."""
    broker, pattern = memory_broker(), counts_of(VOCABULARY, "<*> odd", "<*> odd", "<*> close")
    rules = ("sessions.end_events=['<*> close']", "scoring.warning=0.4", "scoring.critical=0.6")
    use = small_settings(*rules, "state.snapshot_interval=1h", "worker.commit_interval=0ms")

    def follows() -> Follows:
        return Follows(broker, use)

    if said_before:
        say(broker, pattern, "normal")
    broker.append(P0, b"y open")
    small = SmallWorker(broker, use, reloads=(first := follows()), feedback=first.held)
    small.crash_after([None, None, partial(broker.append, P0, b"x odd"), None])
    assert broker.committed[P0].offset == 2
    if not said_before:
        say(broker, pattern, "normal")
    small = SmallWorker(broker, use, reloads=(second := follows()), feedback=second.held)
    small.run([None, *(partial(broker.append, P0, line) for line in later), None])
    return outputs(broker)


def test_a_restart_takes_back_what_was_told_before_a_verdict_came_and_never_tells_it_again() -> None:
    early, final = crashed(False, b"x odd", b"x close")
    assert (early["kind"], early["severity"], final["severity"]) == ("early", "critical", "normal")
    assert final["retracts"] == [{"id": early["id"], "severity": "critical"}]
    early, final = crashed(False, b"x odd", b"x odd", b"x close")
    assert (early["events"], final["kind"], final["severity"]) == (1, "final", "critical")


def test_a_restart_knows_what_was_held_back_by_the_verdicts_that_still_hold() -> None:
    [final] = crashed(True, b"x odd", b"x close")
    assert (final["kind"], final["severity"]) == ("final", "normal")
    assert "retracts" not in final, "nothing was told"
    early, final = crashed(True, b"x odd", b"x odd", b"x close")
    assert (early["kind"], early["events"], final["severity"]) == ("early", 3, "critical")


def test_what_is_no_verdict_is_passed_over_with_its_place_and_a_topic_that_is_made_anew_is_read_anew() -> None:
    broker = memory_broker()
    say(broker, ODD_ONES[0], "normal")
    for key, value in ((b"counts", b"{}"), (b"other", record_of(ODD_ONES[1], "normal").to_json()), (None, b"\xff")):
        broker.append(PLACE, value, key)
    topic = FeedbackTopic(FEEDBACK, broker)
    with structlog.testing.capture_logs() as log:
        assert topic.look().records.keys() == {ODD_ONES[0]}
    assert [each["offset"] for each in log if each["event"] == "feedback_not_read"] == [1, 2, 3]
    assert topic.look() is topic.look(), "nothing has come"
    say(broker, ODD_ONES[0], None)
    assert topic.look().records == {}
    assert FeedbackTopic("none", broker).look().records == {}
    fresh = memory_broker()
    say(fresh, ODD_ONES[2], "anomalous")
    topic._reader = fresh
    assert topic.look().counts() == {"normal": 0, "anomalous": 1}


@pytest.mark.parametrize("version", [None, 0, 7])
def test_a_snapshot_names_the_verdicts_that_what_follows_it_was_judged_by(version: int | None) -> None:
    broker = memory_broker()
    broker.append(P0, b"x odd")
    feedback = None if version is None else Feedback(version=version)
    SmallWorker(broker, small_settings(), feedback=feedback).run([None] * 3)
    [committed] = broker.committed.values()
    assert ('"feedback"' in committed.metadata) == (version is not None)
    assert version is None or f'"feedback":{version}' in committed.metadata
