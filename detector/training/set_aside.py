"""Which sessions a training without labels learns from: those that keep to what nearly all have in common."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from detector.scoring.count_vectors import CountVectors
from detector.scoring.families import Example, Families, Family, ways
from detector.scoring.judge import Judge
from detector.scoring.learning import learn
from detector.scoring.reasons import in_words
from detector.scoring.tolerances import RARE, Tolerances
from detector.text.vocabulary import Vocabulary
from detector.training.data import TrainingSessions

MOST_SET_ASIDE = 0.06
"""Share of the sessions. What stands out more often than anomalies can is no anomaly."""

_EXAMPLES = 3
_WITH_EXAMPLES = 1_000  # families: nobody judges more of them one by one
_EXAMPLE_EVENTS = 100


@dataclass(frozen=True)
class SetAside:
    """What came of it.

    Attributes:
        judge: the tolerances, and the families of what breaks them, those that were accepted after all among them.
        kept: of each part, the sessions to learn from.
        left_out: of each part, the others.
        sessions: of how many in all.
        unseen_share: of the sessions to come, that have counts of templates which no kept session has: the share of
            those seen once (Good 1953).
    """

    judge: Judge
    kept: tuple[TrainingSessions, ...]
    left_out: tuple[TrainingSessions, ...]
    sessions: int
    unseen_share: float

    @property
    def set_aside(self) -> int:
        """Sessions that are not learnt from."""
        return sum(each.sessions for each in self.judge.families.all if not each.accepted)


def set_aside(vocabulary: Vocabulary, *parts: TrainingSessions) -> SetAside:
    """Learn tolerances from sessions of several parts and leave out of each those that break some.

    At most `MOST_SET_ASIDE` of the sessions: where it would be more, whole families are accepted, the largest first.

    Args:
        vocabulary: of their tokens.
        parts: sessions, at least one in all.
    """
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.joined(part)
    tolerances = learn(whole.sequences, whole.counts)
    vectors = CountVectors.of_sequences(whole.sequences)
    found = tolerances.judge(vectors).families
    rows: defaultdict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero(found).tolist():
        rows[int(found[row])].append(row)
    sizes = {code: int(whole.counts[own].sum()) for code, own in rows.items()}
    largest_first = sorted(sizes, key=lambda code: (-sizes[code], rows[code][0]))
    beyond = sum(sizes.values()) - MOST_SET_ASIDE * tolerances.sessions
    accepted = []
    for code in largest_first:
        accepted.append(beyond > 0)
        beyond -= sizes[code] * accepted[-1]
    families = name_families(
        whole, vectors, [rows[code] for code in largest_first], accepted, tolerances=tolerances, vocabulary=vocabulary
    )
    aside = {code for code, each in zip(largest_first, families, strict=True) if not each.accepted}
    kept = ~np.isin(found, np.array(sorted(aside), np.uint64))
    ends = np.cumsum([len(part) for part in parts])
    _, which = np.unique(vectors.codes[kept], return_inverse=True)
    weights = np.bincount(which, whole.counts[kept])
    masks = np.split(kept, ends[:-1])
    return SetAside(
        Judge(tolerances, Families(families)),
        tuple(part.select(mine) for part, mine in zip(parts, masks, strict=True)),
        tuple(part.select(~mine) for part, mine in zip(parts, masks, strict=True)),
        tolerances.sessions,
        float((weights == 1).sum() / tolerances.sessions),
    )


def name_families(
    sessions: TrainingSessions,
    vectors: CountVectors,
    rows: Sequence[list[int]],
    accepted: Sequence[bool],
    *,
    tolerances: Tolerances,
    vocabulary: Vocabulary,
    first: int = 1,
) -> tuple[Family, ...]:
    """Name families of sessions, F1, F2 and so on.

    Args:
        sessions: of all of them.
        vectors: the counts of these.
        rows: of the sessions of each family, at least one.
        accepted: whether what each breaks is no evidence.
        tolerances: that they break.
        vocabulary: of the tokens.
        first: number of the first one.
    """
    families = []
    examples_of = [_examples(sessions, each) for each in rows]
    commonest = vectors.take(np.array([next(iter(each)) for each in examples_of], np.int64))
    for at, broken in enumerate(tolerances.broken(commonest)):
        entries = slice(*commonest.bounds[at : at + 2])
        counts = dict(zip(commonest.tokens[entries].tolist(), commonest.counts[entries].tolist(), strict=True))
        examples = tuple(examples_of[at].values()) if at < _WITH_EXAMPLES else ()
        size = int(sessions.counts[rows[at]].sum())
        words = in_words(broken[0], counts, tolerances, vocabulary)
        families.append(Family(f"F{first + at}", ways(broken), size, words, accepted[at], examples))
    return tuple(families)


def _examples(sessions: TrainingSessions, rows: list[int]) -> dict[int, Example]:
    """Some sessions of a family by their rows, no two with equal events, the commonest first."""
    first: dict[bytes, int] = {}
    times: Counter[int] = Counter()
    for row in rows:
        times[first.setdefault(np.asarray(sessions.sequences[row]).tobytes(), row)] += int(sessions.counts[row])
    return {
        row: Example(
            "" if sessions.keys is None else sessions.keys[row],
            tuple(np.asarray(sessions.sequences[row])[:_EXAMPLE_EVENTS].tolist()),
        )
        for row, _ in times.most_common(_EXAMPLES)
    }


def set_aside_lines(found: SetAside, most: int = 8) -> Iterator[str]:
    """What to tell who trains, a line each: how many, the largest families, and what it means for the scores.

    Args:
        found: by `set_aside`.
        most: families to list.
    """
    families, n = found.judge.families.all, found.sessions
    aside = [each for each in families if not each.accepted]
    if not families:
        yield f"none of the {n:,} sessions was set aside: all keep to what nearly all have in common"
    else:
        yield (
            f"{found.set_aside:,} of {n:,} sessions ({found.set_aside / n:.1%}) were set aside as they stand out, in "
            f"{len(aside):,} {'family' if len(aside) == 1 else 'families'}; the model learnt from the rest"
        )
    if accepted := [each for each in families if each.accepted]:
        yield (
            f"more than {MOST_SET_ASIDE:.0%} stood out, which is more than anomalies are: the largest "
            f"{len(accepted):,} families ({sum(each.sessions for each in accepted):,} sessions) were taken for normal"
        )
    for each in families[:most]:
        yield f"  {each.name}: {each.sessions:,}{', taken for normal' if each.accepted else ''}. {each.words}"
    if len(families) > most:
        rest = families[most:]
        yield f"  and {len(rest):,} smaller ones of {sum(each.sessions for each in rest):,} sessions"
    yield (
        f"limits: what less than {RARE:.0%} of the sessions do is an alarm until you say that it is normal; what more "
        "of them do is taken for normal"
    )
    yield (
        "at most 1 % of normal sessions reach 0.7 if less than a quarter of what was set aside is normal; none reaches "
        "0.95 before you say that its family is anomalous"
    )
    yield f"of the sessions to come about {found.unseen_share:.2%} will have counts that none here had"
