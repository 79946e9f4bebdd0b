"""Whoever refuses lines says how many, why, where, and which setting is at fault; nothing read is an error."""

from __future__ import annotations

import bz2
import io
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from detector.errors import InputFileError
from tests.field.sessions_of_people import STAMP, visits, write
from tests.worker.command_line import logmamba
from tests.worker.small_worker import OddScorer
from worker.commands.demo import LINES_SETTINGS
from worker.commands.evaluate import evaluate_checkpoint
from worker.commands.explain import explain_sessions
from worker.commands.score import score_files
from worker.commands.train import train_checkpoint
from worker.settings.document import Settings, load_settings

KEY = r"sessions.key={regex: 'user\d+'}"
Command = Callable[[Settings, Path], list[str]]


def train(settings: Settings, path: Path) -> list[str]:
    shown = io.StringIO()
    console = Console(file=shown, width=1000)
    train_checkpoint(settings, [path], None, path.with_name("model"), seed=0, size="tiny", steps=1, console=console)
    return shown.getvalue().splitlines()


def score(settings: Settings, path: Path) -> list[str]:
    told: list[str] = []
    score_files(settings, OddScorer(), [path], path.with_name("out"), tell=told.append)
    return told


def evaluate(settings: Settings, path: Path) -> list[str]:
    shown = io.StringIO()
    options = {"normal_weight": 1.0, "seed": 0, "console": Console(file=shown, width=1000)}
    evaluate_checkpoint(settings, OddScorer(), [path], None, path.with_name("report"), **options)
    return shown.getvalue().splitlines()


def explain(settings: Settings, path: Path) -> list[str]:
    told: list[str] = []
    explain_sessions(settings, OddScorer(), [path], "user1", tell=told.append)
    return told


@pytest.mark.parametrize("command", [train, score, evaluate, explain])
def test_lines_that_are_refused_are_told_by_reason_with_place_and_setting(tmp_path: Path, command: Command) -> None:
    lines = visits(users=30, rounds=1, steps=("open", "odd", "odd", "close"))
    lines[3:3] = ["2024-05-06 07:00:02 nobody read", "06.05.2024 07:00:02 user1 read", "06.05.2024 07:00:03 user1 read"]
    log = write(tmp_path / "app.log", lines)
    pattern = r"input.timestamp={pattern: '^(\S+ \S+)', format: '%Y-%m-%d %H:%M:%S'}"
    told = command(load_settings(None, [KEY, pattern]), log)
    assert [line for line in told if "lines refused:" in line] == [
        "2 of 123 lines refused: bad_timestamp (input.timestamp), as app.log, line 5: '06.05.2024 07:00:02' is not a "
        "time in the format '%Y-%m-%d %H:%M:%S'",
        r"1 of 123 lines refused: no_key (sessions.key), as app.log, line 4: the record has no session key "
        r"(regex user\d+)",
    ]


@pytest.mark.parametrize("command", [train, score, evaluate, explain])
@pytest.mark.parametrize(
    ("content", "overrides", "reason"),
    [
        ("06.05.2024 07:00 user1 read\n", [STAMP], r"bad_timestamp \(input.timestamp\), as app.log, line 1: '06.05"),
        ("2024-05-06 07:00:00 anna read\n", [STAMP], r"no_key \(sessions.key\), as app.log, line 1"),
        ("plain user1 text\n", ["input.format=json"], r"bad_json \(input.format\), as app.log, line 1"),
        ('{"msg": "user1 read"}\n', ["input.format=json"], r"no_message \(input.message\), as app.log, line 1"),
        ("", [], "holds no session: it has no lines"),
        (
            "2024-05-06 07:00:00 anna read\n",
            [STAMP, "sessions.no_key=ignore"],
            r"1 events have no key \(sessions.key\) and are left out \(sessions.no_key: ignore\)",
        ),
    ],
)
def test_where_no_line_can_be_read_the_error_says_why(
    tmp_path: Path, command: Command, content: str, overrides: list[str], reason: str
) -> None:
    (tmp_path / "app.log").write_text(content)
    with pytest.raises(InputFileError, match=reason):
        command(load_settings(None, [KEY, *overrides]), tmp_path / "app.log")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (bz2.compress(b"user1 read\n"), "compressed with bzip2"),
        (lzma.compress(b"user1 read\n"), "compressed with xz"),
        ("user1 read\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_that_is_no_plain_text_is_named_for_what_it_is(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "app.log").write_bytes(content)
    with pytest.raises(InputFileError, match=f"app.log: is {kind}; allowed: UTF-8 text, plain or compressed with gzip"):
        score(load_settings(None, [KEY]), tmp_path / "app.log")


def test_score_exits_with_1_and_leaves_no_output_when_nothing_could_be_read(tmp_path: Path) -> None:
    log = write(tmp_path / "app.log", visits(users=3, rounds=1))
    output = tmp_path / "scores.jsonl"
    checkpoint = Path(__file__).parents[2] / "checkpoints" / "demo"
    done = logmamba(
        *("score", "--checkpoint", checkpoint, "--input", log, "--output", output, "--set", *LINES_SETTINGS)
    )
    assert done.returncode == 1
    assert "12 of 12 lines refused: no_key (sessions.key), as app.log, line 1" in done.stderr
    assert not output.exists()
