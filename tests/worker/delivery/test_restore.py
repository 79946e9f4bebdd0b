"""Coming back: what a restart reads again costs no scoring, unless thresholds have to learn from it; and what snapshots
cost the running worker is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pytest

from detector.scoring.scores import EventScores
from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import N_SPECIAL, Vocabulary
from tests.worker.small_worker import (
    INPUT,
    STATE,
    VOCABULARY,
    Clock,
    OddScorer,
    SmallWorker,
    memory_broker,
    outputs,
)
from tests.worker.small_worker import settings as small_settings
from worker.delivery.deadline import Deadline
from worker.delivery.memory import MemoryBroker
from worker.delivery.protocols import Committed, Message
from worker.delivery.restore import StateStore
from worker.errors import RunError, TransactionAborted
from worker.observability.metrics import Metrics
from worker.processing.adaptive import AdaptiveState
from worker.processing.clock import ClockState
from worker.processing.decoder import Decoder
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition, Records
from worker.processing.session_state import SessionsState

P0 = Partition(INPUT, 0)


class CountingScorer(OddScorer):
    """Keeps what it was asked to score."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[str]] = []

    def score(
        self,
        sequences: Sequence[bytes],
        unfinished: Sequence[bytes] = (),
        after_pass: Callable[[], None] = lambda: None,
    ) -> list[EventScores]:
        for sequence in (*sequences, *unfinished):
            self.asked.append([self.vocabulary.text(token) for token in np.frombuffer(sequence, np.int64).tolist()])
        return super().score(sequences, unfinished, after_pass)


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


def test_a_replay_with_adaptive_thresholds_learns_from_what_closes_and_publishes_nothing() -> None:
    use = small_settings("sessions.max_events=2", "scoring.adaptive={target_rate: 0.05}")
    lines: list[bytes | None] = [b"a open", b"a read", b"", b"b odd", b"b odd", b"c odd"]
    records = Records(INPUT, 0, [*range(6)], lines, None, None, None)
    live, replaying = (Pipeline(use, OddScorer(), Metrics()) for _ in range(2))
    live.open(P0)
    severities = [output.severity for output in live.process([records])]
    replaying.open(P0, position=0, live_from=6, told=live.told(P0, 0))
    assert severities == [None, "normal", "critical", "critical", "critical"]
    assert replaying.process([records]) == []
    assert replaying.state(P0) == live.state(P0)
    _, thresholds, _ = replaying.state(P0)
    assert thresholds is not None
    assert thresholds.highest == (0.0, 1.0)


@pytest.mark.parametrize(("told", "severities"), [(None, []), ("", ["warning"])])
def test_events_that_nobody_looked_at_before_the_thresholds_were_adaptive_are_judged_by_the_fixed_ones(
    told: str | None, severities: list[str]
) -> None:
    fixed = ("scoring.warning=0.45", "scoring.critical=0.9")
    before = Pipeline(small_settings(*fixed, "scoring.early=false"), OddScorer(), Metrics())
    before.open(P0)
    before.process([Records(INPUT, 0, [0, 1], [b"a read", b"a odd"], None, None, None)])
    sessions, *_ = before.state(P0)
    learnt = AdaptiveState(
        checkpoint=OddScorer.checkpoint, target_rate=0.05, sessions=0, highest=(), proposed=((0.6, 0.95),) * 9
    )
    pipeline = Pipeline(small_settings(*fixed, "scoring.adaptive={target_rate: 0.05}"), OddScorer(), Metrics())
    pipeline.open(P0, 2, 2, sessions, learnt, told=told)
    # Event 1 has a score of 0.5, a warning once, which was told if nobody knows; event 2 one of 0.67, a warning now.
    found = pipeline.process([Records(INPUT, 0, [2], [b"a odd"], None, None, None)])
    assert [output.severity for output in found] == severities


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
    with pytest.raises(RunError, match=r"its tokens are of another vocabulary.* have changed"):
        closings_with(REORDERED, broker)


SNAPSHOTS = ("sessions.gap=1h", "worker.commit_interval=0ms", "state.snapshot_interval=10s")


def snapshot_times(took_s: Sequence[float], until_s: float) -> list[float]:
    """When a worker that always has new records saves its sessions; its n-th snapshot takes `took_s[n]` seconds."""
    broker = memory_broker()
    clock = Clock(tick_s=0.001)
    small = SmallWorker(broker, small_settings(*SNAPSHOTS), clock=clock)
    write = small.sink.send_snapshots
    began: list[float] = []

    def slowly(snapshots: Iterable[Sequence[Message]], deadline: Deadline) -> list[int]:
        began.append(clock.now)
        clock.now += took_s[min(len(began), len(took_s)) - 1]
        return write(snapshots, deadline)

    small.sink.send_snapshots = slowly  # type: ignore[method-assign]

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


def test_parts_of_a_fenced_worker_between_those_of_a_snapshot_are_passed_over() -> None:
    broker = memory_broker()
    use = small_settings("kafka={bootstrap.servers: nowhere:9092, message.max.bytes: 65536}")
    tokenizer = Tokenizer(VOCABULARY, unknown="unk")
    store = StateStore(
        use,
        vocabulary=VOCABULARY,
        decoder=Decoder(use.input, use.sessions, tokenizer),
        reader=broker,
    )
    for offset in range(100):
        broker.append(P0, b"a line %d" % offset)
    ours, theirs = (store.maker(P0, position)(noisy_sessions(position), None, None) for position in (40, 60))
    assert min(len(ours), len(theirs)) > 1
    place = Partition(use.state_topic, ours[0].partition or 0)
    first = broker.watermarks(place)[1]
    for part in (ours[0], *theirs, *ours[1:]):
        broker.append(place, part.value, part.key, committed=part not in theirs)
    pointer = store.pointer(P0, 40, first, len(ours))
    start = store.start(P0, Committed(50, pointer.to_metadata("w0")))
    assert start.sessions is not None
    assert (start.position, start.live_from) == (40, 50)
    assert start.sessions.keys == noisy_sessions(40).keys
    assert np.array_equal(start.sessions.tokens, noisy_sessions(40).tokens)


LONG_SNAPSHOTS = (
    "kafka={bootstrap.servers: nowhere:9092, message.max.bytes: 65536}",
    "scoring.early=false",
    "worker.commit_interval=0ms",
    "state.snapshot_interval=0ms",
)


def opened(broker: MemoryBroker, sessions: int = 8_000) -> None:
    rng = np.random.default_rng(0)
    for key in rng.integers(0, 2**60, sessions).tolist():
        broker.append(P0, b"s%d open" % key)


def live_parts(broker: MemoryBroker) -> list[int]:
    """Part numbers of the snapshots in the state topic that compaction leaves."""
    latest = {message.key: message.value for message in broker.visible(STATE)}
    return sorted(int((key or b"").rpartition(b"/")[2]) for key, value in latest.items() if value is not None)


def close_all(broker: MemoryBroker, *overrides: str) -> SmallWorker:
    """A worker that ends every session because nothing more comes, so that its snapshots have one part."""
    small = SmallWorker(
        broker, small_settings(*LONG_SNAPSHOTS, "sessions.idle_flush=1ms", *overrides), clock=Clock(tick_s=1)
    )
    small.run([None] * 4)
    return small


def test_a_shorter_snapshot_after_a_restart_leaves_no_part_of_a_longer_one_in_the_state_topic() -> None:
    broker = memory_broker()
    opened(broker)
    SmallWorker(broker, small_settings(*LONG_SNAPSHOTS)).run([None] * 3)
    assert len(live_parts(broker)) > 1
    close_all(broker)
    assert live_parts(broker) == [0]


@pytest.mark.parametrize("lost", ["position", "snapshot", "metadata"])
def test_nor_does_one_after_starting_over(lost: str) -> None:
    broker = memory_broker()
    opened(broker)
    SmallWorker(broker, small_settings(*LONG_SNAPSHOTS)).run([None] * 3)
    assert len(live_parts(broker)) > 1
    if lost == "position":
        broker.committed.clear()
    elif lost == "metadata":
        broker.committed[P0] = broker.committed[P0]._replace(metadata="")
    else:
        part = next(message for message in broker.visible(STATE) if (message.key or b"").endswith(b"/1"))
        for number in broker.partitions(STATE):
            for stored in broker._logs[Partition(STATE, number)]:
                if stored.key == part.key:
                    stored.value = b"damaged"
    close_all(broker, "input.on_lost_offsets=earliest")
    assert live_parts(broker) == [0]


def test_parts_of_a_snapshot_are_known_again_after_the_transaction_of_a_shorter_one_was_aborted() -> None:
    broker = memory_broker()
    opened(broker)
    SmallWorker(broker, small_settings(*LONG_SNAPSHOTS)).run([None] * 3)
    assert len(live_parts(broker)) > 1
    rules = small_settings(*LONG_SNAPSHOTS, "sessions.idle_flush=1ms")
    small = SmallWorker(broker, rules, clock=Clock(tick_s=1))
    small.sink.fail_next_commit = TransactionAborted("amid the flush")
    small.run([None] * 6)
    assert small.worker._report.totals["aborts"] == 1
    assert live_parts(broker) == [0]


def noisy_sessions(seed: int) -> SessionsState:
    """Eight thousand open sessions of one event each, of which little can be compressed away."""
    n, rng = 8_000, np.random.default_rng(seed)
    zeros, tokens = np.zeros(n, np.int64), rng.integers(N_SPECIAL, N_SPECIAL + len(VOCABULARY.templates), n)
    return SessionsState(
        clock=ClockState(0),
        keys=[f"{seed}_{number}" for number in rng.integers(0, 2**60, n)],
        lengths=zeros + 1,
        opened_at=zeros,
        last_at=zeros,
        alerted=zeros,
        evaluated=zeros,
        tokens=tokens,
        offsets=np.arange(n),
        times=zeros,
    )
