"""Writes keyed records to a topic, outside any transaction: what generated lines and verdicts need."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from worker.errors import RunError
from worker.kafka.clients import ClientProperties
from worker.settings.document import Settings

_FLUSH_TIMEOUT_S = 60.0


class Writer:
    """Writes to one topic, in the order of the calls also when a batch is retried.

    Args:
        settings: of the application.
        topic: an existing one.
    """

    def __init__(self, settings: Settings, topic: str) -> None:
        self._topic = topic
        self._producer = Producer(ClientProperties(settings).plain_producer())
        self._failed: list[KafkaError] = []

    def write(self, value: str | bytes | None, key: str, timestamp_ms: int = 0) -> None:
        """Hand one record over, of that time or, at 0, of now; waits while the client's queue is full.

        Raises:
            RunError: the client refuses it.
        """
        while True:
            try:
                self._producer.produce(self._topic, value, key, on_delivery=self._delivered, timestamp=timestamp_ms)
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                raise RunError(f"{self._topic}: {error.args[0].str()}") from error
            else:
                return

    def serve(self) -> None:
        """Hear from the client what was delivered; to be called now and then."""
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait until everything is delivered.

        Raises:
            RunError: something was not.
        """
        left = self._producer.flush(_FLUSH_TIMEOUT_S)
        if self._failed or left:
            reason = self._failed[0].str() if self._failed else f"no answer within {_FLUSH_TIMEOUT_S:.0f} s"
            raise RunError(f"{self._topic}: {len(self._failed) + left} records were not delivered: {reason}")

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._failed.append(error)
