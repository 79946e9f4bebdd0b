"""Sessions whose key is only in Kafka are trained for and scored from files of records."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.field.sessions_of_people import visits, write
from tests.worker.small_worker import OddScorer
from worker.commands.score import score_files
from worker.commands.train import train_checkpoint
from worker.errors import SettingsError
from worker.files.input_files import open_inputs
from worker.settings.document import load_settings


def records(path: Path, *, placed: bool = False) -> Path:
    """Visits of 30 users; the user stands in the record's key and in a header, and nowhere in the line."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(visits(users=30, rounds=2)):
        _, _, user, step = line.split()
        rows.append(
            {
                "value": f"visitor {step}",
                "key": user,
                "headers": [["trace", f"t-{user}"]],
                "timestamp": 1_714_978_800_000 + number // 4 * 60_000,
                **({"topic": "visits", "partition": int(user[4:]) % 3, "offset": number} if placed else {}),
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("key", ["record_key", "{header: trace}"])
def test_lines_of_a_file_have_no_such_key_and_the_refusal_says_what_has(tmp_path: Path, key: str) -> None:
    log = write(tmp_path / "app.log", visits(users=3, rounds=1))
    with pytest.raises(SettingsError) as refused:
        open_inputs(load_settings(None, [f"sessions.key={key}"]), [log])
    (told,) = refused.value.errors
    assert told.startswith(f"sessions.key: {key.strip('{}').replace(':', '')}, but {log} holds lines, which have none;")
    assert "`logmamba capture` writes one" in told


@pytest.mark.parametrize(("key", "name"), [("record_key", "user7"), ("{header: trace}", "t-user7")])
def test_they_are_trained_for_and_scored_from_records(tmp_path: Path, key: str, name: str) -> None:
    settings = load_settings(None, [f"sessions.key={key}", "sessions.gap=5m"])
    path = records(tmp_path / "visits.jsonl")
    shown = io.StringIO()
    console = Console(file=shown, width=300)
    train_checkpoint(settings, [path], None, tmp_path / "model", seed=0, size="tiny", steps=1, console=console)
    assert "60 sessions of 30 keys" in shown.getvalue()
    score_files(settings, OddScorer(), [path], tmp_path / "scores.jsonl")
    scores = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert [each["events"] for each in scores] == [4] * 60
    mine = [each["source"] for each in scores if each["session"] == name]
    assert [(each["topic"], each["first_offset"]) for each in mine] == [("visits.jsonl", 28), ("visits.jsonl", 148)]


def test_records_that_know_their_place_form_sessions_by_partition_and_keep_it(tmp_path: Path) -> None:
    settings = load_settings(None, ["sessions.key=record_key", "sessions.gap=5m"])
    score_files(settings, OddScorer(), [records(tmp_path / "v.jsonl", placed=True)], tmp_path / "scores.jsonl")
    scores = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert len(scores) == 60
    for each in scores:
        user = int(each["session"].removeprefix("user"))
        assert (each["source"]["topic"], each["source"]["partition"]) == ("visits", user % 3)
        assert each["source"]["first_offset"] % 120 == 4 * user
