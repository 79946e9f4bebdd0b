"""The sessions of an evaluation: read as the worker reads them, equal ones kept once, scored."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from detector.quality.evaluation import EvaluatedSessions, SequenceScores
from detector.quality.score_curves import NEVER
from detector.quality.session_sketch import session_hash
from detector.scoring.scores import Sequences
from detector.sessions_file import UNLABELLED, read_sessions
from detector.text.tokenizer import event_tokens
from worker.files.input_files import open_inputs
from worker.files.log_files import closed_sessions
from worker.files.refusals import Refusals
from worker.observability.metrics import Metrics
from worker.processing.pipeline import Pipeline
from worker.processing.score_records import DECIMALS
from worker.processing.scorer import Scorer
from worker.processing.session_rules import SessionRules
from worker.settings.document import Settings

_SCORED_AT_ONCE = 2_000


@dataclass(frozen=True, slots=True)
class ReadSessions:
    """What the input files hold.

    Attributes:
        sessions: rows in the order in which the sessions closed.
        least: below which the final score of each of `sessions.sequences` cannot be, by its pace.
        keys: session key by its number in `sessions.key`.
        inputs: name of each input file, in the order of reading.
        places: what offsets count in: names of files, or partitions of records that know their place.
        place: which of them each row begins in, (n,).
        first_offset: line (from 0) of each row's first event, or the row of a file of parsed sessions, (n,).
        refused: how many lines a worker would have sent to the dead-letter topic.
        unmatched_labels: labels whose session is not in the input.
    """

    sessions: EvaluatedSessions
    least: Sequence[float]
    keys: Sequence[str]
    inputs: Sequence[str]
    places: Sequence[str]
    place: npt.NDArray[np.int64]
    first_offset: npt.NDArray[np.int64]
    refused: int
    unmatched_labels: int

    def hashes(self) -> Iterator[int]:
        """Of the sessions, as a training's sketch has them (`detector.quality.session_sketch`)."""
        for key, sequence in zip(self.sessions.key.tolist(), self.sessions.sequence.tolist(), strict=True):
            yield session_hash(self.keys[key], self.sessions.sequences[sequence].tobytes())


def read_evaluated_sessions(
    settings: Settings,
    scorer: Scorer,
    inputs: Sequence[Path],
    labels: Mapping[str, int] | None,
    progress: Callable[[int], object] = lambda _bytes: None,
    tell: Callable[[str], object] = lambda _line: None,
) -> ReadSessions:
    """Read the input files: the same sessions as `logmamba score` makes of them.

    Args:
        settings: `input`, `sessions` and `tokenizer` are used.
        scorer: its vocabulary makes the tokens.
        inputs: raw logs, which are one stream, or parsed sessions.
        labels: 1 (anomalous) or 0 by session key; None for the label column of parsed sessions, or for none.
        progress: told how many bytes of the files were read since the last call.
        tell: told, before reading, what does not quite fit, and after it which lines were refused, a line each.

    Raises:
        InputFileError: a file cannot be read, or the files hold no session.
        SettingsError: settings that do not fit the checkpoint or the input.
    """
    rows = _Rows()
    refused = 0
    files = open_inputs(settings, inputs)
    pipeline = Pipeline(settings, scorer, Metrics(), parsed=files.parsed, times=files.times)
    for note in (*files.notes, *pipeline.misfits):
        tell(note)
    if files.parsed:
        for path in files.paths:
            table = read_sessions(path)
            own = table.labels.tolist()
            for row, tokens in enumerate(event_tokens(scorer.vocabulary, table.events)):
                key = table.sessions[row]
                label = own[row] if labels is None else labels.get(key, UNLABELLED)
                rows.add(key, tokens.tobytes(), label, int(table.counts[row]), path.name, row)
            progress(path.stat().st_size)
    else:
        known = {} if labels is None else labels
        rules = SessionRules.of(settings.sessions, scorer.vocabulary)
        stream = files.stream()
        refusals = Refusals(stream)
        for step in closed_sessions(stream, pipeline.decoder, rules, progress):
            refusals.add(step)
            paced = scorer.paced(step.closed.sessions.timed())
            for number, session in enumerate(step.closed.sessions):
                label = known.get(session.key, UNLABELLED)
                origin, start = stream.origin(step.partition, session.first_offset)
                name = str(origin) if stream.placed else origin.topic
                least = paced[number].score if number in paced else 0.0
                rows.add(session.key, session.tokens.tobytes(), label, 1, name, session.first_offset - start, least)
        refusals.require_events()
        refused = refusals.count
        for line in refusals.described():
            tell(line)
    return ReadSessions(
        sessions=EvaluatedSessions(
            sequences=[np.frombuffer(tokens, np.int64) for tokens, _ in rows.sequences],
            sequence=np.asarray(rows.sequence),
            key=np.asarray(rows.key),
            labels=np.asarray(rows.labels),
            counts=np.asarray(rows.counts),
        ),
        least=[least for _, least in rows.sequences],
        keys=list(rows.keys),
        inputs=[path.name for path in files.paths],
        places=list(rows.places),
        place=np.asarray(rows.place),
        first_offset=np.asarray(rows.first_offset),
        refused=refused,
        unmatched_labels=0 if labels is None else len(labels.keys() - rows.keys.keys()),
    )


@dataclass(slots=True)
class _Rows:
    """Columns that grow; a million sessions take some 60 bytes each, and their keys and distinct sequences."""

    sequences: dict[tuple[bytes, float], int] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    sequence: array[int] = field(default_factory=lambda: array("q"))
    key: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("b"))
    counts: array[int] = field(default_factory=lambda: array("q"))
    places: dict[str, int] = field(default_factory=dict)
    place: array[int] = field(default_factory=lambda: array("q"))
    first_offset: array[int] = field(default_factory=lambda: array("q"))

    def add(
        self, key: str, tokens: bytes, label: int, count: int, place: str, first_offset: int, least: float = 0.0
    ) -> None:
        self.sequence.append(self.sequences.setdefault((tokens, least), len(self.sequences)))
        self.key.append(self.keys.setdefault(key, len(self.keys)))
        self.labels.append(label)
        self.counts.append(count)
        self.place.append(self.places.setdefault(place, len(self.places)))
        self.first_offset.append(first_offset)


def score_sequences(
    scorer: Scorer,
    sequences: Sequence[npt.NDArray[np.int64]],
    least: Sequence[float],
    thresholds: Mapping[str, float],
    progress: Callable[[int], object] = lambda _count: None,
) -> SequenceScores:
    """Score distinct sequences, rounded as score records are.

    Args:
        scorer: what to score with.
        sequences: int64 (events,) each.
        least: below which the final score of each cannot be.
        thresholds: by severity.
        progress: told how many sequences were scored since the last call.
    """
    final = np.empty(len(sequences))
    crossed = {severity: np.full(len(sequences), NEVER) for severity in thresholds}
    for start in range(0, len(sequences), _SCORED_AT_ONCE):
        part = sequences[start : start + _SCORED_AT_ONCE]
        columns = Sequences.of([tokens.tobytes() for tokens in part])
        for index, scores in enumerate(scorer.score_columns(columns, len(part)), start):
            final[index] = round(max(scores.final, least[index]), DECIMALS)
            early = scores.scores.astype(np.float64).round(DECIMALS)
            for severity, threshold in thresholds.items():
                reached = early >= threshold
                if reached.any():
                    crossed[severity][index] = int(reached.argmax()) + 1
        progress(len(part))
    return SequenceScores(final, crossed)
