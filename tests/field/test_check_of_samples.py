"""`logmamba check --input SAMPLE` says what the settings make of some lines, and what looks wrong about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.field.sessions_of_people import STAMP, visits, write
from tests.worker.small_worker import VOCABULARY
from worker.commands.check import check_everything
from worker.files.sample import Sample, try_sample
from worker.settings.advice import advice
from worker.settings.document import load_settings

CONFIG = Path(__file__).parents[2] / "config"
SHOWN = {"settings", "compiled loops", "checkpoint", "sample"}
KEY = r"sessions.key={regex: 'user\d+'}"


def tried(path: Path, *overrides: str) -> Sample:
    return try_sample(load_settings(None, [KEY, *overrides]), VOCABULARY, [path])


def test_a_sample_that_fits_is_described(tmp_path: Path) -> None:
    lines = [line.split(" ", 2)[2] for line in visits(users=3, rounds=1)]
    log = write(tmp_path / "app.log", [f"2024-05-06 07:00:0{at % 10} {line}" for at, line in enumerate(lines)])
    found = tried(log, STAMP, "tokenizer.unknown=semantic", "sessions.gap=10m")
    assert found.told == [
        "12 lines, 12 events, 3 sessions (end_of_input 3)",
        "times from 2024-05-06T07:00:00.000Z to 2024-05-06T07:00:09.000Z",
    ]
    assert found.wrong == []


def test_lines_that_the_checkpoint_does_not_know_are_told(tmp_path: Path) -> None:
    log = write(tmp_path / "app.log", [f"user{number} something else entirely" for number in range(9)])
    (told,) = [line for line in tried(log).doubtful if line.startswith("model.checkpoint")]
    assert told.startswith("model.checkpoint: 9 of 9 events are unknown to it")


def test_a_key_that_never_matches_is_wrong(tmp_path: Path) -> None:
    log = write(tmp_path / "app.log", ["anna read", "bert read"])
    assert tried(log).wrong == [
        "the input holds no session: 2 of 2 lines refused: no_key (sessions.key), as app.log, line 1: the record has "
        r"no session key (regex user\d+)"
    ]
    assert tried(log, "sessions.no_key=ignore").wrong == [
        "the input holds no session: 2 events have no key (sessions.key) and are left out (sessions.no_key: ignore)"
    ]


def test_it_says_that_the_compiled_loops_are_kept() -> None:
    rows = check_everything(load_settings(None, [KEY]), create_topics=False, offline=True)
    (row,) = [row for row in rows if row.what == "compiled loops"]
    assert row.state == "ok"
    assert "__pycache__" in row.detail


@pytest.mark.parametrize(
    ("year", "what"), [("1712", "before 1990"), ("1900", "before 1990"), ("2999", "more than a day")]
)
def test_times_that_no_log_has_are_doubted(tmp_path: Path, year: str, what: str) -> None:
    lines = [line.replace("2024", year) for line in visits(users=2, rounds=1)]
    (told,) = [line for line in tried(write(tmp_path / "app.log", lines), STAMP).doubtful if "times are" in line]
    assert told.startswith(f"input.timestamp: 8 of 8 times are {what}")


def test_refused_lines_and_lines_without_times_are_told(tmp_path: Path) -> None:
    log = write(tmp_path / "app.log", [*visits(users=2, rounds=1), "no key"])
    doubtful = tried(log).doubtful
    assert doubtful[0].startswith("input.timestamp: null, so the lines of app.log have no times")
    assert "1 of 9 lines refused: no_key (sessions.key), as app.log, line 9" in doubtful[1]


@pytest.mark.parametrize(
    ("gap", "idle_flush", "told"),
    [("1h", "10m", True), ("1h", "1h", False), ("1h", "null", False), ("null", "10m", False), ("10m", "10m", False)],
)
def test_an_idle_flush_below_the_gap_is_doubted(gap: str, idle_flush: str, told: bool) -> None:
    lines = list(advice(load_settings(None, [f"sessions.gap={gap}", f"sessions.idle_flush={idle_flush}"])))
    assert [line.startswith("sessions.idle_flush: 10m is below sessions.gap (1h)") for line in lines] == [True] * told


def test_offline_only_what_needs_no_broker_is_checked_and_a_checkpoint_may_be_missing(tmp_path: Path) -> None:
    log = write(tmp_path / "app.log", visits(users=2, rounds=1))
    settings = load_settings(None, [KEY, STAMP, f"model.checkpoint={tmp_path / 'none'}"])
    rows = check_everything(settings, create_topics=False, sample=[log], offline=True)
    assert ({row.what for row in rows}, {row.ok for row in rows}) == (SHOWN, {True})
    assert [row.detail for row in rows if row.what == "checkpoint"] == [
        f"model.checkpoint: {tmp_path / 'none'}: there is none yet; logmamba train writes one"
    ]
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    settings = load_settings(None, [KEY, STAMP, f"model.checkpoint={damaged}"])
    rows = check_everything(settings, create_topics=False, offline=True)
    assert [row.what for row in rows if not row.ok] == ["checkpoint"]


@pytest.mark.parametrize("path", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.name)
def test_the_shipped_settings_obey_this_advice(path: Path) -> None:
    assert list(advice(load_settings(path))) == []
