"""`logmamba demo`: the whole path in one process: an embedded broker, generated logs, the shipped checkpoint.

The broker is librdkafka's mock: it speaks the protocol but has no usable transactions, so the demo shows what the
worker does, and the tests against a real broker show that it does it exactly once.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import orjson
from rich.console import Console
from rich.live import Live
from rich.table import Table

from detector.checkpoint import demo_checkpoint
from detector.quality.metrics import Detection
from worker.commands.generate import send
from worker.errors import RunError
from worker.generator.log import FAULTS, GeneratedLog, Truth
from worker.kafka.clients import ClientProperties
from worker.kafka.connect import connect
from worker.kafka.follower import Followed, Follower
from worker.kafka.mock_broker import PARTITIONS, MockBroker
from worker.kafka.topics import Topics
from worker.kafka.writer import Writer
from worker.observability.log import configure_logging
from worker.observability.metrics import Metrics
from worker.processing.pipeline import Pipeline
from worker.processing.scorer import load_scorer
from worker.settings.document import Settings, load_settings

# The shipped checkpoint was trained on the other pool, so the demo's unseen lines are unseen.
UNSEEN_POOL = 1
# Of generated lines; the shipped checkpoint was trained with them.
LINES_SETTINGS = (r"input.timestamp={pattern: '^(\d{6} \d{6})', format: '%y%m%d %H%M%S'}",)
ANOMALY_RATE = 0.03
_SHOWN_ALERTS = 5
_TIMEOUT_S = 120.0


@dataclass
class _Seen:
    """Score records as they arrive."""

    final: dict[str, dict[str, Any]] = field(default_factory=dict)
    early: dict[str, dict[str, Any]] = field(default_factory=dict)

    def take(self, records: Iterable[Followed]) -> None:
        for followed in records:
            record = orjson.loads(followed.value or b"")
            if record["kind"] == "final":
                self.final[record["session"]] = record
            else:
                self.early.setdefault(record["session"], record)


def run_demo(lines: int, seed: int, console: Console) -> None:
    """Generate `lines` lines, score them as they stream, and compare the alerts with the truth.

    Raises:
        RunError: the shipped checkpoint is missing or damaged, or the scores do not arrive.
    """
    configure_logging("error", "auto")
    began = time.monotonic()
    console.print(f"logmamba demo: {lines:,} generated log lines, faults in {ANOMALY_RATE:.0%} of the blocks")
    broker = MockBroker()
    settings = _settings(broker)
    with console.status("loading the checkpoint"):
        scorer = load_scorer(settings)
        topics = Topics(ClientProperties(settings).admin(), settings)
        metrics = Metrics()
        worker = connect(settings, topics, Pipeline(settings, scorer, metrics), metrics)

    log = GeneratedLog(lines=lines, seed=seed, anomaly_rate=ANOMALY_RATE, unseen_pool=UNSEEN_POOL)
    truths: list[Truth] = []
    feed = Writer(settings, settings.input.topics[0])
    feeder = Thread(target=lambda: truths.extend(send(log, feed)), daemon=True)
    feeder.start()
    seen = _Seen()
    scores = Follower(settings, settings.output.topic, PARTITIONS, from_beginning=True, lost=lambda: None)
    with Live(console=console, refresh_per_second=8) as live:

        def stopping() -> bool:
            seen.take(scores.records(0.0))
            read = worker.status().totals["records"]
            live.update(_live_table(lines, read, seen))
            if time.monotonic() - began > _TIMEOUT_S:
                raise RunError(f"the demo did not finish within {_TIMEOUT_S:.0f} s")
            return not feeder.is_alive() and len(seen.final) >= len(truths)

        worker.run(stopping)
        seen.take(scores.records(0.0))
    scores.close()
    console.print()
    _report(truths, seen, time.monotonic() - began, console)


def _settings(broker: MockBroker) -> Settings:
    settings = load_settings(
        None,
        [
            f"kafka={{bootstrap.servers: '{broker.bootstrap}'}}",
            f"model.checkpoint={demo_checkpoint()}",
            "application_id=logmamba-demo",
            *LINES_SETTINGS,
            "sessions.idle_flush=1s",
            "observability.port=null",
        ],
    )
    output = settings.output
    broker.make(*settings.input.topics, output.topic, output.dead_letter_topic, settings.state_topic)
    return settings


def _live_table(lines: int, read: int, seen: _Seen) -> Table:
    severities = Counter(record["severity"] for record in seen.final.values())
    table = Table("lines read", "sessions scored", "early alerts", "warnings", "critical")
    table.add_row(
        f"{read:,} of {lines:,}",
        f"{len(seen.final):,}",
        f"{len(seen.early):,}",
        f"{severities['warning']:,}",
        f"{severities['critical']:,}",
    )
    return table


def _report(truths: list[Truth], seen: _Seen, seconds: float, console: Console) -> None:
    import numpy as np

    alerts = {key for key, record in seen.final.items() if record["severity"] != "normal"}
    anomalous = {truth.block for truth in truths if truth.label}
    worst = sorted((seen.final[key] for key in alerts), key=lambda record: -record["score"])[:_SHOWN_ALERTS]
    table = Table("score", "session", "most surprising event", title="highest scores", title_justify="left")
    for record in worst:
        top = record["top_events"][0]
        table.add_row(f"{record['score']:.4f}", record["session"], f"{top['template']} ({top['surprise']:.1f} nats)")
    console.print(table)

    by_fault: dict[str, list[str]] = defaultdict(list)
    for truth in truths:
        if truth.fault is not None:
            by_fault[truth.fault].append(truth.block)
    table = Table("fault", "sessions", "found", "of them early", title="known faults", title_justify="left")
    for fault in FAULTS:
        blocks = by_fault[fault]
        found = [block for block in blocks if block in alerts]
        early = sum(block in seen.early for block in found)
        table.add_row(fault.replace("_", " "), str(len(blocks)), str(len(found)), str(early))
    console.print(table)

    keys = list(seen.final)
    scores = np.array([seen.final[key]["severity"] != "normal" for key in keys], np.float64)
    detection = Detection.at(0.5, scores, np.array([key in anomalous for key in keys]), np.ones(len(keys)))
    console.print(
        f"{len(keys):,} sessions, {len(alerts):,} alerts: precision {detection.precision:.3f}, "
        f"recall {detection.recall:.3f}, F1 {detection.f1:.3f} ({seconds:.0f} s)",
        highlight=False,
    )
