"""A release of reworded templates in a generated log, day after day: false alarms before it, after it, once adapted.

    python -m benchmarks.rollout --seed 0 --output DIR

Each day is scored by the checkpoint that is there in the morning. The one that adapts is renewed in the evening, as
`logmamba adapt` does it: without anybody's word (`waiting`: what is usual on three days is usual), or with somebody's
who knows of the release (`planned`). In `poisoned` an attacker repeats a fault of the first day, and one that was not
there yet, as one session in ten each, every day; nobody says anything.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from detector.checkpoint import Checkpoint, load
from detector.scoring.calibration import WARNING_SCORE
from detector.scoring.scorer import Scorer
from detector.scoring.scores import Sequences
from detector.text.mining import learn_vocabulary
from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import UNK, Vocabulary
from detector.training.data import TrainingSessions
from detector.training.options import TrainingOptions
from detector.training.renewal import Recent, RenewalOptions, TooLittle, renew
from detector.training.train import train
from worker.files.recent_traffic import LEAST_LINES
from worker.generator.drift import Drift
from worker.generator.log import GeneratedLog, Truth

FIRST_DAY = 20_000
QUIET_DAYS, ROLLOUT_DAYS = 2, 2
"""Days before the release, and until the last host has it."""
WAYS = ("frozen", "waiting", "planned", "poisoned")
RATE = 2.0
"""Blocks that begin in a second."""

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Day:
    """The blocks of a day.

    Attributes:
        lines: of all, in time order.
        of: the block of each line.
        keys: names of the blocks.
        faults: which fault each has, "" for none.
    """

    lines: Sequence[str]
    of: npt.NDArray[np.int64]
    keys: Sequence[str]
    faults: Sequence[str]

    @classmethod
    def generated(cls, blocks: int, seed: int, days: int, drift: Drift | None = None) -> list[Day]:
        """Days of so many blocks of one log."""
        log = GeneratedLog(blocks=days * blocks, seed=seed, drift=drift, blocks_per_second=RATE)
        lines: list[str] = []
        names: list[str] = []
        truths: list[Truth] = []
        for batch in log.batches():
            lines += batch.texts
            names += batch.blocks
            truths += batch.truths
        number_of = {truth.block: at for at, truth in enumerate(truths)}
        of = np.array([number_of[name] for name in names])
        found = []
        for day in range(days):
            own = truths[day * blocks : (day + 1) * blocks]
            mine = np.flatnonzero(of // blocks == day)
            texts = [lines[at] for at in mine.tolist()]
            faults = [truth.fault or "" for truth in own]
            found.append(cls(texts, of[mine] - day * blocks, [f"{seed}/{each.block}" for each in own], faults))
        return found

    def sessions(self, vocabulary: Vocabulary) -> list[npt.NDArray[np.int64]]:
        """Tokens of each block."""
        tokens = Tokenizer(vocabulary).encode(pa.array(self.lines, pa.string()))
        order = np.argsort(self.of, kind="stable")
        return np.split(tokens[order], np.cumsum(np.bincount(self.of, minlength=len(self.keys)))[:-1])

    @property
    def wrong(self) -> Flags:
        """Which blocks have a fault."""
        return np.array([bool(fault) for fault in self.faults])

    def repeated(self, row: int, times: int) -> Day:
        """This day with so many copies of a block, each of a key of its own."""
        own = np.flatnonzero(self.of == row)
        more = np.repeat(len(self.keys) + np.arange(times), len(own))
        return Day(
            [*self.lines, *([self.lines[at] for at in own] * times)],
            np.append(self.of, more),
            [*self.keys, *(f"{self.keys[row]}/{copy}" for copy in range(times))],
            [*self.faults, *(["attack"] * times)],
        )


def with_new_templates(known: Vocabulary, lines: Sequence[str]) -> Vocabulary:
    """A vocabulary with templates for lines that it has none for, where there are enough of them."""
    tokens = Tokenizer(known).encode(pa.array(lines, pa.string()))
    unknown = [line for line, token in zip(lines, tokens.tolist(), strict=True) if token <= UNK]
    if len(unknown) < LEAST_LINES:
        return known
    return known.merged(learn_vocabulary([pa.array(unknown, pa.string())]))


def alarms(checkpoint: Checkpoint, vocabulary: Vocabulary, day: Day) -> Flags:
    """Which blocks are alarms."""
    sessions = day.sessions(vocabulary)
    ends = np.cumsum([len(each) for each in sessions])
    scorer = Scorer(checkpoint, device="cpu")
    found = scorer.score_columns(Sequences(np.concatenate(sessions), ends), len(ends)).finals
    reached: Flags = found >= WARNING_SCORE
    return reached


def main() -> None:
    """Run one seed in all ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blocks", type=int, default=3_000, help="of a day; twice as many to train on")
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--reworded", type=float, default=0.3)
    parser.add_argument("--training-steps", type=int, default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    began = time.process_time()
    [first] = Day.generated(2 * asked.blocks, 1_000 * asked.seed, 1)
    vocabulary = learn_vocabulary([pa.array(first.lines, pa.string())])
    options = TrainingOptions(next_token_steps=asked.training_steps)
    known = TrainingSessions.of(first.sessions(vocabulary), None, None, first.keys)
    trained = train(known, vocabulary, seed=asked.seed, device="cpu", options=options)
    asked.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        trained.save(Path(folder) / "first")
        parent = load(Path(folder) / "first")
        [old] = Day.generated(asked.blocks, 1_000 * asked.seed + 1, 1)
        was = alarms(parent, parent.vocabulary, old) & old.wrong
        found: dict[str, Any] = {"seed": asked.seed, "plan": {**vars(asked), "output": None}, "ways": {}}
        for way in asked.ways:
            found["ways"][way] = _days(way, parent, first, asked, Path(folder), old, was)
            print(way, json.dumps(found["ways"][way]), flush=True)
    found["cpu_s"] = round(time.process_time() - began, 1)
    (asked.output / f"rollout-{asked.seed}.json").write_text(json.dumps(found, indent=1) + "\n")


def _days(
    way: str, parent: Checkpoint, first: Day, asked: argparse.Namespace, folder: Path, old: Day, was: Flags
) -> dict[str, Any]:
    now, days = parent, []
    attack = next(row for row, fault in enumerate(first.faults) if fault == "error_event")
    a_day = asked.blocks / RATE
    drift = Drift(after_s=QUIET_DAYS * a_day, rollout_s=ROLLOUT_DAYS * a_day, reworded=asked.reworded)
    for number, quiet in enumerate(Day.generated(asked.blocks, 1_000 * asked.seed + 2, asked.days, drift), 1):
        day = _attacked(quiet, first, attack, asked.blocks // 10) if way == "poisoned" else quiet
        found, wrong = alarms(now, now.vocabulary, day), day.wrong
        attacks = np.array([fault == "attack" for fault in day.faults])
        shown = {
            "false_alarms": int((found & ~wrong).sum()),
            "of": int((~wrong).sum()),
            "found": float(found[wrong & ~attacks].mean()),
            "attacks_found": float(found[attacks].mean()) if attacks.any() else None,
        }
        if way != "frozen":
            vocabulary = with_new_templates(now.vocabulary, day.lines)
            recent = Recent(
                TrainingSessions.of(day.sessions(vocabulary), None, None, day.keys),
                np.full(len(day.keys), FIRST_DAY + number),
                vocabulary,
                lambda key: zlib.crc32(key.encode()) % 5 == 0,
            )
            assert now.replay is not None
            place = folder / f"{way}-{number}"
            began = time.process_time()
            planned = way == "planned" and number > QUIET_DAYS
            options = RenewalOptions(planned=planned, steps=asked.steps, device="cpu")
            try:
                done = renew(now, recent, now.replay, place, options=options)
            except TooLittle as error:
                days.append(shown | {"refused": str(error)})
                continue
            shown |= {"worse": [each.name for each in done.worse], "usual": len(done.adaptation.usual)}
            shown["cpu_s"] = round(time.process_time() - began, 1)
            if not done.worse:
                now = load(place)
        days.append(shown)
    still = alarms(now, now.vocabulary, old)
    return {
        "days": days,
        "old_anomalies_still_found": float(still[was].mean()),
        "old_false_alarms": int((still & ~old.wrong).sum()),
    }


def _attacked(day: Day, first: Day, row: int, times: int) -> Day:
    """With a fault of the first day, so many times over, and one that was not there before."""
    own = [first.lines[at] for at in np.flatnonzero(first.of == row)]
    one = Day([*day.lines, *own], np.append(day.of, np.full(len(own), len(day.keys))), [*day.keys, "old"], ["attack"])
    both = Day(one.lines, one.of, one.keys, [*day.faults, "attack"]).repeated(len(day.keys), times)
    unheard = [f"{own[0]} kernel module ghost0 attached to the wire"]
    at = len(both.keys)
    new = Day([*both.lines, *own, *unheard], np.append(both.of, [at] * (len(own) + 1)), [*both.keys, "new"], [])
    return Day(new.lines, new.of, new.keys, [*both.faults, "attack"]).repeated(at, times)


if __name__ == "__main__":
    main()
