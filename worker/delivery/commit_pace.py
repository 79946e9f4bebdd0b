"""When the next commit is due: results become visible soon, and a busy worker does not spend its time on commits.

The loop stands still while it commits. With little to do that costs nothing, so a commit follows each batch that has
outputs, as far as `worker.commit_interval` lets it. The more a worker has to do, the fuller are its batches, which they
also become where commits take long: then it gains from longer transactions what each commit would cost. A full batch
leaves records behind, which wait for far longer than that: until they are worked off, commits are rare. Positions alone
are in no hurry.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_APART_S = 0.1  # from the end of a commit to the next one, where nothing hurries
_BUSY = 0.5  # how full the batches are from which on nothing does; below that, in proportion
_BEHIND_S = 1.0  # likewise, while batches are full: what waits has waited for longer, and a commit takes tens of ms


class CommitPace:
    """Tells when a commit is due.

    Args:
        interval_s: the least from the end of a commit to the next one; 0: one is always due.
        clock: monotonic seconds.

    Attributes:
        fullness: of the latest batch, from 0 to 1: more is there to be done than a full one holds.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s, self._clock = interval_s, clock
        self._ended_at = clock()
        self.fullness = 0.0

    def due(self, *, outputs: bool) -> bool:
        """Whether to commit now; `outputs`, or else positions alone, wait for it."""
        if self._interval_s <= 0.0:
            return True
        spared_s = _APART_S * (min(1.0, self.fullness / _BUSY) if outputs else 1.0)
        if self.fullness >= 1.0:
            spared_s = _BEHIND_S
        return self._clock() - self._ended_at >= max(self._interval_s, spared_s)

    def committed(self) -> None:
        """A commit has ended, if only because there was nothing to commit."""
        self._ended_at = self._clock()
