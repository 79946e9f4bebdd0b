"""A small shop's log: four lines an order, an order every few minutes, from eight to six on some days."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

STAGES = ("received from shop", "payment accepted", "picked in warehouse", "handed to carrier")
SETTINGS = (
    r"sessions.key={regex: 'ord-\d+'}",
    r"input.timestamp={pattern: '^(\S+ \S+)', format: '%Y-%m-%d %H:%M:%S'}",
    "sessions.gap=10m",
    "sessions.idle_flush=null",
)


def orders(days: Sequence[int], a_day: int = 60) -> list[str]:
    """The lines of these days of June 2023; the orders of a day lie ten minutes apart and do not overlap."""
    lines, number = [], 0
    for day in days:
        begins = datetime(2023, 6, 1, 8) + timedelta(days=day)  # noqa: DTZ001  it becomes text
        for order in range(a_day):
            number += 1
            at = begins + timedelta(minutes=10 * order)
            lines += [
                f"{at + timedelta(seconds=15 * n)} INFO ord-{number:05d} {stage}" for n, stage in enumerate(STAGES)
            ]
    return lines
