"""A checkpoint is loaded exactly as it was saved, or refused with the reason; a save is all or nothing."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from detector.checkpoint import FILES, MANIFEST_FILE, MODEL_FILE, VOCABULARY_FILE, load, save
from detector.errors import CheckpointError
from detector.quality.fingerprint import Fingerprint, Stream
from detector.scoring import count_profile
from detector.scoring.count_profile import Bounds, CountProfile
from detector.scoring.pace import Pace
from detector.text.vocabulary import Vocabulary
from tests.detector.small_models import CALIBRATION, PROFILE, RECORD, TEMPLATES, VOCABULARY, random_model, save_random


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_random(tmp_path / "model")
    return tmp_path / "model"


def reseal(directory: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change a manifest and make its hash right again, as someone who knows the format would."""
    path = directory / MANIFEST_FILE
    body = json.loads(path.read_bytes())
    body.pop("sha256")
    change(body)
    encoded = (json.dumps(body, indent=2) + "\n").encode()
    body["sha256"] = f"sha256:{hashlib.sha256(encoded).hexdigest()}"
    path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")


def rehash(directory: Path, name: str) -> None:
    digest = f"sha256:{hashlib.sha256((directory / name).read_bytes()).hexdigest()}"
    reseal(directory, lambda body: body["files"].update({name: digest}))


def test_a_checkpoint_loads_exactly_as_it_was_saved(tmp_path: Path) -> None:
    digest = save_random(tmp_path / "model")
    loaded = load(tmp_path / "model")
    model = random_model()
    assert loaded.vocabulary == VOCABULARY
    assert loaded.manifest.calibration == CALIBRATION
    assert loaded.manifest.training == RECORD
    assert loaded.manifest.model == model.config
    rebuilt = loaded.build_model()
    assert not rebuilt.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(rebuilt.state_dict()[name], tensor), name
    manifest = (tmp_path / "model" / MANIFEST_FILE).read_bytes()
    assert loaded.digest == digest == f"sha256:{hashlib.sha256(manifest).hexdigest()}"


def test_vectors_beyond_the_table_of_the_count_profile_are_still_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(count_profile, "MAX_VECTORS", 4)
    sessions = [np.arange(3, 3 + n) for n in range(1, 6)] + [np.repeat(3, n) for n in range(2, 6)]
    profile = CountProfile.fit(sessions, np.ones(len(sessions), np.int64))
    save(
        tmp_path / "model",
        model=random_model(),
        vocabulary=VOCABULARY,
        profile=profile,
        calibration=CALIBRATION,
        training=RECORD,
    )
    loaded = load(tmp_path / "model").profile
    assert len(loaded.weights) == 4
    judged = loaded.judge(np.concatenate(sessions), np.cumsum([0, *map(len, sessions)]))
    assert judged.seen.all()


def test_what_bounds_the_alarms_of_a_count_profile_is_kept(tmp_path: Path) -> None:
    sessions = [np.array([3] * times + [4], np.int64) for times in (2, 4, 8)]
    pairs = np.array([[4, 3]], np.int64), np.zeros((0, 2), np.int64)
    bounds = Bounds(np.array([5], np.int64), *pairs)
    profile = CountProfile.fit(sessions, np.array([300, 300, 300]), bounds)
    save(
        tmp_path / "model",
        model=random_model(),
        vocabulary=VOCABULARY,
        profile=profile,
        calibration=CALIBRATION,
        training=RECORD,
    )
    loaded = load(tmp_path / "model").profile
    assert loaded.bounds is not None
    for read, kept in zip(loaded.bounds, bounds, strict=True):
        np.testing.assert_array_equal(read, kept)
    between, beyond = np.array([3, 3, 3, 4], np.int64), np.array([3] * 90 + [4], np.int64)
    judged = loaded.judge(np.append(between, beyond), np.array([0, 4, 95]))
    assert judged.final[0] == 0 < judged.final[1]
    assert load(save_random(tmp_path / "none") and tmp_path / "none").profile.bounds is None


PACE = Pace(np.array([[3, 0, 900, 900, 4_000], [4, 3, 900, 899, 0]], np.int64), np.array([[3, 900, 900, 1]], np.int64))


def save_paced(directory: Path, pace: Pace | None) -> None:
    parts: dict[str, Any] = {"vocabulary": VOCABULARY, "calibration": CALIBRATION, "training": RECORD, "pace": pace}
    save(directory, model=random_model(), profile=PROFILE, **parts)


def test_limits_of_pauses_and_bursts_come_back_and_none_stay_none(tmp_path: Path) -> None:
    save_paced(tmp_path / "model", PACE)
    loaded = load(tmp_path / "model").pace
    assert loaded is not None
    assert (loaded.pauses.tolist(), loaded.bursts.tolist()) == (PACE.pauses.tolist(), PACE.bursts.tolist())
    for none in (None, Pace(PACE.pauses[:0], PACE.bursts[:0])):
        save_paced(tmp_path / "model", none)
        assert load(tmp_path / "model").pace is None


def test_limits_that_are_no_table_of_them_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model"
    save_paced(path, PACE)
    weights = safetensors.torch.load_file(path / MODEL_FILE)
    weights["pace.bursts"] = weights["pace.bursts"][:, :3].contiguous()
    safetensors.torch.save_file(weights, path / MODEL_FILE)
    rehash(path, MODEL_FILE)
    with pytest.raises(CheckpointError, match="pauses and bursts: bursts is no table of 4 columns"):
        load(path)


def test_a_checkpoint_from_before_there_was_a_record_of_its_sessions_is_read_without_one(saved: Path) -> None:
    reseal(saved, lambda body: body.pop("reading"))
    assert load(saved).manifest.reading is None


def test_a_checkpoint_from_before_its_trainings_scores_were_kept_is_read_without_them(saved: Path) -> None:
    assert load(saved).manifest.training.score_shares == RECORD.score_shares
    reseal(saved, lambda body: body["training"].pop("score_shares"))  # type: ignore[attr-defined]
    assert load(saved).manifest.training.score_shares is None


def test_a_fingerprint_is_kept_and_a_checkpoint_from_before_there_was_one_is_read_without(tmp_path: Path) -> None:
    stream = Stream.of([np.array([3, 4, 5])] * 300)
    fingerprint = Fingerprint.of(stream, np.full(300, 0.1), np.arange(300) % 5 != 0)
    assert fingerprint is not None
    save_random(tmp_path / "model", fingerprint=fingerprint)
    assert load(tmp_path / "model").manifest.fingerprint == fingerprint
    reseal(tmp_path / "model", lambda body: body.pop("fingerprint"))
    assert load(tmp_path / "model").manifest.fingerprint is None


def test_the_same_training_gives_the_same_bytes(tmp_path: Path) -> None:
    assert save_random(tmp_path / "a") == save_random(tmp_path / "b")
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_only_the_three_files_are_left_and_others_may_read_them(saved: Path) -> None:
    save_random(saved, seed=2)
    assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    umask = os.umask(0o22)
    os.umask(umask)
    assert saved.stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_refused_whichever_file_it_is_in(saved: Path, name: str) -> None:
    path = saved / name
    data = path.read_bytes()
    for index in {0, 1, len(data) // 3, len(data) // 2, len(data) - 1}:
        path.write_bytes(data[:index] + bytes([data[index] ^ 0x01]) + data[index + 1 :])
        with pytest.raises(CheckpointError, match=name):
            load(saved)
    for shorter in (data[:-1], b""):
        path.write_bytes(shorter)
        with pytest.raises(CheckpointError, match=name):
            load(saved)
    path.write_bytes(data)
    load(saved)


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80])
def test_every_byte_of_the_manifest_is_protected(saved: Path, flip: int) -> None:
    path = saved / MANIFEST_FILE
    data = path.read_bytes()
    for index in range(len(data)):
        path.write_bytes(data[:index] + bytes([data[index] ^ flip]) + data[index + 1 :])
        with pytest.raises(CheckpointError, match=MANIFEST_FILE):
            load(saved)


@pytest.mark.parametrize("name", FILES)
def test_half_a_directory_is_refused_and_the_missing_file_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=rf"not a whole checkpoint: {name} missing"):
        load(saved)


def test_what_is_no_checkpoint_at_all_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="not a directory"):
        load(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors and vocabulary\.json and manifest"):
        load(tmp_path / "empty")


def test_another_trainings_file_is_refused(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save_random(other, Vocabulary((*TEMPLATES[:-1], "Starting thread <*>")), seed=2)
    for name in (VOCABULARY_FILE, MODEL_FILE):
        mixed = tmp_path / "mixed"
        shutil.copytree(saved, mixed)
        shutil.copy(other / name, mixed / name)
        with pytest.raises(CheckpointError, match=rf"{name} is sha256:.*belongs to another training"):
            load(mixed)
        shutil.rmtree(mixed)


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        (TEMPLATES[:-1], "has 7 tokens but the model was trained with 8"),
        ((*TEMPLATES[:-1], "Starting thread <*>"), "their template 4 has other words than 'PacketResponder"),
    ],
)
def test_a_vocabulary_that_does_not_fit_the_weights_is_refused_even_with_its_hash_right(
    saved: Path, templates: tuple[str, ...], message: str
) -> None:
    (saved / VOCABULARY_FILE).write_bytes(Vocabulary(templates).to_json())
    rehash(saved, VOCABULARY_FILE)
    with pytest.raises(CheckpointError, match=rf"vocabulary\.json.*{message}.*another training"):
        load(saved)


def test_weights_that_do_not_fit_the_configuration_are_refused_by_name(saved: Path) -> None:
    weights = safetensors.torch.load((saved / MODEL_FILE).read_bytes())
    name = next(name for name, tensor in weights.items() if tensor.dim() == 2 and tensor.is_floating_point())
    for changed, message in (
        ({**weights, name: weights[name][:, :-1].clone()}, rf"{name} is torch.float32 \("),
        ({**weights, name: weights[name].half()}, rf"{name} is torch.float16"),
        ({**weights, "extra": torch.zeros(1)}, "extra is unknown in the weights"),
        (
            {key: tensor for key, tensor in weights.items() if key != name},
            f"{name} is missing from the weights",
        ),
    ):
        (saved / MODEL_FILE).write_bytes(safetensors.torch.save(changed))
        rehash(saved, MODEL_FILE)
        with pytest.raises(CheckpointError, match=message):
            load(saved)
    (saved / MODEL_FILE).write_bytes(b"not safetensors")
    rehash(saved, MODEL_FILE)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, r"format version 1; this library reads 2"),
        ({"version": "2"}, r"format version '2'; this library reads 2"),
        ({"format": "other"}, r"its format is not 'logmamba.checkpoint'"),
        ({"library": 3}, r"library: "),
        ({"model": {}}, r"model\.vocabulary_size: Field required"),
        ({"calibration": {"tail": {}}}, r"calibration\.tail\.knots: Field required"),
        ({"files": {MODEL_FILE: "sha256:0"}}, r"files: no hash of vocabulary\.json"),
        ({"author": "me"}, r"author: Extra inputs"),
    ],
)
def test_a_manifest_of_another_kind_is_refused_with_the_place(
    saved: Path, change: dict[str, object], message: str
) -> None:
    reseal(saved, lambda body: body.update(change))
    with pytest.raises(CheckpointError, match=message):
        load(saved)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"format"', "\u00e4"])
def test_a_manifest_that_is_no_manifest_is_refused(saved: Path, text: str) -> None:
    (saved / MANIFEST_FILE).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=MANIFEST_FILE):
        load(saved)


def test_a_directory_that_is_no_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "home" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(CheckpointError, match=r"no checkpoint \(it holds thesis\.tex\)"):
        save_random(tmp_path / "home")
    with pytest.raises(CheckpointError, match="a file of that name is there"):
        save_random(precious)
    assert precious.read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_half_a_checkpoint_is_replaced_by_a_whole_one(saved: Path) -> None:
    (saved / MODEL_FILE).unlink()
    digest = save_random(saved)
    assert load(saved).digest == digest


def test_a_checkpoint_behind_a_link_is_replaced_where_it_lies(saved: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(saved)
    digest = save_random(link, seed=2)
    assert link.is_symlink()
    assert load(saved).digest == load(link).digest == digest


@pytest.mark.parametrize("failing", ["mkdir-2", "open", "fsync", "rename", "rename-2"])
def test_a_save_that_fails_leaves_the_old_checkpoint_and_no_litter(
    saved: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    old = load(saved).digest
    name, _, nth = failing.partition("-")
    real = getattr(os, name)
    calls = 0

    def full(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == int(nth or 1):
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, full)
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*model.*No space left"):
        save_random(saved, seed=2)
    monkeypatch.undo()
    assert load(saved).digest == old
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_everything_is_synced_before_it_is_renamed_into_place(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def fsync(descriptor: int) -> None:
        steps.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)

    def rename(source: Path, target: Path) -> None:
        steps.append("rename")
        real_rename(source, target)

    real_rename = os.rename
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    save_random(saved)
    staging = steps[3]
    assert steps[:3] == [f"sync {name}" for name in FILES]
    assert staging.startswith("sync .model.")
    assert steps[4:] == ["rename", "rename", f"sync {saved.parent.name}"]


# Runs in a process of its own: each child of it really dies, at one more step than the one before.
KILLED_AT_EVERY_STEP = """
import os, shutil, sys
from pathlib import Path

import torch

torch.set_num_threads(1)
from detector.checkpoint import load
from tests.detector.small_models import save_random

root = Path(sys.argv[1])
target = root / "model"
old, new = save_random(root / "old"), save_random(root / "new", seed=2)
WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
outcomes = []
for step in range(1, 100):
    for left in [target, *root.glob(".model.*")]:
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(root / "old", target)
    child = os.fork()
    if child == 0:
        steps = 0

        def die(event, args):
            global steps
            if event in WATCHED and ".model" in str(args[0]) + str(args[1:2]):
                steps += 1
                if steps == step:
                    os._exit(9)

        sys.addaudithook(die)
        save_random(target, seed=2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    found = load(target).digest
    assert found in (old, new), (step, found)
    outcomes.append("new" if found == new else "old")
    # Whatever the dead one left, the next save works and cleans up what load fell back to.
    assert save_random(target, seed=2) == new == load(target).digest
    assert not (root / ".model.previous").exists()
    if os.waitstatus_to_exitcode(status) == 0:
        break
print(" ".join(outcomes))
"""


def test_a_save_killed_at_any_step_leaves_the_old_or_the_new_checkpoint_whole(tmp_path: Path) -> None:
    script = [sys.executable, "-W", "error", "-c", KILLED_AT_EVERY_STEP, str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.split()
    # Kills before, between and after the renames were all among them.
    assert outcomes.count("old") > 5
    assert outcomes.count("new") > 3
    assert outcomes == sorted(outcomes, reverse=True)
