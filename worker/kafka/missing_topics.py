"""Which of the input topics are not there: deleted, not made yet, or a pattern that matches none.

A worker goes on with the others; the client finds what is made later by itself. It is logged once when a topic is
missed and once when it is there (again).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import structlog
from confluent_kafka import KafkaException
from confluent_kafka.admin import TopicMetadata

from worker.formats.patterns import matches
from worker.kafka.errors import UNKNOWN

_ASK_EVERY_S = 10.0  # while one is missing

_log = structlog.get_logger(__name__)


class MissingTopics:
    """Of the input topics.

    Args:
        topics: names, or one regular expression that begins with ^.
        ask: what the brokers know of one topic, or of all of them; raises `KafkaException` without an answer.
        clock: monotonic seconds.

    Attributes:
        names: those that are missing, as far as is known; the pattern itself where it matches nothing.
    """

    def __init__(
        self,
        topics: Sequence[str],
        ask: Callable[[str | None], Mapping[str, TopicMetadata]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._topics = topics
        self._ask = ask
        self._clock = clock
        self._look_at = 0.0
        self.names: tuple[str, ...] = ()

    def suspect(self) -> None:
        """Something may have changed: the next `look` asks."""
        self._look_at = 0.0

    def look(self) -> None:
        """Ask the brokers where it is time; what they do not answer is asked again later."""
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + _ASK_EVERY_S
        try:
            missing = tuple(self._missing())
        except KafkaException:
            return
        for name in missing:
            if name not in self.names:
                _log.warning("input_topic_missing", topic=name)
        for name in self.names:
            if name not in missing:
                _log.info("input_topic_found", topic=name)
        self.names = missing
        if not missing:
            self._look_at = float("inf")

    def _missing(self) -> Iterator[str]:
        [first, *_] = self._topics
        if first.startswith("^"):
            if not any(matches(first, name) for name in self._ask(None)):
                yield first
            return
        for name in self._topics:
            error = self._ask(name)[name].error
            if error is not None and error.code() in UNKNOWN:
                yield name
