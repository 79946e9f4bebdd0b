"""A killed training goes on from where it was, and ends where it would have ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from detector.checkpoint import load
from detector.errors import CheckpointError, TrainingError
from detector.text.vocabulary import Vocabulary
from detector.training.train import Trained, TrainingOptions, TrainingProgress, train
from tests.detector.training.test_train import SMALL, VOCABULARY, sessions

ROOT = Path(__file__).parents[3]
# Validations at 5, 10, 15, 20 and 22, reports at 10 and 20 beside them.
OPTIONS = TrainingOptions(next_token_steps=22, classifier_steps=22, validations=4, batch_tokens=256)
# Validations at 15 and 30, so that work is lost when it is killed at the report of 20.
RARE = replace(OPTIONS, next_token_steps=30, classifier_steps=30, validations=2)

_Report = Callable[[TrainingProgress], None]


class Killed(BaseException):
    """Nothing in the library catches it, so what is on disk is what a kill leaves."""


def training(options: TrainingOptions, state: Path | None, progress: _Report | None = None) -> Trained:
    data = sessions(80, 30, seed=4)
    return train(data, VOCABULARY, size=SMALL, device="cpu", options=options, state=state, progress=progress)


def learnt(report: TrainingProgress) -> tuple[object, ...]:
    """What of a report does not depend on the time."""
    return report.stage, report.step, report.tokens, report.loss, report.validation_loss, report.learning_rate


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[TrainingProgress]]:
    reports: list[TrainingProgress] = []
    trained = training(OPTIONS, None, reports.append)
    return trained.save(tmp_path_factory.mktemp("uninterrupted") / "model"), reports


def test_a_training_killed_after_every_validation_ends_with_the_same_checkpoint_and_the_same_losses(
    tmp_path: Path, uninterrupted: tuple[str, list[TrainingProgress]]
) -> None:
    digest, expected = uninterrupted
    reports: list[TrainingProgress] = []

    def killed_at_once(report: TrainingProgress) -> None:
        reports.append(report)
        raise Killed

    for _ in range(len(expected)):
        with pytest.raises(Killed):
            training(OPTIONS, tmp_path / "state", killed_at_once)
    # Nothing is left but to measure and save it.
    trained = training(OPTIONS, tmp_path / "state", killed_at_once)
    assert list(map(learnt, reports)) == list(map(learnt, expected))
    assert all(report.seconds > 0 for report in reports)
    assert trained.save(tmp_path / "model") == digest


@pytest.mark.parametrize("stage", ["next_token", "classifier"])
def test_steps_since_the_last_validation_are_done_again_with_the_same_outcome(tmp_path: Path, stage: str) -> None:
    expected: list[TrainingProgress] = []
    digest = training(RARE, None, expected.append).save(tmp_path / "uninterrupted")
    again: list[TrainingProgress] = []

    def killed_at_20(report: TrainingProgress) -> None:
        if (report.stage, report.step) == (stage, 20):
            raise Killed

    with pytest.raises(Killed):
        training(RARE, tmp_path / "state", killed_at_20)
    assert training(RARE, tmp_path / "state", again.append).save(tmp_path / "model") == digest
    resumed_at = next(index for index, report in enumerate(expected) if (report.stage, report.step) == (stage, 20))
    assert list(map(learnt, again)) == list(map(learnt, expected[resumed_at:]))


def test_the_best_weights_outlast_a_kill_after_worse_ones(tmp_path: Path) -> None:
    options = replace(
        OPTIONS, next_token_steps=200, classifier_steps=5, validations=100, patience=2, learning_rate=0.03
    )
    losses: list[float] = []

    def killed_when_worse(report: TrainingProgress) -> None:
        if report.validation_loss is not None:
            losses.append(report.validation_loss)
            if losses[-1] > min(losses):
                raise Killed

    with pytest.raises(Killed):
        training(options, tmp_path / "state", killed_when_worse)
    resumed = training(options, tmp_path / "state").save(tmp_path / "resumed")
    assert resumed == training(options, None).save(tmp_path / "uninterrupted")


KILLS_ITSELF = """
import os, signal, sys
from pathlib import Path
from tests.detector.training.test_state import OPTIONS, training

rename, saves = os.replace, 0

def struck(*paths):
    global saves
    saves += 1
    if saves == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*paths)

os.replace = struck
training(OPTIONS, Path(sys.argv[1]))
"""


def test_a_process_killed_before_its_new_state_is_in_place_is_taken_up_from_the_one_before(
    tmp_path: Path, uninterrupted: tuple[str, list[TrainingProgress]]
) -> None:
    digest, expected = uninterrupted
    state = tmp_path / "state"
    command = [sys.executable, "-c", KILLS_ITSELF, str(state)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [".state.new", "state"]
    reports: list[TrainingProgress] = []
    trained = training(OPTIONS, state, reports.append)
    validated = [report for report in expected if report.validation_loss is not None]
    resumed_at = expected.index(validated[6])
    assert list(map(learnt, reports)) == list(map(learnt, expected[resumed_at:]))
    assert trained.save(tmp_path / "model") == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The state of a training killed at its first validation."""
    state = tmp_path_factory.mktemp("killed") / "state"

    def killed(_report: TrainingProgress) -> None:
        raise Killed

    with pytest.raises(Killed):
        training(OPTIONS, state, killed)
    return state.read_bytes()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 1}, r"\(seed: 0 there, 1 now; sessions: "),
        ({"options": replace(OPTIONS, patience=9)}, r"\(options.patience: 8 there, 9 now\)"),
        ({"size": replace(SMALL, d_model=64)}, r"\(model.d_model: 32 there, 64 now\)"),
        ({"sessions": sessions(81, 30, seed=4)}, r"\(sessions: sha256:.* there, sha256:.* now; validation sessions: "),
        ({"vocabulary": Vocabulary((*VOCABULARY.templates[:-1], "other"))}, r"\(vocabulary: sha256:"),
    ],
)
def test_the_state_of_another_training_is_refused_and_the_difference_named(
    tmp_path: Path, left_behind: bytes, changed: dict[str, object], said: str
) -> None:
    (tmp_path / "state").write_bytes(left_behind)
    arguments: dict[str, object] = {
        "sessions": sessions(80, 30, seed=4),
        "vocabulary": VOCABULARY,
        "size": SMALL,
        "options": OPTIONS,
        **changed,
    }
    with pytest.raises(TrainingError, match=rf"state is the state of another training {said}.*: delete it, or"):
        train(**arguments, device="cpu", state=tmp_path / "state")  # type: ignore[arg-type]
    assert (tmp_path / "state").read_bytes() == left_behind


@pytest.mark.parametrize("place", [0, 64, 100, 0.5, -1])
def test_a_damaged_state_is_refused(tmp_path: Path, left_behind: bytes, place: float) -> None:
    damaged = bytearray(left_behind)
    damaged[int(place * len(damaged)) if isinstance(place, float) else place] ^= 1
    for content in (bytes(damaged), left_behind[:-1], b""):
        (tmp_path / "state").write_bytes(content)
        with pytest.raises(TrainingError, match="state is damaged or is not the state of a training: delete it, or"):
            training(OPTIONS, tmp_path / "state")


def test_a_state_that_cannot_be_written_or_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"cannot read the state of the training .*file/state: Not a directory"):
        training(OPTIONS, tmp_path / "file" / "state")
    (tmp_path / ".state.new").mkdir()
    with pytest.raises(TrainingError, match=r"cannot write the state of the training .*state: Is a directory"):
        training(OPTIONS, tmp_path / "state")


def test_the_state_is_kept_until_the_checkpoint_is_saved(tmp_path: Path) -> None:
    state = tmp_path / "folder" / "state"
    trained = training(replace(OPTIONS, next_token_steps=5, classifier_steps=5), state)
    assert state.exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    with pytest.raises(CheckpointError):
        trained.save(tmp_path / "taken")
    assert state.exists()
    trained.save(tmp_path / "model")
    assert not state.exists()
    assert load(tmp_path / "model").manifest.training == trained.record
