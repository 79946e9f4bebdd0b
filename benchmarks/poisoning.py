"""What three days of poisoned traffic do to a checkpoint that adapts to each: does it still find what it found?

HDFS blocks in the order of their first lines: a training without labels on the first 40 %, an adaptation to each of the
next three tenths, a day each, and the last 30 % to measure. On each day somebody repeats one anomaly until it is a
quarter of all sessions:

- *one of the training*: the most frequent kind that the training set aside;
- *a new one*: usual sessions with an event that no other has, on the first day only.

Beside the adaptation as it is stands one that learns from all recent sessions, whatever they do: what its bounds are
worth (`everything`). Usage: `python -m benchmarks.poisoning [--steps N] [--most N] [--attacks A ...] [--output FILE]`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy.datasets import hdfs_ordered, require_data
from detector.checkpoint import Checkpoint, load
from detector.scoring.calibration import WARNING_SCORE
from detector.scoring.count_vectors import CountVectors
from detector.scoring.judge import USUAL
from detector.scoring.scorer import Scorer
from detector.scoring.scores import Sequences
from detector.text.vocabulary import N_SPECIAL, Vocabulary
from detector.training.adaptation import AdaptationOptions, adapt
from detector.training.data import TrainingSessions
from detector.training.options import TrainingOptions
from detector.training.renewal import Recent, RenewalOptions, renew
from detector.training.train import train

Tokens = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

DAYS: Final = 3
ATTACK_SHARE: Final = 0.25
_DAY: Final = 20_000
Way = Literal["bounded", "everything"]
Attack = Literal["one of the training", "a new one"]


@dataclass(frozen=True)
class Result:
    """After so many adaptations.

    Attributes:
        way: what was learnt from.
        attack: what was repeated.
        adaptations: how many.
        found: of the anomalies that the training's checkpoint finds in the last 30 %, how many still are.
        recall: share of all anomalies there that are alarms.
        false_alarms: share of the normal sessions there that are alarms.
        attack_is_alarm: whether what was repeated is.
        refused: the gate would have kept the checkpoint as it was.
        seconds: CPU of the adaptation.
    """

    way: Way
    attack: Attack
    adaptations: int
    found: float
    recall: float
    false_alarms: float
    attack_is_alarm: bool
    refused: bool
    seconds: float


def alarms(checkpoint: Checkpoint, sessions: Sequence[Tokens]) -> Flags:
    """Which sessions are."""
    ends = np.cumsum([len(each) for each in sessions])
    scorer = Scorer(checkpoint, device="cpu", cache_size=0)
    found: Flags = scorer.score_columns(Sequences(np.concatenate(sessions), ends), len(ends)).finals >= WARNING_SCORE
    return found


def measure(folder: Path, steps: int, most: int, attacks: Sequence[Attack]) -> Iterator[Result]:
    """These attacks in both ways, one after the other."""
    whole = hdfs_ordered()
    order = np.argsort(whole.order, kind="stable")
    order = order[:: max(len(order) // most, 1)]
    sessions = [whole.sessions[row] + N_SPECIAL for row in order]
    labels, n = whole.anomalous[order], len(order)
    begin, test = int(0.4 * n), int(0.7 * n)
    vocabulary = Vocabulary(tuple(whole.texts), kind="events")
    train(
        TrainingSessions.of(sessions[:begin]),
        vocabulary,
        device="cpu",
        options=TrainingOptions(next_token_steps=steps),
    ).save(folder / "trained")
    trained = load(folder / "trained")
    assert trained.judge is not None
    assert trained.replay is not None
    standings, _ = trained.judge.standings(CountVectors.of_sequences(trained.replay.sequences))
    odd = np.flatnonzero(standings != USUAL)
    old = trained.replay.sequences[int(odd[trained.replay.counts[odd].argmax()])]
    usual = trained.replay.sequences[int(np.where(standings == USUAL, trained.replay.counts, 0).argmax())]
    later = vocabulary.merged(Vocabulary(("an event of an attack",), kind="events"))
    held = sessions[test:]
    first = alarms(trained, held)
    for attack in attacks:
        repeated = old if attack == "one of the training" else np.append(usual, len(vocabulary))
        for way in ("bounded", "everything"):
            now = trained
            for day in range(DAYS):
                parts = np.linspace(begin, test, DAYS + 1).astype(int)
                rows = sessions[parts[day] : parts[day + 1]]
                if attack == "one of the training" or day == 0:
                    rows = [*rows, *[repeated] * int(ATTACK_SHARE / (1 - ATTACK_SHARE) * len(rows))]
                began = time.process_time()
                now, refused = _adapted(now, rows, later, folder / f"{way}-{day}", day, way, steps)
                seconds = time.process_time() - began
                again = alarms(now, held)
                yield Result(
                    way,
                    attack,
                    day + 1,
                    float((again & first & labels[test:]).sum() / (first & labels[test:]).sum()),
                    float(again[labels[test:]].mean()),
                    float(again[~labels[test:]].mean()),
                    bool(alarms(now, [repeated])[0]),
                    refused,
                    round(seconds, 1),
                )


def _adapted(
    parent: Checkpoint, rows: Sequence[Tokens], later: Vocabulary, output: Path, day: int, way: Way, steps: int
) -> tuple[Checkpoint, bool]:
    assert parent.replay is not None
    new = [text for text in later.templates if parent.vocabulary.token_of(text) is None]
    vocabulary = parent.vocabulary.merged(Vocabulary(tuple(new), kind="events")) if new else parent.vocabulary
    recent = TrainingSessions.of(rows, None, None, [f"{day}/{row}" for row in range(len(rows))])
    if way == "everything":
        options = AdaptationOptions(next_token_steps=steps // 3)
        learnt = adapt(parent, recent, parent.replay, vocabulary, device="cpu", options=options)
        replayed = parent.replay.joined(replace(recent, keys=None)).distinct()
        return replace(learnt.checkpoint(parent), replay=replayed), False
    given = Recent(recent, np.full(len(rows), _DAY + day), vocabulary, lambda key: int(key.split("/")[1]) % 5 == 0)
    done = renew(parent, given, parent.replay, output, options=RenewalOptions(steps=steps // 3, device="cpu"))
    return (parent, True) if done.worse else (load(output), False)


def main() -> None:
    """Measure, show and, with ``--output``, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600, help="of the training; an adaptation has a third")
    parser.add_argument("--most", type=int, default=1_000_000, help="sessions, evenly over the time")
    parser.add_argument("--attacks", nargs="+", choices=get_args(Attack), default=get_args(Attack))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    require_data()
    table = Table("learns from", "repeated", "adaptations", "found again", "recall", "false alarms", "attack", "CPU s")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for each in measure(Path(folder), arguments.steps, arguments.most, arguments.attacks):
            results.append(each)
            Console(stderr=True).print(each)
            table.add_row(
                each.way,
                each.attack,
                f"{each.adaptations}{' (refused)' if each.refused else ''}",
                f"{each.found:.1%}",
                f"{each.recall:.1%}",
                f"{each.false_alarms:.2%}",
                "alarm" if each.attack_is_alarm else "usual",
                f"{each.seconds:,.1f}",
            )
    Console().print(table)
    if arguments.output is not None:
        document = {"steps": arguments.steps, "most": arguments.most, "results": [asdict(each) for each in results]}
        arguments.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
