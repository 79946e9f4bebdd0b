"""What Kafka clients say in the background: each kind at most once a minute, with how often it came.

A client whose broker is away says so at every attempt to connect, several times a second.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable

import structlog
from confluent_kafka import KafkaError

_EVERY_S = 60.0

_log = structlog.get_logger(__name__)


class _Kinds:
    """Which kinds were heard of less than a minute ago, and how often since."""

    def __init__(self) -> None:
        self._told_at: dict[Hashable, float] = {}
        self._untold: dict[Hashable, int] = {}

    def times(self, kind: Hashable) -> int:
        """How often it came since it was last told of, this time included; 0 when it is not to be told of now."""
        now = time.monotonic()
        count = self._untold.get(kind, 0) + 1
        if now - self._told_at.get(kind, -_EVERY_S) < _EVERY_S:
            self._untold[kind] = count
            return 0
        self._told_at[kind], self._untold[kind] = now, 0
        return count


class ClientErrorLog:
    """Logs the errors that a client reports.

    Args:
        client: how the log names it.
    """

    def __init__(self, client: str) -> None:
        self._client = client
        self._kinds = _Kinds()

    def __call__(self, error: KafkaError) -> None:
        """The client reports an error."""
        if times := self._kinds.times(error.code()):
            _log.warning("kafka_client_error", client=self._client, code=error.name(), reason=error.str(), times=times)


# A client that is fenced says so in several lines of internals; the worker that this ends says it in one, with the why.
_FENCED = ("fenced by a newer instance", "attempted an operation with an old epoch")


class _OncePerKind(logging.Filter):
    """Lets a line of the client library pass if no other of its facility (FAIL, REQTMOUT, …) did lately."""

    def __init__(self) -> None:
        super().__init__()
        self._kinds = _Kinds()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if any(words in text for words in _FENCED):
            return False
        times = self._kinds.times((record.levelno, text.partition(" ")[0]))
        if times > 1:
            record.msg, record.args = f"{text} (and {times - 1} more since the last such line)", ()
        return times > 0


def client_logger() -> logging.Logger:
    """The logger for the client library's own lines, all clients of the process together."""
    logger = logging.getLogger("librdkafka")
    if not logger.filters:
        logger.addFilter(_OncePerKind())
        # Python writes what no handler takes to standard error. A command that sets up no log says by itself what went
        # wrong, in one line.
        logger.addHandler(logging.NullHandler())
    return logger
