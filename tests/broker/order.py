"""The order of scores: within a partition of the score topic, those of an input partition stand as their causes do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# What one record causes: the sessions whose time was over before it joined its own, its own early score, what it ended.
_RANKS = {"gap": 0, "idle": 0, "max_age": 1, None: 2, "end_event": 3, "max_events": 3, "max_open": 4}


def out_of_order(scores: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Each score that comes after one which it should come before, one line of text each.

    Args:
        scores: of each partition of the score topic, as they stand there. Records are of one line.
    """
    found = []
    for partition, records in scores.items():
        latest: dict[int, tuple[int, int, int]] = {}  # by input partition
        for record in records:
            source = record["source"]
            place = source["cause_offset"], _RANKS[record["closed_by"]], source["first_offset"]
            before = latest.get(source["partition"], place)
            if place < before:
                found.append(
                    f"{record['kind']} score of {record['session']} in partition {partition}: {place} < {before}"
                )
            latest[source["partition"]] = place
    return found
