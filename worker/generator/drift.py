"""What changes in the generated cluster while it runs: a release that host after host takes, slower disks, nights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.generator.blocks import NODES, Lived
from worker.generator.lines import FIRST_NEW, SERVICE_LINES, reworded_steps

DAY_MS = 86_400_000
MOST_SLOWDOWN = 5.0  # beyond it a pause could be as long as the gap that ends a session

_Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Drift:
    """A release of the cluster's software that spreads host by host, and what it brings.

    Attributes:
        after_s: seconds of the log before the first host has the release.
        rollout_s: seconds from then until the last host has it, each after the same time as the one before; at 0 all
            have it at once.
        reworded: share of the templates that the release words anew or whose component it renames, 0 to 1. Frequent
            and rare ones take turns, so it is about the share of the lines, too.
        new_service: whether the release brings a cache, whose lines show in two of five blocks.
        slowdown: how many times as long a block takes to be written at the end of the rollout, 1 to 5; it grows
            evenly over the rollout and is no matter of hosts.
    """

    after_s: float = 0.0
    rollout_s: float = 0.0
    reworded: float = 0.0
    new_service: bool = False
    slowdown: float = 1.0

    def __post_init__(self) -> None:
        if min(self.after_s, self.rollout_s) < 0:
            raise ValueError("after_s and rollout_s are at least 0")
        if not 0 <= self.reworded <= 1:
            raise ValueError(f"reworded is {self.reworded}, not between 0 and 1")
        if not 1 <= self.slowdown <= MOST_SLOWDOWN:
            raise ValueError(f"slowdown is {self.slowdown}, not between 1 and {MOST_SLOWDOWN:g}")

    def slow_at(self, since_start_ms: _Times) -> _Times:
        """How many times as long a block takes to be written that begins so long after the log."""
        return 1 + (self.slowdown - 1) * self._spread(since_start_ms)

    def serviced_share(self, since_start_ms: _Times) -> _Times:
        """Share of the hosts with the new service."""
        return self._spread(since_start_ms) if self.new_service else np.zeros_like(since_start_ms)

    def _spread(self, since_start_ms: _Times) -> _Times:
        passed = since_start_ms - 1000 * self.after_s
        if not self.rollout_s:
            return (passed >= 0).astype(np.float64)
        return np.clip(passed / (1000 * self.rollout_s), 0, 1)

    def released(self, lives: Lived, start_ms: int, seed: int) -> Lived:
        """The lives with every line as the host says it that writes it, and which of them are new."""
        lines = lives.lines
        steps = reworded_steps(self.reworded)
        turn = np.random.default_rng(seed).permutation(len(NODES)) / len(NODES)
        takes_it = start_ms + 1000 * (self.after_s + self.rollout_s * turn)
        new = np.isin(lines.step, steps) & (lines.at >= takes_it[lines.node])
        lines.step[new] += FIRST_NEW
        new |= lines.step >= FIRST_NEW + SERVICE_LINES.start
        return lives.with_new_lines(new)


@dataclass(frozen=True, slots=True)
class DayAndNight:
    """Times of a cluster that is busiest at noon and calmest at midnight (UTC).

    Attributes:
        depth: how far the rate of new blocks swings about its mean, 0 (not at all) to below 1 (none at midnight).
    """

    depth: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.depth < 1:
            raise ValueError(f"day_night is {self.depth}, not from 0 to below 1")

    def even(self, at_ms: float) -> float:
        """The time that would be reached at an even rate: the integral of the rate, 1 - depth cos(2 pi t / day)."""
        return float(at_ms - self.depth * DAY_MS / (2 * np.pi) * np.sin(2 * np.pi * (at_ms % DAY_MS) / DAY_MS))

    def uneven(self, even_ms: _Times) -> _Times:
        """The inverse of `even`."""
        if not self.depth:
            return even_ms
        minutes = np.linspace(0, DAY_MS, 1441)
        passed = minutes - self.depth * DAY_MS / (2 * np.pi) * np.sin(2 * np.pi * minutes / DAY_MS)
        return even_ms // DAY_MS * DAY_MS + np.interp(even_ms % DAY_MS, passed, minutes)

    def night(self, at_ms: _Times) -> _Times:
        """0 at noon to `depth` at midnight."""
        return self.depth * (1 + np.cos(2 * np.pi * (at_ms % DAY_MS) / DAY_MS)) / 2
