"""Checkpoints that are damaged, and trainings that die while they write one."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detector.checkpoint import FILES, MODEL_FILE, VOCABULARY_FILE, load
from detector.errors import CheckpointError
from detector.scoring.scorer import Scorer
from detector.text.vocabulary import Vocabulary
from tests.detector.small_models import VOCABULARY, save_random
from tests.faults.conftest import Size
from tests.faults.report import FaultReport

Damage = Callable[[Path], object]


def truncated(name: str, share: float) -> Damage:
    def damage(directory: Path) -> None:
        data = (directory / name).read_bytes()
        (directory / name).write_bytes(data[: int(share * len(data))])

    return damage


def flipped(name: str, share: float) -> Damage:
    def damage(directory: Path) -> None:
        data = bytearray((directory / name).read_bytes())
        data[int(share * (len(data) - 1))] ^= 1
        (directory / name).write_bytes(data)

    return damage


def missing(name: str) -> Damage:
    return lambda directory: (directory / name).unlink()


def of_another_training(name: str) -> Damage:
    def damage(directory: Path) -> None:
        other = directory.parent / "other"
        save_random(other, Vocabulary(("another template <*>",)), seed=2)
        shutil.copy(other / name, directory / name)

    return damage


DAMAGES: list[tuple[str, Damage]] = [
    *((name, truncated(name, share)) for name in FILES for share in (0.0, 0.5, 0.999)),
    *((name, flipped(name, share)) for name in FILES for share in (0.0, 0.3, 0.7, 1.0)),
    *((name, missing(name)) for name in FILES),
    *((name, of_another_training(name)) for name in (MODEL_FILE, VOCABULARY_FILE)),
]


@pytest.mark.fault(row=12, core=True)
def test_a_damaged_checkpoint_is_refused_with_the_file_and_a_worker_that_has_it_goes_on(
    checkpoint: Path, tmp_path: Path, fault_report: FaultReport
) -> None:
    fault_report("checkpoint truncated, flipped, incomplete or mixed", rounds=len(DAMAGES))
    place = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, place)
    serving = Scorer.load(place, cache_size=0)
    sequences = [array("q", range(3, 3 + length)).tobytes() for length in (1, 7, 20)]
    before = [each.scores.copy() for each in serving.score(sequences)]
    for name, damage in DAMAGES:
        for whole in FILES:
            (place / whole).write_bytes((checkpoint / whole).read_bytes())
        damage(place)
        with pytest.raises(CheckpointError, match=re.escape(name)):
            Scorer.load(place)
        after = [each.scores for each in serving.score(sequences)]
        assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))


# Saves the two checkpoints in turn until it is killed; a process of its own, since its parent starts it many times.
SAVING = """
import os, sys
from pathlib import Path

import torch

torch.set_num_threads(1)
from tests.detector.small_models import save_random

target = Path(sys.argv[1])
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        while True:
            for seed in (2, 1):
                save_random(target, seed=seed)
                print("saved", flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


@pytest.mark.fault(row=12, core=True)
def test_a_training_killed_while_it_writes_leaves_the_checkpoint_before_or_after_whole(
    size: Size, tmp_path: Path, fault_report: FaultReport
) -> None:
    target = tmp_path / "model"
    whole = {save_random(tmp_path / "two", seed=2), save_random(target, seed=1)}
    rounds, rng = 300 if size.full else 5, random.Random(0)
    found: list[str] = []
    command = [sys.executable, "-W", "error::UserWarning", "-c", SAVING, str(target)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as starter:
        assert starter.stdin is not None
        assert starter.stdout is not None
        # However slow the disk is: at least so many, and until a kill has left each of the two.
        while len(found) < rounds or set(found) != whole:
            print(file=starter.stdin, flush=True)
            child = int(starter.stdout.readline())
            for _ in range(rng.choice((1, 2))):
                began = time.monotonic()
                assert starter.stdout.readline() == "saved\n"
            # Anywhere in the next save, which takes about as long as the one before.
            time.sleep(rng.uniform(0.0, time.monotonic() - began))
            os.kill(child, signal.SIGKILL)
            while (told := starter.stdout.readline()) != "gone\n":
                assert told == "saved\n"
            found.append(load(target).digest)
            assert found[-1] in whole
        starter.stdin.close()
    fault_report("training killed while it writes a checkpoint", rounds=len(found))
    assert load(target).vocabulary == VOCABULARY
