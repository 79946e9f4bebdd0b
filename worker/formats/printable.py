"""Text from logs as people may see it: nothing in it acts on what shows it."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""The text with everything that is not a visible character written as an escape, such as \x1b or \u202e.

    Control characters could move the cursor or change colours and titles, and marks of writing direction could
    make a line read as another one.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def cut(text: str, most: int) -> str:
    """The text, or its beginning where it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
