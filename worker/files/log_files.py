"""Log files as records and sessions: a line is a record, the file's name its topic, the line's number its offset.

Lines are counted from 0. A row of a file of parsed sessions is a session, and its number the offset of its events.
"""

from __future__ import annotations

import gzip
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from detector.errors import InputFileError
from detector.sessions_file import is_sessions_file
from worker.formats.times.years import FileYears
from worker.processing.decoder import Decoder, Events
from worker.processing.records import Partition, Records
from worker.processing.session_rules import SessionRules
from worker.processing.sessions import NO_TIME, RANK_EXPIRED, ClosedSession, Session, Sessions

_BATCH_LINES = 20_000


def partition_of(path: Path) -> Partition:
    """The partition that a file stands for."""
    return Partition(path.name, 0)


def check_inputs(paths: Sequence[Path]) -> bool:
    """Refuse what would be found out only after long work, or be ambiguous in the output.

    Returns:
        Whether the files hold parsed sessions (TSV) rather than raw lines.

    Raises:
        InputFileError: a file is missing or not a file, two have the same name, or raw and parsed ones are mixed.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            raise InputFileError(f"{path}: no such file")
        if path.name in seen:
            raise InputFileError(
                f"{path}: has the same name as {seen[path.name]}; sessions are told apart by the file's name"
            )
        seen[path.name] = path
    parsed = {is_sessions_file(path) for path in paths}
    if len(parsed) > 1:
        raise InputFileError("raw logs and parsed sessions (TSV) cannot be mixed in one run")
    return parsed.pop() if parsed else False


def read_records(path: Path, progress: Callable[[int], object] = lambda _bytes: None) -> Iterator[Records]:
    """The lines of a log file, plain or .gz, in batches.

    A line ends at LF; a CR before it is not part of the line. An empty line at the very end is none. Where times lack a
    year, the file's modification says which year its first line is of, unless `input.timestamp.year` does.

    Args:
        path: the file.
        progress: told how many bytes of the file (compressed ones for .gz) were read since the last call.

    Raises:
        InputFileError: the file cannot be read, or is not gzip though its name says so.
    """
    try:
        years = FileYears(path.stat().st_mtime_ns // 1_000_000)
        with path.open("rb") as file:
            if path.suffix == ".gz":
                with gzip.open(file) as lines:
                    yield from _batches(path.name, years, lines, file, progress)
            else:
                yield from _batches(path.name, years, file, file, progress)
    except (OSError, EOFError) as error:
        raise InputFileError(f"{path}: cannot be read: {error}") from error


def closed_sessions(
    path: Path, decoder: Decoder, rules: SessionRules, progress: Callable[[int], object] = lambda _bytes: None
) -> Iterator[tuple[Events | None, list[ClosedSession]]]:
    """The sessions of a log file by batches of lines: the batch's events and what they closed.

    At last comes what is open at the file's end and closes with it, beside None.

    Raises:
        InputFileError: as `read_records`.
    """
    sessions = Sessions(rules)
    end = 0
    for records in read_records(path, progress):
        (events,) = decoder.decode([records])
        yield events, sessions.process(events.keys, events.tokens, events.times, events.offsets)
        end = records.offsets[-1] + 1
    yield None, sessions.flush(end, "end_of_input")


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


def _batches(
    topic: str, years: FileYears, lines: Iterable[bytes], file: BinaryIO, progress: Callable[[int], object]
) -> Iterator[Records]:
    first, at = 0, 0
    while True:
        values: list[bytes | None] = []
        for line in lines:
            values.append(line.removesuffix(b"\n").removesuffix(b"\r"))
            if len(values) == _BATCH_LINES:
                break
        if not values:
            return
        yield Records(
            topic=topic,
            partition=0,
            offsets=list(range(first, first + len(values))),
            values=values,
            keys=None,
            timestamps=None,
            headers=None,
            years=years,
        )
        first += len(values)
        progress(file.tell() - at)
        at = file.tell()
