"""Which training sessions stand for what is usual."""

import numpy as np

from detector.sessions_file import ANOMALOUS, NORMAL, UNLABELLED
from detector.training.data import TrainingSessions


def test_a_session_labelled_normal_whose_counts_are_more_frequent_among_anomalous_ones_makes_nothing_usual() -> None:
    usual, doubtful, faulty = (np.array(events, np.int64) for events in ([5, 6, 6], [5, 7], [8]))
    data = TrainingSessions.of(
        [usual, usual[::-1], doubtful, doubtful[::-1], doubtful, faulty],
        [NORMAL, ANOMALOUS, NORMAL, ANOMALOUS, UNLABELLED, ANOMALOUS],
        [90, 2, 5, 2, 5, 6],
    )
    found = data.usual()
    assert [events.tolist() for events in found.sequences] == [[5, 6, 6], [5, 7]]
    assert found.labels.tolist() == [NORMAL, UNLABELLED]


def test_without_sessions_labelled_anomalous_all_are_usual() -> None:
    data = TrainingSessions.of([np.array([5], np.int64), np.array([6, 5], np.int64)], [NORMAL, UNLABELLED], [3, 1])
    assert len(data.usual()) == 2
