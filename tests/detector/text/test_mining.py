"""Learning a vocabulary: what it remembers of lines, and what it does with lines made to hurt it."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.text import mining
from detector.text.mining import learn_vocabulary
from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import N_SPECIAL, UNK, Seen
from tests.detector.text.test_words import LINE


def strings(lines: list[str]) -> pa.Array:
    return pa.array(lines, pa.string())


def letters(number: int) -> str:
    """A word of its own for each number."""
    return "q" + "".join(chr(ord("k") + int(digit)) for digit in str(number))


@given(st.lists(LINE | st.text(max_size=30), max_size=40))
@settings(max_examples=60)
def test_each_line_that_is_not_blank_has_a_template_that_counts_it(lines: list[str]) -> None:
    vocabulary = learn_vocabulary([strings(lines)])
    tokens = Tokenizer(vocabulary).encode(strings(lines)).tolist()
    for number, seen in enumerate(vocabulary.seen):
        assert seen.lines == tokens.count(N_SPECIAL + number)
        assert tokens.index(N_SPECIAL + number) == seen.first
        assert seen.example == lines[seen.first][:500]
    assert sum(seen.lines for seen in vocabulary.seen) == sum(token > UNK for token in tokens)


def test_it_is_told_what_templates_were_learned_from() -> None:
    lines = ["door 7 opened", "lamp lit", "door 9 opened", "lamp lit", "door 1 opened"]
    vocabulary = learn_vocabulary([strings(lines[:2]), strings(lines[2:])])
    assert vocabulary.templates == ("door <num> opened", "lamp lit")
    assert vocabulary.seen == (Seen(3, 0, 4, "door 7 opened"), Seen(2, 1, 3, "lamp lit"))


def test_nearly_the_same_templates_come_of_any_order_of_lines() -> None:
    r = random.Random(2)
    lines = [f"10:00:{n % 60:02} INFO unit {letters(n)} moved {letters(n * 7)} to bay {n % 9}" for n in range(500)]
    lines += [f"10:00:{n % 60:02} WARN hatch {letters(n % 40)} left ajar" for n in range(200)]
    one = learn_vocabulary([strings(lines)])
    r.shuffle(lines)
    assert set(learn_vocabulary([strings(lines)]).templates) == set(one.templates)


def test_blocks_of_texts_are_learned_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "BLOCK_TEXTS", 50)
    monkeypatch.setattr(mining, "_WINDOW_LINES", 40)
    lines = [
        line
        for n in range(400)
        for line in (f"basket of {letters(n)} paid", f"{n % 50} answered {(200, 404)[n % 2]} at once", "all quiet")
    ]
    vocabulary = learn_vocabulary([strings(lines)])
    assert [
        (text, seen.lines, seen.last) for text, seen in zip(vocabulary.templates, vocabulary.seen, strict=True)
    ] == [
        ("basket of <*> paid", 400, 1197),
        ("<num> answered 200 at once", 200, 1195),
        ("<num> answered 404 at once", 200, 1198),
        ("all quiet", 400, 1199),
    ]
    assert Tokenizer(vocabulary).encode(strings(lines)).min() >= N_SPECIAL


def test_a_place_where_one_line_of_many_has_no_code_holds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "_WINDOW_LINES", 40)
    lines = [f"waited {n} turns for the till" for n in [*(200, 404) * 60, 7]]
    assert learn_vocabulary([strings(lines)]).templates == ("waited <num> turns for the till",)
    assert len(learn_vocabulary([strings(lines[:-1])]).templates) == 2


def test_very_many_words_in_one_place_are_one_template() -> None:
    lines = [f"basket of {letters(n)} paid" for n in range(30_000)]
    vocabulary = learn_vocabulary([strings(lines)])
    assert vocabulary.templates == ("basket of <*> paid",)


def test_lines_that_have_nothing_in_common_leave_no_more_templates_than_allowed_and_are_counted_as_unknown() -> None:
    lines = [f"{letters(n)} {letters(n * 3)} {letters(n * 7)}" for n in range(3_000)] + ["all quiet"] * 5
    vocabulary = learn_vocabulary([strings(lines)], max_templates=100)
    assert len(vocabulary.templates) == 100
    tokenizer = Tokenizer(vocabulary)
    tokenizer.encode(strings(lines))
    assert tokenizer.unknown_lines == 3_005 - 99 - 5
    with pytest.raises(ValueError, match="max_templates is at least 1, not 0"):
        learn_vocabulary([], max_templates=0)


def test_a_vocabulary_of_no_lines_knows_none() -> None:
    vocabulary = learn_vocabulary([strings(["", "  "])])
    assert vocabulary.templates == ()
    tokenizer = Tokenizer(vocabulary)
    assert tokenizer.encode(strings(["all quiet", ""])).tolist() == [UNK, UNK]
    assert tokenizer.unknown_lines == 2


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("x" * 10_000_000, id="one word"),
        pytest.param("word " * 50_000, id="words"),
        pytest.param("1 a " * 50_000, id="values"),
        pytest.param("k=1," * 50_000, id="keys"),
        pytest.param("/a" * 500_000, id="path"),
        pytest.param("a.com " * 50_000, id="hosts"),
        pytest.param("a@b." * 100_000, id="addresses"),
        pytest.param("[" * 1_000_000, id="brackets"),
        pytest.param("".join(map(chr, range(1, 0xD800))), id="all characters"),
        pytest.param("\x1b[31m" * 100_000, id="escapes"),
    ],
)
def test_a_line_made_to_hurt_is_a_line_like_others(line: str) -> None:
    lines = strings([line, "all quiet", line[::-1]])
    vocabulary = learn_vocabulary([lines])
    tokenizer = Tokenizer(vocabulary)
    tokens = tokenizer.encode(lines).tolist()
    assert tokens[1] >= N_SPECIAL
    assert tokenizer.encode(lines).tolist() == tokens
    assert all(len(text) < 20_000 for text in vocabulary.templates)
