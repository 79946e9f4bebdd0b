"""Options that commands share, and the settings that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from worker.kafka.clients import rejection
from worker.settings.document import Settings, load_settings

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
OptionalCheckpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", help="A trained model's directory, in place of model.checkpoint.", show_default=False),
]


def settings_of(config: Path | None, overrides: list[str], checkpoint: Path | None = None) -> Settings:
    """The settings of a file, or the defaults, under single ones and a checkpoint that the command names.

    Raises:
        SettingsError: listing everything that is wrong.
    """
    settings = load_settings(config, overrides, rejection=rejection)
    if checkpoint is None:
        return settings
    return settings.model_copy(update={"model": settings.model.model_copy(update={"checkpoint": checkpoint})})


def since_of(text: str | None) -> int | None:
    """The time that `--since` names, in ms; None where it is not given.

    Raises:
        BadParameter: it is no time.
    """
    from worker.commands.capture import since_ms

    try:
        return None if text is None else since_ms(text)
    except ValueError as error:
        raise typer.BadParameter(f"--since: {error}") from None
