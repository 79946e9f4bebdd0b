"""Single sessions that an evaluation shows with their events: the worst misses, the worst false alarms, the highest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detector.quality.evaluation import SequenceScores
from detector.scoring.scores import Sequences
from worker.commands.evaluation.sessions import ReadSessions
from worker.processing.scorer import Scorer

EXAMPLES = 10
_KEYS_SHOWN = 3
# Of a long session: its first events, its last ones and the most surprising of those between.
_EVENTS_SHOWN = 60


@dataclass(frozen=True)
class ExampleEvent:
    """One event of a session.

    Attributes:
        number: from 1.
        template: its text.
        surprise: nats.
        score: of the session up to this event.
    """

    number: int
    template: str
    surprise: float
    score: float


@dataclass(frozen=True)
class Example:
    """A sequence of events with all the sessions that consist of it.

    Attributes:
        score: of each of these sessions.
        sessions: how many there are.
        keys: of some of them.
        file, first_offset: where the first of them begins.
        length: how many events it has.
        events: those shown, in order.
    """

    score: float
    sessions: int
    keys: list[str]
    file: str
    first_offset: int
    length: int
    events: list[ExampleEvent]


def examples(
    read: ReadSessions, scores: SequenceScores, scorer: Scorer, chosen: npt.NDArray[np.bool_], *, highest: bool
) -> list[Example]:
    """At most `EXAMPLES` sequences of the chosen rows, by score.

    Args:
        read: the sessions.
        scores: of their sequences.
        scorer: what the events are scored with.
        chosen: rows to choose from, (n,).
        highest: highest scores first, or else lowest; of equal scores, what more sessions consist of.
    """
    sessions = read.sessions
    rows = np.flatnonzero(chosen)
    found, group = np.unique(sessions.sequence[rows], return_inverse=True)
    count = np.bincount(group, sessions.counts[rows], len(found))
    final = scores.final[found]
    worst = np.lexsort((found, -count, -final if highest else final))[:EXAMPLES]
    results = []
    for index in worst.tolist():
        mine = rows[group == index]
        row = int(mine[0])
        tokens = sessions.sequences[found[index]]
        results.append(
            Example(
                score=float(final[index]),
                sessions=int(count[index]),
                keys=list(dict.fromkeys(read.keys[key] for key in sessions.key[mine].tolist()))[:_KEYS_SHOWN],
                file=read.places[read.place[row]],
                first_offset=int(read.first_offset[row]),
                length=len(tokens),
                events=_events(scorer, tokens),
            )
        )
    return results


def _events(scorer: Scorer, tokens: npt.NDArray[np.int64]) -> list[ExampleEvent]:
    (scores,) = scorer.score_columns(Sequences.of([tokens.tobytes()]), 1)
    length, third = len(tokens), _EVENTS_SHOWN // 3
    order = np.argsort(-scores.surprises[third : length - third], kind="stable") + third
    shown = {*range(min(third, length)), *range(max(0, length - third), length), *order[:third].tolist()}
    return [
        ExampleEvent(
            number=at + 1,
            template=scorer.vocabulary.text(int(tokens[at])),
            surprise=round(float(scores.surprises[at]), 4),
            score=round(float(scores.scores[at]), 6),
        )
        for at in sorted(shown)
    ]
