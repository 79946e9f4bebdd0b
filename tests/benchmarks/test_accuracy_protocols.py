"""The protocols of `benchmarks.accuracy`: no leak from the test part into what is learnt."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.accuracy import datasets
from benchmarks.accuracy.detectors import OnCounts, detectors, training_sessions
from benchmarks.accuracy.protocols import (
    PROTOCOLS,
    Protocol,
    Split,
    by_order,
    chronological,
    halves,
    last_windows,
    random_split,
    unseen_count_vectors,
)
from benchmarks.accuracy.tasks import Task
from detector.sessions_file import UNLABELLED
from detector.text.vocabulary import N_SPECIAL, UNK
from tests.benchmarks.sessions import blocks, dataset
from tests.shared import needs_shared

DATA = blocks(600, 200)
SPLITS = {
    "random": random_split,
    "unseen": unseen_count_vectors,
    "first 20 %": chronological(0.2),
    "last windows": last_windows,
    "halves": halves(),
    "halves, few anomalies": halves(0.05),
    "two logs": by_order,
}


def rows(split: Split) -> list[int]:
    return np.concatenate([split.training, split.validation, split.test]).tolist()


@pytest.mark.parametrize("name", SPLITS)
def test_no_session_is_in_two_parts_and_every_part_has_both_kinds(name: str) -> None:
    data = replace(DATA, order=DATA.order % 2) if name == "two logs" else DATA
    split = SPLITS[name](data, 0)
    assert len(set(rows(split))) == len(rows(split))
    for part in (split.training, split.validation, split.test):
        assert set(DATA.anomalous[part]) == {False, True}


def test_halves_have_the_share_of_anomalies_that_was_asked_for() -> None:
    split = halves(0.05)(DATA, 0)
    learnt = np.concatenate([split.training, split.validation])
    for half in (learnt, split.test):
        assert (~DATA.anomalous[half]).sum() == 300
        assert DATA.anomalous[half].mean() == pytest.approx(0.05, abs=0.003)


@pytest.mark.parametrize("name", ["random", "unseen", "halves"])
def test_the_seed_decides_the_split(name: str) -> None:
    first, again, other = (rows(SPLITS[name](DATA, seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_a_random_split_gives_each_label_the_same_shares() -> None:
    split = random_split(DATA, 3)
    for kind in (False, True):
        sizes = [int((DATA.anomalous[part] == kind).sum()) for part in (split.training, split.validation, split.test)]
        assert sizes == [(DATA.anomalous == kind).sum() * share / 100 for share in (60, 15, 25)]


def test_no_event_count_vector_is_in_two_parts() -> None:
    split = unseen_count_vectors(DATA, 0)
    vectors = [{tuple(sorted(DATA.sessions[row])) for row in part} for part in (split.training, split.validation)]
    tested = {tuple(sorted(DATA.sessions[row])) for row in split.test}
    assert not vectors[0] & vectors[1]
    assert not (vectors[0] | vectors[1]) & tested


def test_in_time_order_all_of_training_is_before_validation_and_that_before_the_test() -> None:
    split = chronological(0.2)(DATA, 0)
    training, validation, test = (DATA.order[part] for part in (split.training, split.validation, split.test))
    assert training.max() < validation.min()
    assert validation.max() < test.min()
    assert len(training) + len(validation) == 0.2 * len(DATA)
    assert len(rows(split)) == len(DATA)


def test_windows_of_different_parts_share_no_event() -> None:
    stream = np.arange(2000)
    windows = [stream[start : start + 21] for start in range(900)]
    windows += [1000 + window for window in windows[:300]]
    data = dataset(windows, [0] * 900 + [1] * 300)
    split = last_windows(data, 0)
    events = [{int(e) for row in part for e in windows[row]} for part in (split.training, split.validation, split.test)]
    assert not events[0] & events[1]
    assert not (events[0] | events[1]) & events[2]
    assert len(split.test) == (900 + 300) / 5


def by_row(data: datasets.Dataset, *, labelled: bool = True) -> Protocol:
    """The first half trains, the next quarter validates, the last quarter is the test."""
    n = len(data)
    split = Split(*np.split(np.arange(n), [n // 2, 3 * n // 4]))
    return Protocol("", lambda: data, lambda _data, _seed: split, labelled)


def test_an_event_that_only_the_other_parts_have_is_unknown_to_the_detector() -> None:
    task = Task.of(by_row(dataset([[0, 1], [1], [1, 2], [0, 3]], [0, 0, 0, 1])), 0)
    assert set(task.vocabulary.templates) == {"a", "b"}
    assert (task.validation.tokens[0][1], task.test.tokens[0][1]) == (UNK, UNK)
    assert min(task.training.tokens[0]) >= N_SPECIAL


def test_a_template_that_only_the_other_parts_have_is_unknown_to_the_detector() -> None:
    lines = ("open file 1", "close file 2", "open file 3", "the disk is on fire")
    data = replace(dataset([[0, 1], [2], [0], [2, 3]], [0, 0, 0, 1], texts=lines), kind="lines")
    task = Task.of(by_row(data), 0)
    assert len(task.vocabulary.templates) == 2
    assert task.training.tokens[0][0] == task.training.tokens[1][0] == task.test.tokens[0][0]
    assert task.test.tokens[0][1] <= UNK


def test_an_unknown_event_with_the_words_of_known_ones_brings_them_along() -> None:
    texts = ("1 disk failed", "2 fan failed", "3 fan failed")
    data = dataset([[0, 1], [0], [0], [2]], [0, 0, 0, 1], texts=texts)
    assert Task.of(by_row(data), 0).test.tokens[0][0] < 0


def test_without_labels_a_detector_sees_no_anomalous_session_before_the_test() -> None:
    task = Task.of(by_row(DATA, labelled=False), 0)
    assert not task.training.anomalous.any()
    assert not task.validation.anomalous.any()
    assert task.test.anomalous.any()


def test_sessions_as_they_come_keep_their_anomalies_and_no_detector_is_told_which_they_are() -> None:
    data = dataset([[0], [0, 1], [0], [1]], [0, 1, 0, 1])
    task = Task.of(replace(by_row(data, labelled=False), as_they_come=True), 0)
    assert task.training.anomalous.tolist() == [False, True]
    assert task.vocabulary.templates == ("a", "b")
    assert (training_sessions(task.training, as_they_come=True).labels == UNLABELLED).all()
    other = replace(task, training=replace(task.training, anomalous=~task.training.anomalous))
    for detector in detectors("tiny", "cpu").values():
        if isinstance(detector, OnCounts) and not detector.make(0).uses_labels:
            one, same = (detector.run(each, 0).test for each in (task, other))
            np.testing.assert_array_equal(one, same)


def test_without_labels_events_of_anomalous_sessions_are_not_in_the_vocabulary() -> None:
    data = dataset([[0], [0, 1], [0], [1]], [0, 1, 0, 1])
    assert Task.of(by_row(data, labelled=False), 0).vocabulary.templates == ("a",)


def test_normal_sessions_weigh_as_at_natural_prevalence_and_rows_as_their_counts() -> None:
    data = dataset([[0]] * 4, [0, 0, 1, 0], counts=[1, 2, 3, 4], normal_weight=10.0)
    task = Task.of(by_row(data), 0)
    assert [*task.training.weights, *task.validation.weights, *task.test.weights] == [10, 20, 3, 40]


@needs_shared
def test_raw_lines_and_parsed_sessions_are_the_same_blocks_with_the_same_labels_and_lengths() -> None:
    raw, parsed = datasets.hdfs_raw(), datasets.hdfs_parsed_of_raw()
    assert len(raw) == 9217
    assert raw.keys == parsed.keys
    assert (raw.anomalous == parsed.anomalous).all()
    assert list(map(len, raw.sessions)) == list(map(len, parsed.sessions))


@needs_shared
def test_raw_lines_become_the_same_tokens_as_their_event_types() -> None:
    raw, parsed = (Task.of(PROTOCOLS[name], 0) for name in ("hdfs-raw-lines", "hdfs-parsed-lines"))
    assert raw.test.keys == parsed.test.keys
    pairs = Counter(
        pair
        for a, b in zip(raw.test.tokens, parsed.test.tokens, strict=True)
        for pair in zip(a.tolist(), b.tolist(), strict=True)
    )
    types_of_template = {token: event for token, event in pairs if token > UNK}
    assert all(types_of_template[token] == event for token, event in pairs if token > UNK)
