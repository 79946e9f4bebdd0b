"""JSON pointers are those of RFC 6901."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.formats.pointers import MISSING, FirstPointer, JsonPointer, Split, alone, check_pointer, written_path

DOCUMENT = {"foo": ["bar", "baz"], "": 0, "a/b": 1, "m~n": 8, " ": 7, "~1": 9, "0": {"x": None}}


@pytest.mark.parametrize(
    ("pointer", "value"),
    [
        ("", DOCUMENT),
        ("/foo", ["bar", "baz"]),
        ("/foo/0", "bar"),
        ("/", 0),
        ("/a~1b", 1),
        ("/m~0n", 8),
        ("/ ", 7),
        ("/~01", 9),
        ("/0/x", None),
        ("/foo/2", MISSING),
        ("/foo/01", MISSING),
        ("/foo/-", MISSING),
        ("/foo/-1", MISSING),
        ("/foo/99999999999999999999999", MISSING),
        ("/foo/0/0", MISSING),
        ("/nothing/there", MISSING),
    ],
)
def test_json_pointers_resolve_as_rfc_6901_says(pointer: str, value: object) -> None:
    assert JsonPointer(pointer).resolve(DOCUMENT) == value


@pytest.mark.parametrize("pointer", ["a", "/a~", "/a~2"])
def test_what_is_no_json_pointer_is_refused(pointer: str) -> None:
    with pytest.raises(ValueError, match="is not a JSON pointer"):
        JsonPointer(pointer)


@pytest.mark.parametrize("pointer", ["", "a", "/a~2", None, 5])
def test_a_setting_names_a_member(pointer: object) -> None:
    with pytest.raises(ValueError, match="is not a JSON pointer; allowed: /name or /outer/inner"):
        check_pointer(pointer)


ATTRIBUTES = [{"key": "a.b", "value": {"stringValue": "x"}}, {"key": "n", "value": {"kvlistValue": {"values": []}}}]


@pytest.mark.parametrize(
    ("pointer", "found"),
    [
        ("/attributes/a.b", "x"),
        ("/attributes/n", {}),
        ("/attributes/c", MISSING),
        ("/attributes/0/key", "a.b"),
        ("/body/deep/n", "5"),
        ("/body/list", ["x", True]),
        ("/single", "y"),
    ],
)
def test_opentelemetrys_values_are_what_is_in_them(pointer: str, found: object) -> None:
    inner = {"kvlistValue": {"values": [{"key": "n", "value": {"intValue": "5"}}]}}
    values = {"arrayValue": {"values": [{"stringValue": "x"}, {"boolValue": True}]}}
    body = {"kvlistValue": {"values": [{"key": "deep", "value": inner}, {"key": "list", "value": values}]}}
    document = {"attributes": ATTRIBUTES, "body": body, "single": {"stringValue": "y"}}
    assert JsonPointer(pointer).resolve(document) == found


def test_the_first_place_with_something_but_null_is_taken() -> None:
    first = FirstPointer(["/a", "/b"])
    assert first.resolve({"a": None, "b": 0}) == 0
    assert first.resolve({"a": None}) is None
    assert first.resolve({}) is MISSING


def test_elements_of_a_split_have_the_members_around_them_that_they_lack() -> None:
    document = {"r": 1, "a": [{"s": 2, "b": [{"r": 3}, "text"]}, {"b": None}, {}, {"s": 4, "b": [{}]}]}
    parts = list(Split("/a/*/b/*").of(document))
    assert [part.element for part in parts] == [{"r": 3, "s": 2}, "text", {"r": 1, "s": 4}]
    assert [written_path(part.path) for part in parts] == ["/a/0/b/0", "/a/0/b/1", "/a/3/b/0"]
    for part in parts:
        assert [each.element for each in Split("/a/*/b/*").of(alone(document, part.path))] == [part.element]


def test_what_should_be_a_list_and_is_none_is_a_part_with_a_problem() -> None:
    [part] = Split("/a/*").of({"a": {"b": 1}})
    assert (part.path, part.problem) == (("a",), "what stands there is not a list, so /a/* finds no events in it")
    [part] = Split("/a/*/b/*").of({"a": [5]})
    assert (part.path, part.problem[:35]) == (("a", 0), "what stands there is not an object,")


NAMES = st.sampled_from(["a", "b", "0", "key", "value", "stringValue", "kvlistValue", "values"])
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False) | st.sampled_from(["", "0", "text"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(NAMES, inner, max_size=3)
        | st.lists(st.fixed_dictionaries({"key": NAMES, "value": inner}), max_size=2)
    ),
    max_leaves=6,
)
POINTERS = st.lists(NAMES, min_size=1, max_size=3).map(lambda names: "".join(f"/{name}" for name in names))


@given(st.lists(POINTERS, min_size=1, max_size=2), st.lists(DOCUMENTS | st.just(MISSING), max_size=6))
def test_what_many_documents_hold_is_what_each_of_them_holds(pointers: list[str], documents: list[object]) -> None:
    for pointer in ("", *pointers):
        one = JsonPointer(pointer)
        assert one.resolve_each(documents) == [one.resolve(document) for document in documents]
    first = FirstPointer(pointers)
    for nothing in ((None,), (None, "", 0, "0")):
        found = first.resolve_each(documents, nothing)
        assert found == [first.resolve(document, nothing) for document in documents]
        assert list(map(type, found)) == [type(first.resolve(document, nothing)) for document in documents]
