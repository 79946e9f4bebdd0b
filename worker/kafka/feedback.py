"""Verdicts of operators in their topic, read and written."""

from __future__ import annotations

import time
from collections.abc import Iterable

from worker.delivery.feedback_topic import FeedbackTopic
from worker.delivery.outage import Outage
from worker.errors import RunError
from worker.kafka.clients import ClientProperties
from worker.kafka.source import KafkaReader
from worker.kafka.writer import Writer
from worker.processing.feedback import FeedbackRecord
from worker.settings.document import Settings

_PATIENCE_S = 10.0


def feedback_topic(settings: Settings) -> FeedbackTopic | None:
    """What reads the topic of verdicts; None where the settings name none."""
    topic = settings.feedback.topic
    if topic is None:
        return None
    reader = KafkaReader(ClientProperties(settings).reader(), _Patient(), batch_records=settings.worker.batch_records)
    return FeedbackTopic(topic, reader)


def write_feedback(settings: Settings, changes: Iterable[tuple[str, FeedbackRecord | None]]) -> int:
    """Write verdicts on patterns, or take those on them back where there is None; returns how many were written.

    What came before of them is in the topic if it ends otherwise; writing all again does no harm.

    Raises:
        RunError: the brokers have not taken all of them.
    """
    topic = settings.feedback.topic
    assert topic is not None, "whoever writes has seen to that"
    writer, written = Writer(settings, topic), 0
    for pattern, record in changes:
        writer.write(None if record is None else record.to_json(), pattern)
        writer.serve()
        written += 1
    writer.flush()
    return written


class _Patient(Outage):
    """A broker that has not answered for some seconds is an error, which whoever reads may try again after.

    That it is away is said by others.
    """

    _began: float | None = None

    def wait(self, reason: str) -> None:
        now = time.monotonic()
        self._began = self._began or now
        if now - self._began > _PATIENCE_S:
            self._began = None
            raise RunError(reason)

    def over(self) -> None:
        self._began = None
