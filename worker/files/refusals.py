"""Lines that could not be read: how many by reason, an example of each, and the setting that is at fault."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from detector.errors import InputFileError
from worker.files.log_files import LogStream, Step
from worker.processing.decoder import Events
from worker.processing.lines import Reason
from worker.processing.records import Partition, Records

_AT_FAULT: Mapping[Reason, str] = {
    "not_utf8": "input.encoding",
    "empty": "a line without text",
    "null": "a record without a value",
    "no_key": "sessions.key",
    "bad_key": "sessions.key",
    "long_key": "sessions.key",
    "bad_json": "input.format",
    "no_message": "input.message",
    "bad_timestamp": "input.timestamp",
}


class Refusals:
    """Counts the lines of a stream, and those that a worker would have sent to the dead-letter topic.

    Attributes:
        lines: how many were read.
    """

    def __init__(self, stream: LogStream) -> None:
        self.lines = 0
        self._events = self._ignored = self._skipped = self._cut = 0
        self._stream = stream
        self._counts: Counter[Reason] = Counter()
        self._examples: dict[Reason, str] = {}

    @property
    def count(self) -> int:
        """How many were refused."""
        return self._counts.total()

    def add(self, step: Step) -> None:
        """Count what a step of the stream read."""
        if step.records is not None and step.events is not None:
            self.decoded(step.records, step.events)

    def decoded(self, records: Records, events: Events) -> None:
        """These records of the stream were decoded to these events."""
        self.lines += records.lines
        self._events += len(events.keys)
        self._ignored += events.ignored
        self._skipped += events.skipped
        self._cut += events.cut
        for letter in events.dead_letters:
            self._counts[letter.reason] += 1 if records.line_counts is None else records.line_counts[letter.index]
            if letter.reason not in self._examples:
                place = self._stream.place(
                    Partition(records.topic, records.partition), int(records.offsets[letter.index])
                )
                self._examples[letter.reason] = f"{place}: {letter.message}"

    def described(self) -> list[str]:
        """A line for each reason, the commonest first, and one for what was cut.

        Of a log line they show what a dead letter's header does.
        """
        told = [
            f"{count:,} of {self.lines:,} lines refused: {reason} ({_AT_FAULT[reason]}), as {self._examples[reason]}"
            for reason, count in self._counts.most_common()
        ]
        if self._cut:
            told.append(f"{self._cut:,} events are longer than input.max_line_bytes; nothing past it counts")
        return told

    def require_events(self) -> None:
        """Check that something came of the lines.

        Raises:
            InputFileError: with the reasons, if nothing did.
        """
        if self._events:
            return
        why = self.described()
        if self._ignored:
            why.append(
                f"{self._ignored:,} events have no key (sessions.key) and are left out (sessions.no_key: ignore)"
            )
        if self._skipped:
            why.append(f"{self._skipped:,} are another application's (input.only)")
        raise InputFileError(f"the input holds no session: {'; '.join(why) or 'it has no lines'}")
