"""`benchmarks.accuracy.promises`: stretches lie in time as they say, and the shares are those of the counts alone."""

from __future__ import annotations

import numpy as np

from benchmarks.accuracy.promises import divided, kept
from benchmarks.accuracy.protocols import Protocol, Split
from benchmarks.accuracy.tasks import Task
from tests.benchmarks.sessions import dataset


def test_a_stretch_is_learnt_from_and_the_next_one_tested() -> None:
    rows = np.random.default_rng(0).permutation(1_000)
    starts = set()
    for seed in range(20):
        split = divided(rows, 300, seed)
        assert [len(part) for part in (split.training, split.validation, split.test)] == [240, 60, 300]
        start = rows.tolist().index(split.test[0]) - 300
        assert start >= 0
        np.testing.assert_array_equal(split.test, rows[start + 300 : start + 600])
        np.testing.assert_array_equal(
            np.sort(np.concatenate([split.training, split.validation])), np.sort(rows[start : start + 300])
        )
        starts.add(start)
    assert len(starts) > 10
    assert len(divided(rows, 500, 0).test) == 500, "all rows take part where there are just enough"


def test_what_later_normal_sessions_do_otherwise_is_counted_by_sessions() -> None:
    usual, new, wrong = [0, 1, 1], [0, 2, 2, 2, 1], [0, 3, 3, 3]
    sessions = [usual] * 400 + [usual, new, wrong]
    data = dataset(sessions, [0] * 402 + [1], counts=[1] * 400 + [60, 20, 5])
    split = Split(np.arange(300), np.arange(300, 400), np.arange(400, 403))
    found = kept(Task.of(Protocol("later", lambda: data, lambda _data, _seed: split, labelled=False), 0))
    assert found.warnings == 20 / 80
    assert (found.found, found.false, found.anomalous) == (5, 20, 5)
    # Without `new` among them no normal session is an alarm.
    split = Split(np.arange(300), np.arange(300, 400), np.array([400, 402]))
    found = kept(Task.of(Protocol("usual", lambda: data, lambda _data, _seed: split, labelled=False), 0))
    assert (found.warnings, found.critical, found.false, found.found) == (0, 0, 0, 5)
