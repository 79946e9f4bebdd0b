"""Versions of a checkpoint: whatever strikes, the place holds a whole one, and going back finds what was there."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import subprocess
import sys
from pathlib import Path

import pytest

from detector import versions
from detector.checkpoint import digest_of, load
from detector.errors import CheckpointError
from detector.versions import Versions
from tests.detector.small_models import random_checkpoint, save_random


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_random(tmp_path / "app")
    return tmp_path / "app"


def renewed(place: Path, seed: int) -> str:
    """Another checkpoint takes the place of the one there; its digest."""
    store = Versions(place)
    with store.changing(), store.candidate() as candidate:
        digest = random_checkpoint(candidate, seed=seed).digest
        _, taken = store.take(candidate, load(place))
        assert taken.name.partition("-")[2] == digest.removeprefix("sha256:")[:12]
    assert digest_of(place) == load(place).digest == digest
    return digest


def test_a_new_checkpoint_and_the_one_before_become_versions_named_by_their_digests(place: Path) -> None:
    digests = [load(place).digest, *(renewed(place, seed) for seed in (2, 3))]
    found = Versions(place).all()
    assert [each.name for each in found] == [
        f"{number:04}-{digest.removeprefix('sha256:')[:12]}" for number, digest in enumerate(digests, 1)
    ]
    assert [load(each.directory).digest for each in found] == digests
    assert [each.current for each in found] == [False, False, True]
    assert sorted(path.name for path in place.parent.iterdir()) == ["app", "app.versions"]


def test_what_others_wrote_to_the_place_becomes_a_version_before_it_is_replaced(place: Path) -> None:
    renewed(place, 2)
    by_hand = save_random(place, seed=7)
    renewed(place, 3)
    assert load(Versions(place).all()[2].directory).digest == by_hand
    save_random(place, seed=8)
    store = Versions(place)
    with store.changing():
        was, now = store.back(None, "a test")
    assert (was.number, now.number) == (5, 4)


def test_going_back_finds_the_version_before_or_one_by_name_number_or_digest_and_holds_adaptations(place: Path) -> None:
    first = load(place).digest
    second, third = renewed(place, 2), renewed(place, 3)
    store = Versions(place)
    for to, expected in (
        (None, second),
        ("3", third),
        (first, first),
        (store.all()[1].name, second),
        (third.removeprefix("sha256:")[:9], third),
    ):
        with store.changing():
            _, now = store.back(to, "found wrong")
        assert load(place).digest == expected
        assert [each.name for each in store.all() if each.current] == [now.name]
    assert store.held() == "found wrong"
    store.release()
    assert store.held() is None
    with store.changing():
        for to, told in (("9", "no version '9'"), ("3", "scores already"), ("ffff", "no version 'ffff'")):
            with pytest.raises(CheckpointError, match=told):
                store.back(to, "")
        store.back("1", "")
        with pytest.raises(CheckpointError, match="no version before the one that scores"):
            store.back(None, "")


def test_a_damaged_version_is_refused_and_what_scores_stays(place: Path) -> None:
    second = renewed(place, 2)
    store = Versions(place)
    model = store.all()[0].directory / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    with store.changing(), pytest.raises(CheckpointError, match="damaged"):
        store.back(None, "")
    assert load(place).digest == second


def test_the_oldest_versions_go_but_for_the_training_s(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "MOST_KEPT", 3)
    for seed in range(2, 7):
        renewed(place, seed)
    assert [each.number for each in Versions(place).all()] == [1, 5, 6]


def test_a_checkpoint_that_was_changed_meanwhile_is_not_replaced(place: Path) -> None:
    store, parent = Versions(place), load(place)
    with store.changing(), store.candidate() as candidate:
        save_random(candidate, seed=2)
        other = save_random(place, seed=3)
        with pytest.raises(CheckpointError, match="changed by another command"):
            store.take(candidate, parent)
    assert load(place).digest == other


def _hold(place: Path, held: multiprocessing.synchronize.Event, over: multiprocessing.synchronize.Event) -> None:
    with Versions(place).changing():
        held.set()
        over.wait()


def test_only_one_process_changes_versions_at_a_time(place: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, over = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(place, held, over))
    process.start()
    assert held.wait(120)
    with pytest.raises(CheckpointError, match="by another process"), Versions(place).changing():
        pass
    over.set()
    process.join(120)
    with Versions(place).changing():
        pass


KILLED_AT_EVERY_STEP = """
import os, shutil, sys
from pathlib import Path

from detector.checkpoint import load
from detector.versions import Versions
from tests.detector.small_models import save_random

root = Path(sys.argv[1])
old, new = save_random(root / "old"), save_random(root / "new", seed=2)
step = 0
while True:
    step += 1
    place = root / str(step) / "app"
    shutil.copytree(root / "old", place)
    child = os.fork()
    if child == 0:
        steps = 0

        def die(event, args):
            global steps
            if event in ("os.rename", "os.mkdir", "open") and "app" in str(args[:2]):
                steps += 1
                if steps == step:
                    os._exit(9)

        store, parent = Versions(place), load(place)
        with store.changing(), store.candidate() as candidate:
            shutil.copytree(root / "new", candidate)
            sys.addaudithook(die)
            store.take(candidate, parent)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
    left = load(place).digest
    print("old" if left == old else "new" if left == new else left)
    store = Versions(place)
    with store.changing(), store.candidate() as candidate:
        third = save_random(candidate, seed=3)
        store.take(candidate, load(place))
    assert load(place).digest == third
    kept = [load(each.directory).digest for each in store.all()]
    assert kept in ([old, third], [old, new, third]), kept
    assert left in kept
    assert sorted(os.listdir(store.directory)) == sorted([".lock", *(each.name for each in store.all())])
    shutil.rmtree(place.parent)
"""


def test_killed_at_any_step_the_place_holds_the_old_or_the_new_one_and_both_can_be_gone_back_to(tmp_path: Path) -> None:
    script = [sys.executable, "-W", "error", "-c", KILLED_AT_EVERY_STEP, str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.split()
    assert outcomes.count("old") > 5
    assert outcomes.count("new") >= 1
    assert outcomes == sorted(outcomes, reverse=True)
