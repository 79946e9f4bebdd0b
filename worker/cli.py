"""The command line: `logmamba COMMAND`.

Exit codes: 0 done, 1 failed at run time, 2 wrong usage or configuration (one line an error, no trace), 3 `adapt` left
the checkpoint as it was.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from detector.errors import DetectorError
from worker.checkpoint_cli import checkpoints, verdicts, vocabulary
from worker.console import err, examples, out, reading, tell
from worker.errors import SettingsError, WorkerError
from worker.generate_cli import generating
from worker.options import (
    ConfigOption,
    InputOption,
    OptionalCheckpoint,
    OptionalConfig,
    SetOption,
    settings_of,
)
from worker.signals import stopped_by_signals
from worker.topics_cli import topics

app = typer.Typer(
    name="logmamba",
    help="Finds anomalies in logs while they stream through Kafka.",
    epilog=examples("logmamba demo", "logmamba run --config worker.yaml"),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(topics)
app.add_typer(generating)
app.add_typer(checkpoints)
app.add_typer(verdicts, name="verdicts")
app.add_typer(vocabulary, name="vocabulary")

_STATES = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[red]failed[/]"}


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"logmamba {version('logmamba')}")
        raise typer.Exit


@app.callback()
def options_of_all(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Finds anomalies in logs while they stream through Kafka."""


def main() -> None:
    """Run the command line; the `logmamba` command."""
    # Models this size gain little from a second thread on a free core and lose most of their speed when that core is
    # busy, as a broker's or another worker's is. It must be said before PyTorch is loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with _exit_codes():
        app(prog_name="logmamba")


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Errors with a reason become a line on standard error and an exit code; others keep their trace."""
    try:
        yield
    except SettingsError as error:
        for line in error.errors:
            err.print(f"logmamba: {line}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except (WorkerError, DetectorError) as error:
        err.print(f"logmamba: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


@app.command(epilog=examples("logmamba run --config worker.yaml"))
def run(config: ConfigOption, overrides: SetOption = []) -> None:  # noqa: B006  typer copies it
    """Run the worker until it is told to stop (SIGTERM, Ctrl-C); SIGHUP reads settings and checkpoint again.

    With `worker.processes` it runs as so many processes, which it starts, watches and stops.
    """
    _work("run", config, overrides)


@app.command(epilog=examples("logmamba rekey --config rekey.yaml"))
def rekey(config: ConfigOption, overrides: SetOption = []) -> None:  # noqa: B006
    """Write lines as token records to the partition of their session key, until told to stop (SIGTERM, Ctrl-C).

    For logs whose session key is spread over partitions: `logmamba run` with `input.format: tokens` reads what this
    writes to `output.topic`. With `worker.processes` it runs as so many processes.
    """
    _work("rekey", config, overrides)


def _work(name: Literal["run", "rekey"], config: Path, overrides: list[str]) -> None:
    with stopped_by_signals() as stopping:  # before everything that takes time
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        from worker.observability.log import configure_logging

        settings = settings_of(config, overrides)
        configure_logging(settings.observability.log_level, settings.observability.log_format)
        from worker.commands.rekey import run_rekey
        from worker.commands.run import run_alone, run_worker

        work = {"run": run_worker, "rekey": run_rekey}[name]
        if settings.worker.processes > 1:
            from worker.commands.supervise import run_processes

            run_processes(config, overrides, settings, stopping, work)
        else:
            run_alone(config, overrides, settings, stopping, work)


@app.command(epilog=examples("logmamba demo --lines 20000"))
def demo(
    lines: Annotated[int, typer.Option(min=1_000, max=100_000, help="Log lines to generate.")] = 40_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the generated logs.")] = 1,
) -> None:
    """Score generated logs with known faults, with everything in this process; needs no Kafka."""
    from worker.commands.demo import run_demo

    run_demo(lines, seed, out)


@app.command(epilog=examples("logmamba init app.log.gz --output worker.yaml"))
def init(
    samples: Annotated[
        list[Path], typer.Argument(help="Log lines (plain or .gz) or captured records.", show_default=False)
    ] = [],  # noqa: B006
    output: Annotated[Path, typer.Option("--output", help="The settings file to write.")] = Path("worker.yaml"),
    bootstrap: Annotated[
        str | None, typer.Option("--bootstrap", help="In place of files: HOST:PORT of a broker.", show_default=False)
    ] = None,
    topic: Annotated[
        str | None, typer.Option("--topic", help="And a topic, whose newest records are read.", show_default=False)
    ] = None,
) -> None:
    """Write settings for your logs from a sample of them, and say how sure each of them is."""
    from worker.commands.init import write_settings

    write_settings(samples, output, bootstrap=bootstrap, topic=topic, tell=tell)
    files = "".join(f" --input {path}" for path in samples)
    tell(f"written to {output}. What it makes of lines: logmamba check --config {output} --offline{files}")


@app.command(
    epilog=examples(
        "logmamba check --config worker.yaml --create-topics", "logmamba check --config worker.yaml --offline --json"
    )
)
def check(
    config: ConfigOption,
    overrides: SetOption = [],  # noqa: B006
    create_topics: Annotated[bool, typer.Option("--create-topics", help="Create missing output topics.")] = False,
    sample: Annotated[
        list[Path], typer.Option("--input", help="Lines or records to try the settings on.", show_default=False)
    ] = [],  # noqa: B006
    offline: Annotated[
        bool, typer.Option("--offline", help="Leave the network out; the checkpoint may be still to be trained.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    for_rekey: Annotated[
        bool, typer.Option("--rekey", help="The settings are those of logmamba rekey, which scores nothing.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Only print all settings, with what input.format stands for spelled out.")
    ] = False,
) -> None:
    """Check settings, checkpoint, brokers, topics, permissions and receivers, and what becomes of a sample."""
    from worker.commands.check import as_json as to_json
    from worker.commands.check import check_everything, shown

    if show:
        typer.echo(shown(settings_of(config, overrides)), nl=False)
        return
    if offline and create_topics:
        raise typer.BadParameter("give either --offline or --create-topics")
    settings = settings_of(config, overrides)
    rows = check_everything(settings, create_topics=create_topics, sample=sample, offline=offline, for_rekey=for_rekey)
    if as_json:
        typer.echo(to_json(rows).decode())
    else:
        table = Table("what", "state", "detail", title=f"logmamba check {config}", title_justify="left")
        for row in rows:
            table.add_row(row.what, _STATES[row.state], Text(row.detail))
        out.print(table)
    if not all(row.ok for row in rows):
        raise typer.Exit(1)


@app.command(epilog=examples("logmamba train --config worker.yaml --input app.log.gz --output checkpoints/app"))
def train(
    inputs: InputOption,
    output: Annotated[Path, typer.Option("--output", help="Directory of the new checkpoint.", show_default=False)],
    config: OptionalConfig = None,
    overrides: SetOption = [],  # noqa: B006
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", help="CSV: session and label (1 = anomalous); without it what stands out is set aside."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and the validation split.")] = 0,
    size: Annotated[Literal["tiny", "small", "reference"], typer.Option(help="Of the model.")] = "tiny",
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most optimiser steps in each of the two stages. [default: 600 and 400, at least two passes]",
        ),
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option(min=64, help="Tokens of a step; a GPU is kept busy by more of them, such as 16384.")
    ] = 2048,
    combine: Annotated[
        bool, typer.Option("--combine", help="With labels: let what is unusual raise the score, too, where it pays.")
    ] = False,
    normals: Annotated[
        bool,
        typer.Option("--normals", help="Without labels: all sessions are known to be normal, nothing is set aside."),
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Start over where a killed training could go on.")] = False,
) -> None:
    """Train a checkpoint from raw logs or parsed sessions; killed, the same command goes on where it was."""
    from worker.commands.train import train_checkpoint

    train_checkpoint(
        settings_of(config, overrides),
        inputs,
        labels,
        output,
        seed=seed,
        size=size,
        steps=steps,
        batch_tokens=batch_tokens,
        combine=combine,
        normals=normals,
        restart=restart,
        console=err,
    )


@app.command(
    epilog=examples("logmamba score --config worker.yaml --checkpoint checkpoints/app --input a.log --output a.jsonl")
)
def score(
    inputs: InputOption,
    output: Annotated[
        Path, typer.Option("--output", help="JSON lines, one score record a session.", show_default=False)
    ],
    checkpoint: OptionalCheckpoint = None,
    config: OptionalConfig = None,
    overrides: SetOption = [],  # noqa: B006
    feedback: Annotated[
        Path | None,
        typer.Option(
            "--feedback", help="Verdicts to judge by: what `feedback --list --json` prints.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts of the last line as JSON, too.")] = False,
) -> None:
    """Score log files with the worker's own pipeline, without Kafka."""
    from worker.commands.score import score_files
    from worker.processing.feedback import read_feedback_file
    from worker.processing.scorer import load_scorer

    settings = settings_of(config, overrides, checkpoint)
    said = None if feedback is None else read_feedback_file(feedback)
    with reading(inputs) as advance:
        done = score_files(settings, load_scorer(settings), inputs, output, advance, tell, said)
    tell(
        f"{done.lines:,} lines, {done.sessions:,} sessions: {done.critical:,} critical, {done.warnings:,} warnings, "
        f"{done.refused:,} lines refused. Written to {output}"
    )
    if as_json:
        typer.echo(json.dumps(asdict(done)))


@app.command(
    epilog=examples("logmamba evaluate --config worker.yaml --checkpoint checkpoints/app --input a.log --report report")
)
def evaluate(
    inputs: InputOption,
    report: Annotated[
        Path, typer.Option("--report", help="Directory for index.html and metrics.json.", show_default=False)
    ],
    checkpoint: OptionalCheckpoint = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print metrics.json, too.")] = False,
) -> None:
    """Say how good a checkpoint is on log files: figures, plots and the worst mistakes."""
    from worker.commands.evaluate import METRICS_FILE, evaluate_checkpoint
    from worker.processing.scorer import load_scorer

    settings = settings_of(config, overrides, checkpoint)
    evaluate_checkpoint(
        settings,
        load_scorer(settings),
        inputs,
        labels,
        report,
        normal_weight=normal_weight,
        seed=seed,
        console=err,
    )
    if as_json:
        typer.echo((report / METRICS_FILE).read_text(encoding="utf-8"), nl=False)


@app.command(
    epilog=examples("logmamba explain --config worker.yaml --checkpoint checkpoints/app --input a.log --session KEY")
)
def explain(
    inputs: InputOption = [],  # noqa: B006
    session: Annotated[
        str | None, typer.Option("--session", help="Key of the session in the input.", show_default=False)
    ] = None,
    record: Annotated[
        typer.FileBinaryRead | None,
        typer.Option(
            "--record",
            help="In place of --input and --session: a file with a score record (- is standard input), whose lines are "
            "read from Kafka.",
            show_default=False,
        ),
    ] = None,
    checkpoint: OptionalCheckpoint = None,
    config: OptionalConfig = None,
    overrides: SetOption = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a session instead of tables.")] = False,
) -> None:
    """Show a session's events, how surprising each was, and what the model expected instead."""
    from worker.commands.explain import ExplainedSession, explain_sessions
    from worker.commands.explain_record import explain_record, read_score_record
    from worker.commands.terminal.explanation_table import explanation_table
    from worker.processing.scorer import load_scorer

    from_files = bool(inputs) and session is not None
    if from_files == (record is not None) or (record is not None and (inputs or session is not None)):
        raise typer.BadParameter("give either --input and --session, or --record")
    settings = settings_of(config, overrides, checkpoint)
    found: Iterable[ExplainedSession]
    if record is not None:
        found = [explain_record(settings, load_scorer(settings), read_score_record(settings, record.read()), tell)]
    elif session is not None:
        with reading(inputs) as advance:
            found = explain_sessions(settings, load_scorer(settings), inputs, session, advance, tell)
    for explained in found:
        if as_json:
            typer.echo(explained.to_json().decode())
        else:
            out.print(explanation_table(explained))


@app.command(epilog=examples("logmamba example worker.example.yaml"))
def example(
    name: Annotated[str | None, typer.Argument(help="Of the file; without it their names are listed.")] = None,
) -> None:
    """Print a file that comes with this package: settings to start from, or a schema."""
    from worker.shipped import shipped_names, shipped_text

    typer.echo("\n".join(shipped_names()) if name is None else shipped_text(name), nl=name is None)
