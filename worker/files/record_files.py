"""Files of Kafka records, one JSON object a line: what `logmamba capture` writes, and what is trained and scored on.

    {"topic":"raw-logs","partition":3,"offset":120,"timestamp":1712031512304,"key":"blk_1",
     "headers":[["trace","7f3a"],["id",{"base64":"/w=="}]],"value":"081109 203615 148 INFO …"}

`value` is the record's value. `key`, `headers` and `timestamp` (Kafka's, whole milliseconds since 1970) may be left
out or null. Bytes that are UTF-8 are written as text, others as `{"base64": …}`; null is null. `headers` is a list of
pairs, or an object. `topic`, `partition` and `offset` say where the record stood in Kafka: all three in every line of a
file, or none of them; its lines are then the records of one partition, numbered from 0.

A file whose name ends in `.records.jsonl` or `.records.jsonl.gz` is one, and so is any whose first line is an object of
such members, `key` and `value` among them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import orjson

from detector.errors import InputFileError
from worker.files.open_files import lines_of, opened
from worker.processing.records import Partition, Records

SUFFIXES = (".records.jsonl", ".records.jsonl.gz")

_PLACE = ("topic", "partition", "offset")
_MEMBERS = frozenset([*_PLACE, "timestamp", "key", "headers", "value"])
_NO_TIMESTAMP = -1  # as Kafka says it
_BATCH_LINES = 20_000

_Header = tuple[str, bytes | None]
# Partition, offset, value, key, timestamp, headers.
_Row = tuple[Partition, int, bytes | None, bytes | None, int, list[_Header] | None]


def is_record_file(path: Path) -> bool:
    """Whether a file holds records rather than log lines.

    Raises:
        InputFileError: it cannot be read.
    """
    return path.name.endswith(SUFFIXES) or {"key", "value"} <= _first(path).keys() <= _MEMBERS


def has_places(path: Path) -> bool:
    """Whether the records of a file say where in Kafka they stood.

    Raises:
        InputFileError: it cannot be read.
    """
    return set(_PLACE) <= _first(path).keys()


def read_record_file(path: Path, progress: Callable[[int], object] = lambda _bytes: None) -> Iterator[Records]:
    """The records of a file in its order, runs of one partition at a time.

    Args:
        path: the file, plain or compressed with gzip.
        progress: told how many bytes of the file were read since the last call.

    Raises:
        InputFileError: the file cannot be read, or a line is no record.
    """
    placed = has_places(path)
    number = 0
    for lines in lines_of(path, _BATCH_LINES, progress):
        rows = []
        for line in lines:
            try:
                rows.append(_row(line, path.name, number, placed=placed))
            except ValueError as error:
                raise InputFileError(f"{path}, line {number + 1}: {error}") from None
            number += 1
        for partition, run in groupby(rows, lambda row: row[0]):
            _, offsets, values, keys, timestamps, headers = zip(*run, strict=True)
            yield Records(
                topic=partition.topic,
                partition=partition.partition,
                offsets=list(offsets),
                values=list(values),
                keys=list(keys),
                timestamps=list(timestamps),
                headers=list(headers),
            )


def write_records(file: BinaryIO, records: Records) -> None:
    """Append records, with their places.

    Raises:
        OSError: the file cannot be written.
    """
    count = len(records.offsets)
    columns = zip(
        map(int, records.offsets),
        [_NO_TIMESTAMP] * count if records.timestamps is None else map(int, records.timestamps),
        records.keys or [None] * count,
        records.headers or [None] * count,
        records.values,
        strict=True,
    )
    for offset, timestamp, key, headers, value in columns:
        document = {
            "topic": records.topic,
            "partition": records.partition,
            "offset": offset,
            "timestamp": None if timestamp <= _NO_TIMESTAMP else timestamp,
            "key": _written(key),
            "headers": [[name, _written(content)] for name, content in headers or ()],
            "value": _written(value),
        }
        file.write(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE))


def _first(path: Path) -> dict[str, object]:
    """The first line as an object, empty if it is none."""
    with opened(path) as (lines, _):
        try:
            found = orjson.loads(next(iter(lines), b""))
        except orjson.JSONDecodeError:
            return {}
    return found if isinstance(found, dict) else {}


def _row(line: bytes, name: str, number: int, *, placed: bool) -> _Row:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"not a record: {error}") from None
    if not isinstance(found, dict) or "value" not in found:
        raise ValueError("not a record: it has no member 'value'")
    if odd := found.keys() - _MEMBERS:
        raise ValueError(f"member {min(odd)!r} of a record; allowed: {', '.join(sorted(_MEMBERS))}")
    topic, partition, offset = (found.get(each) for each in _PLACE) if placed else (name, 0, number)
    if placed == set(_PLACE).isdisjoint(found) or not isinstance(topic, str):
        raise ValueError("topic, partition and offset; allowed: all three in every line, or none of them")
    timestamp = found.get("timestamp")
    return (
        Partition(topic, _whole("partition", partition)),
        _whole("offset", offset),
        _read("value", found["value"]),
        _read("key", found.get("key")),
        _NO_TIMESTAMP if timestamp is None else _whole("timestamp", timestamp),
        _headers(found.get("headers")),
    )


def _headers(value: object) -> list[_Header] | None:
    if value is None:
        return None
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
        raise ValueError("headers; allowed: a list of pairs [name, value], an object, or null")
    return [(name, _read("headers", content)) for name, content in pairs]


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str)


def _read(member: str, value: object) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, dict) and value.keys() == {"base64"}:
        try:
            return base64.b64decode(value["base64"], validate=True)
        except (TypeError, ValueError, binascii.Error):
            pass
    raise ValueError(f'{member}; allowed: text, {{"base64": …}} or null')


def _written(value: bytes | None) -> object:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _whole(member: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{member} {value!r:.100}; allowed: a whole number")
    return value
