"""What a person on call has before them (status page, Prometheus, a receiver), from a fault to its end."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import pytest
import yaml

from detector.checkpoint import demo_checkpoint
from tests.broker.harness import AlertProcess, Application, Record, merged
from tests.broker.kafka import KafkaBroker
from tests.broker.prometheus import Prometheus
from tests.browser import Browser, Page
from tests.monitoring_tools import tool
from tests.worker.alerting.receiving import ReceiverServer
from tests.worker.command_line import logmamba

PARTITIONS = 2
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
RULE = "LogmambaCriticalSessions"
LINES = 2_000  # of eight minutes, so that every block's session is open at their end
LATER = "240301 122{} 12 INFO store.Block: blk_{} opened"


@pytest.mark.timeout(240)
def test_a_fault_is_seen_on_the_page_in_prometheus_and_at_the_receiver_and_its_end_as_well(
    broker: KafkaBroker, tmp_path: Path
) -> None:
    tool("prometheus")
    settings = {"observability": {"port": 0}, "sessions": {"idle_flush": "1h"}}
    application = Application(broker.bootstrap, tmp_path, demo_checkpoint(), PARTITIONS, **settings)
    with ReceiverServer() as receiver, Browser(tmp_path) as browser, application.start() as worker:
        worker.wait_until(lambda: worker.logged("http_endpoint"))
        with (
            Prometheus(tmp_path, worker.address(), hasty=True) as prometheus,
            AlertProcess(alert_settings(application, receiver.url), tmp_path / "alert.log") as alert,
        ):
            pages = {name: browser.open(worker.address(), *size) for name, size in SIZES.items()}
            desktop = pages["desktop"]
            desktop.wait_for("ready", "No warning and no critical session", "latest reload none since the start")
            prometheus.wait_until(lambda: bool(prometheus.query("logmamba_ready == 1")))
            assert not fires(prometheus)

            faulty = generate(application, tmp_path)
            alert.wait_until(lambda: bool(told(receiver, "firing") & faulty))
            prometheus.wait_until(lambda: fires(prometheus))
            alert.wait_until(lambda: told(receiver, "firing") == alerting(application) != set())
            session = min(told(receiver, "firing") & faulty)
            for name, page in pages.items():
                page.wait_for("ready", "highest score", f"{len(alerting(application))} anomalous sessions")
                assert linked(page) == told(receiver, "firing")
                assert page.fits()
                page.picture(tmp_path / f"{name}-alerts.png")

            # Whoever follows the link of a session sees its lines, and comes back.
            for name, page in pages.items():
                page.click_link(session)
                page.wait_for(session, "Event by event", "going on", f"for {session} opened by")
                assert page.fits()
                page.picture(tmp_path / f"{name}-session.png")
                page.click_link("status of the worker")
                page.wait_for("Anomalous now", "highest score")

            # Told that such sessions are harmless, the worker takes its alerts back when they end.
            raised = {"scoring": {"warning": 0.9999, "critical": 1.0}}
            application.config.write_text(yaml.safe_dump(merged(application.settings, raised)))
            worker.process.send_signal(signal.SIGHUP)
            desktop.wait_for("latest reload taken")
            application.produce(
                Record(LATER.format(f"{second:04}", partition).encode(), None, partition)
                for partition in range(PARTITIONS)
                for second in (0, 1)
            )
            alert.wait_until(lambda: told(receiver, "resolved") == told(receiver, "firing"))
            for name, page in pages.items():
                page.wait_for("0 anomalous sessions", "taken back")
                page.picture(tmp_path / f"{name}-taken-back.png")
            prometheus.wait_until(lambda: not fires(prometheus))
            assert browser.errors == []
            assert (alert.stop(), worker.stop()) == (0, 0), alert.tail() + worker.tail()
            desktop.wait_for("The worker does not answer")


def alert_settings(application: Application, url: str) -> Path:
    """The settings of `logmamba alert` for the application's scores."""
    alert = {"receivers": {"hook": {"type": "webhook", "url": url}}}
    path = application.folder / "alert.yaml"
    more = {"alert": alert | {"group_wait": "200ms", "most_per_minute": 1000, "start": "earliest"}}
    path.write_text(yaml.safe_dump(merged(application.settings, more)))
    return path


def generate(application: Application, folder: Path) -> set[str]:
    """Send generated lines; returns the blocks with a fault."""
    labels = folder / "labels.csv"
    lines = ["--lines", LINES, "--seed", 3, "--anomalies", 0.1, "--labels", labels]
    done = logmamba("generate", "--config", application.config, *lines)
    assert done.returncode == 0, done.stderr
    with labels.open() as file:
        return {row["block_id"] for row in csv.DictReader(file) if row["label"] == "1"}


def alerting(application: Application) -> set[str]:
    """Sessions with a score record that alerts."""
    return {record["session"] for record in application.scores() if record["severity"] != "normal"}


def told(receiver: ReceiverServer, status: str) -> set[str]:
    """Sessions that the receiver was told of."""
    return {alert["session"] for body in receiver.taken if body["status"] == status for alert in body["alerts"]}


def linked(page: Page) -> set[str]:
    """Sessions that a page links."""
    links = "JSON.stringify([...document.querySelectorAll('a[href^=\"/session\"]')].map(each => each.textContent))"
    return set(json.loads(page.value(links)))


def fires(prometheus: Prometheus) -> bool:
    """Whether the rule about critical sessions does."""
    return bool(prometheus.query(f'ALERTS{{alertname="{RULE}", alertstate="firing"}}'))
