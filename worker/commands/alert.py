"""`logmamba alert`: tells people of anomalous sessions, through the receivers of the section `alert`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import orjson
import structlog

from worker.alerting.alerts import Alert, Notification
from worker.alerting.delivery import Answer, NotTaken, Refused, post
from worker.alerting.loop import AlertLoop
from worker.alerting.receivers import Request, receiver_of
from worker.commands.tail import require_score_topic
from worker.delivery.deadline import Deadline
from worker.delivery.outage import Outage
from worker.delivery.protocols import Committed
from worker.errors import SettingsError, WorkerError
from worker.kafka.alert_source import AlertSource
from worker.kafka.avro import score_reader
from worker.kafka.clients import ClientProperties
from worker.kafka.feedback import write_feedback
from worker.kafka.source import KafkaReader
from worker.observability.log import configure_logging
from worker.processing.records import Partition
from worker.settings.document import Settings
from worker.settings.kafka_properties import REDACTED

_LOOK_EVERY_S = 0.1  # whether to stop, and whether a receiver's loop has ended

_log = structlog.get_logger(__name__)


def run_alerts(settings: Settings, stopping: Callable[[], bool]) -> None:
    """Tell the receivers until `stopping()`; one that refuses a message for good ends it for all.

    Raises:
        SettingsError: there is no receiver.
        RunError: no broker answers when it begins, the score topic does not exist, or a receiver refuses a message.
    """
    _begin(settings)
    _run_loops(
        settings,
        stopping,
        lambda name, outage: AlertSource(settings, settings.alert_group(name), outage),
        lambda _name: post,
    )


def print_alerts(settings: Settings, stopping: Callable[[], bool], echo: Callable[[str], object]) -> None:
    """Print what the receivers would be sent, a line of JSON a message, until `stopping()`; nothing is committed.

    Raises:
        SettingsError, RunError: as `run_alerts`.
    """
    _begin(settings)
    lock = threading.Lock()

    def printer(name: str) -> Callable[[Request], Answer]:
        def send(request: Request) -> Answer:
            body = request.body
            if isinstance(body, dict) and "routing_key" in body:
                body = body | {"routing_key": REDACTED}
            with lock:
                echo(orjson.dumps({"receiver": name, "body": body}).decode())
            return Answer(200, "printed", "")

        return send

    _run_loops(settings, stopping, lambda name, outage: _Uncommitted(settings, name, outage), printer)


def try_receivers(settings: Settings, echo: Callable[[str], object]) -> bool:
    """Send each receiver a test and print what came back; whether all have taken it.

    Raises:
        SettingsError: there is no receiver.
    """
    _require_receivers(settings)
    everywhere = True
    for name, receiver in settings.alert.receivers.items():
        alert = _test_alert(settings, name)
        try:
            for request in receiver_of(receiver).requests(Notification("test", (alert,)), datetime.now(UTC)):
                echo(f"{name} ({receiver.type}): took it: {post(request)}")
        except Refused as error:
            echo(f"{name} ({receiver.type}): refused it: {error}")
            everywhere = False
        except NotTaken as error:
            echo(f"{name} ({receiver.type}): did not take it: {error}")
            everywhere = False
    return everywhere


class _Uncommitted(AlertSource):
    """A group of this process alone that leaves nothing behind."""

    def __init__(self, settings: Settings, name: str, outage: Outage) -> None:
        super().__init__(settings, f"{settings.alert_group(name)}-dry-run-{os.getpid()}", outage)

    def commit_offsets(self, offsets: Mapping[Partition, Committed], deadline: Deadline) -> None:
        """Nothing."""


def _begin(settings: Settings) -> None:
    _require_receivers(settings)
    configure_logging(settings.observability.log_level, settings.observability.log_format)
    _log.info("starting", settings=settings.describe())
    require_score_topic(settings)


def _require_receivers(settings: Settings) -> None:
    if not settings.alert.receivers:
        raise SettingsError(["alert.receivers: is empty; allowed: a name for each receiver, with its settings"])


def _run_loops(
    settings: Settings,
    stopping: Callable[[], bool],
    source_of: Callable[[str, Outage], AlertSource],
    send_of: Callable[[str], Callable[[Request], Answer]],
) -> None:
    """Run a loop for each receiver, in a thread of its own; the end of one ends the others."""
    over = threading.Event()
    errors: list[Exception] = []

    def run(name: str) -> None:
        try:
            outage = Outage()
            source = source_of(name, outage)
            reader = KafkaReader(
                ClientProperties(settings).reader(), outage, batch_records=settings.worker.batch_records
            )
            try:
                with score_reader(settings) as as_json:
                    loop = AlertLoop(
                        settings,
                        name,
                        source=source,
                        reader=reader,
                        send=send_of(name),
                        outage=outage,
                        as_json=as_json,
                        say=lambda record: write_feedback(settings, [(record.pattern, record)]),
                    )
                    loop.run(over.is_set)
            finally:
                reader.close()
        except Exception as error:  # raised again below
            errors.append(error)
        finally:
            over.set()

    threads = [threading.Thread(target=run, args=(name,), name=f"alert-{name}") for name in settings.alert.receivers]
    for thread in threads:
        thread.start()
    while not over.wait(_LOOK_EVERY_S):
        if stopping():
            over.set()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, WorkerError):
            raise error
        _log.error("stopped_by_error", reason=str(error))
    if errors:
        raise errors[0]
    _log.info("stopped")


def _test_alert(settings: Settings, name: str) -> Alert:
    return Alert(
        id=f"logmamba-test-{settings.application_id}-{name}"[:255],
        application=settings.application_id,
        session="test",
        severity="warning",
        score=0.0,
        kind="final",
        events=0,
        first_event_time=None,
        last_event_time=None,
        reason="a test of this receiver",
        lines=(),
        group="a test of this receiver",
        topic=settings.output.topic,
        partition=0,
        first_offset=0,
        last_offset=0,
    )
