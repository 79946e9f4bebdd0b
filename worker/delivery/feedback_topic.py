"""Reads the feedback topic: all of it when a worker starts, then what has come since."""

from __future__ import annotations

from collections.abc import Iterator

import structlog

from worker.delivery.protocols import TopicReader
from worker.errors import RunError
from worker.processing.feedback import Feedback, FeedbackRecord, read_record
from worker.processing.records import Partition

_log = structlog.get_logger(__name__)


class FeedbackTopic:
    """The verdicts of a topic, as far as it was read.

    A verdict on a pattern stands under the pattern as its key, so all on one pattern are in one partition, in their
    order. What the topic has is the same for whoever reads it, after compaction, too.

    Args:
        topic: its name; it may be made later.
        reader: of it.

    Attributes:
        feedback: what was read so far.
    """

    def __init__(self, topic: str, reader: TopicReader) -> None:
        self._topic, self._reader = topic, reader
        self._ends: dict[Partition, int] = {}
        self.feedback = Feedback()

    def look(self) -> Feedback:
        """Read what is new; what comes back is another object if that changed anything.

        Raises:
            RunError: the topic cannot be read; what was read before holds.
        """
        try:
            places = [Partition(self._topic, number) for number in self._reader.partitions(self._topic)]
            marks = {place: self._reader.watermarks(place) for place in places}
            if any(high < self._ends.get(place, 0) for place, (_, high) in marks.items()):
                _log.warning("feedback_read_anew", topic=self._topic, reason="the topic was made anew")
                self._ends, self.feedback = {}, Feedback()
            for place, (low, high) in marks.items():
                start = max(low, self._ends.get(place, 0))
                changes = list(self._changes(place, start, high))
                self._ends[place] = max(high, start)
                if changes:
                    self.feedback = self.feedback.with_changes(changes, sum(self._ends.values()))
        except RunError as error:
            raise RunError(f"feedback.topic: {error}") from error
        return self.feedback

    def _changes(self, place: Partition, start: int, end: int) -> Iterator[tuple[str, FeedbackRecord | None]]:
        for records in self._reader.read(place, start, end):
            keys = records.keys or [None] * len(records.offsets)
            for offset, key, value in zip(records.offsets, keys, records.values, strict=True):
                try:
                    if value is None:
                        yield (key or b"").decode(), None
                        continue
                    record = read_record(value)
                    if record.pattern.encode() != key:
                        raise ValueError("pattern: is not the record's key")
                except ValueError as error:
                    _log.warning("feedback_not_read", partition=str(place), offset=int(offset), reason=str(error))
                else:
                    yield record.pattern, record
