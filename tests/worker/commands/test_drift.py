"""`logmamba drift` on files: what a worker would say at their end; and a training that makes it possible."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detector.checkpoint import load
from detector.quality.fingerprint import Fingerprint, Stream
from tests.detector.small_models import VOCABULARY, save_random
from tests.worker.command_line import logmamba

SETTINGS = ["--set", r"sessions.key={regex: 'blk_\d+'}", "--set", "sessions.max_events=3"]
TEXTS = ("Receiving block {} from h", "Received block {} of size 7", "Deleting block {} file f", "nobody ever said {}")


def log(path: Path, *sessions: tuple[int, tuple[int, ...]]) -> Path:
    """So many sessions of these texts, one after the other."""
    lines, number = [], 0
    for count, texts in sessions:
        for _ in range(count):
            number += 1
            lines += [TEXTS[text].format(f"blk_{number}") for text in texts]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of sessions that receive, have received and delete."""
    tokens = [VOCABULARY.token_of(VOCABULARY.templates[at]) for at in (0, 2, 3)]
    stream = Stream.of([np.array(tokens)] * 400)
    held_out = np.arange(400) % 2 == 0
    directory = tmp_path_factory.mktemp("drift") / "model"
    save_random(directory, fingerprint=Fingerprint.of(stream, np.full(400, np.nan), held_out))
    return directory


def test_files_like_the_training_are_ok_and_others_are_not(checkpoint: Path, tmp_path: Path) -> None:
    usual = log(tmp_path / "usual.log", (400, (0, 1, 2)))
    done = logmamba("drift", "--checkpoint", checkpoint, *SETTINGS, "--input", usual, "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["topics"]
    assert (found["topic"], found["verdict"], found["because"], found["moved"]) == ("usual.log", "ok", [], [])
    assert (found["sessions"], found["unknown"]) == (400, 0.0)

    new = log(tmp_path / "new.log", (300, (0, 1, 2)), (200, (0, 1, 3)))
    done = logmamba("drift", "--checkpoint", checkpoint, *SETTINGS, "--input", new, "--json")
    (found,) = json.loads(done.stdout)["topics"]
    assert (found["verdict"], found["because"]) == ("watch", ["tokens", "unknown"])
    assert found["unknown"] == found["new"] == 0.4
    assert {each["template"]: (each["before"], each["now"]) for each in found["moved"]} == {
        VOCABULARY.templates[3]: (1.0, 0.6),
        "lines that no template matches": (0.0, 0.4),
    }
    for text in ("watch", "for its tokens and unknown", "0% to  40% of sessions: lines that no template matches"):
        assert text in logmamba("drift", "--checkpoint", checkpoint, *SETTINGS, "--input", new).stdout


def test_few_sessions_are_too_few(checkpoint: Path, tmp_path: Path) -> None:
    few = log(tmp_path / "few.log", (40, (0, 1, 2)))
    done = logmamba("drift", "--checkpoint", checkpoint, *SETTINGS, "--input", few)
    assert "too few sessions" in done.stdout


def test_a_checkpoint_without_a_fingerprint_is_refused(tmp_path: Path) -> None:
    save_random(tmp_path / "old")
    few = log(tmp_path / "few.log", (40, (0, 1, 2)))
    done = logmamba("drift", "--checkpoint", tmp_path / "old", *SETTINGS, "--input", few)
    assert done.returncode == 1
    assert f"{tmp_path / 'old'} has no fingerprint: train again with this version" in done.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["--input", "a.log", "--since", "1d"], ["--config", "c.yaml", "--since", "soon"]]
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str]) -> None:
    assert logmamba("drift", *arguments).returncode == 2


def test_a_training_on_lines_keeps_templates_pauses_and_scores_of_its_sessions(tmp_path: Path) -> None:
    lines, later, model = tmp_path / "app.log", tmp_path / "later.log", tmp_path / "model"
    settings = ["--set", r"input.timestamp={pattern: '^(\d{6} \d{6})', format: '%y%m%d %H%M%S'}"]
    settings += ["--set", r"sessions.key={regex: 'blk_-?\d+'}", "--set", "sessions.gap=10m"]
    slow = tmp_path / "slow.log"
    changes = ((lines, ()), (later, ("--reworded", 0.3, "--after", "10m")), (slow, ("--slowdown", 2, "--after", "5m")))
    for seed, (path, change) in enumerate(changes, 1):
        generated = ["--lines", 25_000, "--seed", seed, *change, "--output", path]
        assert logmamba("generate", *generated).returncode == 0
    done = logmamba("train", *settings, "--input", lines, "--output", model, "--steps", 2)
    assert done.returncode == 0, done.stderr
    fingerprint = load(model).manifest.fingerprint
    assert fingerprint is not None
    assert set(fingerprint.tails) == {"tokens", "unknown", "lengths", "pauses", "scores"}
    assert 1_000 < fingerprint.sessions < 1_500
    for path, verdict in ((lines, "ok"), (later, "watch")):
        done = logmamba("drift", "--checkpoint", model, *settings, "--input", path, "--json")
        (found,) = json.loads(done.stdout)["topics"]
        assert found["verdict"] == verdict
    assert found["since"] is not None
    assert "2024-03-01T12:10" < found["since"] < "2024-03-01T12:14"
    done = logmamba("drift", "--checkpoint", model, *settings, "--input", slow, "--json")
    (found,) = json.loads(done.stdout)["topics"]
    assert (found["verdict"], found["because"]) == ("watch", ["pauses"])
    [indexed] = found["pauses"]
    assert "replica of" in indexed["template"]
    assert 1.5 < indexed["now_ms"] / indexed["before_ms"] < 4  # the lines' clock counts seconds
    done = logmamba("drift", "--checkpoint", model, *settings, "--input", slow)
    assert f"{indexed['before_ms']:,.0f} to {indexed['now_ms']:,.0f} ms before: " in done.stdout
