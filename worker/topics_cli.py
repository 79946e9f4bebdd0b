"""Commands on the topics of an application: `logmamba tail`, `alert`, `capture` and `replay-dead-letters`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from worker.console import err, examples, out, tell
from worker.formats.printable import printable
from worker.options import ConfigOption, SetOption, settings_of, since_of
from worker.signals import stopped_by_signals

topics = typer.Typer()


@topics.command(epilog=examples("logmamba tail --config worker.yaml --severity warning --json"))
def tail(
    config: ConfigOption,
    overrides: SetOption = [],  # noqa: B006
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Begin with the oldest record instead of the next one.")
    ] = False,
    severity: Annotated[
        Literal["normal", "warning", "critical"], typer.Option(help="Least severity of the records to show.")
    ] = "normal",
    as_json: Annotated[bool, typer.Option("--json", help="Print score records as they are, a line each.")] = False,
) -> None:
    """Follow the score topic, one line a score record, until Ctrl-C."""
    with stopped_by_signals() as stopping:
        from worker.commands.tail import tail_scores

        tail_scores(
            settings_of(config, overrides),
            stopping,
            from_beginning=from_beginning,
            least=severity,
            as_json=as_json,
            out=out,
            err=err,
        )


@topics.command(epilog=examples("logmamba alert --config alert.yaml --test", "logmamba alert --config alert.yaml"))
def alert(
    config: ConfigOption,
    overrides: SetOption = [],  # noqa: B006
    test: Annotated[
        bool, typer.Option("--test", help="Send each receiver one test, say what came back, and end; needs no Kafka.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be sent, a line of JSON a message; commit nothing.")
    ] = False,
) -> None:
    """Tell people of anomalous sessions, through the receivers of the section alert, until SIGTERM or Ctrl-C."""
    if test and dry_run:
        raise typer.BadParameter("give either --test or --dry-run")
    with stopped_by_signals() as stopping:
        from worker.commands.alert import print_alerts, run_alerts, try_receivers

        settings = settings_of(config, overrides)
        if dry_run:
            print_alerts(settings, stopping, typer.echo)
        elif not test:
            run_alerts(settings, stopping)
        elif not try_receivers(settings, lambda line: typer.echo(printable(line))):
            raise typer.Exit(1)


@topics.command(epilog=examples("logmamba capture --config worker.yaml --since 2d --output records.jsonl.gz"))
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
    from worker.commands.capture import capture_records

    if records is not None and since is not None:
        raise typer.BadParameter("give either --records or --since")
    time_ms = since_of(since)
    settings = settings_of(config, overrides)
    with err.status("0 records") as status:
        shown = 0

        def advance(count: int) -> None:
            nonlocal shown
            shown += count
            status.update(f"{shown:,} records")

        done = capture_records(settings, output, records=records, since=time_ms, progress=advance)
    tell(f"{done:,} records written to {output}")


@topics.command(
    "replay-dead-letters",
    epilog=examples(
        "logmamba replay-dead-letters --config worker.yaml --dry-run",
        "logmamba replay-dead-letters --config worker.yaml --reason no_key --since 2d",
    ),
)
def replay(
    config: ConfigOption,
    overrides: SetOption = [],  # noqa: B006
    reasons: Annotated[
        list[str], typer.Option("--reason", help="Only those of this reason; may be repeated.", show_default=False)
    ] = [],  # noqa: B006
    since: Annotated[
        str | None, typer.Option(help="Only those written from then on: a time (ISO 8601), or so long ago (2d).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, with an example of each reason; send nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Send dead letters back to the topics that they came from, each once, after what was wrong has been mended."""
    with stopped_by_signals() as stopping:
        from worker.commands.replay_dead_letters import replay_dead_letters, told

        time_ms, settings = since_of(since), settings_of(config, overrides)
        with err.status("reading dead letters"):
            tally = replay_dead_letters(
                settings, reasons=reasons, since=time_ms, limit=limit, dry_run=dry_run, stopping=stopping
            )
    typer.echo(json.dumps(tally.to_json()) if as_json else told(tally, dry_run=dry_run))
