"""What a walk over bytes finds in documents is what a parser of whole documents finds, and odd ones are left to it."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from worker.formats.json_places import JsonPlaces
from worker.formats.pointers import MISSING, JsonPointer

POINTERS = ["/a", "/b/a", "/b/é", "/b/c/a", "/x~1y", "/", "/stringValue/a"]
NAMES = ["a", "b", "c", "é", "x/y", "", "stringValue", "values", "key", 'q"', "0"]


def check(values: list[bytes | None]) -> list[bool]:
    """Compare what is found with what is resolved in a whole document; which of them were read."""
    found = JsonPlaces(POINTERS).find(values)
    columns = [(JsonPointer(pointer), found.at(pointer)) for pointer in POINTERS]
    for row in range(len(values)):
        if not found.plain[row]:
            assert not any(column.there[row] or column.texts[row].as_py() for _, column in columns)
            continue
        document = orjson.loads(values[row] or b"")
        for pointer, column in columns:
            expected = pointer.resolve(document)
            assert column.there[row] == (expected is not MISSING)
            assert column.whole[row] == (type(expected) is int)
            assert type(expected) in (str, int) or expected is MISSING
            assert column.texts[row].as_py() == ("" if expected is MISSING else str(expected))
    return [bool(each) for each in found.plain]


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=40),
    st.sampled_from(["0", "", 'a"b\\c', "line\nnext\t\x01", "😀é\x7f", "x" * 70 + '"']),
)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=12,
)
objects = st.dictionaries(st.sampled_from(NAMES), documents, max_size=6)


@st.composite
def written(draw: st.DrawFn) -> bytes:
    """A document as some producer writes it, perhaps with a name twice, white space anywhere, or broken."""
    document = draw(st.one_of(objects, objects, documents))
    separators = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", "\t:\r ")]))
    text = json.dumps(document, ensure_ascii=draw(st.booleans()), separators=separators)
    if draw(st.booleans()):
        text = text.replace('"c"', draw(st.sampled_from(['"a"', '"\\u0061"', '"b"'])))
    value = text.encode(errors="surrogatepass")
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(value)))
        value = value[:at] + draw(st.binary(max_size=2)) + value[at + draw(st.integers(0, 2)) :]
    return (
        draw(st.sampled_from([b"", b"", b" \n", b"\xef\xbb\xbf"])) + value + draw(st.sampled_from([b"", b"", b"\r\n"]))
    )


@examples(max_examples=200, deadline=None)
@given(st.lists(st.one_of(written(), st.none()), max_size=6))
def test_what_is_found_is_what_a_pointer_resolves_to_in_the_document(values: list[bytes | None]) -> None:
    check(values)


@examples(max_examples=200, deadline=None)
@given(st.text(alphabet=' \t\n{}[]":,.\\/-+eE019atrufblsn\x00\x1fé', max_size=40))
@example('{"a":"\\ud83d"}')
@example('{"a":"\\u12"}')
@example('{"a":-0}')
@example('{"a":01}')
@example('{"a":1.}')
@example('{"a":"x",}')
@example('{"a":"x"}}')
@example('{"k":[1,]}')
@example('{"k":tru}')
@example('{"k":1e999}')
@example('{"k":NaN}')
@example('{"k":"\n"}')
def test_what_is_no_json_is_odd(text: str) -> None:
    check([text.encode(), b'{"a":' + text.encode() + b"}", b'{"k":"' + text.encode() + b'","a":"1"}'])


@pytest.mark.parametrize(
    "value",
    [
        b'{"a":"x"}',
        b'{"k":1.5,"a":"x","b":{"a":7,"c":{"a":"","k":[[{"a":1}],{}]},"k":null}}',
        b' { "a" : "say \\"hi\\" \\u00e9\\u20ac\\n" , "k" : -12 } ',
        '{"b":{"é":"ü","k":true},"k":2}'.encode(),
        b'{"k":"x","l":"\\u00e9\\/","b":"no object"}',
    ],
)
def test_documents_as_producers_write_them_are_read(value: bytes) -> None:
    single = b'{"k":0,' + value.strip()[1:]
    assert check([value, single])[1]


@pytest.mark.parametrize(
    "value",
    [
        b'{"a":"x","a":"y","k":1}',  # a name twice: the last counts
        b'{"\\u0061":"x","k":1}',
        b'{"a":{"stringValue":"x"},"k":1}',
        b'{"a":1.0,"k":1}',
        b'{"a":0,"k":1}',
        b'{"a":null,"k":1}',
        b'{"b":[{"key":"a","value":"x"}],"k":1}',
        b'{"kvlistValue":{"values":[{"key":"a","value":"x"}]}}',
        b'{"kvlistValue":{"values":[]},"kvlistValue":{"values":[{"key":"a","value":"x"}]}}',
        b'{"a":"\xff","k":1}',
        b'{"a":"\\ud83d\\ude00","k":1}',
        b'{"k":' + b"[" * 40 + b"]" * 40 + b',"a":"x"}',
        b'["a"]',
        b'"a"',
        b"",
        b"\0\0\0\0\1{}",
    ],
)
def test_what_may_mean_something_else_is_left_to_the_parser(value: bytes) -> None:
    assert check([value]) == [False]


def test_bytes_that_are_no_utf8_in_one_document_leave_the_ascii_ones_of_the_batch_as_they_are() -> None:
    assert check([b'{"a":"x","k":1}', b'{"k":"\xff"}', b'{"a":"y","k":1}']) == [True, False, True]


def column_of(value: bytes) -> list[Any]:
    found = JsonPlaces(POINTERS).find([value])
    return [found.at(pointer).texts[0].as_py() for pointer in POINTERS]


def test_names_with_escapes_of_pointers_are_found() -> None:
    assert column_of(b'{"x/y":"1","":"2","k":3}')[4:6] == ["1", "2"]
