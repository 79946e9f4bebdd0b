"""A made-up log without labels: a process that is known, and three in a hundred sessions in which it went wrong."""

from __future__ import annotations

import numpy as np

from detector.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    (
        "opened <*>",
        "read <*>",
        "written <*>",
        "copy of <*> stored",
        "audit of <*>",
        "slow disk",
        "failure in <*>",
        "closed",
    )
)
OPENED, READ, WRITTEN, COPIED, AUDIT, SLOW, FAILED, CLOSED = range(3, 11)


def normal(rng: np.random.Generator) -> list[int]:
    """Opened, as many writes as reads, three copies, closed; one in six is audited, which may find a slow disk."""
    audit = [AUDIT, *([SLOW] if rng.random() < 0.15 else [])] if rng.random() < 0.16 else []
    return [OPENED, *([READ, WRITTEN] * int(rng.integers(2, 10))), *audit, COPIED, COPIED, COPIED, CLOSED]


def anomalous(rng: np.random.Generator) -> list[int]:
    """A copy is missing, a write is, or it failed."""
    events = normal(rng)
    kind = rng.integers(3)
    if kind == 2:
        return [*events[:-1], FAILED, CLOSED]
    events.remove((COPIED, WRITTEN)[kind])
    return events


def stream(n: int, share: float = 0.03, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Sessions, int64 each, and whether something went wrong in them."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < share
    return [np.array((anomalous if each else normal)(rng), np.int64) for each in wrong], wrong
