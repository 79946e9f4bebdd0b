"""Files given together are one stream in the order of their times, and a session may go over several."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.field.sessions_of_people import STAMP, visits, write
from tests.worker.small_worker import OddScorer
from worker.commands.evaluation.sessions import read_evaluated_sessions
from worker.commands.score import score_files
from worker.commands.train import train_checkpoint
from worker.files.input_files import open_inputs
from worker.settings.document import Settings, load_settings

RULES = r"sessions.key={regex: 'user\d+'}", "sessions.gap=5m"
TIMED = load_settings(None, [STAMP, *RULES])
STEPS = ("open", "read", "odd", "close")


def rotated(folder: Path, lines: list[str], *cuts: int) -> list[Path]:
    """The lines as app.log.2.gz, app.log.1 and app.log, given in the wrong order."""
    parts = [lines[start:stop] for start, stop in zip((0, *cuts), (*cuts, len(lines)), strict=True)]
    names = ["app.log.2.gz", "app.log.1", "app.log"][-len(parts) :]
    paths = []
    for name, part in zip(names, parts, strict=True):
        path = write(folder / name, part)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(path.read_bytes()))
        paths.append(path)
    return paths[::-1]


def scored(settings: Settings, paths: list[Path], folder: Path) -> list[dict[str, Any]]:
    score_files(settings, OddScorer(), paths, folder / "scores.jsonl")
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def without_place(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("id", "source", "top_events", "lines")}


@pytest.mark.parametrize("cuts", [(30,), (30, 61), (1, 118)])
def test_cut_anywhere_the_parts_of_a_log_give_the_records_of_the_whole(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    lines = visits(users=10, rounds=3, steps=STEPS)
    whole = scored(TIMED, [write(tmp_path / "whole.log", lines)], tmp_path)
    records = scored(TIMED, rotated(tmp_path, lines, *cuts), tmp_path)
    assert len(whole) == 30
    assert list(map(without_place, records)) == list(map(without_place, whole))
    starts = dict(zip(["app.log.2.gz", "app.log.1", "app.log"][-len(cuts) - 1 :], (0, *cuts), strict=True))
    for record, expected in zip(records, whole, strict=True):
        # The topic is the file in which the session begins; offsets count from its first line, into the next file.
        start = starts[record["source"]["topic"]]
        assert record["lines"] == [offset - start for offset in expected["lines"]]
        first = expected["source"]["first_offset"]
        assert start == max(each for each in starts.values() if each <= first)
        for name in ("first_offset", "last_offset", "cause_offset"):
            assert record["source"][name] + start == expected["source"][name]
        assert [each["offset"] + start for each in record["top_events"]] == [
            each["offset"] for each in expected["top_events"]
        ]


def test_training_and_evaluation_see_the_same_sessions(tmp_path: Path) -> None:
    lines = visits(users=30, rounds=1, steps=STEPS)
    paths = rotated(tmp_path, lines, 50)  # in the middle of user12
    records = scored(TIMED, paths, tmp_path)
    read = read_evaluated_sessions(TIMED, OddScorer(), paths, None)
    assert [
        (read.keys[key], read.places[place], first)
        for key, place, first in zip(read.sessions.key, read.place, read.first_offset, strict=True)
    ] == [(each["session"], each["source"]["topic"], each["source"]["first_offset"]) for each in records]

    shown = io.StringIO()
    train_checkpoint(
        *(TIMED, paths, None, tmp_path / "model"), seed=0, size="tiny", steps=1, console=Console(file=shown, width=300)
    )
    assert "30 sessions of 30 keys" in shown.getvalue()


def test_lines_without_times_are_in_the_order_given_but_for_the_numbers_of_a_rotation(tmp_path: Path) -> None:
    names = ["b.log", "app.log", "app.log.2.gz", "a.log", "app.log.10", "app.log.1"]
    paths = []
    for name in names:
        path = write(tmp_path / name, ["user1 read"])
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(path.read_bytes()))
        paths.append(path)
    files = open_inputs(load_settings(None, RULES), paths)
    assert [path.name for path in files.paths] == [
        "b.log",
        "app.log.10",
        "app.log.2.gz",
        "app.log.1",
        "app.log",
        "a.log",
    ]


def test_a_wrong_clock_at_the_beginning_of_a_file_does_not_move_it(tmp_path: Path) -> None:
    lines = visits(users=10, rounds=2)
    late = ["1970-01-01 00:00:07 user99 open", *lines[40:]]
    paths = [write(tmp_path / "late.log", late), write(tmp_path / "early.log", lines[:40])]
    assert [path.name for path in open_inputs(TIMED, paths).paths] == ["early.log", "late.log"]


def test_logs_that_run_side_by_side_are_told_to_be_no_stream(tmp_path: Path) -> None:
    hosts = [write(tmp_path / name, visits(users=10, rounds=4)) for name in ("a.log", "b.log")]
    (told,) = open_inputs(TIMED, hosts).notes
    assert told.startswith("b.log begins at 2024-05-06T")
    assert "long before a.log ends" in told
    lines = visits(users=10, rounds=4)
    assert open_inputs(TIMED, rotated(tmp_path, lines, 50, 100)).notes == ()
