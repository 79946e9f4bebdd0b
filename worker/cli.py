"""The command line: `logmamba COMMAND`.

Exit codes: 0 done, 1 failed at run time, 2 wrong usage or configuration (one line an error, no trace).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from detector.errors import DetectorError
from worker.errors import SettingsError, WorkerError
from worker.kafka.clients import rejection
from worker.settings.document import Settings, load_settings

app = typer.Typer(
    name="logmamba",
    help="Finds anomalies in logs while they stream through Kafka.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_out = Console()
_err = Console(stderr=True)

_STATES = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[red]failed[/]"}

ConfigOption = Annotated[Path, typer.Option("--config", help="Settings (YAML).", show_default=False)]
OptionalConfig = Annotated[
    Path | None, typer.Option("--config", help="Settings (YAML); the defaults when not given.", show_default=False)
]
SetOption = Annotated[
    list[str], typer.Option("--set", help="One setting over the file's: path=value.", show_default=False)
]
InputOption = Annotated[
    list[Path],
    typer.Option(
        "--input",
        help="Raw log (plain or .gz), captured records or parsed sessions (TSV); repeated, they are one stream.",
        show_default=False,
    ),
]
CheckpointOption = Annotated[
    Path, typer.Option("--checkpoint", help="Directory of a trained model.", show_default=False)
]


def main() -> None:
    """Run the command line; the `logmamba` command."""
    # Models this size gain little from a second thread on a free core and lose most of their speed when that core is
    # busy, as a broker's or another worker's is. It must be said before PyTorch is loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with _exit_codes():
        app()


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Errors with a reason become a line on standard error and an exit code; others keep their trace."""
    try:
        yield
    except SettingsError as error:
        for line in error.errors:
            _err.print(f"logmamba: {line}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except (WorkerError, DetectorError) as error:
        _err.print(f"logmamba: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


@app.command()
def run(config: ConfigOption, overrides: SetOption = []) -> None:  # noqa: B006  typer copies it
    """Run the worker until it is told to stop (SIGTERM, Ctrl-C)."""
    with _stopped_by_signals() as stopping:  # before everything that takes time
        from worker.commands.run import run_worker

        run_worker(_settings(config, overrides), stopping)


@app.command()
def demo(
    lines: Annotated[int, typer.Option(min=1_000, max=100_000, help="Log lines to generate.")] = 40_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the generated logs.")] = 1,
) -> None:
    """Score generated logs with known faults, with everything in this process; needs no Kafka."""
    from worker.commands.demo import run_demo

    run_demo(lines, seed, _out)


@app.command()
def check(
    config: ConfigOption,
    overrides: SetOption = [],  # noqa: B006
    create_topics: Annotated[bool, typer.Option("--create-topics", help="Create missing output topics.")] = False,
    sample: Annotated[
        list[Path], typer.Option("--input", help="Lines or records to try the settings on.", show_default=False)
    ] = [],  # noqa: B006
    show: Annotated[
        bool, typer.Option("--show", help="Only print all settings, with what input.format stands for spelled out.")
    ] = False,
) -> None:
    """Check settings, checkpoint, brokers, topics and permissions, and what the settings make of a sample."""
    from worker.commands.check import check_everything, shown

    if show:
        typer.echo(shown(_settings(config, overrides)), nl=False)
        return
    rows = check_everything(_settings(config, overrides), create_topics=create_topics, sample=sample)
    table = Table("what", "state", "detail", title=f"logmamba check {config}", title_justify="left")
    for row in rows:
        table.add_row(row.what, _STATES[row.state], Text(row.detail))
    _out.print(table)
    if not all(row.ok for row in rows):
        raise typer.Exit(1)


@app.command()
def train(
    inputs: InputOption,
    output: Annotated[Path, typer.Option("--output", help="Directory of the new checkpoint.", show_default=False)],
    config: OptionalConfig = None,
    overrides: SetOption = [],  # noqa: B006
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="CSV: session and label (1 = anomalous); without it only normals are assumed."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and the validation split.")] = 0,
    size: Annotated[Literal["tiny", "small", "reference"], typer.Option(help="Of the model.")] = "tiny",
    steps: Annotated[int, typer.Option(min=1, help="Most optimiser steps in each of the two stages.")] = 600,
    batch_tokens: Annotated[
        int, typer.Option(min=64, help="Tokens of a step; a GPU is kept busy by more of them, such as 16384.")
    ] = 2048,
    combine: Annotated[
        bool, typer.Option("--combine", help="With labels: let what is unusual raise the score, too, where it pays.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Start over where a killed training could go on.")] = False,
) -> None:
    """Train a checkpoint from raw logs or parsed sessions; killed, the same command goes on where it was."""
    from worker.commands.train import train_checkpoint

    train_checkpoint(
        _settings(config, overrides),
        inputs,
        labels,
        output,
        seed=seed,
        size=size,
        steps=steps,
        batch_tokens=batch_tokens,
        combine=combine,
        restart=restart,
        console=_err,
    )


@app.command()
def score(
    checkpoint: CheckpointOption,
    inputs: InputOption,
    output: Annotated[
        Path, typer.Option("--output", help="JSON lines, one score record a session.", show_default=False)
    ],
    config: OptionalConfig = None,
    overrides: SetOption = [],  # noqa: B006
) -> None:
    """Score log files with the worker's own pipeline, without Kafka."""
    from worker.commands.score import score_files
    from worker.processing.scorer import load_scorer

    settings = _with_checkpoint(_settings(config, overrides), checkpoint)
    with _reading(inputs) as advance:
        done = score_files(settings, load_scorer(settings), inputs, output, advance, _tell)
    _err.print(
        f"{done.lines:,} lines, {done.sessions:,} sessions: {done.critical:,} critical, {done.warnings:,} warnings, "
        f"{done.refused:,} lines refused. Written to {output}",
        highlight=False,
    )


@app.command()
def evaluate(
    checkpoint: CheckpointOption,
    inputs: InputOption,
    report: Annotated[
        Path, typer.Option("--report", help="Directory for index.html and metrics.json.", show_default=False)
    ],
    config: OptionalConfig = None,
    overrides: SetOption = [],  # noqa: B006
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="CSV: session and label (1 = anomalous); without it parsed sessions' own."),
    ] = None,
    normal_weight: Annotated[
        float,
        typer.Option(min=1e-6, max=1e6, help="Sessions of the stream that each normal one of the input stands for."),
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap and of the simple detectors.")] = 0,
) -> None:
    """Say how good a checkpoint is on log files: figures, plots and the worst mistakes."""
    from worker.commands.evaluate import evaluate_checkpoint
    from worker.processing.scorer import load_scorer

    settings = _with_checkpoint(_settings(config, overrides), checkpoint)
    evaluate_checkpoint(
        settings,
        load_scorer(settings),
        inputs,
        labels,
        report,
        normal_weight=normal_weight,
        seed=seed,
        console=_err,
    )


@app.command()
def tail(
    config: ConfigOption,
    overrides: SetOption = [],  # noqa: B006
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Begin with the oldest record instead of the next one.")
    ] = False,
    severity: Annotated[
        Literal["normal", "warning", "critical"], typer.Option(help="Least severity of the records to show.")
    ] = "normal",
) -> None:
    """Follow the score topic, one line a score record, until Ctrl-C."""
    with _stopped_by_signals() as stopping:
        from worker.commands.tail import tail_scores

        tail_scores(
            _settings(config, overrides), stopping, from_beginning=from_beginning, least=severity, out=_out, err=_err
        )


@app.command()
def capture(
    config: ConfigOption,
    output: Annotated[
        Path, typer.Option("--output", help="JSON lines, one record each (plain or .gz).", show_default=False)
    ],
    overrides: SetOption = [],  # noqa: B006
    records: Annotated[
        int | None, typer.Option(min=1, help="Only the newest so many, of all partitions alike.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only from then on: a time (ISO 8601), or so long ago (2d).", show_default=False)
    ] = None,
) -> None:
    """Write records of the input topics to a file to train on or score, beside every consumer group."""
    from worker.commands.capture import capture_records, since_ms

    if records is not None and since is not None:
        raise typer.BadParameter("give either --records or --since")
    try:
        time_ms = None if since is None else since_ms(since)
    except ValueError as error:
        raise typer.BadParameter(f"--since: {error}") from None
    settings = _settings(config, overrides)
    with _err.status("0 records") as status:
        shown = 0

        def advance(count: int) -> None:
            nonlocal shown
            shown += count
            status.update(f"{shown:,} records")

        done = capture_records(settings, output, records=records, since=time_ms, progress=advance)
    _tell(f"{done:,} records written to {output}")


@app.command()
def explain(
    checkpoint: CheckpointOption,
    inputs: InputOption,
    session: Annotated[str, typer.Option("--session", help="Key of the session.", show_default=False)],
    config: OptionalConfig = None,
    overrides: SetOption = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a session instead of tables.")] = False,
) -> None:
    """Show a session's events, how surprising each was, and what the model expected instead."""
    from worker.commands.explain import explain_sessions
    from worker.commands.terminal.explanation_table import explanation_table
    from worker.processing.scorer import load_scorer

    settings = _with_checkpoint(_settings(config, overrides), checkpoint)
    with _reading(inputs) as advance:
        found = explain_sessions(settings, load_scorer(settings), inputs, session, advance, _tell)
    for explained in found:
        if as_json:
            typer.echo(explained.to_json())
        else:
            _out.print(explanation_table(explained))


@app.command()
def generate(
    lines: Annotated[int, typer.Option("--lines", min=1, help="How many lines.", show_default=False)],
    output: Annotated[Path | None, typer.Option("--output", help="Log file (plain or .gz).")] = None,
    labels: Annotated[Path | None, typer.Option("--labels", help="CSV of the truth: block_id,label,fault.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    anomalies: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of blocks with a fault.")] = 0.03,
    config: Annotated[
        Path | None, typer.Option("--config", help="Send to the first input topic of these settings, keyed by block.")
    ] = None,
    overrides: SetOption = [],  # noqa: B006
    rate: Annotated[int | None, typer.Option(min=1, help="Lines a second; as fast as possible when not given.")] = None,
) -> None:
    """Generate HDFS-like logs with known faults, to a file or to a topic."""
    from worker.commands.generate import generate_to_file, generate_to_topic

    if (output is None) == (config is None):
        raise typer.BadParameter("give either --output (a file) or --config (a topic)")
    if output is not None:
        if rate is not None:
            raise typer.BadParameter("--rate goes with --config: a file is written as fast as possible")
        generate_to_file(lines, output, labels, seed=seed, anomaly_rate=anomalies, console=_err)
    else:
        with _stopped_by_signals() as stopping:
            generate_to_topic(
                lines,
                _settings(config, overrides),
                labels,
                seed=seed,
                anomaly_rate=anomalies,
                rate=rate,
                stopping=stopping,
                console=_err,
            )


def _tell(line: str) -> None:
    _err.print(line, markup=False, highlight=False, soft_wrap=True)


def _settings(config: Path | None, overrides: list[str]) -> Settings:
    return load_settings(config, overrides, rejection=rejection)


def _with_checkpoint(settings: Settings, checkpoint: Path) -> Settings:
    """The settings with the checkpoint that the command names."""
    return settings.model_copy(update={"model": settings.model.model_copy(update={"checkpoint": checkpoint})})


@contextmanager
def _reading(inputs: list[Path]) -> Iterator[Callable[[int], object]]:
    """A progress bar over the bytes of the input files; yields what advances it."""
    total = sum(path.stat().st_size for path in inputs if path.is_file())
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_err, transient=True) as progress:
        task = progress.add_task("reading", total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def _stopped_by_signals() -> Iterator[Callable[[], bool]]:
    """SIGTERM and Ctrl-C ask the block to finish; a second one ends the process at once, as without us.

    After the block a first one changes nothing: the process is ending, with an exit code that says how it went.
    """
    asked = False

    def ask(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        _on_stop_signals(signal.SIG_DFL)

    _on_stop_signals(ask)
    try:
        yield lambda: asked
    finally:
        if not asked:
            # At its end Python puts handlers back to the default, which would kill the process amid its clearing up.
            _on_stop_signals(signal.SIG_IGN)


def _on_stop_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)
