"""Log files as one stream of records and its sessions, as a worker sees a topic.

A line is a record, and so are several that are joined to one event (`worker.files.joined_lines`), at the place of the
first; an event never goes over files. Files that are given together are one stream, read one after the other, so that a
session may go over several (rotated logs). Its topic is the name of the file in which it begins, its partition 0, and
offsets are numbers of lines from 0 in that file; where the session goes on in the next file, so does the count. Records
that say where in Kafka they stood (`worker.files.record_files`) keep that place, and every partition is a stream of its
own.

A row of a file of parsed sessions is a session, and its number the offset of its events.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from detector.errors import InputFileError
from worker.files.joined_lines import joined_lines
from worker.files.open_files import lines_of
from worker.files.record_files import has_places, read_record_file
from worker.formats.times.years import FileYears
from worker.processing.clock import NO_TIME
from worker.processing.decoder import Events
from worker.processing.records import Partition, Records
from worker.processing.session_columns import RANK_EXPIRED, ClosedSession, ClosedSessions
from worker.processing.session_rules import SessionRules
from worker.processing.session_state import Session
from worker.processing.sessions import Sessions
from worker.processing.token_decoder import AnyDecoder
from worker.settings.sections import InputSettings

_BATCH_LINES = 20_000


def partition_of(path: Path) -> Partition:
    """The partition that a file stands for."""
    return Partition(path.name, 0)


def read_records(
    path: Path,
    progress: Callable[[int], object] = lambda _bytes: None,
    settings: InputSettings | None = None,
) -> Iterator[Records]:
    """The lines of a log file, plain or compressed with gzip, in batches.

    A line ends at LF; a CR before it is not part of the line. An empty line at the very end is none. Where times lack a
    year, the file's modification says which year its first line is of, unless `input.timestamp.year` does.

    Args:
        path: the file.
        progress: told how many bytes of the file (compressed ones for gzip) were read since the last call.
        settings: whether lines are joined to events, and how; None: each is a record.

    Raises:
        InputFileError: the file cannot be read.
    """
    topic, partition = partition_of(path)
    years = years_of(path)
    lines = lines_of(path, _BATCH_LINES, progress)
    for numbers, values, counts in joined_lines(lines, settings):
        yield Records(
            topic=topic,
            partition=partition,
            offsets=numbers,
            values=list(values),
            keys=None,
            timestamps=None,
            headers=None,
            years=years,
            line_counts=counts,
        )


def years_of(path: Path) -> FileYears:
    """What finds the years that the times of a file's lines lack.

    Raises:
        InputFileError: the file is not there.
    """
    try:
        return FileYears(path.stat().st_mtime_ns // 1_000_000)
    except OSError as error:
        raise InputFileError(f"{path}: cannot be read: {error}") from error


class LogStream:
    """Files of log lines, or of records, as one stream.

    Args:
        paths: at least one, in the order of their contents.
        settings: whether lines are joined to events, and how.
        records: they hold records, all with their places or all without.

    Attributes:
        placed: the records know where in Kafka they stood.
        moves: whether a session's offsets in the stream may be others than those of its score record.

    Raises:
        InputFileError: a file cannot be read.
    """

    def __init__(self, paths: Sequence[Path], settings: InputSettings, *, records: bool = False) -> None:
        self._paths = paths
        self._read_file = read_record_file if records else partial(read_records, settings=settings)
        self.placed = records and has_places(paths[0])
        self.moves = len(paths) > 1 and not self.placed
        self._starts: list[int] = []  # of the files begun so far, the number of the first line in the stream

    def read(self, progress: Callable[[int], object] = lambda _bytes: None) -> Iterator[Records]:
        """The records from the first one on, in batches; their offsets are those in the stream (see `origin`).

        Raises:
            InputFileError: a file cannot be read.
        """
        self._starts = []
        years = years_of(self._paths[0])  # the years of one file follow from those of the file before
        lines = 0
        for path in self._paths:
            self._starts.append(lines)
            for records in self._read_file(path, progress):
                lines += records.lines
                yield records if self.placed else self._moved(records, years)

    def origin(self, partition: Partition, first_offset: int) -> tuple[Partition, int]:
        """Where a session of the stream begins: the partition of its score record, and what its offsets are less there.

        Args:
            partition: of the stream.
            first_offset: in it, of a record that was read.
        """
        if self.placed:
            return partition, 0
        file = bisect_right(self._starts, first_offset) - 1
        return partition_of(self._paths[file]), self._starts[file]

    def place(self, partition: Partition, offset: int) -> str:
        """Where a record stands, for people."""
        origin, start = self.origin(partition, offset)
        return f"{origin}, offset {offset}" if self.placed else f"{origin.topic}, line {offset - start + 1}"

    def _moved(self, records: Records, years: FileYears) -> Records:
        start, topic = self._starts[-1], self._paths[0].name
        offsets = np.asarray(records.offsets, np.int64) + start
        return replace(records, topic=topic, offsets=offsets, years=records.years and years)


class Step(NamedTuple):
    """What some records of a partition did, or the end of the input.

    Attributes:
        partition: of the stream.
        records, events: what was read, and the events in it; None at the end.
        closed: the sessions that closed, offsets in the stream.
    """

    partition: Partition
    records: Records | None
    events: Events | None
    closed: ClosedSessions


def closed_sessions(
    stream: LogStream, decoder: AnyDecoder, rules: SessionRules, progress: Callable[[int], object] = lambda _bytes: None
) -> Iterator[Step]:
    """The sessions of a stream by batches; at last, for each partition, what its end closes: it ends every wait.

    Raises:
        InputFileError: a file cannot be read.
    """
    partitions: dict[Partition, Sessions] = {}
    ends: dict[Partition, int] = {}
    for records in stream.read(progress):
        partition = Partition(records.topic, records.partition)
        sessions = partitions.setdefault(partition, Sessions(rules))
        (events,) = decoder.decode([records])
        yield Step(
            partition,
            records,
            events,
            sessions.process(events.keys, events.tokens, events.times, events.offsets),
        )
        ends[partition] = records.last_offset + 1
    for partition, sessions in partitions.items():
        yield Step(partition, None, None, sessions.flush(ends[partition], "end_of_input"))


def located(stream: LogStream, partition: Partition, closed: ClosedSession) -> tuple[Partition, ClosedSession]:
    """A session of a stream with the partition and the offsets of its score record."""
    session = closed.session
    origin, start = stream.origin(partition, session.first_offset)
    if not start:
        return origin, closed
    moved = Session.from_columns(
        key=session.key,
        tokens=session.tokens,
        offsets=array("q", [offset - start for offset in session.offsets]),
        times=session.times,
        opened_at=session.opened_at,
        last_at=session.last_at,
        order=session.order,
    )
    return origin, closed._replace(session=moved, cause_offset=closed.cause_offset - start)


def parsed_session(key: str, tokens: npt.NDArray[np.int64], row: int) -> ClosedSession:
    """A row of a file of parsed sessions, as the session that it says was closed."""
    session = Session.from_columns(
        key=key,
        tokens=array("q", tokens),
        offsets=array("q", [row]) * len(tokens),
        times=array("q", [NO_TIME]) * len(tokens),
        opened_at=NO_TIME,
        last_at=NO_TIME,
        order=row,
    )
    return ClosedSession(session, row, "end_of_input", RANK_EXPIRED)
