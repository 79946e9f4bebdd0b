"""`logmamba train`: read, train, say how good it is, save."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import orjson
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from detector.errors import CheckpointError
from detector.sessions_file import read_labels
from worker.settings import Settings
from worker.train_files import TrainingSet, read_training_set

if TYPE_CHECKING:
    from detector.training import TrainingProgress


def train_checkpoint(
    settings: Settings,
    inputs: Sequence[Path],
    labels: Path | None,
    output: Path,
    *,
    seed: int,
    size: Literal["tiny", "small", "reference"],
    steps: int,
    combine: bool = False,
    restart: bool = False,
    console: Console,
) -> None:
    """Train a checkpoint and write it to `output`.

    Beside it, ``<output>.training.jsonl`` gets a JSON object a report (`TrainingProgress`). While the training lasts,
    ``<output>.training`` is there too: the same call goes on from it after a kill.

    Args:
        settings: `input`, `sessions`, `tokenizer` and, of the model, device, precision and kernels are used.
        inputs: raw logs or parsed sessions.
        labels: CSV of labels; None for those of parsed sessions, or for none.
        output: directory of the checkpoint.
        seed: of weights, order and the validation split.
        size: of the model.
        steps: most optimiser steps in each stage.
        combine: with labels, let what is unusual raise the score, too.
        restart: start over where a killed training could go on.
        console: told what is going on.

    Raises:
        InputFileError: an input or the labels cannot be read.
        TrainingError: there is too little to learn from, or what a killed training left does not fit.
        DeviceError: device, precision or kernels are not available here.
        CheckpointError: the checkpoint cannot be written.
    """
    place = output.resolve()
    state, log = (place.with_name(f"{place.name}.training{ending}") for ending in ("", ".jsonl"))
    if restart:
        state.unlink(missing_ok=True)
    known = None if labels is None else read_labels(labels)
    total = 2 * sum(path.stat().st_size for path in inputs if path.is_file())
    with Progress(TextColumn("reading"), BarColumn(), DownloadColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        found = read_training_set(settings, inputs, known, seed, lambda count: bar.advance(task, count))
    _describe(found, console)

    # PyTorch takes seconds to import; a mistake in the input shows before.
    from detector.training import MIN_ANOMALOUS_SESSIONS, TrainingOptions, train

    with _reporting(log, console, resumed=state.exists()) as report:
        trained = train(
            found.training,
            found.vocabulary,
            validation=found.validation,
            size=size,
            seed=seed,
            device=settings.model.device,
            precision=settings.model.precision,
            kernels=settings.model.kernels,
            options=TrainingOptions(next_token_steps=steps, classifier_steps=steps, combine=combine),
            progress=report,
            state=state,
        )
    if trained.record.anomalous and trained.record.mode == "normals_only":
        console.print(
            f"no classifier was trained: it takes {MIN_ANOMALOUS_SESSIONS} sessions labelled anomalous to learn from, "
            "and both kinds to validate",
            highlight=False,
            soft_wrap=True,
        )
    digest = trained.save(output)
    table = Table(
        "validation", "value", title=f"{output} ({trained.record.mode.replace('_', ' ')})", title_justify="left"
    )
    for name, value in trained.record.metrics.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    console.print(table)
    console.print(f"checkpoint {digest}", highlight=False)


@contextmanager
def _reporting(log: Path, console: Console, *, resumed: bool) -> Iterator[Callable[[TrainingProgress], None]]:
    """Yields what shows a report and logs it; says at the end what the training took."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}")
    tasks: dict[str, TaskID] = {}
    last: TrainingProgress | None = None
    with (
        _opened(log, resumed=resumed) as lines,
        Progress(*columns, console=console, transient=True) as bar,
    ):

        def report(at: TrainingProgress) -> None:
            nonlocal last
            stage = at.stage.replace("_", " ")
            if last is None and resumed:
                console.print(f"went on from a killed training, in stage {stage}", highlight=False)
            last = at
            lines.write(orjson.dumps(asdict(at), option=orjson.OPT_APPEND_NEWLINE))
            if at.stage not in tasks:
                tasks[at.stage] = bar.add_task(stage, total=at.steps, state="")
            losses = f"loss {at.loss:.3f}"
            if at.validation_loss is not None:
                losses += f", validation {at.validation_loss:.3f}"
            state = f"{losses}, {at.tokens_per_s:,.0f} tokens/s, {at.seconds_left:.0f} s left"
            bar.update(tasks[at.stage], completed=at.step, state=state)

        yield report
    if last is not None:
        console.print(
            f"trained in {last.seconds:.0f} s, {last.tokens / last.seconds:,.0f} tokens/s, with at most "
            f"{last.peak_memory_bytes / 1e6:,.0f} MB of memory; losses in {log}",
            highlight=False,
            soft_wrap=True,
        )


def _opened(log: Path, *, resumed: bool) -> BinaryIO:
    """The log, unbuffered, so that what a kill leaves is whole."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("ab" if resumed else "wb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"cannot write {log}: {error.strerror}") from error


def _describe(found: TrainingSet, console: Console) -> None:
    training, validation = found.training, found.validation
    console.print(
        f"{training.counts.sum():,} sessions to learn from "
        f"({training.counts[training.labels == 1].sum():,} anomalous), "
        f"{validation.counts.sum():,} to validate ({validation.counts[validation.labels == 1].sum():,} anomalous), "
        f"{len(found.vocabulary.templates):,} templates",
        highlight=False,
    )
    if found.refused:
        console.print(f"{found.refused:,} lines were refused (a worker would send them to the dead-letter topic)")
    if found.unmatched_labels:
        console.print(f"{found.unmatched_labels:,} labels are of sessions that the input does not hold")
