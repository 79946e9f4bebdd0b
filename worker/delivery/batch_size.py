"""How many records a turn of the loop takes: fewer when the scorer is behind, so that no turn takes long."""

from __future__ import annotations

_TARGET_S = 1.0
_LEAST = 100


class BatchSize:
    """The size of the next batch.

    Args:
        most: `worker.batch_records`.
        many_events: a record holds so many that the first batch has to be small.

    Attributes:
        records: of the next batch at most.
    """

    def __init__(self, most: int, *, many_events: bool = False) -> None:
        self._most = most
        self.records = min(most, _LEAST) if many_events else most

    def adapt(self, records: int, took_s: float) -> None:
        """So many records took so long: smaller batches when that was much, larger ones when it was little."""
        if took_s > _TARGET_S:
            self.records = min(self._most, max(_LEAST, int(records * _TARGET_S / took_s)))
        elif took_s < _TARGET_S / 2 and records >= self.records:
            self.records = min(self._most, self.records * 2)
