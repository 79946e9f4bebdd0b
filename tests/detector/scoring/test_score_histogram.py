"""How final scores are spread."""

import numpy as np

from detector.scoring.score_histogram import BINS, score_histogram


def test_a_score_is_in_the_bin_that_begins_at_it_or_last_before_it() -> None:
    for at, score in enumerate(np.arange(BINS) / BINS):
        for each in (score, np.float32(score), score + 0.049):
            assert score_histogram([each])[at] == 1, (at, each)
    assert score_histogram([1.0, 0.9999999])[-1] == 2
    assert score_histogram([0.6999])[13] == 1


def test_counts_weigh() -> None:
    found = score_histogram([0.0, 0.7, 0.0], [5, 2, 1])
    assert (found[0], found[14], found.sum()) == (6, 2, 8)
    assert score_histogram([]).tolist() == [0.0] * BINS
