"""A running worker goes over to another checkpoint: every record is of the old or of the new one, and comes once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detector.text.vocabulary import Vocabulary
from tests.worker.delivery.test_loop import LINES, disturb, filled
from tests.worker.delivery.test_loop import RULES as LOOP_RULES
from tests.worker.small_worker import INPUT, VOCABULARY, Clock, OddScorer, SmallWorker, memory_broker, outputs
from tests.worker.small_worker import settings as small_settings
from worker.delivery.memory import MemoryBroker
from worker.delivery.protocols import Committed
from worker.delivery.snapshots import SnapshotPointer
from worker.observability.metrics import Metrics
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition
from worker.settings.document import Settings

P0 = Partition(INPUT, 0)
RULES = (*LOOP_RULES, "sessions.idle_flush=null")  # a broker that hangs takes minutes
REORDERED = Vocabulary((*VOCABULARY.templates[2:], *VOCABULARY.templates[:2]))


class ReadScorer(OddScorer):
    """Another checkpoint, of another vocabulary: to it, what is odd are the events "read"."""

    checkpoint = "sha256:read"
    odd = REORDERED.token_of("<*> read") or 0

    def __init__(self) -> None:
        super().__init__(REORDERED)


ODD_WORD = {OddScorer.checkpoint: b"odd", ReadScorer.checkpoint: b"read"}


class Offers:
    """`Reloads` by hand."""

    latest = None

    def __init__(self) -> None:
        self.offered: Pipeline | None = None
        self.ended: list[str] = []

    def due(self) -> Pipeline | None:
        return self.offered

    def taken(self, seconds: float) -> None:
        assert seconds >= 0
        self.offered = None
        self.ended.append("taken")

    def refused(self, error: Exception) -> None:
        self.offered = None
        self.ended.append(str(error))


def worker_on(broker: MemoryBroker, use: Settings, offers: Offers, clock: Clock, scorer: OddScorer) -> SmallWorker:
    return SmallWorker(broker, use, broker.partitions(INPUT), clock, scorer=scorer, reloads=offers)


def offer(offers: Offers, use: Settings, scorer: OddScorer) -> None:
    offers.offered = Pipeline(use, scorer, Metrics())


def finals(records: list[dict[str, Any]]) -> dict[tuple[int, int, int], dict[str, Any]]:
    """Final records by session; what caused it tells two sessions of one record apart."""
    found = {}
    for each in records:
        if each["kind"] == "final":
            source = each["source"]
            place = source["partition"], source["first_offset"], source["cause_offset"]
            assert place not in found, "a session has two final records"
            found[place] = each
    return found


@cache
def alone(partitions: int, scorer: type[OddScorer]) -> dict[tuple[int, int, int], dict[str, Any]]:
    """What a checkpoint gives to which nothing happens."""
    broker = filled(partitions, repeat=3)
    worker_on(broker, small_settings(*RULES), Offers(), Clock(), scorer()).run([None] * 40)
    return finals(outputs(broker))


Doing = Callable[[Any], Callable[[], object]]


def live(
    steps: Sequence[Any], broker: MemoryBroker, partitions: int, begin: Callable[[], tuple[SmallWorker, Doing]]
) -> None:
    """Take the steps, one worker after the other, and go on until all records are committed.

    Args:
        steps: a crash or a stop ends a worker.
        broker: with the records.
        partitions: of its input.
        begin: starts a worker; gives it, and what it makes of a step.
    """
    remaining = list(steps)
    while True:
        small, doing = begin()
        script: list[Callable[[], object] | None] = [None]
        ending = "done"
        while remaining and ending == "done":
            step = remaining.pop(0)
            if step in ("crash", "stop"):
                ending = step
            else:
                script.append(doing(step))
        if ending == "crash":
            small.crash_after(script)
        elif ending == "stop":
            small.run(script)
        else:
            small.run([*script, small.sink.takes_s.clear, *[None] * 40])
            ends = [broker.watermarks(Partition(INPUT, number))[1] for number in range(partitions)]
            if [committed.offset for _, committed in sorted(broker.committed.items())] == ends:
                return


STEPS = st.sampled_from(
    [
        *("turn", "turn", "crash", "abort", "revoke", "lose", "revoke amid a batch", "stop"),
        *("hang in flush", "hang in commit", "answer", "ask"),
    ]
)


@settings(max_examples=40)
@given(st.lists(STEPS, max_size=6), st.lists(STEPS, max_size=3), st.lists(STEPS, max_size=8), st.integers(1, 2))
@example(["turn", "abort"], [], ["turn"], 2)  # asked for while partitions replay
def test_whenever_a_checkpoint_is_replaced_and_taken_and_whatever_strikes_each_record_is_of_one_of_them_and_comes_once(
    before: list[str], between: list[str], after: list[str], partitions: int
) -> None:
    """`write` puts the new checkpoint in the place of the old one, where a worker that starts finds it; `ask` has the
    running one take what is there."""
    steps = [*before, "write", *between, "ask", *after]
    broker, use, clock = filled(partitions, repeat=3), small_settings(*RULES), Clock()
    place: list[type[OddScorer]] = [OddScorer]

    def begin() -> tuple[SmallWorker, Doing]:
        offers = Offers()
        small = worker_on(broker, use, offers, clock, place[0]())

        def doing(step: str) -> Callable[[], object]:
            if step == "write":
                return partial(place.__setitem__, 0, ReadScorer)
            return partial(disturb, small, step) if step != "ask" else lambda: offer(offers, use, place[0]())

        return small, doing

    live(steps, broker, partitions, begin)
    check(outputs(broker), partitions)


def check(records: list[dict[str, Any]], partitions: int) -> None:
    expected = {scorer.checkpoint: alone(partitions, scorer) for scorer in (OddScorer, ReadScorer)}
    found = finals(records)
    assert found.keys() == expected[OddScorer.checkpoint].keys()
    told_early = [each for each in records if each["kind"] == "early"]
    for place, record in found.items():
        whole = expected[record["model"]["checkpoint"]][place]
        assert record | {"retracts": None} == whole | {"retracts": None}
        # What an early record of the other checkpoint told is taken back, too.
        assert record.get("retracts", []) == taken_back(record, told_early)
    lines = [[line for at, line in enumerate(LINES * 3) if at % partitions == each] for each in range(partitions)]
    told = set()
    for record in records:
        source, checkpoint = record["source"], record["model"]["checkpoint"]
        if record["kind"] == "early":
            key = record["session"].encode() + b" "
            events = [line for line in lines[source["partition"]][source["first_offset"] :] if line.startswith(key)]
            odd = sum(ODD_WORD[checkpoint] in line for line in events[: record["events"]])
            assert record["score"] == round(odd / record["events"], 6)
            place = source["partition"], source["first_offset"], record["severity"], checkpoint
            assert place not in told
            told.add(place)
    for number in range(partitions):
        order = [each["model"]["checkpoint"] for each in records if each["source"]["partition"] == number]
        assert order == sorted(order), "a record of the old one after one of the new one"


def taken_back(final: dict[str, Any], early: list[dict[str, Any]]) -> list[dict[str, str]]:
    """What a final record must retract: the early ones of its session that were of a higher severity."""
    order = ["normal", "warning", "critical"]
    session = session_of(final)
    higher = {
        each["severity"]: each["id"]
        for each in early
        if session_of(each) == session and order.index(each["severity"]) > order.index(final["severity"])
    }
    return [{"id": higher[severity], "severity": severity} for severity in order if severity in higher]


def session_of(record: dict[str, Any]) -> tuple[int, int, str]:
    """Its input partition, first offset and key."""
    return record["source"]["partition"], record["source"]["first_offset"], record["session"]


def open_sessions(*overrides: str) -> tuple[MemoryBroker, Settings]:
    broker = memory_broker()
    for number, line in enumerate([b"a open", b"a read", b"b open", b"b odd"]):
        broker.append(P0, line, timestamp=1 + number)
    return broker, small_settings("scoring.early=false", *overrides)


def test_open_sessions_go_on_with_the_tokens_of_the_new_vocabulary_and_status_and_records_name_the_new_checkpoint() -> (
    None
):
    broker, use = open_sessions("sessions.idle_flush=1ms", "state.snapshot_interval=1h")
    offers, clock = Offers(), Clock(tick_s=0)
    small = worker_on(broker, use, offers, clock, OddScorer())
    small.run(
        [
            None,
            partial(offer, offers, use, ReadScorer()),
            lambda: setattr(clock, "now", 3600.0),
            *[None] * 3,
        ]
    )
    assert offers.ended == ["taken"]
    records = finals(outputs(broker)).values()
    assert {each["session"]: each["score"] for each in records} == {"a": 0.5, "b": 0.0}
    assert {event["template"] for each in records for event in each["top_events"]} == {
        *("<*> open", "<*> read", "<*> odd")
    }
    status = small.worker.status()
    named = {(each["model"]["checkpoint"], each["model"]["vocabulary"]) for each in records}
    assert named == {(ReadScorer.checkpoint, REORDERED.sha256)} == {(status.checkpoint, status.vocabulary)}
    shown = {"checkpoint": status.checkpoint, "vocabulary": status.vocabulary}
    assert small.worker._metrics.registry.get_sample_value("logmamba_model_info", shown) == 1


def test_whoever_restores_what_the_old_checkpoint_left_has_nothing_to_replay() -> None:
    broker, use = open_sessions("state.snapshot_interval=1h", "worker.batch_records=2", "worker.commit_interval=0ms")
    offers = Offers()
    worker_on(broker, use, offers, Clock(), OddScorer()).crash_after(
        [None, None, partial(offer, offers, use, ReadScorer())]
    )
    committed = broker.committed[P0]
    pointer = SnapshotPointer.from_metadata(committed.metadata)
    assert pointer is not None
    assert (offers.ended, committed.offset, pointer.position) == (["taken"], 4, 4)


TOLD = ("state.snapshot_interval=1h", "worker.batch_records=1", "worker.commit_interval=0ms", "sessions.max_events=4")


def told_since_the_snapshot(*overrides: str) -> tuple[MemoryBroker, Settings]:
    """A worker was killed, and its snapshot knows nothing of what it told early: that "b" and "d" are odd."""
    broker, use = memory_broker(), small_settings(*TOLD, "sessions.idle_flush=null", *overrides)
    for number, line in enumerate([b"a open", b"b odd", b"c read", b"d odd"]):
        broker.append(P0, line, timestamp=1 + number)
    worker_on(broker, use, Offers(), Clock(), OddScorer()).crash_after([None] * 5)
    pointer = SnapshotPointer.from_metadata(broker.committed[P0].metadata)
    assert pointer is not None
    assert (pointer.position, broker.committed[P0].offset) == (1, 4)
    assert [(each["session"], each["severity"]) for each in outputs(broker)] == [("b", "critical"), ("d", "critical")]
    for key in (b"a", b"b", b"c"):
        for _ in range(3):
            broker.append(P0, key + b" open", timestamp=10)
    return broker, use


def retracted(broker: MemoryBroker) -> dict[str, list[dict[str, str]]]:
    """By session, of those that closed, what its final record takes back; nothing was told twice."""
    records = outputs(broker)
    early = [each for each in records if each["kind"] == "early"]
    assert len({each["id"] for each in early}) == len(early)
    found = {session_of(each): each for each in records if each["kind"] == "final"}
    assert {place: each.get("retracts", []) for place, each in found.items()} == {
        place: taken_back(each, early) for place, each in found.items()
    }
    return {each["session"]: each.get("retracts", []) for each in found.values()}


def test_a_worker_that_comes_back_with_another_checkpoint_takes_back_what_was_told_before_it_and_nothing_else() -> None:
    broker, use = told_since_the_snapshot()
    # To this one "c" was odd, of which nobody was told, and "b" and "d" are not.
    worker_on(broker, use, Offers(), Clock(), ReadScorer()).run([None] * 20)
    found = retracted(broker)
    assert (found["a"], found["c"], [each["severity"] for each in found["b"]]) == ([], [], ["critical"])
    assert [each["session"] for each in outputs(broker)] == ["b", "d", "a", "b", "c"]
    # What it knew without having looked is in its own snapshots, too: "d" is still open.
    for _ in range(3):
        broker.append(P0, b"d open", timestamp=20)
    worker_on(broker, use, Offers(), Clock(), OddScorer()).run([None] * 10)
    assert [each["severity"] for each in retracted(broker)["d"]] == ["critical"]


def test_a_worker_that_goes_over_while_its_partitions_are_away_takes_back_what_was_told_before_it() -> None:
    broker, use = told_since_the_snapshot()
    offers = Offers()
    small = worker_on(broker, use, offers, Clock(), OddScorer())
    small.run(
        [
            None,
            partial(small.source.lose_next.append, P0),
            partial(offer, offers, use, ReadScorer()),
            None,
            partial(small.source.assign_next.append, P0),
            *[None] * 20,
        ]
    )
    assert offers.ended == ["taken"]
    assert [each["severity"] for each in retracted(broker)["b"]] == ["critical"]


@pytest.mark.parametrize("scorer", [OddScorer, ReadScorer])
def test_what_a_worker_of_the_version_before_told_is_found_out_by_scoring_it_again(scorer: type[OddScorer]) -> None:
    broker, use = told_since_the_snapshot()
    said = orjson.loads(broker.committed[P0].metadata or "")
    del said["told"]
    said["version"] = 2
    broker.committed[P0] = Committed(broker.committed[P0].offset, orjson.dumps(said).decode())
    offers = Offers()
    small = worker_on(broker, use, offers, Clock(), OddScorer())
    small.crash_after([None] * 5 if scorer is OddScorer else [*[None] * 3, partial(offer, offers, use, scorer())])
    assert offers.ended == (["taken"] if scorer is ReadScorer else [])
    worker_on(broker, use, offers, Clock(), scorer()).run([None] * 20)
    assert [each["severity"] for each in retracted(broker)["b"]] == ["critical"]


def test_a_checkpoint_that_would_need_lines_that_are_deleted_is_refused_and_the_old_one_goes_on() -> None:
    broker, use = open_sessions("sessions.idle_flush=1ms")
    offers, clock = Offers(), Clock(tick_s=0)
    broker_loses = partial(broker.delete_before, P0, 1)
    small = worker_on(broker, use, offers, clock, OddScorer())
    small.run(
        [
            None,
            broker_loses,
            partial(offer, offers, use, ReadScorer()),
            lambda: setattr(clock, "now", 3600.0),
            *[None] * 3,
        ]
    )
    [reason] = offers.ended
    assert reason == "its tokens are of another vocabulary, and the raw records from offset 0 are deleted (oldest: 1)"
    records = finals(outputs(broker)).values()
    assert {each["session"]: each["score"] for each in records} == {"a": 0.0, "b": 0.5}
    assert {each["model"]["checkpoint"] for each in records} == {OddScorer.checkpoint}


def test_other_thresholds_hold_from_the_next_commit_boundary_on() -> None:
    broker, before = open_sessions("sessions.max_events=3")
    offers = Offers()
    use = small_settings("sessions.max_events=3", "scoring.early=false", "scoring.warning=0.6")
    lines = iter([b"b odd", b"a odd"])

    def more() -> None:
        broker.append(P0, next(lines), timestamp=10)

    worker_on(broker, before, offers, Clock(), OddScorer()).run(
        [None, more, partial(offer, offers, use, OddScorer()), more, None]
    )
    shown = [(each["session"], each["severity"], each["thresholds"]["warning"]) for each in outputs(broker)]
    assert shown == [("b", "normal", 0.7), ("a", "normal", 0.6)]


def test_partitions_that_come_or_go_while_lines_are_read_again_put_the_change_off() -> None:
    broker, use, offers = filled(2, repeat=3), small_settings(*RULES), Offers()
    small = SmallWorker(broker, use, (0,), reloads=offers)
    keep_alive, steps = small.source.keep_alive, [P0._replace(partition=1)]

    def stirred() -> None:
        if steps:
            small.source.assign_next.append(steps.pop())
        keep_alive()

    small.source.keep_alive = stirred  # type: ignore[method-assign]
    small.run([None, partial(offer, offers, use, ReadScorer()), *[None] * 40])
    assert steps == []
    assert small.worker._report.totals["aborts"] == 1
    assert offers.ended == ["taken"]
    check(outputs(broker), 2)


def test_while_a_partition_still_replays_a_change_that_is_due_holds_up_no_commit() -> None:
    broker = memory_broker(2)
    one = P0._replace(partition=1)
    for number in range(40):
        broker.append(one, b"a read", timestamp=1 + number)
    rules = ("sessions.max_events=1000", "scoring.early=false", "state.snapshot_interval=1h", "worker.batch_records=2")
    use = small_settings(*rules, "sessions.idle_flush=null", "worker.commit_interval=0ms")
    SmallWorker(broker, use, (1,)).crash_after([None] * 30)
    for number in range(40):
        broker.append(P0, b"b read", timestamp=1 + number)
    offers, committed = Offers(), []
    small = SmallWorker(broker, use, (0, 1), reloads=offers)
    offer(offers, use, ReadScorer())

    def look() -> None:
        if small.worker._pipeline.replaying(one):
            committed.append(broker.committed[P0].offset if P0 in broker.committed else 0)

    small.run([None, *[look] * 40])
    assert offers.ended == ["taken"]
    assert max(committed) > 0
