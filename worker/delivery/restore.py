"""Where a partition starts: what is committed, its snapshot, and what to do when either is gone.

The committed offset X is the true position; its metadata names the newest snapshot, taken at P <= X. The partition is
restored from the snapshot, read again from P, and is live from X on (ARCHITECTURE section 3).
"""

from __future__ import annotations

import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import structlog

from detector.text.vocabulary import Vocabulary
from worker.delivery.protocols import Committed, Message, TopicReader
from worker.delivery.snapshots import Snapshot, SnapshotPointer, decode, encode, same_snapshot
from worker.errors import RunError, SnapshotError
from worker.processing.adaptive import AdaptiveState
from worker.processing.clock import Event
from worker.processing.records import Partition
from worker.processing.rekeying import AnyPipeline
from worker.processing.session_state import SessionsState
from worker.processing.token_decoder import AnyDecoder, TokenDecoder
from worker.settings.document import Settings

# What a record's key, headers and batch take of message.max.bytes, generously.
_RECORD_OVERHEAD_BYTES = 4096

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Start:
    """How a partition begins.

    Attributes:
        position: offset of the first record to read (P).
        live_from: outputs whose cause lies before this offset are already published (X).
        sessions: those open at `position`; None for none.
        thresholds: what adaptive thresholds had learnt at `position`; None for nothing.
        texts: of the sessions' lines; None where they were not kept.
        pointer: the snapshot that these came from.
    """

    position: int
    live_from: int
    sessions: SessionsState | None = None
    thresholds: AdaptiveState | None = None
    texts: pa.RecordBatch | None = None
    pointer: SnapshotPointer | None = None

    @property
    def state(
        self,
    ) -> tuple[SessionsState | None, AdaptiveState | None, pa.RecordBatch | None, int | None, str | None]:
        """What `Pipeline.open` goes on from."""
        since = (None, "") if self.pointer is None else (self.pointer.feedback, self.pointer.told)
        return self.sessions, self.thresholds, self.texts, *since


class _Reread(NamedTuple):
    """An event of a key that is read again."""

    offset: int
    time: int
    token: int


class StateStore:
    """Snapshots in the compacted state topic, and the rules of a start.

    Args:
        settings: of the application.
        vocabulary: of the tokens in the snapshots to come; a snapshot of another vocabulary is tokenised anew.
        decoder: reads raw records again when the vocabulary has changed.
        reader: reads the state topic and the raw topics.
        feedback: version of the verdicts that outputs are judged by, for the snapshots to come.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        vocabulary: Vocabulary,
        decoder: AnyDecoder,
        reader: TopicReader,
        feedback: int | None = None,
    ) -> None:
        self._application_id = settings.application_id
        self._topic = settings.state_topic
        self._max_part_bytes = settings.message_max_bytes - _RECORD_OVERHEAD_BYTES
        self._vocabulary = vocabulary
        self._decoder = decoder
        self._reader = reader
        self._feedback = feedback
        self._start = settings.input.start
        self._on_lost_offsets = settings.input.on_lost_offsets
        self._partitions: list[int] | None = None
        self._live_parts: dict[Partition, int] = {}  # of each partition's newest snapshot

    def maker(
        self, partition: Partition, position: int
    ) -> Callable[[SessionsState, AdaptiveState | None, pa.RecordBatch | None], list[Message]]:
        """What makes a snapshot's records for `Sink.send_snapshots`, all to one state partition, in any thread.

        It takes the sessions that were open at `position`, what adaptive thresholds had learnt by then, and the texts
        of lines (`Pipeline.state`).
        """
        vocabulary, target = self._vocabulary, self._state_partition(partition)
        headers = [("logmamba-snapshot-position", str(position).encode())]

        def messages(
            sessions: SessionsState, thresholds: AdaptiveState | None, texts: pa.RecordBatch | None
        ) -> list[Message]:
            snapshot = Snapshot(position, vocabulary.sha256, len(vocabulary.templates), sessions, thresholds, texts)
            return [
                Message(self._topic, self._key(partition, number), part, headers, target)
                for number, part in enumerate(encode(snapshot, self._max_part_bytes))
            ]

        return messages

    def stale_parts(self, partition: Partition, parts: int) -> list[Message]:
        """Tombstones for the parts that a longer snapshot before this one left behind."""
        previous = self._live_parts.get(partition, 0)
        self._live_parts[partition] = parts
        target = self._state_partition(partition)
        return [
            Message(self._topic, self._key(partition, number), None, [], target) for number in range(parts, previous)
        ]

    def pointer(self, partition: Partition, position: int, first_offset: int, parts: int) -> SnapshotPointer:
        """What a committed offset's metadata says of a snapshot that was just written."""
        return SnapshotPointer(position, self._state_partition(partition), first_offset, parts, self._feedback)

    def hand_over(
        self, old: AnyPipeline, new: AnyPipeline, partitions: Sequence[Partition], between: Callable[[], None]
    ) -> None:
        """Open in a new pipeline what is open in the one so far, where it stands, with the tokens of its vocabulary.

        Args:
            old: the pipeline so far.
            new: the one that goes on, of which the snapshots to come are.
            partitions: those that are open, all of them live.
            between: called between two batches of records that are read again. What it raises ends the call.

        Raises:
            SnapshotError: what would have to be read again is deleted; nothing has changed then.
        """
        vocabulary, states = new.scorer.vocabulary, {each: old.state(each) for each in partitions}
        sessions = {}
        for each, (state, *_) in states.items():
            snapshot = Snapshot(old.position(each), self._vocabulary.sha256, len(self._vocabulary.templates), state)
            sessions[each] = _with_tokens_of(vocabulary, new.decoder, each, snapshot, self._reader, between)
        self._vocabulary, self._decoder, self._feedback = vocabulary, new.decoder, new.feedback_version
        for each, (_, thresholds, texts) in states.items():
            new.open(each, old.position(each), old.position(each), sessions[each], thresholds, texts)

    def start(self, partition: Partition, committed: Committed | None) -> Start:
        """How to start a partition that was just assigned.

        Raises:
            RunError: the position or the snapshot is gone and `input.on_lost_offsets` is `fail`.
        """
        began = time.monotonic()
        low, high = self._reader.watermarks(partition)
        if committed is None:
            if self._find_parts(partition):
                return self._lost(
                    partition, low, "the group has no committed offset, yet the state topic holds a snapshot"
                )
            self._live_parts.pop(partition, None)
            first = low if self._start == "earliest" else high
            _log.info("partition_starts_new", partition=str(partition), offset=first, start=self._start)
            return Start(first, first)
        if not low <= committed.offset <= high:
            return self._lost(partition, low, f"committed offset {committed.offset} is outside {low} to {high}")
        try:
            pointer = SnapshotPointer.from_metadata(committed.metadata)
            if pointer is None:
                raise SnapshotError("the committed offset names no snapshot (was the group's offset reset by hand?)")
            if pointer.position < low:
                raise SnapshotError(f"its records since offset {pointer.position} are deleted; the oldest is {low}")
            # Not those of a later snapshot that this process wrote: its transaction was aborted.
            self._live_parts[partition] = pointer.parts
            snapshot = self._load(partition, pointer)
            sessions = _with_tokens_of(self._vocabulary, self._decoder, partition, snapshot, self._reader)
        except SnapshotError as error:
            return self._lost(partition, low, f"the snapshot cannot be used: {error}")
        _log.info(
            "partition_restored",
            partition=str(partition),
            committed=committed.offset,
            snapshot=pointer.position,
            open_sessions=len(sessions.keys),
            waiting_events=len(sessions.clock.waiting),
            seconds=round(time.monotonic() - began, 3),
        )
        return Start(pointer.position, committed.offset, sessions, snapshot.thresholds, snapshot.texts, pointer)

    def _lost(self, partition: Partition, low: int, reason: str) -> Start:
        if self._on_lost_offsets == "fail":
            raise RunError(
                f"{partition}: {reason}. Starting over could score sessions twice or miss some, so the worker stops; "
                "input.on_lost_offsets: earliest starts over at the oldest record"
            )
        self._live_parts[partition] = self._find_parts(partition)
        _log.error("partition_starts_over", partition=str(partition), offset=low, reason=reason)
        return Start(low, low)

    def _load(self, partition: Partition, pointer: SnapshotPointer) -> Snapshot:
        place = Partition(self._topic, pointer.state_partition)
        low, high = self._reader.watermarks(place)
        if not low <= pointer.first_offset < high:
            raise SnapshotError(f"{place}: offset {pointer.first_offset} is outside {low} to {high}")
        wanted = [self._key(partition, number) for number in range(pointer.parts)]
        parts: list[bytes] = []
        for records in self._reader.read(place, pointer.first_offset, high, committed=False):
            for key, value in zip(records.keys or (), records.values, strict=True):
                # Between the parts may lie some of a worker that was fenced, whose transaction is aborted.
                if key == wanted[len(parts)] and (not parts or same_snapshot(value or b"", parts[0])):
                    parts.append(value or b"")
                    if len(parts) == pointer.parts:
                        return self._checked(decode(parts), pointer)
        raise SnapshotError(f"{place}: {len(parts)} of {pointer.parts} parts found from offset {pointer.first_offset}")

    @staticmethod
    def _checked(snapshot: Snapshot, pointer: SnapshotPointer) -> Snapshot:
        if snapshot.position != pointer.position:
            raise SnapshotError(
                f"it was taken at offset {snapshot.position}, the committed offset names {pointer.position}"
            )
        return snapshot

    def _find_parts(self, partition: Partition) -> int:
        """How many parts of the partition's snapshots compaction would leave in the state topic."""
        prefix = self._key_prefix(partition)
        live: dict[bytes, bool] = {}
        for number in self._reader.partitions(self._topic):
            place = Partition(self._topic, number)
            for records in self._reader.read(place, *self._reader.watermarks(place)):
                for key, value in zip(records.keys or (), records.values, strict=True):
                    if key is not None and key.startswith(prefix):
                        live[key.removeprefix(prefix)] = value is not None
        return 1 + max((int(part) for part, is_live in live.items() if is_live and part.isdigit()), default=-1)

    def _key_prefix(self, partition: Partition) -> bytes:
        return f"{self._application_id}/{partition.topic}/{partition.partition}/".encode()

    def _key(self, partition: Partition, part: int) -> bytes:
        return self._key_prefix(partition) + str(part).encode()

    def _state_partition(self, partition: Partition) -> int:
        if self._partitions is None:
            self._partitions = self._reader.partitions(self._topic)
            if not self._partitions:
                raise RunError(f"state.topic: {self._topic} does not exist")
        return self._partitions[zlib.crc32(str(partition).encode()) % len(self._partitions)]


def _with_tokens_of(
    vocabulary: Vocabulary,
    decoder: AnyDecoder,
    partition: Partition,
    snapshot: Snapshot,
    reader: TopicReader,
    between: Callable[[], None] = lambda: None,
) -> SessionsState:
    """The snapshot's sessions and waiting events, tokenised anew unless `vocabulary` only adds to that of its tokens.

    A session is open without a break, so its raw records are those of its key from its first offset on.

    Raises:
        SnapshotError: they are deleted, or have changed.
    """
    state, waiting = snapshot.sessions, snapshot.sessions.clock.waiting
    if vocabulary.begins_with(snapshot.n_templates, snapshot.vocabulary) or not (len(state.keys) or waiting):
        return state
    if isinstance(decoder, TokenDecoder):
        raise SnapshotError("its tokens are of another vocabulary, and token records have no lines to make them anew")
    ends, was = state.ends(), snapshot.vocabulary
    begun: dict[str, int] = {}  # offset of the first record of each key that is needed
    keys = state.keys.to_pylist()
    if keys:
        least = np.minimum.reduceat(state.offsets, ends - state.lengths)
        begun = dict(zip(keys, least.tolist(), strict=True))
    for each in waiting:
        begun[each.key] = min(each.offset, begun.get(each.key, each.offset))
    first = min(begun.values())
    _log.info("vocabulary_changed", partition=str(partition), rereads_from=first, to=snapshot.position, was=was)
    low, _ = reader.watermarks(partition)
    if first < low:
        raise SnapshotError(
            f"its tokens are of another vocabulary, and the raw records from offset {first} are deleted (oldest: {low})"
        )
    found: dict[str, list[_Reread]] = {key: [] for key in begun}
    for records in reader.read(partition, first, snapshot.position):
        between()
        (events,) = decoder.decode([records])
        for key, token, at, offset in events.rows():
            if offset >= begun.get(key, snapshot.position):
                found[key].append(_Reread(offset, at, token))
    tokens = [
        _tokens_again(key, found[key], state.offsets[begin:end].tolist(), state.times[begin:end].tolist())
        for key, begin, end in zip(keys, (ends - state.lengths).tolist(), ends.tolist(), strict=True)
    ]
    of_key: defaultdict[str, list[Event]] = defaultdict(list)
    for each in waiting:
        of_key[each.key].append(each)
    again = {
        key: iter(_tokens_again(key, found[key], [each.offset for each in own], [each.time for each in own]))
        for key, own in of_key.items()
    }
    return replace(
        state,
        clock=replace(state.clock, waiting=tuple(each._replace(token=next(again[each.key])) for each in waiting)),
        tokens=np.array([*chain.from_iterable(tokens)], np.int64),
    )


def _tokens_again(key: str, found: list[_Reread], offsets: list[int], times: list[int]) -> list[int]:
    """Tokens of a key's events with these offsets and times, out of all that were read again.

    Others of the key may lie between: such that wait, or belonged to a session that ended meanwhile.

    Raises:
        SnapshotError: the records no longer hold these events.
    """
    latest = found[-len(offsets) :]
    if [each.offset for each in latest] == offsets and [each.time for each in latest] == times:
        return [each.token for each in latest]
    of_record: defaultdict[int, list[_Reread]] = defaultdict(list)
    for each in found:
        of_record[each.offset].append(each)
    wanted: defaultdict[int, list[int]] = defaultdict(list)
    for offset, its_time in zip(offsets, times, strict=True):
        wanted[offset].append(its_time)
    tokens: dict[int, Iterator[int]] = {}
    for offset, its_times in wanted.items():
        lines = of_record[offset]
        if len(lines) > len(its_times):
            # A record of several lines: those of another time had another fate. Where the settings now read other
            # times, and among lines of one time, the latest count: earlier ones may have ended the session before.
            lines = [line for line in lines if line.time in its_times] or lines
        if len(lines) < len(its_times):
            raise SnapshotError(f"its tokens are of another vocabulary, and raw records of session {key} have changed")
        tokens[offset] = iter([line.token for line in lines[-len(its_times) :]])
    return [next(tokens[offset]) for offset in offsets]
