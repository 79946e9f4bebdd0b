"""Lines to token records (`logmamba rekey`): decoded, keyed, and brought to the partition of their key.

To the loop it is what `worker.processing.pipeline` is. It has no sessions, so a partition has no state besides its
position, and what a restart would replay is passed over.

The lines of all raw partitions that this process has are brought into the order of their times (`Merging`). Until they
are handed on, the position of their partition is before them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa

from detector.reading import ReadingRecord
from detector.text.flat import flat
from detector.text.vocabulary import Vocabulary
from worker.errors import RunError, SettingsError
from worker.observability.metrics import Metrics
from worker.observability.status import DriftStatus
from worker.processing.adaptive import AdaptiveState
from worker.processing.clock import Column, Move
from worker.processing.counted_decoder import CountedDecoder
from worker.processing.dead_letters import dead_letter
from worker.processing.fit import check_fit
from worker.processing.lines import Reason
from worker.processing.merging import Merged, Merging
from worker.processing.origins import EVENTS_OF_A_RECORD
from worker.processing.outputs import Output
from worker.processing.partitioner import partitions_of
from worker.processing.pipeline import Pipeline, decoder_of
from worker.processing.records import Partition, Records
from worker.processing.score_records import MESSAGE_OVERHEAD_BYTES
from worker.processing.session_state import SessionsState
from worker.processing.token_records import TokenRecord, VocabularyId, encode
from worker.settings.document import Settings
from worker.settings.sections import OutputSettings

Stage = Literal["decode", "encode"]

_SCORES: Final = OutputSettings().topic


class Tokens(NamedTuple):
    """What makes the tokens: of a scorer, all that rekeying needs."""

    checkpoint: str
    vocabulary: Vocabulary
    reading: ReadingRecord | None
    trained_score_shares: None = None
    fingerprint: None = None


class NoSessions:
    """What `Image` is to a pipeline."""

    def state(self) -> SessionsState:
        """No session is open."""
        return SessionsState.empty()


@dataclass(slots=True)
class _Open:
    live_from: int  # what lies before is written already
    newest_ms: int | None = None  # Kafka timestamp of the latest record


class Rekeying:
    """Turns records into token records and dead letters.

    Args:
        settings: of the application; `output.topic` is the topic of token records.
        tokens: what makes them.
        metrics: what is counted.
        partitions: asked once, before the first record, how many the topic of token records has.
        merging: brings lines into their order.

    Attributes:
        scorer: the tokens that it was given.
        decoder: reads the lines.
        misfits: how reading the lines differs from the checkpoint's training.
        while_scoring, time_moved, drifted: as of `Pipeline`; never called.

    Raises:
        SettingsError: the settings are not for rekeying, or do not fit the checkpoint.
    """

    def __init__(
        self,
        settings: Settings,
        tokens: Tokens,
        metrics: Metrics,
        partitions: Callable[[], int],
        merging: Merging | None = None,
    ) -> None:
        _check(settings)
        self.misfits = check_fit(settings, tokens.vocabulary, tokens.reading, parsed=False, times=True, sessions=False)
        self.scorer = tokens
        self.decoder = decoder_of(settings, tokens.vocabulary)
        self._vocabulary = VocabularyId.of(tokens.vocabulary)
        self._counted = CountedDecoder(self.decoder, metrics)
        self._metrics = metrics
        metrics.expect(stages=get_args(Stage), dead_letters=get_args(Reason))
        self._max_bytes = settings.message_max_bytes
        self._ask, self._partitions = partitions, 0
        self._open: dict[Partition, _Open] = {}
        self._merging = merging or Merging()
        self.while_scoring: Callable[[], None] = lambda: None
        self.time_moved: Callable[[Partition, Move], None] = lambda _partition, _move: None
        self.drifted: Callable[[DriftStatus, str], None] = lambda _drift, _before: None

    # -- partitions ------------------------------------------------------------------------------------------------

    feedback_version: Final = None

    def open(
        self,
        partition: Partition,
        position: int = 0,
        live_from: int = 0,
        sessions: SessionsState | None = None,
        thresholds: AdaptiveState | None = None,
        texts: pa.RecordBatch | None = None,
        feedback: int | None = None,
        told: str | None = "",
    ) -> None:
        """Begin, or begin again, with a partition; what lies before `live_from` is written already.

        Raises:
            RunError: the application has scored before: it has sessions that would never be.
        """
        del texts, feedback, told  # which only sessions have
        if thresholds is not None or (sessions is not None and (len(sessions.keys) or sessions.clock.waiting)):
            raise RunError(
                f"{partition}: the state of this application holds sessions, so it was logmamba run's; allowed: an "
                "application_id of its own for rekey"
            )
        self._open[partition] = _Open(live_from)
        self._merging.open(partition, position)

    def drop(self, partition: Partition) -> None:
        """Forget a partition."""
        self._open.pop(partition, None)
        self._merging.drop(partition)
        self._metrics.forget(*partition)

    def position(self, partition: Partition) -> int:
        """Offset after the last record of which everything was handed on."""
        return self._merging.position(partition)

    def replaying(self, partition: Partition) -> bool:
        """Whether the partition is still before the offset from which it is live."""
        return self._merging.position(partition) < self._open[partition].live_from

    def open_sessions(self, partition: Partition) -> int:
        """None are."""
        del partition
        return 0

    def newest_ms(self, partition: Partition) -> int | None:
        """Kafka timestamp of the latest record that was processed, in ms; None where that is not known."""
        return self._open[partition].newest_ms

    def drift(self) -> None:
        """Nothing is said of it: there are no sessions."""

    @property
    def unknown_share(self) -> float | None:
        """As of `CountedDecoder`."""
        return self._counted.unknown_share

    def unfinished(self, partition: Partition) -> bool:
        """Whether `flush` would have anything to do: never."""
        del partition
        return False

    def state(self, partition: Partition) -> tuple[SessionsState, None, None]:
        """What a snapshot of the partition holds besides its position: nothing."""
        del partition
        return SessionsState.empty(), None, None

    def image(self, partition: Partition) -> tuple[NoSessions, None, None]:
        """Likewise."""
        del partition
        return NoSessions(), None, None

    def told(self, partition: Partition, position: int) -> str:
        """Nothing."""
        del partition, position
        return ""

    def look_back(self, partition: Partition) -> bool:
        """There is nothing to look at."""
        del partition
        return False

    def reached_end(self, partition: Partition, end: int) -> None:
        """Nothing is left before `end`: no line waits for this partition, and a replay is over, too."""
        if self.replaying(partition) and self._open[partition].live_from <= end:
            self._merging.pass_over(partition, self._open[partition].live_from)
        self._merging.ended(partition)

    @property
    def holds(self) -> bool:
        """Whether `process` may have outputs without new records."""
        return self._merging.holds

    # -- records in, outputs out -----------------------------------------------------------------------------------

    def process(self, batch: Sequence[Records]) -> list[Output]:
        """Token records and dead letters of these records.

        Args:
            batch: records that follow the partitions' positions, at most one `Records` a partition.

        Raises:
            RunError: records that do not, or the topic of token records is gone.
        """
        live = [records for records in map(self._advance, batch) if len(records.offsets)]
        if live:
            with self._metrics.stage("decode"):
                decoded = self._counted.decode(live)
            for records, events in zip(live, decoded, strict=True):
                letters = [
                    (int(records.offsets[letter.index]), Output(None, *dead_letter(records, letter, self._max_bytes)))
                    for letter in events.dead_letters
                ]
                partition = Partition(records.topic, records.partition)
                self._merging.put(partition, events, letters, records.last_offset + 1)
        with self._metrics.stage("encode"):
            merged = self._merging.take()
            return [*merged.letters, *self._keyed(merged)]

    def flush(self, partition: Partition, end: int, closed_by: Literal["idle", "end_of_input"]) -> list[Output]:
        """Nothing is kept, so nothing comes."""
        del partition, end, closed_by
        return []

    def _advance(self, records: Records) -> Records:
        """Take records in; returns those of which nothing is written yet."""
        partition = Partition(records.topic, records.partition)
        opened = self._open[partition]
        if records.first_offset < (read_to := self._merging.read_to(partition)):
            raise RunError(f"{partition}: offset {records.first_offset} came again after {read_to - 1}")
        opened.newest_ms = records.last_ms
        if records.first_offset >= opened.live_from:
            return records
        written = int(np.searchsorted(np.asarray(records.offsets), opened.live_from))
        self._metrics.replayed(written)
        self._merging.pass_over(partition, min(records.last_offset + 1, opened.live_from))
        return _without_first(records, written)

    def _keyed(self, merged: Merged) -> Iterator[Output]:
        keys, tokens, times, origins, _ = merged
        if not len(keys):
            return
        if not self._partitions:
            self._partitions = self._ask()
        for partition, own, rows, numbers in _keyed(keys, self._partitions):
            record = TokenRecord(self._vocabulary, own, numbers, tokens[rows], times[rows], origins.select(rows))
            for value in self._values(record):
                yield Output("normal", None, value, [], partition=partition)

    def _values(self, record: TokenRecord) -> Iterator[bytes]:
        """The record, or several where it would be larger than a message may be."""
        if len(record) <= EVENTS_OF_A_RECORD:
            value = encode(record)
            if len(value) <= self._max_bytes - MESSAGE_OVERHEAD_BYTES:
                yield value
                return
            if len(record) == 1:
                raise RunError(
                    f"kafka.message.max.bytes: {self._max_bytes}, and a token record of one event has {len(value)}"
                )
        half = len(record) // 2
        for part in slice(half), slice(half, None):
            numbers, of_events = np.unique(record.key_numbers[part], return_inverse=True)
            yield from self._values(
                TokenRecord(
                    vocabulary=record.vocabulary,
                    keys=record.keys.take(pa.array(numbers)),
                    key_numbers=of_events,
                    tokens=record.tokens[part],
                    times=record.times[part],
                    origins=record.origins.select(part),
                )
            )


AnyPipeline = Pipeline | Rekeying


def _check(settings: Settings) -> None:
    errors = []
    if settings.input.tokens:
        errors.append("input.format: tokens, which rekey has written already; allowed: a format of lines")
    if settings.output.topic == _SCORES:
        errors.append(
            f"output.topic: {_SCORES}, the default of score records; allowed: the name of a topic for token records"
        )
    if errors:
        raise SettingsError(errors)


def _without_first(records: Records, rows: int) -> Records:
    """The records without the first ones."""
    headers_of = records.headers_of
    return replace(
        records,
        offsets=records.offsets[rows:],
        values=records.values[rows:],
        keys=None if records.keys is None else records.keys[rows:],
        timestamps=None if records.timestamps is None else records.timestamps[rows:],
        headers=None if records.headers is None else records.headers[rows:],
        headers_of=None if headers_of is None else lambda row: headers_of(row + rows),
    )


def _keyed(keys: pa.StringArray, partitions: int) -> Iterator[tuple[int, pa.StringArray, Column, Column]]:
    """Share keys out: each partition that gets any, its keys, the rows of events that have one, and which.

    Rows are in order; every partition's keys are there once.
    """
    encoded = keys.dictionary_encode()
    known, numbers = encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)
    data, bounds = flat(known)
    of_known = np.empty(len(known), np.int64)
    partitions_of(data, bounds[1:], partitions, of_known)
    by_partition = np.argsort(of_known, kind="stable")
    begins = np.searchsorted(of_known[by_partition], np.arange(partitions + 1))
    ranks = np.empty(len(known), np.int64)
    ranks[by_partition] = np.arange(len(known)) - begins[of_known[by_partition]]
    of_events = of_known[numbers]
    rows = np.argsort(of_events, kind="stable")
    row_begins = np.searchsorted(of_events[rows], np.arange(partitions + 1))
    for partition in np.unique(of_known).tolist():
        chosen = rows[row_begins[partition] : row_begins[partition + 1]]
        own = by_partition[begins[partition] : begins[partition + 1]]
        yield partition, known.take(pa.array(own)), chosen, ranks[numbers[chosen]]
