"""How good a detector's scores are on sessions, with labels or without.

Equal sessions are scored once: everything here is computed from the distinct sequences, and a session counts as often
as it occurs. Scores are those of the score records, six decimals, so that a figure at a threshold is about the alerts
that a worker raises. Where normal sessions were thinned out when the data was put together, a weight for each of them
brings precision and F1 back to the prevalence of the stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from detector.quality.baselines import BASELINES, FOLDS, count_vectors, cross_fitted, distinct_rows, folds_of_keys
from detector.quality.metrics import Flags, Floats, Ranking
from detector.quality.operating_points import Quality
from detector.quality.score_curves import (
    Delay,
    Histogram,
    Integers,
    ReliabilityBin,
    ShareAtOrAbove,
    reliability,
    thinned,
)
from detector.sessions_file import ANOMALOUS, NORMAL, UNLABELLED
from detector.text.vocabulary import N_SPECIAL

_KINDS: Mapping[str, int] = {"normal": NORMAL, "anomalous": ANOMALOUS, "unlabelled": UNLABELLED}
_CURVE_POINTS = 400


@dataclass(frozen=True)
class EvaluatedSessions:
    """The sessions of an evaluation; a row may stand for several equal sessions.

    Attributes:
        sequences: the distinct event sequences, int64 (events,) each, u of them.
        sequence: index of each row's sequence, (n,).
        key: number of each row's session key, (n,), from 0; a key may have several rows.
        labels: int8 (n,): 1 anomalous, 0 normal, -1 not known.
        counts: how many sessions each row stands for, (n,).
    """

    sequences: Sequence[Integers]
    sequence: Integers
    key: Integers
    labels: npt.NDArray[np.int8]
    counts: Integers


@dataclass(frozen=True)
class SequenceScores:
    """What a scorer says about the distinct sequences.

    Attributes:
        final: score of each complete session, (u,).
        crossed: by severity, events until the early score is at or above its threshold, `score_curves.NEVER` where
            it never is, (u,).
    """

    final: Floats
    crossed: Mapping[str, Integers]


@dataclass(frozen=True)
class BaselineQuality:
    """A baseline on the same sessions; `uses_labels` as for `detector.quality.baselines.Baseline`."""

    name: str
    uses_labels: bool
    quality: Quality


@dataclass(frozen=True)
class Curves:
    """Precision, recall and false positive rate at falling thresholds; at most some hundred of them."""

    thresholds: list[float]
    precision: list[float]
    recall: list[float]
    false_positive_rate: list[float]

    @classmethod
    def of(cls, ranking: Ranking) -> Curves:
        """Of a ranking with one weighting."""
        kept = thinned(len(ranking.scores), _CURVE_POINTS)
        return cls(
            ranking.scores[kept].tolist(),
            ranking.curve.precision[kept].tolist(),
            ranking.curve.recall[kept].tolist(),
            ranking.false_positive_rate[kept].tolist(),
        )


@dataclass(frozen=True)
class Labelled:
    """What only labels can tell; about the sessions that have one.

    Attributes:
        by_session: every session for itself.
        by_key: keys instead of sessions, each with the highest score of its sessions and anomalous if one of them
            is; None when no key has several sessions.
        baselines: the same figures for simple detectors, cross-fitted over the keys; none when a kind has one key.
        delay: of early alerts, by severity.
        reliability: score against the share that is anomalous.
        curves: of `by_session`.
    """

    by_session: Quality
    by_key: Quality | None
    baselines: list[BaselineQuality]
    delay: dict[str, Delay]
    reliability: list[ReliabilityBin]
    curves: Curves


@dataclass(frozen=True)
class Evaluation:
    """Everything that is computed from scores and labels.

    Attributes:
        sessions: how many there are, by kind.
        keys: distinct session keys.
        distinct_sequences: of events.
        events: in all sessions.
        unknown_events: those of them that no template of the checkpoint matches.
        alerts: by severity, the share of the sessions of each kind that is at or above its threshold.
        histogram: of final scores.
        share_at_or_above: of final scores.
        labelled: None unless sessions of both labels are there.
    """

    sessions: dict[str, int]
    keys: int
    distinct_sequences: int
    events: int
    unknown_events: int
    alerts: dict[str, dict[str, float]]
    histogram: Histogram
    share_at_or_above: ShareAtOrAbove
    labelled: Labelled | None


def evaluate(
    sessions: EvaluatedSessions,
    scores: SequenceScores,
    *,
    thresholds: Mapping[str, float],
    vocabulary_size: int,
    normal_weight: float = 1.0,
    seed: int = 0,
) -> Evaluation:
    """Evaluate the scores of some sessions, at least one.

    Args:
        sessions: with what is known about them.
        scores: of their distinct sequences.
        thresholds: by severity; the same names as in `scores.crossed`.
        vocabulary_size: number of tokens.
        normal_weight: how many sessions of the stream each normal one stands for.
        seed: of the bootstrap, of the baselines and of their folds.
    """
    final, counts, labels = scores.final[sessions.sequence], sessions.counts, sessions.labels
    kinds = {name: labels == label for name, label in _KINDS.items() if (labels == label).any()}
    lengths = np.fromiter(map(len, sessions.sequences), np.int64, len(sessions.sequences))
    unknown = np.fromiter(((events < N_SPECIAL).sum() for events in sessions.sequences), np.int64, len(lengths))
    labelled = None
    if {"normal", "anomalous"} <= kinds.keys():
        labelled = _labelled(
            sessions, scores, lengths, dict(thresholds), vocabulary_size, normal_weight=normal_weight, seed=seed
        )
    return Evaluation(
        sessions={name: int(counts[kind].sum()) for name, kind in kinds.items()},
        keys=len(np.unique(sessions.key)),
        distinct_sequences=len(sessions.sequences),
        events=int(counts @ lengths[sessions.sequence]),
        unknown_events=int(counts @ unknown[sessions.sequence]),
        alerts={
            severity: {
                name: float(counts[kind & (final >= threshold)].sum() / counts[kind].sum())
                for name, kind in kinds.items()
            }
            for severity, threshold in thresholds.items()
        },
        histogram=Histogram.of(final, counts, kinds),
        share_at_or_above=ShareAtOrAbove.of(final, counts, kinds),
        labelled=labelled,
    )


def _labelled(
    sessions: EvaluatedSessions,
    scores: SequenceScores,
    lengths: Integers,
    thresholds: dict[str, float],
    vocabulary_size: int,
    *,
    normal_weight: float,
    seed: int,
) -> Labelled:
    known = sessions.labels != UNLABELLED
    sequence, key, counts = sessions.sequence[known], sessions.key[known], sessions.counts[known]
    anomalous, final = sessions.labels[known] == ANOMALOUS, scores.final[sequence]
    weights = counts * np.where(anomalous, 1.0, normal_weight)

    quality = partial(Quality.of, thresholds=thresholds, normal_weight=normal_weight, seed=seed)

    key_names, key = np.unique(key, return_inverse=True)
    key_score = np.zeros(len(key_names))
    key_anomalous = np.zeros(len(key_names), np.bool_)
    key_count = np.zeros(len(key_names), np.int64)
    np.maximum.at(key_score, key, final)
    np.maximum.at(key_anomalous, key, anomalous)
    np.maximum.at(key_count, key, counts)

    return Labelled(
        by_session=quality(final, anomalous, counts),
        by_key=quality(key_score, key_anomalous, key_count) if len(key_names) < len(key) else None,
        baselines=_baselines(
            count_vectors(sessions.sequences, vocabulary_size),
            sequence,
            anomalous,
            counts,
            folds=folds_of_keys(key_anomalous, seed)[key],
            normal_weight=normal_weight,
            seed=seed,
        )
        if min(key_anomalous.sum(), (~key_anomalous).sum()) > 1
        else [],
        delay={
            severity: Delay.of(
                threshold,
                crossed=scores.crossed[severity][sequence],
                lengths=lengths[sequence],
                final=final,
                anomalous=anomalous,
                counts=counts,
                weights=weights,
            )
            for severity, threshold in thresholds.items()
        },
        reliability=reliability(final, anomalous, counts, weights),
        curves=Curves.of(Ranking.of(final, anomalous, weights)),
    )


def _baselines(
    vectors: csr_array,
    sequence: Integers,
    anomalous: Flags,
    counts: Integers,
    *,
    folds: Integers,
    normal_weight: float,
    seed: int,
) -> list[BaselineQuality]:
    """Every baseline, cross-fitted; `vectors` has a row for each distinct sequence, the others one for each row."""
    # Equal count vectors of one label and fold are learnt from, and scored, as one with their weights added.
    first, vector = distinct_rows(vectors)
    merged, row = np.unique((vector[sequence] * 2 + anomalous) * FOLDS + folds, return_inverse=True)
    weights = np.bincount(row, counts * np.where(anomalous, 1.0, normal_weight)).astype(np.float64)
    found = []
    for name, make in BASELINES.items():
        scores = cross_fitted(
            make, vectors[first[merged // (2 * FOLDS)]], merged // FOLDS % 2 == 1, weights, merged % FOLDS, seed
        )
        baseline = make(seed)
        quality = Quality.of(
            scores[row],
            anomalous,
            counts,
            thresholds={"own": baseline.threshold},
            normal_weight=normal_weight,
            seed=seed,
        )
        found.append(BaselineQuality(name, baseline.uses_labels, quality))
    return found
