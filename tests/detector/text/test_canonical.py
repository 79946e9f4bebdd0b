"""The canonical form equals a plain per-line implementation, whatever the batch looks like."""

import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.text.canonical import CANONICAL_CHARACTERS, SHAPE_WORDS, Mask, canonicalise, chunks, shape

# Digits, their neighbours in ASCII, line breaks, and text of two, three and four bytes a character.
LINE = st.text(st.sampled_from("0123456789/:-_. aZ\n\t\x00é٣²한😀") | st.characters(codec="utf-8"), max_size=40)


def canonical(lines: list[str], masks: tuple[Mask, ...] = ()) -> list[str]:
    return canonicalise(pa.array(lines, pa.string()), masks).to_pylist()


@given(st.lists(LINE, max_size=12))
def test_equals_a_regular_expression_applied_line_by_line(lines: list[str]) -> None:
    assert canonical(lines) == [re.sub("[0-9]+", "0", line) for line in lines]


@given(st.lists(LINE, max_size=12), st.data())
def test_a_slice_of_an_array_gives_the_slice_of_its_canonical_lines(lines: list[str], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(lines)))
    length = data.draw(st.integers(0, len(lines) - start))
    part = pa.array(lines, pa.string()).slice(start, length)
    assert canonicalise(part).to_pylist() == canonical(lines)[start : start + length]


def test_a_run_of_digits_does_not_reach_over_from_the_line_before() -> None:
    assert canonical(["a1", "", "22", "", "", "3b", "44"]) == ["a0", "", "0", "", "", "0b", "0"]


def test_an_empty_array_and_arrays_of_empty_lines_stay_what_they_are() -> None:
    assert canonical([]) == []
    assert canonicalise(pa.array(["12"]).slice(1)).to_pylist() == []
    assert canonicalise(pa.array([None], pa.string()).slice(1)).to_pylist() == []
    assert canonical(["", ""]) == ["", ""]


def test_a_long_line_ends_at_a_whole_character() -> None:
    (text,) = canonical(["😀1" * CANONICAL_CHARACTERS])
    assert text == "😀0" * (CANONICAL_CHARACTERS // 2)


@given(st.lists(LINE, max_size=8))
def test_masks_apply_first_and_in_their_order(lines: list[str]) -> None:
    masks = (Mask(r"[0-9]+:[0-9]+", "time"), Mask(r"a|<", "x"))
    expected = [re.sub(r"[0-9]+:[0-9]+", "<time>", line) for line in lines]
    expected = [re.sub(r"a|<", "<x>", line) for line in expected]
    assert canonical(lines, masks) == [re.sub("[0-9]+", "0", line) for line in expected]


def test_a_mask_looks_at_the_beginning_of_a_line_only_so_that_a_hostile_line_costs_no_more() -> None:
    masks = (Mask("a[^b]*b|a", "x"), Mask("x", "long-name"))  # on a whole line, hours
    text = f"{'<<long-name>>' * CANONICAL_CHARACTERS}"[:CANONICAL_CHARACTERS]
    assert canonical(["a" * 5_000_000], masks) == [text]


@pytest.mark.parametrize(
    ("pattern", "name", "problem"),
    [
        ("(", "x", "mask x: .* is not an RE2 pattern"),
        (r"(a)\1", "x", "mask x: .* is not an RE2 pattern"),
        ("a", "", "mask name '' is not made of"),
        ("a", r"\1", "mask name .* is not made of"),
        ("a", "ä", "mask name .* is not made of"),
    ],
)
def test_a_mask_that_cannot_work_is_refused(pattern: str, name: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Mask(pattern, name)


@settings(max_examples=30)
@given(st.lists(st.text(max_size=8), max_size=40))
def test_chunks_are_the_array_in_order(lines: list[str]) -> None:
    array = pa.array(lines, pa.string())
    assert [line for chunk in chunks(array) for line in chunk.to_pylist()] == lines
    assert [line for chunk in chunks(array[3:]) for line in chunk.to_pylist()] == lines[3:]


def test_a_chunk_passes_a_mebibyte_only_with_its_last_line() -> None:
    parts = list(chunks(pa.array(["x" * 400_000] * 10 + ["y"] * 40_000)))
    assert sum(len(part) for part in parts) == 40_010
    for part in parts:
        assert 0 < len(part) <= 16_384
        assert sum(len(line) for line in part.to_pylist()[:-1]) < 2**20


def test_a_word_with_a_number_and_a_calendar_name_are_wildcards() -> None:
    line = "[Sun Dec 0 0:0:0 0] sshd[0]: rhost=0.0.0.0 user=root|0|Step done (x=0) Sunday"
    assert shape(line) == "<*> <*> <*> <*> <*> <*> rhost= <*> user= root| <*> Step done (x= <*> Sunday"


@given(LINE)
def test_the_shape_of_a_shape_is_itself(line: str) -> None:
    once = shape(canonical([line])[0])
    assert shape(once) == once


def test_words_past_the_limit_do_not_count() -> None:
    assert shape("a " * 10 * SHAPE_WORDS) == shape("a " * SHAPE_WORDS)
    assert shape("a=" * 10 * SHAPE_WORDS) == " ".join(["a="] * SHAPE_WORDS)
