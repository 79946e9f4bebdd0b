"""What is given of long open sessions is what is new of them, whatever closed and opened in the same call."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from worker.processing.session_rules import SessionRules
from worker.processing.sessions import Sessions

LEAST = 5  # events beyond which a session is long here
DONE = 2  # bits of what has been told of a session of which no more is wanted
RULES = SessionRules(
    gap_ms=None,
    max_age_ms=None,
    max_events=25,
    max_open=5,
    max_future_skew_ms=10_000,
    end_tokens=frozenset({99}),
)


def tokens_of(sessions: Sessions) -> dict[int, list[int]]:
    """Of the long open sessions that got events, by number, all their tokens."""
    found = sessions.touched()
    numbers = sessions.numbers(found.order).tolist()
    return {number: each.tokens.tolist() for number, each in zip(numbers, found, strict=True) if len(each) > LEAST}


@pytest.mark.parametrize("seed", range(5))
def test_known_events_and_those_given_are_all_there_are(seed: int) -> None:
    random, sessions, known = Random(seed), Sessions(RULES), dict[int, list[int]]()
    partly, offset = 0, 0
    for _ in range(200):
        count = random.choice([1, 3, 12])
        keys = [f"k{random.choice([0, 0, 0, 1, 1, 2, 3, 4]) if random.random() < 0.99 else 9}" for _ in range(count)]
        tokens = [99 if random.random() < 0.02 else random.randint(1, 9) for _ in range(count)]
        sessions.process(keys, tokens, [0] * count, [*range(offset, offset + count)])
        offset += count
        expected = tokens_of(sessions)

        def events_known(numbers: np.ndarray) -> np.ndarray:
            return np.array([len(known.get(number, [])) for number in numbers.tolist()], np.int64)

        slots, alerted, (numbers, begins, sequences), _ = sessions.grown(LEAST, DONE, events_known)
        assert sorted(numbers.tolist()) == sorted(expected)
        assert not alerted.any()
        ends = sequences.ends.tolist()
        for number, begin, first, end in zip(numbers.tolist(), begins.tolist(), [0, *ends], ends, strict=False):
            assert known.get(number, [])[:begin] + sequences.tokens[first:end].tolist() == expected[number]
            partly += begin > 0
        looked_at = np.array([random.random() < 0.9 for _ in slots], np.bool_)
        sessions.looked_at(slots[looked_at])
        for number in numbers[looked_at].tolist():
            known[number] = expected[number]
        if random.random() < 0.1:
            known.clear()
        assert tokens_of_whole(sessions, slots) == [expected[number] for number in numbers.tolist()]
    assert partly > 50


def test_of_those_given_as_a_whole_only_those_started_over_that_were_looked_at_as_long_ones() -> None:
    sessions, none = Sessions(RULES), lambda numbers: np.zeros_like(numbers)
    offset = 0

    def grown(counts: dict[str, int], known: Callable[[np.ndarray], np.ndarray]) -> tuple[int, int]:
        nonlocal offset
        keys = [key for key, count in counts.items() for _ in range(count)]
        sessions.process(keys, [1] * len(keys), [0] * len(keys), [*range(offset, offset + len(keys))])
        offset += len(keys)
        found = sessions.grown(LEAST, DONE, known)
        all_of_them = sessions.touched()
        all_of_them.evaluated[:] = all_of_them.lengths
        sessions.note(all_of_them)
        return len(found.slots), found.started_over

    assert grown({"new": LEAST + 1, "short": LEAST}, none) == (1, 0)
    assert grown({"new": 1}, lambda numbers: np.full_like(numbers, LEAST + 1)) == (1, 0)
    assert grown({"new": 1, "short": 1}, none) == (2, 1)


def tokens_of_whole(sessions: Sessions, slots: np.ndarray) -> list[list[int]]:
    return [each.tokens.tolist() for each in sessions.at(slots)]


def test_sessions_that_are_done_with_are_noted_and_left_out() -> None:
    sessions = Sessions(RULES)
    sessions.process(["a"] * 8 + ["b"] * 8, [1] * 16, [0] * 16, [*range(16)])
    both = sessions.touched()
    both.alerted[:] = [DONE, 1]
    sessions.note(both)
    slots, alerted, growth, _ = sessions.grown(LEAST, DONE, np.zeros_like)
    assert [each.key for each in sessions.at(slots)] == ["b"]
    assert alerted.tolist() == [1]
    assert len(growth.sequences.tokens) == 8
    assert [each.evaluated for each in sessions.touched()] == [8, 0]


def test_numbers_are_of_one_session_only() -> None:
    first, second = Sessions(RULES), Sessions(RULES)
    for each in (first, second):
        each.process(["a", "b"], [1, 1], [0, 0], [0, 1])
    again = Sessions(RULES, first.state())
    numbers = [number for each in (first, second, again) for number in each.numbers(np.array([1, 2])).tolist()]
    assert len(set(numbers)) == 6
    assert min(numbers) > 0
