"""From what is measured of a session to a score in [0, 1] that means the same for every checkpoint.

Three statistics of a session enter, the first two taken over its events and, once it is complete, its end:

- the *highest surprise* s, in nats. Its tail probability among held-out normal sessions (`Tail`) makes it comparable
  between models: -log10 of that.
- the *class logit* c of the classifier, where labels were there to train one.
- how *unusual* its counts u are, in nats (`detector.scoring.count_profile`); 0 for nearly all normal sessions.

The *level* of a session is -log10 of the share of normal sessions that are like it or worse. Surprise alone takes
it no further than `SURPRISE_LEVEL`, below a warning: rare but harmless turns are surprising, and a log has many of
them. What takes it further is *evidence*, in nats: counts that are unusual or, in a session whose counts are those
of a normal one, a surprise beyond `EVIDENT_LEVEL`: there it can only be the order. (Elsewhere a surprise says again
what the counts say, but not whether normal sessions explain them.) From there the level is -log10 of the share of
held-out normal sessions with evidence, and grows with the evidence as it falls off among those (`Evidence`). Where so
many have evidence that this comes to less than a warning, it still ranks above surprise alone, more of it above less.

A score is logistic(bias + logit_weight * c + level_weight * level - usual_weight), the last where a normal training
session had the same counts. Without labels bias and level_weight alone put 0.7 at a level of 2 and 0.95 at 3: at
most one normal session in a hundred is a warning, one in a thousand critical. With labels the numbers come from a
logistic regression on validation sessions, so that the score is the probability that the session is anomalous. The
level takes part only where the combination of both is asked for: it finds kinds of anomalies that no label knows,
but also takes whatever is new for one.

Where labels separate, a critical score comes sooner than the regression has it (`Combination.critical`): from the least
sum on of which validation shows, by one of two bounds with a certainty of 90 %, that at most 5 % of the sessions at or
above it are normal. One takes nothing for granted but that later sessions are like those of validation; it takes 45
anomalous ones, and of those added no more than 5 % either. The other serves where there are few, even one: it takes
the normal ones to fall off exponentially beyond the highest of them.

What labels never showed lies between. A session is a warning, too, where two looks agree (`Calibration.doubt`): its
class logit is nearer to a warning's than to what 95 % of the normal sessions have at most, whole or cut short, and its
counts are as unusual as at most one normal session in a thousand has them, those of another time among them. Either
alone says little: the classifier knows what it learnt, and to the counts whatever is new is unusual.

Early scores, of the events so far, use running maxima of all statistics and so never fall while a
session goes on. Without labels the complete session's statistics can only be higher, so an early
score never exceeds the final one. With labels the early regression is fitted on each validation session's
*highest* early statistics, and then lowered until early alerts keep what the thresholds say
(`Combination.lowered`): of the sessions that reach 0.7 early at most 30 % are *false*, of those that reach 0.95 at most
5 %, with a certainty of 90 %. False is an alert of a normal session, and one that the final score takes back. Nor do
more normal sessions reach a threshold early than in the end: an early alert comes sooner, and is not more often a false
one.

Everything here is float64, element by element: a result never depends on its neighbours in the batch.
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, gammaincinv

from detector.scoring.evidence import (
    CERTAINTY,
    CRITICAL_LEVEL,
    MAX_LEVEL,
    SURPRISE_LEVEL,
    WARNING_LEVEL,
    Evidence,
    Evidences,
)
from detector.scoring.regression import drawn_in, logistic_regression, lowered_by

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

WARNING_SCORE, CRITICAL_SCORE = 0.7, 0.95
EVIDENT_LEVEL = 6.0

# Beyond these logits a statistic says no more than "extreme".
MAX_LOGIT = 20.0

# The exponential tail is fitted on this share of the held-out normals, but on no fewer than so many
# sessions: a 1 % quantile of a few hundred sessions is otherwise decided by two or three of them.
TAIL_SHARE = 0.02
TAIL_SESSIONS = 30
# Nats. Keeps the tail from becoming a cliff when all held-out normals are equally surprising.
MIN_MEAN_EXCESS = 0.25
MAX_KNOTS = 64
_BELOW = 0.01  # logits: a score that has to stay below a threshold stays so in float32
_ALMOST_ONE = 1 - 1e-12
_UNSURE = 0.05  # of normal sessions, to the classifier
_DOUBT_BAND = 0.2  # between doubtful sessions of different levels: all are warnings


@dataclass(frozen=True)
class Tail:
    """Level (-log10 of the tail probability among normal sessions) of a highest surprise.

    Linear between the knots, constant below the first and linear, with `slope`, beyond the last: exponential there.

    Attributes:
        knots: highest surprises in nats, ascending.
        levels: level at each knot, ascending.
        slope: levels per nat beyond the last knot.
    """

    knots: tuple[float, ...]
    levels: tuple[float, ...]
    slope: float

    @classmethod
    def fit(cls, highest: Floats, counts: Floats) -> "Tail":
        """Fit on held-out normal sessions: empirical in the bulk, exponential beyond it.

        Args:
            highest: highest surprise of each session, (n,), n >= 1.
            counts: how many equal sessions each stands for, (n,).
        """
        values, inverse = np.unique(highest, return_inverse=True)
        mass = np.bincount(inverse, weights=counts)
        total = mass.sum()
        at_least = np.cumsum(mass[::-1])[::-1]
        levels = np.log10((total + 1.0) / (at_least + 1.0))

        wanted = min(max(TAIL_SHARE * total, TAIL_SESSIONS), total / 4)
        start = min(int(np.searchsorted(-at_least, -wanted)), len(values) - 1)
        excess = np.average(values[start:] - values[start], weights=mass[start:])
        slope = 1.0 / (max(float(excess), MIN_MEAN_EXCESS) * np.log(10.0))

        steps = np.linspace(levels[0], levels[start], MAX_KNOTS)
        kept = np.unique(np.searchsorted(levels[: start + 1], steps))
        return cls(tuple(values[kept].tolist()), tuple(levels[kept].tolist()), float(slope))

    def level(self, highest: Floats) -> Floats:
        """Level of each highest surprise, between 0 and `MAX_LEVEL`."""
        last = self.knots[-1]
        bulk = np.interp(highest, self.knots, self.levels)
        beyond = self.levels[-1] + (highest - last) * self.slope
        level: Floats = np.minimum(np.where(highest > last, beyond, bulk), MAX_LEVEL)
        return level


@dataclass(frozen=True)
class Combination:
    """The logistic function of bias + logit_weight * class logit + level_weight * level - usual_weight.

    The last is only for counts that a normal training session had. No weight is negative.

    Attributes:
        bias, logit_weight, level_weight, usual_weight: of the sum, which are log-odds.
        above_warning: what those beyond a warning's are multiplied by, above 0.
        sooner: by how much less than the log-odds of a critical score is enough for one; that is added to the sums
            above, and to those between a warning and there in proportion.
    """

    bias: float
    logit_weight: float
    level_weight: float
    usual_weight: float
    above_warning: float = 1.0
    sooner: float = 0.0

    @classmethod
    def of_level_alone(cls) -> "Combination":
        """The one that puts the warning and critical scores at their levels."""
        low, high = _logit(WARNING_SCORE), _logit(CRITICAL_SCORE)
        weight = (high - low) / (CRITICAL_LEVEL - WARNING_LEVEL)
        return cls(bias=low - weight * WARNING_LEVEL, logit_weight=0.0, level_weight=weight, usual_weight=0.0)

    @classmethod
    def fit(
        cls,
        logits: Floats,
        levels: Floats,
        usual: Flags,
        anomalous: Flags,
        counts: Floats,
        *,
        combine: bool = True,
    ) -> "Combination":
        """Logistic regression with non-negative weights on labelled sessions.

        What lowers usual counts is fitted on sessions that have them alone. All else is fitted with those weighing as
        much as the share of the anomalous sessions that have usual counts: where anomalies have counts of their own,
        the many normal sessions that are nothing new say little of where they begin.

        The targets are drawn in from 0 and 1, so that perfectly separated sessions do not give infinite weights: as in
        Platt (1999), but by half a session of each kind (Krichevsky and Trofimov 1981), so that ten separated anomalous
        sessions are enough for a critical score.

        Args:
            logits: class logit of each session, (n,).
            levels: its level, (n,).
            usual: whether a normal training session had the same counts, (n,).
            anomalous: its label, (n,); both kinds are present.
            counts: how many equal sessions it stands for, (n,).
            combine: whether the level may have a weight.
        """
        share = (counts[anomalous & usual].sum() + 0.5) / (counts[anomalous].sum() + 1)
        weighing = np.where(usual, share * counts, counts)
        targets = drawn_in(anomalous, weighing)
        features = np.stack([np.ones_like(levels), _bounded(logits), levels], axis=1)
        # The problem is convex, so its constrained optimum is the best of the feasible optima over the
        # sets of weights that are free; with two weights there are four such sets. The level has to lower the loss by
        # what BIC asks of a parameter: where either statistic tells the sessions apart, chance would share the weight.
        price = 0.5 * float(np.log(counts.sum()))
        best: tuple[float, Floats] | None = None
        for use_logit, use_level in product((True, False), (True, False) if combine else (False,)):
            chosen = np.array([True, use_logit, use_level])
            weights = np.zeros(3)
            loss, weights[chosen] = logistic_regression(features[:, chosen], targets, weighing)
            cost = loss + price * use_level
            if (weights[1:] >= 0).all() and (best is None or cost < best[0]):
                best = cost, weights
        assert best is not None, "the regression without weights is always feasible"
        bias, logit_weight, level_weight = best[1].tolist()
        z = features @ best[1]
        return cls(
            bias=bias,
            logit_weight=logit_weight,
            level_weight=level_weight,
            usual_weight=lowered_by(z[usual], drawn_in(anomalous, counts)[usual], counts[usual], price),
        )

    def critical(
        self, logits: Floats, levels: Floats, usual: Flags, *, anomalous: Flags, counts: Floats
    ) -> "Combination":
        """The scores that are critical wherever at most 5 % of the sessions that are so are normal, no fewer than now.

        That is shown with `CERTAINTY`, for the sessions at or above an anomalous one, in one of two ways:

        - by the upper bound of Clopper and Pearson (1934) for the share of normal ones among them, where it is no more
          among those that are added either (as estimated: of few there is no bound);
        - beyond the highest normal one, by how many normal ones are to be expected there for each anomalous one. Their
          excesses over a high sum are taken for exponential (Pickands 1975), with the upper confidence bound of its
          mean from those of distinct sessions; the lower bound for the anomalous ones is that of a Poisson count.

        Args:
            logits: class logit of each session, (n,).
            levels: its level, (n,).
            usual: whether a normal training session had the same counts, (n,).
            anomalous: its label, (n,); both kinds are present.
            counts: how many equal sessions it stands for, (n,).
        """
        z = self._log_odds(logits, levels, usual)
        order = np.argsort(-z, kind="stable")
        z, anomalous, counts = z[order], anomalous[order], counts[order]
        last_of_equal = np.searchsorted(-z, -z, side="right") - 1
        reached, false = (np.cumsum(each)[last_of_equal] for each in (counts, counts * ~anomalous))
        most = 1 - CRITICAL_SCORE
        sure = z >= _logit(CRITICAL_SCORE)
        added, false_added = reached - counts[sure].sum(), false - counts[sure & ~anomalous].sum()
        shown = bdtr(false, reached.astype(np.int64), most) <= 1 - CERTAINTY
        shown &= false_added + 0.5 <= most * (added + 1)
        true = gammaincinv(np.maximum(reached - false, 1), 1 - CERTAINTY)
        normal = _expected_beyond(z, z[~anomalous], counts[~anomalous])
        shown |= (false == 0) & (normal <= most / CRITICAL_SCORE * true)
        # The sum of an anomalous session: nothing is known of the gap below it.
        enough = z[shown & anomalous & (z >= _logit(WARNING_SCORE))]
        sooner = _logit(CRITICAL_SCORE) - float(enough.min(initial=np.inf))
        return replace(self, sooner=min(max(sooner, 0.0), _SOONEST))

    def lowered(
        self, logits: Floats, levels: Floats, *, finals: Floats, anomalous: Flags, counts: Floats
    ) -> "Combination":
        """The early scores that reach each threshold as often as now, or only as often as they keep what it says.

        Of the sessions that reach a threshold t, a share of at most 1 - t is false: normal, or below t in the end. That
        holds with `CERTAINTY`, by the upper bound of Clopper and Pearson (1934), so few sessions prove nothing: it
        takes 45 without a false one for 0.95, 7 for 0.7. Where no score is that sure, none reaches the threshold. And
        no more normal ones reach it than in the end.

        Args:
            logits: highest class logit of each session before its end, (n,).
            levels: its level before its end, (n,).
            finals: its final score, (n,).
            anomalous: its label, (n,).
            counts: how many equal sessions it stands for, (n,).
        """
        z = self._log_odds(logits, levels, np.zeros(levels.shape, np.bool_))
        highest_first = np.argsort(-z, kind="stable")
        z, finals, counts = (each[highest_first] for each in (z, finals, counts))
        anomalous = anomalous[highest_first]
        last_of_equal = np.append(z[1:] != z[:-1], True)
        reached, normal = np.cumsum(counts).astype(np.int64), np.cumsum(counts * ~anomalous)

        def least_sure(threshold: float) -> float:
            false = np.cumsum(counts * (~anomalous | (finals < threshold)))
            # As rare a count of false ones, were their share 1 - t.
            sure = bdtr(false, reached, 1 - threshold) <= 1 - CERTAINTY
            as_in_the_end = normal <= counts[~anomalous & (finals >= threshold)].sum()
            (kept,) = np.nonzero(sure & as_in_the_end & last_of_equal)
            if not len(kept):
                return self.bias + self.logit_weight * MAX_LOGIT + self.level_weight * MAX_LEVEL + _BELOW
            beyond = z[kept[-1] + 1 :]
            return max(_logit(threshold), float(beyond[0]) + _BELOW if len(beyond) else -np.inf)

        warning, critical = least_sure(WARNING_SCORE), least_sure(CRITICAL_SCORE)
        return replace(
            self,
            bias=self.bias - (warning - _logit(WARNING_SCORE)),
            above_warning=_BETWEEN / max(critical - warning, _BELOW),
        )

    def score(self, logits: Floats, levels: Floats, usual: Flags) -> Floats:
        """Score in [0, 1] of each session; all (n,)."""
        z = self._log_odds(logits, levels, usual)
        beyond = np.maximum(z - _logit(WARNING_SCORE), 0.0)
        if self.above_warning != 1:
            z += (self.above_warning - 1) * beyond
        if self.sooner:
            z += self.sooner * np.minimum(beyond / (_BETWEEN - self.sooner), 1.0)
        score: Floats = 1.0 / (1.0 + np.exp(-np.clip(z, -500.0, 500.0)))
        return score

    def _log_odds(self, logits: Floats, levels: Floats, usual: Flags) -> Floats:
        z: Floats = (
            self.bias + self.logit_weight * _bounded(logits) + self.level_weight * levels - self.usual_weight * usual
        )
        return z


@dataclass(frozen=True)
class SessionStatistics:
    """What the calibration is fitted on, one entry a validation session.

    Attributes:
        highest: highest surprise over the events and the end, nats, (n,).
        logits: class logit at the end, (n,).
        unusual: how unusual its counts are, nats, (n,).
        seen: whether a normal training session had the same counts, (n,).
        early_highest: highest surprise over the events alone, (n,).
        early_logits: highest class logit over the events alone, (n,).
        early_unusual: how unusual its counts are before the end, (n,).
        labels: 1 anomalous, 0 normal, -1 not known, (n,).
        counts: how many equal sessions the entry stands for, (n,).
    """

    highest: Floats
    logits: Floats
    unusual: Floats
    seen: Flags
    early_highest: Floats
    early_logits: Floats
    early_unusual: Floats
    labels: npt.NDArray[np.int8]
    counts: Floats


@dataclass(frozen=True)
class Calibration:
    """The whole mapping, as plain numbers: the manifest of a checkpoint holds exactly these.

    Attributes:
        tail: of the highest surprise.
        evidence: of normal sessions.
        early: what early scores are made by.
        final: what final scores are made by.
        doubt: class logit above which a session with very unusual counts is a warning; None where that says nothing.
        doubt_nats: how unusual its counts have to be, beyond this.
    """

    tail: Tail
    evidence: Evidence
    early: Combination
    final: Combination
    doubt: float | None = None
    doubt_nats: float = 0.0

    @classmethod
    def fit(
        cls,
        validation: SessionStatistics,
        *,
        classifier: bool,
        combine: bool = False,
        counted: Evidences | None = None,
        cut: Floats | None = None,
        rare: float = 0.0,
    ) -> "Calibration":
        """Fit on validation sessions.

        Tail and evidence come from all that are not labelled anomalous, at least one; with `classifier` the
        combinations come from the labelled ones, at least one of each kind.

        Args:
            validation: the sessions.
            classifier: whether there is one.
            combine: whether the level may take part beside it.
            counted: evidence by counts of normal sessions, far more than there are here, where such is known.
            cut: class logits of normal sessions that end too early, (k,); without any nothing is said of doubt.
            rare: nats that counts are beyond no more than once in a thousand normal sessions of another time.
        """
        normal = validation.labels != 1
        counts = validation.counts[normal]
        tail = Tail.fit(validation.highest[normal], counts)
        surprise = tail.level(validation.highest[normal])
        if counted is None:
            evidence = Evidence.fit(_evidence(surprise, validation.unusual[normal], validation.seen[normal]), counts)
        else:
            order = _evidence(surprise, np.zeros_like(counts), validation.seen[normal])
            scaled = counts * (counted.counts.sum() / counts.sum())
            by_order = Evidences(order[order > 0], scaled[order > 0])
            evidence = Evidence.certain(Evidences.joined([counted, by_order]))
        alone = Combination.of_level_alone()
        calibration = cls(tail=tail, evidence=evidence, early=alone, final=alone)
        if not classifier:
            return calibration
        known = validation.labels >= 0
        anomalous, counts = validation.labels[known] == 1, validation.counts[known]
        levels = calibration.levels(validation.highest[known], validation.unusual[known], validation.seen[known])
        early_levels = calibration.early_levels(validation.early_highest[known], validation.early_unusual[known])
        logits, early_logits, usual = validation.logits[known], validation.early_logits[known], validation.seen[known]
        final = Combination.fit(logits, levels, usual, anomalous, counts, combine=combine)
        final = final.critical(logits, levels, usual, anomalous=anomalous, counts=counts)
        early = Combination.fit(early_logits, early_levels, np.zeros_like(usual), anomalous, counts, combine=combine)
        finals = final.score(logits, levels, usual)
        early = early.lowered(early_logits, early_levels, finals=finals, anomalous=anomalous, counts=counts)
        doubt = None
        if cut is not None and len(cut) and final.logit_weight and rare < np.inf:
            sure = max(_sure(logits[~anomalous], counts[~anomalous]), _sure(cut, np.ones(len(cut))))
            doubt = (sure + (_logit(WARNING_SCORE) - final.bias) / final.logit_weight) / 2
        return replace(calibration, early=early, final=final, doubt=doubt, doubt_nats=0.0 if doubt is None else rare)

    def levels(self, highest: Floats, unusual: Floats, seen: Flags) -> Floats:
        """Level of each complete session, from the statistics of these names (`SessionStatistics`)."""
        surprise = self.tail.level(highest)
        evidence = _evidence(surprise, unusual, seen)
        levels: Floats = np.where(evidence > 0, self.evidence.levels(evidence), np.minimum(surprise, SURPRISE_LEVEL))
        return levels

    def early_levels(self, highest: Floats, unusual: Floats) -> Floats:
        """Level of the events so far; which counts the session will have is not known yet."""
        return self.levels(highest, unusual, np.zeros(highest.shape, np.bool_))

    def early_scores(self, highest: Floats, logits: Floats, unusual: Floats) -> Floats:
        """Scores of the events so far, from the running maxima of their statistics."""
        return self.early.score(logits, self.early_levels(highest, unusual), np.zeros(highest.shape, np.bool_))

    def final_scores(self, highest: Floats, logits: Floats, unusual: Floats, seen: Flags) -> Floats:
        """Scores of complete sessions, from the statistics of these names (`SessionStatistics`)."""
        levels = self.levels(highest, unusual, seen)
        score = self.final.score(logits, levels, seen)
        if self.doubt is not None:
            doubtful = (logits > self.doubt) & (unusual > self.doubt_nats) & (levels >= CRITICAL_LEVEL)
            score = np.where(doubtful, np.maximum(score, WARNING_SCORE + _DOUBT_BAND * levels / MAX_LEVEL), score)
        return score


def _evidence(surprise: Floats, unusual: Floats, seen: Flags) -> Floats:
    """Nats of evidence: how unusual the counts are, or how far beyond `EVIDENT_LEVEL` usual ones are surprising."""
    order = np.log(10) * np.maximum(surprise - EVIDENT_LEVEL, 0.0)
    evidence: Floats = np.maximum(unusual, np.where(seen, order, 0.0))
    return evidence


def calibrated_loss(logits: Floats, anomalous: Flags, weights: Floats) -> float:
    """Mean cross-entropy, in nats, of the scores that the best calibration makes of class logits.

    Args:
        logits: of labelled sessions of both kinds, (n,).
        anomalous: their labels, (n,).
        weights: theirs in the mean, (n,).
    """
    none, no = np.zeros_like(logits), np.zeros(len(logits), np.bool_)
    fitted = Combination.fit(logits, none, no, anomalous, weights, combine=False)
    scores = np.clip(fitted.score(logits, none, no), 1 - _ALMOST_ONE, _ALMOST_ONE)
    return float(np.average(-np.log(np.where(anomalous, scores, 1 - scores)), weights=weights))


def _logit(score: float) -> float:
    return float(np.log(score) - np.log1p(-min(score, _ALMOST_ONE)))


_BETWEEN = _logit(CRITICAL_SCORE) - _logit(WARNING_SCORE)
_SOONEST = _BETWEEN - _BELOW


def _sure(logits: Floats, counts: Floats) -> float:
    """The least logit that no more than `_UNSURE` of the sessions are above."""
    order = np.argsort(-logits, kind="stable")
    above = np.cumsum(counts[order])
    return float(logits[order][np.searchsorted(above, _UNSURE * above[-1], side="right")])


def _expected_beyond(z: Floats, normal: Floats, counts: Floats) -> Floats:
    """How many normal sessions to expect at or above these log-odds; more only with 1 - `CERTAINTY`.

    Args:
        z: log-odds, (k,).
        normal: those of normal sessions, at least one, (n,).
        counts: how many equal sessions each stands for, (n,).
    """
    order = np.argsort(-normal, kind="stable")
    normal, counts = normal[order], counts[order]
    total = float(counts.sum())
    wanted = min(max(TAIL_SHARE * total, TAIL_SESSIONS), total / 4)
    start = int(np.searchsorted(np.cumsum(counts), wanted)) + 1
    least = normal[start - 1]
    mean = max(float(np.average(normal[:start] - least, weights=counts[:start])), MIN_MEAN_EXCESS)
    greatest_mean = mean * start / float(gammaincinv(start, 1 - CERTAINTY))
    expected: Floats = counts[:start].sum() * np.exp(-np.maximum(z - least, 0.0) / greatest_mean)
    return expected


def _bounded(logits: Floats) -> Floats:
    return np.clip(logits, -MAX_LOGIT, MAX_LOGIT)
