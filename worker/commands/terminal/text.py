"""What comes from a log on a terminal: its text is shown, never obeyed, and severities have their colours."""

from __future__ import annotations

from rich.text import Text

SEVERITY_STYLES = {"normal": "green", "warning": "yellow", "critical": "bold red"}

# Of one line on a terminal; a log line may have megabytes.
_MOST_CHARACTERS = 1_000


def printable(text: str) -> str:
    r"""The text with everything that is not a visible character written as an escape, such as \x1b or \u202e.

    Control characters could move the cursor or change colours and titles, and marks of writing direction could
    make a line read as another one.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def shown(text: str, style: str = "") -> Text:
    """One line without markup of at most a thousand characters, cut to the width of the column that it stands in."""
    cut = text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"
    return Text(printable(cut), style=style, no_wrap=True, overflow="ellipsis")
