"""What a log holds is shown on a terminal, never obeyed."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from worker.commands.terminal.text import shown
from worker.formats.printable import printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, Grüße, 日本", "plain, Grüße, 日本"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\tb\r\nc", r"a\tb\r\nc"),
        ("user\u202etxt.exe", r"user\u202etxt.exe"),
        ("\x9b2J\u2028\U000e0041", r"\x9b2J\u2028\U000e0041"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_is_no_visible_character_is_written_as_an_escape(text: str, expected: str) -> None:
    assert printable(text) == expected


@given(st.text(st.characters()))
def test_any_text_becomes_one_line_that_a_terminal_only_shows(text: str) -> None:
    assert printable(text).isprintable()


def test_markup_in_a_text_is_text() -> None:
    out = io.StringIO()
    Console(file=out, width=80, force_terminal=True, color_system="truecolor").print(shown("[red]x[/red] [link=y]z"))
    assert out.getvalue() == "[red]x[/red] [link=y]z\n"


def test_a_long_text_is_cut_before_anything_is_done_with_it() -> None:
    text = shown("x" * 10_000_000)
    assert (len(text), text.plain[-1]) == (1_000, "…")
