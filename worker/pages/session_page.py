"""The page of one session, event by event, as `logmamba explain` shows it on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from worker.observability.recent_alerts import Alert
from worker.pages.charts import surprise_bar
from worker.pages.explanations import Explanation
from worker.pages.html import environment

_PAGE = environment().get_template("session.html")

# Of a long session: its first events, its last ones and the most surprising of those between.
_SHOWN_AT_ENDS = 100
_SHOWN_BETWEEN = 100


def render_session(alert: Alert, found: Explanation | None, failure: str = "", *, with_lines: bool = True) -> str:
    """The page.

    Args:
        alert: the session.
        found: its events; None where they are not to be had.
        failure: why they are not.
        with_lines: whether the lines are shown beside their templates.
    """
    events = [] if found is None else found.session["events"]
    return _PAGE.render(
        alert=alert,
        record=alert.record,
        found=found,
        failure=failure,
        with_lines=with_lines,
        events=_shown(events),
        bar=surprise_bar,
    )


def render_forgotten(record_id: str) -> str:
    """The page for a session that the worker does not keep, or never had."""
    return _PAGE.render(alert=None, record_id=record_id)


def _shown(events: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any], int]]:
    """(number from 1, event, how many are left out before it) of the events that are shown."""
    ends, between = _SHOWN_AT_ENDS, events[_SHOWN_AT_ENDS:-_SHOWN_AT_ENDS]
    ranked = sorted(range(len(between)), key=lambda at: -between[at]["surprise"])[:_SHOWN_BETWEEN]
    chosen = sorted({*range(len(events))[:ends], *range(len(events))[-ends:], *(ends + at for at in ranked)})
    before = [-1, *chosen]
    return [(at + 1, events[at], at - last - 1) for at, last in zip(chosen, before, strict=False)]
