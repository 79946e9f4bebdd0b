"""`logmamba rollback`: an older version of the checkpoint scores again, and which versions there are."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import orjson
from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from detector.versions import Version


class ShownVersion(NamedTuple):
    """A version as it is shown.

    Attributes:
        version: its name.
        current: whether it is the one that scores.
        checkpoint: digest, as score records name it.
        at: when it was adapted, ISO 8601; None for a training, and what others wrote to the place.
        templates: how many it knows.
        usual, held_back: how many things became usual with it, and how many stayed alarms.
    """

    version: str
    current: bool
    checkpoint: str
    at: str | None
    templates: int
    usual: int
    held_back: int


def versions_of(place: Path) -> list[ShownVersion]:
    """The versions of a checkpoint, the oldest first.

    Raises:
        CheckpointError: it, or one of them, cannot be read.
    """
    from detector.checkpoint import load
    from detector.versions import Versions

    found = []
    for each in Versions(place).all():
        checkpoint = load(each.directory)
        at = checkpoint.manifest.history[-1] if checkpoint.manifest.history else None
        found.append(
            ShownVersion(
                each.name,
                each.current,
                checkpoint.digest,
                at.at if at else None,
                len(checkpoint.vocabulary.templates),
                len(at.usual) if at else 0,
                len(at.held_back) if at else 0,
            )
        )
    return found


def roll_back(place: Path, to: str | None) -> tuple[Version, Version]:
    """Let an older version score again; adaptations are held from then on.

    Args:
        place: of the checkpoint.
        to: name, number or digest of a version; None for the one before the one that scores.

    Returns:
        The version that scored, and the one that scores now.

    Raises:
        CheckpointError: there is no such version, or it cannot be read or written.
    """
    from detector.versions import Versions

    versions = Versions(place)
    with versions.changing():
        on = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return versions.back(to, f"{place} was rolled back on {on}")


def as_table(versions: Sequence[ShownVersion]) -> Table:
    """The versions for a terminal."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("version", "", "adapted at", "templates", "usual", "held back"):
        numeric = name in ("templates", "usual", "held back")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for each in versions:
        table.add_row(
            each.version,
            "now" if each.current else "",
            (each.at or "")[:16].replace("T", " "),
            f"{each.templates:,}",
            f"{each.usual:,}" if each.at else "",
            f"{each.held_back:,}" if each.at else "",
        )
    return table


def as_json(versions: Sequence[ShownVersion]) -> bytes:
    """One JSON object, schema `logmamba.versions/1`."""
    return orjson.dumps({"schema": "logmamba.versions/1", "versions": [each._asdict() for each in versions]})
