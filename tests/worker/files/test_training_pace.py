"""What `logmamba train` learns of the times of log files, and what that says of other files of the same log."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from detector.scoring.paced import paced
from detector.text.tokenizer import Tokenizer
from worker.files.input_files import open_inputs
from worker.files.log_files import closed_sessions
from worker.files.training_set import TrainingSet, read_training_set
from worker.generator.log import GeneratedLog
from worker.processing.decoder import Decoder
from worker.processing.session_rules import SessionRules
from worker.settings.document import Settings, load_settings

TIMES = r"input.timestamp={pattern: '^(\d{6} \d{6})', format: '%y%m%d %H%M%S'}"
RULES = (r"sessions.key={regex: 'blk_-?\d+'}", "sessions.gap=2h")
LATER_S = 3_000


def use(*more: str) -> Settings:
    return load_settings(None, [*RULES, *more])


def write(path: Path, seed: int, blocks: int, slow: int | None = None) -> str:
    """A log without faults; from its fifth line on, the block of this number waits. Returns its name."""
    lines = list(GeneratedLog(blocks=blocks, seed=seed, anomaly_rate=0.0))
    name = "" if slow is None else list(dict.fromkeys(line.block for line in lines))[slow]
    seen, rows = 0, []
    for line in lines:
        seen += line.block == name
        at = line.time_ms // 1_000 + (LATER_S if line.block == name and seen > 4 else 0)
        rows.append((at, f"{time.strftime('%y%m%d %H%M%S', time.gmtime(at))}{line.text[13:]}"))
    rows.sort(key=lambda row: row[0])
    path.write_text("".join(f"{text}\n" for _, text in rows), encoding="utf-8")
    return name


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("logs") / "train.log"
    write(path, seed=1, blocks=900)
    return path


def learnt(log: Path, settings: Settings) -> TrainingSet:
    return read_training_set(settings, open_inputs(settings, [log]), None, seed=0)


def test_a_block_that_waits_stands_out_in_another_file_and_none_that_does_not(log: Path, tmp_path: Path) -> None:
    found = learnt(log, use(TIMES))
    assert found.pace is not None
    [told] = found.pace_told
    assert told.startswith("pauses and bursts: ")
    name = write(tmp_path / "other.log", seed=2, blocks=300, slow=150)
    stream = open_inputs(use(TIMES), [tmp_path / "other.log"]).stream()
    decoder = Decoder(use(TIMES).input, use(TIMES).sessions, Tokenizer(found.vocabulary))
    rules = SessionRules.of(use(TIMES).sessions, found.vocabulary)
    reasons = {
        step.closed[number].session.key: each.reason.text
        for step in closed_sessions(stream, decoder, rules)
        for number, each in paced(found.pace.unusual(step.closed.sessions.timed()), None, found.vocabulary).items()
    }
    assert list(reasons) == [name]
    assert re.search(r": a pause of 5\d min before it, after ", reasons[name]), "50 min and what it takes"


def test_lines_without_times_and_parsed_sessions_have_no_limits(log: Path, tmp_path: Path) -> None:
    found = learnt(log, use("sessions.gap=null", "sessions.max_age=null"))
    assert (found.pace, found.pace_told) == (None, ())
    table = tmp_path / "sessions.tsv"
    table.write_text("session_id\tevents\n" + "".join(f"s{number}\ta b c\n" for number in range(300)))
    found = learnt(table, use())
    assert (found.pace, found.pace_told) == (None, ())
