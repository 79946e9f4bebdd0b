"""`benchmarks.accuracy.pace`: what is put into sessions changes their times, or their counts, as it says."""

from __future__ import annotations

import numpy as np

from benchmarks.accuracy.pace import COPIES, MANY, Half, beyond, brought_together, poured, slow, with_slow_labels


def half(n: int, seed: int) -> Half:
    """Sessions of one template now and then, and of another one all the time; times are whole seconds."""
    rng = np.random.default_rng(seed)
    tokens = [np.array([3, *[4] * int(rng.integers(2, 12))]) for _ in range(n)]
    times = [1_000_000 + 1_000 * np.cumsum(rng.integers(1, 4, len(each))) for each in tokens]
    return Half(tokens, times, np.zeros(n, np.bool_))


def test_a_slow_session_has_the_events_that_it_had() -> None:
    before = half(50, 0)
    after = slow(before, 60, np.random.default_rng(0))
    for tokens, same, times, later in zip(before.tokens, after.tokens, before.times, after.times, strict=True):
        np.testing.assert_array_equal(tokens, same)
        assert sorted({*(later - times).tolist()}) == [0, 60_000]


def test_bursts_are_of_one_template_within_a_second() -> None:
    before = half(50, 0)
    more = poured(before, np.random.default_rng(0))
    assert [len(each) for each in more.tokens] == [len(each) + COPIES for each in before.tokens]
    together = brought_together(before, np.random.default_rng(0))
    assert len(together.tokens) == sum(len(each) > MANY for each in before.tokens)
    for tokens, times in zip(together.tokens, together.times, strict=True):
        assert len({*times[tokens == 4].tolist()}) == 1
        assert (np.diff(times) >= 0).all()


def test_what_is_slow_is_found_without_labels_and_with_them() -> None:
    first, second = half(1_000, 1), half(500, 2)
    pace, _ = first.limits()
    assert not beyond(pace, second).any()
    assert beyond(pace, slow(second, 60, np.random.default_rng(0))).all()
    _, told, found, false = with_slow_labels("log", first, second)
    assert "labels bear out" in told
    wrong, _, of = found.partition(" of ")
    assert (wrong, false) == (of, "0")
