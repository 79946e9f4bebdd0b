"""A snapshot comes back as it was, or not at all: whatever is wrong with it is named."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.delivery.snapshots import Snapshot, SnapshotPointer, committer, decode, encode
from worker.errors import SnapshotError
from worker.processing.adaptive import AdaptiveState
from worker.processing.clock import NO_TIME, ClockState, Event
from worker.processing.line_texts import SCHEMA as TEXTS
from worker.processing.origins import MOST_OFFSET, NumberedOrigins, Origins
from worker.processing.records import Partition
from worker.processing.session_state import Column, SessionsState

HEADER_BYTES = 50
VOCABULARY = "sha256:" + "ab" * 32

int64 = st.integers(-(2**63), 2**63 - 1)


def column(*values: int) -> Column:
    return np.array(values, np.int64)


clocks = st.builds(
    ClockState,
    stream_time=st.none() | int64,
    waiting=st.lists(
        st.builds(Event, st.text(st.characters(exclude_categories=["Cs"])), int64, int64, int64), max_size=4
    ).map(tuple),
    behind=st.integers(0, 999),
    behind_time=int64,
)


origins = st.builds(
    lambda partitions, events: NumberedOrigins(
        column(*(event for event, _, _ in events)),
        Origins.of(
            partitions,
            column(*(number % len(partitions) for _, number, _ in events)),
            column(*(offset for _, _, offset in events)),
        ),
    ),
    st.lists(st.builds(Partition, st.text("abc", min_size=1), st.integers(0, 9)), min_size=1, max_size=3, unique=True),
    st.lists(st.tuples(int64, st.integers(0, 5), st.integers(0, MOST_OFFSET)), max_size=9),
)


@st.composite
def states(draw: st.DrawFn) -> SessionsState:
    keys = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=8))
    lengths = draw(st.lists(st.integers(1, 5), min_size=len(keys), max_size=len(keys)))

    def drawn(size: int) -> Column:
        least, span = draw(int64), draw(st.sampled_from([0, 2**8, 2**16, 2**32, 2**64]))
        near = st.integers(max(least - span, -(2**63)), min(least + span, 2**63 - 1))
        return column(*draw(st.lists(near, min_size=size, max_size=size)))

    return SessionsState(
        clock=draw(clocks),
        keys=keys,
        lengths=column(*lengths),
        opened_at=drawn(len(keys)),
        last_at=drawn(len(keys)),
        alerted=drawn(len(keys)),
        evaluated=drawn(len(keys)),
        tokens=drawn(sum(lengths)),
        offsets=drawn(sum(lengths)),
        times=drawn(sum(lengths)),
        origins=draw(st.none() | origins),
    )


def example(sessions: int = 40, position: int = 4711) -> Snapshot:
    """Incompressible enough to fill several small parts."""
    lengths = [number % 3 + 1 for number in range(sessions)]
    noise = [int.from_bytes(hashlib.sha256(bytes([number])).digest()[:7]) for number in range(sum(lengths))]
    per_session = column(*noise[:sessions])
    return Snapshot(
        position=position,
        vocabulary=VOCABULARY,
        n_templates=30,
        sessions=SessionsState(
            clock=ClockState(1_226_262_975_000, (Event("blk_9", 4, 1_226_300_000_000, 4_710),), 3, 1_226_000_000_000),
            keys=[f"blk_{number}" for number in range(sessions)],
            lengths=column(*lengths),
            opened_at=per_session,
            last_at=per_session,
            alerted=column(*(number % 4 for number in range(sessions))),
            evaluated=column(*lengths),
            tokens=column(*noise),
            offsets=column(*range(sum(lengths))),
            times=column(*[NO_TIME] * sum(lengths)),
        ),
    )


scores = st.floats(0, 1)
adaptive = st.builds(
    AdaptiveState,
    checkpoint=st.just("sha256:one"),
    target_rate=st.floats(0.00001, 0.05),
    sessions=st.integers(0, 500_000),
    highest=st.lists(scores, max_size=50).map(tuple),
    proposed=st.lists(st.tuples(scores, scores), max_size=9).map(tuple),
)


texts = st.lists(
    st.fixed_dictionaries(
        {"key": st.text(st.characters(exclude_categories=["Cs"])), "places": st.binary(), "texts": st.binary()}
    ),
    max_size=8,
).map(lambda rows: pa.RecordBatch.from_pylist(rows, schema=TEXTS))


@settings(deadline=None)
@given(
    sessions=states(),
    position=st.integers(0, 2**63 - 1),
    n_templates=st.integers(0, 100_000),
    thresholds=st.none() | adaptive,
    texts=st.none() | texts,
    max_part_bytes=st.integers(HEADER_BYTES + 1, 5000),
)
def test_a_snapshot_in_parts_of_any_size_comes_back_as_it_was(
    sessions: SessionsState,
    position: int,
    n_templates: int,
    thresholds: AdaptiveState | None,
    texts: pa.RecordBatch | None,
    max_part_bytes: int,
) -> None:
    texts = texts if sessions.origins is None else None  # token records have no lines
    snapshot = Snapshot(position, VOCABULARY, n_templates, sessions, thresholds, texts)
    parts = encode(snapshot, max_part_bytes)
    assert all(len(part) <= max_part_bytes for part in parts)
    assert decode(parts) == snapshot
    assert decode(parts).stream_time == sessions.stream_time


def test_a_partition_without_open_sessions_has_a_snapshot_of_one_part() -> None:
    for stream_time in (None, 0, 1_226_262_975_000):
        snapshot = Snapshot(0, VOCABULARY, 3, SessionsState.empty(stream_time))
        parts = encode(snapshot, 1_000_000)
        assert len(parts) == 1
        assert decode(parts) == snapshot


def test_the_same_snapshot_gives_the_same_bytes() -> None:
    assert encode(example(), 700) == encode(example(), 700)


def test_parts_are_as_few_as_fit() -> None:
    (whole,) = encode(example(), 1_000_000)
    assert len(encode(example(), len(whole))) == 1
    assert len(encode(example(), len(whole) - 1)) == 2


def test_a_part_size_without_room_after_the_header_is_refused() -> None:
    with pytest.raises(ValueError, match="max_part_bytes is 50; allowed: 51 and more"):
        encode(example(), HEADER_BYTES)


def test_no_parts_are_refused() -> None:
    with pytest.raises(SnapshotError, match="snapshot has no parts"):
        decode([])


@pytest.mark.parametrize("missing", ["first", "middle", "last"])
def test_a_missing_part_is_refused(missing: str) -> None:
    parts = encode(example(), 700)
    assert len(parts) > 2
    del parts[{"first": 0, "middle": 1, "last": -1}[missing]]
    with pytest.raises(SnapshotError, match=rf"by its header|of {len(parts) + 1}"):
        decode(parts)


def test_parts_out_of_order_or_twice_are_refused() -> None:
    parts = encode(example(), 700)
    with pytest.raises(SnapshotError, match=r"snapshot part 1 of .* is part 2 of"):
        decode([parts[1], parts[0], *parts[2:]])
    with pytest.raises(SnapshotError, match=r"snapshot part 2 of .* is part 1 of"):
        decode([parts[0], *parts[:-1]])


def test_a_part_of_another_snapshot_is_refused() -> None:
    ours, theirs = encode(example(position=1), 700), encode(example(position=2), 700)
    assert len(ours) == len(theirs)
    with pytest.raises(SnapshotError, match="belong to different snapshots"):
        decode([*ours[:-1], theirs[-1]])


def test_any_flipped_byte_is_noticed() -> None:
    parts = encode(example(sessions=3), 500)
    for number, part in enumerate(parts):
        for place in range(len(part)):
            damaged = bytearray(part)
            damaged[place] ^= 1
            with pytest.raises(SnapshotError):
                decode([*parts[:number], bytes(damaged), *parts[number + 1 :]])


def test_damage_of_the_content_is_named() -> None:
    (whole,) = encode(example(), 1_000_000)
    for damaged in (whole[:-1], whole + b"x", whole[:-1] + b"\xff"):
        with pytest.raises(SnapshotError, match=r"snapshot is damaged: the SHA-256 of its .* bytes does not match"):
            decode([damaged])


@pytest.mark.parametrize("value", [b"", b"logmamba", b"{}", b"x" * 200])
def test_what_is_no_snapshot_at_all_is_refused(value: bytes) -> None:
    with pytest.raises(SnapshotError, match="snapshot part 1 of 1 is not a part of a snapshot"):
        decode([value])


def test_a_snapshot_of_another_format_version_is_refused() -> None:
    (whole,) = encode(example(), 1_000_000)
    older = whole[:8] + (1).to_bytes(2) + whole[10:]
    with pytest.raises(SnapshotError, match="has format version 1, this worker reads 2, 3, 4, 5"):
        decode([older])


def test_a_snapshot_of_the_format_before_is_read_as_one_in_which_nothing_waits() -> None:
    snapshot = decode([(Path(__file__).parent / "snapshot-format-2.bin").read_bytes()])
    assert (snapshot.position, snapshot.vocabulary, snapshot.n_templates) == (104, VOCABULARY, 40)
    state = snapshot.sessions
    assert state.clock == ClockState(1_700_000_002_000)
    assert state.keys.to_pylist() == ["blk_1", "blk_2"]
    assert state.tokens.tolist() == [3, 5, 4]
    assert state.offsets.tolist() == [100, 103, 101]
    assert state.opened_at.tolist() == [1_700_000_000_000, 1_700_000_001_000]


def resealed(stream: bytes) -> bytes:
    """A part with a right header and hash around any content."""
    (whole,) = encode(example(), 1_000_000)
    return whole[:18] + hashlib.sha256(stream).digest() + stream


def stream_of(batch: pa.RecordBatch, *, write: bool = True) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        if write:
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def test_a_snapshot_whose_content_was_written_wrongly_is_refused() -> None:
    (whole,) = encode(example(), 1_000_000)
    with pa.ipc.open_stream(whole[HEADER_BYTES:]) as reader:
        batch = reader.read_next_batch()
    nothing_waits = replace(example().sessions, clock=replace(example().sessions.clock, waiting=()))
    assert decode([resealed(stream_of(batch))]) == replace(example(), sessions=nothing_waits)

    without_vocabulary = {key: value for key, value in batch.schema.metadata.items() if key != b"vocabulary"}
    without_behind = {key: value for key, value in batch.schema.metadata.items() if key != b"behind"}
    no_thresholds = batch.schema.metadata | {b"thresholds": b'{"checkpoint": 1}'}
    shorter = pa.array([tokens[:1] for tokens in batch["tokens"].to_pylist()], pa.large_list(pa.int64()))
    damaged = {
        "IpcMessage|continuation|Invalid|read": b"x" * 100,
        "body": stream_of(batch)[:-500],
        "metadata bytes": whole[HEADER_BYTES:-500],
        "0 batches, expected 1": stream_of(batch.slice(0, 0), write=False),
        "its columns are keys large_string$": stream_of(batch.select(["keys"])),
        "its metadata lacks vocabulary": stream_of(batch.replace_schema_metadata(without_vocabulary)),
        "not there": stream_of(batch.set_column(1, batch.schema.field("opened_at").remove_metadata(), batch[1])),
        "its thresholds.checkpoint: .*valid string": stream_of(batch.replace_schema_metadata(no_thresholds)),
        "its metadata lacks behind": stream_of(batch.replace_schema_metadata(without_behind)),
        "the columns of its waiting events are .*offset: int64": stream_of(batch)
        + stream_of(pa.record_batch([pa.array([1])], schema=pa.schema([pa.field("offset", pa.int64())]))),
        "Invalid|read|metadata": stream_of(batch) + b"x" * 100,
        "invalid literal": stream_of(batch.replace_schema_metadata(batch.schema.metadata | {b"position": b"?"})),
        "not as many tokens as offsets as times": stream_of(batch.set_column(5, batch.schema.field("tokens"), shorter)),
    }
    for named, stream in damaged.items():
        with pytest.raises(SnapshotError, match=f"snapshot cannot be read: .*({named})"):
            decode([resealed(stream)])


POINTER = SnapshotPointer(position=120, state_partition=3, first_offset=4567, parts=2)


@given(
    st.builds(
        SnapshotPointer,
        position=st.integers(0, 2**63 - 1),
        state_partition=st.integers(0, 2**31 - 1),
        first_offset=st.integers(0, 2**63 - 1),
        parts=st.integers(1, 2**32 - 1),
    )
)
def test_a_pointer_comes_back_from_the_offset_metadata(pointer: SnapshotPointer) -> None:
    metadata = pointer.to_metadata("w0")
    assert len(metadata.encode()) < 4096
    assert SnapshotPointer.from_metadata(metadata) == pointer


@pytest.mark.parametrize(("version", "worker"), [('"version":1', None), ('"version":2,"worker":"w0"', "w0")])
def test_a_pointer_of_a_version_that_named_no_worker_or_nothing_that_was_told_is_still_read(
    version: str, worker: str | None
) -> None:
    metadata = f'{{{version},"position":120,"state_partition":3,"first_offset":4567,"parts":2}}'
    assert SnapshotPointer.from_metadata(metadata) == POINTER
    assert POINTER.told is None
    assert committer(metadata) == worker


def test_the_offset_metadata_names_the_worker_that_committed() -> None:
    assert committer(POINTER.to_metadata("host-7.example-0")) == "host-7.example-0"


@pytest.mark.parametrize("metadata", [None, "", "hello", "[1]", '{"worker":1}', "null"])
def test_metadata_of_someone_else_names_no_worker(metadata: str | None) -> None:
    assert committer(metadata) is None


@pytest.mark.parametrize("metadata", [None, ""])
def test_an_offset_without_metadata_names_no_snapshot(metadata: str | None) -> None:
    assert SnapshotPointer.from_metadata(metadata) is None


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("hello", "not JSON"),
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ("\ud800", "not JSON"),
        ("{}", "version None, this worker reads 1 to 3"),
        ('{"version":4,"anything":1}', "version 4, this worker reads 1 to 3"),
    ],
)
def test_metadata_that_is_no_pointer_is_refused(metadata: str, message: str) -> None:
    with pytest.raises(SnapshotError, match=message):
        SnapshotPointer.from_metadata(metadata)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("position", None, "position is None; allowed: an integer from 0"),
        ("position", -1, "position is -1; allowed: an integer from 0"),
        ("state_partition", "3", "state_partition is '3'"),
        ("first_offset", 1.5, "first_offset is 1.5"),
        ("first_offset", 2**70, "first_offset is 1.18"),
        ("parts", 0, "parts is 0; allowed: an integer from 1"),
        ("parts", True, "parts is True"),
        ("worker", None, "names no worker"),
        ("surplus", 1, "surplus"),
        ("told", 7, "told is 7"),
        ("told", "AAA", "told is 'AAA'"),
        ("told", "gA==", "told is 'gA==': it breaks off"),
    ],
)
def test_a_pointer_with_a_wrong_field_is_refused(name: str, value: object, message: str) -> None:
    fields = json.loads(POINTER.to_metadata("w0")) | {name: value}
    with pytest.raises(SnapshotError, match=message):
        SnapshotPointer.from_metadata(json.dumps(fields))


def test_a_pointer_that_lacks_a_field_is_refused() -> None:
    fields = json.loads(POINTER.to_metadata("w0"))
    del fields["parts"]
    with pytest.raises(SnapshotError, match=r"expected .*parts"):
        SnapshotPointer.from_metadata(json.dumps(fields))
