"""`logmamba generate`: generated logs to a file, or to a topic at a given rate (the load generator)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from worker.errors import RunError
from worker.generator.log import GeneratedLog, Truth, write_files, write_labels
from worker.kafka.clients import ClientProperties
from worker.kafka.topics import Topics
from worker.kafka.writer import Writer
from worker.settings.document import Settings

_BURST = 1_000  # lines sent between two looks at the clock


def generate_to_file(log: GeneratedLog, output: Path, labels: Path | None, console: Console) -> None:
    """Write a log to `output`, and the truth to `labels`.

    Raises:
        RunError: a file cannot be written.
    """
    try:
        with _progress(log, console) as advance:
            truths = write_files(log, output, labels, advance)
    except OSError as error:
        raise RunError(f"{error.filename or output}: cannot be written: {error.strerror}") from error
    _summary(log, truths, console)


def generate_to_topic(
    log: GeneratedLog,
    settings: Settings,
    labels: Path | None,
    *,
    rate: int | None,
    stopping: Callable[[], bool],
    console: Console,
) -> None:
    """Send a log to the first input topic, keyed by block; stops early when `stopping()`.

    Raises:
        RunError: no broker answers, the topic does not exist, or lines were not delivered.
    """
    topics = Topics(ClientProperties(settings).admin(), settings)
    topics.require_inputs()
    [*inputs] = topics.inputs()
    if not inputs:
        raise RunError(f"input.topics: no topic matches {settings.input.topics[0]}")
    writer = Writer(settings, inputs[0].name)
    with _progress(log, console) as advance:
        truths = send(log, writer, rate=rate, stopping=stopping, progress=advance)
    if labels is not None:
        write_labels(truths, labels)
    _summary(log, truths, console)


def send(
    log: GeneratedLog,
    writer: Writer,
    *,
    rate: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
    progress: Callable[[int], object] = lambda _lines: None,
) -> list[Truth]:
    """Send a log to a topic, keyed by block, with the log's own times as record timestamps; returns its truth.

    Raises:
        RunError: a line was not delivered.
    """
    truths: list[Truth] = []
    began, sent = time.monotonic(), 0
    for batch in log.batches():
        truths += batch.truths
        for first in range(0, len(batch.texts), _BURST):
            if stopping():
                break
            rows = slice(first, first + _BURST)
            for text, block, at in zip(batch.texts[rows], batch.blocks[rows], batch.times_ms[rows], strict=True):
                writer.write(text, block, at)
            burst = len(batch.texts[rows])
            sent += burst
            writer.serve()
            progress(burst)
            if rate is not None:
                time.sleep(max(0.0, began + sent / rate - time.monotonic()))
    writer.flush()
    return truths


@contextmanager
def _progress(log: GeneratedLog, console: Console) -> Iterator[Callable[[int], object]]:
    columns = TextColumn("generating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=log.lines)
        yield lambda count: bar.advance(task, count)


def _summary(log: GeneratedLog, truths: Sequence[Truth], console: Console) -> None:
    faults, new = sum(truth.label for truth in truths), sum(len(truth.new_lines) for truth in truths)
    drifted = f", {new:,} lines of the new release" if new else ""
    console.print(f"{log.lines:,} lines, {len(truths):,} blocks, {faults:,} with a fault{drifted}", highlight=False)
