"""Which dead letters were sent again: the metadata of the offsets that the replaying group has committed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Self

import orjson

from worker.errors import RunError

_VERSION = 1
_MOST_BYTES = 4_000  # the broker's limit, `offset.metadata.max.bytes`, is 4,096

_Spans = list[tuple[int, int]]


class Replayed:
    """The dead letters of one partition that are dealt with: for each reason, spans of offsets.

    Several spans are there where a replay left some out, by their time or their number.

    Args:
        spans: for each reason, [begin, end) in order, apart from each other.
    """

    def __init__(self, spans: Mapping[str, _Spans]) -> None:
        self._spans = {reason: [*each] for reason, each in spans.items()}

    @classmethod
    def from_metadata(cls, metadata: str, oldest: int) -> Self:
        """What `to_metadata` wrote; what lies before the oldest offset is forgotten.

        Raises:
            RunError: something else wrote it.
        """
        try:
            found = orjson.loads(metadata or '{"version":1,"sent":{}}')
            if found["version"] != _VERSION:
                raise ValueError(f"version {found['version']!r}")
            spans = {
                str(reason): [(max(int(begin), oldest), int(end)) for begin, end in each if end > oldest]
                for reason, each in found["sent"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"what was replayed cannot be told from the committed offsets: {error}") from None
        return cls(spans)

    def to_metadata(self) -> str:
        """For the committed offset.

        Raises:
            RunError: there are too many spans.
        """
        text = orjson.dumps({"version": _VERSION, "sent": self._spans}).decode()
        if len(text) > _MOST_BYTES:
            raise RunError(
                "too many gaps between the dead letters that were replayed to remember them all; replay one reason "
                "without --since and --limit first"
            )
        return text

    def first_left(self, reasons: Collection[str], oldest: int) -> int:
        """The first offset that is not dealt with for all of the reasons."""
        ends = []
        for reason in reasons:
            spans = self._spans.get(reason, [])
            ends.append(spans[0][1] if spans and spans[0][0] <= oldest else oldest)
        return min(ends, default=oldest)

    def has(self, reason: str, offset: int) -> bool:
        """Whether a dead letter is dealt with."""
        return any(begin <= offset < end for begin, end in self._spans.get(reason, ()))

    def with_span(self, reasons: Collection[str], begin: int, end: int) -> Replayed:
        """Also the dead letters of these reasons in [begin, end)."""
        spans = dict(self._spans)
        for reason in reasons:
            merged: _Spans = []
            for start, stop in sorted([*spans.get(reason, []), (begin, end)]):
                if merged and start <= merged[-1][1]:
                    merged[-1] = merged[-1][0], max(stop, merged[-1][1])
                else:
                    merged.append((start, stop))
            spans[reason] = merged
        return Replayed(spans)
