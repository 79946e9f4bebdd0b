"""The pages of a worker, by path, for its HTTP endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Literal

from worker.errors import RunError
from worker.observability.history import History
from worker.observability.http_server import Page, Request, Response
from worker.observability.metrics import Observed
from worker.observability.recent_alerts import PublishedAlerts
from worker.observability.slow_look import SlowLook
from worker.observability.status import GroupMember, WorkerStatus
from worker.pages.explanations import Explain, Explanations
from worker.pages.html import response
from worker.pages.session_page import render_forgotten, render_session
from worker.pages.status_page import render_status

_MEMBERS_EVERY_S = 10.0


@contextmanager
def worker_pages(
    *,
    metrics: Observed,
    status: Callable[[], WorkerStatus],
    alerts: PublishedAlerts,
    members: Callable[[], Sequence[GroupMember]],
    explain: Explain,
    show_lines: Literal["local", "always", "never"],
) -> Iterator[Mapping[str, Page]]:
    """The status page and that of a session, and the last hour that is kept for them within a `with` block.

    Args:
        metrics: of the worker.
        status: likewise.
        alerts: likewise.
        members: asks the group; it may take a while, and raises why there is no answer.
        explain: what shows a session event by event.
        show_lines: who sees lines of sessions beside their templates; `local` is who asks from this host.
    """
    history = History(metrics, status)
    group = SlowLook(members, _MEMBERS_EVERY_S)
    explanations = Explanations(explain)

    def with_lines(request: Request) -> bool:
        return show_lines == "always" or (show_lines == "local" and request.from_here)

    def status_page(request: Request) -> Response:
        seen = status(), history.hour(), alerts.latest(), group.latest(), metrics.heartbeat_age_s()
        return response(render_status(*seen, with_lines=with_lines(request)))

    def session_page(request: Request) -> Response:
        record_id = request.query.get("record", "")
        alert = alerts.find(record_id)
        if alert is None:
            return response(render_forgotten(record_id), HTTPStatus.NOT_FOUND)
        shown = with_lines(request)
        try:
            found = explanations.of(alert.value)
        except RunError as error:
            return response(render_session(alert, None, str(error), with_lines=shown), HTTPStatus.SERVICE_UNAVAILABLE)
        return response(render_session(alert, found, with_lines=shown))

    with history.kept():
        yield {"/": status_page, "/session": session_page}
