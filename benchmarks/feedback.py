"""What verdicts of an operator do: false alarms that they stop, and anomalies that they hide.

Sessions come in the order of their log. The first part is learnt from; in the rest an operator answers each alarm
whose pattern has no verdict yet, truthfully, until so many verdicts are given. Each verdict holds from the next session
on. An alarm of a pattern that was judged normal is muted: a false one is *stopped*, a true one *hidden*. An alarm of a
pattern that was judged anomalous is critical.

- Unlabelled logs: tolerances are learnt from the first part as it is, and an alarm is a session that breaks some (no
  other session of such a checkpoint is a warning). Patterns are what sessions break.
- Labelled logs have no tolerances, and patterns are the counts of sessions. As a detector that alarms a lot stands one
  that knows the counts of normal sessions of the first part, and takes every other session for an alarm.

Beside the project's patterns, in the same run, a wider one: the set of templates that a session has.

    python -m benchmarks.feedback [--output benchmarks/results/feedback.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.accuracy.datasets import Dataset, hdfs_ordered, require_data, thunderbird
from detector.scoring.count_vectors import CountVectors
from detector.scoring.families import Families
from detector.scoring.judge import Judge
from detector.scoring.learning import learn
from detector.scoring.session_pattern import SessionPatterns
from detector.text.vocabulary import N_SPECIAL, Vocabulary

VERDICTS = (1, 3, 10, 30, 100, 10**9)

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Row:
    """What came of so many verdicts.

    Attributes:
        source, pattern: what was looked at.
        most: verdicts that the operator was ready to give.
        normal, anomalous: that were given.
        false_alarms, stopped: all of them, and those that were muted.
        true_alarms, hidden, critical: all of them, those that were muted, and those that a verdict made critical.
    """

    source: str
    pattern: str
    most: int
    normal: int
    anomalous: int
    false_alarms: int
    stopped: int
    true_alarms: int
    hidden: int
    critical: int


def judged(source: str, name: str, patterns: Sequence[object], anomalous: Flags, most: int) -> Row:
    """Alarms in their order, of which the operator answers the first ones of new patterns."""
    said: dict[object, bool] = {}
    stopped = hidden = critical = 0
    for pattern, is_anomalous in zip(patterns, anomalous.tolist(), strict=True):
        if pattern is not None and pattern in said:
            stopped += not said[pattern] and not is_anomalous
            hidden += not said[pattern] and is_anomalous
            critical += said[pattern]
        elif pattern is not None and len(said) < most:
            said[pattern] = is_anomalous
    bad = sum(said.values())
    true = int(anomalous.sum())
    return Row(source, name, most, len(said) - bad, bad, len(anomalous) - true, stopped, true, hidden, critical)


def rows_of(source: str, data: Dataset, order: Integers, share: float, *, labelled: bool) -> list[Row]:
    """Of one source."""
    vocabulary = Vocabulary(tuple(data.texts), kind=data.kind)
    sessions = [data.sessions[at] + N_SPECIAL for at in order]
    anomalous, counts, begin = data.anomalous[order], data.counts[order], int(len(order) * share)
    rest = CountVectors.of_sequences(sessions[begin:])
    judge = None
    if labelled:
        normal = [each for each, odd in zip(sessions[:begin], anomalous, strict=False) if not odd]
        alarms = ~np.isin(rest.codes, CountVectors.of_sequences(normal).codes)
    else:
        judge = Judge(learn(sessions[:begin], counts[:begin]), Families())
        alarms = judge.tolerances.judge(rest).evidence > 0
    told = [sessions[begin + at] for at in np.flatnonzero(alarms)]
    patterns: dict[str, Callable[[Integers], object]] = {
        "the project's": SessionPatterns(vocabulary, judge).of,
        "set of templates": lambda events: frozenset(events.tolist()),
    }
    return [
        judged(source, name, [*map(of, told)], anomalous[begin:][alarms], most)
        for name, of in patterns.items()
        for most in VERDICTS
    ]


def main() -> None:
    """Measure, print a table and write JSON where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path)
    output = parser.parse_args().output
    require_data()
    hdfs, nodes = hdfs_ordered(), thunderbird()
    in_time = np.argsort(hdfs.order, kind="stable")
    rows = rows_of("HDFS, unlabelled, from the first half", hdfs, in_time, 0.5, labelled=False)
    rows += rows_of("Thunderbird, unlabelled, from the first half", nodes, np.arange(len(nodes)), 0.5, labelled=False)
    rows += rows_of("HDFS, labelled, from the first tenth", hdfs, in_time, 0.1, labelled=True)
    rows += rows_of("Thunderbird, labelled, from the first half", nodes, np.arange(len(nodes)), 0.5, labelled=True)
    before = None
    for row in rows:
        if before != (row.source, row.pattern):
            before = row.source, row.pattern
            print(f"\n{row.source}; pattern: {row.pattern}")
            print(
                f"{'verdicts':>9} {'normal':>7} {'false alarms stopped':>22} {'anomalies hidden':>18} {'critical':>9}"
            )
        stopped, hidden = f"{row.stopped} of {row.false_alarms}", f"{row.hidden} of {row.true_alarms}"
        print(f"{row.normal + row.anomalous:>9} {row.normal:>7} {stopped:>22} {hidden:>18} {row.critical:>9}")
    if output is not None:
        output.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
