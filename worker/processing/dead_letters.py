"""Dead letters: records that could not be decoded, with their origin and the reason in headers; written and read back.

A dead letter has key, value and headers as they came, the value of an event among several of a record with nothing in
it but that event, and beside them the headers `logmamba-error-{reason,message,topic,partition,offset,timestamp}`. What
would be larger than a message may be is cut, and the message's text says so.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final, NamedTuple, get_args

from worker.processing.lines import DeadLetter, Reason
from worker.processing.records import Partition, Records
from worker.processing.score_records import MESSAGE_OVERHEAD_BYTES, headers_size, iso_time

RecordHeaders = list[tuple[str, bytes | None]]

REASONS: Final[tuple[str, ...]] = get_args(Reason)
_PREFIX: Final = "logmamba-error-"
_CUT = re.compile(r" \(key of \d+ and value of \d+ bytes cut(, headers of \d+ bytes left out)?\)$")


class ReadDeadLetter(NamedTuple):
    """A dead letter as it stands in its topic.

    Attributes:
        reason: why the record could not be decoded.
        message: the same in words.
        origin: the partition that the record came from.
        offset: of the record there.
        timestamp_ms: Kafka's, of the record; None where it had none.
        key, value, headers: the record's own.
        cut: whether they are not all there.
    """

    reason: str
    message: str
    origin: Partition
    offset: int
    timestamp_ms: int | None
    key: bytes | None
    value: bytes | None
    headers: RecordHeaders
    cut: bool


def dead_letter(
    records: Records, letter: DeadLetter, max_message_bytes: int
) -> tuple[bytes | None, bytes | None, RecordHeaders]:
    """Key, value and headers of the dead letter of a record; no message is larger than `max_message_bytes`."""
    row = letter.index
    key = None if records.keys is None else records.keys[row]
    value = records.values[row] if letter.item is None else letter.item
    timestamp = None if records.timestamps is None else int(records.timestamps[row])
    own = _without_ours(records.headers_at(row))

    def headers(message: str) -> RecordHeaders:
        return [
            (f"{_PREFIX}reason", letter.reason.encode()),
            (f"{_PREFIX}message", message.encode(errors="replace")),
            (f"{_PREFIX}topic", records.topic.encode()),
            (f"{_PREFIX}partition", str(records.partition).encode()),
            (f"{_PREFIX}offset", str(records.offsets[row]).encode()),
            (f"{_PREFIX}timestamp", (iso_time(timestamp) or "").encode()),
        ]

    plain = [*own, *headers(letter.message)]
    room = max_message_bytes - headers_size(plain) - MESSAGE_OVERHEAD_BYTES
    if len(key or b"") + len(value or b"") <= room:
        return key, value, plain
    left_out = f", headers of {headers_size(own)} bytes left out" if own else ""
    told = headers(f"{letter.message} (key of {len(key or b'')} and value of {len(value or b'')} bytes cut{left_out})")
    room = max(0, max_message_bytes - headers_size(told) - MESSAGE_OVERHEAD_BYTES)
    key = None if key is None else key[:room]
    return key, None if value is None else value[: room - len(key or b"")], told


def read_dead_letter(records: Records, row: int) -> ReadDeadLetter | None:
    """A record of the dead-letter topic; None where no worker wrote it."""
    headers = records.headers_at(row)
    said = {name.removeprefix(_PREFIX): value or b"" for name, value in headers if name.startswith(_PREFIX)}
    try:
        reason, message, topic = (said[name].decode() for name in ("reason", "message", "topic"))
        partition, offset = int(said["partition"]), int(said["offset"])
        at = said["timestamp"].decode()
        timestamp_ms = round(datetime.fromisoformat(at).timestamp() * 1000) if at else None
    except (KeyError, ValueError):
        return None
    return ReadDeadLetter(
        reason=reason,
        message=message,
        origin=Partition(topic, partition),
        offset=offset,
        timestamp_ms=None if timestamp_ms is None or timestamp_ms < 0 else timestamp_ms,
        key=None if records.keys is None else records.keys[row],
        value=records.values[row],
        headers=_without_ours(headers),
        cut=_CUT.search(message) is not None,
    )


def _without_ours(headers: RecordHeaders) -> RecordHeaders:
    return [(name, value) for name, value in headers if not name.startswith(_PREFIX)]
