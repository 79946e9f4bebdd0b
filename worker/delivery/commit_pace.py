"""When the next commit is due: results become visible soon, and a busy worker does not spend its time on commits.

The loop stands still while it commits. With little to do that costs nothing, so a commit follows each batch that has
outputs, as far as `worker.commit_interval` lets it. A worker that is behind gains from longer transactions what each
commit would cost, and positions alone are in no hurry.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_APART_S = 0.1  # from the end of a commit to the next one, where nothing hurries
_MOST_SHARE = 0.2  # of the time, for commits that do


class CommitPace:
    """Tells when a commit is due.

    Args:
        interval_s: the least from the end of a commit to the next one; 0: one is always due.
        clock: monotonic seconds.

    Attributes:
        behind: whether more is to be done than was taken in hand last.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s, self._clock = interval_s, clock
        self._ended_at, self._took_s = clock(), 0.0
        self.behind = False

    def due(self, *, outputs: bool) -> bool:
        """Whether to commit now; `outputs`, or else positions alone, wait for it."""
        if self._interval_s <= 0.0:
            return True
        hurried = outputs and not self.behind
        spared_s = min(_APART_S, self._took_s * (1 / _MOST_SHARE - 1)) if hurried else _APART_S
        return self._clock() - self._ended_at >= max(self._interval_s, spared_s)

    def committed(self, began: float) -> None:
        """A commit that began at this moment of the clock has ended, if only because there was nothing to commit."""
        self._ended_at = self._clock()
        self._took_s = self._ended_at - began
