"""Commands on a checkpoint: `logmamba adapt` and `rollback`, and the groups `logmamba verdicts` and `vocabulary`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from worker.console import err, examples, out, reading, tell
from worker.options import (
    CheckpointOption,
    InputOption,
    OptionalCheckpoint,
    OptionalConfig,
    SetOption,
    settings_of,
    since_of,
)

checkpoints = typer.Typer()
verdicts = typer.Typer(
    help="What stands out in logs without labels, and what you say of it.",
    epilog=examples("logmamba verdicts list --checkpoint checkpoints/app"),
    no_args_is_help=True,
)
vocabulary = typer.Typer(
    help="The templates of a checkpoint or of logs.",
    epilog=examples("logmamba vocabulary show checkpoints/app"),
    no_args_is_help=True,
)

VocabularyArgument = Annotated[
    Path, typer.Argument(help="Directory of a trained model, or a vocabulary.json.", show_default=False)
]


@checkpoints.command(
    epilog=examples(
        "logmamba adapt --config worker.yaml --since 1d",
        "logmamba adapt --config worker.yaml --input monday.log.gz --dry-run",
    )
)
def adapt(
    config: OptionalConfig = None,
    overrides: SetOption = [],  # noqa: B006
    checkpoint: OptionalCheckpoint = None,
    since: Annotated[
        str | None,
        typer.Option(help="Learn from the input topics from then on: a time (ISO 8601), or so long ago (1d)."),
    ] = None,
    records: Annotated[
        int, typer.Option(min=1, help="With --since: of these the newest so many, of all partitions alike.")
    ] = 2_000_000,
    inputs: Annotated[
        list[Path], typer.Option("--input", help="In place of --since: files, as for train.", show_default=False)
    ] = [],  # noqa: B006
    older: Annotated[
        list[Path],
        typer.Option("--older", help="Files of before, for a checkpoint that keeps no sample.", show_default=False),
    ] = [],  # noqa: B006
    feedback: Annotated[
        Path | None,
        typer.Option(
            "--feedback",
            help="Verdicts that feedback --list --json printed; those of feedback.topic when not given.",
            show_default=False,
        ),
    ] = None,
    days: Annotated[
        int, typer.Option(min=1, max=30, help="On so many days something is usual before it is no alarm any more.")
    ] = 3,
    planned: Annotated[
        bool,
        typer.Option("--planned", help="You know of the change, such as a rollout: what is usual now is so at once."),
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Most optimiser steps.", show_default="as there is to learn")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after a rollback.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come of it; change nothing.")] = False,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Exit with 0 in place of 3, for schedules to which 3 is a failure.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what came of it as one JSON object, too.")] = False,
) -> None:
    """Learn from recent traffic, without labels; the new checkpoint scores only where it is no worse.

    Exit code 0: it is in its place, and workers take it; 3: it is not, and the last line says why.
    """
    from worker.commands.adapt import NotAdapted, Traffic, adapt_checkpoint

    if bool(inputs) == (since is not None):
        raise typer.BadParameter("give either --input or --since")
    settings = settings_of(config, overrides, checkpoint)
    traffic = Traffic(inputs, since_of(since), records)
    from detector.training.renewal import RenewalOptions

    options = RenewalOptions(
        days=days,
        planned=planned,
        steps=steps,
        device=settings.model.device,
        precision=settings.model.precision,
        kernels=settings.model.kernels,
    )
    try:
        done = adapt_checkpoint(
            settings,
            traffic,
            older=older,
            feedback=feedback,
            options=options,
            resume=resume,
            dry_run=dry_run,
            console=err,
        )
    except NotAdapted as reason:
        tell(f"logmamba: {reason}")
        if as_json:
            typer.echo(reason.to_json().decode())
        raise typer.Exit(0 if exit_zero else 3) from None
    tell(done.told())
    if as_json:
        typer.echo(done.to_json().decode())


@checkpoints.command(
    epilog=examples("logmamba rollback --config worker.yaml --list", "logmamba rollback --config worker.yaml --to 3")
)
def rollback(
    config: OptionalConfig = None,
    overrides: SetOption = [],  # noqa: B006
    checkpoint: OptionalCheckpoint = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="Name or number of a version, or a digest that score records name; the one before when not given.",
            show_default=False,
        ),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Only show the versions.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --list: one JSON object.")] = False,
) -> None:
    """Let an older version of the checkpoint score again; nothing adapts then until `adapt --resume`."""
    from worker.commands import rollback as command
    from worker.processing.scorer import checkpoint_place

    place = checkpoint_place(settings_of(config, overrides, checkpoint))
    if listing:
        found = command.versions_of(place)
        if as_json:
            typer.echo(command.as_json(found).decode())
        else:
            out.print(command.as_table(found))
        return
    was, now = command.roll_back(place, to)
    tell(f"{now.name} scores again in place of {was.name}; workers take it within seconds")
    tell("nothing is adapted until `logmamba adapt --resume`")


@verdicts.command("list", epilog=examples("logmamba verdicts list --checkpoint checkpoints/app --json"))
def verdicts_list(
    checkpoint: CheckpointOption,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Show the families, the largest first, with an example each."""
    from worker.commands import verdicts as command

    found = command.families_of(checkpoint)
    if as_json:
        typer.echo(command.as_json(found).decode())
    else:
        out.print(command.as_table(found))


@verdicts.command("learn", epilog=examples("logmamba verdicts learn --checkpoint checkpoints/app --answers a.csv"))
def verdicts_learn(
    checkpoint: CheckpointOption,
    answers: Annotated[
        Path | None,
        typer.Option("--answers", help="CSV (family,verdict) or JSON lines; asked for when not given."),
    ] = None,
) -> None:
    """Take answers on families and make them part of the checkpoint: normal, anomalous, or none to take one back."""
    from worker.commands import verdicts as command

    def ask_for(prompt: str) -> str:
        return err.input(prompt, markup=False)  # its brackets are no styles

    given = command.read_answers(answers) if answers is not None else command.ask(checkpoint, err, ask_for)
    digest = command.learn(checkpoint, given) if given else command.families_of(checkpoint).digest
    tell(f"{len(given):,} {'verdict' if len(given) == 1 else 'verdicts'} learnt; checkpoint {digest} in {checkpoint}")


@vocabulary.command("show", epilog=examples("logmamba vocabulary show checkpoints/app --json"))
def show_vocabulary(
    path: VocabularyArgument,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a template instead of a table.")] = False,
) -> None:
    """Show the templates: their ids, how many lines had them, and which of their words are decisive and why.

    With --json also the first line that had each, and which lines were the first and the last.
    """
    from worker.commands.vocabulary import as_json as to_json
    from worker.commands.vocabulary import read_vocabulary, templates_of

    templates = list(templates_of(read_vocabulary(path)))
    if as_json:
        for each in templates:
            typer.echo(to_json(each))
        return
    table = Table("id", "lines", Column("template", overflow="fold"), "decisive")
    for each in templates:
        lines = "" if each.lines is None else f"{each.lines:,}"
        why = ", ".join(f"{word} ({reason})" for word, reason in each.decisive.items())
        table.add_row(str(each.id), lines, Text(each.text), Text(why))
    out.print(table)


@vocabulary.command("diff", epilog=examples("logmamba vocabulary diff checkpoints/old checkpoints/new"))
def diff_vocabularies(
    older: VocabularyArgument,
    newer: VocabularyArgument,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show what differs between two vocabularies; exit code 0 either way."""
    from worker.commands.vocabulary import as_json as to_json
    from worker.commands.vocabulary import difference, read_vocabulary

    found = difference(read_vocabulary(older), read_vocabulary(newer))
    if as_json:
        typer.echo(to_json(found))
        return
    for sign, each in [*(("-", each) for each in found.removed), *(("+", each) for each in found.added)]:
        out.print(Text(f"{sign} {each.id}: {each.text}"), soft_wrap=True)
    for text, was, now in found.renumbered:
        out.print(Text(f"= {was}, now {now}: {text}"), soft_wrap=True)
    if found.masks_differ:
        out.print("their masks differ: equal templates may stand for other lines")
    out.print(
        "the newer one only adds templates"
        if found.only_adds
        else "tokens of the older one mean something else in the newer one"
    )


@vocabulary.command(
    "learn", epilog=examples("logmamba vocabulary learn --config worker.yaml --input later.log.gz --output later.json")
)
def learn_vocabulary(
    inputs: InputOption,
    output: Annotated[Path, typer.Option("--output", help="The vocabulary.json to write.", show_default=False)],
    config: OptionalConfig = None,
    overrides: SetOption = [],  # noqa: B006
) -> None:
    """Learn the templates of log files, as a training does, and write them to a file."""
    from worker.commands.vocabulary import learn

    with reading(inputs) as advance:
        learned = learn(settings_of(config, overrides), inputs, output, advance, tell)
    tell(f"{len(learned.templates):,} templates in {output}")


@vocabulary.command(
    "merge", epilog=examples("logmamba vocabulary merge checkpoints/app later.json --output checkpoints/app")
)
def merge_vocabularies(
    older: VocabularyArgument,
    newer: VocabularyArgument,
    output: Annotated[
        Path, typer.Option("--output", help="What to write: of the kind of the older one.", show_default=False)
    ],
) -> None:
    """Add the templates of the newer vocabulary that the older one has none for, and change nothing else of that.

    A checkpoint with templates added shows them in its scores by their texts, and scores their lines by their words.
    """
    from worker.commands.vocabulary import merge

    merged, added = merge(older, newer, output)
    tell(f"{added:,} templates added to {len(merged.templates) - added:,}, in {output}")
