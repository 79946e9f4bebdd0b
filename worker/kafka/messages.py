"""Messages of the client as columns."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import partial
from typing import final, overload

import numpy as np
from confluent_kafka import Message

from worker.processing.clock import Column
from worker.processing.records import Records


@final
class MessageTimes(Sequence[int]):
    """Kafka's timestamps of messages, in ms, looked up where somebody asks: few settings need those of all.

    Args:
        messages: good ones, which have a timestamp; -1 where the record has none.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages = messages

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> list[int]: ...
    def __getitem__(self, at: int | slice) -> int | list[int]:
        if isinstance(at, slice):
            return [time_ms for _, time_ms in map(Message.timestamp, self._messages[at])]
        return self._messages[at].timestamp()[1]

    def __array__(self, dtype: object = None, copy: bool | None = None) -> Column:
        del dtype, copy  # it is asked for as int64 alone
        return np.fromiter((time_ms for _, time_ms in map(Message.timestamp, self._messages)), np.int64, len(self))


def by_partition(messages: Iterable[Message], with_headers: bool) -> list[Records]:
    """The messages as columns, one `Records` a partition, order kept.

    `consume` returns runs of one partition's messages, so whole runs are moved rather than single messages.
    """
    runs: dict[tuple[str, int], list[Message]] = {}
    # Methods of the type are called twice as fast as those looked up for each message.
    for number, run in itertools.groupby(messages, Message.partition):
        for topic, part in itertools.groupby(run, Message.topic):
            runs.setdefault((topic, number), []).extend(part)  # type: ignore[arg-type]  # only an error has none
    return [
        Records(
            topic=topic,
            partition=partition,
            offsets=_offsets(run),
            values=[*map(Message.value, run)],
            keys=[*map(Message.key, run)],
            timestamps=MessageTimes(run),
            headers=[_pairs(m) for m in run] if with_headers else None,
            headers_of=partial(_pairs_at, run),
        )
        for (topic, partition), run in runs.items()
    ]


def _offsets(run: Sequence[Message]) -> Column:
    """Of messages in the order of their offsets; most often nothing lies between them."""
    first, last = run[0].offset() or 0, run[-1].offset() or 0
    if last - first == len(run) - 1:
        return np.arange(first, last + 1)
    return np.fromiter(map(Message.offset, run), np.int64, len(run))


def _pairs_at(messages: Sequence[Message], row: int) -> list[tuple[str, bytes | None]] | None:
    return _pairs(messages[row])


def _pairs(message: Message) -> list[tuple[str, bytes | None]] | None:
    """A record's headers; the client's type also allows the forms in which they can be produced."""
    headers = message.headers()
    if not isinstance(headers, list):
        return None
    return [(name, value.encode() if isinstance(value, str) else value) for name, value in headers]
