"""Scores mean the same for every model: shares of normal sessions without labels, probabilities with them."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.scoring.calibration import (
    CRITICAL_SCORE,
    EVIDENT_LEVEL,
    WARNING_SCORE,
    Calibration,
    Combination,
    Floats,
    SessionStatistics,
    Tail,
)
from detector.scoring.evidence import MAX_LEVEL, SURPRISE_LEVEL, WARNING_LEVEL, Evidence

NONE = np.zeros(20_000, bool)


def statistics(
    highest: Floats,
    logits: Floats | None = None,
    anomalous: np.ndarray | None = None,
    counts: Floats | None = None,
    unusual: Floats | None = None,
) -> SessionStatistics:
    n = len(highest)
    unusual = np.zeros(n) if unusual is None else unusual
    logits = np.zeros(n) if logits is None else logits
    return SessionStatistics(
        highest=highest,
        logits=logits,
        unusual=unusual,
        seen=unusual == 0,
        early_highest=highest,
        early_logits=logits,
        early_unusual=unusual,
        labels=np.zeros(n, dtype=np.int8) if anomalous is None else anomalous.astype(np.int8),
        counts=np.ones(n) if counts is None else counts,
    )


def sigmoid(z: Floats) -> Floats:
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize(("share", "mean"), [(0.05, 1.0), (0.02, 0.4), (0.004, 2.0)])
def test_without_labels_at_most_1_percent_of_fresh_normals_reach_07_and_1_in_1000_reach_095(
    share: float, mean: float
) -> None:
    """Some normal sessions have unusual counts, with an excess that falls off exponentially."""
    rng = np.random.default_rng(3)
    held_out, fresh = (np.where(rng.random(n) < share, rng.exponential(mean, n), 0.0) for n in (20_000, 400_000))
    surprise = rng.gamma(2.0, 1.0, 20_000)
    calibration = Calibration.fit(statistics(surprise, unusual=held_out), classifier=False)
    scores = calibration.final_scores(rng.gamma(2.0, 1.0, 400_000), np.zeros(400_000), fresh, fresh == 0)
    wanted = min(0.01, share)
    assert 0.8 * wanted < (scores >= 0.7).mean() < 1.2 * wanted
    assert 0.0007 < (scores >= 0.95).mean() < 0.0014


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_surprise_alone_is_no_warning_unless_hardly_any_normal_session_is_so_surprising(scale: float) -> None:
    rng = np.random.default_rng(3)
    held_out, fresh = (scale * rng.gamma(2.0, 1.0, size) for size in (20_000, 1_000_000))
    calibration = Calibration.fit(statistics(held_out), classifier=False)
    none = np.zeros(len(fresh))
    scores = calibration.final_scores(fresh, none, none, np.ones(len(fresh), bool))
    assert 0 < (scores >= 0.7).mean() < 3 * 10**-EVIDENT_LEVEL
    assert scores[fresh > 40 * scale].min(initial=1) > 0.95
    assert (calibration.final_scores(fresh, none, none, np.zeros(len(fresh), bool)) < 0.7).all(), "counts of its own"


def test_sessions_with_evidence_rank_above_all_without() -> None:
    rng = np.random.default_rng(4)
    calibration = Calibration.fit(statistics(rng.gamma(2.0, 1.0, 300)), classifier=False)
    surprises = np.linspace(0, 9, 50)
    assert (calibration.tail.level(surprises) < EVIDENT_LEVEL).all()
    without, some = (calibration.levels(surprises, np.full(50, nats), np.full(50, nats == 0)) for nats in (0.0, 1e-6))
    assert without.max() < 2
    assert some.min() > without.max()
    assert calibration.early_levels(surprises[:1], np.array([1e9]))[0] == MAX_LEVEL


def test_evidence_that_no_held_out_session_has_counts_by_how_many_there_were() -> None:
    levels = [Evidence.fit(np.zeros(n), np.ones(n)).level for n in (99, 999, 9_999)]
    assert levels == pytest.approx([2.0, 3.0, 4.0])
    assert Evidence.fit(np.array([0.0, 2.0]), np.array([98.0, 1.0])).level == pytest.approx(np.log10(100 / 2))


def test_evidence_that_most_normal_sessions_have_is_no_warning_but_still_ranks_by_its_nats() -> None:
    evidence = Evidence.fit(np.linspace(1.0, 200.0, 100), np.ones(100))
    levels = evidence.levels(np.linspace(0.01, 150.0, 50))
    assert (np.diff(levels) > 0).all()
    assert levels[0] > SURPRISE_LEVEL
    assert levels[-1] < WARNING_LEVEL
    assert evidence.levels(np.array([1e3]))[0] > WARNING_LEVEL


def test_repeated_normal_sessions_weigh_as_their_counts_say() -> None:
    rng = np.random.default_rng(4)
    values = np.round(rng.gamma(2.0, 1.0, 3_000), 1)
    distinct, counts = np.unique(values, return_counts=True)
    one_by_one = Tail.fit(values, np.ones(len(values)))
    counted = Tail.fit(distinct, counts.astype(float))
    assert counted == one_by_one


@pytest.mark.parametrize("values", [[2.0], [2.0] * 500, [0.0] * 300 + [9.0]])
def test_a_tail_of_few_or_equal_values_is_still_an_increasing_map(values: list[float]) -> None:
    tail = Tail.fit(np.array(values), np.ones(len(values)))
    levels = tail.level(np.linspace(0.0, 40.0, 200))
    assert (np.diff(levels) >= 0).all()
    assert levels[0] < 2.0
    assert levels[-1] == MAX_LEVEL


@settings(max_examples=50)
@given(
    st.lists(st.floats(0, 60), min_size=1, max_size=80),
    st.lists(st.floats(0, 500), min_size=1, max_size=40),
    st.data(),
)
def test_scores_rise_with_surprise_stay_in_0_1_and_ignore_their_neighbours(
    normals: list[float], surprises: list[float], data: st.DataObject
) -> None:
    calibration = Calibration.fit(statistics(np.array(normals)), classifier=False)
    highest = np.sort(np.array(surprises))
    logits = np.zeros(len(highest))
    unusual, seen = np.zeros(len(highest)), np.ones(len(highest), bool)
    scores = calibration.final_scores(highest, logits, unusual, seen)
    assert (scores >= 0).all()
    assert (scores <= 1).all()
    assert (np.diff(scores) >= 0).all()
    chosen = data.draw(st.lists(st.integers(0, len(highest) - 1), min_size=1))
    again = calibration.final_scores(highest[chosen], logits[chosen], unusual[chosen], seen[chosen])
    assert (again == scores[chosen]).all()


def test_with_labels_the_score_is_the_probability_of_an_anomaly() -> None:
    rng = np.random.default_rng(5)
    n = 200_000
    anomalous = rng.random(n) < 0.2
    logits = rng.normal(np.where(anomalous, 1.5, -1.5), 2.0)
    highest = rng.gamma(2.0, np.where(anomalous, 1.4, 1.0))
    fitted = Calibration.fit(statistics(highest[:20_000], logits[:20_000], anomalous[:20_000]), classifier=True)
    scores = fitted.final_scores(highest, logits, np.zeros(n), np.ones(n, bool))
    for low in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9):
        chosen = (scores >= low) & (scores < low + 0.1)
        assert anomalous[chosen].mean() == pytest.approx(scores[chosen].mean(), abs=0.03)


def test_sessions_of_unknown_label_shape_the_tail_but_not_the_regression() -> None:
    rng = np.random.default_rng(10)
    labels = np.repeat([0, 1, -1], 500).astype(np.int8)
    logits = rng.normal(np.where(labels == 1, 2.0, -2.0), 1.0)
    highest = rng.gamma(2.0, 1.0, 1_500)
    none, seen = np.zeros(1_500), np.ones(1_500, bool)
    whole = SessionStatistics(highest, logits, none, seen, highest, logits, none, labels, np.ones(1_500))
    calibration = Calibration.fit(whole, classifier=True)
    assert calibration.tail == Tail.fit(highest[labels != 1], np.ones(1_000))
    known = labels >= 0
    levels = calibration.levels(highest[known], none[known], seen[known])
    usual = seen[known]
    assert replace(calibration.final, sooner=0.0) == Combination.fit(
        logits[known], levels, usual, labels[known] == 1, np.ones(1_000), combine=False
    )


def test_both_statistics_raise_the_score_when_both_tell() -> None:
    rng = np.random.default_rng(6)
    truth = rng.normal(size=(4_000, 2))
    anomalous = rng.random(4_000) < sigmoid(2 * truth[:, 0] + truth[:, 1] - 1)
    combination = Combination.fit(truth[:, 0], truth[:, 1], NONE[:4_000], anomalous, np.ones(4_000))
    assert combination.logit_weight == pytest.approx(2.0, abs=0.3)
    assert combination.level_weight == pytest.approx(1.0, abs=0.2)
    assert combination.bias == pytest.approx(-1.0, abs=0.2)


def test_counts_that_normal_sessions_had_lower_the_score_where_the_logit_errs() -> None:
    rng = np.random.default_rng(13)
    anomalous = np.arange(4_000) >= 3_000
    logits = np.where(anomalous, 4.0, -4.0) + rng.normal(0, 2.5, 4_000)
    usual = ~anomalous & (rng.random(4_000) < 0.9)
    combination = Combination.fit(logits, np.zeros(4_000), usual, anomalous, np.ones(4_000), combine=False)
    assert combination.usual_weight > 1
    errs = usual & (logits > 2)
    assert errs.any()
    none = np.zeros(4_000)
    assert (combination.score(logits, none, usual)[errs] < combination.score(logits, none, NONE[:4_000])[errs]).all()
    new = ~usual
    alone = Combination.fit(logits[new], none[new], NONE[: new.sum()], anomalous[new], np.ones(new.sum()))
    assert combination.bias == pytest.approx(alone.bias, abs=0.05), "the others are judged among themselves"
    assert combination.logit_weight == pytest.approx(alone.logit_weight, rel=0.05)
    among_both = rng.random(4_000) < 0.5
    useless = Combination.fit(logits, none, among_both, anomalous, np.ones(4_000), combine=False)
    assert useless.usual_weight == 0


def test_where_no_normal_session_has_new_counts_they_alone_make_no_alarm() -> None:
    anomalous = np.arange(500) >= 475
    logits = np.concatenate([np.linspace(-7, -5, 475), np.linspace(5, 7, 25)])
    combination = Combination.fit(logits, np.zeros(500), ~anomalous, anomalous, np.ones(500), combine=False)
    assert combination.score(np.array([-6.0, 6.0]), np.zeros(2), NONE[:2]) == pytest.approx([0.0, 1.0], abs=0.06)


def test_a_level_that_adds_nothing_to_the_logit_gets_no_weight() -> None:
    """Else what decides over sessions like none of these would be left to chance."""
    rng = np.random.default_rng(12)
    anomalous = np.arange(930) >= 900
    logits = np.where(anomalous, 6.0, -6.0) + rng.normal(0, 1.0, 930)
    combination = Combination.fit(logits, np.where(anomalous, 4.0, 0.5), NONE[:930], anomalous, np.ones(930))
    assert combination.logit_weight > 0
    assert combination.level_weight == 0
    useless = Combination.fit(
        rng.normal(0, 1.0, 930), np.where(anomalous, 4.0, 0.5), NONE[:930], anomalous, np.ones(930)
    )
    assert useless.level_weight > 0
    alone = Combination.fit(
        np.zeros(930), np.where(anomalous, 4.0, 0.5), NONE[:930], anomalous, np.ones(930), combine=False
    )
    assert alone.level_weight == 0


def test_a_statistic_that_points_the_wrong_way_gets_no_weight() -> None:
    rng = np.random.default_rng(7)
    truth = rng.normal(size=(4_000, 2))
    anomalous = rng.random(4_000) < sigmoid(2 * truth[:, 0] - 3 * truth[:, 1])
    combination = Combination.fit(truth[:, 0], truth[:, 1], NONE[:4_000], anomalous, np.ones(4_000))
    assert combination.level_weight == 0.0
    assert combination.logit_weight > 0.5
    backwards = Combination.fit(-truth[:, 0], truth[:, 1], NONE[:4_000], anomalous, np.ones(4_000))
    assert (backwards.logit_weight, backwards.level_weight) == (0.0, 0.0)
    assert sigmoid(np.array(backwards.bias)) == pytest.approx(anomalous.mean(), abs=0.01)


def test_perfectly_separated_sessions_give_finite_weights_and_the_right_side() -> None:
    logits = np.concatenate([np.full(900, -9.0), np.full(30, 9.0)])
    levels = np.zeros(930)
    anomalous = logits > 0
    combination = Combination.fit(logits, levels, NONE[:930], anomalous, np.ones(930))
    scores = combination.score(logits, levels, NONE[:930])
    assert (scores[anomalous] > 0.95).all()
    assert (scores[~anomalous] < 0.01).all()
    assert combination.logit_weight < 10


@pytest.mark.parametrize(("n_anomalous", "critical"), [(5, False), (10, True)])
def test_ten_separated_anomalous_sessions_are_enough_for_a_critical_score(n_anomalous: int, critical: bool) -> None:
    anomalous = np.arange(500 + n_anomalous) >= 500
    n, logits = len(anomalous), np.where(anomalous, 6.0, -6.0)
    none = np.zeros(n)
    combination = Combination.fit(logits, none, NONE[:n], anomalous, np.ones(n), combine=False)
    highest = combination.score(logits, none, NONE[:n]).max()
    assert highest == pytest.approx((n_anomalous + 0.5) / (n_anomalous + 1))
    assert (highest >= 0.95) == critical


@pytest.mark.parametrize(("n_anomalous", "apart"), [(100, 4.0), (1_000, 4.0), (3, 14.0), (8, 14.0), (60, 8.0)])
def test_a_score_is_critical_sooner_where_no_more_than_5_percent_of_fresh_ones_are_false(
    n_anomalous: int, apart: float
) -> None:
    """Some anomalous sessions are as sure as any but for the regression, which also has to fit the others."""
    n_normal = 2_000
    kept, raised, found = 0, 0, []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        anomalous = np.repeat([False, True], (n_normal, n_anomalous))
        fresh_anomalous = np.repeat(anomalous, 20)
        logits, fresh = (rng.normal(np.where(each, apart, 0.0)) for each in (anomalous, fresh_anomalous))
        zeros, none = np.zeros(len(logits)), np.zeros(len(logits), bool)
        plain = Combination.fit(logits, zeros, none, anomalous, np.ones(len(logits)))
        sooner = plain.critical(logits, zeros, none, anomalous=anomalous, counts=np.ones(len(logits)))
        scores, before = (each.score(fresh, np.zeros(len(fresh)), np.repeat(none, 20)) for each in (sooner, plain))
        assert ((scores >= 0.7) == (before >= 0.7)).all(), "what is a warning stays one"
        assert (np.diff(scores[np.argsort(fresh)]) >= 0).all()
        critical = scores >= 0.95
        kept += (critical & ~fresh_anomalous).sum() <= 0.05 * critical.sum()
        raised += sooner.sooner > 0
        found.append((critical & fresh_anomalous).sum() - (before[fresh_anomalous] >= 0.95).sum())
    assert kept >= 18, "with a certainty of 90 %"
    assert raised >= 15
    assert np.mean(found) > 0


def test_few_anomalous_sessions_close_to_normal_ones_make_nothing_critical() -> None:
    rng = np.random.default_rng(0)
    logits = np.append(rng.exponential(1.0, 3_000), [9.0, 9.5, 10.0])
    anomalous, zeros, none = np.arange(3_003) >= 3_000, np.zeros(3_003), np.zeros(3_003, bool)
    plain = Combination.fit(logits, zeros, none, anomalous, np.ones(3_003))
    assert plain.critical(logits, zeros, none, anomalous=anomalous, counts=np.ones(3_003)) == plain


def test_counts_are_as_good_as_copies_in_the_regression() -> None:
    rng = np.random.default_rng(8)
    logits, levels = rng.normal(size=(2, 60))
    anomalous = rng.random(60) < 0.4
    counts = rng.integers(1, 9, 60)
    counted = Combination.fit(logits, levels, logits > 0.5, anomalous, counts.astype(float))
    copies = Combination.fit(
        *(np.repeat(values, counts) for values in (logits, levels, logits > 0.5, anomalous)), np.ones(counts.sum())
    )
    assert list(asdict(counted).values()) == pytest.approx(list(asdict(copies).values()), rel=1e-6)


def test_early_alarms_are_false_no_more_often_than_those_at_the_end() -> None:
    """Half-way many a normal session looks like an anomaly: the early regression alone would say so."""
    rng = np.random.default_rng(11)
    n = 20_000
    anomalous = rng.random(n) < 0.3
    logits = rng.normal(np.where(anomalous, 4.0, -4.0), 1.5)
    early_logits = np.maximum(logits + rng.normal(0.0, 1.0, n), rng.normal(-2.0, 1.5, n))
    none, seen, labels = np.zeros(n), np.ones(n, bool), anomalous.astype(np.int8)
    whole = SessionStatistics(none, logits, none, seen, none, early_logits, none, labels, np.ones(n))
    calibration = Calibration.fit(whole, classifier=True)
    final = calibration.final_scores(none, logits, none, seen)
    early = calibration.early_scores(none, early_logits, none)
    levels = calibration.early_levels(none, none)
    alone = Combination.fit(early_logits, levels, NONE, anomalous, np.ones(n))
    for threshold in (0.7, 0.95):
        false = (final[~anomalous] >= threshold).sum()
        assert (early[~anomalous] >= threshold).sum() <= false
    assert (alone.score(early_logits, levels, NONE)[~anomalous] >= 0.7).sum() > 2 * false
    assert (early[anomalous] >= 0.7).mean() > 0.5
    assert alone.logit_weight == calibration.early.logit_weight


def test_of_fresh_sessions_that_reach_a_threshold_early_no_larger_a_share_is_false_than_it_says() -> None:
    """What looks bad half-way ends well in some sessions, and their final scores take the alerts back."""
    rng = np.random.default_rng(12)

    def sessions(n: int) -> SessionStatistics:
        anomalous = rng.random(n) < 0.1
        trouble = anomalous & (rng.random(n) < 0.5)  # seen half-way already
        early_logits = np.where(trouble, rng.normal(4.0, 3.0, n), rng.normal(-3.0, 1.0, n))
        recovers = trouble & (rng.random(n) < 0.9 / (1 + np.exp(3 * (early_logits - 5.0))))
        logits = rng.normal(np.where(anomalous & ~recovers, 8.0, -8.0), 1.0)
        none, seen = np.zeros(n), np.ones(n, bool)
        return SessionStatistics(
            none, logits, none, seen, none, early_logits, none, anomalous.astype(np.int8), none + 1
        )

    held_out, fresh = sessions(10_000), sessions(100_000)
    calibration = Calibration.fit(held_out, classifier=True)
    final = calibration.final_scores(fresh.highest, fresh.logits, fresh.unusual, fresh.seen)

    def false_share(early: Combination, threshold: float) -> float:
        reached = early.score(fresh.early_logits, np.zeros(100_000), np.zeros(100_000, bool)) >= threshold
        assert reached.sum() > 500
        return float((final[reached] < threshold).mean())

    none = np.zeros(10_000)
    alone = Combination.fit(held_out.early_logits, none, none > 0, held_out.labels == 1, held_out.counts)
    assert false_share(alone, 0.7) > 0.4, "the regression alone says too much"
    assert false_share(alone, 0.95) > 0.06
    assert false_share(calibration.early, 0.7) <= 0.3
    assert false_share(calibration.early, 0.95) <= 0.05


@pytest.mark.parametrize(("alerts", "reaches"), [(44, False), (45, True)])
def test_an_early_score_is_critical_once_45_anomalous_sessions_bear_it_out(alerts: int, reaches: bool) -> None:
    anomalous = np.arange(500) < alerts
    logits, none = np.where(anomalous, 9.0, -9.0), np.zeros(500)
    labels, counts = anomalous.astype(np.int8), np.ones(500)
    whole = SessionStatistics(none, logits, none, none == 0, none, logits, none, labels, counts)
    scores = Calibration.fit(whole, classifier=True).early_scores(none, logits, none)
    assert (scores[anomalous] >= 0.7).all()
    assert (scores[anomalous] >= 0.95).all() == reaches
    assert (scores[~anomalous] < 0.7).all()


def test_early_scores_without_labels_never_exceed_the_final_one() -> None:
    rng = np.random.default_rng(9)
    calibration = Calibration.fit(statistics(rng.gamma(2.0, 1.0, 500)), classifier=False)
    surprises = rng.gamma(2.0, 2.0, (200, 12))
    running = np.maximum.accumulate(surprises, axis=1)
    unusual = np.maximum.accumulate(rng.exponential(1.0, (200, 12)) * (rng.random((200, 12)) < 0.1), axis=1)
    early = calibration.early_scores(running, np.zeros_like(running), unusual)
    final = calibration.final_scores(running[:, -1], np.zeros(200), unusual[:, -1], unusual[:, -1] == 0)
    assert (np.diff(early, axis=1) >= 0).all()
    assert (early <= final[:, None]).all()


def test_a_session_that_labels_never_showed_is_a_warning_where_classifier_and_counts_both_doubt_it() -> None:
    """Between the classes, nearer to a warning than to most normal sessions, and with counts that none of these has."""
    rng = np.random.default_rng(5)
    anomalous = np.arange(2_200) >= 2_000
    logits = np.concatenate([rng.normal(-5, 0.3, 2_000), rng.normal(5, 0.3, 200)])
    validation = statistics(np.zeros(2_200), logits=logits, anomalous=anomalous)
    cut = rng.normal(-3, 0.3, 100)
    calibration, without = (Calibration.fit(validation, classifier=True, cut=each) for each in (cut, None))
    # What is in doubt, a normal session cut short, what is sure.
    logit, unusual = np.array([-0.5, -0.5, -2.0, -5.0, 5.0]), np.array([9.0, 0.0, 9.0, 9.0, 9.0])
    scores, before = (
        each.final_scores(np.zeros(5), logit, unusual, np.zeros(5, np.bool_)) for each in (calibration, without)
    )
    assert before[0] < WARNING_SCORE <= scores[0] < CRITICAL_SCORE
    assert (scores[1:] == before[1:]).all()
    assert (scores[1:4] < WARNING_SCORE).all()
    for rare, doubted in ((8.9, True), (9.0, False), (np.inf, False)):
        calibration = Calibration.fit(validation, classifier=True, cut=cut, rare=rare)
        (score,) = calibration.final_scores(np.zeros(1), logit[:1], unusual[:1], np.zeros(1, np.bool_))
        assert (score >= WARNING_SCORE) == doubted, "counts that more normal sessions of another time have are no doubt"
    assert calibration.doubt is None
