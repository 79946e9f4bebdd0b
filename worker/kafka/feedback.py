"""Verdicts of operators in their topic, read and written."""

from __future__ import annotations

import time
from collections.abc import Iterable

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from worker.delivery.feedback_topic import FeedbackTopic
from worker.delivery.outage import Outage
from worker.errors import RunError
from worker.kafka.clients import ClientProperties
from worker.kafka.source import KafkaReader
from worker.processing.feedback import FeedbackRecord
from worker.settings.document import Settings

_WRITE_TIMEOUT_S = 60.0
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
    producer = Producer(ClientProperties(settings).plain_producer())
    failed: list[KafkaError] = []

    def delivered(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            failed.append(error)

    written = 0
    try:
        for pattern, record in changes:
            producer.produce(topic, None if record is None else record.to_json(), pattern, on_delivery=delivered)
            producer.poll(0)
            written += 1
        left = producer.flush(_WRITE_TIMEOUT_S)
    except (KafkaException, BufferError) as error:
        raise RunError(f"feedback.topic: {topic}: {error.args[0]}") from error
    if failed or left:
        reason = failed[0].str() if failed else f"no answer within {_WRITE_TIMEOUT_S:.0f} s"
        raise RunError(
            f"feedback.topic: {topic}: {len(failed) + left} of {written} verdicts were not written: {reason}"
        )
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
