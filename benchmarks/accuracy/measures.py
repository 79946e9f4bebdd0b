"""What scores are worth on the test part: at thresholds fixed without it, and seen in three ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from benchmarks.accuracy.datasets import Flags
from benchmarks.accuracy.tasks import Floats, Part, Task
from detector.quality.metrics import Ranking

PERCENTILES = (99.5, 99.9)
RESAMPLES = 1000
MOST_MISTAKES = 200

Figures = dict[str, object]


def thresholds(task: Task, validation: Floats, fixed: Mapping[str, float]) -> dict[str, float]:
    """Every threshold that a detector is judged at, by name.

    Those fixed beforehand, and what the validation part gives: with labels `_from_validation`, which begins with the
    lowest of the fixed ones, without labels the percentiles of its normal sessions; nothing where nobody knows which
    those are.

    Args:
        task: whose validation part it is.
        validation: scores of that part, (n,).
        fixed: a session at or above one is an alert; at least one.
    """
    part = task.validation
    if task.as_they_come:
        return {**fixed}
    if task.labelled:
        return {**fixed, "validation": _from_validation(part, validation, min(fixed.values()))}
    return {**fixed, **{f"p{each}": _above_percentile(validation, part.weights, each) for each in PERCENTILES}}


def measure(task: Task, scores: Floats, at: Mapping[str, float]) -> dict[str, Figures]:
    """Figures of the test part in each way of looking at it.

    - ``sessions``: all of them, at natural prevalence;
    - ``unseen``: the same without those whose sequence of events occurs in the training part;
    - ``vectors``: each distinct event-count vector of a label weighs 1, shared among its sessions.

    Args:
        task: whose test part it is.
        scores: of the test part, (n,).
        at: thresholds by name.
    """
    part = task.test
    known = set(task.training.sequences)
    unseen = np.array([sequence not in known for sequence in part.sequences])
    everything = np.ones(len(part), np.bool_)
    return {
        "sessions": _figures(part, scores, part.weights, everything, at),
        "unseen": _figures(part, scores, part.weights, unseen, at),
        "vectors": _figures(part, scores, _vector_weights(part), everything, at),
    }


def describe(task: Task) -> Figures:
    """Sizes of the parts, and how many test sessions repeat the training part."""
    sizes = {
        name: {
            kind: int(part.counts[part.anomalous == (kind == "anomalous")].sum()) for kind in ("normal", "anomalous")
        }
        for name, part in (("training", task.training), ("validation", task.validation), ("test", task.test))
    }
    test = task.test
    repeated = {}
    for what, known, own in (
        ("sequence", set(task.training.sequences), test.sequences),
        ("count vector", set(task.training.vectors), test.vectors),
    ):
        seen = np.array([each in known for each in own])
        for kind, rows in (("normal", ~test.anomalous), ("anomalous", test.anomalous)):
            total = int(test.counts[rows].sum())
            repeated[f"{kind}, {what}"] = float(test.counts[rows & seen].sum() / total) if total else None
    return {"sizes": sizes, "templates": len(task.vocabulary.templates), "repeated": repeated}


def mistakes(part: Part, scores: Floats, threshold: float) -> dict[str, list[str]]:
    """Keys of the missed and the falsely alerted sessions, at most `MOST_MISTAKES` of each, the worst first."""
    alert = scores >= threshold
    order = np.argsort(scores, kind="stable")
    missed = [part.keys[row] for row in order if part.anomalous[row] and not alert[row]]
    false = [part.keys[row] for row in order[::-1] if alert[row] and not part.anomalous[row]]
    return {"misses": missed[:MOST_MISTAKES], "false_alarms": false[:MOST_MISTAKES]}


def _figures(part: Part, scores: Floats, weights: Floats, chosen: Flags, at: Mapping[str, float]) -> Figures:
    anomalous, counts = part.anomalous[chosen], part.counts[chosen]
    figures: Figures = {"normal": int(counts[~anomalous].sum()), "anomalous": int(counts[anomalous].sum())}
    if anomalous.all() or not anomalous.any():
        return figures
    scores = scores[chosen]
    ranking = Ranking.of(scores, anomalous, weights[chosen])
    points = {}
    for name, threshold in (*at.items(), ("best", ranking.best_threshold())):
        alert = scores >= threshold
        rates = {rate: float(value) for rate, value in ranking.detection(threshold)._asdict().items()}
        points[name] = {
            "threshold": threshold,
            **rates,
            "misses": int(counts[anomalous & ~alert].sum()),
            "false_alarms": int(counts[alert & ~anomalous].sum()),
        }
    return {
        **figures,
        "auprc": float(ranking.average_precision()),
        "auroc": float(ranking.auroc()),
        "at": points,
    }


def _vector_weights(part: Part) -> Floats:
    """Share of each row in the weight of 1 of its count vector and label."""
    vectors = list(zip(part.vectors, part.anomalous.tolist(), strict=True))
    totals: Counter[tuple[bytes, bool]] = Counter()
    for vector, count in zip(vectors, part.counts.tolist(), strict=True):
        totals[vector] += count
    weights: Floats = part.counts / np.array([totals[vector] for vector in vectors])
    return weights


def _from_validation(part: Part, scores: Floats, operating: float) -> float:
    """The threshold nearest to `operating` among those that a part cannot tell from its best, by F1.

    Where a part is separated all thresholds in the gap are as good, and elsewhere one session more or less moves the
    best of them far. So it gives way to what was known without the part, as in the one-standard-error rule of Breiman
    et al. (1984), unless their F1 speaks against that: it can tell two thresholds apart where the 95 % bootstrap
    interval of the difference, both F1 being of the same resample, leaves out 0. (The standard error of the best F1
    alone, which is 0 where a part is separated, would leave that to single sessions.) Sessions with equal counts are
    drawn together: they are copies, and err together.
    """
    ranking = Ranking.of(scores, part.anomalous, part.weights)
    best = int(np.argmax(ranking.curve.f1))
    group = np.searchsorted(-ranking.scores, -scores)
    numbers: dict[tuple[bytes, bool], int] = {}
    copies = zip(part.vectors, part.anomalous.tolist(), strict=True)
    unit = np.array([numbers.setdefault(each, len(numbers)) for each in copies])
    kinds = [(rows, np.unique(unit[rows])) for rows in (part.anomalous, ~part.anomalous)]
    times = np.empty(len(numbers))
    no_worse = np.zeros(len(ranking.scores))
    rng = np.random.default_rng(0)
    for _ in range(RESAMPLES):
        for _, units in kinds:
            times[units] = rng.multinomial(len(units), np.full(len(units), 1 / len(units)))
        weights = part.weights * times[unit]
        drawn = (np.bincount(group[rows], weights[rows], len(ranking.scores)) for rows, _ in kinds)
        f1 = Ranking(ranking.scores, *drawn).curve.f1
        no_worse += f1 >= f1[best]
    as_good = no_worse > 0.025 * RESAMPLES
    # A threshold above the next lower score has the same alerts.
    highest = ranking.scores[as_good]
    lower = np.append(ranking.scores[1:], -np.inf)[as_good]
    nearest = np.clip(operating, np.nextafter(lower, np.inf), highest)
    return float(nearest[np.argmin(np.abs(nearest - operating))])


def _above_percentile(scores: Floats, weights: Floats, percentile: float) -> float:
    """Least threshold that at most the rest of the weight reaches, but for rounding."""
    ascending, group = np.unique(scores, return_inverse=True)
    beyond = 1 - np.cumsum(np.bincount(group, weights)) / weights.sum()
    highest_below = ascending[np.argmax(beyond <= 1 - percentile / 100 + 1e-9)]
    return float(np.nextafter(highest_below, np.inf))
