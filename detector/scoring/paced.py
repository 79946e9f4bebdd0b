"""What pauses and bursts make of sessions: a score and a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from detector.scoring.families import Way
from detector.scoring.judge import SUSPECT, USUAL, Judge, standing_out_scores
from detector.scoring.pace import Unusual
from detector.scoring.reasons import Reason, of_pace
from detector.text.vocabulary import Vocabulary


class Paced(NamedTuple):
    """A session that stands out by its pace.

    Attributes:
        score: below which its own cannot be; less than critical without a verdict.
        reason: why.
    """

    score: float
    reason: Reason


def paced(unusual: Mapping[int, Sequence[Unusual]], judge: Judge | None, vocabulary: Vocabulary) -> dict[int, Paced]:
    """The sessions that stand out, by number.

    Args:
        unusual: what is beyond its limit in each of some sessions, the furthest first.
        judge: what was said of families; None where nobody can say anything.
        vocabulary: of the tokens.
    """
    found: dict[int, Paced] = {}
    for number, each in unusual.items():
        ways = [Way(one.kind, one.token, 0) for one in each]
        standings = np.array([SUSPECT if judge is None else judge.standing_of(way) for way in ways], np.int8)
        scores = standing_out_scores(np.array([one.beyond for one in each]), standings)
        if (standings == USUAL).all():
            continue
        worst = int(scores.argmax())
        found[number] = Paced(float(scores[worst]), Reason(of_pace(each[worst], vocabulary), str(ways[worst])))
    return found
