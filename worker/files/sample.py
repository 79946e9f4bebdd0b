"""What the settings make of some lines: events, times, sessions, and what looks wrong about them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detector.errors import InputFileError
from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import Vocabulary
from worker.errors import SettingsError
from worker.files.input_files import open_inputs
from worker.files.log_files import closed_sessions
from worker.files.refusals import Refusals
from worker.processing.clock import NO_TIME
from worker.processing.decoder import Decoder
from worker.processing.score_records import iso_time
from worker.processing.session_rules import SessionRules
from worker.settings.document import Settings

_EARLIEST_MS = 631_152_000_000  # 1990; a log's clock that was never set says 1970, a format without a year 1900
_AHEAD_MS = 86_400_000
_MOSTLY = 0.5


@dataclass(slots=True)
class Sample:
    """What was made of a sample.

    Attributes:
        told: what is as it should be, a line each.
        doubtful: what may be wrong.
        wrong: what is.
    """

    told: list[str] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def try_sample(settings: Settings, vocabulary: Vocabulary | None, paths: Sequence[Path]) -> Sample:
    """Read a sample as a worker would.

    Args:
        settings: of the application.
        vocabulary: of its checkpoint; None where there is none yet.
        paths: log lines or records.

    Raises:
        InputFileError: a file cannot be read.
        SettingsError: settings that do not fit the checkpoint or the input.
    """
    files = open_inputs(settings, paths)
    if files.parsed:
        raise SettingsError(["--input: parsed sessions; allowed: log lines or records, as the worker gets them"])
    found = Sample(doubtful=list(files.notes))
    rules = settings.sessions
    if vocabulary is None:  # what would end a session is a template of it
        rules = rules.model_copy(update={"end_events": ()})
    known = vocabulary or Vocabulary(())
    tokenizer = Tokenizer(known, unknown=settings.tokenizer.unknown)
    decoder = Decoder(settings.input, rules, tokenizer)
    stream = files.stream()
    refusals = Refusals(stream)
    events = sessions = 0
    closed_by: Counter[str] = Counter()
    times: list[int] = []
    for step in closed_sessions(stream, decoder, SessionRules.of(rules, known)):
        refusals.add(step)
        if step.events is not None:
            events += len(step.events.keys)
            times += step.events.times[step.events.times != NO_TIME].tolist()
        sessions += len(step.closed)
        closed_by.update(each.closed_by for each in step.closed)
    try:
        refusals.require_events()
    except InputFileError as error:
        found.wrong.append(str(error))
        return found
    found.doubtful += refusals.described()
    ends = ", ".join(f"{name} {count:,}" for name, count in closed_by.most_common())
    found.told.append(f"{refusals.lines:,} lines, {events:,} events, {sessions:,} sessions ({ends})")
    if times:
        found.told.append(f"times from {iso_time(min(times))} to {iso_time(max(times))}")
        found.doubtful += _odd_times(times)
    if vocabulary is not None and tokenizer.unknown_lines > _MOSTLY * events:
        found.doubtful.append(
            f"model.checkpoint: {tokenizer.unknown_lines:,} of {events:,} events are unknown to it: was it trained on "
            "logs of this kind?"
        )
    return found


def _odd_times(times: Sequence[int]) -> Iterator[str]:
    for what, odd in (
        ("before 1990", [each for each in times if each < _EARLIEST_MS]),
        ("more than a day from now", [each for each in times if each > time.time() * 1000 + _AHEAD_MS]),
    ):
        if odd:
            yield (
                f"input.timestamp: {len(odd):,} of {len(times):,} times are {what}, such as {iso_time(odd[0])}: does "
                "its format fit the lines?"
            )
