"""`logmamba run`: one worker, its log and its HTTP endpoint."""

from __future__ import annotations

import gc
from collections.abc import Callable

import structlog

from worker.kafka.clients import ClientProperties
from worker.kafka.connect import connect
from worker.kafka.topics import Topics
from worker.observability.http_server import serve
from worker.observability.log import configure_logging
from worker.observability.memory_trim import freed_memory_given_back
from worker.observability.metrics import Metrics
from worker.processing.scorer import load_scorer
from worker.settings.advice import advice
from worker.settings.document import Settings

_log = structlog.get_logger(__name__)


def run_worker(settings: Settings, stopping: Callable[[], bool]) -> None:
    """Run a worker until `stopping()`; told to stop while it starts, it ends before it joins its application.

    Raises:
        RunError: no broker answers, the checkpoint is refused, or the worker cannot go on.
        SettingsError: settings that do not fit the checkpoint.
    """
    observed = settings.observability
    configure_logging(observed.log_level, observed.log_format)
    _log.info("starting", settings=settings.describe())
    for line in advice(settings):
        _log.warning("settings_doubtful", reason=line)
    # Sessions are many long-lived objects without cycles: walking over them all as often as Python does by default
    # finds nothing.
    gc.set_threshold(100_000, 50, 100)
    topics = Topics(ClientProperties(settings).admin(), settings)  # a wrong address shows before the model is loaded
    scorer = load_scorer(settings)
    if not stopping():  # its producer would fence one of its name that goes on working
        metrics = Metrics()
        worker = connect(settings, topics, scorer, metrics)
        limit_s = settings.max_poll_interval_ms / 1000
        with freed_memory_given_back(), serve(observed.address, observed.port, metrics, worker.status, limit_s):
            worker.run(stopping)
    _log.info("stopped")
