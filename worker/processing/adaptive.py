"""Thresholds that follow the score distribution of a partition, without labels.

About `target_rate` of a partition's sessions are critical, and ten times as many at least a warning. With a rate of
0.001 that is what the fixed thresholds 0.95 and 0.7 give on held-out normal sessions without labels.

The partition's sessions, in the order in which they closed, are cut into blocks of 5 / target_rate. A complete block
proposes a threshold just above its 5th highest score and one just above its 50th, by one step of the digits that a
record shows: the chance that another such session reaches the score of the k-th of n is k / (n + 1). In force is the
median of what the latest nine blocks propose, each threshold for itself; blocks still to come propose the fixed
thresholds. So

- the fixed thresholds hold for the first 25 / target_rate sessions, and have a share in the median for the first 45;
- what is new and stays is followed after 25 / target_rate sessions, and what was before is forgotten after 45;
- a burst of anomalies that touches at most four blocks, so every one of up to 15 / target_rate sessions, takes no
  threshold above what the highest of the other blocks proposes, whatever its scores;
- of equal scores either all reach a threshold or none does: where more sessions share a score than the rate allows,
  the threshold lies above it and fewer are reported. Only a score of 1 is always critical;
- the rate is reached with a standard error of a fifth, a little lower rather than higher.

Order statistics assume nothing about the tail, and a transformation of the scores would not change them. Peaks over
threshold (SPOT, Siffer et al. 2017) needs fewer sessions, but fits a continuous tail to the excesses, which in logs,
whose sessions repeat, are few distinct ones; and as it learns from no alarm, it never follows what is new and stays.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from worker.processing.score_records import DECIMALS, Thresholds

CRITICAL_PER_BLOCK: Final = 5
WARNINGS_PER_BLOCK: Final = 10 * CRITICAL_PER_BLOCK
BLOCKS: Final = 9
# No threshold falls below it, however quiet the stream: a lower score says "rather normal".
LOWEST: Final = 0.5
_STEP: Final = 10.0**-DECIMALS

_Score = Annotated[float, Field(ge=0, le=1)]


class AdaptiveState(BaseModel):
    """What a snapshot holds of a partition's adaptive thresholds; meaningless for another checkpoint or rate."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    checkpoint: str  # "sha256:…", that of the scores
    target_rate: float
    sessions: Annotated[int, Field(ge=0)]  # of the block that is not complete
    highest: tuple[_Score, ...]  # of those sessions, ascending; at most WARNINGS_PER_BLOCK
    proposed: Annotated[tuple[tuple[_Score, _Score], ...], Field(max_length=BLOCKS)]  # by complete blocks, oldest first


class AdaptiveThresholds:
    """The thresholds of one partition; a function of its final scores, in order, and of nothing else.

    Args:
        fixed: hold until enough is learnt.
        target_rate: share of sessions that may be critical.
        checkpoint: digest of the one that scores.
        state: to go on from; one of another checkpoint or rate says nothing about the scores to come, and everything
            is learnt anew.

    Attributes:
        in_force: what the next score is judged by.
    """

    def __init__(
        self, fixed: Thresholds, target_rate: float, checkpoint: str, state: AdaptiveState | None = None
    ) -> None:
        self._fixed = fixed
        self._target_rate = target_rate
        self._checkpoint = checkpoint
        if state is None or (state.checkpoint, state.target_rate) != (checkpoint, target_rate):
            state = AdaptiveState(checkpoint=checkpoint, target_rate=target_rate, sessions=0, highest=(), proposed=())
        self._block_sessions = round(CRITICAL_PER_BLOCK / target_rate)
        self._sessions = state.sessions
        self._highest = list(state.highest)  # a heap, its least first
        self._proposed = deque((Thresholds(*each) for each in state.proposed), BLOCKS)
        self.in_force = self._median()

    def holds_for(self, sessions: int) -> bool:
        """Whether so many more final scores leave in force what is."""
        return self._sessions + sessions < self._block_sessions

    def learn(self, score: float) -> None:
        """Take in the final score, in [0, 1], of the next session."""
        shown = round(score, DECIMALS)
        if len(self._highest) < WARNINGS_PER_BLOCK:
            heapq.heappush(self._highest, shown)
        elif shown > self._highest[0]:
            heapq.heapreplace(self._highest, shown)
        self._sessions += 1
        if self._sessions == self._block_sessions:
            highest = sorted(self._highest, reverse=True)
            self._proposed.append(
                Thresholds(*(_just_above(highest[reach - 1]) for reach in (WARNINGS_PER_BLOCK, CRITICAL_PER_BLOCK)))
            )
            self._sessions = 0
            self._highest.clear()
            self.in_force = self._median()

    def state(self) -> AdaptiveState:
        """For a snapshot: `AdaptiveThresholds` with it goes on exactly where this one stands."""
        return AdaptiveState(
            checkpoint=self._checkpoint,
            target_rate=self._target_rate,
            sessions=self._sessions,
            highest=tuple(sorted(self._highest)),
            proposed=tuple((each.warning, each.critical) for each in self._proposed),
        )

    def _median(self) -> Thresholds:
        proposed = [*self._proposed, *[self._fixed] * (BLOCKS - len(self._proposed))]
        return Thresholds(*(sorted(each)[BLOCKS // 2] for each in zip(*proposed, strict=True)))


def _just_above(score: float) -> float:
    return min(max(round(score + _STEP, DECIMALS), LOWEST), 1.0)
