"""What the pace of sessions adds to their scores and reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from detector.scoring.scores import Scores
from worker.processing.scorer import Paced, Reason


class _Reason(NamedTuple):
    text: str
    family: str


def both_reasons(counts: Reason | None, pace: Reason) -> Reason:
    """What there is to say of a session's events, and of its pace; it belongs where its events put it."""
    return pace if counts is None else _Reason(f"{counts.text} {pace.text}", counts.family)


def raised(scores: Scores, paced: Mapping[int, Paced]) -> Scores:
    """The scores of complete sessions with their pace."""
    if not paced:
        return scores
    finals = scores.finals.copy()
    for number, each in paced.items():
        finals[number] = max(finals[number], each.score)
    return replace(scores, finals=finals)
