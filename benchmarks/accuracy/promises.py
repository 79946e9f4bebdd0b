"""Do thresholds keep what they promise without labels? Shares of normal sessions above each, by the counts alone.

Nothing is trained, so it takes seconds a split: which normal sessions become warnings is decided by how unusual their
counts are, but for the few whose counts are usual and whose order is not.

- The test parts of the protocols that learn from normal sessions alone, seed by seed.
- Stretches of time within their training parts: so many sessions in a row, of which a random fifth calibrates as in
  `logmamba train`, and as many after them. A team that begins has such a stretch, wherever in the log it may lie. No
  test part is touched, so this is also where a way to choose thresholds can be chosen.
- Of those where more than was promised are warnings: whether drift is told meanwhile, and how many false alarms came
  before that.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from benchmarks.accuracy.datasets import Dataset, Flags, Integers, require_data
from benchmarks.accuracy.detectors import training_sessions
from benchmarks.accuracy.protocols import LAST_SHARE, PROTOCOLS, Protocol, Split
from benchmarks.accuracy.results import markdown
from benchmarks.accuracy.tasks import Floats, Part, Task
from detector.quality.drift import DriftMonitor
from detector.quality.fingerprint import BLOCK, Fingerprint, Stream
from detector.scoring.calibration import WARNING_SCORE
from detector.scoring.count_profile import CountProfile
from detector.scoring.evidence import CRITICAL_LEVEL, WARNING_LEVEL, Evidence
from detector.training.alarm_bounds import PROMISED, bound, expected_share

STRETCHES = {
    "hdfs-first-50-normals": (500, 1_000, 2_000, 4_000),
    "thunderbird-normals": (500, 2_000, 5_000),
    "bgl-last-normals": (2_000, 10_000, 30_000),
}
TIMES = 20


class Kept(NamedTuple):
    """Of one test part, all by sessions."""

    warnings: float  # share of the normal ones
    expected: float  # of them, by training
    critical: float
    found: int
    false: int
    anomalous: int
    before_told: int | None  # false ones, before drift was told; None where it was not


def levels_by_counts(task: Task) -> Floats:
    """Levels of the test part's sessions, as without labels, by how unusual their counts are; 0 for usual ones."""
    return judged(task)[0]


def judged(task: Task) -> tuple[Floats, float]:
    """`levels_by_counts`, and the share of warnings among normal sessions of another time that training expects."""
    parts = [training_sessions(part) for part in (task.training, task.validation)]
    found = bound(*parts)
    evidence = Evidence.certain(found.alike)
    known = parts[0].joined(parts[1])
    profile = CountProfile.fit(known.sequences, known.counts, found.bounds)
    bounds = np.append(0, np.cumsum([len(tokens) for tokens in task.test.tokens])).astype(np.int64)
    nats = profile.judge(np.concatenate(task.test.tokens), bounds).final
    return np.where(nats > 0, evidence.levels(nats), 0.0), expected_share(found.later, evidence)


def kept(task: Task, order: Mapping[str, int] | None = None) -> Kept:
    """What the thresholds come to on the test part.

    Args:
        task: what is learnt from and judged.
        order: by key, in which sessions that count once each ended; None where nothing is to be said of drift.
    """
    (levels, expected), part = judged(task), task.test
    normal, alarm = ~part.anomalous, levels >= WARNING_LEVEL
    of_normal = part.counts[normal]
    return Kept(
        warnings=float(of_normal @ alarm[normal] / of_normal.sum()),
        expected=expected,
        critical=float(of_normal @ (levels[normal] >= CRITICAL_LEVEL) / of_normal.sum()),
        found=int(part.counts[alarm & ~normal].sum()),
        false=int(part.counts[alarm & normal].sum()),
        anomalous=int(part.counts[~normal].sum()),
        before_told=None if order is None else _false_before_told(task, alarm, order),
    )


def _false_before_told(task: Task, alarm: Flags, order: Mapping[str, int]) -> int | None:
    """False alarms up to the session with which drift is told, by counts and alarms; None where it never is."""

    def stream(*parts: Part) -> tuple[Stream, Integers]:
        keys = [key for part in parts for key in part.keys]
        tokens = [each for part in parts for each in part.tokens]
        rows = np.argsort([order[key] for key in keys], kind="stable")
        return Stream.of([tokens[row] for row in rows.tolist()]), rows

    learnt, rows = stream(task.training, task.validation)
    held_out = rows >= len(task.training)
    fingerprint = Fingerprint.of(learnt, np.where(held_out, 0.0, np.nan), held_out)
    if fingerprint is None:
        return None
    monitor, (later, rows) = DriftMonitor(fingerprint), stream(task.test)
    scores = np.where(alarm[rows], WARNING_SCORE, 0.0)
    for begin in range(0, len(rows) - BLOCK + 1, BLOCK):
        end = begin + BLOCK
        monitor.add(later.part(begin, end), scores[begin:end], np.zeros(BLOCK, np.int64))
        monitor.judge()
        if monitor.verdict in ("watch", "retrain"):
            return int((alarm & ~task.test.anomalous)[rows[:end]].sum())
    return None


def stretch_of(name: str, sessions: int) -> Protocol:
    """Of a protocol's training part `sessions` in a row and the next as many; the seed says where.

    Sessions count once each. Where labels have an order of their own, nobody knows where anomalous ones belong: then
    there are none.
    """
    whole = PROTOCOLS[name]

    def read() -> Dataset:
        data = whole.read()
        return replace(data, counts=np.ones(len(data), np.int64))

    def split(data: Dataset, seed: int) -> Split:
        parts = whole.split(data, 0)
        rows = np.sort(np.concatenate([parts.training, parts.validation]))
        if whole.read is PROTOCOLS["bgl-last-normals"].read:
            rows = rows[~data.anomalous[rows]]
        return divided(rows[np.argsort(data.order[rows], kind="stable")], sessions, seed)

    return Protocol(f"{whole.title}: {sessions:,} sessions to the next", read, split, labelled=False)


def divided(rows: Integers, sessions: int, seed: int) -> Split:
    """So many rows from somewhere on, a random fifth of them for validation, and the next as many for the test."""
    rng = np.random.default_rng(seed)
    start = int(rng.integers(len(rows) - 2 * sessions + 1))
    mine = rows[start : start + sessions]
    held_out = np.isin(np.arange(sessions), rng.choice(sessions, round(LAST_SHARE * sessions), replace=False))
    return Split(mine[~held_out], mine[held_out], rows[start + sessions : start + 2 * sessions])


@dataclass(frozen=True)
class _Row:
    title: str
    all: Sequence[Kept]

    def cells(self) -> list[str]:
        warnings, expected, critical = (np.array([each[at] for each in self.all]) for at in range(3))
        broken = [each for each in self.all if each.warnings > PROMISED]
        told = [(each.before_told, each.false) for each in broken if each.before_told is not None]
        before, false_alarms = map(sum, zip(*told, strict=True)) if told else (0, 0)
        found, false, anomalous = (sum(each[at] for each in self.all) for at in range(3, 6))
        f1 = f"{2 * found / (found + false + anomalous):.3f}" if anomalous else "-"
        return [
            self.title,
            f"{warnings.mean():.2%} ({warnings.min():.2%} to {warnings.max():.2%})",
            f"{len(broken)} of {len(self.all)}",
            f"{len(told)}, {before:,} of {false_alarms:,} false alarms before" if told else "-",
            f"{expected.mean():.2%} ({expected.min():.2%} to {expected.max():.2%})",
            f"{critical.mean():.2%} ({critical.min():.2%} to {critical.max():.2%})",
            f"{found:,} of {anomalous:,}",
            f1,
        ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.promises", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="of the protocols, 0 to N - 1")
    parser.add_argument("--times", type=int, default=TIMES, metavar="N", help="stretches of each length")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the tables to this Markdown file, too")
    arguments = parser.parse_args()
    require_data()
    rows = []
    for name, protocol in PROTOCOLS.items():
        if not protocol.labelled and not protocol.as_they_come:
            seeds = 1 if name in ("hdfs-first-50-normals", "bgl-last-normals") else arguments.seeds  # split by order
            rows.append(_row(protocol, seeds))
    for name, lengths in STRETCHES.items():
        rows += [_row(stretch_of(name, length), arguments.times, in_time=True) for length in lengths]
    header = "sessions|normals at 0.7|above 1 %|told as drift|expected|normals at 0.95|found at 0.7|F1"
    table = markdown(header, [row.cells() for row in rows])
    Console().print(table, highlight=False, soft_wrap=True)
    if arguments.report:
        arguments.report.write_text(table + "\n", encoding="utf-8")


def _row(protocol: Protocol, seeds: int, *, in_time: bool = False) -> _Row:
    data = protocol.read()
    order = dict(zip(data.keys, data.order.tolist(), strict=True)) if in_time else None
    return _Row(protocol.title, [kept(Task.of(protocol, seed), order) for seed in range(seeds)])


if __name__ == "__main__":
    main()
