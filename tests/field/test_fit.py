"""A checkpoint scores sessions that are formed as those it was trained on, or says that they are not."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from detector.checkpoint import load
from detector.reading import ReadingRecord
from tests.field.sessions_of_people import STAMP, visits, write
from tests.worker.small_worker import OddScorer
from worker.commands.evaluate import evaluate_checkpoint
from worker.commands.explain import explain_sessions
from worker.commands.score import score_files
from worker.commands.train import train_checkpoint
from worker.errors import SettingsError
from worker.observability.metrics import Metrics
from worker.processing.fit import reading_record
from worker.processing.pipeline import Pipeline
from worker.settings.document import Settings, load_settings

KEY = r"sessions.key={regex: 'user\d+'}"
RULES = KEY, "sessions.gap=5m"
NO_TIMES = (
    "input.timestamp: null, so the lines of visits.log have no times, and sessions.gap 5m and sessions.max_age 6h end "
    "no session here, as they do in a worker; this would read them: input.timestamp: {format: iso8601}"
)


def trained_with(*overrides: str, times: bool = True) -> ReadingRecord:
    return reading_record(load_settings(None, overrides), times=times)


def fitted(settings: Settings, trained: ReadingRecord | None, *, times: bool = True) -> tuple[str, ...]:
    """What a worker says of such a checkpoint."""
    return Pipeline(settings, OddScorer(reading=trained), Metrics(), times=times).misfits


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write(tmp_path / "visits.log", visits(users=25, rounds=3, steps=("open", "odd", "odd", "close")))


def test_a_training_says_before_it_begins_that_lines_have_no_times_and_its_checkpoint_is_refused_where_they_have(
    tmp_path: Path, log: Path
) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=500)
    train_checkpoint(
        load_settings(None, RULES), [log], None, tmp_path / "model", seed=0, size="tiny", steps=1, console=console
    )
    said = shown.getvalue().splitlines()
    assert said[0] == NO_TIMES
    assert said.index(NO_TIMES) < next(at for at, line in enumerate(said) if line.startswith("reading"))
    record = load(tmp_path / "model").manifest.reading
    assert record == trained_with(*RULES, times=False)
    with pytest.raises(SettingsError) as refused:
        fitted(load_settings(None, RULES), record)
    assert refused.value.errors == [
        "input.timestamp: events have times here, so sessions.gap 5m and sessions.max_age 6h can end a session, but "
        "the checkpoint was trained on lines without times (input.timestamp: null), where none could; allowed: a "
        "checkpoint trained with times, or null for both"
    ]


def score(settings: Settings, scorer: OddScorer, path: Path, told: list[str]) -> None:
    score_files(settings, scorer, [path], path.with_name("out"), tell=told.append)


def evaluate(settings: Settings, scorer: OddScorer, path: Path, told: list[str]) -> None:
    shown = io.StringIO()
    options = {"normal_weight": 1.0, "seed": 0, "console": Console(file=shown, width=1000)}
    evaluate_checkpoint(settings, scorer, [path], None, path.with_name("report"), **options)
    told += shown.getvalue().splitlines()


def explain(settings: Settings, scorer: OddScorer, path: Path, told: list[str]) -> None:
    explain_sessions(settings, scorer, [path], "user1", tell=told.append)


Command = Callable[[Settings, OddScorer, Path, list[str]], None]


@pytest.mark.parametrize("command", [score, evaluate, explain])
def test_every_command_on_files_refuses_lines_without_times_where_the_checkpoint_had_them(
    log: Path, command: Command
) -> None:
    with pytest.raises(SettingsError, match="so these lines have no times, but the checkpoint was trained with times"):
        command(load_settings(None, RULES), OddScorer(reading=trained_with(STAMP, *RULES)), log, [])


@pytest.mark.parametrize("command", [score, evaluate, explain])
def test_every_command_on_files_says_what_shifts_scores_and_that_lines_have_no_times(
    log: Path, command: Command
) -> None:
    told: list[str] = []
    trained = trained_with(*RULES, "sessions.max_events=7", times=False)
    command(load_settings(None, RULES), OddScorer(reading=trained), log, told)
    assert told[:2] == [
        NO_TIMES,
        "sessions.max_events: 1024, but the checkpoint was trained with 7, which shifts scores",
    ]


def test_another_kind_of_key_is_refused_and_another_key_of_the_kind_is_told() -> None:
    trained = trained_with(KEY)
    with pytest.raises(SettingsError) as refused:
        fitted(load_settings(None, ["sessions.key=record_key"]), trained)
    assert refused.value.errors == [
        r"sessions.key: record_key is another kind of key than the checkpoint was trained with, {regex: user\d+}; "
        "allowed: the same kind, or a checkpoint trained with this one"
    ]
    assert fitted(load_settings(None, ["sessions.key={regex: 'job-[0-9]+'}"]), trained) == (
        r"sessions.key: {regex: 'job-[0-9]+'}, but the checkpoint was trained with {regex: user\d+}, which shifts "
        "scores",
    )


@pytest.mark.parametrize(
    ("setting", "here", "there"),
    [
        ("sessions.gap", "20m", "10m"),
        ("sessions.gap", "null", "10m"),
        ("sessions.max_age", "1d", "6h"),
        ("sessions.max_events", "50", "1024"),
        ("sessions.end_events", "[<*> close]", "[]"),
        ("input.max_line_bytes", "300", "65536"),
        ("tokenizer.unknown", "unk", "semantic"),
    ],
)
def test_what_forms_other_sessions_or_lines_is_told_with_both_values(setting: str, here: str, there: str) -> None:
    told = fitted(load_settings(None, [f"{setting}={here}"]), trained_with())
    assert told == (f"{setting}: {here}, but the checkpoint was trained with {there}, which shifts scores",)


@pytest.mark.parametrize(
    "setting", ["sessions.max_open=7", "sessions.idle_flush=1h", "input.topics=[other]", "sessions.no_key=ignore"]
)
def test_what_forms_the_same_sessions_is_not_told(setting: str) -> None:
    assert fitted(load_settings(None, [setting]), trained_with()) == ()


def test_without_any_rule_of_times_it_does_not_matter_whether_there_are_some() -> None:
    rules = "sessions.gap=null", "sessions.max_age=null"
    settings = load_settings(None, rules)
    assert fitted(settings, trained_with(*rules, times=False)) == ()
    assert fitted(settings, trained_with(*rules), times=False) == ()


def test_a_checkpoint_that_does_not_say_how_its_sessions_were_formed_is_used_and_that_is_told() -> None:
    (told,) = fitted(Settings(), None)
    assert told.startswith("model.checkpoint: does not record how its sessions were formed")


def test_a_setting_that_the_training_did_not_know_had_its_default_there() -> None:
    trained = trained_with()
    del trained.settings["input.multiline"]
    assert fitted(Settings(), trained) == ()
    assert fitted(load_settings(None, ["input.multiline=true"]), trained) == (
        "input.multiline: true, but the checkpoint was trained with false, which shifts scores",
    )
