"""A decoder whose events are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from detector.text.vocabulary import UNK
from worker.observability.metrics import Metrics
from worker.processing.decoder import Events
from worker.processing.records import Records
from worker.processing.token_decoder import AnyDecoder
from worker.processing.unknown_events import UnknownEvents


class CountedDecoder:
    """Reads events and counts what there was, and how many of them are unknown.

    Args:
        decoder: that reads them.
        metrics: what is counted.
    """

    def __init__(self, decoder: AnyDecoder, metrics: Metrics) -> None:
        self._decoder, self._metrics = decoder, metrics
        self._unknown = UnknownEvents()

    @property
    def unknown_share(self) -> float | None:
        """Share of unknown ones among the latest thousand events or more; None before the first thousand."""
        return self._unknown.share

    def decode(self, batch: Sequence[Records]) -> list[Events]:
        """The events of each part of a batch, in the order of the parts."""
        decoded: list[Events] = self._decoder.decode(batch)
        lines = sum(len(events) for events in decoded)
        unknown = sum(int(np.count_nonzero(events.tokens <= UNK)) for events in decoded)
        self._unknown.count(lines, unknown)
        if unknown:
            self._metrics.new_templates(self._unknown.new_kinds(events.tokens for events in decoded))
        if self._unknown.share is not None:
            self._metrics.unknown_share(self._unknown.share)
        self._metrics.decoded(
            records=sum(len(records.offsets) for records in batch),
            events=lines,
            unknown=unknown,
            cut=sum(events.cut for events in decoded),
            ignored=sum(events.ignored for events in decoded),
            skipped=sum(events.skipped for events in decoded),
            dead_letters=Counter(letter.reason for events in decoded for letter in events.dead_letters),
        )
        return decoded
