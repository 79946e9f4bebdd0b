"""The beginning of some log files, in memory, as the stream that a worker would read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from detector.errors import InputFileError
from detector.sessions_file import is_sessions_file
from worker.files.log_files import LogStream, years_of
from worker.files.record_files import is_record_file
from worker.processing.records import Partition, Records
from worker.settings.sections import InputSettings

MOST_LINES = 60_000
_PRINTED = 0x20
_BLANK_BYTES = b"\t\n\r\f\v\x1b"


class SampleStream(LogStream):
    """The first lines or records of some files, which can be read again and again.

    Args:
        paths: at least one, in the order of their contents.
        name: of all of them, for errors.
        settings: whether lines are joined to events, and how.

    Attributes:
        lines: how many there are.
        records: they are records of Kafka, which have keys, headers and times, rather than lines.
        values: of the lines that are not blank.

    Raises:
        InputFileError: a file is missing, empty, no text, or of a kind that is not read.
    """

    def __init__(self, paths: Sequence[Path], name: str, settings: InputSettings) -> None:
        for path in paths:
            if not path.is_file():
                raise InputFileError(f"{path}: {'is a folder; allowed: files' if path.is_dir() else 'no such file'}")
            if is_sessions_file(path):
                raise InputFileError(f"{path}: holds parsed sessions; allowed: log lines or records")
        kinds = {is_record_file(path) for path in paths}
        if len(kinds) > 1:
            raise InputFileError("raw logs and files of records cannot be mixed in one run")
        self.records = kinds == {True}
        super().__init__(paths, settings, records=self.records)
        self._kept: list[Records] = []
        self.lines = 0
        for records in super().read():
            self._kept.append(records)
            self.lines += records.lines
            if self.lines >= MOST_LINES:
                break
        if self.records:
            self._kept = _by_partition(self._kept)
        self.values = [value for records in self._kept for value in records.values if value and value.strip()]
        if not self.values:
            raise InputFileError(f"{name}: {'holds blank lines only' if self.lines else 'is empty'}")
        if self.records:
            return
        odd = sum(map(_is_binary, self.values))
        if odd > len(self.values) / 10:
            raise InputFileError(
                f"{name}: is no text: {odd:,} of {len(self.values):,} lines have control characters; "
                "allowed: text, plain or compressed with gzip"
            )

    def read(self, progress: Callable[[int], object] = lambda _bytes: None) -> Iterator[Records]:
        """The sample from its beginning."""
        years = years_of(self._paths[0])
        for records in self._kept:
            yield replace(records, years=records.years and years)
            progress(0)  # all of it is in memory

    @property
    def has_times(self) -> bool:
        """Whether records have timestamps of Kafka."""
        return any(at > 0 for records in self._kept if records.timestamps is not None for at in records.timestamps)

    @property
    def record_keys(self) -> list[bytes]:
        """The records' keys, without null."""
        return [key for records in self._kept for key in records.keys or () if key]

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """All headers of all records, without null."""
        return [
            (name, content)
            for records in self._kept
            for headers in records.headers or ()
            for name, content in headers or ()
            if content
        ]


def _by_partition(kept: Sequence[Records]) -> list[Records]:
    """The records of each partition, which is a stream of its own, in one piece."""
    parts: dict[Partition, list[Records]] = {}
    for records in kept:
        parts.setdefault(Partition(records.topic, records.partition), []).append(records)
    return [
        Records(
            topic=partition.topic,
            partition=partition.partition,
            offsets=[offset for part in run for offset in part.offsets],
            values=[value for part in run for value in part.values],
            keys=[key for part in run for key in part.keys or ()],
            timestamps=[at for part in run if part.timestamps is not None for at in part.timestamps],
            headers=[headers for part in run for headers in part.headers or ()],
        )
        for partition, run in parts.items()
    ]


def _is_binary(line: bytes) -> bool:
    return any(byte < _PRINTED and byte not in _BLANK_BYTES for byte in line.strip(b"\0")[:1000])
