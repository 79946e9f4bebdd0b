"""The HTTP endpoint of a worker."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from tests.worker.statuses import STATUS
from worker.errors import RunError
from worker.observability.http_server import HttpServer, Request, Response, serve
from worker.observability.metrics import Metrics
from worker.observability.status import PartitionStatus, WorkerStatus


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
            pages={"/": self.page},
        )

    def page(self, request: Request) -> Response:
        """Says what it was asked."""
        self.asked = request
        return Response(b"a page", "text/html; charset=utf-8")

    def get(self, path: str, method: str = "GET", host: str | None = None) -> tuple[int, str, str]:
        headers = {} if host is None else {"Host": host}
        request = urllib.request.Request(self.http.url.rstrip("/") + path, method=method, headers=headers)
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
    server.metrics.scored({("final", "warning"): 1})
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
        "trained_score_shares": None,
        "joined": True,
        "broker_away": False,
        "missing_topics": [],
        "partitions": [
            {
                "topic": "raw",
                "partition": 3,
                "state": "live",
                "position": 1234567,
                "lag": 42,
                "open_sessions": 17,
                "lag_seconds": 1.5,
            }
        ],
        "totals": {"score_records": 99},
        "unknown_share": None,
        "drift": None,
        "reload": None,
        "processes": [],
    }


def test_a_page_is_told_what_is_asked_and_whether_from_this_host_by_its_own_name(server: Server) -> None:
    assert server.get("/?at=raw%2F0%2F7&x=1") == (200, "text/html; charset=utf-8", "a page")
    assert server.asked == Request({"at": "raw/0/7", "x": "1"}, from_here=True)
    for host, from_here in (
        ("localhost:1", True),
        ("[::1]:1", True),
        ("logs.example", False),
        ("127.0.0.1.nip.io", False),
    ):
        server.get("/", host=host)
        assert server.asked.from_here is from_here, host


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
