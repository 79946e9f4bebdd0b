"""`logmamba train`: raw log files or parsed sessions to training and validation sessions and their vocabulary.

Raw logs are read twice: once to see which lines belong to the sessions that are learnt from, since only those may shape
the vocabulary, and once through the worker's own decoder and sessions with that vocabulary. A session is in the
validation part by a hash of its key and the seed, so every part of a long-lived key falls on the same side; where all
keys are on one side, as where a partition is the key, by a hash of its number among the sessions.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from detector.errors import InputFileError
from detector.quality.fingerprint import Pauses, Stream, fill_pauses
from detector.reading import ReadingRecord
from detector.scoring.pace import Pace, Timed
from detector.scoring.pace_learning import learn_pace
from detector.sessions_file import NO_ORDER, UNLABELLED, read_sessions
from detector.text.canonical import Mask
from detector.text.mining import learn_vocabulary
from detector.text.tokenizer import Tokenizer, event_tokens
from detector.text.vocabulary import Vocabulary
from detector.training.data import TrainingSessions
from worker.files.input_files import InputFiles
from worker.files.log_files import LogStream, closed_sessions
from worker.files.refusals import Refusals
from worker.processing.decoder import Decoder, Events
from worker.processing.fit import reading_record
from worker.processing.records import Records
from worker.processing.session_columns import ClosedSession
from worker.processing.session_rules import SessionRules
from worker.processing.session_state import Session
from worker.settings.document import Settings

VALIDATION_SHARE = 0.2

# Session key, event tokens, pauses before them where times are known.
_Row = tuple[str, npt.NDArray[np.int64], Pauses | None]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What `logmamba train` learns from.

    Attributes:
        vocabulary: learnt from the training part only.
        training, validation: sessions, split by key where there are several.
        pace: limits of pauses and bursts; None where there are none, as without times.
        pace_told: what is to be said of them, a line each.
        keys: how many keys the sessions have, those of both parts.
        unmatched_labels: labels whose session is not in the input.
        refused: what is to be said of lines that a worker would have sent to the dead-letter topic.
        reading: how the sessions came about; None for parsed ones.
        stream: all sessions, in the order in which they ended; None where rows stand for several.
        held_out: which of these are validation.
    """

    vocabulary: Vocabulary
    training: TrainingSessions
    validation: TrainingSessions
    pace: Pace | None
    pace_told: Sequence[str]
    keys: int
    unmatched_labels: int
    refused: Sequence[str]
    reading: ReadingRecord | None
    stream: Stream | None
    held_out: npt.NDArray[np.bool_]


def is_validation(key: str, seed: int) -> bool:
    """Whether the sessions of a key are kept for validation: stable across machines and runs."""
    return zlib.crc32(f"{seed}/{key}".encode()) % 1000 < VALIDATION_SHARE * 1000


def for_validation(keys: Iterable[str], seed: int) -> frozenset[str]:
    """The keys that are for validation; none where all would be, as a single one may be."""
    known = frozenset(keys)
    found = frozenset(key for key in known if is_validation(key, seed))
    return frozenset() if found == known else found


def _sides(keys: Sequence[str], seed: int) -> npt.NDArray[np.bool_]:
    """Which sessions are for validation, by their keys."""
    sides = np.array([is_validation(key, seed) for key in keys])
    if sides.any() and not sides.all():
        return sides
    return np.array([is_validation(f"{key}/{number}", seed) for number, key in enumerate(keys)])


def read_training_set(
    settings: Settings,
    inputs: InputFiles,
    labels: Mapping[str, int] | None,
    seed: int,
    progress: Callable[[int], object] = lambda _bytes: None,
) -> TrainingSet:
    """Read the sessions of the input files.

    Args:
        settings: `input`, `sessions` and `tokenizer` are used.
        inputs: raw logs, which are one stream, or parsed sessions.
        labels: 1 (anomalous) or 0 by session key; None for the label column of parsed sessions, or for none.
        seed: which keys are kept for validation.
        progress: told how many bytes of the files were read since the last call (raw logs are read twice).

    Raises:
        InputFileError: a file cannot be read, or the files hold no session.
    """
    if inputs.parsed:
        return _parsed(inputs.paths, labels, seed)
    stream = inputs.stream()
    # Sessions of every label shape the vocabulary: a template is a fact of the log, not of its labels.
    vocabulary = learn_vocabulary(lines_to_learn_from(settings, stream, progress, seed), _masks(settings))
    tokenizer = Tokenizer(vocabulary, unknown=settings.tokenizer.unknown)
    decoder = Decoder(settings.input, settings.sessions, tokenizer)
    rules = SessionRules.of(settings.sessions, vocabulary)
    rows: list[_Row] = []
    timed: list[Timed] = []
    refusals = Refusals(stream)
    for step in closed_sessions(stream, decoder, rules, progress):
        refusals.add(step)
        rows += _rows(step.closed, timed=inputs.times)
        if inputs.times:
            timed.append(step.closed.sessions.timed())
    refusals.require_events()
    reading = reading_record(settings, times=inputs.times)
    found = _split(vocabulary, rows, [1] * len(rows), labels, seed, refusals.described(), reading)
    if not timed:
        return found
    known = {} if labels is None else labels
    of_rows = np.array([known.get(key, UNLABELLED) for key, _, _ in rows], np.int8)
    pace, told = learn_pace(Timed.joined(timed), of_rows, found.held_out)
    return replace(found, pace=pace, pace_told=told)


def read_vocabulary_of(
    settings: Settings, inputs: InputFiles, progress: Callable[[int], object] = lambda _bytes: None
) -> tuple[Vocabulary, list[str]]:
    """Learn the vocabulary of all events of the input files.

    Args:
        settings: `input`, `sessions` and `tokenizer.masks` are used.
        inputs: raw logs, which are one stream, or parsed sessions.
        progress: told how many bytes of the files were read since the last call.

    Returns:
        The vocabulary, and what is to be said of lines that were refused.

    Raises:
        InputFileError: a file cannot be read, or no event in them says anything.
    """
    if inputs.parsed:
        events = [names for path in inputs.paths for names in read_sessions(path).events]
        return Vocabulary(tuple(dict.fromkeys(name for names in events for name in names)), kind="events"), []
    stream = inputs.stream()
    refusals = Refusals(stream)
    lines = session_lines(settings, stream, progress, lambda _key: True, refusals.decoded)
    vocabulary = learn_vocabulary(lines, _masks(settings))
    refusals.require_events()
    if not vocabulary.templates:
        raise InputFileError("no line of the input says anything: there is no template to learn")
    return vocabulary, refusals.described()


def _masks(settings: Settings) -> tuple[Mask, ...]:
    return tuple(Mask(mask.pattern, mask.name) for mask in settings.tokenizer.masks)


def session_lines(
    settings: Settings,
    stream: LogStream,
    progress: Callable[[int], object],
    wanted: Callable[[str], bool],
    decoded: Callable[[Records, Events], object] = lambda _records, _events: None,
) -> Iterator[pa.Array]:
    """The lines of the sessions whose keys are wanted, in order; `decoded` is told of all there are."""
    keeper = _LineKeeper()
    decoder = Decoder(settings.input, settings.sessions, keeper)
    for records in stream.read(progress):
        (events,) = decoder.decode([records])
        decoded(records, events)
        yield keeper.take([line for key, line, _, _ in events.rows() if wanted(key)])


def lines_to_learn_from(
    settings: Settings, stream: LogStream, progress: Callable[[int], object], seed: int
) -> Iterator[pa.Array]:
    """The lines that may shape templates: of keys that are not for validation and, where all are, of these."""
    some = False

    def wanted(key: str) -> bool:
        nonlocal some
        learnt = not is_validation(key, seed)
        some |= learnt
        return learnt

    yield from session_lines(settings, stream, progress, wanted)
    if not some:
        yield from session_lines(settings, stream, lambda _bytes: None, lambda _key: True)


class _LineKeeper:
    """Takes the tokenizer's place while there is no vocabulary: an event's "token" is its line's number."""

    def __init__(self) -> None:
        self._lines: list[pa.Array] = []
        self._count = 0

    def encode(self, lines: pa.Array) -> npt.NDArray[np.int64]:
        first, self._count = self._count, self._count + len(lines)
        self._lines.append(lines)
        return np.arange(first, self._count)

    def take(self, numbers: Sequence[int]) -> pa.Array:
        """These of the lines seen since the last call."""
        lines = pa.chunked_array(self._lines, pa.string()).take(pa.array(numbers, pa.int64())).combine_chunks()
        self._lines, self._count = [], 0
        return lines


def _parsed(inputs: Sequence[Path], labels: Mapping[str, int] | None, seed: int) -> TrainingSet:
    files = [read_sessions(path) for path in inputs]
    keys = [key for file in files for key in file.sessions]
    events = [names for file in files for names in file.events]
    held_out = for_validation(keys, seed)
    seen = dict.fromkeys(name for key, names in zip(keys, events, strict=True) if key not in held_out for name in names)
    vocabulary = Vocabulary(tuple(seen), kind="events")
    if labels is None:
        own = np.concatenate([file.labels for file in files])
        labels = {key: label for key, label in zip(keys, own.tolist(), strict=True) if label != UNLABELLED}
    counts = np.concatenate([file.counts for file in files])
    rows: list[_Row] = [(key, tokens, None) for key, tokens in zip(keys, event_tokens(vocabulary, events), strict=True)]
    in_time = _in_time([file.order for file in files])
    return _split(vocabulary, [rows[row] for row in in_time], counts[in_time].tolist(), labels, seed, (), None)


def _in_time(orders: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """All rows of files in order of time: file by file, and of those that know no better as they are."""
    rows = [
        np.arange(len(order)) if (order == NO_ORDER).any() else np.argsort(order, kind="stable") for order in orders
    ]
    starts = np.cumsum([0, *map(len, rows)])
    return np.concatenate([mine + start for mine, start in zip(rows, starts[:-1], strict=True)])


def _rows(closed: Sequence[ClosedSession], *, timed: bool) -> Iterator[_Row]:
    for each in closed:
        tokens = np.array(each.session.tokens, np.int64)
        yield each.session.key, tokens, pauses_of(each.session) if timed else None


def pauses_of(session: Session) -> Pauses:
    """The pauses before the events of a session, for `Stream.of`."""
    return fill_pauses(np.array(session.times, np.int64), np.array([len(session.times)]))


def _split(
    vocabulary: Vocabulary,
    rows: Sequence[_Row],
    counts: Sequence[int],
    labels: Mapping[str, int] | None,
    seed: int,
    refused: Sequence[str],
    reading: ReadingRecord | None,
) -> TrainingSet:
    labels = {} if labels is None else labels
    keys = {key for key, _, _ in rows}
    sides = _sides([key for key, _, _ in rows], seed)
    sequences = [tokens for _, tokens, _ in rows]
    pauses = [each for _, _, each in rows if each is not None]
    whole = TrainingSessions.of(
        sequences,
        [labels.get(key, UNLABELLED) for key, _, _ in rows],
        counts,
        [key for key, _, _ in rows],
    )
    return TrainingSet(
        vocabulary=vocabulary,
        training=whole.select(~sides),
        validation=whole.select(sides),
        pace=None,
        pace_told=(),
        keys=len(keys),
        unmatched_labels=len(labels.keys() - keys),
        refused=refused,
        reading=reading,
        stream=Stream.of(sequences, pauses or None) if max(counts, default=1) == 1 else None,
        held_out=sides,
    )
