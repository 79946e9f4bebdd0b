"""`logmamba train`: read, train, say how good it is, save."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import orjson
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from detector.errors import CheckpointError
from detector.sessions_file import read_labels
from worker.commands.terminal.stage_lines import StageLines
from worker.files.input_files import InputFiles, open_inputs
from worker.files.training_set import TrainingSet, read_training_set
from worker.formats.printable import printable
from worker.settings.document import Settings

if TYPE_CHECKING:
    from detector.checkpoint import TrainingRecord
    from detector.training.train import TrainingProgress


def train_checkpoint(
    settings: Settings,
    inputs: Sequence[Path],
    labels: Path | None,
    output: Path,
    *,
    seed: int,
    size: Literal["tiny", "small", "reference"],
    steps: int | None = None,
    batch_tokens: int = 2048,
    combine: bool = False,
    normals: bool = False,
    restart: bool = False,
    console: Console,
) -> None:
    """Train a checkpoint and write it to `output`.

    Beside it, ``<output>.training.jsonl`` gets a JSON object a report (`TrainingProgress`). While the training lasts,
    ``<output>.training`` is there too: the same call goes on from it after a kill.

    Args:
        settings: `input`, `sessions`, `tokenizer` and, of the model, device, precision and kernels are used.
        inputs: raw logs, which are one stream, or parsed sessions.
        labels: CSV of labels; None for those of parsed sessions, or for none.
        output: directory of the checkpoint.
        seed: of weights, order and the validation split.
        size: of the model.
        steps: most optimiser steps in each stage; None as the options have it.
        batch_tokens: tokens of a step, BOS and EOS included.
        combine: with labels, let what is unusual raise the score, too.
        normals: whether sessions without labels are known to be normal.
        restart: start over where a killed training could go on.
        console: told what is going on.

    Raises:
        InputFileError: an input or the labels cannot be read, or the inputs hold no session.
        SettingsError: settings that do not fit the input.
        TrainingError: there is too little to learn from, or what a killed training left does not fit.
        DeviceError: device, precision or kernels are not available here.
        CheckpointError: the checkpoint cannot be written.
    """
    place = output.resolve()
    state, log = (place.with_name(f"{place.name}.training{ending}") for ending in ("", ".jsonl"))
    if restart:
        state.unlink(missing_ok=True)
    known = None if labels is None else read_labels(labels)
    files = open_inputs(settings, inputs)
    for note in files.notes:
        _say(console, note)
    with _reading(files, console) as advance:
        found = read_training_set(settings, files, known, seed, advance)
    _describe(found, console)

    # PyTorch takes seconds to import; a mistake in the input shows before.
    from detector.training.alarm_bounds import bounds_lines
    from detector.training.set_aside import set_aside_lines
    from detector.training.train import MIN_ANOMALOUS_SESSIONS, History, TrainingOptions, train

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
            options=TrainingOptions(
                next_token_steps=steps, classifier_steps=steps, batch_tokens=batch_tokens, combine=combine
            ),
            history=None if found.stream is None else History(found.stream, found.held_out),
            normals=normals,
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
    digest = trained.save(output, found.reading, found.pace)
    if trained.set_aside is not None:
        for line in set_aside_lines(trained.set_aside):
            _say(console, printable(line))
        _say(console, f"`logmamba verdicts list --checkpoint {output}` shows them all; what you answer counts at once")
    mode = trained.record.mode.replace("_", " ")
    console.print(f"scores of the sessions to validate ({mode}):", highlight=False)
    console.print(_quality(trained.record))
    bounds, share = trained.profile.bounds, trained.record.expected_warnings
    if bounds is not None and share is not None:
        for line in bounds_lines(bounds, share, trained.vocabulary):
            _say(console, printable(line))
    _say(console, f"checkpoint {digest} in {output}")


def _quality(record: TrainingRecord) -> Table:
    """How many validation sessions reach each severity, and how well that tells the anomalous ones."""
    from detector.scoring.calibration import CRITICAL_SCORE, WARNING_SCORE

    metrics = record.metrics
    table = Table(box=SIMPLE_HEAD, caption=f"AUPRC {metrics['auprc']:.4f}" if "auprc" in metrics else None)
    table.add_column("at or above", no_wrap=True)
    whose = "of those not set aside" if record.mode == "as_they_come" else "of the normal ones"
    table.add_column(whose, justify="right", no_wrap=True)
    rates = ("precision", "recall", "f1") if "auprc" in metrics else ()
    for rate in rates:
        table.add_column(rate.capitalize(), justify="right", no_wrap=True)
    for early in ("", "early.") if rates else ("",):
        for severity, least in (("warning", WARNING_SCORE), ("critical", CRITICAL_SCORE)):
            share = "" if early else f"{metrics[f'normals.{severity}']:.3%}"
            found = (f"{metrics[f'{early}{severity}.{rate}']:.4f}" for rate in rates)
            table.add_row(f"{early.replace('.', ' ')}{severity} {least}", share, *found)
    return table


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _reading(files: InputFiles, console: Console) -> Iterator[Callable[[int], object]]:
    """Yields what is told how many bytes were read; raw logs are read twice."""
    total = (1 if files.parsed else 2) * sum(path.stat().st_size for path in files.paths)
    columns = TextColumn("reading"), BarColumn(), DownloadColumn()
    lines = StageLines(lambda line: None if console.is_terminal else _say(console, line))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            bar.advance(task, count)
            lines.at("reading", f"{done / 1e6:,.1f} of {total / 1e6:,.1f} MB")

        advance(0)
        yield advance
        if files.parsed:
            advance(total)
        lines.end()


@contextmanager
def _reporting(log: Path, console: Console, *, resumed: bool) -> Iterator[Callable[[TrainingProgress], None]]:
    """Yields what shows a report and logs it; says at the end what the training took."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}")
    last: TrainingProgress | None = None
    validation = ""
    stages = StageLines(lambda line: None if console.is_terminal else _say(console, line))
    with (
        _opened(log, resumed=resumed) as lines,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        _say(console, f"losses as they come: {log}")

        def report(at: TrainingProgress) -> None:
            nonlocal last, validation
            stage = at.stage.replace("_", " ")
            if last is None and resumed:
                console.print(f"went on from a killed training, in stage {stage}", highlight=False)
            lines.write(orjson.dumps(asdict(at), option=orjson.OPT_APPEND_NEWLINE))
            if last is None or last.stage != at.stage:
                if last is not None:  # its time left and rate are over
                    bar.update(bar.task_ids[-1], state=f"loss {last.loss:.3f}{validation}")
                bar.add_task(stage, total=at.steps, state="")
                validation = ""
            if at.validation_loss is not None:
                validation = f", validation {at.validation_loss:.3f}"
            rate = f"{at.tokens_per_s:,.0f} tokens/s, {_clock(at.seconds_left)} left"
            state = f"loss {at.loss:.3f}{validation}"
            bar.update(bar.task_ids[-1], completed=at.step, state=f"{state}, {rate}")
            stages.at(stage, f"step {at.step:,} of at most {at.steps:,}, {state}, {rate}")
            last = at

        yield report
        stages.end()
    if last is not None:
        console.print(
            f"trained in {_clock(last.seconds)}, {last.tokens / last.seconds:,.0f} tokens/s, with at most "
            f"{last.peak_memory_bytes / 1e6:,.0f} MB of memory",
            highlight=False,
        )


def _clock(seconds: float) -> timedelta:
    """Shown as hours, minutes and seconds."""
    return timedelta(seconds=round(seconds))


def _opened(log: Path, *, resumed: bool) -> BinaryIO:
    """The log, unbuffered, so that what a kill leaves is whole."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("ab" if resumed else "wb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"cannot write {log}: {error.strerror}") from error


def _describe(found: TrainingSet, console: Console) -> None:
    parts = found.training, found.validation
    sessions = [int(part.counts.sum()) for part in parts]
    anomalous = [int(part.counts[part.labels == 1].sum()) for part in parts]
    console.print(
        f"{sum(sessions):,} sessions of {found.keys:,} keys: {sessions[0]:,} to learn from ({anomalous[0]:,} "
        f"anomalous), {sessions[1]:,} to validate ({anomalous[1]:,} anomalous); {len(found.vocabulary.templates):,} "
        "templates",
        highlight=False,
        soft_wrap=True,
    )
    if any(anomalous) and sum(sessions) > found.keys:
        console.print("a label is one of a key: it counts for each of the key's sessions", highlight=False)
    for line in (*found.refused, *found.pace_told):
        _say(console, line)
    if found.unmatched_labels:
        console.print(f"{found.unmatched_labels:,} labels are of sessions that the input does not hold")
