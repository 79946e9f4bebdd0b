"""What the compiled loop finds is what RE2 finds."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from worker.formats.line_patterns import LinePattern
from worker.formats.one_pass import automaton_of
from worker.formats.patterns import with_one_group
from worker.formats.times.calendar import klog, syslog
from worker.formats.times.epochs import EpochTimes

COMMON = [
    r"blk_-?\d+",
    r"sshd\[(\d+)\]",
    r"^(\d{6} \d{6})",
    r'"request_id":"([^"]+)"',
    r"\btrace=([0-9a-f]{8,32})\b",
    r"^\S+ \S+ (\S+)",
    r"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4})",
    *(str(each.pattern) for each in (syslog(), klog(), EpochTimes())),
]
ATOMS = st.sampled_from(
    [
        *("a", "b", "_", "-", "1", " ", "é", ".", r"\d", r"\w", r"\W", r"\s", r"\D", r"\.", r"\n", r"\\"),
        *("[ab]", "[^a]", r"[^\d]", r"[\w-]", "[b-d1]", "[]a]", "[^]a]", "[a-]", "^", "$", r"\b", r"\B"),
    ]
)
TIMES = st.sampled_from(["", "", "", "?", "+", "*", "??", "+?", "{2}", "{1,2}", "{2,}", "{0}"])


def joined(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    some = st.lists(parts, max_size=3).map("".join)
    return st.one_of(
        st.tuples(some, some).map("|".join),
        some,
    )


@st.composite
def patterns(draw: st.DrawFn) -> str:
    parts = st.recursive(
        st.tuples(ATOMS, TIMES).map("".join),
        lambda inner: st.tuples(
            st.sampled_from(["({})", "(?:{})", "(?P<n>{})"]), joined(inner), st.sampled_from(["", "?", "+", "*"])
        ).map(lambda drawn: drawn[0].format(drawn[1]) + drawn[2]),
        max_leaves=5,
    )
    return draw(st.sampled_from(["^", "_", r"\d_", "a"])) + draw(st.lists(parts, max_size=4).map("".join))


TEXTS = st.lists(st.text("ab_-1 éc.\n\\]", max_size=12), min_size=1, max_size=6)


def by_re2(pattern: str, texts: Sequence[str]) -> list[str]:
    found: list[str] = pc.extract_regex(pa.array(texts, pa.string()), with_one_group(pattern)).field(0).to_pylist()
    return [each or "" for each in found]


def extracted(pattern: str, texts: Sequence[str]) -> list[str]:
    found: list[str] = LinePattern(pattern).extract(pa.array(texts, pa.string())).to_pylist()
    return found


@settings(max_examples=600)
@given(patterns(), TEXTS)
def test_the_loop_finds_what_re2_finds(pattern: str, texts: list[str]) -> None:
    assume(pattern.count("(?P<n>") < 2)
    try:
        expected = by_re2(pattern, texts)
    except pa.ArrowInvalid:
        assume(False)
    assert extracted(pattern, texts) == expected


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (r"^(\w+?)", "abc", "a"),
        (r"_(a??)", "_a", ""),
        (r"_(a??)b", "_ab", "a"),
        (r"^(?:(a)|b)*", "ab", "a"),
        (r"_(?:x(a)?)*", "_xax", "a"),
        (r"^(?:(ab)c)*", "abcab", "ab"),
        (r"_(\w+)\b", "-_a_1é", "a_1"),
        (r"^(|a)$", "a", "a"),
        (r"_([^b]{2})", "_éc", "éc"),
        (r"_(b)?", "a_", ""),
    ],
)
def test_the_best_match_is_the_one_that_the_pattern_prefers(pattern: str, text: str, found: str) -> None:
    assert automaton_of(pattern) is not None
    assert extracted(pattern, [text]) == by_re2(pattern, [text]) == [found]


@pytest.mark.parametrize("pattern", COMMON)
def test_the_common_patterns_are_those_of_the_loop_and_found_wherever_they_stand(pattern: str) -> None:
    assert automaton_of(pattern) is not None
    texts = [
        "081109 203615 148 INFO dfs.DataNode$PacketResponder: PacketResponder 1 for block blk_-38865 blk_2 terminating",
        "Dec 10 06:55:46 LabSZ sshd[24200]: Invalid user",
        "<13>May  1 06:55:46 LabSZ sshd[]: sshd[x] sshd[7]",
        'I0102 03:04:05.678901 1 x "request_id":"é\\" trace=0123456789abcdef,',
        "1712031512304.25 0af76519-16cd-43dd and trace=01234567x",
        "",
        "blk_",
        "x" * 31 + "blk_1",
        "é" * 40 + "blk_77é",
    ]
    assert extracted(pattern, texts) == by_re2(pattern, texts)
    assert extracted(pattern, texts[3:5]) == by_re2(pattern, texts[3:5])


@pytest.mark.parametrize(
    "pattern",
    [r"(a|ab)c", r"\[(.*?)\]x", r"(?i)id=(\d+)", r"\d+x", r"(?:a*)*", r"\p{L}_", r"[[:alpha:]]_", r"_(?:ab|ac)", ""],
)
def test_what_one_pass_cannot_match_is_left_to_re2(pattern: str) -> None:
    assert automaton_of(pattern) is None


def test_a_search_whose_attempts_overlap_gives_the_same() -> None:
    pattern, hostile = "a([ab]*)c", "a" * 5_000
    assert automaton_of(pattern) is not None
    texts = ["abac", hostile, hostile + "c", "ac"]
    assert extracted(pattern, texts) == by_re2(pattern, texts) == ["ba", "", "a" * 4_999, ""]


def test_a_slice_of_texts_is_searched_alone() -> None:
    texts = pa.array(["blk_1", "blk_2", "no", "blk_3"], pa.string()).slice(1, 2)
    assert LinePattern(r"blk_\d").extract(texts).to_pylist() == ["blk_2", ""]
    assert LinePattern(r"blk_\d").extract(texts.slice(2)).to_pylist() == []
