"""How the lines of a training were read and its sessions formed: a checkpoint's scores hold for such sessions only."""

from dataclasses import dataclass

from pydantic import JsonValue


@dataclass(frozen=True)
class ReadingRecord:
    """What a checkpoint remembers of how its sessions came about.

    Attributes:
        settings: what decided it, by its path in the settings (`sessions.gap`), as a settings file writes it.
        times: whether the events had times; without them no pause and no age ended a session.
    """

    settings: dict[str, JsonValue]
    times: bool
