"""Patterns are what RE2 says they are, and the text is their first group."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.formats.line_patterns import LinePattern
from worker.formats.patterns import check_pattern, matches


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "(?=a)", "[a", "a**", "(?P<a>x"])
def test_a_pattern_that_re2_cannot_run_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"^is not a pattern that RE2 can run \(.+\); allowed: RE2 syntax"):
        LinePattern(pattern)


PIECE = st.sampled_from(
    ["a", "b?", "|", "(a)", "(?:b)", "[()]", r"\(", r"[\]()]+", "(?P<n>b)", "(?i:A)", "[]()]", "[^]a]", r"\\(b)"]
)


@given(
    st.lists(PIECE, min_size=1, max_size=6),
    st.text("abAB()[]\\", max_size=8),
    st.sampled_from(["{}", "({})", "(x|{})"]),
)
def test_the_key_is_the_first_group_or_the_whole_match(pieces: list[str], line: str, form: str) -> None:
    pattern = form.format("".join(pieces))
    if pattern.count("(?P<n>") > 1:
        return  # no engine takes one name twice
    match = re.search(pattern, line)
    expected = "" if match is None else (match.group(1) if match.re.groups else match.group())
    assert LinePattern(pattern).extract(pa.array([line])).to_pylist() == [expected or ""]


@pytest.mark.parametrize(
    ("pattern", "line", "key"),
    [
        (r"\Q(\E(a)", "(a", "a"),
        (r"\Qa(b)", "a(b)", "a(b)"),
        ("[[:alpha:](]+=(.)", "x(=y", "y"),
        ("[[:^alpha:]()]+(.)", "1(z", "z"),
        (r"(?i)BLK_(\d)(\d)", "blk_12", "1"),
        ("(?<name>a)(b)", "ab", "a"),
        ("a|(b)", "a", ""),
    ],
)
def test_groups_are_told_from_text_in_quotes_and_classes(pattern: str, line: str, key: str) -> None:
    assert LinePattern(pattern).extract(pa.array([line])).to_pylist() == [key]


def test_a_hostile_line_takes_linear_time() -> None:
    assert LinePattern("(a*)*b|(a|a)*c").extract(pa.array(["a" * 60_000])).to_pylist() == [""]


@pytest.mark.parametrize("pattern", ["", None, 5, ["a"]])
def test_what_is_no_text_is_no_pattern(pattern: object) -> None:
    with pytest.raises(ValueError, match=r"^is not a pattern; allowed: a regular expression in RE2 syntax$"):
        check_pattern(pattern)


def test_a_pattern_matches_anywhere_in_a_text() -> None:
    assert matches("b+", "abbc")
    assert not matches("^b", "abbc")
