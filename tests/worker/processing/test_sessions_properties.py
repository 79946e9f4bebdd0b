"""Sessions close alike however their events are split, mixed with other partitions or replayed.

Every stream is also run through `session_model`, a plain second implementation of the rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.worker.processing.session_model import NO_TIME, Event, Output, SessionModel
from tests.worker.processing.sessions_of_objects import SessionsOfObjects
from worker.delivery.snapshots import Snapshot, decode, encode
from worker.processing.session_columns import ClosedSession
from worker.processing.session_rules import SessionRules
from worker.processing.sessions import Sessions

END_TOKENS = frozenset({0})
PART_BYTES = 400  # small, so that snapshots come in several parts

limits = st.integers(1, 40) | st.none()
session_rules = st.builds(
    SessionRules,
    gap_ms=limits,
    max_age_ms=limits,
    max_events=st.just(1000) | st.integers(1, 6),
    max_open=st.just(1000) | st.integers(1, 4),
    max_future_skew_ms=st.integers(0, 60),
    end_tokens=st.sampled_from([frozenset(), END_TOKENS]),
)

RULES = SessionRules(
    gap_ms=50, max_age_ms=150, max_events=600, max_open=20, max_future_skew_ms=50, end_tokens=END_TOKENS
)

# Time of an event relative to the one before it: equal, a little later, late, or far ahead; None for no time at all.
steps = st.one_of(st.just(0), st.integers(0, 5), st.integers(-30, 30), st.integers(-200, 200), st.none())
# As many events as make stream time fall, or as may wait before it is set: all of one time, or each earlier than the
# one before. How many, and the step of each.
runs = st.tuples(st.integers(990, 1010), st.sampled_from([0, 0, -1, -70]))


@st.composite
def streams(draw: st.DrawFn, max_size: int = 60, *, with_run: bool = False) -> list[Event]:
    """Events of one partition; some records hold several events, some offsets do not exist."""
    raw = draw(
        st.lists(
            st.tuples(st.sampled_from("abcdef"), st.integers(-1, 4), steps, st.sampled_from([0, 1, 1, 1, 3])),
            max_size=max_size,
        )
    )
    events = []
    time, offset = draw(st.integers(-1000, 1000)), draw(st.integers(0, 1000))
    run_at, (run, run_step) = (draw(st.integers(0, len(raw))), draw(runs)) if with_run else (-1, (0, 0))
    for at, (key, token, step, gap) in enumerate(raw):
        if at == run_at:
            time -= 100
            for number in range(run):
                time += run_step
                offset += 1
                events.append(Event("abcdef"[number % 6], 1, time, offset))
        offset += gap
        time += step or 0
        events.append(Event(key, token, NO_TIME if step is None else time, offset))
    return events


def output(closed: ClosedSession) -> Output:
    session = closed.session
    return Output(
        key=session.key,
        first_offset=session.first_offset,
        tokens=tuple(session.tokens),
        offsets=tuple(session.offsets),
        first_time=session.times[0],
        last_time=session.times[-1],
        opened_at=session.opened_at,
        last_at=session.last_at,
        cause=closed.cause_offset,
        closed_by=closed.closed_by,
        rank=closed.rank,
    )


def process(sessions: Sessions | SessionsOfObjects, events: Sequence[Event]) -> list[Output]:
    return [
        output(closed)
        for closed in sessions.process(
            [event.key for event in events],
            [event.token for event in events],
            [event.time for event in events],
            [event.offset for event in events],
        )
    ]


def finish(sessions: Sessions | SessionsOfObjects, events: Sequence[Event]) -> list[Output]:
    return [output(closed) for closed in sessions.flush(end(events), "end_of_input")]


def end(events: Sequence[Event]) -> int:
    return events[-1].offset + 1 if events else 0


def expected(rules: SessionRules, events: Sequence[Event]) -> SessionModel:
    model = SessionModel(rules)
    for event in events:
        model.take(event)
    model.flush(end(events), "end_of_input")
    return model


def batches(events: list[Event], cuts: list[int]) -> Iterator[list[Event]]:
    places = sorted({0, len(events), *(cut % (len(events) + 1) for cut in cuts)})
    for begin, stop in pairwise(places):
        yield events[begin:stop]


@settings(max_examples=400)
@given(rules=session_rules, events=streams())
def test_the_rules_are_those_of_the_plain_model(rules: SessionRules, events: list[Event]) -> None:
    sessions = Sessions(rules)
    model = expected(rules, events)
    assert process(sessions, events) + finish(sessions, events) == model.outputs
    clock = sessions.clock
    assert clock.stream_time == model.stream_time
    assert (clock.late_events, clock.skewed_events) == (model.late, model.skewed)


@settings(max_examples=60, deadline=None)
@given(
    rules=session_rules,
    events=streams() | streams(with_run=True),
    cuts=st.lists(st.integers(0, 1100), max_size=20),
)
def test_the_clock_moves_as_that_of_the_plain_model(rules: SessionRules, events: list[Event], cuts: list[int]) -> None:
    sessions, model = Sessions(rules), SessionModel(rules)
    moves = []
    for batch in batches(events, cuts):
        process(sessions, batch)
        moves += sessions.clock.moves
        for event in batch:
            model.take(event)
        assert sessions.stream_time == model.stream_time
        assert [(*each,) for each in sessions.clock.state().waiting] == [(*each,) for each in model.waiting]
        assert sessions.clock.state().behind == len(model.behind)
    assert [(*each,) for each in moves] == model.moves


@settings(max_examples=200)
@given(rules=session_rules, events=streams(), cuts=st.lists(st.integers(0, 100), max_size=20))
def test_any_split_into_batches_gives_the_same_outputs(
    rules: SessionRules, events: list[Event], cuts: list[int]
) -> None:
    sessions = Sessions(rules)
    outputs = [found for batch in batches(events, cuts) for found in process(sessions, batch)]
    assert outputs + finish(sessions, events) == expected(rules, events).outputs


@settings(max_examples=100)
@given(
    rules=session_rules,
    partitions=st.tuples(streams(), streams()),
    turns=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 12)), max_size=30),
)
def test_any_interleaving_of_two_partitions_gives_the_same_outputs(
    rules: SessionRules, partitions: tuple[list[Event], list[Event]], turns: list[tuple[int, int]]
) -> None:
    sessions = Sessions(rules), Sessions(rules)
    outputs: tuple[list[Output], list[Output]] = [], []
    taken = [0, 0]
    for which, count in [*turns, (0, 1000), (1, 1000)]:
        batch = partitions[which][taken[which] : taken[which] + count]
        outputs[which].extend(process(sessions[which], batch))
        taken[which] += len(batch)
    for which, events in enumerate(partitions):
        outputs[which].extend(finish(sessions[which], events))
        assert outputs[which] == expected(rules, events).outputs


class Worker:
    """One partition's exactly-once loop, with Kafka reduced to what is committed.

    An output is published by the commit that moves the position past its cause. A crash loses all the rest.
    """

    def __init__(self, rules: SessionRules, events: list[Event]) -> None:
        self.rules = rules
        self.events = events
        self.published: list[Output] = []
        self.committed = self.position_of(0)
        self.snapshot = self.take_snapshot(Sessions(rules), self.committed)
        self.recover()

    def position_of(self, index: int) -> int:
        return self.events[index].offset if index < len(self.events) else end(self.events)

    def take_snapshot(self, sessions: Sessions, position: int) -> list[bytes]:
        return encode(Snapshot(position, "sha256:0", 5, sessions.state()), PART_BYTES)

    def recover(self) -> None:
        snapshot = decode(self.snapshot)
        self.sessions = Sessions(self.rules, snapshot.sessions)
        self.pending: list[Output] = []
        self.next = next(
            (index for index, event in enumerate(self.events) if event.offset >= snapshot.position),
            len(self.events),
        )

    def consume(self, count: int) -> None:
        """Process at least `count` events, up to the end of a record: a poll never splits one."""
        stop = min(self.next + count, len(self.events))
        while 0 < stop < len(self.events) and self.events[stop].offset == self.events[stop - 1].offset:
            stop += 1
        found = process(self.sessions, self.events[self.next : stop])
        self.pending += [each for each in found if each.cause >= self.committed]
        self.next = stop

    def commit(self, with_snapshot: bool) -> None:
        if self.position_of(self.next) < self.committed:
            return  # still replaying: the partition is left out
        self.published += self.pending
        self.pending = []
        self.committed = self.position_of(self.next)
        if with_snapshot:
            self.snapshot = self.take_snapshot(self.sessions, self.committed)


actions = st.lists(
    st.one_of(
        st.integers(1, 15),
        st.sampled_from(["commit", "snapshot", "crash"]),
    ),
    max_size=30,
)


@settings(max_examples=400)
@given(rules=session_rules, events=streams(), course=actions)
def test_any_course_of_commits_snapshots_and_crashes_publishes_every_output_once(
    rules: SessionRules, events: list[Event], course: list[int | Literal["commit", "snapshot", "crash"]]
) -> None:
    worker = Worker(rules, events)
    for action in course:
        if isinstance(action, int):
            worker.consume(action)
        elif action == "crash":
            worker.recover()
        else:
            worker.commit(with_snapshot=action == "snapshot")
    worker.consume(len(events))
    worker.commit(with_snapshot=True)
    worker.recover()
    assert worker.published + finish(worker.sessions, events) == expected(rules, events).outputs


@settings(max_examples=300)
@given(rules=session_rules, events=streams(), at=st.integers(0, 60), until=st.integers(0, 60))
@example(  # a snapshot in the middle of a row that makes time fall, and a replay over its end
    rules=RULES,
    events=[Event("a", 1, 1_000, at) for at in range(3)] + [Event("b", 1, at % 7, 3 + at) for at in range(1_100)],
    at=700,
    until=1_010,
)
@example(  # a snapshot amid the events that wait before stream time is set
    rules=RULES,
    events=[Event("ab"[at % 2], 1, -at * 1_000, at) for at in range(1_100)],
    at=500,
    until=1_000,
)
def test_a_snapshot_anywhere_then_a_silent_replay_gives_the_outputs_of_an_unbroken_run(
    rules: SessionRules, events: list[Event], at: int, until: int
) -> None:
    """Also when the snapshot falls between two events of one record."""
    at, until = sorted((at % (len(events) + 1), until % (len(events) + 1)))
    first = Sessions(rules)
    before = process(first, events[:at])
    parts = encode(Snapshot(at, "sha256:0", 5, first.state()), PART_BYTES)
    before += process(first, events[at:until])

    second = Sessions(rules, decode(parts).sessions)
    replayed = process(second, events[at:until])
    assert replayed == before[len(before) - len(replayed) :]
    assert second.state() == first.state()
    after = process(second, events[until:]) + finish(second, events)
    assert before + after == expected(rules, events).outputs


@settings(max_examples=200)
@given(
    rules=session_rules,
    events=streams(),
    cuts=st.lists(st.integers(0, 100), max_size=8),
    looks=st.sets(st.integers(0, 8)),
)
def test_restores_anywhere_and_snapshots_of_what_was_restored_change_no_output(
    rules: SessionRules, events: list[Event], cuts: list[int], looks: set[int]
) -> None:
    """A restored session that had no event since is still only columns: it closes and is saved like any other."""
    unbroken, sessions = Sessions(rules), Sessions(rules)
    outputs: list[Output] = []
    for number, batch in enumerate(batches(events, cuts)):
        outputs += process(sessions, batch)
        process(unbroken, batch)
        assert sessions.state() == unbroken.state()
        assert len(sessions) == len(unbroken)
        if number not in looks:
            sessions = Sessions(
                rules, decode(encode(Snapshot(0, "sha256:0", 5, sessions.state()), PART_BYTES)).sessions
            )
            assert sessions.state() == unbroken.state()
    assert outputs + finish(sessions, events) == expected(rules, events).outputs


def long_stream(random: Random) -> list[Event]:
    events, time = [], 0
    for offset in range(2000):
        time += random.choice([0, 0, 1, 1, 2, 5])
        jitter = random.choice([0, 0, 0, -20, 30, 80])
        events.append(Event(f"key {random.randrange(60)}", random.randrange(30), time + jitter, offset))
    return events


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("max_open", "reasons"),
    [(20, {"max_open", "gap"}), (1000, {"gap", "max_age", "max_events", "end_event"})],
)
def test_a_long_crowded_stream_with_crashes_gives_the_outputs_of_the_plain_model(
    max_open: int, reasons: set[str], seed: int
) -> None:
    random = Random(seed)
    rules = SessionRules(
        gap_ms=50,
        max_age_ms=150,
        max_events=6,
        max_open=max_open,
        max_future_skew_ms=50,
        end_tokens=END_TOKENS,
    )
    events = long_stream(random)
    model = expected(rules, events)
    assert {each.closed_by for each in model.outputs} >= reasons

    worker = Worker(rules, events)
    for step in range(100):
        worker.consume(random.randrange(60))
        if step % 3:
            worker.commit(with_snapshot=step % 2 == 0)
        if step % 5 == 0:
            worker.recover()
    worker.consume(len(events))
    worker.commit(with_snapshot=False)
    assert worker.published + finish(worker.sessions, events) == model.outputs


@pytest.mark.parametrize("collide", [False, True])
@pytest.mark.parametrize("max_open", [150, 10_000])
def test_thousands_of_sessions_in_any_batches_are_as_if_each_were_an_object(
    max_open: int, collide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns grow and shrink on the way; and once all keys have one hash, which no secret seed gives."""
    if collide:
        monkeypatch.setattr("worker.processing.sessions._SEED", 0)
    random = Random(max_open)
    rules = replace(RULES, max_open=max_open, gap_ms=2_000, max_age_ms=4_000, max_future_skew_ms=1_500)
    columns, objects = Sessions(rules), SessionsOfObjects(rules)
    time, begin, most = 0, 0, 0
    while begin < 6_000:
        events = []
        # Now many sessions, now few, and a night between.
        keys = random.choice([10, 300, 3_000])
        time += random.choice([0, 0, 0, 10_000])
        for offset in range(begin, begin + random.choice([1, 30, 500])):
            time += random.choice([0, 0, 1, 2])
            jitter = random.choice([0, 0, 0, 0, -20, 300, 3_000])
            key = f"{'long ' * random.randrange(2)}key é{random.randrange(keys)}"
            events.append(Event(key, random.randrange(60), time + jitter, offset))
        begin += len(events)
        assert process(columns, events) == process(objects, events)
        assert columns.shared_causes == objects.shared_causes
        assert columns.state() == objects.state()
        assert len(columns) == len(objects)
        most = max(most, len(columns))
    assert most == max_open or most > 700
    assert finish(columns, events) == finish(objects, events)
    assert columns.state() == objects.state()
