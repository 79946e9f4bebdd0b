"""The setting `input.timestamp` that reads the times of some lines, found by trying the usual ways of writing one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import orjson
import pyarrow as pa

from worker.formats import times
from worker.formats.patterns import LinePattern
from worker.formats.times import TimeFormat

_LEAST_SHARE = 0.9  # of the lines: continuation lines and a banner have no time
_EARLIEST_MS, _LATEST_MS = 631_152_000_000, 4_102_444_800_000  # 1990 and 2100

# A pattern and the format that reads what it finds; the first that reads most lines is taken.
_TEXT_FORMS = [
    *(
        (rf"(\d{{4}}-\d\d-\d\d{between}\d\d:\d\d:\d\d{digits}{zone})", f"%Y-%m-%d{between}%H:%M:%S{fraction}{offset}")
        for between in ("T", " ")
        for digits, fraction in ((r"\.\d{1,6}", ".%f"), (r",\d{1,6}", ",%f"), ("", ""))
        for zone, offset in ((r"(?:Z|[+-]\d\d:?\d\d)", "%z"), (r" [+-]\d\d:?\d\d", " %z"), ("", ""))
    ),
    (r"\[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\]", "%d/%b/%Y:%H:%M:%S %z"),
    (r"(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d)", "%Y/%m/%d %H:%M:%S"),
    (r"(\d\d/\d\d/\d\d \d\d:\d\d:\d\d)", "%y/%m/%d %H:%M:%S"),
    (r"^(\d{6} \d{6})\b", "%y%m%d %H%M%S"),
    (r"([A-Z][a-z]{2} [A-Z][a-z]{2} +\d{1,2} \d\d:\d\d:\d\d \d{4})", "%a %b %d %H:%M:%S %Y"),
]


def suggested_timestamp(lines: Sequence[bytes], input_format: str) -> str | None:
    """The setting's value in YAML, None where no usual way of writing a time reads nine lines in ten.

    Args:
        lines: a sample.
        input_format: `input.format`.
    """
    texts = [text for line in lines if (text := line.decode(errors="replace").strip())]
    if not texts:
        return None
    return _pointer(texts) if input_format == "json" else _pattern(texts)


def _pattern(texts: Sequence[str]) -> str | None:
    column = pa.array(texts, pa.string())
    for pattern, layout in _TEXT_FORMS:
        read = TimeFormat(layout).parse_all(LinePattern(pattern).extract(column).to_pylist())
        if _mostly(sum(time is not None and _likely(time) for time in read), texts):
            return f"{{pattern: '{pattern}', format: '{layout}'}}"
    return None


def _pointer(texts: Sequence[str]) -> str | None:
    counts: dict[str, int] = {}
    for text in texts:
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError:
            continue
        for pointer, value in _members(document):
            try:
                counts[pointer] = counts.get(pointer, 0) + _likely(times.from_json(value))
            except ValueError:
                continue
    return next((pointer for pointer, count in counts.items() if _mostly(count, texts)), None)


def _members(document: object, above: str = "", depth: int = 2) -> Iterator[tuple[str, object]]:
    if isinstance(document, dict):
        for name, value in document.items():
            pointer = f"{above}/{str(name).replace('~', '~0').replace('/', '~1')}"
            yield pointer, value
            if depth > 1:
                yield from _members(value, pointer, depth - 1)


def _likely(time_ms: int) -> bool:
    return _EARLIEST_MS <= time_ms < _LATEST_MS


def _mostly(count: int, texts: Sequence[str]) -> bool:
    return count >= _LEAST_SHARE * len(texts)
