"""How fast are session boundaries and snapshots, on one core and without scoring?

Events of HDFS-like sessions (about 19 events each) go through `Sessions.process` in batches, beside the least
that any grouping by key must do: one dictionary look-up and one list append an event, over the same columns.
Figures are CPU time, the best of several rounds; the rounds of the two alternate.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import ParamSpec, TypeVar

from rich.console import Console
from rich.table import Table

from worker.delivery.snapshots import Snapshot, decode, encode
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

    keys: list[str]
    tokens: list[int]
    times: list[int]
    offsets: list[int]

    def fresh(self) -> Columns:
        """The same with new strings, as a decoder makes them: their hashes are not known yet."""
        return Columns([f"{key} "[:-1] for key in self.keys], self.tokens, self.times, self.offsets)


@dataclass(frozen=True)
class Rates:
    """Per second of CPU time."""

    load: str
    events: int
    open_at_most: int
    closed: int
    baseline_events_per_s: float
    events_per_s: float
    ratio: float


@dataclass(frozen=True)
class SnapshotRates:
    """Per second of CPU time."""

    sessions: int
    events: int
    bytes: int
    parts: int
    save_sessions_per_s: float
    restore_sessions_per_s: float


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
    return Columns(keys, tokens, times, list(range(events)))


def group(columns: Columns) -> int:
    found: dict[str, list[int]] = {}
    for key, token, _, _ in zip(columns.keys, columns.tokens, columns.times, columns.offsets, strict=True):
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


def process(sessions: Sessions, columns: Columns) -> tuple[int, int]:
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
    baseline_s = sessions_s = float("inf")
    closed = most = 0
    for _ in range(rounds):
        spent, _ = timed(group, columns.fresh())
        baseline_s = min(baseline_s, spent)
        spent, (closed, most) = timed(process, Sessions(rules(load.gap_ms)), columns.fresh())
        sessions_s = min(sessions_s, spent)
    return Rates(load.name, events, most, closed, events / baseline_s, events / sessions_s, baseline_s / sessions_s)


def save(sessions: Sessions) -> list[bytes]:
    return encode(Snapshot(0, "sha256:0", 40, sessions.state()), PART_BYTES)


def restore(parts: list[bytes]) -> Sessions:
    return Sessions(rules(gap_ms=None), decode(parts).sessions)


def measure_snapshot(open_sessions: int, rounds: int) -> SnapshotRates:
    """From live sessions to parts, and from parts to live sessions."""
    random = Random(0)
    events = open_sessions * EVENTS_PER_SESSION
    names = [f"blk_{random.getrandbits(63)}" for _ in range(open_sessions)]
    keys = names + [random.choice(names) for _ in range(events - open_sessions)]
    tokens = [random.randint(3, 40) for _ in range(events)]
    sessions = Sessions(rules(gap_ms=None))
    sessions.process(keys, tokens, range(events), range(events))
    save_s = restore_s = float("inf")
    parts: list[bytes] = []
    for _ in range(rounds):
        spent, parts = timed(save, sessions)
        save_s = min(save_s, spent)
        spent, restored = timed(restore, parts)
        restore_s = min(restore_s, spent)
        if restored.state() != sessions.state():
            raise SystemExit("the restored sessions differ: no figures")
    size = sum(map(len, parts))
    return SnapshotRates(len(sessions), events, size, len(parts), len(sessions) / save_s, len(sessions) / restore_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--open", type=int, default=100_000, help="open sessions in the snapshot")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    rates = [measure(load, arguments.events, arguments.rounds) for load in LOADS]
    snapshot = measure_snapshot(arguments.open, arguments.rounds)

    console = Console()
    table = Table("20 k open", "at most", "closed", "grouping only", "sessions", "ratio")
    for each in rates:
        table.add_row(
            each.load,
            f"{each.open_at_most:,}",
            f"{each.closed:,}",
            f"{each.baseline_events_per_s / 1e6:.2f} M/s",
            f"{each.events_per_s / 1e6:.2f} M/s",
            f"{each.ratio:.2f}",
        )
    console.print(table)
    table = Table("snapshot of", "events", "size", "save", "restore")
    table.add_row(
        f"{snapshot.sessions:,} sessions",
        f"{snapshot.events:,}",
        f"{snapshot.bytes / 1e6:.1f} MB, {snapshot.parts} parts",
        f"{snapshot.save_sessions_per_s / 1e3:.0f} k/s",
        f"{snapshot.restore_sessions_per_s / 1e3:.0f} k/s",
    )
    console.print(table)
    if arguments.output:
        figures = {"process": [asdict(each) for each in rates], "snapshot": asdict(snapshot)}
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
