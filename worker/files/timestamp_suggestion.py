"""The setting `input.timestamp` that reads the times of some lines, found by trying the usual ways of writing one."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from worker.formats.pointers import written_path
from worker.formats.times.years import FileYears
from worker.processing.decoder import Decoder
from worker.processing.records import Records
from worker.settings.sections import InputSettings, SessionsSettings
from worker.settings.session_keys import SessionKey
from worker.settings.values import flow_yaml

_LEAST_SHARE = 0.9  # of the lines: continuation lines and a banner have no time
_EARLIEST_MS, _LATEST_MS = 631_152_000_000, 4_102_444_800_000  # 1990 and 2100
_DEPTH = 4

# What the usual abbreviations mean to most of those who write them, where a line has one after its time.
_ZONES: Mapping[str, str] = {
    "WET": "+00:00",
    "WEST": "+01:00",
    "BST": "+01:00",
    "CET": "+01:00",
    "CEST": "+02:00",
    "EET": "+02:00",
    "EEST": "+03:00",
    "MSK": "+03:00",
    "IST": "+05:30",
    "JST": "+09:00",
    "EST": "-05:00",
    "EDT": "-04:00",
    "CST": "-06:00",
    "CDT": "-05:00",
    "MST": "-07:00",
    "MDT": "-06:00",
    "PST": "-08:00",
    "PDT": "-07:00",
}
_ZONE_AFTER = re.compile(rb"\d\d:\d\d:\d\d(?:[.,]\d+)? ?([A-Z]{2,4})\b")

# Of those that read most of the lines the one that reads the most, and of several the first.
_TEXT_FORMS: Sequence[dict[str, object]] = (
    {"format": "iso8601"},
    {"pattern": r"\[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\]", "format": "%d/%b/%Y:%H:%M:%S %z"},
    {"pattern": r"\[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d\.\d{1,6})\]", "format": "%d/%b/%Y:%H:%M:%S.%f"},
    {"pattern": r"(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{1,6})", "format": "%Y/%m/%d %H:%M:%S.%f"},
    {"pattern": r"(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d)", "format": "%Y/%m/%d %H:%M:%S"},
    {"pattern": r"(\d\d/\d\d/\d\d \d\d:\d\d:\d\d)", "format": "%y/%m/%d %H:%M:%S"},
    {"pattern": r"\[(\d\d/[A-Z][a-z]{2}/\d{4} \d\d:\d\d:\d\d)\]", "format": "%d/%b/%Y %H:%M:%S"},
    {"pattern": r"(\d\d-[A-Z][a-z]{2}-\d{4} \d\d:\d\d:\d\d\.\d{1,6})", "format": "%d-%b-%Y %H:%M:%S.%f"},
    {"pattern": r"(\d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d\.\d{1,6})", "format": "%d %b %Y %H:%M:%S.%f"},
    {"pattern": r"(\d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d)", "format": "%d %b %Y %H:%M:%S"},
    {"pattern": r"([A-Z][a-z]{2} \d{1,2}, \d{4} \d{1,2}:\d\d:\d\d [AP]M)", "format": "%b %d, %Y %I:%M:%S %p"},
    {"pattern": r"(\d{1,2}/\d{1,2}/\d{4} \d{1,2}:\d\d:\d\d [AP]M)", "format": "%m/%d/%Y %I:%M:%S %p"},
    {"pattern": r"(\d{1,2}/\d{1,2}/\d{4} \d\d:\d\d:\d\d)", "format": "%d/%m/%Y %H:%M:%S"},
    {"pattern": r"(\d{1,2}/\d{1,2}/\d{4} \d\d:\d\d:\d\d)", "format": "%m/%d/%Y %H:%M:%S"},
    {"pattern": r"(\d{4}\.\d\d\.\d\d \d\d:\d\d:\d\d)", "format": "%Y.%m.%d %H:%M:%S"},
    {"pattern": r"(\d{8}T\d{6}Z)", "format": "%Y%m%dT%H%M%SZ"},
    {"pattern": r"(\d\d\.\d\d\.\d{4} \d\d:\d\d:\d\d)", "format": "%d.%m.%Y %H:%M:%S"},
    {"pattern": r"^(\d{6} \d{6})\b", "format": "%y%m%d %H%M%S"},
    {"pattern": r"^(\d{8} \d\d:\d\d:\d\d)\b", "format": "%Y%m%d %H:%M:%S"},
    {"pattern": r"^(\d{8}-\d{1,2}:\d{1,2}:\d{1,2}:\d{1,3})\b", "format": "%Y%m%d-%H:%M:%S:%L"},
    {"pattern": r"([A-Z][a-z]{2} [A-Z][a-z]{2} +\d{1,2} \d\d:\d\d:\d\d \d{4})", "format": "%a %b %d %H:%M:%S %Y"},
    {
        "pattern": r"([A-Z][a-z]{2} [A-Z][a-z]{2} +\d{1,2} \d\d:\d\d:\d\d\.\d{1,6} \d{4})",
        "format": "%a %b %d %H:%M:%S.%f %Y",
    },
    {
        "pattern": r"([A-Z][a-z]{2} [A-Z][a-z]{2} +\d{1,2} \d\d:\d\d:\d\d UTC \d{4})",
        "format": "%a %b %d %H:%M:%S UTC %Y",
    },
    {"pattern": r"^([A-Z][a-z]{2} +\d{1,2} \d{4} \d\d:\d\d:\d\d)\b", "format": "%b %d %Y %H:%M:%S"},
    {"format": "syslog"},
    {"pattern": r"^\*([A-Z][a-z]{2} +\d{1,2} \d\d:\d\d:\d\d(?:\.\d{1,6})?)", "format": "%b %d %H:%M:%S.%f"},
    {"format": "klog"},
    {"pattern": r"\baudit\((\d{10}\.\d{1,3}):", "format": "epoch"},
    {"format": "epoch"},
    {"pattern": r"(?:^|\s)(1\d{9})(?:\s|$)", "format": "epoch_s"},
    {"pattern": r"(\d{4}-\d\d-\d\d-\d\d\.\d\d\.\d\d\.\d{1,6})", "format": "%Y-%m-%d-%H.%M.%S.%f"},
    {"pattern": r"^(\d\d-\d\d \d\d:\d\d:\d\d\.\d{1,6})\b", "format": "%m-%d %H:%M:%S.%f"},
    {"pattern": r"^\[?(\d\d\.\d\d \d\d:\d\d:\d\d)\b", "format": "%m.%d %H:%M:%S"},
    {"pattern": r"^\[?(\d\d:\d\d:\d\d\.\d{1,6})\b", "format": "%H:%M:%S.%f"},
    {"pattern": r"^\[?(\d\d:\d\d:\d\d)\b", "format": "%H:%M:%S"},
)
# Names by which the time of an event goes, before members that happen to be times: ends of leases, times of birth.
_TIME_NAMES = frozenset(
    [
        *("time", "timestamp", "@timestamp", "ts", "t", "at", "date", "datetime", "eventtime", "timecreated"),
        *("timeunixnano", "log_time", "logtime", "event_time", "asctime", "when"),
    ]
)


class NoTokens:
    """Takes the tokenizer's place where only the times of events are looked at."""

    def encode(self, lines: pa.Array) -> npt.NDArray[np.int64]:
        """As many tokens as lines."""
        return np.zeros(len(lines), np.int64)


@dataclass(frozen=True, slots=True)
class FoundTimestamp:
    """A value of `input.timestamp`.

    Attributes:
        setting: as a settings file writes it.
        read: of how many of the lines it reads a likely time.
    """

    setting: object
    read: int


def find_timestamp(lines: Sequence[bytes], settings: InputSettings) -> FoundTimestamp | None:
    """The usual way of writing times that reads the most of the lines; None where none reads nine in ten.

    Args:
        lines: a sample.
        settings: how they are read otherwise.
    """
    values = [stripped for line in lines if (stripped := line.strip())]
    if not values:
        return None
    best: FoundTimestamp | None = None
    candidates: Iterable[object] = _pointers(values, settings) if settings.documents else _text_forms(values)
    for each in candidates:
        read = _likely_times(each, values, settings)
        if read >= _LEAST_SHARE * len(values) and (best is None or read > best.read):
            best = FoundTimestamp(each, read)
            if read == len(values):
                break
    return best


def suggested_timestamp(lines: Sequence[bytes], settings: InputSettings) -> str | None:
    """As `find_timestamp`, the setting's value in YAML."""
    found = find_timestamp(lines, settings)
    return None if found is None else flow_yaml(found.setting)


def _text_forms(values: Sequence[bytes]) -> Iterator[dict[str, object]]:
    """The forms, first of all with the zones whose abbreviations stand after the times of most lines."""
    found = [match[1].decode() for value in values if (match := _ZONE_AFTER.search(value))]
    known = {name: offset for name, offset in _ZONES.items() if name in found}
    if sum(name in known for name in found) > len(values) / 2:
        yield {"format": "iso8601", "zones": known}
    yield from _TEXT_FORMS


def _likely_times(timestamp: object, values: Sequence[bytes], settings: InputSettings) -> int:
    """In how many of the lines a worker with this `input.timestamp` would find likely times."""
    described = settings.model_dump(mode="json", by_alias=True)
    use = InputSettings.model_validate({**described, "timestamp": timestamp})
    decoder = Decoder(use, SessionsSettings(key=SessionKey("partition")), NoTokens())
    years = FileYears(time.time_ns() // 1_000_000)
    records = Records("sample", 0, list(range(len(values))), list(values), None, None, None, years)
    (events,) = decoder.decode([records])
    unread = {letter.index for letter in events.dead_letters}
    likely = events.offsets[(events.times >= _EARLIEST_MS) & (events.times < _LATEST_MS)]
    return len(set(likely.tolist()) - unread)


def _pointers(values: Sequence[bytes], settings: InputSettings) -> Sequence[str]:
    """To every member of the first of the objects that may be a time: those with a time's name first, in its order."""
    for value in values:
        try:
            found = [pointer for pointer, _ in members(orjson.loads(value), depth=_DEPTH)]
        except orjson.JSONDecodeError:
            continue
        if settings.split is not None:
            continue
        return sorted(found, key=lambda pointer: pointer.rsplit("/", 1)[1].lower() not in _TIME_NAMES)
    return []


def members(document: object, above: str = "", depth: int = 2) -> Iterator[tuple[str, object]]:
    """Every member of a document with its JSON pointer, outer ones before what is in them.

    Args:
        document: parsed.
        above: where it stands.
        depth: how many objects deep.
    """
    if isinstance(document, dict):
        for name, value in document.items():
            pointer = above + written_path((name,))
            yield pointer, value
            if depth > 1:
                yield from members(value, pointer, depth - 1)
