"""Streams that drift, scored as they come by a checkpoint that stays as it is and by one that adapts.

    python -m benchmarks.drifting bgl --seed 0 --output DIR
    python -m benchmarks.drifting report DIR --output benchmarks/results/drifting.json

Every session is scored before anything learns from it (prequential). An adaptation may learn what `logmamba adapt` may
(`detector.training.bounds`), where what comes between two of them is a day. Verdicts come late: on a random share of
the sessions, each some sessions after its own. Baselines see the same, at the same times.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.accuracy import datasets
from benchmarks.accuracy.datasets import Dataset
from benchmarks.late_verdicts import Forest, LastEvent
from detector.checkpoint import Checkpoint, load
from detector.quality.metrics import Detection, average_precision
from detector.scoring.calibration import MAX_LEVEL, WARNING_SCORE
from detector.scoring.count_vectors import CountVectors
from detector.scoring.families import Way, ways_of
from detector.scoring.judge import USUAL, Judge
from detector.scoring.judge import scores as judged_scores
from detector.scoring.scorer import Scorer
from detector.scoring.scores import Sequences
from detector.sessions_file import ANOMALOUS, NO_ORDER, NORMAL
from detector.text.vocabulary import N_SPECIAL, Vocabulary
from detector.training.adaptation import AdaptationOptions, adapt, adapted_judge, learn_verdicts
from detector.training.bounds import DAYS, bounded
from detector.training.data import TrainingSessions
from detector.training.options import TrainingOptions
from detector.training.replay import sample
from detector.training.set_aside import set_aside
from detector.training.train import train

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_FIRST_DAY = 20_000


@dataclass(frozen=True)
class Stream:
    """Sessions in the order in which they come.

    Attributes:
        texts: event names.
        sessions: rows of `texts` of each.
        anomalous: bool (n,).
        counts: how many equal ones come at that place, int64 (n,).
        start: the sessions before this one are what is known at first.
    """

    texts: Sequence[str]
    sessions: Sequence[Integers]
    anomalous: Flags
    counts: Integers
    start: int

    @classmethod
    def of(cls, data: Dataset, rows: Integers, share: float) -> Stream:
        """These rows of a data set in this order; the first `share` of them is known."""
        chosen = data.select(rows, 1.0)
        start = round(share * len(rows))
        return cls(chosen.texts, chosen.sessions, chosen.anomalous, chosen.counts, start)


def bgl(most: int = 0) -> Stream:
    """BGL's windows, both kinds in one order, from the first fifth of the distinct ones.

    Each kind is in file order, which is by first appearance. Windows slide by one event, so an anomalous one that
    comes once has a normal neighbour that comes once, too, with which it shares all but one event: such pairs, as far
    as their order agrees (a longest ascending subsequence), say where in the one file a place of the other is.
    """
    data = datasets.bgl()
    normal, wrong = np.flatnonzero(~data.anomalous), np.flatnonzero(data.anomalous)
    after: dict[bytes, list[int]] = {}
    before: dict[bytes, list[int]] = {}
    for place, row in enumerate(normal.tolist()):
        if data.counts[row] == 1:
            after.setdefault(data.sessions[row][1:].tobytes(), []).append(place)
            before.setdefault(data.sessions[row][:-1].tobytes(), []).append(place)
    pairs = [
        (at, place)
        for at, row in enumerate(wrong.tolist())
        if data.counts[row] == 1
        for place in (
            *after.get(data.sessions[row][:-1].tobytes(), ()),
            *before.get(data.sessions[row][1:].tobytes(), ()),
        )
    ]
    anchors = _ascending(pairs)
    ends = [(-1, -1), *anchors, (len(wrong), len(normal))]
    at, place = np.array(ends, np.float64).T
    places = np.append(np.arange(len(normal)), np.interp(np.arange(len(wrong)), at, place) + 0.5)
    rows = np.append(normal, wrong)[np.argsort(places, kind="stable")]
    return Stream.of(data, rows[: most or len(rows)], 0.2)


def hdfs(most: int = 0) -> Stream:
    """HDFS's blocks whose order is known, at natural prevalence, from the first tenth."""
    data = datasets.hdfs_ordered()
    rows = np.argsort(data.order, kind="stable")
    assert (data.order != NO_ORDER).all()
    return Stream.of(data, rows[: most or len(rows)], 0.1)


STREAMS = {"bgl": bgl, "hdfs": hdfs}


def _ascending(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """A longest subsequence whose second numbers do not fall."""
    tails: list[int] = []
    at_tail: list[int] = []
    parent: list[int] = []
    for number, (_, value) in enumerate(pairs):
        low = int(np.searchsorted(tails, value, side="right")) if tails else 0
        parent.append(at_tail[low - 1] if low else -1)
        tails[low : low + 1] = [value]
        at_tail[low : low + 1] = [number]
    found, number = [], at_tail[-1] if at_tail else -1
    while number >= 0:
        found.append(pairs[number])
        number = parent[number]
    return found[::-1]


@dataclass(frozen=True)
class Plan:
    """When what is learnt.

    Attributes:
        verdicts: share of the sessions that somebody judges.
        delay: sessions until a verdict is there.
        every: sessions between two times that verdicts take effect.
        adapt_every: distinct sessions between two adaptations; 0 for none.
        steps: of the language model in one.
        recent: distinct sessions that one looks back on.
        days: on so many different ones what a session does has to be usual before it is.
        planned: somebody vouches for what is usual in the recent traffic, each time.
    """

    verdicts: float = 0.0
    delay: int = 1_000
    every: int = 2_000
    adapt_every: int = 0
    steps: int = 100
    recent: int = 12_000
    days: int = DAYS
    planned: bool = False


class Adaptive:
    """A checkpoint with what came since, in tokens that all its successors have as well."""

    def __init__(self, stream: Stream, seed: int, *, steps: int | None) -> None:
        self.stream, self._seed = stream, seed
        names, place = np.unique(np.concatenate(stream.sessions), return_index=True)
        order = names[np.argsort(place)]
        self._texts = [stream.texts[row] for row in order]
        self._token = np.zeros(len(stream.texts), np.int64)
        self._token[order] = N_SPECIAL + np.arange(len(order))
        self._known = len(np.unique(np.concatenate(stream.sessions[: stream.start])))
        self.tokens = [self._token[events] for events in stream.sessions]
        vocabulary = Vocabulary(tuple(self._texts[: self._known]), kind="events")
        known = TrainingSessions.of(self.tokens[: stream.start], counts=stream.counts[: stream.start])
        self.older = sample(known, seed)
        self._watched: dict[str, tuple[str, ...]] = {}
        self._learn(known, vocabulary, steps)

    def _learn(self, known: TrainingSessions, vocabulary: Vocabulary, steps: int | None) -> None:
        options = TrainingOptions(next_token_steps=steps)
        trained = train(known, vocabulary, seed=self._seed, device="cpu", options=options)
        self.checkpoint = _in_memory(trained)
        self._ready()

    def _ready(self) -> None:
        """What scores now; templates that the checkpoint does not know are added to it as they are."""
        vocabulary = self._vocabulary(len(self._texts))
        self.scorer = Scorer(replace(self.checkpoint, vocabulary=vocabulary, verdict_weights=None), device="cpu")

    def _vocabulary(self, n: int) -> Vocabulary:
        """Of the first n texts, of which the model knows as many as it has."""
        learned = self.checkpoint.manifest.model.vocabulary_size - N_SPECIAL
        sizes = (learned, n - learned) if n > learned else ()
        return Vocabulary(tuple(self._texts[:n]), kind="events", generations=sizes)

    def scores(self, rows: Sequence[int]) -> Floats:
        """Of sessions, without what verdicts add."""
        lengths = np.array([len(self.tokens[row]) for row in rows])
        sequences = Sequences(np.concatenate([self.tokens[row] for row in rows]), np.cumsum(lengths))
        return self.scorer.score_columns(sequences, len(rows)).finals.astype(np.float64)

    def told(self, rows: Integers, counts: Integers) -> Any:
        """The weights of verdicts on these sessions."""
        labels = np.where(self.stream.anomalous[rows], ANOMALOUS, NORMAL)
        sessions = TrainingSessions.of([self.tokens[row] for row in rows], labels, counts)
        return learn_verdicts(self.scorer, sessions, self.older)

    def adapt(self, rows: Integers, counts: Integers, since: int, plan: Plan) -> dict[str, Any]:
        """Adapt to sessions that came, the last `since` of them since the last adaptation."""
        began = time.process_time()
        seen = max(self._known, *(int(self.tokens[row].max()) - N_SPECIAL + 1 for row in rows.tolist()))
        self._known = seen
        vocabulary = self._vocabulary(seen)
        recent = TrainingSessions.of([self.tokens[row] for row in rows], counts=counts)
        found = bounded(
            recent,
            _FIRST_DAY + (rows - self.stream.start) // plan.adapt_every,
            aware_of_all(self._judge(), vocabulary),
            vocabulary,
            watched=self._watched,
            needed_days=plan.days,
            planned=plan.planned,
        )
        self._watched = found.watched
        learnt = found.sessions.distinct()
        traffic = recent.select(np.arange(len(rows) - since, len(rows)))
        changed = {way for each in found.usual for way in ways_of(each.name)}
        trained = self._adapted(learnt, traffic, vocabulary, changed, plan.steps)
        self.older = sample(self.older.joined(learnt), self._seed)
        return {
            "usual": [each.name for each in found.usual],
            "held_back": int(found.held_back.counts.sum()),
            "of": int(counts.sum()),
            "trained": trained,
            "cpu_s": round(time.process_time() - began, 2),
        }

    def _judge(self) -> Judge:
        judge = self.checkpoint.judge
        assert judge is not None
        return judge

    def _adapted(
        self, recent: TrainingSessions, traffic: TrainingSessions, vocabulary: Vocabulary, changed: set[Way], steps: int
    ) -> bool:
        options = AdaptationOptions(next_token_steps=steps)
        found = adapt(
            self.checkpoint,
            recent,
            self.older,
            vocabulary,
            traffic=traffic,
            changed=changed,
            device="cpu",
            options=options,
        )
        self.checkpoint = found.checkpoint(self.checkpoint)
        self._ready()
        return found.trained


class WithoutModel(Adaptive):
    """What sessions are held to, alone: in place of surprise the evidence of what they break ranks."""

    def _learn(self, known: TrainingSessions, vocabulary: Vocabulary, steps: int | None) -> None:
        del steps
        self._held_to = set_aside(vocabulary, known.distinct()).judge
        self._n_known = len(vocabulary)

    def _vocabulary(self, n: int) -> Vocabulary:
        return Vocabulary(tuple(self._texts[:n]), kind="events")

    def _judge(self) -> Judge:
        return self._held_to

    def scores(self, rows: Sequence[int]) -> Floats:
        """Of sessions, a part of them at a time."""
        return np.concatenate([self._scores(rows[at : at + 10_000]) for at in range(0, len(rows), 10_000)])

    def _scores(self, rows: Sequence[int]) -> Floats:
        vectors = CountVectors.of_sequences([self.tokens[row] for row in rows])
        held_to = self._held_to
        standings, broken = held_to.standings(vectors)
        rising = None if held_to.rising is None else held_to.rising.of_sessions(vectors)
        levels = np.minimum(held_to.tolerances.judge(vectors).evidence, MAX_LEVEL)
        return judged_scores(levels, standings, broken, rising)

    def _adapted(
        self, recent: TrainingSessions, traffic: TrainingSessions, vocabulary: Vocabulary, changed: set[Way], steps: int
    ) -> bool:
        del steps
        older = self.older.distinct()
        standings, _ = self._held_to.standings(CountVectors.of_sequences(older.sequences))
        self._held_to = adapted_judge(
            self._held_to,
            recent,
            (older, standings == USUAL),
            traffic.distinct(),
            vocabulary,
            n_known=self._n_known,
            changed=changed,
        )
        self._n_known = len(vocabulary)
        return False


def aware_of_all(judge: Judge, vocabulary: Vocabulary) -> Judge:
    """The judge to which each template that it has not met is rare by itself."""
    known = judge.tolerances.aware_of(range(N_SPECIAL, len(vocabulary)))
    return Judge(known, judge.families, judge.rising)


def _in_memory(trained: Any) -> Checkpoint:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        trained.save(Path(folder) / "checkpoint")
        return load(Path(folder) / "checkpoint")


@dataclass(frozen=True)
class Units:
    """Sessions as they come, equal ones in a row cut where something may be learnt between them.

    Attributes:
        rows: of the stream, int64 (k,).
        counts: sessions of each, (k,).
        begins: sessions before each, (k,).
    """

    rows: Integers
    counts: Integers
    begins: Integers

    @classmethod
    def of(cls, counts: Integers, most: int) -> Units:
        """So many sessions of each, at most `most` at a time."""
        parts = -(-counts // most)
        rows = np.repeat(np.arange(len(counts)), parts)
        number = np.arange(len(rows)) - np.repeat(np.cumsum(parts) - parts, parts)
        mine = np.minimum(counts[rows] - most * number, most)
        return cls(rows, mine, np.cumsum(mine) - mine)


def prequential(model: Adaptive, plan: Plan, seed: int) -> tuple[Floats, Units, list[dict[str, Any]]]:
    """Scores of all units after the start, and what was adapted."""
    stream = model.stream
    units = Units.of(stream.counts, 250)
    first = int(np.searchsorted(units.rows, stream.start))
    judged = np.random.default_rng(seed).binomial(units.counts, plan.verdicts)
    judged[:first] = 0
    scores = np.zeros(len(units.rows))
    done: list[dict[str, Any]] = []
    last, at = stream.start, first
    weights = None
    while at < len(units.rows):
        now = int(units.begins[at])
        if plan.adapt_every and int(units.rows[at]) - last >= plan.adapt_every:
            since, last = int(units.rows[at]) - last, int(units.rows[at])
            rows = np.arange(max(last - plan.recent, 0), last)
            done.append(model.adapt(rows, stream.counts[rows], since, plan))
        if plan.verdicts:
            there = first + np.flatnonzero((judged[first:at] > 0) & (units.begins[first:at] + plan.delay <= now))
            if len(there):
                rows, which = np.unique(units.rows[there], return_inverse=True)
                weights = model.told(rows, np.bincount(which, judged[there]).astype(np.int64))
        end = max(int(np.searchsorted(units.begins, now + plan.every)), at + 1)
        if plan.adapt_every:
            end = max(min(end, int(np.searchsorted(units.rows, last + plan.adapt_every))), at + 1)
        part = units.rows[at:end]
        distinct, which = np.unique(part, return_inverse=True)
        found = model.scores(distinct.tolist())
        if weights is not None:
            tokens = [model.tokens[row] for row in distinct.tolist()]
            bounds = np.append(0, np.cumsum([len(each) for each in tokens]))
            found = weights.shifted(found, np.concatenate(tokens), bounds)
        scores[at:end] = found[which]
        at = end
    return scores[first:], Units(units.rows[first:], units.counts[first:], units.begins[first:]), done


def figures(stream: Stream, scores: Floats, units: Units) -> dict[str, Any]:
    """By session, and with each distinct one counted once where it comes first."""
    wrong = stream.anomalous[units.rows]
    counts = units.counts.astype(np.float64)
    once = np.append(True, np.diff(units.rows) > 0).astype(np.float64)
    detection = Detection.at(WARNING_SCORE, scores, wrong, counts)
    alarms = (scores >= WARNING_SCORE) & ~wrong
    return {
        "auprc": average_precision(scores, wrong, counts),
        "auprc_distinct": average_precision(scores, wrong, once),
        "f1": detection.f1,
        "precision": detection.precision,
        "recall": detection.recall,
        "false_alarms": int(counts[alarms].sum()),
        "misses": int(counts[(scores < WARNING_SCORE) & wrong].sum()),
        "prevalence": float(np.average(wrong, weights=counts)),
        "prevalence_distinct": float(np.average(wrong, weights=once)),
        "sessions": int(counts.sum()),
    }


def baseline(kind: type[LastEvent | Forest], stream: Stream, plan: Plan, seed: int) -> tuple[Floats, Units]:
    """Scores of all units after the start by what learns from verdicts alone."""
    learner = kind(stream.sessions, len(stream.texts), seed)
    units = Units.of(stream.counts, 250)
    first = int(np.searchsorted(units.rows, stream.start))
    judged = np.random.default_rng(seed).binomial(units.counts, plan.verdicts)
    judged[:first] = 0
    scores, at = np.zeros(len(units.rows)), first
    while at < len(units.rows):
        now = int(units.begins[at])
        there = first + np.flatnonzero((judged[first:at] > 0) & (units.begins[first:at] + plan.delay <= now))
        end = max(int(np.searchsorted(units.begins, now + plan.every)), at + 1)
        known, which = np.unique(units.rows[there], return_inverse=True)
        wrong = stream.anomalous[known]
        if wrong.any() and not wrong.all():
            learner.fit(known, wrong, np.bincount(which, judged[there]).astype(np.float64))
            distinct, of = np.unique(units.rows[at:end], return_inverse=True)
            scores[at:end] = learner.scores(distinct)[of]
        at = end
    return scores[first:], Units(units.rows[first:], units.counts[first:], units.begins[first:])


BASELINES: dict[str, type[LastEvent | Forest]] = {"forest": Forest, "last-event": LastEvent}
WAYS = ("frozen", "adapted", "verdicts", "adapted-verdicts", *BASELINES)
"""With `-without-model` the first two do without, which takes a tenth of the time and changes no alarm."""


def main() -> None:
    """Run one stream in one way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", choices=STREAMS)
    parser.add_argument("way", choices=(*WAYS, "frozen-without-model", "adapted-without-model"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=0, help="distinct sessions, the first ones; 0 for all")
    parser.add_argument("--training-steps", type=int, default=None)
    parser.add_argument("--verdicts", type=float, default=0.01)
    parser.add_argument("--delay", type=int, default=1_000)
    parser.add_argument("--every", type=int, default=2_000)
    parser.add_argument("--adapt-every", type=int, default=12_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--recent", type=int, default=12_000)
    parser.add_argument("--days", type=int, default=DAYS)
    parser.add_argument("--planned", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    datasets.require_data()
    began = time.process_time()
    stream = STREAMS[asked.stream](asked.most)
    plan = Plan(
        verdicts=asked.verdicts if asked.way in ("verdicts", "adapted-verdicts", *BASELINES) else 0.0,
        delay=asked.delay,
        every=asked.every,
        adapt_every=asked.adapt_every if asked.way.startswith("adapted") else 0,
        steps=asked.steps,
        recent=asked.recent,
        days=asked.days,
        planned=asked.planned,
    )
    done: list[dict[str, Any]] = []
    if asked.way in BASELINES:
        scores, units = baseline(BASELINES[asked.way], stream, plan, asked.seed)
    else:
        kind = WithoutModel if asked.way.endswith("without-model") else Adaptive
        model = kind(stream, asked.seed, steps=asked.training_steps)
        scores, units, done = prequential(model, plan, asked.seed)
    found = {
        "stream": asked.stream,
        "way": asked.way,
        "seed": asked.seed,
        "plan": asdict(plan),
        **figures(stream, scores, units),
        "adaptations": done,
        "cpu_s": round(time.process_time() - began, 1),
    }
    asked.output.mkdir(parents=True, exist_ok=True)
    settings = (asked.adapt_every, asked.recent, asked.days, asked.planned, asked.every, asked.delay)
    name = "-".join(map(str, (asked.stream, asked.way, asked.seed, *settings)))
    (asked.output / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print({key: value for key, value in found.items() if key != "adaptations"})


if __name__ == "__main__":
    main()
