"""What comes from a log on a terminal: its text is shown, never obeyed, and severities have their colours."""

from __future__ import annotations

from rich.text import Text

from worker.formats.printable import cut, printable

SEVERITY_STYLES = {"normal": "green", "warning": "yellow", "critical": "bold red"}

# Of one line on a terminal; a log line may have megabytes.
_MOST_CHARACTERS = 1_000


def shown(text: str, style: str = "") -> Text:
    """One line without markup of at most a thousand characters, cut to the width of the column that it stands in."""
    return Text(printable(cut(text, _MOST_CHARACTERS)), style=style, no_wrap=True, overflow="ellipsis")
