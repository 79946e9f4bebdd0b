"""`logmamba train` without labels, and `logmamba verdicts` on what it set aside: from the files to the scores."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from unittest.mock import patch

import jsonschema
import numpy as np
import pytest
from rich.console import Console

from detector.errors import CheckpointError, InputFileError
from tests.detector.scoring.stream import COPIED, FAILED, VOCABULARY, stream
from tests.detector.small_models import save_random
from tests.worker.command_line import logmamba
from worker.commands.verdicts import Answer, ask, read_answers

SESSIONS, WRONG = stream(1_200)
SCHEMA = json.loads((Path(__file__).parents[3] / "config" / "score-record.schema.json").read_text(encoding="utf-8"))


def parsed(path: Path, sessions: Iterable[np.ndarray]) -> Path:
    """A table of sessions whose events are named by the words of their templates."""
    names = [template.replace(" ", "_") for template in VOCABULARY.templates]
    rows = [f"s{row}\t{' '.join(names[token - 3] for token in events)}" for row, events in enumerate(sessions)]
    path.write_text("session_id\tevents\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A checkpoint and what its training said."""
    folder = tmp_path_factory.mktemp("verdicts")
    done = logmamba(
        *("train", "--input", parsed(folder / "training.tsv", SESSIONS), "--output", folder / "model", "--steps", "20")
    )
    assert done.returncode == 0, done.stderr
    return folder / "model", done.stderr


@pytest.fixture
def checkpoint(made: tuple[Path, str], tmp_path: Path) -> Path:
    shutil.copytree(made[0], tmp_path / "model")
    return tmp_path / "model"


def families(checkpoint: Path) -> list[dict[str, object]]:
    done = logmamba("verdicts", "list", "--checkpoint", checkpoint, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "logmamba.verdicts/1"
    assert document["sessions"] == len(SESSIONS)
    found: list[dict[str, object]] = document["families"]
    return found


def family_with(checkpoint: Path, words: str) -> str:
    [found] = [each for each in families(checkpoint) if str(each["reason"]).startswith(words)]
    return str(found["family"])


def records(checkpoint: Path, folder: Path) -> list[dict[str, object]]:
    table = parsed(folder / "later.tsv", stream(200, share=0.3, seed=4)[0])
    done = logmamba("score", "--checkpoint", checkpoint, "--input", table, "--output", folder / "scores.jsonl")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]


def test_training_says_what_it_set_aside_in_families_and_words_and_what_that_means(made: tuple[Path, str]) -> None:
    said = made[1].splitlines()
    [head] = [line for line in said if "set aside as they stand out" in line]
    assert head.startswith(f"{WRONG.sum()} of 1,200 sessions (")
    assert any(line.startswith("  F1: ") and line.endswith((".", "exactly 3.")) for line in said)
    assert any("copy_of_<*>_stored: 2 times; " in line and "have exactly 3." in line for line in said)
    assert any(line.startswith("limits: what less than 3% of the sessions do") for line in said)
    assert any("less than a quarter of what was set aside is normal" in line for line in said)
    assert any("will have counts that none here had" in line for line in said)
    assert re.search(r"critical 0\.95 +0\.000%", made[1])
    assert "(as they come)" in made[1]


def test_normals_sets_nothing_aside(tmp_path: Path) -> None:
    table = parsed(tmp_path / "training.tsv", SESSIONS[:200])
    done = logmamba("train", "--input", table, "--output", tmp_path / "model", "--steps", "1", "--normals")
    assert done.returncode == 0, done.stderr
    assert "set aside" not in done.stderr
    assert "(normals only)" in done.stderr
    refused = logmamba("verdicts", "list", "--checkpoint", tmp_path / "model")
    assert refused.returncode == 1
    assert "has no families: it was trained with labels, with --normals" in refused.stderr


def test_the_list_has_an_example_of_each_family(checkpoint: Path) -> None:
    found = families(checkpoint)
    assert sum(int(str(each["sessions"])) for each in found) == WRONG.sum()
    for each in found:
        assert each["verdict"] is None
        examples = each["examples"]
        assert isinstance(examples, list)
        row = int(examples[0]["session"].removeprefix("s"))
        assert WRONG[row]
        assert len(examples[0]["events"]) == len(SESSIONS[row])
    shown = logmamba("verdicts", "list", "--checkpoint", checkpoint).stdout
    for each in found:
        assert str(each["family"]) in shown
    assert "set aside" in shown


def test_answers_of_a_file_change_scores_at_once(checkpoint: Path, tmp_path: Path) -> None:
    before = records(checkpoint, tmp_path)
    assert {record["severity"] for record in before} == {"normal", "warning"}
    failed, copies = family_with(checkpoint, "failure_in"), family_with(checkpoint, "copy_of")
    answers = tmp_path / "answers.csv"
    answers.write_text(f"family,verdict\n{failed},anomalous\n{copies},normal\n")
    done = logmamba("verdicts", "learn", "--checkpoint", checkpoint, "--answers", answers)
    assert done.returncode == 0, done.stderr
    assert "2 verdicts learnt; checkpoint sha256:" in done.stderr
    for record, events in zip(records(checkpoint, tmp_path), stream(200, share=0.3, seed=4)[0], strict=True):
        if (events == FAILED).any():
            assert record["severity"] == "critical"
            assert "judged anomalous on 20" in str(record["reason"])
        elif (events == COPIED).sum() < 3:
            assert record["severity"] == "normal"
    verdicts = {str(each["family"]): each["verdict"] for each in families(checkpoint)}
    assert (verdicts[failed], verdicts[copies]) == ("anomalous", "normal")


def test_a_record_says_why_and_names_a_family_that_takes_an_answer(checkpoint: Path, tmp_path: Path) -> None:
    found = records(checkpoint, tmp_path)
    for record in found:
        jsonschema.validate(record, SCHEMA)
        assert ("reason" in record) == (record["severity"] != "normal")
    warning = next(record for record in found if record["severity"] == "warning")
    reason = warning["reason"]
    assert isinstance(reason, dict)
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"family": reason["family"], "verdict": "anomalous"}) + "\n")
    assert logmamba("verdicts", "learn", "--checkpoint", checkpoint, "--answers", answers).returncode == 0
    after = {record["session"]: record for record in records(checkpoint, tmp_path)}
    assert after[warning["session"]]["severity"] == "critical"


def test_explain_says_why_too(checkpoint: Path, tmp_path: Path) -> None:
    table = parsed(tmp_path / "later.tsv", stream(200, share=0.3, seed=4)[0])
    warning = next(record for record in records(checkpoint, tmp_path) if record["severity"] == "warning")
    arguments = ("explain", "--checkpoint", checkpoint, "--input", table, "--session", warning["session"])
    reason = warning["reason"]
    assert isinstance(reason, dict)
    assert str(reason["text"]) in " ".join(logmamba(*arguments).stdout.split())
    assert json.loads(logmamba(*arguments, "--json").stdout)["record"]["reason"] == reason


def test_the_terminal_asks_for_each_family_and_takes_letters(checkpoint: Path) -> None:
    names = [str(each["family"]) for each in families(checkpoint)]
    shown = io.StringIO()
    said = iter(["?", "anomalous", "n", "q"])
    answers = ask(checkpoint, Console(file=shown, width=200), lambda _prompt: next(said))
    assert answers == [Answer(names[0], "anomalous"), Answer(names[1], "normal")]
    assert f"{names[0]}: " in shown.getvalue()
    assert "for example s" in shown.getvalue()

    with patch.object(sys, "stdin", io.StringIO("n\nq\n")):
        done = logmamba("verdicts", "learn", "--checkpoint", checkpoint)
    assert "[n]ormal, [a]nomalous, [s]kip or [q]uit?" in done.stderr
    assert "1 verdict learnt" in done.stderr
    assert families(checkpoint)[0]["verdict"] == "normal"

    def closed(_prompt: str) -> str:
        raise EOFError

    assert ask(checkpoint, Console(file=shown), closed) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("family,odd\nF1,normal\n", "no column verdict"),
        ("family,verdict\nF1,perhaps\n", "line 2: verdict 'perhaps'; allowed: normal, anomalous, none"),
        ("family,verdict\n,normal\n", "line 2: names no family"),
        ('{"family": "F1", "verdict": "normal"}\n[]\n', "line 2: not a JSON object"),
        ('{"family": "F1"\n', "line 1: not JSON"),
    ],
)
def test_answers_that_are_none_are_refused_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "answers"
    path.write_text(text)
    with pytest.raises(InputFileError, match=message):
        read_answers(path)


def test_answers_without_a_verdict_are_skipped_and_none_takes_one_back(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    path.write_text("family,verdict\nF1,\nF2,none\n")
    assert read_answers(path) == [Answer("F2", None)]


def test_an_answer_on_no_family_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    before = (checkpoint / "manifest.json").read_bytes()
    path = tmp_path / "answers.csv"
    path.write_text("family,verdict\nF1,normal\nF99,normal\n")
    done = logmamba("verdicts", "learn", "--checkpoint", checkpoint, "--answers", path)
    assert done.returncode == 1
    assert "verdict on 'F99': there is no family F99" in done.stderr
    assert (checkpoint / "manifest.json").read_bytes() == before


def test_a_checkpoint_without_tolerances_has_no_families(tmp_path: Path) -> None:
    save_random(tmp_path / "old")
    with pytest.raises(CheckpointError, match="has no families"):
        ask(tmp_path / "old", Console(file=io.StringIO()), lambda _prompt: "q")
