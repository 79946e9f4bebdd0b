"""JSON that orjson refuses is read where that can be done, and the rest is refused with orjson's reason."""

import math
from contextlib import suppress

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.formats.json_texts import bare_texts, compact_json, json_lines, parse_json, schema_number

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def first_read(value: bytes) -> object:
    """The document of the first of the texts that a value may hold that is one."""
    for text in bare_texts(value):
        with suppress(ValueError):
            return parse_json(text)
    return None


@given(JSON)
@example([{"[": None}])  # behind two zero bytes, its fifth byte is taken for a text's beginning first
def test_what_orjson_reads_is_read_the_same_with_anything_around_it(document: object) -> None:
    text = orjson.dumps(document)
    assert parse_json(text) == document
    if isinstance(document, list | dict):
        for around in (b"%b", b"\xef\xbb\xbf%b", b"\0\0%b\0", b"\0\0\0\1\7%b", b" \r\n%b\r\n"):
            assert first_read(around % text) == document
    assert orjson.loads(compact_json(document)) == document


def test_numbers_that_are_none_and_halves_of_pairs_are_read() -> None:
    found = parse_json(b'{"a": [NaN, -Infinity], "b\\ud800": "\\udc00x\\ud83d\\ude00"}')
    assert isinstance(found, dict)
    assert math.isnan(found["a"][0])
    assert (found["a"][1], found["b\ufffd"]) == (-math.inf, "\ufffdx\U0001f600")


@pytest.mark.parametrize("text", [b"{NaN", b"[" * 100_000 + b"NaN", b"nan", b"", b'{"a": Infinit}'])
def test_the_rest_is_refused_with_the_reason(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"line 1 column|unexpected"):
        parse_json(text)


def test_names_are_sorted_at_every_level_and_large_numbers_are_kept() -> None:
    assert compact_json({"b": {"d": 1, "c": 2**70}, "a": "é"}) == '{"a":"é","b":{"c":1180591620717411303424,"d":1}}'


def test_lines_are_documents_only_where_the_first_one_is() -> None:
    assert json_lines(b'{"a":1}\n\n{"b"\n') == [(1, b'{"a":1}'), (3, b'{"b"')]
    assert json_lines(b'{"a":\n1}') is None
    assert json_lines(b"12\n13") is None
    assert json_lines(b'{"a":1}') is None


def test_only_what_holds_no_json_is_taken_for_avro() -> None:
    assert schema_number(b"\0\0\0\1\2\x0eabc") == 258
    assert schema_number(b'\0\0\0\1\2{"a"') is None
    assert schema_number(b'\0\0{"a": broken') is None
