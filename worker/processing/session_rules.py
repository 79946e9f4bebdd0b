"""When the sessions of a partition close, as the settings and the checkpoint say together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from detector.text.vocabulary import Vocabulary
from worker.errors import SettingsError
from worker.settings.sections import SessionsSettings


@dataclass(frozen=True, slots=True)
class SessionRules:
    """When the sessions of a partition close; times in milliseconds of stream time."""

    gap_ms: int | None  # since the session's latest event; None = no gap
    max_age_ms: int | None  # since the session's first event; None = none
    max_events: int
    max_open: int
    max_future_skew_ms: int  # an event further ahead of stream time waits
    end_tokens: frozenset[int]

    @classmethod
    def of(cls, settings: SessionsSettings, vocabulary: Vocabulary) -> Self:
        """The rules of the settings, with the end events as tokens.

        Raises:
            SettingsError: an end event that is no template of the vocabulary.
        """
        tokens, errors = set(), []
        for index, text in enumerate(settings.end_events):
            token = vocabulary.token_of(text)
            if token is None:
                errors.append(
                    f"sessions.end_events[{index}]: {text!r} is no template of the checkpoint; allowed: the texts in "
                    "its vocabulary.json, or a line of such a kind"
                )
            else:
                tokens.add(token)
        if errors:
            raise SettingsError(errors)
        return cls(
            gap_ms=settings.gap_ms,
            max_age_ms=settings.max_age_ms,
            max_events=settings.max_events,
            max_open=settings.max_open,
            max_future_skew_ms=settings.max_future_skew_ms,
            end_tokens=frozenset(tokens),
        )
