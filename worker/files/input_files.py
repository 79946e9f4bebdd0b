"""What the input files of a command hold, in which order they are read, and whether their events have times."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median_low

from detector.errors import InputFileError
from detector.sessions_file import is_sessions_file
from worker.errors import SettingsError
from worker.files.log_files import LogStream, years_of
from worker.files.open_files import last_lines
from worker.files.record_files import has_places, is_record_file
from worker.files.timestamp_suggestion import NoTokens, suggested_timestamp
from worker.processing.clock import NO_TIME
from worker.processing.decoder import Decoder
from worker.processing.records import Records
from worker.processing.score_records import iso_time
from worker.settings.document import Settings
from worker.settings.sections import InputSettings

_SAMPLE_EVENTS = 1_000
_FIRST_TIMES = (
    101  # one wrong clock among them, such as 1970 before the first contact with a time server, changes nothing
)
_ROTATED = re.compile(r"(?P<base>.+?)(?:\.(?P<number>\d{1,6}))?(?:\.gz)?")


@dataclass(frozen=True)
class InputFiles:
    """Files that are read together.

    Attributes:
        paths: in the order of reading.
        parsed: they hold parsed sessions rather than raw lines or records.
        times: the events have times.
        notes: what a user should know before they are read, a line each.
    """

    paths: tuple[Path, ...]
    parsed: bool
    times: bool
    notes: tuple[str, ...]
    _settings: InputSettings
    _records: bool

    def stream(self) -> LogStream:
        """The raw lines or records as one stream, to be read from its beginning.

        Raises:
            InputFileError: a file cannot be read.
        """
        return LogStream(self.paths, self._settings, records=self._records)


def open_inputs(settings: Settings, paths: Sequence[Path]) -> InputFiles:
    """Look into the files: refuse what would be found out only after long work, or be ambiguous in the output.

    Raw files are in the order of their times: of the first hundred events of each, the one in the middle. Where not
    every file tells a time, or `input.timestamp.year` says the year of the first, they are in the order given, but for
    the parts of a rotated log (app.log.2.gz, app.log.1, app.log), the highest number first.

    Args:
        settings: `input` and `sessions` are used.
        paths: the files.

    Raises:
        InputFileError: a file is missing, not a file, or of a kind that is not read; two have the same name; or kinds
            are mixed.
        SettingsError: the session's key is one that lines of a file do not have, or the settings are for token records.
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
    if _one_kind("raw logs and parsed sessions (TSV)", [is_sessions_file(path) for path in paths]):
        return InputFiles(tuple(paths), parsed=True, times=False, notes=(), _settings=settings.input, _records=False)
    if settings.input.tokens:
        raise SettingsError(
            [
                f"input.format: tokens, but {paths[0]} is to be read as lines; allowed: the settings with which "
                "logmamba rekey reads them"
            ]
        )
    records = _one_kind("raw logs and files of records", [is_record_file(path) for path in paths])
    if records:
        _one_kind("records with and without their places in Kafka", [has_places(path) for path in paths])
    elif settings.sessions.key.needs_records:
        raise SettingsError(
            [
                f"sessions.key: {settings.sessions.key}, but {paths[0]} holds lines, which have none; allowed: a file "
                "of records (`logmamba capture` writes one), or a key that stands in the line"
            ]
        )
    elif settings.input.only is not None and settings.input.only.source == "header":
        raise SettingsError(
            [
                f"input.only: header {settings.input.only.where}, but {paths[0]} holds lines, which have none; "
                "allowed: a file of records (`logmamba capture` writes one), a pointer or null"
            ]
        )
    begins = {path: _begins(settings, path, records=records) for path in paths}
    told = {path: time for path, time in begins.items() if time is not None}
    ordered = _rotated(paths)
    rule = settings.input.timestamp
    one_year = rule is not None and rule.year is not None  # said of the first file, whichever that is
    if not one_year and all(path in told or not path.stat().st_size for path in paths):
        ordered.sort(key=lambda path: told.get(path, 0))
    times = bool(told) or settings.input.timestamp is not None
    if not times:
        notes = tuple(_no_times(settings, ordered[0], records=records))
    else:
        notes = () if records else tuple(_overlaps(settings, ordered, told))
    return InputFiles(
        tuple(ordered), parsed=False, times=times, notes=notes, _settings=settings.input, _records=records
    )


def _one_kind(what: str, found: Sequence[bool]) -> bool:
    if any(found) and not all(found):
        raise InputFileError(f"{what} cannot be mixed in one run")
    return any(found)


def _begins(settings: Settings, path: Path, *, records: bool) -> int | None:
    """The time at which a file begins, in ms; None where its first lines tell none."""
    for batch in LogStream([path], settings.input, records=records).read():
        times = _times(settings, batch)[:_FIRST_TIMES]
        return median_low(times) if times else None
    return None


def _times(settings: Settings, records: Records) -> list[int]:
    (events,) = Decoder(settings.input, settings.sessions, NoTokens()).decode([records])
    found: list[int] = events.times[events.times != NO_TIME].tolist()
    return found


def _overlaps(settings: Settings, ordered: Sequence[Path], begins: Mapping[Path, int]) -> Iterator[str]:
    for earlier, later in pairwise(path for path in ordered if path in begins):
        lines = last_lines(earlier, _FIRST_TIMES)
        offsets = list(range(len(lines)))
        records = Records(earlier.name, 0, offsets, list(lines), None, None, None, years_of(earlier))
        ends = _times(settings, records)
        if ends and begins[later] < median_low(ends) - settings.sessions.max_future_skew_ms:
            yield (
                f"{later.name} begins at {iso_time(begins[later])}, long before {earlier.name} ends "
                f"({iso_time(median_low(ends))}): files are one stream, read one after the other, so logs that run "
                "side by side should be given one by one"
            )


def _rotated(paths: Sequence[Path]) -> list[Path]:
    first: dict[str, int] = {}
    ranks = {}
    for at, path in enumerate(paths):
        found = _ROTATED.fullmatch(path.name)
        base, number = (found["base"], int(found["number"] or 0)) if found else (path.name, 0)
        ranks[path] = first.setdefault(base, at), -number
    return sorted(paths, key=ranks.__getitem__)


def _no_times(settings: Settings, path: Path, *, records: bool) -> Iterator[str]:
    sessions = settings.describe()["sessions"]
    assert isinstance(sessions, dict)
    rules = " and ".join(f"sessions.{name} {sessions[name]}" for name in ("gap", "max_age") if sessions[name])
    if not rules:
        return
    first = next(LogStream([path], settings.input, records=records).read(), None)
    sample = [value for value in first.values[:_SAMPLE_EVENTS] if value is not None] if first is not None else []
    found = suggested_timestamp(sample, settings.input)
    cure = (
        f"this would read them: input.timestamp: {found}" if found else "where a line has one, input.timestamp names it"
    )
    yield (
        f"input.timestamp: null, so the lines of {path.name} have no times, and {rules} end no session here, as they "
        f"do in a worker; {cure}"
    )
