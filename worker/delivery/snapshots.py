"""A partition's clock and open sessions as bytes, and the pointer to them that a committed offset carries.

A snapshot is an Arrow IPC stream with one row a session, its buffers compressed by zstd, cut into parts that
fit a Kafka record. A column of integers holds their distances from the least of them, in the fewest bytes that fit:
the codec's time goes by bytes, and offsets and times of open sessions lie close together. Each part begins with the
same header but for its own number, so that damage, a missing part and a part of another snapshot are told apart:

    magic 8 bytes | format version uint16 | part uint32 | parts uint32 | SHA-256 of the whole stream 32 bytes

Integers are big-endian. What is not a column (position, stream time, how many events in a row were behind it and the
greatest of their times, vocabulary, and what adaptive thresholds have learnt, where the partition has some) is metadata
of the schema. Where events wait, a second Arrow IPC stream follows the first, with one row a waiting event.

That is format 3. Where the events come from token records, the format is 4: the second stream is always there, and a
third one has a row for each event: its offset, and where it came from before it was keyed. Where texts of lines are
kept (`output.line_text`), the format is 5: the second stream is always there, and a third one has a row for each
session key with texts (`worker.processing.line_texts`). Token records have no lines, so there is never both. Format 2
is read as well: it knew no waiting events, so nothing was behind and nothing waited.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Final

import numpy as np
import orjson
import pyarrow as pa
from pydantic import ValidationError

from worker.errors import SnapshotError
from worker.processing.adaptive import AdaptiveState
from worker.processing.clock import NO_TIME, ClockState, Event
from worker.processing.early_told import checked
from worker.processing.line_texts import SCHEMA as TEXTS
from worker.processing.origins import NumberedOrigins, Origins
from worker.processing.records import Partition
from worker.processing.session_state import EVENT_COLUMNS, SESSION_COLUMNS, Column, SessionsState

FORMAT_VERSION: Final = 3
WITH_ORIGINS: Final = 4  # the format of events from token records
_WITHOUT_WAITING: Final = 2  # the format before waiting events, which is still read
_WITH_TEXTS: Final = 5
_READ: Final = (_WITHOUT_WAITING, FORMAT_VERSION, WITH_ORIGINS, _WITH_TEXTS)
POINTER_VERSION: Final = 3  # version 1 did not name the worker, version 2 not what was told early
_MAY_BE_ABSENT: Final = ("feedback", "told")  # of a pointer: where the application has none, and where it is not known

_MAGIC: Final = b"logmamba"
_HEADER: Final = struct.Struct(">8sHII32s")
_NARROW: Final = (np.uint8, np.uint16, np.uint32)
_INTEGERS: Final = (*map(pa.from_numpy_dtype, _NARROW), pa.int64())
_COLUMNS: Final = {  # with the types that each may have
    "keys": (pa.large_string(),),
    **dict.fromkeys(SESSION_COLUMNS, _INTEGERS),
    **dict.fromkeys(EVENT_COLUMNS, tuple(map(pa.large_list, _INTEGERS))),
}
_LEAST: Final = b"least"  # in a field's metadata: what is to be added to its integers
_ORIGINS: Final = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in ("event", "place")])
_WAITING: Final = pa.schema(
    [pa.field(name, pa.large_string() if name == "key" else pa.int64(), nullable=False) for name in Event._fields]
)
_METADATA: Final = ("position", "stream_time", "vocabulary", "n_templates")
_BEHIND: Final = ("behind", "behind_time")  # in the metadata from format 3 on
_SOURCES: Final = b"sources"  # in the metadata of origins
_THRESHOLDS: Final = "thresholds"  # in the metadata of a partition with adaptive thresholds


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A partition's open sessions, and its adaptive thresholds, when every record before `position` was processed."""

    position: int
    vocabulary: str  # "sha256:…", the vocabulary of the tokens
    n_templates: int  # templates in that vocabulary
    sessions: SessionsState
    thresholds: AdaptiveState | None = None  # None: fixed ones
    texts: pa.RecordBatch | None = None  # of lines, as of `LineTexts.state`; None: they are not kept

    @property
    def stream_time(self) -> int | None:
        """The partition's stream time in ms; None before its first event."""
        return self.sessions.stream_time


@dataclass(frozen=True, slots=True)
class SnapshotPointer:
    """Where a partition's newest snapshot lies; it travels as the metadata string of the committed offset."""

    position: int  # of the snapshot: the offset from which the input is read again
    state_partition: int
    first_offset: int  # of the first part in the state partition
    parts: int
    # Version of the verdicts that what came since the snapshot was judged by (`worker.processing.feedback`).
    feedback: int | None = None
    # What early records told since the snapshot (`worker.processing.early_told`); None where that is not known.
    told: str | None = None

    def to_metadata(self, worker: str) -> str:
        """The metadata string: JSON, far below the broker's limit of 4,096 bytes.

        Args:
            worker: the instance that commits it, for `committer`.
        """
        places = {name: value for name, value in asdict(self).items() if value is not None}
        return orjson.dumps({"version": POINTER_VERSION, **places, "worker": worker}).decode()

    @classmethod
    def from_metadata(cls, metadata: str | None) -> SnapshotPointer | None:
        """Read a committed offset's metadata string; None when it names no snapshot.

        Raises:
            SnapshotError: If the string is not one that `to_metadata` of this version or one before wrote.
        """
        if not metadata:
            return None
        try:
            found = orjson.loads(metadata)
        except orjson.JSONDecodeError as error:
            raise SnapshotError(f"offset metadata: not JSON ({error}): {metadata[:200]!r}") from None
        if not isinstance(found, dict):
            raise SnapshotError(f"offset metadata: not a JSON object: {metadata[:200]!r}")
        version = found.pop("version", None)
        if version not in range(1, POINTER_VERSION + 1):
            raise SnapshotError(f"offset metadata: version {version!r}, this worker reads 1 to {POINTER_VERSION}")
        if version > 1 and not isinstance(found.pop("worker", None), str):
            raise SnapshotError("offset metadata: names no worker")
        names = [field.name for field in fields(cls) if field.name in found or field.name not in _MAY_BE_ABSENT]
        if sorted(found) != sorted(names):
            raise SnapshotError(f"offset metadata: has {sorted(found)}, expected {sorted(names)}")
        try:
            checked(found.get("told", ""))
        except (TypeError, ValueError) as error:
            raise SnapshotError(f"offset metadata: told is {found['told']!r}: {error}") from None
        for name in set(names) - {"told"}:
            least = 1 if name == "parts" else 0
            if type(found[name]) is not int or found[name] < least:
                raise SnapshotError(f"offset metadata: {name} is {found[name]!r}; allowed: an integer from {least}")
        return cls(**found)


def committer(metadata: str | None) -> str | None:
    """The instance that committed an offset, by its metadata string; None where that does not name one."""
    try:
        found = orjson.loads(metadata or "null")
    except orjson.JSONDecodeError:
        return None
    name = found.get("worker") if isinstance(found, dict) else None
    return name if isinstance(name, str) else None


def encode(snapshot: Snapshot, max_part_bytes: int) -> list[bytes]:
    """Turn a snapshot into at least one part of at most `max_part_bytes` bytes.

    Raises:
        ValueError: If `max_part_bytes` leaves no room after a part's header.
    """
    room = max_part_bytes - _HEADER.size
    if room < 1:
        raise ValueError(f"max_part_bytes is {max_part_bytes}; allowed: {_HEADER.size + 1} and more")
    version = FORMAT_VERSION
    if snapshot.sessions.origins is not None:
        version = WITH_ORIGINS
        assert snapshot.texts is None, "token records have no lines"
    elif snapshot.texts is not None:
        version = _WITH_TEXTS
    stream = memoryview(_to_stream(snapshot))
    digest = hashlib.sha256(stream).digest()
    parts = -(-len(stream) // room)
    return [
        _HEADER.pack(_MAGIC, version, part, parts, digest) + stream[part * room : (part + 1) * room]
        for part in range(parts)
    ]


def same_snapshot(part: bytes, other: bytes) -> bool:
    """Whether two parts say that they are of the same snapshot; one without a header is of none."""
    if not (part.startswith(_MAGIC) and min(len(part), len(other)) >= _HEADER.size):
        return False
    return bool(_HEADER.unpack_from(part)[-1] == _HEADER.unpack_from(other)[-1])


def decode(parts: Sequence[bytes]) -> Snapshot:
    """Put a snapshot together again from all its parts, in order.

    Raises:
        SnapshotError: If a part is missing, damaged, of another snapshot or of another format.
    """
    if not parts:
        raise SnapshotError("snapshot has no parts")
    found = set()  # format versions and digests
    for number, part in enumerate(parts):
        place = f"snapshot part {number + 1} of {len(parts)}"
        if len(part) < _HEADER.size or not part.startswith(_MAGIC):
            raise SnapshotError(f"{place} is not a part of a snapshot")
        _, version, found_number, found_parts, digest = _HEADER.unpack_from(part)
        if version not in _READ:
            raise SnapshotError(f"{place} has format version {version}, this worker reads {', '.join(map(str, _READ))}")
        if (found_number, found_parts) != (number, len(parts)):
            raise SnapshotError(f"{place} is part {found_number + 1} of {found_parts} by its header")
        found.add((version, digest))
    if len(found) > 1:
        raise SnapshotError(f"the {len(parts)} snapshot parts belong to different snapshots")
    stream = b"".join([memoryview(part)[_HEADER.size :] for part in parts])
    version, digest = found.pop()
    if hashlib.sha256(stream).digest() != digest:
        raise SnapshotError(f"snapshot is damaged: the SHA-256 of its {len(stream)} bytes does not match")
    try:
        return _from_stream(stream, version)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise SnapshotError(f"snapshot cannot be read: {error}") from error


def _to_stream(snapshot: Snapshot) -> pa.Buffer:
    state = snapshot.sessions
    ends = np.append(0, state.ends())
    columns: list[pa.Array] = [state.keys]
    fields = [pa.field("keys", columns[0].type, nullable=False)]
    for name in (*SESSION_COLUMNS, *EVENT_COLUMNS):
        column, least = _narrowed(getattr(state, name))
        if name in EVENT_COLUMNS:
            column = pa.LargeListArray.from_arrays(ends, column)
        columns.append(column)
        fields.append(pa.field(name, column.type, nullable=False, metadata={_LEAST: str(least)}))
    metadata = {
        "position": str(snapshot.position),
        "stream_time": "" if state.stream_time is None else str(state.stream_time),
        "vocabulary": snapshot.vocabulary,
        "n_templates": str(snapshot.n_templates),
        "behind": str(state.clock.behind),
        "behind_time": str(state.clock.behind_time),
    }
    if snapshot.thresholds is not None:
        metadata[_THRESHOLDS] = snapshot.thresholds.model_dump_json()
    batch = pa.record_batch(columns, schema=pa.schema(fields, metadata))
    sink = pa.BufferOutputStream()
    _write(sink, batch)
    if state.clock.waiting or state.origins is not None or snapshot.texts is not None:
        rows = [event._asdict() for event in state.clock.waiting]
        _write(sink, pa.RecordBatch.from_pylist(rows, schema=_WAITING))
    if state.origins is not None:
        events, origins = state.origins.events, state.origins.origins
        sources = {_SOURCES: orjson.dumps([*map(tuple, origins.partitions)])}
        _write(sink, pa.record_batch([events, origins.places], schema=_ORIGINS.with_metadata(sources)))
    if snapshot.texts is not None:
        _write(sink, snapshot.texts)
    return sink.getvalue()


def _write(sink: pa.BufferOutputStream, batch: pa.RecordBatch) -> None:
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)


def _read(source: pa.BufferReader) -> pa.RecordBatch:
    with pa.ipc.open_stream(source) as reader:
        batches = list(reader)
    if len(batches) != 1:
        raise ValueError(f"it holds {len(batches)} batches, expected 1")
    return batches[0]


def _from_stream(stream: bytes, version: int) -> Snapshot:
    source = pa.BufferReader(stream)
    with_waiting = version != _WITHOUT_WAITING
    batch = _read(source)
    schema = batch.schema
    if schema.names != list(_COLUMNS) or any(field.type not in _COLUMNS[field.name] for field in schema):
        raise ValueError(f"its columns are {', '.join(f'{field.name} {field.type}' for field in schema)}")
    batch.validate(full=True)
    metadata = {name.decode(): value.decode() for name, value in (schema.metadata or {}).items()}
    wanted = (*_METADATA, *(_BEHIND if with_waiting else ()))
    if surplus := [name for name in _BEHIND if name in metadata and name not in wanted]:
        raise ValueError(f"its metadata has {', '.join(surplus)}, which its format does not know")
    if missing := [name for name in wanted if name not in metadata]:
        raise ValueError(f"its metadata lacks {', '.join(missing)}")
    lengths = [np.diff(batch[name].offsets) for name in EVENT_COLUMNS]
    if any(not np.array_equal(lengths[0], each) for each in lengths[1:]):
        raise ValueError(f"its sessions have not as many {' as '.join(EVENT_COLUMNS)}")

    def integers(name: str) -> Column:
        least = (schema.field(name).metadata or {}).get(_LEAST, b"not there")
        values = batch[name].flatten() if name in EVENT_COLUMNS else batch[name]
        widened: Column = values.to_numpy() + np.int64(int(least))
        return widened

    state = SessionsState(
        clock=ClockState(
            stream_time=int(metadata["stream_time"]) if metadata["stream_time"] else None,
            waiting=_waiting(source) if with_waiting else (),
            behind=int(metadata.get("behind", 0)),
            behind_time=int(metadata.get("behind_time", NO_TIME)),
        ),
        keys=batch["keys"],
        lengths=lengths[0],
        **{name: integers(name) for name in (*SESSION_COLUMNS, *EVENT_COLUMNS)},
        origins=_origins(source) if version == WITH_ORIGINS else None,
    )
    return Snapshot(
        position=int(metadata["position"]),
        vocabulary=metadata["vocabulary"],
        n_templates=int(metadata["n_templates"]),
        sessions=state,
        thresholds=_thresholds(metadata.get(_THRESHOLDS)),
        texts=_with_schema(source, TEXTS, "texts") if version == _WITH_TEXTS else None,
    )


def _waiting(source: pa.BufferReader) -> tuple[Event, ...]:
    if source.tell() == source.size():
        return ()
    return tuple(Event(**row) for row in _with_schema(source, _WAITING, "waiting events").to_pylist())


def _with_schema(source: pa.BufferReader, schema: pa.Schema, what: str) -> pa.RecordBatch:
    batch = _read(source)
    if not batch.schema.equals(schema):
        raise ValueError(f"the columns of its {what} are {', '.join(map(str, batch.schema))}")
    batch.validate(full=True)
    return batch


def _origins(source: pa.BufferReader) -> NumberedOrigins:
    batch = _with_schema(source, _ORIGINS, "origins")
    partitions = [Partition(*each) for each in orjson.loads((batch.schema.metadata or {}).get(_SOURCES, b"[]"))]
    events, places = (np.array(column, np.int64) for column in batch.columns)
    return NumberedOrigins(events, Origins(partitions, places))


def _thresholds(written: str | None) -> AdaptiveState | None:
    try:
        return None if written is None else AdaptiveState.model_validate_json(written)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, ("thresholds", *problem["loc"])))
        raise ValueError(f"its {where}: {problem['msg']}") from None


def _narrowed(values: Column) -> tuple[pa.Array, int]:
    """The values' distances from the least of them, in the fewest bytes that fit; and that least value."""
    least, greatest = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    for narrow in _NARROW:
        if greatest - least <= np.iinfo(narrow).max:
            distances = np.empty(len(values), narrow)
            np.subtract(values, least, out=distances, casting="unsafe")
            return pa.array(distances), least
    return pa.array(values), 0
