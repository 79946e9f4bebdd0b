"""`logmamba score`: the worker's own pipeline on files, without Kafka; one score record a session."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detector.sessions_file import read_sessions
from detector.text.tokenizer import event_tokens
from worker.errors import RunError
from worker.files.input_files import open_inputs
from worker.files.log_files import LogStream, parsed_session, partition_of
from worker.files.refusals import Refusals
from worker.observability.metrics import Metrics
from worker.processing.feedback import Feedback
from worker.processing.outputs import Output
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition
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
    tell: Callable[[str], object] = lambda _line: None,
    feedback: Feedback | None = None,
) -> ScoredFiles:
    """Score every session of the input files; what is open at the end of the input closes as `end_of_input`.

    The records are written beside `output` and renamed when all are there. Early scores are not written.

    Args:
        settings: of the application.
        scorer: scores event sequences; its vocabulary makes the tokens.
        inputs: raw logs, which are one stream, or parsed sessions.
        output: JSON lines.
        progress: told how many bytes of raw logs were read since the last call.
        tell: told, before reading, what does not quite fit, and after it which lines were refused, a line each.
        feedback: verdicts to judge by; None: none, and records name patterns where there is a `feedback.topic`.

    Raises:
        InputFileError: an input cannot be read, or the inputs hold no session.
        RunError: the output cannot be written.
        SettingsError: settings that do not fit the checkpoint or the input.
    """
    files = open_inputs(settings, inputs)
    settings = settings.model_copy(update={"scoring": settings.scoring.model_copy(update={"early": False})})
    if feedback is None and settings.feedback.topic is not None:
        feedback = Feedback()
    pipeline = Pipeline(settings, scorer, Metrics(), parsed=files.parsed, times=files.times, feedback=feedback)
    for note in (*files.notes, *pipeline.misfits):
        tell(note)
    done = ScoredFiles()
    try:
        handle, temporary = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    except OSError as error:
        raise RunError(f"{output}: cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            scored = (
                _parsed(pipeline, scorer, files.paths, done)
                if files.parsed
                else _raw(pipeline, files.stream(), done, progress, tell)
            )
            for value, severity in scored:
                file.write(value + b"\n")
                done.sessions += 1
                done.warnings += severity == "warning"
                done.critical += severity == "critical"
        Path(temporary).chmod(0o644)
        Path(temporary).replace(output)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return done


_Scored = Iterator[tuple[bytes, str]]  # value and severity


def _raw(
    pipeline: Pipeline,
    stream: LogStream,
    done: ScoredFiles,
    progress: Callable[[int], object],
    tell: Callable[[str], object],
) -> _Scored:
    refusals = Refusals(stream)
    pipeline.when_decoded = refusals.decoded
    pipeline.origin = stream.origin if stream.moves else None
    partitions: dict[Partition, None] = {}
    for records in stream.read(progress):
        partition = Partition(records.topic, records.partition)
        if partition not in partitions:
            partitions[partition] = None
            pipeline.open(partition)
        yield from _records(pipeline.process([records]))
    for partition in partitions:
        yield from _records(pipeline.flush(partition, pipeline.position(partition), "end_of_input"))
        pipeline.drop(partition)
    done.lines, done.refused = refusals.lines, refusals.count
    refusals.require_events()
    for line in refusals.described():
        tell(line)


def _records(outputs: Iterable[Output]) -> _Scored:
    for each in outputs:
        if each.severity is not None:
            yield each.value or b"", each.severity


def _parsed(pipeline: Pipeline, scorer: Scorer, paths: Sequence[Path], done: ScoredFiles) -> _Scored:
    for path in paths:
        rows = read_sessions(path)
        sequences = list(event_tokens(scorer.vocabulary, rows.events))
        partition = partition_of(path)
        pipeline.open(partition)
        for first in range(0, len(rows), _PARSED_BATCH):
            batch = range(first, min(first + _PARSED_BATCH, len(rows)))
            closed = [parsed_session(rows.sessions[row], sequences[row], row) for row in batch]
            done.lines += sum(len(sequences[row]) for row in batch)
            for each in pipeline.score_closed(partition, closed):
                yield each.value or b"", each.severity or ""
        pipeline.drop(partition)
