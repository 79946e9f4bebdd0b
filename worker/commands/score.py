"""`logmamba score`: the worker's own pipeline on files, without Kafka; one score record a session."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detector.sessions_file import read_sessions
from detector.text.tokenizer import event_tokens
from worker.errors import RunError
from worker.files.log_files import check_inputs, parsed_session, partition_of, read_records
from worker.observability.metrics import Metrics
from worker.processing.pipeline import Output, Pipeline
from worker.processing.scorer import Scorer
from worker.settings.document import Settings

_PARSED_BATCH = 10_000


@dataclass(slots=True)
class ScoredFiles:
    """What a run did."""

    lines: int = 0
    sessions: int = 0
    warnings: int = 0
    critical: int = 0
    refused: int = 0  # lines that a worker would have sent to the dead-letter topic


def score_files(
    settings: Settings,
    scorer: Scorer,
    inputs: Sequence[Path],
    output: Path,
    progress: Callable[[int], object] = lambda _bytes: None,
) -> ScoredFiles:
    """Score every session of the input files; what is open at the end of a file closes as `end_of_input`.

    The records are written beside `output` and renamed when all are there. Early scores are not written.

    Raises:
        InputFileError: an input cannot be read.
        RunError: the output cannot be written.
        SettingsError: settings that do not fit the checkpoint, or an input of another kind than it was trained on.
    """
    parsed = check_inputs(inputs)
    settings = settings.model_copy(update={"scoring": settings.scoring.model_copy(update={"early": False})})
    pipeline = Pipeline(settings, scorer, Metrics(), parsed=parsed)
    done = ScoredFiles()
    try:
        handle, temporary = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    except OSError as error:
        raise RunError(f"{output}: cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            for path in inputs:
                outputs = _parsed(pipeline, scorer, path, done) if parsed else _raw(pipeline, path, done, progress)
                for each in outputs:
                    if each.severity is None:
                        done.refused += 1
                    else:
                        file.write((each.value or b"") + b"\n")
                        done.sessions += 1
                        done.warnings += each.severity == "warning"
                        done.critical += each.severity == "critical"
        Path(temporary).chmod(0o644)
        Path(temporary).replace(output)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return done


def _raw(pipeline: Pipeline, path: Path, done: ScoredFiles, progress: Callable[[int], object]) -> Iterator[Output]:
    partition = partition_of(path)
    pipeline.open(partition)
    for records in read_records(path, progress):
        done.lines += len(records.offsets)
        yield from pipeline.process([records])
    yield from pipeline.flush(partition, pipeline.position(partition), "end_of_input")
    pipeline.drop(partition)


def _parsed(pipeline: Pipeline, scorer: Scorer, path: Path, done: ScoredFiles) -> Iterator[Output]:
    rows = read_sessions(path)
    sequences = list(event_tokens(scorer.vocabulary, rows.events))
    partition = partition_of(path)
    pipeline.open(partition)
    for first in range(0, len(rows), _PARSED_BATCH):
        batch = range(first, min(first + _PARSED_BATCH, len(rows)))
        closed = [parsed_session(rows.sessions[row], sequences[row], row) for row in batch]
        done.lines += sum(len(sequences[row]) for row in batch)
        yield from pipeline.score_closed(partition, closed)
    pipeline.drop(partition)
