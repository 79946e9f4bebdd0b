"""What tolerances and verdicts make of a session's score, for checkpoints that learnt from sessions as they were.

- A session that breaks a tolerance has at least `WARNING_SCORE`, and no other one has but by its pace
  (`detector.scoring.paced`): so every warning has a reason.
- What the sequence model and the count profile say, the level of `detector.scoring.calibration`, ranks among suspects,
  divided by how many tolerances each breaks: a usual session with one fault comes before one that differs in all
  respects, which is rather another way of working.
- A checkpoint that was adapted knows what has become more frequent, too (`detector.scoring.rising`), which ranks beside
  the level: what goes wrong mostly does so again and again for a while, and what is only rare comes now and then.
- No score reaches `CRITICAL_SCORE` but those of families judged anomalous: without a verdict nothing tells what is
  wrong from what is only rare. A family judged normal is as if it broke nothing.

Early scores, of the events so far, know only what can no longer be made good: a rare template that nothing could make
likely, a template that came too often. Not even these count as long as a family that is no evidence has them too. They
say that a session is a warning, not how bad it is, and no final score is below those before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from detector.scoring import reasons
from detector.scoring.calibration import CRITICAL_SCORE, WARNING_SCORE, Combination
from detector.scoring.count_vectors import CountVectors
from detector.scoring.evidence import MAX_LEVEL, SURPRISE_LEVEL
from detector.scoring.families import Example, Families, Family, Verdict, Way, code_of, name_of, ways, ways_of
from detector.scoring.reasons import Reason
from detector.scoring.rising import EVENTS, MOST_RISING, Rising
from detector.scoring.tolerances import KINDS, MORE, RARE_TEMPLATE, Broken, Tolerances
from detector.text.vocabulary import UNK, Vocabulary

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Standings = npt.NDArray[np.int8]

USUAL, SUSPECT, ANOMALOUS = range(3)

_SCHEMA: Final = "logmamba.tolerances/1"
# Of a `Tolerances`, the type of the numbers and the width of each table.
_TABLES: Final[dict[str, tuple[Any, tuple[int, ...]]]] = {
    "histogram": (np.int64, (3,)),
    "contexts": (np.int64, (3,)),
    "after": (np.int64, (2,)),
    "before": (np.int64, (2,)),
    "relations": (np.int64, (6,)),
    "set_aside": (np.uint64, ()),
    "weights": (np.int64, ()),
}

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Pair = tuple[_Count, _Count]
_Triple = tuple[_Count, _Count, _Count]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Example(_Part):
    key: str
    events: list[Annotated[int, Field(ge=-(2**63), lt=2**63)]]


class _Family(_Part):
    name: str
    breaks: str
    sessions: _Count
    words: str
    accepted: bool
    examples: list[_Example]
    verdict: Verdict | None
    judged_on: str | None


class _Document(_Part):
    """`tolerances.json`."""

    schema_: Literal["logmamba.tolerances/1"] = Field(alias="schema")
    sessions: Annotated[int, Field(ge=1)]
    histogram: Annotated[list[_Triple], Field(min_length=1)]
    contexts: list[_Triple]
    after: list[_Pair]
    before: list[_Pair]
    relations: list[tuple[_Count, _Count, _Count, _Count, _Count, _Count]]
    set_aside: list[Annotated[int, Field(ge=0, lt=2**64)]]
    weights: list[_Count]
    families: list[_Family]
    rising: Rising | None = None

    @field_validator("rising", mode="before")
    @classmethod
    def _counted_otherwise(cls, value: Any) -> Any:
        """What 0.2.0 wrote tells lately from before in another way: it begins anew with the next adaptation."""
        return None if isinstance(value, dict) and "templates" in value else value

    @model_validator(mode="after")
    def _set_aside_is_weighed(self) -> Self:
        if len(self.set_aside) != len(self.weights):
            raise ValueError("set_aside and weights differ in length")
        return self


_REMEMBERED: Final = 1_024  # sequences of which it is known what they break: one is asked about more than once
_EARLY_BAND: Final = 1e-3  # how far early warnings of different levels are apart
_BELOW_CRITICAL: Final = CRITICAL_SCORE - 1e-4  # further than a float32 or the digits of a record can blur


class SoFar(NamedTuple):
    """What is known of a session that goes on.

    Attributes:
        suspect: whether it is.
        evident: whether what it breaks is evidence.
        harmless: families that are no evidence and break all that it breaks; None while it breaks nothing.
    """

    suspect: bool = False
    evident: bool = False
    harmless: frozenset[int] | None = None


class Judge:
    """Tolerances, and families with the verdicts on them.

    Args:
        tolerances: what sessions are held to.
        families: those that have a name.
        rising: what has become more frequent; None before any adaptation.
    """

    def __init__(self, tolerances: Tolerances, families: Families, rising: Rising | None = None) -> None:
        self.tolerances = tolerances
        self.families = families
        self._broken_of = lru_cache(_REMEMBERED)(self._look_at)
        self.rising = rising

    def to_json(self) -> bytes:
        """Return the content of `tolerances.json`: the same bytes for the same tolerances and verdicts."""
        tables = {name: getattr(self.tolerances, name).tolist() for name in _TABLES}
        families = [
            {
                "name": each.name,
                "breaks": name_of(each.ways),
                "sessions": each.sessions,
                "words": each.words,
                "accepted": each.accepted,
                "examples": [{"key": example.key, "events": example.events} for example in each.examples],
                "verdict": each.verdict,
                "judged_on": each.judged_on,
            }
            for each in self.families.all
        ]
        document = {"schema": _SCHEMA, "sessions": self.tolerances.sessions, **tables, "families": families}
        if self.rising is not None:
            document["rising"] = self.rising
        return orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE)

    @classmethod
    def from_json(cls, data: bytes) -> Judge:
        """Read `tolerances.json`.

        Raises:
            ValueError: what is wrong with it.
        """
        try:
            content = _Document.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        tables = {
            name: np.array(getattr(content, name), dtype).reshape(-1, *width)
            for name, (dtype, width) in _TABLES.items()
        }
        families = (
            Family(
                each.name,
                ways_of(each.breaks),
                each.sessions,
                each.words,
                each.accepted,
                tuple(Example(example.key, tuple(example.events)) for example in each.examples),
                each.verdict,
                each.judged_on,
            )
            for each in content.families
        )
        return cls(Tolerances(content.sessions, **tables), Families(tuple(families)), content.rising)

    def standings(self, sessions: CountVectors) -> tuple[Standings, Integers]:
        """How complete sessions stand, by the counts of their events.

        Returns:
            USUAL, SUSPECT or, if judged so, ANOMALOUS of each, and how many tolerances it breaks; both (sessions,).
        """
        judged = self.tolerances.judge(sessions)
        codes, which = np.unique(judged.families, return_inverse=True)
        return np.array([self._standing(code) for code in codes.tolist()], np.int8)[which], judged.broken

    def _standing(self, code: int) -> int:
        if not code:
            return USUAL
        family = self.families.of_code(code)
        if family is None or (family.is_evidence and family.verdict is None):
            return SUSPECT
        return ANOMALOUS if family.is_evidence else USUAL

    def standing_of(self, way: Way) -> int:
        """How a session stands by one thing that it breaks: USUAL, SUSPECT or, if judged so, ANOMALOUS."""
        return self._standing(code_of((way,)))

    def running(self, events: Integers, bounds: Integers) -> Flags:
        """Whether sessions are suspect after each of their events, (events,).

        Args:
            events: int64 (events,), their tokens end to end.
            bounds: int64 (sessions + 1,), where each starts and, last, how many events there are.
        """
        lengths = np.diff(bounds)
        occurrences = _occurrence(np.maximum(events, UNK), np.repeat(np.arange(len(lengths)), lengths))
        return self.going_on(events, bounds, occurrences, [SoFar()] * len(lengths))[0]

    def going_on(
        self, events: Integers, bounds: Integers, occurrences: Integers, so_far: Sequence[SoFar]
    ) -> tuple[Flags, list[SoFar]]:
        """Whether sessions that go on are suspect after each of their new events, (events,), and what to go on from.

        Args:
            events: of the new events, as for `running`.
            bounds: likewise.
            occurrences: how often each event's token has come in its session, the event included, (events,).
            so_far: what was known of each session before.
        """
        tokens = np.maximum(events, UNK)
        rare, lone, most = self.tolerances.on_the_way(tokens)
        more = occurrences > most
        suspect = np.repeat(np.array([each.suspect for each in so_far], np.bool_), np.diff(bounds))
        changes = np.flatnonzero((rare & (occurrences == 1)) | (more & (occurrences - 1 <= most)))
        of = np.searchsorted(bounds, changes, side="right") - 1
        after = list(so_far)
        for session in np.unique(of).tolist():
            _, evident, harmless = so_far[session]
            end = int(bounds[session + 1])
            for at in changes[of == session].tolist():
                token = int(tokens[at]) if self.tolerances.knows(int(tokens[at])) else UNK
                for is_broken, kind in ((rare[at], RARE_TEMPLATE), (more[at], MORE)):
                    if is_broken:
                        having = self.families.harmless.get(Way(KINDS[kind], token, 0), set())
                        harmless = frozenset(having if harmless is None else harmless & having)
                evident = evident or bool(lone[at] or more[at])
                suspect[at:end] = evident and not harmless
                after[session] = SoFar(evident and not harmless, evident, harmless)
        return suspect, after

    def ways(self, events: Integers) -> tuple[Way, ...]:
        """What a complete session breaks, by its tokens, (n,)."""
        return ways(self._broken(events))

    def ways_so_far(self, events: Integers) -> tuple[Way, ...]:
        """What a session that goes on breaks for good: rare templates that nothing makes likely, and too many."""
        tokens, counts = np.unique(np.maximum(events, UNK), return_counts=True)
        _, lone, most = self.tolerances.on_the_way(tokens)
        broken = ((lone, RARE_TEMPLATE), (counts > most, MORE))
        known = [token if self.tolerances.knows(token) else UNK for token in tokens.tolist()]
        found = {Way(KINDS[kind], known[at], 0) for is_broken, kind in broken for at in np.flatnonzero(is_broken)}
        return tuple(sorted(found))

    def _broken(self, events: Integers) -> list[Broken]:
        return self._broken_of(events.tobytes())

    def _look_at(self, sequence: bytes) -> list[Broken]:
        events = np.frombuffer(sequence, np.int64)
        [broken] = self.tolerances.broken(CountVectors.of(events, np.array([0, len(events)])))
        return broken

    def reason(self, events: Integers, vocabulary: Vocabulary) -> Reason | None:
        """Why a complete session stands out; None where it does not, or only as people said it may.

        Args:
            events: its tokens, (n,).
            vocabulary: of these.
        """
        broken = self._broken(events)
        if not broken:
            return None
        own = ways(broken)
        family = self.families.of_code(code_of(own))
        if family is not None and not family.is_evidence:
            return None
        counts = Counter(np.maximum(events, UNK).tolist())
        return reasons.of_session(broken, counts, family, name_of(own), self.tolerances, vocabulary)


def scores(levels: Floats, standings: Standings, broken: Integers, rising: Floats | None = None) -> Floats:
    """Scores of complete sessions.

    Args:
        levels: of `detector.scoring.calibration`, (n,).
        standings: (n,).
        broken: how many tolerances each breaks, (n,).
        rising: how much more frequent what each has has become, (n,); None where that is not known.
    """
    share = levels / MAX_LEVEL / np.maximum(broken, 1)
    if rising is not None:
        most = EVENTS * MOST_RISING
        share = (share * MAX_LEVEL + EVENTS * rising + most) / (MAX_LEVEL + 2 * most)
    standing_out = standing_out_scores(share, standings)
    return np.where(standings == USUAL, _usual(levels), standing_out)


def standing_out_scores(share: Floats, standings: Standings) -> Floats:
    """Scores of sessions that are SUSPECT or ANOMALOUS, by how far it goes, 0 to 1; 0 for USUAL ones; (n,)."""
    suspect = WARNING_SCORE + (_BELOW_CRITICAL - WARNING_SCORE) * share
    anomalous = CRITICAL_SCORE + (1 - CRITICAL_SCORE) * share
    return np.select([standings == SUSPECT, standings == ANOMALOUS], [suspect, anomalous], 0.0)


def early_scores(levels: Floats, suspect: Flags) -> Floats:
    """Scores of events so far, by their levels and whether they are suspect, both (n,)."""
    return np.where(suspect, WARNING_SCORE + _EARLY_BAND * levels / MAX_LEVEL, _usual(levels))


def _usual(levels: Floats) -> Floats:
    """By surprise alone, below a warning."""
    none = np.zeros_like(levels)
    below = np.minimum(levels, SURPRISE_LEVEL)
    return Combination.of_level_alone().score(none, below, none.astype(np.bool_))


def _occurrence(tokens: Integers, sessions: Integers) -> Integers:
    """How often each event's token has come in its session, the event included, (events,)."""
    order = np.lexsort((tokens, sessions))
    first = np.ones(len(tokens), np.bool_)
    first[1:] = (np.diff(sessions[order]) != 0) | (np.diff(tokens[order]) != 0)
    starts = np.flatnonzero(first)
    found = np.empty(len(tokens), np.int64)
    found[order] = np.arange(len(tokens)) - np.repeat(starts, np.diff(starts, append=len(tokens))) + 1
    return found
