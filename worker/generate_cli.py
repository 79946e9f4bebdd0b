"""`logmamba generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worker.console import err, examples
from worker.formats.durations import parse_duration
from worker.options import SetOption, settings_of
from worker.signals import stopped_by_signals

generating = typer.Typer()

_DRIFT = "What changes while the cluster runs"


def _seconds(option: str, text: str) -> float:
    try:
        return parse_duration(text) / 1000
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {text!r} {error}") from error


@generating.command(
    epilog=examples(
        "logmamba generate --lines 50000 --output hdfs.log.gz --labels labels.csv",
        "logmamba generate --lines 200000 --reworded 0.3 --after 1h --rollout 30m --output new.log.gz --labels new.csv",
    )
)
def generate(
    lines: Annotated[int, typer.Option("--lines", min=1, help="How many lines.", show_default=False)],
    output: Annotated[Path | None, typer.Option("--output", help="Log file (plain or .gz).")] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="CSV of the truth: block_id,label,fault,new_lines.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    anomalies: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of blocks with a fault.")] = 0.03,
    config: Annotated[
        Path | None, typer.Option("--config", help="Send to the first input topic of these settings, keyed by block.")
    ] = None,
    overrides: SetOption = [],  # noqa: B006
    rate: Annotated[int | None, typer.Option(min=1, help="Lines a second; as fast as possible when not given.")] = None,
    blocks_per_second: Annotated[
        float, typer.Option(min=0.001, max=1000.0, help="How fast new blocks come, in the log's own time.")
    ] = 2.0,
    day_night: Annotated[
        float,
        typer.Option(
            min=0.0, max=0.99, help="How far the rate of new blocks swings about its mean with the time of day."
        ),
    ] = 0.0,
    reworded: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the templates that a release words anew or renames.",
            rich_help_panel=_DRIFT,
        ),
    ] = 0.0,
    new_service: Annotated[
        bool, typer.Option("--new-service", help="The release brings a service of its own.", rich_help_panel=_DRIFT)
    ] = False,
    slowdown: Annotated[
        float,
        typer.Option(
            min=1.0, max=5.0, help="How many times as long writing takes after the rollout.", rich_help_panel=_DRIFT
        ),
    ] = 1.0,
    after: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help="Time of the log before the first host has the release.",
            rich_help_panel=_DRIFT,
        ),
    ] = "0s",
    rollout: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help="From then until the last host has it, and until writing is slow.",
            rich_help_panel=_DRIFT,
        ),
    ] = "0s",
) -> None:
    """Generate HDFS-like logs with known faults and, where wanted, drift, to a file or to a topic."""
    from worker.commands.generate import generate_to_file, generate_to_topic
    from worker.generator.log import DayAndNight, Drift, GeneratedLog

    if (output is None) == (config is None):
        raise typer.BadParameter("give either --output (a file) or --config (a topic)")
    log = GeneratedLog(
        lines=lines,
        seed=seed,
        anomaly_rate=anomalies,
        blocks_per_second=blocks_per_second,
        day_night=DayAndNight(day_night),
        drift=Drift(_seconds("--after", after), _seconds("--rollout", rollout), reworded, new_service, slowdown),
    )
    if output is not None:
        if rate is not None:
            raise typer.BadParameter("--rate goes with --config: a file is written as fast as possible")
        generate_to_file(log, output, labels, err)
    else:
        with stopped_by_signals() as stopping:
            generate_to_topic(log, settings_of(config, overrides), labels, rate=rate, stopping=stopping, console=err)
