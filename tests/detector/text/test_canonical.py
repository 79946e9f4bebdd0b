"""The canonical form equals a plain per-line implementation, whatever the batch looks like."""

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.text.canonical import (
    CANONICAL_CHARACTERS,
    Mask,
    canonicalise,
    chunks,
    collapse,
    digit_runs,
    fold,
)

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


@pytest.mark.parametrize("before", [0, 1, 254, 255, 256, 257, 511, 512])
def test_a_run_of_digits_is_one_wherever_it_lies_in_a_long_line(before: int) -> None:
    lines = ["x" * before + "7" * digits + end for digits in (1, 2, 3, 256, 257, 600) for end in ("", "y")]
    assert canonical(lines) == ["x" * before + "0", "x" * before + "0y"] * 6


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


@given(st.lists(LINE, max_size=12))
def test_numbers_of_a_line_are_those_of_a_regular_expression(lines: list[str]) -> None:
    starts, values = digit_runs(pa.array(["7", *lines], pa.string()).slice(1))
    runs = [re.findall("[0-9]+", line) for line in lines]
    assert np.diff(starts).tolist() == [len(each) for each in runs]
    assert values.tolist() == [int(run) if len(run) == 3 else -1 for each in runs for run in each]


# What the patterns of the fold look for, in any order and next to each other.
PIECE = st.sampled_from(
    [
        *(
            "12",
            "7",
            "0",
            "a",
            "be",
            "x",
            "Zed",
            "-",
            "_",
            ".",
            ":",
            "/",
            "\\",
            "@",
            "~",
            "[",
            "]",
            '"',
            " ",
            " ",
            "=",
            "{",
        ),
        *("com", "org", "://", "http", "C:", "Jan", "Jan 15 10:00:01 gate ", "[15/Jan/2024:10:00:00 +0000] ", "<err>"),
        *(
            "a1f3",
            "DE4B",
            "0x1f",
            "10.0.0.1",
            "aa:1b:2c:3d:4e:5f",
            "::",
            "fe80::",
            "1b2c-3d-4e-5f-6a",
            '" 200 12 "-" "M"',
            "é",
            "한",
        ),
    ]
)


@given(st.lists(st.lists(PIECE, max_size=14).map("".join), max_size=4))
def test_lines_whose_digits_collapse_alike_fold_alike(lines: list[str]) -> None:
    whole = pa.array(lines, pa.string())
    assert collapse(fold(whole)).to_pylist() == collapse(fold(collapse(whole))).to_pylist()


@pytest.mark.parametrize(
    ("line", "folded"),
    [
        ("Jan  5 10:00:00 gate sshd[7]: up", "Jan  5 10:00:00 <host> sshd[7]: up"),
        ("<err>Jan 15 10:00:00 gate sshd: up", "<err>Jan 15 10:00:00 <host> sshd: up"),
        ("GET https://a.b/c?d=1, then", "GET <url>, then"),
        ("GET /a/b?c=d&e=/f HTTP/1.1, /2024/x /10.1.2.3:80", "GET <path> HTTP/1.1, <path> /<ip>:80"),
        ("GET /a/b?next=https%3A%2F%2Fc.d%2Fe&from=10.1.2.3&page=7 HTTP/1.1", "GET <path> HTTP/1.1"),
        ("read /srv/a, b/c/d.txt and C:\\x\\y and read/write", "read <path>, <path> and <path> and read/write"),
        ("bob@mail.example.com in from 10.1.2.3:99", "<email> in from <ip>:99"),
        ("www.cse.cuhk.edu.hk and org.apache.hadoop.Main", "<host> and org.apache.hadoop.Main"),
        (
            "from 2001:db8:0:c6b3:1ff:fecd:467f:9 port 22, fe80::c6b3:fecd%eth0 [::1]:80: ::1 fe80::2: lost",
            "from <ip> port 22, <ip>%eth0 [<ip>]:80: <ip> <ip>: lost",
        ),
        (
            "::ffff:10.1.2.3 at 00:1b:44:11:3a:b7 in ace::Bed::run(), face1::create, std::ace",
            "<ip> at <mac> in ace::Bed::run(), face1::create, std::ace",
        ),
        (
            "at=0:0:0:0:0:0:0:1:2181, 2001:db8:: and 9::add, not :: or [::]:80",
            "at=<ip>:2181, <ip> and <ip>, not :: or [::]:80",
        ),
        ("id 0f8fad5b-d9cb-469f-a165-70867728950e, 9f4ef63", "id <uuid>, <hex>"),
        (
            '10.0.0.1 - anna [15/Jan/2024:10:00:00 +0000] "GET /a HTTP/1.1" 200 12 "-" "Mozilla/5.0"',
            '<host> - <text> [15/Jan/2024:10:00:00 +0000] "GET <path> HTTP/1.1" 200 12 "<text>" "<text>"',
        ),
    ],
)
def test_values_that_hold_letters_are_one_mark_each(line: str, folded: str) -> None:
    assert fold(pa.array([line])).to_pylist() == [folded]


def test_colours_and_other_escape_sequences_are_dropped() -> None:
    lines = ["\x1b[90m10:00:01\x1b[0m \x1b[31mERROR\x1b[0m down", "\x1b]0;title\x07up", "no \x1b alone"]
    assert canonical(lines) == ["0:0:0 ERROR down", "up", "no \x1b alone"]


def test_the_severity_of_a_syslog_priority_stays() -> None:
    lines = ["<134>Jan 15", "<131>Jan 15", "<0>x", "<191>x", "<192>x", "x <131>", "<13", "<a>"]
    assert canonical(lines) == ["<info>Jan 0", "<err>Jan 0", "<emerg>x", "<debug>x", "<0>x", "x <0>", "<0", "<a>"]
