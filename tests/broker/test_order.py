"""The comparison by which the tests with real workers judge the order of scores."""

from __future__ import annotations

from typing import Any

import pytest

from tests.broker.order import out_of_order


def score(cause: int, closed_by: str | None, first: int, partition: int = 0) -> dict[str, Any]:
    return {
        "kind": "early" if closed_by is None else "final",
        "session": f"of {first}",
        "closed_by": closed_by,
        "source": {"partition": partition, "cause_offset": cause, "first_offset": first},
    }


ORDERED = [
    score(5, "gap", 1),
    score(5, "gap", 3),
    score(5, "max_age", 0),
    score(5, None, 2),
    score(5, "max_events", 2),
    score(5, "max_open", 4),
    score(9, "idle", 5),
    score(9, "idle", 6),
]


def test_scores_in_the_order_of_their_causes_pass_and_input_partitions_have_none_among_each_other() -> None:
    others = [score(2, "gap", 0, partition=1), score(9, None, 4, partition=1)]
    assert out_of_order({0: [*ORDERED, *others], 1: [others[0], *ORDERED, others[1]]}) == []


@pytest.mark.parametrize("at", range(len(ORDERED) - 1))
def test_two_scores_that_are_the_other_way_round_are_seen(at: int) -> None:
    swapped = [*ORDERED[:at], ORDERED[at + 1], ORDERED[at], *ORDERED[at + 2 :]]
    (told,) = out_of_order({3: swapped})
    assert ORDERED[at]["session"] in told
    assert "partition 3" in told
