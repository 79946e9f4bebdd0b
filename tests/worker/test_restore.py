"""Coming back: what a restart reads again costs no scoring, and what snapshots cost the running worker is bounded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from detector.vocabulary import Vocabulary
from tests.worker.small_worker import (
    INPUT,
    VOCABULARY,
    Clock,
    OddScorer,
    SmallWorker,
    memory_broker,
    outputs,
)
from tests.worker.small_worker import settings as small_settings
from worker.decoder import Records
from worker.errors import RunError
from worker.memory import MemoryBroker
from worker.observability import Metrics
from worker.pipeline import Pipeline
from worker.protocols import EventScores, Message, Partition

P0 = Partition(INPUT, 0)


class CountingScorer(OddScorer):
    """Keeps what it was asked to score."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[str]] = []

    def score(self, sequences: Sequence[bytes]) -> list[EventScores]:
        for sequence in sequences:
            self.asked.append([self.vocabulary.text(token) for token in np.frombuffer(sequence, np.int64).tolist()])
        return super().score(sequences)


@pytest.mark.parametrize("early", ["true", "false"])
def test_a_replay_scores_nothing_before_it_is_live(early: str) -> None:
    scorer = CountingScorer()
    pipeline = Pipeline(small_settings("sessions.max_events=2", f"scoring.early={early}"), scorer, Metrics())
    pipeline.open(P0, position=0, live_from=6)
    lines: list[bytes | None] = [b"a open", b"a read", b"b open", b"b read", b"c open", b"d open", b"c odd", b"e open"]
    for start in range(0, len(lines), 2):
        records = Records(INPUT, 0, [start, start + 1], lines[start : start + 2], None, None, None)
        found = pipeline.process([records])
        if start + 2 <= 6:
            assert (found, scorer.asked) == ([], [])
    assert ["<*> open", "<*> odd"] in scorer.asked
    assert ["<*> open", "<*> read"] not in scorer.asked, "a session that closed before the committed position"


def test_a_batch_that_ends_the_replay_scores_only_what_closes_from_the_committed_position_on() -> None:
    scorer = CountingScorer()
    pipeline = Pipeline(small_settings("sessions.max_events=2", "scoring.early=false"), scorer, Metrics())
    pipeline.open(P0, position=0, live_from=2)
    lines: list[bytes | None] = [b"a open", b"a read", b"b open", b"b odd"]
    found = pipeline.process([Records(INPUT, 0, [0, 1, 2, 3], lines, None, None, None)])
    assert [output.key for output in found] == [b"b"]
    assert scorer.asked == [["<*> open", "<*> odd"]]


REORDERED = Vocabulary((*VOCABULARY.templates[2:], *VOCABULARY.templates[:2]))


def closings_with(vocabulary: Vocabulary, broker: MemoryBroker, *overrides: str) -> dict[str, list[str]]:
    """Templates of the sessions that another worker closes because nothing more comes."""
    before = len(outputs(broker))
    use = small_settings("sessions.idle_flush=1ms", "scoring.early=false", "output.top_events=9", *overrides)
    SmallWorker(broker, use, clock=Clock(tick_s=1), vocabulary=vocabulary).run([None] * 4)
    return {
        record["session"]: sorted(event["template"] for event in record["top_events"])
        for record in outputs(broker)[before:]
    }


def test_a_session_that_began_amid_a_record_is_tokenised_anew_from_its_own_lines() -> None:
    multiline = ("input.multiline=true", "sessions.max_events=2")
    broker = memory_broker()
    # The first two lines of the record are a session of their own, which max_events ended.
    broker.append(P0, b"a open\na read\na odd\nb open")
    SmallWorker(broker, small_settings(*multiline, "scoring.early=false")).run([None] * 3)
    assert closings_with(REORDERED, broker, *multiline) == {"a": ["<*> odd"], "b": ["<*> open"]}


@pytest.mark.parametrize("change", ["missing", "another key", "one more"])
def test_raw_records_that_changed_are_noticed_when_they_are_tokenised_anew(change: str) -> None:
    broker = memory_broker()
    for line in (b"a open", b"b open", b"b read", b"a odd"):
        broker.append(P0, line)
    SmallWorker(broker, small_settings("scoring.early=false")).run([None] * 3)
    changed = broker._logs[P0]  # no broker changes a record; retention and compaction can take one away
    changed[{"missing": 0, "another key": 3, "one more": 2}[change]].value = {
        "missing": None,
        "another key": b"b odd",
        "one more": b"a read",
    }[change]
    with pytest.raises(RunError, match=r"the snapshot cannot be used: another vocabulary made it.* have changed"):
        closings_with(REORDERED, broker)


SNAPSHOTS = ("sessions.gap=1h", "worker.commit_interval=0ms", "state.snapshot_interval=10s")


def snapshot_times(took_s: Sequence[float], until_s: float) -> list[float]:
    """When a worker that always has new records saves its sessions; its n-th snapshot takes `took_s[n]` seconds."""
    broker = memory_broker()
    clock = Clock(tick_s=0.001)
    small = SmallWorker(broker, small_settings(*SNAPSHOTS), clock=clock)
    write = small.sink.send_snapshot
    began: list[float] = []

    def slowly(parts: Sequence[Message]) -> int:
        began.append(clock.now)
        clock.now += took_s[min(len(began), len(took_s)) - 1]
        return write(parts)

    small.sink.send_snapshot = slowly  # type: ignore[method-assign]

    def second() -> Callable[[], None]:
        def pass_() -> None:
            clock.now += 1
            broker.append(P0, b"a read")

        return pass_

    small.crash_after(second() for _ in range(int(until_s)))
    return began


def test_snapshots_that_cost_little_come_as_often_as_asked() -> None:
    times = snapshot_times([0.01], until_s=200)
    gaps = np.diff(times[1:])
    assert len(gaps) > 10
    assert gaps.max() < 12


def test_snapshots_that_cost_much_come_less_often_and_take_a_twentieth_of_the_time() -> None:
    times = snapshot_times([2.0], until_s=400)
    gaps = np.diff(times[2:])
    assert len(gaps) > 5
    assert gaps.min() > 39
    assert gaps.max() < 45


def test_one_snapshot_that_had_to_wait_does_not_delay_the_next() -> None:
    times = snapshot_times([0.01, 0.01, 0.01, 60.0, 0.01], until_s=200)
    assert np.diff(times)[4:].max() < 12
