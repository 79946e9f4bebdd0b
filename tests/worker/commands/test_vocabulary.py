"""`logmamba vocabulary`: what is in it, what differs between two, learning one and adding one to another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from detector.text.canonical import Mask
from detector.text.mining import learn_vocabulary
from detector.text.vocabulary import Vocabulary
from tests.detector.small_models import TEMPLATES, save_random
from tests.worker.command_line import logmamba

LINES = [f"10:00:{n:02} ERROR upload of file{n} failed: answer {code}" for n in range(40) for code in (404, 500)]


def written(path: Path, vocabulary: Vocabulary) -> Path:
    path.write_bytes(vocabulary.to_json())
    return path


@pytest.fixture
def older(tmp_path: Path) -> Path:
    return written(tmp_path / "older.json", learn_vocabulary([pa.array([*LINES, "10:00:00 INFO all done"])]))


def test_show_tells_ids_counts_and_why_words_stay(older: Path) -> None:
    done = logmamba("vocabulary", "show", older, "--json")
    assert done.returncode == 0
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(each["id"], each["text"], each["lines"]) for each in shown] == [
        (3, "<time> ERROR upload of file<num> failed: answer 404", 40),
        (4, "<time> ERROR upload of file<num> failed: answer 500", 40),
        (5, "<time> INFO all done", 1),
    ]
    assert shown[1]["decisive"] == {"ERROR": "severity", "failed": "state", "500": "code"}
    assert [each["example"] for each in shown] == [*LINES[:2], "10:00:00 INFO all done"]
    assert [(each["first"], each["last"]) for each in shown] == [(0, 78), (1, 79), (80, 80)]
    table = logmamba("vocabulary", "show", older).stdout
    assert "500 (code)" in " ".join(table.split())


def test_diff_tells_what_was_added_and_removed_and_whether_tokens_still_mean_the_same(
    tmp_path: Path, older: Path
) -> None:
    was = Vocabulary.from_json(older.read_bytes())
    longer = written(tmp_path / "longer.json", Vocabulary((*was.templates, "lamp off")))
    done = logmamba("vocabulary", "diff", older, longer)
    assert done.stdout.splitlines() == ["+ 6: lamp off", "the newer one only adds templates"]
    other = written(tmp_path / "other.json", Vocabulary((was.templates[2], was.templates[0])))
    assert logmamba("vocabulary", "diff", older, other).stdout.splitlines() == [
        "- 4: <time> ERROR upload of file<num> failed: answer 500",
        "= 3, now 4: <time> ERROR upload of file<num> failed: answer 404",
        "= 5, now 3: <time> INFO all done",
        "tokens of the older one mean something else in the newer one",
    ]
    found = json.loads(logmamba("vocabulary", "diff", older, other, "--json").stdout)
    assert [each["id"] for each in found["removed"]] == [4]


def test_what_is_no_vocabulary_is_refused_with_the_reason(tmp_path: Path, older: Path) -> None:
    odd = tmp_path / "odd.json"
    odd.write_text('{"schema": "logmamba.vocabulary/1"}')
    events = written(tmp_path / "events.json", Vocabulary(("E1",), kind="events"))
    empty = written(tmp_path / "empty.json", Vocabulary(()))
    masked = written(tmp_path / "masked.json", Vocabulary(("lamp off",), (Mask("of+", "off"),)))
    output = tmp_path / "output.json"
    for arguments, reason in (
        (("show", tmp_path), f"cannot read {tmp_path / 'vocabulary.json'}: No such file"),
        (("show", odd), "train the checkpoint anew"),
        (("diff", older, events), "one vocabulary is of lines, the other of events"),
        (("show", empty), "vocabulary has no templates"),
        (("merge", older, events, "--output", output), "one vocabulary is of lines, the other of events"),
        (
            ("merge", older, masked, "--output", output),
            "lines are masked otherwise in one ([]) than in the other (['off",
        ),
        (("merge", older, older, "--output", tmp_path), f"cannot write {tmp_path}: Is a directory"),
    ):
        done = logmamba("vocabulary", *arguments)
        assert done.returncode == 1
        assert reason in done.stderr
    assert not output.exists()


def test_learn_reads_lines_as_a_training_does_and_says_what_was_refused(tmp_path: Path) -> None:
    log, config, output = tmp_path / "app.log", tmp_path / "worker.yaml", tmp_path / "learned.json"
    log.write_text("".join(f"[{n}] lamp {'on' if n % 2 else 'off'} in room{n}\n" for n in range(40)) + "no key here\n")
    settings = {
        "sessions": {"key": {"regex": r"^\[(\d+)\]"}},
        "tokenizer": {"masks": [{"pattern": r"room\d+", "name": "room"}]},
    }
    config.write_text(yaml.safe_dump(settings))
    done = logmamba("vocabulary", "learn", "--config", config, "--input", log, "--output", output)
    assert done.returncode == 0, done.stderr
    assert "1 of 41 lines refused: no_key (sessions.key)" in done.stderr
    learned = Vocabulary.from_json(output.read_bytes())
    assert learned.templates == ("[<num>] lamp off in <room>", "[<num>] lamp on in <room>")
    assert [(each.lines, each.first, each.last, each.example) for each in learned.seen] == [
        (20, 0, 38, "[0] lamp off in room0"),
        (20, 1, 39, "[1] lamp on in room1"),
    ]
    log.write_text("\n\n")
    done = logmamba("vocabulary", "learn", "--config", config, "--input", log, "--output", output)
    assert done.returncode == 1
    assert "the input holds no session" in done.stderr


def test_merge_adds_what_is_new_and_changes_no_id(tmp_path: Path, older: Path) -> None:
    newer = written(
        tmp_path / "newer.json",
        learn_vocabulary(
            [pa.array(["10:00:00 INFO all done", "lamp off", *(line.replace("404", "503") for line in LINES)])]
        ),
    )
    output = tmp_path / "merged.json"
    done = logmamba("vocabulary", "merge", older, newer, "--output", output)
    assert done.stderr.split() == f"2 templates added to 3, in {output}".split()
    assert logmamba("vocabulary", "diff", older, output).stdout.splitlines() == [
        "+ 6: lamp off",
        "+ 7: <time> ERROR upload of file<num> failed: answer 503",
        "the newer one only adds templates",
    ]
    merged = output.read_bytes()
    assert logmamba("vocabulary", "merge", output, newer, "--output", output).stderr.startswith(
        "0 templates added to 5"
    )
    assert output.read_bytes() == merged
    # What only adds to another one is what comes of both.
    again = tmp_path / "again.json"
    logmamba("vocabulary", "merge", older, output, "--output", again)
    assert again.read_bytes() == merged


def test_a_checkpoint_shows_added_templates_and_scores_their_lines_as_before(tmp_path: Path) -> None:
    checkpoint, more, log = tmp_path / "app", tmp_path / "more", tmp_path / "app.log"
    save_random(checkpoint)
    log.write_text("Deleting the lamp of blk_1\nDeleting block blk_1 file b\n")
    newer = written(tmp_path / "newer.json", Vocabulary(("Deleting the lamp of blk_<num>", TEMPLATES[3])))
    done = logmamba("vocabulary", "merge", checkpoint, newer, "--output", more)
    assert done.stderr.startswith(f"1 templates added to {len(TEMPLATES)}"), done.stderr
    before, after = (scored(each, log) for each in (checkpoint, more))
    assert [each["unknown_events"] for each in (before, after)] == [1, 0]
    shown = {each["offset"]: each["template"] for each in after["top_events"]}
    assert shown == {0: "Deleting the lamp of blk_<num>", 1: TEMPLATES[3]}
    assert [after[name] for name in ("score", "surprise")] == [before[name] for name in ("score", "surprise")]
    explained = logmamba(*("explain", "--checkpoint", more, "--input", log, "--session", "blk_1"))
    assert "Deleting the lamp of blk_<num>" in explained.stdout


def scored(checkpoint: Path, log: Path) -> dict[str, Any]:
    output = checkpoint.with_suffix(".jsonl")
    done = logmamba("score", "--checkpoint", checkpoint, "--input", log, "--output", output)
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(output.read_text())
    return record


def test_a_checkpoint_is_not_replaced_by_a_file_nor_anything_else_by_a_checkpoint(tmp_path: Path, older: Path) -> None:
    checkpoint = tmp_path / "app"
    save_random(checkpoint)
    done = logmamba("vocabulary", "merge", checkpoint, older, "--output", older)
    assert done.returncode == 1
    assert f"cannot write checkpoint {older.resolve()}: a file of that name is there" in done.stderr
    done = logmamba("vocabulary", "merge", older, checkpoint, "--output", checkpoint)
    assert done.returncode == 1
    assert "Is a directory" in done.stderr
    assert logmamba("vocabulary", "show", checkpoint).returncode == 0
