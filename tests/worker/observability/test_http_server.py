"""The HTTP endpoint of a worker."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from worker.errors import RunError
from worker.observability.http_server import HttpServer, serve
from worker.observability.metrics import Metrics
from worker.observability.status import PartitionStatus, WorkerStatus

STATUS = WorkerStatus(
    application_id="shop",
    instance="blue",
    started_at="2024-03-01T12:00:00Z",
    versions={"logmamba": "0.1.0"},
    checkpoint="sha256:c0",
    vocabulary="sha256:b0",
    joined=True,
    partitions=(PartitionStatus("raw", 3, "live", 1_234_567, 42, 17),),
    totals={"score_records": 99},
)


class Server:
    """An endpoint whose state a test can change, and a client of it."""

    def __init__(self) -> None:
        self.status: Callable[[], WorkerStatus] = lambda: STATUS
        self.age_s = 0.0
        self.metrics = Metrics(clock=lambda: self.age_s)
        self.http = HttpServer(
            "127.0.0.1",
            0,
            registry=self.metrics.registry,
            status=lambda: self.status(),
            heartbeat_age_s=self.metrics.heartbeat_age_s,
            heartbeat_limit_s=60,
        )

    def get(self, path: str, method: str = "GET") -> tuple[int, str, str]:
        request = urllib.request.Request(self.http.url.rstrip("/") + path, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["Content-Type"], error.read().decode()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    with made.http:
        yield made


def test_metrics_are_served_in_the_format_of_prometheus(server: Server) -> None:
    server.metrics.scored("final", "warning")
    code, kind, text = server.get("/metrics")
    assert (code, kind.split(";")[0]) == (200, "text/plain")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    values = {tuple(each.labels.values()): each.value for each in families["logmamba_scores"].samples}
    assert 1 in values.values()
    assert "process_resident_memory_bytes" in families


def test_healthy_means_that_the_loop_came_round_lately(server: Server) -> None:
    assert server.get("/healthz")[0] == 200
    server.age_s = 61
    code, _, text = server.get("/healthz")
    assert (code, text) == (503, "the loop has not come round for 61 s\n")
    server.metrics.heartbeat()
    assert server.get("/healthz")[0] == 200


def test_ready_means_that_every_partition_is_live(server: Server) -> None:
    assert server.get("/readyz")[0] == 200
    waiting = replace(STATUS, partitions=(*STATUS.partitions, PartitionStatus("raw", 4, "replaying", 0, None, 0)))
    server.status = lambda: waiting
    assert server.get("/readyz")[::2] == (503, "1 partitions are being restored\n")
    server.status = lambda: replace(STATUS, joined=False, partitions=())
    assert server.get("/readyz")[::2] == (503, "joining the group\n")
    server.status = lambda: replace(STATUS, partitions=())
    assert server.get("/readyz")[0] == 200


def test_the_status_is_json(server: Server) -> None:
    code, kind, text = server.get("/status")
    assert (code, kind) == (200, "application/json")
    assert json.loads(text) == {
        "application_id": "shop",
        "instance": "blue",
        "started_at": "2024-03-01T12:00:00Z",
        "versions": {"logmamba": "0.1.0"},
        "checkpoint": "sha256:c0",
        "vocabulary": "sha256:b0",
        "joined": True,
        "broker_away": False,
        "partitions": [
            {"topic": "raw", "partition": 3, "state": "live", "position": 1234567, "lag": 42, "open_sessions": 17}
        ],
        "totals": {"score_records": 99},
        "unknown_share": None,
    }


class References(HTMLParser):
    """Collects what a page would load, and the text that it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "img", "link", "iframe"}:
            self.loaded += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_the_status_and_loads_nothing_from_elsewhere(server: Server) -> None:
    code, kind, text = server.get("/")
    assert (code, kind) == (200, "text/html; charset=utf-8")
    page = References()
    page.feed(text)
    assert page.loaded == []
    assert "://" not in text
    for shown in ("shop", "ready", "blue", "raw", "1,234,567", "42", "17", "sha256:c0", "score records", "99"):
        assert shown in page.text


def test_the_page_warns_when_most_events_are_unknown(server: Server) -> None:
    assert "unknown to the checkpoint" not in server.get("/")[2]
    server.status = lambda: replace(STATUS, unknown_share=0.97)
    assert "97% of the latest events are unknown to the checkpoint" in server.get("/")[2]


def test_names_cannot_break_out_of_the_page(server: Server) -> None:
    evil = "<script>alert(1)</script>"
    server.status = lambda: replace(STATUS, application_id=evil, partitions=(), totals={evil: 1}, versions={evil: evil})
    assert evil not in server.get("/")[2]


def test_a_path_that_does_not_exist_is_answered_with_those_that_do(server: Server) -> None:
    assert server.get("/nowhere")[::2] == (404, "there are / /healthz /metrics /readyz /status\n")
    assert server.get("/status?pretty")[0] == 200
    assert server.get("/metrics", "HEAD")[::2] == (200, "")
    assert server.get("/metrics", "POST")[0] == 501


@pytest.mark.usefixtures("logging_restored")
def test_a_failing_status_is_logged_and_answered_without_details(server: Server) -> None:
    def fail() -> WorkerStatus:
        raise RuntimeError("secret detail")

    server.status = fail
    with structlog.testing.capture_logs() as logs:
        assert server.get("/status")[::2] == (500, "see the worker's log\n")
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["http_request_failed"]


def test_a_port_in_use_is_a_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(
                RunError, match=rf"cannot listen on 127\.0\.0\.1 port {port}: Address already in use; choose"
            ),
            serve("127.0.0.1", port, Metrics(), lambda: STATUS),
        ):
            pass


def test_an_address_that_is_not_ours_is_a_clear_error() -> None:
    with (
        pytest.raises(RunError, match="cannot listen on no"),
        serve("no.such.host.invalid", 0, Metrics(), lambda: STATUS),
    ):
        pass


def test_no_port_means_no_endpoint() -> None:
    with serve("127.0.0.1", None, Metrics(), lambda: STATUS) as server:
        assert server is None


def test_the_endpoint_is_gone_after_the_block() -> None:
    with serve("127.0.0.1", 0, Metrics(), lambda: STATUS) as server:
        assert server is not None
        with urllib.request.urlopen(f"{server.url}healthz", timeout=10) as answer:
            assert answer.status == 200
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{server.url}healthz", timeout=10)
