"""The log, the metrics and the HTTP endpoint of a worker."""

import json
import logging
import re
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from typing import Literal

import pytest
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from worker.errors import RunError
from worker.observability.http_server import HttpServer, serve
from worker.observability.metrics import Metrics, configure_logging
from worker.observability.status import PartitionStatus, WorkerStatus
from worker.processing.decoder import DeadLetter, Events
from worker.processing.records import Partition, Records
from worker.processing.session_rules import SessionRules
from worker.processing.sessions import Sessions
from worker.settings.sections import ObservabilitySettings

PARTITION = Partition("raw", 3)
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


@pytest.fixture
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("logging_restored")
class TestLog:
    def test_json_is_one_object_a_line_on_stderr(self, capsys: pytest.CaptureFixture[str]) -> None:
        configure_logging("info", "json")
        structlog.get_logger("worker.delivery.loop").info("partition_live", partition=3, note="a\nb")
        logging.getLogger("librdkafka").warning("broker %s", "down")
        out, err = capsys.readouterr()
        assert out == ""
        first, second = map(json.loads, err.splitlines())
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", first.pop("timestamp"))
        assert first == {
            "event": "partition_live",
            "level": "info",
            "logger": "worker.delivery.loop",
            "partition": 3,
            "note": "a\nb",
        }
        assert (second["event"], second["logger"], second["level"]) == ("broker down", "librdkafka", "warning")

    def test_what_is_less_severe_than_the_level_is_left_out(self, capsys: pytest.CaptureFixture[str]) -> None:
        configure_logging("warning", "json")
        log = structlog.get_logger("any")
        log.info("quiet")
        log.warning("loud")
        assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["loud"]

    def test_auto_is_json_where_there_is_no_terminal_and_for_people_on_one(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        configure_logging("info", "auto")
        structlog.get_logger("any").info("said", count=1)
        assert json.loads(capsys.readouterr().err)["count"] == 1
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        configure_logging("info", "auto")
        structlog.get_logger("any").info("said", count=1)
        shown = capsys.readouterr().err
        assert "said" in shown
        assert not shown.startswith("{")

    def test_an_exception_is_logged_with_its_trace(self, capsys: pytest.CaptureFixture[str]) -> None:
        configure_logging("info", "json")
        try:
            raise KeyError("gone")
        except KeyError:
            structlog.get_logger("any").exception("failed")
        assert "KeyError: 'gone'" in json.loads(capsys.readouterr().err)["exception"]

    @pytest.mark.parametrize("log_format", ["console", "json"])
    def test_a_trace_does_not_show_what_variables_hold(
        self, capsys: pytest.CaptureFixture[str], log_format: Literal["console", "json"]
    ) -> None:
        configure_logging("info", log_format)

        def fail(line: bytes) -> None:
            raise KeyError(len(line))

        try:
            fail(b"a raw " + b"line")
        except KeyError:
            structlog.get_logger("any").exception("failed")
        shown = capsys.readouterr().err
        assert "KeyError: 10" in shown
        assert "a raw line" not in shown


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_decoded_records_are_counted_with_all_that_was_not_usual() -> None:
    metrics = Metrics()
    records = Records("raw", 0, [1, 2, 3], [b"a", b"b", b"\xff"], None, None, None)
    letters = [DeadLetter(2, "not_utf8", "byte 0")]
    events = Events(keys=["a"], tokens=[3], times=[0], offsets=[1], dead_letters=letters, cut=1, ignored=1)
    metrics.decoded([records], [events], 7)
    metrics.decoded([records], [events], 0)
    assert sample(metrics, "logmamba_records_total") == 6
    assert sample(metrics, "logmamba_events_total") == 2
    assert sample(metrics, "logmamba_dead_letters_total", reason="not_utf8") == 2
    assert sample(metrics, "logmamba_lines_cut_total") == 2
    assert sample(metrics, "logmamba_events_ignored_total") == 2
    assert sample(metrics, "logmamba_unknown_lines_total") == 7


RULES = SessionRules(
    gap_ms=10, max_age_ms=None, max_events=100, max_open=100, max_future_skew_ms=1_000, end_tokens=frozenset()
)


def test_sessions_and_their_closings_are_counted_and_late_events_once() -> None:
    metrics = Metrics()
    sessions = Sessions(RULES)
    closed = sessions.process(["a", "b", "c"], [3, 3, 3], [100, 90, 120], [0, 1, 2])
    metrics.sessions(PARTITION, sessions, closed)
    metrics.sessions(PARTITION, sessions, [])
    labels = {"topic": "raw", "partition": "3"}
    assert sample(metrics, "logmamba_open_sessions", **labels) == 1
    assert sample(metrics, "logmamba_sessions_closed_total", closed_by="gap") == 2
    assert sample(metrics, "logmamba_late_events_total") == 1
    restored = Sessions(RULES)
    metrics.sessions(PARTITION, restored, restored.process(["a", "b"], [3, 3], [100, 90], [0, 1]))
    assert sample(metrics, "logmamba_late_events_total") == 2
    metrics.forget(PARTITION)
    assert sample(metrics, "logmamba_open_sessions", **labels) is None
    metrics.forget(PARTITION)


def test_scores_transactions_snapshots_lag_and_stages_are_measured() -> None:
    metrics = Metrics()
    metrics.scored("final", "critical")
    metrics.committed(0.02)
    metrics.aborted()
    metrics.snapshot(5_000, 0.1)
    metrics.lag(PARTITION, 12)
    metrics.replayed(4)
    with metrics.stage("score"):
        pass
    assert sample(metrics, "logmamba_scores_total", kind="final", severity="critical") == 1
    assert sample(metrics, "logmamba_scores_total", kind="early", severity="warning") == 0
    assert sample(metrics, "logmamba_transactions_total", result="committed") == 1
    assert sample(metrics, "logmamba_transactions_total", result="aborted") == 1
    assert sample(metrics, "logmamba_commit_seconds_sum") == 0.02
    assert sample(metrics, "logmamba_snapshot_bytes_sum") == 5_000
    assert sample(metrics, "logmamba_snapshot_seconds_count") == 1
    assert sample(metrics, "logmamba_consumer_lag", topic="raw", partition="3") == 12
    assert sample(metrics, "logmamba_stage_seconds_count", stage="score") == 1
    assert metrics.totals()["score_records"] == 1
    assert metrics.totals()["transactions_aborted"] == 1
    assert metrics.totals()["replayed_records"] == 4


def test_the_score_cache_is_read_when_the_metrics_are() -> None:
    metrics = Metrics()
    hits = 0
    metrics.watch_score_cache(lambda: hits, lambda: 5)
    hits = 9
    assert sample(metrics, "logmamba_score_cache_total", result="hit") == 9
    assert sample(metrics, "logmamba_score_cache_total", result="miss") == 5


def test_split_batches_are_counted_as_the_scorer_does_when_the_metrics_are_read() -> None:
    metrics = Metrics()
    split = 0
    metrics.watch_batches_split(lambda: split)
    split = 3
    assert sample(metrics, "logmamba_batches_split_total") == 3


def test_two_workers_in_one_process_share_no_metrics() -> None:
    first, second = Metrics(), Metrics(CollectorRegistry())
    first.scored("final", "normal")
    assert sample(second, "logmamba_scores_total", kind="final", severity="normal") == 0


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
        "partitions": [
            {"topic": "raw", "partition": 3, "state": "live", "position": 1234567, "lag": 42, "open_sessions": 17}
        ],
        "totals": {"score_records": 99},
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
        settings = ObservabilitySettings(port=port)
        with (
            pytest.raises(
                RunError, match=rf"cannot listen on 127\.0\.0\.1 port {port}: Address already in use; choose"
            ),
            serve(settings, Metrics(), lambda: STATUS),
        ):
            pass


def test_an_address_that_is_not_ours_is_a_clear_error() -> None:
    settings = ObservabilitySettings(address="no.such.host.invalid", port=0)
    with pytest.raises(RunError, match="cannot listen on no"), serve(settings, Metrics(), lambda: STATUS):
        pass


def test_no_port_means_no_endpoint() -> None:
    with serve(ObservabilitySettings(port=None), Metrics(), lambda: STATUS) as server:
        assert server is None


def test_the_endpoint_is_gone_after_the_block() -> None:
    with serve(ObservabilitySettings(port=0), Metrics(), lambda: STATUS) as server:
        assert server is not None
        with urllib.request.urlopen(f"{server.url}healthz", timeout=10) as answer:
            assert answer.status == 200
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{server.url}healthz", timeout=10)
