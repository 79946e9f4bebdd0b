"""The lives of blocks, built many at once: each line that a life can have is a column of times over all blocks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from worker.generator.lines import FIRST_NEW, FIRST_UNSEEN, SERVICE_LINES, UNSEEN_POOLS, Step

Fault = Literal["missing_replica", "out_of_order", "error_event", "stall", "unseen_line"]

FAULTS: tuple[Fault, ...] = get_args(Fault)
NODES = tuple(f"10.{rack}.{node % 7 + 1}.{node}" for rack in range(1, 9) for node in range(11, 41))
PLAIN_LIFE_LINES = 13  # granted, and opened, stored, relayed and indexed three times each

_Times = NDArray[np.float64]
_Ids = NDArray[np.int64]
_Mask = NDArray[np.bool_]

_MOST_READS = 12
_MOST_REPEATS = 14
_WRITE_ERRORS = np.array([Step.NO_SPACE, Step.LINK_BROKE, Step.GAVE_UP])
_LATER_ERRORS = np.array([Step.CORRUPT, Step.STRAY, Step.UNREADABLE])
_STALL_LINES = np.array([Step.WAITING, Step.ASKED_AGAIN, Step.RENEWED])


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines as columns, not yet text."""

    at: _Ids  # ms
    step: _Ids
    name: NDArray[np.object_]
    node: _Ids
    peer: _Ids
    number: _Ids

    @classmethod
    def none(cls) -> Lines:
        """No lines."""
        empty = np.empty(0, np.int64)
        return cls(empty, empty, np.empty(0, object), empty, empty, empty)

    def and_more(self, more: Lines) -> Lines:
        """These lines and others after them."""
        return Lines(*(np.concatenate([getattr(self, name), getattr(more, name)]) for name in self.__slots__))

    def where(self, rows: _Mask | _Ids) -> Lines:
        """Some of the lines."""
        return Lines(*(getattr(self, name)[rows] for name in self.__slots__))

    def split(self, before: float | None) -> tuple[Lines, Lines]:
        """The lines that are still to wait for earlier ones, and those before a time, in order."""
        lines = self.where(np.argsort(self.at, kind="stable"))
        cut = len(lines.at) if before is None else int(np.searchsorted(lines.at, before))
        rows = np.arange(len(lines.at))
        return lines.where(rows[cut:]), lines.where(rows[:cut])


@dataclass(frozen=True, slots=True)
class Lived:
    """Finished lives: the lines of all of them, block by block."""

    names: NDArray[np.object_]
    fault: _Ids  # index into FAULTS, -1 = none
    length: _Ids  # lines of each block
    lines: Lines
    new_lines: list[tuple[int, ...]] | None = None  # of each block: which of its lines, in order of time, are new

    def first(self, blocks: int) -> Lived:
        """The lives that began first."""
        rows = np.arange(int(self.length[:blocks].sum()))
        return Lived(self.names[:blocks], self.fault[:blocks], self.length[:blocks], self.lines.where(rows))

    def with_new_lines(self, new: _Mask) -> Lived:
        """The same, saying of each block which of its lines are new."""
        of_block = np.repeat(np.arange(len(self.length)), self.length)
        in_order = np.lexsort((self.lines.at, of_block))  # stable, as the lines of the log are
        place = np.arange(len(in_order)) - np.repeat(np.cumsum(self.length) - self.length, self.length)
        new = new[in_order]
        ends = np.cumsum(np.bincount(of_block[new], minlength=len(self.length)))
        numbers = place[new].tolist()
        starts = [0, *ends.tolist()]
        return replace(self, new_lines=[tuple(numbers[a:b]) for a, b in pairwise(starts)])


def with_lines(rng: np.random.Generator, lives: Lived, lines: int) -> Lived:
    """As many of the lives as make up this many lines, the last ones replaced by lives of the length that is left."""
    ends = np.cumsum(lives.length)
    if ends[-1] < lines - PLAIN_LIFE_LINES:
        return lives
    if lines < PLAIN_LIFE_LINES:
        first = lives.first(1)
        in_order = first.lines.split(None)[1]
        return Lived(first.names, first.fault, np.array([lines]), in_order.where(np.arange(lines)))
    fits = (ends == lines) | (ends <= lines - PLAIN_LIFE_LINES)
    kept = int(fits.nonzero()[0][-1]) + 1 if fits.any() else 0
    missing = lines - (int(ends[kept - 1]) if kept else 0)
    if not missing:
        return lives.first(kept)
    plain = missing // PLAIN_LIFE_LINES
    reads = np.full(plain, 0)
    reads[: missing % PLAIN_LIFE_LINES] = 1
    reads[0] += max(0, missing % PLAIN_LIFE_LINES - plain)
    head = lives.first(kept)
    start = lives.lines.at.min() if not kept else head.lines.at.max()
    tail = Lives(rng, np.full(plain, float(start)), np.full(plain, -1), reads).live()
    return Lived(
        np.concatenate([head.names, tail.names]),
        np.concatenate([head.fault, tail.fault]),
        np.concatenate([head.length, tail.length]),
        head.lines.and_more(tail.lines),
    )


@dataclass
class Lives:
    """Builds the lives of many blocks at once: each possible line is a column of times over all blocks."""

    rng: np.random.Generator
    start: _Times
    fault: _Ids
    plain_reads: _Ids | None = None  # lives with so many reads and nothing else that is optional
    slow: _Times | float = 1.0  # how many times as long it takes to write each
    night: _Times | float = 0.0  # fewer reads and more verifying, up to 1
    serviced: _Times | None = None  # share of the hosts that have the new service
    columns: list[tuple[_Ids, _Times, _Mask, int]] = field(default_factory=list)

    def live(self) -> Lived:
        """Every life from its beginning to its end."""
        self._choose()
        self._write()
        self._use()
        self._remove()
        self._unseen()
        if self.serviced is not None and self.serviced.any():
            self._cache(self.serviced)
        return self._lines()

    # Each helper gives one value a block.

    def _uniform(self, low: float, high: float) -> _Times:
        return self.rng.uniform(low, high, len(self.start))

    def _chance(self, share: float | _Times) -> _Mask:
        """Healthy variety: never in a plain life."""
        hit = self.rng.random(len(self.start)) < share
        return hit if self.plain_reads is None else np.zeros_like(hit)

    def _add(self, step: int | _Ids, at: _Times, present: _Mask, replica: int = -1) -> None:
        self.columns.append((np.broadcast_to(np.asarray(step), at.shape), at, present, replica))

    def _choose(self) -> None:
        """Which variant of its fault each block has."""
        everywhere = np.ones(len(self.start), bool)
        variant = self.rng.integers(12, size=len(self.start))
        missing = self.fault == FAULTS.index("missing_replica")
        order = self.fault == FAULTS.index("out_of_order")
        error = self.fault == FAULTS.index("error_event")
        self.write_error = error & (variant < 6)
        self.later_error = error & (variant >= 6)
        self.stalled = self.fault == FAULTS.index("stall")
        self.never_opened = missing & (variant % 3 == 0)
        self.never_stored = missing & (variant % 3 == 1) | (self.write_error & (variant < 4))
        self.never_stored |= self.stalled & (variant < 3)
        self.never_indexed = missing & (variant % 3 == 2)
        self.indexed_first = order & (variant % 4 == 0)
        self.granted_last = order & (variant % 4 == 1)
        self.removed_first = order & (variant % 4 == 2)
        self.sealed_first = order & (variant % 4 == 3)
        self.repaired = error & (variant % 2 == 0)
        self.variant = variant
        self.always = everywhere

    def _write(self) -> None:
        opened = [self.start + self._uniform(0, 400) for _ in range(3)]
        begun = self.start + 450
        # A stalled writer repeats one kind of line every 10 to 25 s.
        repeats = self.rng.integers(4, _MOST_REPEATS + 1, len(self.start))
        period = self._uniform(10_000, 25_000)
        stall = np.where(self.stalled, repeats * period, 0)
        written = begun + self.slow * (600 + np.minimum(self.rng.exponential(4_000, len(self.start)), 60_000))
        stall_line = _STALL_LINES[self.variant % len(_STALL_LINES)]
        for repeat in range(_MOST_REPEATS):
            self._add(stall_line, written + repeat * period, self.stalled & (repeat < repeats))
        written += stall

        def meanwhile() -> _Times:
            return begun + self._uniform(0, 1) * (written - begun)

        stored = [written + self._uniform(0, 300) for _ in range(3)]
        stored[2] += np.where(self._chance(0.02), self._uniform(5_000, 60_000), 0)
        indexed = [at + self.slow * self._uniform(60, 1_500) for at in stored]
        self.end = np.max(indexed, axis=0)
        granted = np.where(self.granted_last, self.end + 5, self.start + self._uniform(100, 350))
        self._add(Step.GRANTED, granted, self.always)
        for replica in range(3):
            arrives = self.always if replica < 2 else ~(self.never_opened | self.never_stored)
            known = arrives if replica < 2 else arrives & ~self.never_indexed
            self._add(Step.OPENED, opened[replica], self.always if replica < 2 else ~self.never_opened, replica)
            self._add(Step.STORED, stored[replica], arrives, replica)
            self._add(Step.RELAYED, stored[replica] + self._uniform(-50, 50), arrives, replica)
            too_soon = self.indexed_first if replica == 0 else ~self.always
            self._add(Step.INDEXED, np.where(too_soon, begun, indexed[replica]), known, replica)
        renewals = self._chance(0.15)
        self._add(Step.RENEWED, meanwhile(), renewals)
        self._add(Step.RENEWED, meanwhile(), renewals & self._chance(0.3))
        self._add(Step.SLOW, meanwhile(), self._chance(0.03))
        self._add(Step.ASKED_AGAIN, meanwhile(), self._chance(0.02))
        error = _WRITE_ERRORS[self.variant % len(_WRITE_ERRORS)]
        error = np.where(self.stalled, Step.GAVE_UP, error)
        failed = written - self._uniform(0, 100)
        self._add(error, failed, self.write_error | (self.stalled & self.never_stored))
        self._add(error, failed + 20, self.write_error & self._chance(0.4))
        sealed = (self._chance(0.6) & ~self.never_indexed) | self.sealed_first
        at = np.where(self.sealed_first, begun, self.end + self._uniform(10, 800))
        self._add(Step.SEALED, at, sealed)
        self.end = self.end + 1_000

    def _use(self) -> None:
        idle = self.end
        count = np.where(self._chance(0.5 - 0.3 * self.night), self.rng.geometric(0.45, len(idle)), 0)
        if self.plain_reads is not None:
            count = self.plain_reads
        at = idle
        for read in range(_MOST_READS):
            at = at + np.minimum(self.rng.exponential(20_000, len(idle)), 300_000)
            present = read < count
            self._add(Step.SERVED, at, present)
            self._add(Step.HUNG_UP, at + self._uniform(5, 500), present & self._chance(0.06))
            self.end = np.where(present, np.maximum(self.end, at), self.end)
        verified = idle + self._uniform(0, 200_000)
        present = self._chance(0.3 + 0.5 * self.night)
        self._add(Step.VERIFIED, verified, present)
        self.end = np.where(present, np.maximum(self.end, verified), self.end)
        self._reopen(self._chance(0.02))
        error = _LATER_ERRORS[self.variant % len(_LATER_ERRORS)]
        at = self.end + self._uniform(100, 100_000)
        self._add(error, at, self.later_error)
        self._add(error, at + 400, self.later_error & self._chance(0.5))
        self.end = np.where(self.later_error, at + 500, self.end)
        self._clone((self._chance(0.04) & (self.fault < 0)) | self.repaired)

    def _reopen(self, reopened: _Mask) -> None:
        begun = self.end + self._uniform(1_000, 50_000)
        self._add(Step.REOPENED, begun, reopened)
        written = begun + 1_000 + self._uniform(0, 8_000)
        for replica in range(3):
            stored = written + self._uniform(0, 300)
            self._add(Step.OPENED, begun + self._uniform(10, 400), reopened, replica)
            self._add(Step.STORED, stored, reopened, replica)
            self._add(Step.RELAYED, stored + self._uniform(-50, 50), reopened, replica)
            self._add(Step.INDEXED, stored + self._uniform(60, 1_500), reopened, replica)
        self.end = np.where(reopened, written + 2_000, self.end)

    def _clone(self, cloned: _Mask) -> None:
        ordered = self.end + self._uniform(500, 100_000)
        started = ordered + self._uniform(50, 500)
        done = started + self._uniform(500, 5_000)
        indexed = done + self._uniform(20, 500)
        self._add(Step.CLONE_ORDERED, ordered, cloned)
        self._add(Step.CLONE_STARTED, started, cloned)
        self._add(Step.CLONE_DONE, done, cloned)
        self._add(Step.INDEXED, indexed, cloned)
        surplus = cloned & ~self.repaired & self._chance(0.5)
        at = indexed + self._uniform(1_000, 60_000)
        self._add(Step.SURPLUS, at, surplus)
        self._add(Step.REMOVAL_ORDERED, at + 30, surplus)
        self._add(Step.REMOVED, at + 30 + self._uniform(100, 1_000), surplus)
        self.end = np.where(surplus, at + 1_100, np.where(cloned, indexed, self.end))

    def _remove(self) -> None:
        removed = self._chance(0.45) | self.removed_first
        ordered = self.end + self._uniform(5_000, 300_000)
        two_only = (self.never_opened | self.never_stored) & ~self.repaired
        for replica in range(3):
            held = removed if replica < 2 else removed & ~two_only
            delay = np.where(self.removed_first, -800, 400) + self._uniform(0, 700)
            self._add(Step.REMOVAL_ORDERED, ordered + self._uniform(0, 200), held, replica)
            self._add(Step.REMOVED, ordered + delay, held, replica)
        self.end = np.where(removed, ordered + 1_200, self.end)

    def _unseen(self) -> None:
        unseen = self.fault == FAULTS.index("unseen_line")
        pool = len(UNSEEN_POOLS[0])
        for repeat in range(3):
            line = FIRST_UNSEEN + self.rng.integers(pool, size=len(self.start))
            at = self.start + self._uniform(0, 1) * (self.end - self.start)
            self._add(line, at, unseen & (repeat <= self.variant % 3))

    def _cache(self, share: _Times) -> None:
        admitted, found, left = (FIRST_NEW + line for line in SERVICE_LINES)
        present = self._chance(0.4 * share)
        at = self.start + 450 + self._uniform(0, 0.5) * (self.end - self.start)
        self._add(admitted, at, present)
        for _ in range(2):
            hit = present & self._chance(0.6)
            self._add(found, at + self._uniform(0.1, 0.9) * (self.end - at), hit)
        self._add(left, self.end - self._uniform(0, 50), present)

    def _lines(self) -> Lived:
        blocks = len(self.start)
        names = np.array([f"blk_{number}" for number in self.rng.integers(-(2**63), 2**63 - 1, blocks)], object)
        nodes = self.rng.integers(len(NODES), size=(blocks, 3))
        steps = np.stack([column[0] for column in self.columns], axis=1)
        times = np.stack([column[1] for column in self.columns], axis=1).astype(np.int64)
        present = np.stack([column[2] for column in self.columns], axis=1)
        replicas = np.array([column[3] for column in self.columns])
        row, column = present.nonzero()
        replica = replicas[column]
        anywhere = self.rng.integers(len(NODES), size=(2, len(row)))
        size = np.where(self.rng.random(blocks) < 0.8, 67_108_864, self.rng.integers(1_024, 67_108_864, blocks))
        step = steps[row, column]
        sized = np.isin(step, (Step.STORED, Step.INDEXED, Step.SEALED, Step.CLONE_DONE))
        number = np.where(sized, size[row], self.rng.integers(1, 60_000, len(row)))
        lines = Lines(
            at=times[row, column],
            step=step,
            name=names[row],
            node=np.where(replica < 0, anywhere[0], nodes[row, replica]),
            peer=anywhere[1],
            number=number,
        )
        return Lived(names, self.fault, present.sum(axis=1), lines)
