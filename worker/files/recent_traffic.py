"""`logmamba adapt`: recent logs to sessions in the tokens of a checkpoint, and the templates that it lacks.

Raw logs are read twice, as for a training: once for the lines that the vocabulary has no template for, from which new
ones are learnt, and once through the worker's own decoder and sessions with both. Memory is bounded: of more than
`MOST_EVENTS` the sessions of half of the keys are left out, by a hash, and so on.
"""

from __future__ import annotations

import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from detector.errors import InputFileError
from detector.quality.fingerprint import Pauses
from detector.sessions_file import ParsedSessions, read_sessions
from detector.text.mining import MAX_TEMPLATES, learn_vocabulary
from detector.text.tokenizer import Tokenizer, event_tokens
from detector.text.vocabulary import UNK, Vocabulary
from detector.training.data import TrainingSessions
from worker.files.input_files import InputFiles
from worker.files.log_files import closed_sessions
from worker.files.refusals import Refusals
from worker.files.training_set import for_validation, lines_to_learn_from, pauses_of
from worker.processing.clock import NO_TIME
from worker.processing.decoder import Decoder
from worker.processing.session_rules import SessionRules
from worker.settings.document import Settings

MOST_EVENTS: Final = 2_000_000
LEAST_LINES: Final = 5
"""Lines that a new template has at least; what comes less often is as well left unknown."""

_DAY_MS: Final = 86_400_000

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RecentTraffic:
    """What was read.

    Attributes:
        sessions: in tokens of `vocabulary`, with their keys and without labels.
        days: the day on which each began, counted from 1970-01-01; today where events have no times.
        pauses: before the events of each (`detector.quality.fingerprint.fill_pauses`); None where events have no times.
        vocabulary: that of the checkpoint, and the new templates.
        share: of the keys whose sessions these are.
        refused: what is to be said of lines that a worker would have sent to the dead-letter topic.
    """

    sessions: TrainingSessions
    days: Integers
    pauses: Sequence[Pauses] | None
    vocabulary: Vocabulary
    share: float
    refused: Sequence[str]


def read_recent_traffic(
    settings: Settings,
    inputs: InputFiles,
    known: Vocabulary,
    *,
    most_templates: int,
    seed: int = 0,
    most_events: int = MOST_EVENTS,
    progress: Callable[[int], object] = lambda _bytes: None,
) -> RecentTraffic:
    """Read the sessions of the input files.

    Of records of topics, sessions that are still open at the end are left out, unless there are no other ones: they are
    beginnings.

    Args:
        settings: `input`, `sessions` and `tokenizer.unknown` are used.
        inputs: raw logs or records, which are one stream, or parsed sessions.
        known: the vocabulary of the checkpoint.
        most_templates: that are added; 0 for none.
        seed: which keys are kept for validation: their lines shape no template.
        most_events: of all sessions.
        progress: told how many bytes of the files were read since the last call (raw logs are read twice).

    Raises:
        InputFileError: a file cannot be read, or the files hold no session.
    """
    kept = _Kept(most_events)
    today = time.time_ns() // 1_000_000 // _DAY_MS
    room = max(min(most_templates, MAX_TEMPLATES - len(known.templates)), 0)
    if inputs.parsed:
        files = [read_sessions(path) for path in inputs.paths]
        vocabulary = _with_events(known, files, room, seed)
        for file in files:
            for key, tokens, count in zip(
                file.sessions, event_tokens(vocabulary, file.events), file.counts.tolist(), strict=True
            ):
                kept.add(key, tokens, today, count)
        return kept.found(vocabulary, ())
    stream = inputs.stream()
    vocabulary = known
    if room:
        tokenizer = Tokenizer(known, unknown=settings.tokenizer.unknown)
        lines = lines_to_learn_from(settings, stream, progress, seed)
        learnt = learn_vocabulary(_without_template(lines, tokenizer), known.masks, room)
        vocabulary = known.merged(_often_seen(learnt, room))
    decoder = Decoder(settings.input, settings.sessions, Tokenizer(vocabulary, unknown=settings.tokenizer.unknown))
    refusals, open_at_end = Refusals(stream), _Kept(most_events)
    for step in closed_sessions(stream, decoder, SessionRules.of(settings.sessions, vocabulary), progress):
        refusals.add(step)
        for closed in step.closed:
            session = closed.session
            day = today if session.opened_at == NO_TIME else session.opened_at // _DAY_MS
            cut = stream.placed and closed.closed_by == "end_of_input"
            pauses = pauses_of(session) if inputs.times else None
            (open_at_end if cut else kept).add(session.key, np.array(session.tokens, np.int64), day, pauses=pauses)
    refusals.require_events()
    return (kept if kept.events else open_at_end).found(vocabulary, refusals.described())


class _Kept:
    """Sessions of as many keys as fit."""

    def __init__(self, most_events: int) -> None:
        self.events = 0
        self._most = most_events
        self._share = 1.0
        self._rows: list[tuple[str, Integers, int, int, Pauses | None]] = []

    def add(self, key: str, tokens: Integers, day: int, count: int = 1, pauses: Pauses | None = None) -> None:
        """Keep a session, if its key is among those that are kept."""
        if not self._takes(key):
            return
        self._rows.append((key, tokens, day, count, pauses))
        self.events += len(tokens)
        while self.events > self._most and len(self._rows) > 1:
            self._share /= 2
            self._rows = [row for row in self._rows if self._takes(row[0])]
            self.events = sum(len(row[1]) for row in self._rows)

    def _takes(self, key: str) -> bool:
        return self._share == 1 or zlib.crc32(f"of these/{key}".encode()) < self._share * 2**32

    def found(self, vocabulary: Vocabulary, refused: Sequence[str]) -> RecentTraffic:
        """All that was kept.

        Raises:
            InputFileError: it is nothing.
        """
        if not self._rows:
            raise InputFileError("the input holds no session")
        keys, sequences, days, counts, pauses = zip(*self._rows, strict=True)
        sessions = TrainingSessions.of(sequences, None, counts, keys)
        known = None if any(each is None for each in pauses) else pauses
        return RecentTraffic(sessions, np.array(days, np.int64), known, vocabulary, self._share, refused)


def _without_template(batches: Iterable[pa.Array], tokenizer: Tokenizer) -> Iterator[pa.Array]:
    for lines in batches:
        yield lines.filter(pa.array(tokenizer.encode(lines) <= UNK))


def _often_seen(learnt: Vocabulary, most: int) -> Vocabulary:
    """Those of its templates that enough lines had, `most` at most, in their order."""
    often = [number for number, seen in enumerate(learnt.seen) if seen.lines >= LEAST_LINES]
    often = sorted(sorted(often, key=lambda number: -learnt.seen[number].lines)[:most])
    return Vocabulary(
        tuple(learnt.templates[number] for number in often),
        learnt.masks,
        learnt.kind,
        tuple(learnt.seen[number] for number in often),
    )


def _with_events(known: Vocabulary, files: Sequence[ParsedSessions], most: int, seed: int) -> Vocabulary:
    """Parsed sessions' vocabulary and the names of events that it lacks."""
    seen: Counter[str] = Counter()
    held_out = for_validation((key for file in files for key in file.sessions), seed)
    for file in files:
        for key, names, count in zip(file.sessions, file.events, file.counts.tolist(), strict=True):
            if key not in held_out:
                for name in names:
                    if known.token_of(name) is None:
                        seen[name] += count
    often = [name for name, count in seen.most_common(most) if count >= LEAST_LINES]
    return known.merged(Vocabulary(tuple(sorted(often, key=list(seen).index)), kind="events")) if often else known
