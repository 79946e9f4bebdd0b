"""What was replayed is remembered by reason, in whatever order and however often it is done."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.delivery.replayed import Replayed
from worker.errors import RunError

SPANS = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda pair: (min(pair), max(pair)))
STEPS = st.lists(st.tuples(st.sampled_from([("no_key",), ("empty",), ("no_key", "empty")]), SPANS), max_size=8)


@given(STEPS, st.integers(0, 12))
def test_exactly_what_was_dealt_with_is_known_after_it_was_written_and_read(
    steps: list[tuple[tuple[str, ...], tuple[int, int]]], oldest: int
) -> None:
    replayed, done = Replayed({}), set()
    for reasons, (begin, end) in steps:
        replayed = replayed.with_span(reasons, begin, end)
        done |= {(reason, offset) for reason in reasons for offset in range(begin, end)}
    again = Replayed.from_metadata(replayed.to_metadata(), oldest)
    for reason in ("no_key", "empty"):
        there = range(oldest, 14)
        assert [again.has(reason, offset) for offset in there] == [(reason, offset) in done for offset in there]
        assert again.first_left([reason], oldest) == next(at for at in there if (reason, at) not in done)


@pytest.mark.parametrize("metadata", ["{", "[]", '{"version":2,"sent":{}}', '{"version":1,"sent":{"no_key":[1]}}'])
def test_metadata_of_somebody_else_is_refused(metadata: str) -> None:
    with pytest.raises(RunError, match="what was replayed cannot be told from the committed offsets"):
        Replayed.from_metadata(metadata, 0)


def test_more_gaps_than_a_broker_takes_are_refused_and_what_to_do_is_said() -> None:
    replayed = Replayed({"no_key": [(10 * number, 10 * number + 1) for number in range(1_000)]})
    with pytest.raises(RunError, match="without --since and --limit"):
        replayed.to_metadata()
