"""Which training sessions stand for what is usual."""

import numpy as np

from detector.sessions_file import ANOMALOUS, NORMAL, UNLABELLED
from detector.training.data import TrainingSessions


def test_counts_that_more_sessions_labelled_anomalous_have_are_not_usual() -> None:
    kept, contrary = np.array([5, 6, 6], np.int64), np.array([5, 7], np.int64)
    data = TrainingSessions.of(
        [kept, kept[::-1], contrary, contrary[::-1], contrary, np.array([8], np.int64)],
        [NORMAL, ANOMALOUS, NORMAL, ANOMALOUS, UNLABELLED, ANOMALOUS],
        [2, 2, 1, 4, 2, 1],
    )
    found = data.usual()
    assert [events.tolist() for events in found.sequences] == [[5, 6, 6]]
    assert found.counts.tolist() == [2]
