"""The setting `input.timestamp`: where the time of an event stands and how it is written."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import PlainSerializer, PlainValidator

from worker.formats.patterns import check_pattern
from worker.formats.pointers import check_pointer, check_pointers
from worker.formats.times.reader import ALLOWED, time_format
from worker.formats.times.timezones import Timezone, parse_offset
from worker.settings.values import Problem, refuse, written_pointers

_POINTER_FORMATS = ("iso8601", "epoch")
_KEYS = ("pointer", "pattern", "format", "timezone", "zones", "year")
_FORMS = f"null, a JSON pointer or a mapping of {', '.join(_KEYS)}"


@dataclass(frozen=True, slots=True)
class TimestampRule:
    """How the time of an event is read.

    Attributes:
        formats: names or `strptime` formats, tried in order for each text.
        pointers: places in a JSON document, the first of them where something stands.
        pattern: finds the text in a line: its first group, or the whole match. Where there is neither, each format
            looks for its own shape in the line.
        timezone: of times that name no zone.
        zones: offsets from UTC by abbreviation, such as `+02:00`.
        year: of the first line of a file, where times lack one; None: as its modification says.
    """

    formats: tuple[str, ...] = _POINTER_FORMATS
    pointers: tuple[str, ...] = ()
    pattern: str | None = None
    timezone: str = "UTC"
    zones: tuple[tuple[str, str], ...] = ()
    year: int | None = None

    def zone_offsets(self) -> dict[str, int]:
        """Offsets in ms by abbreviation."""
        return {name: parse_offset(offset) for name, offset in self.zones}


def _timestamp(value: object) -> TimestampRule | None:
    if value is None or isinstance(value, TimestampRule):
        return value
    if isinstance(value, str):
        try:
            return TimestampRule(pointers=(check_pointer(value),))
        except ValueError as error:
            raise ValueError(f"{error}; or a mapping of {', '.join(_KEYS)}; or null") from None
    if not isinstance(value, dict) or not value:
        raise ValueError(f"is no source of timestamps; allowed: {_FORMS}")
    if problems := list(_problems(value)):
        refuse(*problems)
    formats, zones = value.get("format", list(_POINTER_FORMATS)), value.get("zones") or {}
    return TimestampRule(
        formats=(formats,) if isinstance(formats, str) else tuple(formats),
        pointers=check_pointers(value.get("pointer")) if value.get("pointer") is not None else (),
        pattern=value.get("pattern"),
        timezone=value.get("timezone", "UTC"),
        zones=tuple(zones.items()),
        year=_year(value.get("year")),
    )


def _year(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch("[0-9]{4}", value):
        value = int(value)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 1970 <= value <= 9998):
        raise ValueError("is not a year from 1970 to 9998, or null")
    return value


def _problems(value: Mapping[str, object]) -> Iterator[Problem]:
    for key in value:
        if key not in _KEYS:
            yield Problem((key,), f"is not a part of a timestamp; allowed: {', '.join(_KEYS)}", value_shown=False)
    if value.get("pointer") is not None and value.get("pattern") is not None:
        yield Problem(("pattern",), "is given beside pointer; allowed: one of the two")
    checks: tuple[tuple[str, Callable[[object], object]], ...] = (
        ("pointer", check_pointers),
        ("pattern", check_pattern),
    )
    for key, check in checks:
        if value.get(key) is not None:
            try:
                check(value[key])
            except ValueError as error:
                yield Problem((key,), str(error))
    try:
        zone = value.get("timezone", "UTC")
        Timezone(zone if isinstance(zone, str) else "")
    except ValueError as error:
        yield Problem(("timezone",), str(error))
    try:
        _year(value.get("year"))
    except ValueError as error:
        yield Problem(("year",), str(error))
    zones: dict[str, int] = {}
    yield from _zone_problems(value.get("zones") or {}, zones)
    yield from _format_problems(value, zones)


def _zone_problems(written: object, zones: dict[str, int]) -> Iterator[Problem]:
    """What is wrong with a table of zones; the entries that are right are put into `zones`."""
    if not isinstance(written, dict):
        yield Problem(("zones",), "is not a table of abbreviations; allowed: such as {CET: '+01:00', CEST: '+02:00'}")
        return
    for name, offset in written.items():
        if not (2 <= len(name) <= 6 and name.isascii() and name.isalpha()):
            yield Problem(("zones", name), "is not of a zone's abbreviation; allowed: two to six letters, such as CEST")
            continue
        try:
            zones[name] = parse_offset(offset)
        except ValueError as error:
            zones[name] = 0  # so that a format which needs the table is not refused as well
            yield Problem(("zones", name), str(error))


def _format_problems(value: Mapping[str, object], zones: Mapping[str, int]) -> Iterator[Problem]:
    pointer, pattern = value.get("pointer"), value.get("pattern")
    if "format" not in value:
        if pointer is None:
            yield Problem(("format",), f"is missing; allowed: {ALLOWED}, or a list of them")
        return
    formats = value["format"] if isinstance(value["format"], list | tuple) else [value["format"]]
    if not formats:
        yield Problem(("format",), f"is an empty list; allowed: {ALLOWED}")
    for name in formats:
        which = f"holds {name!r}, which " if isinstance(value["format"], list | tuple) else ""
        try:
            read = time_format(name, zones)
        except ValueError as error:
            yield Problem(("format",), f"{which}{error}")
            continue
        if pointer is None and pattern is None and read.pattern is None:
            text = "needs a pattern beside it that finds the time in a line"
            yield Problem(("format",), f"{which}{text}")


def _written(rule: TimestampRule | None) -> object:
    if rule is None:
        return None
    pointer = written_pointers(rule.pointers) if rule.pointers else None
    if isinstance(pointer, str) and rule == TimestampRule(pointers=rule.pointers):
        return pointer
    [*formats] = rule.formats
    parts = {
        "pointer": pointer,
        "pattern": rule.pattern,
        "format": formats[0] if len(formats) == 1 else formats,
        "timezone": rule.timezone if rule.timezone != "UTC" else None,
        "zones": dict(rule.zones) or None,
        "year": rule.year,
    }
    return {key: part for key, part in parts.items() if part is not None}


_Members = Literal["pointer", "pattern", "format", "timezone", "zones", "year"]

Timestamp = Annotated[
    TimestampRule | None,
    PlainValidator(_timestamp, json_schema_input_type=str | dict[_Members, Any] | None),
    PlainSerializer(_written, when_used="json"),
]
