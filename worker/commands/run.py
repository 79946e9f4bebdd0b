"""`logmamba run`: one worker in this process, its log and its HTTP endpoint."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import structlog

from worker.commands.explain_record import explain_for_a_page
from worker.commands.reload import Reload
from worker.delivery.loop import Worker
from worker.kafka.avro import score_writer
from worker.kafka.clients import ClientProperties
from worker.kafka.connect import connect
from worker.kafka.feedback import feedback_topic
from worker.kafka.group_members import look_for_members
from worker.kafka.topics import Topics
from worker.observability.http_server import Page, serve
from worker.observability.memory_trim import freed_memory_given_back
from worker.observability.metrics import Metrics, Observed
from worker.observability.recent_alerts import PublishedAlerts
from worker.observability.status import WorkerStatus
from worker.options import settings_of
from worker.pages.worker_pages import worker_pages
from worker.processing.pipeline import Pipeline
from worker.processing.rekeying import Tokens
from worker.processing.scorer import Scorer, checkpoint_stamp, load_scorer
from worker.settings.advice import advice
from worker.settings.document import Settings

_log = structlog.get_logger(__name__)

Shown = Callable[[Worker, Metrics], AbstractContextManager[None]]
"""Shows a worker and its metrics to others within a `with` block."""

Work = Callable[[Settings, Callable[[], bool], Reload, Shown], None]
"""What a process does until it is told to stop, such as `run_worker`."""


def run_alone(config: Path, overrides: list[str], settings: Settings, stopping: Callable[[], bool], work: Work) -> None:
    """Run a worker of these settings until `stopping()`, with an endpoint of its own.

    SIGHUP reads settings and checkpoint again. As for `work`.
    """
    reload = reload_of(config, overrides, settings)

    @contextmanager
    def shown(worker: Worker, metrics: Metrics) -> Iterator[None]:
        limit_s = settings.max_poll_interval_ms / 1000
        observed = settings.observability
        with (
            pages_of(lambda: reload.settings, metrics, worker.status, worker.alerts) as pages,
            serve(observed.address, observed.port, metrics, worker.status, limit_s, pages),
        ):
            yield

    work(settings, stopping, reload, shown)


def reload_of(config: Path, overrides: list[str], settings: Settings) -> Reload:
    """What reads these settings again from their file, at each SIGHUP to this process."""
    reload = Reload(settings, partial(settings_of, config, overrides))
    signal.signal(signal.SIGHUP, reload.ask)
    return reload


def pages_of(
    settings: Callable[[], Settings], metrics: Observed, status: Callable[[], WorkerStatus], alerts: PublishedAlerts
) -> AbstractContextManager[Mapping[str, Page]]:
    """The pages of a worker, by path, within a `with` block; `settings` are those that hold when asked."""
    return worker_pages(
        metrics=metrics,
        status=status,
        alerts=alerts,
        members=partial(look_for_members, ClientProperties(settings())),
        explain=lambda record, limit_s: explain_for_a_page(settings(), record, limit_s),
        show_lines=settings().observability.show_lines,
    )


def run_worker(settings: Settings, stopping: Callable[[], bool], reload: Reload, shown: Shown) -> None:
    """Run a worker until `stopping()`; told to stop while it starts, it ends before it joins its application.

    Args:
        settings: of the application.
        stopping: asked all the time.
        reload: of its settings and its checkpoint.
        shown: entered while it works.

    Raises:
        RunError: no broker answers, the checkpoint is refused, the schema registry or the topic of verdicts cannot be
            used, or the worker cannot go on.
        SettingsError: settings that do not fit the checkpoint.
    """
    _log.info("starting", settings=settings.describe())
    for line in advice(settings):
        _log.warning("settings_doubtful", reason=line)
    # Sessions are many long-lived objects without cycles: walking over them all as often as Python does by default
    # finds nothing.
    gc.set_threshold(100_000, 50, 100)
    topics = Topics(ClientProperties(settings).admin(), settings)  # a wrong address shows before the model is loaded
    stamp = checkpoint_stamp(settings)  # before it is read, so that no change is missed
    scorer = load_scorer(settings)
    if not stopping():  # its producer would fence one of its name that goes on working
        metrics = Metrics()
        serialize = score_writer(settings)
        feedback = feedback_topic(settings)
        said = None if feedback is None else feedback.look()  # a restart must not forget what is muted
        pipeline = Pipeline(settings, scorer, metrics, serialize=serialize, feedback=said)
        worker = connect(settings, topics, pipeline, metrics, reload)
        _watch(worker, metrics)
        watching = reload.watching(scorer, stamp, metrics, serialize, feedback)
        with watching, freed_memory_given_back(), shown(worker, metrics):
            del scorer, pipeline, watching  # the worker has it, as long as it needs it
            worker.run(stopping)
    _log.info("stopped")


def _watch(worker: Worker, metrics: Metrics) -> None:
    """Show what the scorer counts: the one of that time, so totals begin anew with another one, as with a process."""

    def scorer() -> Scorer:
        found = worker.scorer()
        assert not isinstance(found, Tokens)
        return found

    metrics.watch_score_cache(lambda: scorer().cache_hits, lambda: scorer().cache_misses)
    metrics.watch_batches_split(lambda: scorer().batches_split)
    metrics.watch_gpu(lambda: scorer().gpu_usage())
