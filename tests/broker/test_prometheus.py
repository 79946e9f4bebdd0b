"""A worker, a broker and a Prometheus, all real: what the dashboard asks is answered, and the alerts are there."""

from __future__ import annotations

import json
from pathlib import Path

from tests.broker.harness import Application, Record, hdfs_lines, keyed_by_block
from tests.broker.kafka import KafkaBroker
from tests.broker.prometheus import MONITORING, Prometheus
from tests.monitoring_tools import tool
from tests.shared import needs_shared

LINES = 3_000


def panels() -> dict[str, list[str]]:
    """The queries of each panel but those of the GPU, for the one worker that there is."""
    found: dict[str, list[str]] = {}
    row = ""
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            continue
        for variable, value in (("$job", "logmamba.*"), ("$instance", ".*"), ("$__rate_interval", "1m")):
            for target in panel["targets"]:
                target["expr"] = target["expr"].replace(variable, value)
        if row != "The GPU":
            found[f"{row} {panel['title']}"] = [target["expr"] for target in panel["targets"]]
    return found


@needs_shared
def test_prometheus_answers_every_query_of_the_dashboard_and_knows_when_the_worker_is_gone(
    broker: KafkaBroker, checkpoint: Path, tmp_path: Path
) -> None:
    tool("prometheus")
    application = Application(
        broker.bootstrap,
        tmp_path,
        checkpoint,
        partitions=2,
        kafka={"statistics.interval.ms": 500},
        observability={"port": 0},
    )
    application.produce([*keyed_by_block(hdfs_lines(LINES), 2), Record(b"\xff", b"blk_0", 1)])
    with application.start() as worker, Prometheus(tmp_path, worker.address()) as prometheus:
        prometheus.wait_until(lambda: bool(prometheus.query("sum(logmamba_records_total) > 3000")))
        prometheus.wait_until(lambda: bool(prometheus.query("sum(logmamba_open_sessions) == 0")))
        prometheus.wait_until(lambda: bool(prometheus.query('sum(logmamba_brokers{state="up"}) == 1')))
        prometheus.wait_until(lambda: bool(prometheus.query("count_over_time(logmamba_ready[1m]) > 3")))
        # Waited for one by one: of a scrape that a busy machine missed there is nothing to be found for a moment.
        for queries in panels().values():
            for query in queries:
                prometheus.wait_until(lambda query=query: bool(prometheus.query(query)), query)

        scores = application.scores()
        caused = [record for record in scores if record["closed_by"] != "idle"]
        for query in (
            f"sum(logmamba_end_to_end_seconds_count) == {len(caused)}",
            f"sum(logmamba_scores_total) == {len(scores)}",
            "sum(logmamba_dead_letters_total) == 1",
            "sum(logmamba_consumer_lag) == 0",
            "sum(logmamba_ready) == 1",
        ):
            prometheus.wait_until(lambda query=query: bool(prometheus.query(query)), query)

        prometheus.wait_until(lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"})
        assert {rule["name"] for rule in prometheus.rules() if rule["state"] == "firing"} == set()
        assert worker.stop() == 0, worker.tail()
        gone = 'ALERTS{alertname="LogmambaWorkerDown", alertstate="pending"}'
        prometheus.wait_until(lambda: bool(prometheus.query(gone)))
