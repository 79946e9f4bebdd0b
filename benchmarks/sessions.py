"""How fast are session boundaries and snapshots, on one core and without scoring?

Events of HDFS-like sessions (about 19 events each) go through `Sessions.process` in batches, beside the same sessions
with an object each (the oracle of the tests) and beside the least that any grouping by key must do: one dictionary
look-up and one list append an event, over the same columns. Figures are CPU time, the best of several rounds; the
rounds of the three alternate. Memory is what the process grows by while sessions open.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, ParamSpec, TypeVar

import numpy as np
import psutil
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from tests.worker.processing.sessions_of_objects import SessionsOfObjects
from worker.delivery.snapshots import Snapshot, decode, encode
from worker.processing.clock import Column
from worker.processing.session_rules import SessionRules
from worker.processing.sessions import Sessions

EVENTS_PER_SESSION = 19
BATCH_EVENTS = 10_000
PART_BYTES = 1_000_000
TIME_MOVES = 0.5  # share of the events that come a millisecond after the one before

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Load:
    """How many sessions get events at any time, and how long a silent one stays open."""

    name: str
    active: int
    gap_ms: int


# Both keep about 20,000 sessions open. Of HDFS blocks few are active at a time; with half of the sessions active
# every event touches memory that no cache holds any more.
LOADS = (Load("few active", 1_000, 180_000), Load("half active", 10_000, 100_000))


@dataclass(frozen=True)
class Columns:
    """What a decoder hands over, one item an event."""

    keys: pa.StringArray
    tokens: Column
    times: Column
    offsets: Column


@dataclass(frozen=True)
class Rates:
    """Of events, in ns of CPU time each."""

    load: str
    events: int
    open_at_most: int
    closed: int
    grouping_ns: float
    objects_ns: float
    columns_ns: float


@dataclass(frozen=True)
class Crowd:
    """Of many open sessions of which any may get the next event: ns of CPU time an event, bytes a session."""

    sessions: int
    events_per_session: int
    objects_ns: float
    columns_ns: float
    objects_bytes: float
    columns_bytes: float


@dataclass(frozen=True)
class SnapshotTimes:
    """Seconds of CPU time: `gather` from open sessions to columns, `save` with that to parts, `restore` from parts."""

    kind: str
    sessions: int
    events: int
    bytes: int
    parts: int
    gather_s: float
    save_s: float
    restore_s: float


def generate(events: int, active: int) -> Columns:
    random = Random(0)
    names = [""] * active
    left = [0] * active
    keys, times, now = [], [], 0
    for _ in range(events):
        slot = random.randrange(active)
        if left[slot] == 0:
            names[slot] = f"blk_{random.getrandbits(63)}"
            left[slot] = random.randint(EVENTS_PER_SESSION - 6, EVENTS_PER_SESSION + 6)
        left[slot] -= 1
        keys.append(names[slot])
        now += random.random() < TIME_MOVES
        times.append(now)
    tokens = [random.randint(3, 40) for _ in range(events)]
    return Columns(pa.array(keys, pa.string()), np.array(tokens), np.array(times), np.arange(events))


def group(*columns: list[Any]) -> int:
    found: dict[str, list[int]] = {}
    for key, token, _, _ in zip(*columns, strict=True):
        tokens = found.get(key)
        if tokens is None:
            found[key] = [token]
        else:
            tokens.append(token)
    return len(found)


def rules(gap_ms: int | None) -> SessionRules:
    return SessionRules(
        gap_ms=gap_ms,
        max_age_ms=6 * 3_600_000,
        max_events=1024,
        max_open=200_000,
        max_future_skew_ms=3_600_000,
        end_tokens=frozenset(),
    )


def process(sessions: Sessions | SessionsOfObjects, columns: Columns) -> tuple[int, int]:
    """Take in all events; returns how many sessions closed and how many were open at most."""
    closed = most = 0
    for begin in range(0, len(columns.keys), BATCH_EVENTS):
        batch = slice(begin, begin + BATCH_EVENTS)
        closed += len(
            sessions.process(columns.keys[batch], columns.tokens[batch], columns.times[batch], columns.offsets[batch])
        )
        most = max(most, len(sessions))
    return closed, most


def timed(work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> tuple[float, Result]:
    begun = time.process_time()
    result = work(*args, **kwargs)
    return time.process_time() - begun, result


def measure(load: Load, events: int, rounds: int) -> Rates:
    columns = generate(events, load.active)
    grouping_s = objects_s = columns_s = float("inf")
    closed = most = 0
    for _ in range(rounds):
        # New strings each time, whose hashes are not known yet.
        lists = [column.tolist() for column in (columns.keys, columns.tokens, columns.times, columns.offsets)]
        spent, _ = timed(group, *lists)
        grouping_s = min(grouping_s, spent)
        spent, found = timed(process, SessionsOfObjects(rules(load.gap_ms)), columns)
        objects_s = min(objects_s, spent)
        spent, (closed, most) = timed(process, Sessions(rules(load.gap_ms)), columns)
        columns_s = min(columns_s, spent)
        if found != (closed, most):
            raise SystemExit("the two close different sessions: no figures")
    return Rates(load.name, events, most, closed, *(1e9 * each / events for each in (grouping_s, objects_s, columns_s)))


def resident() -> int:
    """Bytes that the process holds once what is free was given back to the system, as a worker does."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def crowd(open_sessions: int, events_per_session: int, events: int) -> Crowd:
    figures = {}
    for kind in (Sessions, SessionsOfObjects):
        random = Random(0)
        names = [f"blk_{random.getrandbits(63)}" for _ in range(open_sessions)]
        sessions = kind(replace(rules(gap_ms=None), max_open=2 * open_sessions))
        before, offset = resident(), 0
        for _ in range(events_per_session):
            for begin in range(0, open_sessions, BATCH_EVENTS):
                some = pa.array(names[begin : begin + BATCH_EVENTS], pa.string())
                times = np.arange(offset, offset + len(some))
                sessions.process(some, np.full(len(some), 5), times, times)
                offset += len(some)
        held = (resident() - before) / open_sessions
        keys = pa.array([random.choice(names) for _ in range(events)], pa.string())
        times = np.arange(offset, offset + events)
        spent, _ = timed(process, sessions, Columns(keys, np.full(events, 5), times, times))
        figures[kind] = 1e9 * spent / events, held
        del sessions
    (objects_ns, objects_bytes), (columns_ns, columns_bytes) = figures[SessionsOfObjects], figures[Sessions]
    return Crowd(open_sessions, events_per_session, objects_ns, columns_ns, objects_bytes, columns_bytes)


def save(sessions: Sessions | SessionsOfObjects) -> list[bytes]:
    return encode(Snapshot(0, "sha256:0", 40, sessions.state()), PART_BYTES)


def measure_snapshot(open_sessions: int, rounds: int) -> list[SnapshotTimes]:
    """From live sessions to parts, and from parts to live sessions."""
    random = Random(0)
    events = open_sessions * EVENTS_PER_SESSION
    names = [f"blk_{random.getrandbits(63)}" for _ in range(open_sessions)]
    keys = names + [random.choice(names) for _ in range(events - open_sessions)]
    tokens = [random.randint(3, 40) for _ in range(events)]
    found, states = [], []
    for kind in (SessionsOfObjects, Sessions):
        sessions = kind(rules(gap_ms=None))
        sessions.process(keys, tokens, range(events), range(events))
        gather_s = save_s = restore_s = float("inf")
        parts: list[bytes] = []
        for _ in range(rounds):
            spent, state = timed(sessions.state)
            gather_s = min(gather_s, spent)
            spent, parts = timed(save, sessions)
            save_s = min(save_s, spent)
            spent, restored = timed(lambda parts, kind: kind(rules(gap_ms=None), decode(parts).sessions), parts, kind)
            restore_s = min(restore_s, spent)
            if restored.state() != state:
                raise SystemExit("the restored sessions differ: no figures")
        states.append(parts)
        size = sum(map(len, parts))
        times = gather_s, save_s, restore_s
        found.append(SnapshotTimes(kind.__name__, len(sessions), events, size, len(parts), *times))
    if states[0] != states[1]:
        raise SystemExit("the two write different snapshots: no figures")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--open", type=int, default=100_000, help="open sessions in the snapshot")
    parser.add_argument("--crowd", type=int, default=1_000_000, help="open sessions in the largest crowd")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    gc.set_threshold(100_000, 50, 100)  # as a worker does
    rates = [measure(load, arguments.events, arguments.rounds) for load in LOADS]
    crowds = [crowd(arguments.crowd, 1, 300_000), crowd(arguments.crowd // 10, 20, 300_000)]
    snapshots = measure_snapshot(arguments.open, arguments.rounds)

    console = Console()
    table = Table("ns an event", "open at most", "closed", "grouping only", "objects", "columns", "ratio")
    for each in rates:
        times = (each.grouping_ns, each.objects_ns, each.columns_ns)
        ratio = f"{each.objects_ns / each.columns_ns:.1f}"
        table.add_row(each.load, f"{each.open_at_most:,}", f"{each.closed:,}", *(f"{ns:.0f}" for ns in times), ratio)
    console.print(table)
    table = Table("open sessions", "of events", "objects, ns", "columns, ns", "objects, bytes", "columns, bytes")
    for many in crowds:
        figures = (many.objects_ns, many.columns_ns, many.objects_bytes, many.columns_bytes)
        table.add_row(f"{many.sessions:,}", str(many.events_per_session), *(f"{figure:.0f}" for figure in figures))
    console.print(table)
    table = Table("snapshot of", "kind", "size", "gather", "save", "restore")
    for snapshot in snapshots:
        table.add_row(
            f"{snapshot.sessions:,} sessions",
            snapshot.kind,
            f"{snapshot.bytes / 1e6:.1f} MB, {snapshot.parts} parts",
            *(f"{1e3 * seconds:.0f} ms" for seconds in (snapshot.gather_s, snapshot.save_s, snapshot.restore_s)),
        )
    console.print(table)
    if arguments.output:
        figures = {"process": rates, "crowds": crowds, "snapshots": snapshots}
        written = {name: [asdict(each) for each in many] for name, many in figures.items()}
        arguments.output.write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
