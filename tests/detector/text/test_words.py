"""Which words a line has, and where they stand."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.text.words import SHAPE_WORDS, WILDCARD, layout, words

PIECE = st.sampled_from(
    [
        *(
            "0",
            "0.0",
            "-0",
            "0:0:0",
            "blk_0",
            "blk_-0",
            "a0=",
            "uid=",
            "E0",
            "INFO",
            "Mon",
            "Jan",
            "ms",
            "KB",
            "null",
            "a",
        ),
        *(
            "<num>",
            "<*>",
            "<ip>",
            "<x>",
            "(",
            ")",
            "=",
            ":",
            ", ",
            " - ",
            " + ",
            " ** ",
            " ",
            " ",
            " ",
            "->",
            "→",
            "読",
            "é",
            "\t",
        ),
    ]
)
LINE = st.lists(PIECE, max_size=12).map("".join) | st.text(max_size=20)


def collapsed(line: str) -> str:
    return re.sub("[0-9]+", "0", line)


@given(LINE)
def test_the_layout_has_the_words_and_their_places(line: str) -> None:
    line = collapsed(line)
    found = layout(line)
    assert found.words == words(line)
    ends = [0]
    for word, tokens in zip(found.words, found.tokens, strict=True):
        assert tokens
        for token in tokens:
            assert ends[-1] <= token.start < token.end
            ends.append(token.end)
        if word != WILDCARD and "0" not in word:
            assert found.text[tokens[0].start : tokens[0].end] == word


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Receiving block blk_-0 src: /0.0.0.0:0", "Receiving block blk_0 src <*>"),
        ("Jan 0 0:0:0 gate sshd[0]: rhost=0.0.0.0 user=root", "<*> gate sshd <*> rhost= <*> user= root"),
        ("E0 0:0:0.0   0 a.go:0] Sync done", "E0 <*> a.go <*> Sync done"),
        ("ERRO[0] code=0", "ERRO <*> code= <*>"),
        ("took 0 ms, 0 KB of 0KB sent", "took <*> of <*> sent"),
        ("0, 0 and (0 - 0)", "<*> and <*>"),
        ("delete blk_0 blk_-0 blk_0", "delete blk_0"),
        ("dfs.DataNode$DataXceiver: isn't up", "dfs.DataNode$DataXceiver isn't up"),
        ("系统启动 ok", "系 统 启 动 ok"),
        ("+ added, x == null", "+ added x == <*>"),
        ("----", "----"),
        ("fans 0 0 **** 0, in **bold**", "fans <*> **** <*> in bold"),  # stands where a number would
        ("May the force; 0 May", "May the force <*>"),
    ],
)
def test_words_are_cut_where_kinds_of_characters_meet_and_values_are_one_word(line: str, expected: str) -> None:
    assert " ".join(words(line)) == expected


def test_a_blank_line_has_no_words() -> None:
    assert words("") == words(" \t") == ()


def test_words_past_the_limit_do_not_count() -> None:
    assert words("a " * 10 * SHAPE_WORDS) == ("a",) * SHAPE_WORDS
    assert words("- " * 10 * SHAPE_WORDS) == ("-",) * SHAPE_WORDS


def test_long_words_cost_no_more_than_their_length() -> None:
    for word in ("a." * 50_000, "." * 100_000, "0:" * 50_000, "→" * 100_000 + "x", "0a" * 50_000, "a=" * 50_000):
        assert len(words(word)) <= SHAPE_WORDS
