"""`logmamba adapt` and `rollback`, as a user and a schedule meet them: what is written and said, and exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detector.checkpoint import load, save
from detector.model.model import ModelConfig
from detector.scoring.scorer import Scorer
from detector.text.vocabulary import Vocabulary
from detector.training import gate
from detector.training.data import TrainingSessions
from detector.training.options import TrainingOptions
from detector.training.train import train
from tests.detector.scoring.stream import CLOSED, COPIED, FAILED, OPENED, READ, VOCABULARY, WRITTEN, stream
from tests.detector.small_models import CALIBRATION, PROFILE, RECORD, encoded, random_model, save_random
from tests.worker.command_line import Done, logmamba
from worker.files.training_set import is_validation

NAMES = Vocabulary(tuple(f"E{number}" for number in range(len(VOCABULARY.templates))), kind="events")
SMALL = ModelConfig(len(NAMES), d_model=32, n_layers=1, d_state=8, headdim=16, mimo_rank=2)
QUICK = TrainingOptions(next_token_steps=40, learning_rate=1e-2, batch_tokens=1024)
ATTACK = [OPENED, READ, WRITTEN, COPIED, COPIED, COPIED, FAILED, CLOSED]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adapt") / "app"
    train(TrainingSessions.of(stream(1_500)[0]), NAMES, size=SMALL, device="cpu", options=QUICK).save(place)
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "app"))


def parsed(path: Path, sessions: Sequence[Sequence[int]], new: Sequence[str] = ()) -> Path:
    rows = [
        f"s{number}\t{' '.join([*(NAMES.text(token) for token in events), *new])}"
        for number, events in enumerate(sessions)
    ]
    path.write_text("session_id\tevents\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture
def recent(tmp_path: Path) -> Path:
    """A day of usual sessions, and of one anomaly that was repeated until a fifth of all had it."""
    sessions = [each.tolist() for each in stream(400, seed=4)[0]]
    return parsed(tmp_path / "recent.tsv", [*sessions, *[ATTACK] * 100])


def adapt(place: Path, recent: Path, *more: object) -> Done:
    return logmamba("adapt", "--checkpoint", place, "--input", recent, "--steps", 5, *more)


def score(place: Path, events: Sequence[int]) -> float:
    return Scorer.load(place, device="cpu").score([encoded(events)])[0].final


def test_a_new_version_takes_the_place_and_says_what_it_learnt_and_what_stays_an_alarm(
    place: Path, recent: Path
) -> None:
    before = load(place)
    done = adapt(place, recent, "--json")
    assert done.returncode == 0, done.stderr
    after = load(place)
    told = json.loads(done.stdout)
    assert (told["schema"], told["taken"]) == ("logmamba.adaptation/1", True)
    assert told["checkpoint"] == after.digest != before.digest
    assert told["parent"] == before.digest
    assert told["version"] == f"0002-{after.digest.removeprefix('sha256:')[:12]}"
    assert {each["name"] for each in told["figures"]} >= {"old.alarms", "old.nats", "old.found", "recent.alarms"}
    assert "500 recent sessions of 500 keys" in done.stderr
    assert "are alarms and stay so" in done.stderr
    assert f"  +{FAILED}: 1" in done.stderr
    assert f"{told['version']} scores in place of {told['was']}" in done.stderr
    assert score(place, ATTACK) >= 0.7
    assert [each.parent for each in after.manifest.history] == [before.digest]


def test_rollback_brings_the_very_checkpoint_back_and_holds_adaptations_until_they_are_resumed(
    place: Path, recent: Path
) -> None:
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    assert adapt(place, recent).returncode == 0
    new = load(place).digest
    done = logmamba("rollback", "--checkpoint", place)
    assert done.returncode == 0, done.stderr
    assert "scores again in place of 0002-" in done.stderr
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before

    listed = json.loads(logmamba("rollback", "--checkpoint", place, "--list", "--json").stdout)
    assert [each["current"] for each in listed["versions"]] == [True, False]
    assert listed["versions"][1]["checkpoint"] == new
    held = adapt(place, recent)
    assert held.returncode == 3
    assert "was rolled back on" in held.stderr
    assert "adapt --resume" in held.stderr.splitlines()[-1]
    scheduled = adapt(place, recent, "--exit-zero")
    assert (scheduled.returncode, scheduled.stderr) == (0, held.stderr)
    assert logmamba("rollback", "--checkpoint", place, "--to", new).returncode == 0
    assert load(place).digest == new
    assert adapt(place, recent, "--resume").returncode == 0
    assert adapt(place, recent).returncode == 0
    table = logmamba("rollback", "--checkpoint", place, "--list").stdout
    assert table.count(" now ") == 1
    assert "0004-" in table
    wrong = logmamba("rollback", "--checkpoint", place, "--to", "77")
    assert wrong.returncode == 1
    assert "no version '77'" in wrong.stderr


def test_what_is_worse_is_not_written_and_the_exit_code_says_so(
    place: Path, recent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load(place).digest
    monkeypatch.setattr(gate, "MORE_SURPRISE", -0.9)  # nine tenths less surprise were asked for
    done = adapt(place, recent, "--json")
    assert done.returncode == 3
    told = json.loads(done.stdout)
    assert not told["taken"]
    assert told["reason"] in done.stderr
    assert [each["name"] for each in told["figures"] if not each["ok"]] == ["old.nats", "recent.nats"]
    assert "the checkpoint stays as it is, since the new one is worse: older sessions, nats" in done.stderr
    assert load(place).digest == before
    assert [path.name for path in place.with_name("app.versions").iterdir()] == [".lock"]


def test_sessions_of_one_key_are_learnt_from_whatever_its_hash_says(place: Path, recent: Path) -> None:
    key = next(f"host-{number}" for number in range(100) if is_validation(f"host-{number}", 0))
    head, *rows = recent.read_text().splitlines()
    recent.write_text("\n".join([head, *(f"{key}\t{row.partition(chr(9))[2]}" for row in rows)]) + "\n")
    done = adapt(place, recent, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "learnt from" in done.stderr


def test_a_dry_run_changes_nothing(place: Path, recent: Path) -> None:
    before = load(place).digest
    done = adapt(place, recent, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "nothing was changed" in done.stderr
    assert load(place).digest == before
    assert [path.name for path in place.with_name("app.versions").iterdir()] == [".lock"]


def test_new_events_become_part_of_the_vocabulary_and_of_what_is_usual_where_they_are_planned(
    place: Path, tmp_path: Path
) -> None:
    sessions = [each.tolist() for each in stream(400, seed=4)[0]]
    rolled = parsed(tmp_path / "rolled.tsv", sessions, ["ROLLED-OUT"])
    before, new = load(place).vocabulary, len(NAMES)
    waits = adapt(place, rolled)
    assert waits.returncode == 0, waits.stderr
    assert "1 template is new:\n  ROLLED-OUT" in waits.stderr
    assert "too few to learn from: nothing scores otherwise" in waits.stderr
    assert "the model stays as it is" not in waits.stderr
    assert "1 thing is usual but new, on 1 of 3 days so far: alarms until then" in waits.stderr
    assert score(place, [*sessions[0], new]) >= 0.7
    done = adapt(place, rolled, "--planned")
    assert done.returncode == 0, done.stderr
    assert "no alarm any more, as you vouch for it:" in done.stderr
    after = load(place).vocabulary
    assert after.only_adds_to(before)
    assert after.text(new) == "ROLLED-OUT"
    assert score(place, [*sessions[0], new]) < 0.7


def test_verdicts_of_a_file_count_in_the_new_version(place: Path, recent: Path, tmp_path: Path) -> None:
    pattern = Scorer.load(place, device="cpu").pattern(encoded(ATTACK))
    said = {"schema": "logmamba.feedback/1", "pattern": pattern, "verdict": "normal"}
    file = tmp_path / "verdicts.jsonl"
    file.write_text(json.dumps({**said, "at": "2026-02-03T04:05:06Z", "by": "ops"}) + "\n")
    done = adapt(place, recent, "--feedback", file)
    assert done.returncode == 0, done.stderr
    assert score(place, ATTACK) < 0.7
    judge = load(place).judge
    assert judge is not None
    family = judge.families.find(f"+{FAILED}")
    assert family is not None
    assert family.verdict == "normal"


def test_without_a_sample_of_before_older_files_are_asked_for_and_do(place: Path, recent: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "older"
    save(
        checkpoint,
        model=random_model(NAMES),
        vocabulary=NAMES,
        profile=PROFILE,
        calibration=CALIBRATION,
        training=replace(RECORD, mode="normals_only"),
    )
    done = adapt(checkpoint, recent)
    assert done.returncode == 2
    assert "--older: is missing" in done.stderr
    assert "allowed: files of that time" in done.stderr
    older = parsed(tmp_path / "older.tsv", [each.tolist() for each in stream(300, seed=8)[0]])
    done = adapt(checkpoint, recent, "--older", older, "--planned", "--dry-run")
    assert done.returncode == 0 or "is worse" in done.stderr
    assert "300 older sessions are replayed" in done.stderr
    save_random(checkpoint, NAMES)  # with labels
    done = adapt(checkpoint, recent, "--older", older)
    assert done.returncode == 2
    assert "was trained with some; allowed: none" in done.stderr


def test_what_does_not_fit_is_refused_as_wrong_usage(place: Path, recent: Path, tmp_path: Path) -> None:
    lines = tmp_path / "app.log"
    lines.write_text("blk_1 opened\n" * 5)
    for arguments, told in (
        (["--input", lines], "was trained on parsed sessions"),
        ([], "give either --input or --since"),
        (["--input", recent, "--since", "1d"], "give either --input or --since"),
        (["--since", "yesterday"], "neither a duration"),
    ):
        done = logmamba("adapt", "--checkpoint", place, *arguments)
        assert done.returncode == 2, done.stderr
        assert told in done.stderr.replace("\n", " ")
    assert np.array([*place.parent.glob("app.versions/0*")]).size == 0
