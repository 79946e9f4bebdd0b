"""A checkpoint is given the kind of input that it was trained on; of the other kind every event would be unknown."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from detector.text.vocabulary import Kind, Vocabulary
from tests.worker.small_worker import OddScorer
from tests.worker.small_worker import settings as small_settings
from worker.commands.evaluate import evaluate_checkpoint
from worker.commands.explain import explain_sessions
from worker.commands.score import score_files
from worker.errors import SettingsError
from worker.processing.scorer import Scorer
from worker.settings.document import Settings

NAMES: dict[Kind, str] = {"lines": "raw log lines", "events": "parsed sessions"}
TEXTS: dict[Kind, str] = {"lines": "a open\na odd\n", "events": "session_id\tevents\na\topen odd\n"}


def score(settings: Settings, scorer: Scorer, path: Path) -> None:
    score_files(settings, scorer, [path], path.with_name("out"))


def evaluate(settings: Settings, scorer: Scorer, path: Path) -> None:
    options = {"normal_weight": 1.0, "seed": 0, "console": Console(file=io.StringIO())}
    evaluate_checkpoint(settings, scorer, [path], None, path.with_name("report"), **options)


def explain(settings: Settings, scorer: Scorer, path: Path) -> None:
    explain_sessions(settings, scorer, [path], "a")


@pytest.mark.parametrize(("trained_on", "given"), [("events", "lines"), ("lines", "events")])
@pytest.mark.parametrize("command", [score, evaluate, explain])
def test_the_other_kind_is_refused_before_anything_is_written(
    tmp_path: Path, command: Callable[[Settings, Scorer, Path], None], trained_on: Kind, given: Kind
) -> None:
    path = tmp_path / "input"
    path.write_text(TEXTS[given])
    scorer = OddScorer(Vocabulary(("open", "odd"), kind=trained_on))
    with pytest.raises(SettingsError) as refused:
        command(small_settings("model.checkpoint=checkpoints/app"), scorer, path)
    assert refused.value.errors == [
        f"model.checkpoint: checkpoints/app was trained on {NAMES[trained_on]}, but the input is {NAMES[given]}; "
        f"allowed: a checkpoint trained on {NAMES[given]}"
    ]
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]
