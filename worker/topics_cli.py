"""Commands on the topics of an application: `tail`, `alert`, `feedback`, `capture`, `replay-dead-letters`, `drift`."""

from __future__ import annotations

import json
from dataclasses import asdict
from getpass import getuser
from pathlib import Path
from typing import Annotated, Literal

import typer

from worker.console import err, examples, out, reading, tell
from worker.formats.printable import printable
from worker.options import ConfigOption, OptionalCheckpoint, OptionalConfig, SetOption, settings_of, since_of
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


@topics.command(
    epilog=examples(
        "logmamba feedback --config worker.yaml --session KEY --verdict normal --note 'nightly backup'",
        "logmamba feedback --config worker.yaml --answers answers.csv",
        "logmamba feedback --config worker.yaml --list",
    )
)
def feedback(
    config: ConfigOption,
    overrides: SetOption = [],  # noqa: B006
    sessions: Annotated[
        list[str], typer.Option("--session", help="Key of a session; may be repeated.", show_default=False)
    ] = [],  # noqa: B006
    ids: Annotated[
        list[str], typer.Option("--id", help="Likewise, the id of a score record of it.", show_default=False)
    ] = [],  # noqa: B006
    answers: Annotated[
        Path | None,
        typer.Option(
            "--answers", help="CSV (session or id, verdict, note), JSON lines or score records.", show_default=False
        ),
    ] = None,
    verdict: Annotated[
        Literal["normal", "anomalous"] | None,
        typer.Option("--verdict", help="On what is named, where the file has no other.", show_default=False),
    ] = None,
    note: Annotated[
        str | None, typer.Option("--note", help="Why, for those who list verdicts.", show_default=False)
    ] = None,
    by: Annotated[
        str | None, typer.Option("--by", help="Who says so. [default: the name of the user]", show_default=False)
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Show the verdicts that hold.")] = False,
    forget: Annotated[
        list[str], typer.Option("--forget", help="Take a verdict back, by its name in the list.", show_default=False)
    ] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="With --list: a JSON object a line.")] = False,
) -> None:
    """Say of sessions that they are normal or anomalous: their pattern is muted, or critical, within seconds."""
    from worker.commands import feedback as command

    asked = [bool(sessions or ids or answers), list_all, bool(forget)]
    if sum(asked) != 1:
        raise typer.BadParameter("give sessions (--session, --id, --answers), or --list, or --forget")
    settings = settings_of(config, overrides)
    if list_all:
        found = command.verdicts_of(settings)
        if as_json:
            for line in command.as_json(found):
                typer.echo(line)
        else:
            for line in command.as_lines(found):
                out.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    if forget:
        tell(f"{command.forget(settings, forget):,} taken back")
        return
    if verdict is None and (sessions or ids):
        raise typer.BadParameter("--session and --id need --verdict")
    given = [] if answers is None else command.read_answers(answers, verdict)
    given += [command.Answer("session", each, verdict, note) for each in sessions]
    given += [command.Answer("id", each, verdict, note) for each in ids]
    done = command.give(settings, given, by or getuser(), tell)
    tell(f"{done.given:,} {'pattern' if done.given == 1 else 'patterns'} judged, {done.taken_back:,} taken back")


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


@topics.command(
    epilog=examples(
        "logmamba drift --config worker.yaml --input app.log.gz",
        "logmamba drift --config worker.yaml --since 1d --json",
    )
)
def drift(
    config: OptionalConfig = None,
    overrides: SetOption = [],  # noqa: B006
    checkpoint: OptionalCheckpoint = None,
    inputs: Annotated[
        list[Path],
        typer.Option("--input", help="In place of the input topics: files, as of score.", show_default=False),
    ] = [],  # noqa: B006
    records: Annotated[int | None, typer.Option(min=1, help="Of topics, only the newest so many.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Of topics, only from then on: a time (ISO 8601), or so long ago (2d).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Say how far logs have drifted from those that the checkpoint was trained on: ok, watch or retrain."""
    if inputs and (records is not None or since is not None):
        raise typer.BadParameter("--records and --since are for topics; --input names files")
    if not inputs and config is None:
        raise typer.BadParameter("give --input (files) or --config (its input topics)")
    from worker.commands.drift import drift_of_files, drift_of_topics, show
    from worker.processing.scorer import load_scorer

    time_ms, settings = since_of(since), settings_of(config, overrides, checkpoint)
    scorer = load_scorer(settings)
    if inputs:
        with reading(inputs) as advance:
            found = drift_of_files(settings, scorer, inputs, advance, tell)
    else:
        with err.status("reading the input topics"):
            found = drift_of_topics(settings, scorer, records=records, since=time_ms, tell=tell)
    if as_json:
        typer.echo(json.dumps({"topics": [asdict(each) for each in found]}))
    else:
        show(found, out)
