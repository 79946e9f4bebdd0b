"""Verdicts for tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from detector.scoring.families import Verdict
from detector.scoring.session_pattern import SessionPatterns
from detector.text.vocabulary import N_SPECIAL, Vocabulary
from worker.processing.feedback import VERDICTS, Feedback, FeedbackRecord


def record_of(pattern: str, verdict: Verdict) -> FeedbackRecord:
    return FeedbackRecord(pattern=pattern, verdict=verdict, at="2026-11-30T08:00:00Z", by="test")


def counts_of(vocabulary: Vocabulary, *templates: str) -> str:
    """The pattern of a session that has these templates, of a checkpoint that learnt no tolerances."""
    tokens = [vocabulary.token_of(each) for each in templates]
    return SessionPatterns(vocabulary, None).of(np.array(tokens, np.int64)) or ""


def feedback_on(verdicts: dict[str, Verdict]) -> Feedback:
    return Feedback({each: record_of(each, verdict) for each, verdict in verdicts.items()}, version=len(verdicts))


def verdicts_on(vocabulary: Vocabulary) -> st.SearchStrategy[Feedback]:
    """Verdicts on many sessions of up to six events of the templates."""
    patterns = SessionPatterns(vocabulary, None)
    events = st.lists(st.integers(N_SPECIAL, len(vocabulary) - 1), min_size=1, max_size=6)
    on = events.map(lambda tokens: patterns.of(np.array(tokens, np.int64)) or "")
    return st.dictionaries(on, st.sampled_from(VERDICTS), max_size=60).map(feedback_on)
