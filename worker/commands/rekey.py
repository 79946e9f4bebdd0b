"""`logmamba rekey`: lines whose session key is spread over partitions, to token records in the partition of their key.

It is a worker like that of `run` but for its scorer and its sessions: a member of a group, exactly once, with the same
endpoint and the same way to stop.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from worker.commands.reload import Reload
from worker.commands.run import Shown
from worker.errors import RunError
from worker.kafka.clients import ClientProperties
from worker.kafka.connect import connect
from worker.kafka.topics import Topics
from worker.observability.memory_trim import freed_memory_given_back
from worker.observability.metrics import Metrics
from worker.processing.rekeying import Rekeying, Tokens
from worker.processing.scorer import read_checkpoint
from worker.settings.document import Settings

_log = structlog.get_logger(__name__)


def run_rekey(settings: Settings, stopping: Callable[[], bool], _reload: Reload, shown: Shown) -> None:
    """Write token records until `stopping()`; told to stop while it starts, it ends before it joins its application.

    Its settings and its vocabulary are those that it started with. As for `worker.commands.run.run_worker`.
    """
    _log.info("starting", settings=settings.describe())
    topics = Topics(ClientProperties(settings).admin(), settings)
    metrics = Metrics()
    pipeline = rekeying(settings, metrics, lambda: _partitions(settings))
    if not stopping():
        worker = connect(settings, topics, pipeline, metrics)
        with freed_memory_given_back(), shown(worker, metrics):
            worker.run(stopping)
    _log.info("stopped")


def rekeying(settings: Settings, metrics: Metrics, partitions: Callable[[], int]) -> Rekeying:
    """What `logmamba rekey` does with these settings.

    Raises:
        RunError: the checkpoint is refused.
        SettingsError: the settings are not for rekeying, or do not fit the checkpoint.
    """
    checkpoint = read_checkpoint(settings)
    tokens = Tokens(checkpoint.digest, checkpoint.vocabulary, checkpoint.manifest.reading)
    return Rekeying(settings, tokens, metrics, partitions)


def _partitions(settings: Settings) -> int:
    """How many partitions the topic of token records has."""
    topics = Topics(ClientProperties(settings).admin(), settings)
    [tokens] = [topic for topic in topics.outputs() if topic.name == settings.output.topic]
    if not tokens.partitions:
        raise RunError(f"output.topic: {tokens.name} does not exist")
    return tokens.partitions
