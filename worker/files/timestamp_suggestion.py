"""The setting `input.timestamp` that reads the times of some lines, found by trying the usual ways of writing one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from worker.formats.times.years import FileYears
from worker.processing.decoder import Decoder
from worker.processing.records import Records
from worker.settings.sections import InputSettings, SessionsSettings
from worker.settings.session_keys import SessionKey

_LEAST_SHARE = 0.9  # of the lines: continuation lines and a banner have no time
_EARLIEST_MS, _LATEST_MS = 631_152_000_000, 4_102_444_800_000  # 1990 and 2100

# The first that reads most lines is taken.
_TEXT_FORMS: Sequence[dict[str, str]] = (
    {"format": "iso8601"},
    {"pattern": r"\[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\]", "format": "%d/%b/%Y:%H:%M:%S %z"},
    {"pattern": r"(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d)", "format": "%Y/%m/%d %H:%M:%S"},
    {"pattern": r"(\d\d/\d\d/\d\d \d\d:\d\d:\d\d)", "format": "%y/%m/%d %H:%M:%S"},
    {"pattern": r"^(\d{6} \d{6})\b", "format": "%y%m%d %H%M%S"},
    {"pattern": r"([A-Z][a-z]{2} [A-Z][a-z]{2} +\d{1,2} \d\d:\d\d:\d\d \d{4})", "format": "%a %b %d %H:%M:%S %Y"},
    {"format": "syslog"},
    {"format": "klog"},
)


class NoTokens:
    """Takes the tokenizer's place where only the times of events are looked at."""

    def encode(self, lines: pa.Array) -> npt.NDArray[np.int64]:
        """As many tokens as lines."""
        return np.zeros(len(lines), np.int64)


def suggested_timestamp(lines: Sequence[bytes], settings: InputSettings) -> str | None:
    """The setting's value in YAML, None where no usual way of writing a time reads nine lines in ten.

    Args:
        lines: a sample.
        settings: how they are read otherwise.
    """
    values = [stripped for line in lines if (stripped := line.strip())]
    if not values:
        return None
    candidates: Iterable[object] = _pointers(values) if settings.documents else _TEXT_FORMS
    found = next((each for each in candidates if _reads_most(each, values, settings)), None)
    if isinstance(found, dict):
        quoted = (
            f"{name}: '{value}'" if "%" in value or name == "pattern" else f"{name}: {value}"
            for name, value in found.items()
        )
        return f"{{{', '.join(quoted)}}}"
    return None if found is None else str(found)


def _reads_most(timestamp: object, values: Sequence[bytes], settings: InputSettings) -> bool:
    """Whether a worker with this `input.timestamp` would find likely times in most of the lines."""
    described = settings.model_dump(mode="json", by_alias=True)
    use = InputSettings.model_validate({**described, "timestamp": timestamp})
    decoder = Decoder(use, SessionsSettings(key=SessionKey("partition")), NoTokens())
    years = FileYears(time.time_ns() // 1_000_000)
    records = Records("sample", 0, list(range(len(values))), list(values), None, None, None, years)
    (events,) = decoder.decode([records])
    likely = {at for at, when in zip(events.offsets, events.times, strict=True) if _EARLIEST_MS <= when < _LATEST_MS}
    return len(likely) >= _LEAST_SHARE * len(values)


def _pointers(values: Sequence[bytes]) -> Iterable[str]:
    """To every member of the first of the objects, in its order."""
    for value in values:
        try:
            return [pointer for pointer, _ in _members(orjson.loads(value))]
        except orjson.JSONDecodeError:
            continue
    return []


def _members(document: object, above: str = "", depth: int = 2) -> Iterator[tuple[str, object]]:
    if isinstance(document, dict):
        for name, value in document.items():
            pointer = f"{above}/{str(name).replace('~', '~0').replace('/', '~1')}"
            yield pointer, value
            if depth > 1:
                yield from _members(value, pointer, depth - 1)
