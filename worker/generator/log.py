"""Generated logs with known faults: the lives of blocks in a storage cluster, interleaved in time.

A healthy life: the block is granted, three replicas stream in side by side, each is stored, relayed and indexed; then
it may be sealed, read, verified, cloned, reopened and, in about half of the lives, removed. A fault is one of

- `missing_replica`: one of the three never arrives, or never reaches the index; nothing says so.
- `out_of_order`: every line is a usual one, at a place where it cannot be.
- `error_event`: errors, half of them repaired by a clone.
- `stall`: the writer waits: warnings or lease renewals over and over.
- `unseen_line`: a line that no healthy life has and, by choice of `unseen_pool`, no earlier log had.

What is normal may change over time: by day and night, and by a release that hosts take one after another (`Drift`).
Healthy lives hold single warnings, late replicas and clones too, so no single line but an error tells the two apart.
"""

from __future__ import annotations

import csv
import gzip
import io
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from worker.generator.blocks import FAULTS, NODES, Fault, Lines, Lived, Lives, with_lines
from worker.generator.drift import DayAndNight, Drift
from worker.generator.lines import line_formats

__all__ = [
    "FAULTS",
    "DayAndNight",
    "Drift",
    "Fault",
    "GeneratedLine",
    "GeneratedLog",
    "LogBatch",
    "Truth",
    "write_files",
    "write_labels",
]

_BLOCKS_AT_ONCE = 2048
_START_MS = 1_709_294_400_000  # 2024-03-01T12:00:00Z


class GeneratedLine(NamedTuple):
    """One log line; `block` is the session it belongs to."""

    text: str
    block: str
    time_ms: int


class Truth(NamedTuple):
    """Whether a block's life is healthy (label 0) or has a fault (label 1).

    `new_lines` are those of its lines, numbered from 0 in their order, that only the release of a drift writes so.
    """

    block: str
    label: int
    fault: Fault | None
    new_lines: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LogBatch:
    """Lines in time order, as columns, and the truth of the blocks that begin in or after them."""

    texts: list[str]
    blocks: list[str]
    times_ms: list[int]
    truths: list[Truth]


@dataclass(frozen=True, slots=True)
class GeneratedLog:
    """A log of exactly `lines` lines or `blocks` blocks, every life complete; the same arguments give the same log.

    Attributes:
        lines, blocks: how much; one of the two. Fewer than 13 lines are the beginning of one life.
        seed: chooses everything that varies.
        anomaly_rate: share of blocks with a fault, 0 to 1; the five kinds are equally frequent.
        unseen_pool: which unseen lines, 0 or 1; the two have none in common.
        start_ms: time of the first line, in milliseconds since 1970 UTC.
        blocks_per_second: how fast new blocks come, in the log's own time; a life takes seconds to some minutes and
            never pauses for more than 6 minutes.
        day_night: how the rate swings with the time of day; at night blocks are read less and verified more.
        drift: what changes for good, and when; None = nothing.
    """

    lines: int | None = None
    blocks: int | None = None
    seed: int = 0
    anomaly_rate: float = 0.03
    unseen_pool: int = 0
    start_ms: int = _START_MS
    blocks_per_second: float = 2.0
    day_night: DayAndNight = field(default_factory=DayAndNight)
    drift: Drift | None = None

    def __post_init__(self) -> None:
        if (self.lines is None) == (self.blocks is None):
            raise ValueError("give either lines or blocks")
        if min(self.lines or 0, self.blocks or 0) < 0:
            raise ValueError("lines and blocks are at least 0")
        if not 0 <= self.anomaly_rate <= 1:
            raise ValueError(f"anomaly_rate is {self.anomaly_rate}, not between 0 and 1")
        if self.blocks_per_second <= 0:
            raise ValueError(f"blocks_per_second is {self.blocks_per_second}, not above 0")
        line_formats(self.unseen_pool)

    def __iter__(self) -> Iterator[GeneratedLine]:
        for batch in self.batches():
            yield from map(GeneratedLine, batch.texts, batch.blocks, batch.times_ms)

    def batches(self) -> Iterator[LogBatch]:
        """The log in batches of some ten thousand lines; memory does not grow with its length."""
        rng = np.random.default_rng(self.seed)
        formats = line_formats(self.unseen_pool)
        start = self.day_night.even(self.start_ms)
        lines_left, blocks_left = self.lines, self.blocks
        pending = Lines.none()
        while lines_left != 0 and blocks_left != 0:
            starts = start + np.cumsum(rng.exponential(1000 / self.blocks_per_second, _BLOCKS_AT_ONCE))
            starts -= starts[0] - start
            start = float(starts[-1]) + 1000 / self.blocks_per_second
            fault = np.where(
                rng.random(_BLOCKS_AT_ONCE) < self.anomaly_rate, rng.integers(len(FAULTS), size=_BLOCKS_AT_ONCE), -1
            )
            lives = self._begin(rng, self.day_night.uneven(starts), fault).live()
            if blocks_left is not None:
                lives = lives.first(blocks_left)
                blocks_left -= len(lives.names)
            if lines_left is not None:
                lives = with_lines(rng, lives, lines_left)
                lines_left -= len(lives.lines.at)
            if self.drift is not None:
                lives = self.drift.released(lives, self.start_ms, self.seed)
            done = lines_left == 0 or blocks_left == 0
            until = None if done else float(self.day_night.uneven(np.array([start]))[0])
            pending, ready = pending.and_more(lives.lines).split(until)
            yield _as_text(ready, formats, _truths(lives))

    def _begin(self, rng: np.random.Generator, starts: NDArray[np.float64], fault: NDArray[np.int64]) -> Lives:
        night = self.day_night.night(starts)
        if self.drift is None:
            return Lives(rng, starts, fault, night=night)
        passed = starts - self.start_ms
        slow, serviced = self.drift.slow_at(passed), self.drift.serviced_share(passed)
        return Lives(rng, starts, fault, slow=slow, night=night, serviced=serviced)


def write_files(
    log: GeneratedLog,
    output: Path,
    labels: Path | None = None,
    progress: Callable[[int], object] = lambda _lines: None,
) -> list[Truth]:
    """Write a log, compressed when the name ends in .gz, and its truth as CSV (`write_labels`).

    Args:
        log: what to write.
        output: the log file.
        labels: the CSV file.
        progress: called with the number of lines written since the last call.

    Returns:
        The truth of every block.

    Raises:
        OSError: a file cannot be written.
    """
    truths: list[Truth] = []
    with ExitStack() as files:
        text = files.enter_context(_open_text(output))
        for batch in log.batches():
            if batch.texts:
                text.write("\n".join(batch.texts) + "\n")
            truths += batch.truths
            progress(len(batch.texts))
    if labels is not None:
        write_labels(truths, labels)
    return truths


def write_labels(truths: list[Truth], path: Path) -> None:
    """Write the truth of blocks as CSV: `block_id,label,fault,new_lines`.

    The label is 1 for a fault; `new_lines` are the numbers of `Truth.new_lines`, with spaces between them.
    """
    with _open_text(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["block_id", "label", "fault", "new_lines"])
        table.writerows(
            (truth.block, truth.label, truth.fault or "", " ".join(map(str, truth.new_lines))) for truth in truths
        )


def _open_text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        # Without the time of writing inside, the same log gives the same file.
        return io.TextIOWrapper(gzip.GzipFile(path, "wb", 6, mtime=0), encoding="utf-8", newline="\n")
    return path.open("w", encoding="utf-8", newline="\n")


def _as_text(lines: Lines, formats: list[Callable[..., str]], truths: list[Truth]) -> LogBatch:
    seconds, second = np.unique(lines.at // 1000, return_inverse=True)
    stamps = [time.strftime("%y%m%d %H%M%S", time.gmtime(each)) for each in seconds.tolist()]
    names = lines.name.tolist()
    texts = [
        f"{stamps[at]} {number % 271 + 9} {formats[step](name, NODES[node], NODES[peer], number)}"
        for at, step, name, node, peer, number in zip(
            second.tolist(),
            lines.step.tolist(),
            names,
            lines.node.tolist(),
            lines.peer.tolist(),
            lines.number.tolist(),
            strict=True,
        )
    ]
    return LogBatch(texts, names, lines.at.tolist(), truths)


def _truths(lives: Lived) -> list[Truth]:
    return [
        Truth(name, int(fault >= 0), FAULTS[fault] if fault >= 0 else None, new)
        for name, fault, new in zip(
            lives.names.tolist(), lives.fault.tolist(), lives.new_lines or [()] * len(lives.names), strict=True
        )
    ]
