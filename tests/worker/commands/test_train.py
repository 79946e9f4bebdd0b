"""`logmamba train`: what it leaves beside the checkpoint, and what happens when it was killed."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from detector.checkpoint import load
from detector.errors import CheckpointError, TrainingError
from detector.quality.session_sketch import session_hash, share_known
from detector.sessions_file import read_sessions
from detector.text.tokenizer import event_tokens
from worker.commands.train import train_checkpoint
from worker.settings.document import Settings, load_settings

# The command line, killed when it has saved its training for the third time.
KILLS_ITSELF = """
import os, signal, sys
from worker.cli import main

rename, saves = os.replace, 0

def struck(*paths):
    global saves
    rename(*paths)
    saves += 1
    if saves == 3:
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = struck
main()
"""

_DEFAULTS = Settings()


@pytest.fixture
def parsed(tmp_path: Path) -> Path:
    rows = [f"s{number}\t{number % 7 == 0:d}\t5 22 5 11 {'9 9' if number % 7 else '7 7'}" for number in range(300)]
    path = tmp_path / "sessions.tsv"
    path.write_text("session_id\tlabel\tevents\n" + "\n".join(rows) + "\n")
    return path


def train(
    parsed: Path,
    output: Path,
    *,
    steps: int = 24,
    batch_tokens: int = 2048,
    restart: bool = False,
    settings: Settings = _DEFAULTS,
    terminal: bool = False,
) -> str:
    """What the console shows."""
    shown = io.StringIO()
    console = Console(file=shown, width=200, force_terminal=terminal)
    train_checkpoint(
        settings,
        [parsed],
        None,
        output,
        seed=0,
        size="tiny",
        steps=steps,
        batch_tokens=batch_tokens,
        restart=restart,
        console=console,
    )
    return shown.getvalue()


def test_a_step_takes_as_many_tokens_as_asked(tmp_path: Path) -> None:
    parsed = tmp_path / "sessions.tsv"  # all different, as equal ones are trained on once: 6 tokens each
    rows = [f"s{number}\t0\t5 {number} 22 11" for number in range(100)]
    parsed.write_text("session_id\tlabel\tevents\n" + "\n".join(rows) + "\n")
    for batch_tokens in (64, 128):
        output = tmp_path / f"model-{batch_tokens}"
        train(parsed, output, steps=2, batch_tokens=batch_tokens)
        first = reports(output)[0]
        assert isinstance(first["tokens"], int)
        assert isinstance(first["step"], int)
        assert batch_tokens - 6 < first["tokens"] / first["step"] <= batch_tokens


def severities(shown: str) -> list[str]:
    """Of the table's rows, with their thresholds."""
    return re.findall(r"^ +((?:early )?(?:warning|critical) [\d.]+) ", shown, re.MULTILINE)


def reports(output: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(f"{output}.training.jsonl").read_text().splitlines()]


def test_a_killed_training_is_refused_to_other_options_and_taken_up_or_started_over_by_the_same_command(
    tmp_path: Path, parsed: Path
) -> None:
    output = tmp_path / "model"
    arguments = ["train", "--input", str(parsed), "--output", str(output), "--steps", "24"]
    done = subprocess.run(
        [sys.executable, "-c", KILLS_ITSELF, *arguments], capture_output=True, check=False, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    killed = reports(output)
    assert [report["step"] for report in killed] == [2, 4]
    assert not output.exists()

    state = Path(f"{output}.training")
    left_behind = state.read_bytes()
    with pytest.raises(
        TrainingError, match=r"model.training is the state of another training \(options.next_token_steps"
    ):
        train(parsed, output, steps=25)
    assert state.read_bytes() == left_behind

    shown = train(parsed, output)
    assert "went on from a killed training" in shown
    assert not state.exists()
    both = reports(output)
    assert both[:2] == killed
    assert [report["step"] for report in both[2:5]] == [8, 10, 12]
    digest = re.findall("sha256:.{64}", shown)

    state.write_bytes(left_behind)
    shown = train(parsed, output, restart=True)
    assert "went on" not in shown
    assert [report["step"] for report in reports(output)[:2]] == [2, 4]
    assert re.findall("sha256:.{64}", shown) == digest


def test_every_report_is_a_json_line_and_the_console_states_time_rate_and_memory(tmp_path: Path, parsed: Path) -> None:
    shown = train(parsed, tmp_path / "model").splitlines()
    log = tmp_path / "model.training.jsonl"
    assert f"losses as they come: {log}" in shown
    [summary] = [line for line in shown if line.startswith("trained in ")]
    assert re.fullmatch(r"trained in 0:\d\d:\d\d, [\d,]+ tokens/s, with at most [\d,]+ MB of memory", summary)
    lines = reports(tmp_path / "model")
    assert {tuple(line) for line in lines} == {
        (
            *("stage", "step", "steps", "tokens", "loss", "validation_loss", "learning_rate"),
            *("seconds", "seconds_left", "tokens_per_s", "peak_memory_bytes"),
        )
    }
    assert [line["stage"] for line in lines] == sorted((str(line["stage"]) for line in lines), reverse=True)


def test_a_terminal_shows_the_time_left_of_the_stage_that_runs_and_of_no_other(tmp_path: Path, parsed: Path) -> None:
    shown = train(parsed, tmp_path / "model", terminal=True)
    frames = [frame for frame in shown.split("next token")[1:] if "classifier" in frame and "loss" in frame]
    assert len(frames) > 1
    for frame in frames:
        done, running = frame.split("classifier", 1)
        assert ("left" in done, "loss" in done, "validation" in done) == (False, True, True)
        assert "left" in running or "loss" not in running


def test_a_checkpoint_remembers_which_sessions_it_had(tmp_path: Path, parsed: Path) -> None:
    train(parsed, tmp_path / "model", steps=2)
    checkpoint, rows = load(tmp_path / "model"), read_sessions(parsed)
    tokens = list(event_tokens(checkpoint.vocabulary, rows.events))
    sketch = checkpoint.manifest.training.sketch
    assert sketch is not None
    for key, share in (("{}", 1.0), ("{}, another", 0.0)):
        known = (session_hash(key.format(each), row.tobytes()) for each, row in zip(rows.sessions, tokens, strict=True))
        assert share_known(sketch, known) == share


def test_what_is_learnt_from_and_how_good_it_is_are_said_in_words(tmp_path: Path, parsed: Path) -> None:
    shown = train(parsed, tmp_path / "labelled", steps=2)
    assert "300 sessions of 300 keys: " in shown
    assert "a label is one of a key" not in shown
    assert severities(shown) == ["warning 0.7", "critical 0.95", "early warning 0.7", "early critical 0.95"]
    assert "AUPRC" in shown
    parsed.write_text(re.sub(r"^s\d*(\d)\t", r"s\1\t", parsed.read_text(), flags=re.MULTILINE))
    shown = train(parsed, tmp_path / "few-keys", steps=2)
    assert "300 sessions of 10 keys: " in shown
    assert "a label is one of a key" in shown
    parsed.write_text(re.sub(r"\t[01]\t", "\t\t", parsed.read_text()))
    shown = train(parsed, tmp_path / "unlabelled", steps=2)
    assert severities(shown) == ["warning 0.7", "critical 0.95"]
    assert "AUPRC" not in shown


def test_what_normal_sessions_do_otherwise_at_another_time_is_said(tmp_path: Path) -> None:
    """In order of time, as their column says; later ones beat more often."""
    rows = [f"s{number}\t0\t{number}\t5 22 {'9 ' * (1 + 3 * (number >= 400))}11" for number in range(800)]
    path = tmp_path / "sessions.tsv"
    path.write_text("session_id\tlabel\torder\tevents\n" + "\n".join(rows[::2] + rows[1::2]) + "\n")
    shown = train(path, tmp_path / "model", steps=2)
    assert "% of the normal sessions are warnings: expect that" in shown
    assert "no alarm rests on how often these come, which changes with the time: 9" in shown
    assert load(tmp_path / "model").manifest.training.expected_warnings is not None


def test_the_model_is_trained_in_the_precision_of_the_settings(tmp_path: Path, parsed: Path) -> None:
    losses = []
    for precision in ("auto", "float32", "bfloat16"):
        settings = load_settings(None, ["model.device=cpu", f"model.precision={precision}"])
        train(parsed, tmp_path / precision, steps=2, settings=settings)
        losses.append([report["loss"] for report in reports(tmp_path / precision)])
    assert losses[0] == losses[1] != losses[2]


def test_too_few_labels_for_a_classifier_are_said(tmp_path: Path, parsed: Path) -> None:
    table = parsed.read_text().splitlines()
    parsed.write_text("\n".join([table[0], *(row for row in table[1:] if "\t0\t" in row), *table[1:16:7]]) + "\n")
    shown = train(parsed, tmp_path / "model", steps=2)
    assert "no classifier was trained: it takes 10 sessions labelled anomalous" in shown
    assert "(normals only)" in shown


def test_a_place_that_cannot_be_written_is_found_before_the_training(tmp_path: Path, parsed: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*file/model.training.jsonl: "):
        train(parsed, tmp_path / "file" / "model")
