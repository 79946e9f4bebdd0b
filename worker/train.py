"""`logmamba train`: read, train, say how good it is, save."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from detector.sessions_file import read_labels
from worker.settings import Settings
from worker.train_files import TrainingSet, read_training_set


def train_checkpoint(
    settings: Settings,
    inputs: Sequence[Path],
    labels: Path | None,
    output: Path,
    *,
    seed: int,
    size: Literal["tiny", "small", "reference"],
    steps: int,
    console: Console,
) -> None:
    """Train a checkpoint and write it to `output`.

    Raises:
        InputFileError: an input or the labels cannot be read.
        TrainingError: there is too little to learn from.
        CheckpointError: the checkpoint cannot be written.
    """
    known = None if labels is None else read_labels(labels)
    total = 2 * sum(path.stat().st_size for path in inputs if path.is_file())
    with Progress(TextColumn("reading"), BarColumn(), DownloadColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        found = read_training_set(settings, inputs, known, seed, lambda count: bar.advance(task, count))
    _describe(found, console)

    # PyTorch takes seconds to import; a mistake in the input shows before.
    from detector.training import TrainingOptions, TrainingProgress, train

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[losses]}")
    with Progress(*columns, console=console, transient=True) as bar:
        tasks = {}

        def show(at: TrainingProgress) -> None:
            if at.stage not in tasks:
                tasks[at.stage] = bar.add_task(at.stage.replace("_", " "), total=at.steps, losses="")
            losses = f"loss {at.loss:.3f}"
            if at.validation_loss is not None:
                losses += f", validation {at.validation_loss:.3f}"
            bar.update(tasks[at.stage], completed=at.step, losses=f"{losses}, {at.seconds_left:.0f} s left")

        trained = train(
            found.training,
            found.vocabulary,
            validation=found.validation,
            size=size,
            seed=seed,
            device=settings.model.device,
            kernels=settings.model.kernels,
            options=TrainingOptions(next_token_steps=steps, classifier_steps=steps),
            progress=show,
        )
    digest = trained.save(output)
    table = Table(
        "validation", "value", title=f"{output} ({trained.record.mode.replace('_', ' ')})", title_justify="left"
    )
    for name, value in trained.record.metrics.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    console.print(table)
    console.print(f"checkpoint {digest}", highlight=False)


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
