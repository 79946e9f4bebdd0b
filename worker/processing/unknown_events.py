"""Says when most events of late fit no template: a checkpoint of other logs scores them all the same, and wrongly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import islice

import structlog

from detector.text.vocabulary import UNK
from worker.observability.status import MOSTLY_UNKNOWN
from worker.processing.clock import Column

_WINDOW = 1_000  # events between two judgements
_AGAIN_AFTER_S = 600.0
_KINDS = 100_000  # that are remembered: the newest

_log = structlog.get_logger(__name__)


class UnknownEvents:
    """The share of unknown ones among the latest thousand events or more.

    The log gets `events_mostly_unknown` when the share reaches `MOSTLY_UNKNOWN`, again every ten minutes while that
    lasts, and `events_known_again` at its end.

    Args:
        clock: monotonic seconds.

    Attributes:
        share: in [0, 1]; None before the first thousand.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.share: float | None = None
        self._clock = clock
        self._events = self._unknown = 0
        self._said_at: float | None = None
        self._kinds: dict[int, None] = {}

    def new_kinds(self, columns: Iterable[Column]) -> int:
        """How many kinds of unknown event are among these tokens that did not come before.

        Kinds are told apart by the words that their lines share with templates; those that share none are one kind, and
        with `tokenizer.unknown: unk` all are.
        """
        kinds = self._kinds
        before = len(kinds)
        for tokens in columns:
            kinds.update(dict.fromkeys(tokens[tokens <= UNK].tolist()))
        new = len(kinds) - before
        # All at once: to find the first key, a dictionary passes over all that were deleted before it.
        for kind in [*islice(kinds, max(0, len(kinds) - _KINDS))]:
            del kinds[kind]
        return new

    def count(self, events: int, unknown: int) -> None:
        """So many events came, so many of them unknown."""
        self._events += events
        self._unknown += unknown
        if self._events < _WINDOW:
            return
        self.share = self._unknown / self._events
        self._events = self._unknown = 0
        now = self._clock()
        if self.share >= MOSTLY_UNKNOWN:
            if self._said_at is None or now - self._said_at >= _AGAIN_AFTER_S:
                self._said_at = now
                _log.warning(
                    "events_mostly_unknown",
                    share=round(self.share, 3),
                    reason="the checkpoint knows few of these lines; was it trained on logs of this kind?",
                )
        elif self._said_at is not None:
            self._said_at = None
            _log.info("events_known_again", share=round(self.share, 3))
