"""The rules of `detector.scoring.count_profile` as a plain second implementation: one vector after the other.

It asks the whole table for each statement, and does not know what is beyond the `MAX_VECTORS` most frequent vectors.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from detector.scoring.count_profile import Judged
from detector.scoring.count_vectors import code
from detector.text.vocabulary import UNK

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Vector = tuple[tuple[int, int], ...]
"""(token, count) of each token of a session, ascending."""

RARE = 1e-3
LIFT = 100.0
TOLD = 0.1

MAX_VECTORS = 10_000
"""Distinct count vectors that are kept, the most frequent ones: bounds the time that judging one session takes."""

_EXACT = 8  # counts up to this have a group each
_GROUPS_PER_DOUBLING = 2
_GROUPS = 256  # more than counts can have: a group fits 8 bits
_LEAST_SEEN = 2.5  # where so few sessions are known that none is rarer than RARE, what was never seen still is
_UNUSUAL = 0.1  # a count that more sessions share explains nothing and needs no explanation
_MOST_UNUSUAL = 16  # counts of a session that are judged, the rarest
_REMEMBERED = 1 << 12
_REMEMBERED_VALUES = 1 << 16


class _Verdict(NamedTuple):
    total: float
    nats: dict[int, float]  # of each rare count, by token


class CountProfile:
    """The counts of normal sessions.

    Args:
        vectors: int64 (k, 3): row of the table, token, count; ordered by row, then token; counts at least 1.
        weights: int64 (rows,), how many sessions had each vector.

    Raises:
        ValueError: the two do not fit.
    """

    def __init__(self, vectors: Integers, weights: Integers) -> None:
        if vectors.ndim != 2 or vectors.shape[1] != 3 or weights.ndim != 1 or not len(weights):
            raise ValueError(f"vectors {vectors.shape} and weights {weights.shape}; expected (k, 3) and (rows,)")
        rows, tokens, counts = vectors.T
        if len(vectors) and (rows.min() < 0 or rows.max() >= len(weights) or tokens.min() < 0 or counts.min() < 1):
            raise ValueError("a row, a token or a count is out of range")
        if (weights < 1).any():
            raise ValueError("a weight is below 1")
        self.vectors = vectors
        self.weights = weights
        self._w = weights.astype(np.float64)
        self._n = float(self._w.sum())
        self._floor = float(np.log(min(1 / RARE, (self._n + 1) / _LEAST_SEEN)))
        # Sessions with equal counts come in many orders.
        self._judged = lru_cache(_REMEMBERED)(self._judge_vector)
        self._company = lru_cache(_REMEMBERED)(self._find_company)
        self._values = lru_cache(_REMEMBERED_VALUES)(self._find_values)
        self._weights_of: dict[int, Floats] = {}
        self._columns: dict[int, npt.NDArray[np.uint8]] = {}
        self._related: dict[tuple[int, int], bool] = {}

    @classmethod
    def fit(cls, sequences: Sequence[Integers], counts: Integers) -> Self:
        """The profile of normal sessions.

        Args:
            sequences: tokens of each session's events; unknown lines count as UNK.
            counts: how many equal sessions each stands for.
        """
        found: Counter[Vector] = Counter()
        for events, count in zip(sequences, counts.tolist(), strict=True):
            # An unknown line never comes again to be recognised by its text: whatever it is then has a template.
            found[_vector(np.maximum(events, UNK))] += count
        kept = found.most_common(MAX_VECTORS)
        vectors = [(row, token, count) for row, (vector, _) in enumerate(kept) for token, count in vector]
        return cls(np.array(vectors, np.int64).reshape(-1, 3), np.array([count for _, count in kept], np.int64))

    def judge(self, tokens: Integers, bounds: Integers, complete: Flags | None = None) -> Judged:
        """How unusual the counts of some sessions are, complete and after each event; those of an empty one never.

        Args:
            tokens: int64 (k,), the sessions' events end to end; negative ones are unknown lines.
            bounds: int64 (sessions + 1,), where each session starts and, last, k.
            complete: (sessions,), those whose `final` and `seen` are wanted, None for all; of others they mean
                nothing.
        """
        lengths = np.diff(bounds)
        n_sessions = len(lengths)
        if not len(tokens):
            return Judged(np.zeros(n_sessions), np.zeros(0), np.zeros(n_sessions, np.bool_))
        session = np.repeat(np.arange(n_sessions), lengths)
        order = np.lexsort((tokens, session))  # stable: equal tokens of a session stay in their order
        first = _is_first(session[order], tokens[order])
        starts = np.flatnonzero(first)
        counts = np.diff(starts, append=len(tokens))
        of, token = session[order][starts], tokens[order][starts]
        codes = np.zeros(n_sessions, np.uint64)
        np.add.at(codes, of, code(token, _group(counts)))
        ends = np.searchsorted(of, np.arange(n_sessions + 1))
        seen = np.isin(codes, self._known) & (lengths > 0)
        final = np.zeros(n_sessions)
        wanted = np.ones(n_sessions, np.bool_) if complete is None else complete
        for index in np.flatnonzero(wanted & ~seen & (lengths > 0)).tolist():
            mine = slice(ends[index], ends[index + 1])
            vector = tuple(zip(token[mine].tolist(), counts[mine].tolist(), strict=True))
            final[index] = self._judged(vector).total

        occurrence = np.empty(len(tokens), np.int64)
        occurrence[order] = np.arange(len(tokens)) - np.repeat(starts, counts) + 1
        none = len(self._most) - 1
        most = self._most[np.where((tokens >= 0) & (tokens < none), tokens, none)]
        more = np.cumsum(_group(occurrence) > most)
        before = np.repeat(np.append(0, more)[bounds[:-1]], lengths)
        never = float(np.log(self._n + 1)) - self._floor
        running = np.where(more > before, never, 0.0)
        ending = bounds[1:][lengths > 0] - 1
        final[lengths > 0] = np.maximum(final[lengths > 0], running[ending])
        return Judged(final, running, seen)

    def unusual_counts(self, events: Integers) -> dict[int, float]:
        """The unusual counts of one complete session: nats above the floor by token, the greatest first."""
        judged = self._judged(_vector(events)).nats if self.judge(events, np.array([0, len(events)])).final[0] else {}
        return dict(sorted(((token, nats) for token, nats in judged.items() if nats > 0), key=lambda each: -each[1]))

    # -- the table -------------------------------------------------------------------------------------------------

    @cached_property
    def _known(self) -> npt.NDArray[np.uint64]:
        """Codes of the vectors that were seen; that another vector has one of them by chance is out of the question."""
        codes = np.zeros(len(self.weights), np.uint64)
        np.add.at(codes, self.vectors[:, 0], code(self.vectors[:, 1], _group(self.vectors[:, 2])))
        return codes

    @cached_property
    def _most(self) -> Integers:
        """Group of the greatest count that each token had; the last entry, of all other tokens, is 0."""
        most = np.zeros(int(self.vectors[:, 1].max(initial=UNK)) + 2, np.int64)
        np.maximum.at(most, self.vectors[:, 1], _group(self.vectors[:, 2]))
        return most

    @cached_property
    def _usual_tokens(self) -> list[int]:
        """Tokens that so many sessions hold that to lack one needs an explanation."""
        held = np.bincount(self.vectors[:, 1], weights=self._w[self.vectors[:, 0]])
        tokens: list[int] = np.flatnonzero(held > (1 - _UNUSUAL) * self._n).tolist()
        return tokens

    def _column(self, token: int) -> npt.NDArray[np.uint8]:
        """The group of the token's count in each vector, (rows,)."""
        if not self._is_held(token):
            return self._held_by_none
        found = self._columns.get(token)
        if found is None:
            mine = self.vectors[self.vectors[:, 1] == token]
            found = np.zeros(len(self.weights), np.uint8)
            found[mine[:, 0]] = _group(mine[:, 2])
            self._columns[token] = found
        return found

    def _is_held(self, token: int) -> bool:
        """Whether any vector has it. Nothing is kept of others: unknown lines are without end."""
        return 0 <= token < len(self._most) - 1 and bool(self._most[token])

    @cached_property
    def _held_by_none(self) -> npt.NDArray[np.uint8]:
        return np.zeros(len(self.weights), np.uint8)

    def _weight_of(self, token: int) -> Floats:
        """How many sessions had each group of the token's count, (`_GROUPS`,)."""
        if not self._is_held(token):
            return self._weight_of_none
        found = self._weights_of.get(token)
        if found is None:
            found = self._weights_of[token] = self._sums(self._column(token))
        return found

    @cached_property
    def _weight_of_none(self) -> Floats:
        return self._sums(self._held_by_none)

    def _sums(self, column: npt.NDArray[np.uint8]) -> Floats:
        return np.bincount(column, self._w, _GROUPS).astype(np.float64)

    def _find_values(self, token: int, given: int, group: int) -> int:
        """How many different counts of one token the sessions with a count of another show."""
        return max(1, int(np.count_nonzero(np.bincount(self._column(token)[self._column(given) == group]))))

    def _are_related(self, one: int, other: int) -> bool:
        key = (one, other) if one < other else (other, one)
        found = self._related.get(key)
        if found is None:
            if not (self._is_held(one) and self._is_held(other)):
                return False
            found = self._related[key] = _related(self._column(one), self._column(other), self._w)
        return found

    @staticmethod
    def _nats(had: float, of: float, values: int = 1) -> float:
        """Surprise of what so many sessions had of some that show so many values."""
        return float(-np.log(max((had + 1) / (of + 1), values / (of + values))))

    # -- one session -----------------------------------------------------------------------------------------------

    def _judge_vector(self, counts: Vector) -> _Verdict:
        """How unusual a session with these counts is."""
        vector = dict(counts)
        group: dict[int, int] = {}  # of the session's count of each token
        values: dict[int, int] = {}  # how many different counts of the token there are
        nats: dict[int, float] = {}

        def look_at(token: int) -> None:
            if token not in group:
                count = vector.get(token, 0)
                group[token] = count if count <= _EXACT else int(_group(count))
                weight = self._weight_of(token)
                # What is beyond all that was seen is no other value of the same kind.
                values[token] = int(np.count_nonzero(weight)) if weight[group[token] :].any() else 1
                nats[token] = self._nats(weight[group[token]], self._n, values[token])

        for token in {*vector, *self._usual_tokens}:
            look_at(token)
        rare = sorted((token for token in group if nats[token] > -np.log(_UNUSUAL)), key=lambda t: (-nats[t], t))
        rare = rare[:_MOST_UNUSUAL]
        if not rare:
            return _Verdict(0.0, {})
        # What goes with a rare count may be missing here, and that may be what is wrong.
        for token in rare:
            if self._is_held(token):
                for other in self._company(token, group[token]):
                    look_at(other)
        same = np.stack([self._column(token) == group[token] for token in rare])
        rows = np.flatnonzero(same.any(0))  # the others have none of the rare counts
        having, w = same[:, rows].astype(np.float64), self._w[rows]
        worst, links = self._explained(rare, (having * w) @ having.T, self._n, values)
        for context in sorted(group):
            n = float(self._weight_of(context)[group[context]])
            # A statement over fewer sessions could not be rare.
            if np.log(n + 1) <= self._floor:
                continue
            if concerned := [
                i for i, token in enumerate(rare) if token != context and self._are_related(token, context)
            ]:
                these, some = having[concerned], [rare[i] for i in concerned]
                both = (these * (w * (self._column(context)[rows] == group[context]))) @ these.T
                here = {token: min(values[token], self._values(token, context, group[context])) for token in some}
                for token, most in self._explained(some, both, n, here)[0].items():
                    worst[token] = max(worst[token], most)
        excess = {token: max(most - self._floor, 0.0) for token, most in worst.items()}
        together = sum(max(link - self._floor, 0.0) for link in links.values())
        return _Verdict(max(together, *excess.values(), 0.0), excess)

    def _find_company(self, token: int, group: int) -> list[int]:
        """Tokens that the vectors with a count hold."""
        rows = self._column(token) == group
        tokens: list[int] = np.unique(self.vectors[rows[self.vectors[:, 0]], 1]).tolist()
        return tokens

    def _explained(
        self, rare: Sequence[int], together: Floats, n: float, values: dict[int, int]
    ) -> tuple[dict[int, float], dict[int, float]]:
        """Nats of each rare count among n sessions, after the best explanation: minimax paths, as in Dijkstra's.

        A path begins at "no explanation"; its links cost the surprise of a count given the one before.

        Args:
            rare: tokens.
            together: how many of these sessions have both of two rare counts, (rare, rare).
            n: how many sessions.
            values: how many different counts of each token they show.

        Returns:
            By token the most that a link of its path costs, and what the last one does.
        """
        row = {token: i for i, token in enumerate(rare)}
        alone = {token: self._nats(together[i, i], n, values[token]) for token, i in row.items()}
        enough = {token: self._nats(together[i, i], n) - np.log(LIFT) for token, i in row.items()}
        best, link = dict(alone), dict(alone)
        queue = [(nats, token) for token, nats in best.items()]
        heapq.heapify(queue)
        done: set[int] = set()
        while queue:
            nats, by = heapq.heappop(queue)
            if by in done:
                continue
            done.add(by)
            had = together[row[by], row[by]]
            for token in rare:
                if token in done or not self._are_related(token, by):
                    continue
                given = self._nats(together[row[by], row[token]], had)
                path = max(nats, given), given
                if given < enough[token] and path < (best[token], link[token]):
                    best[token], link[token] = path
                    heapq.heappush(queue, (best[token], token))
        return best, link


def _vector(events: Integers) -> Vector:
    tokens, counts = np.unique(events, return_counts=True)
    return tuple(zip(tokens.tolist(), counts.tolist(), strict=True))


def _group(counts: int | Integers) -> Integers:
    """Counts up to 8 as they are, greater ones by their logarithm."""
    many = np.maximum(np.asarray(counts, np.int64), 1)
    grouped = _EXACT + 1 + np.floor(_GROUPS_PER_DOUBLING * np.log2(many / _EXACT)).astype(np.int64)
    groups: Integers = np.where(np.asarray(counts) <= _EXACT, counts, grouped)
    return groups


def _is_first(*keys: Integers) -> Flags:
    """Where ordered rows of keys change, the first row included."""
    changed = np.zeros(len(keys[0]), np.bool_)
    changed[0] = True
    for key in keys:
        changed[1:] |= key[1:] != key[:-1]
    return changed


def _related(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8], weights: Floats) -> bool:
    """Whether two counts depend on each other: G-test at about five standard deviations, and a share of the entropy.

    The statistic of independent counts has the mean df and the variance 2 df.
    """
    shape = int(one.max()) + 1, int(other.max()) + 1
    together = np.bincount(one.astype(np.int64) * shape[1] + other, weights, shape[0] * shape[1]).reshape(shape)
    together = together[together.any(1)][:, together.any(0)]
    df = (together.shape[0] - 1) * (together.shape[1] - 1)
    if df == 0:
        return False
    n = together.sum()
    rows, columns = together.sum(1), together.sum(0)
    cells = together > 0
    expected = np.outer(rows, columns) / n
    information = float((together[cells] * np.log(together[cells] / expected[cells])).sum())
    entropy = min(float(-(sums * np.log(sums / n)).sum()) for sums in (rows, columns))
    return 2 * information > df + 5 * np.sqrt(2 * df) + 10 and information >= TOLD * entropy
