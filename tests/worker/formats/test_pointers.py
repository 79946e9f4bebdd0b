"""JSON pointers are those of RFC 6901."""

from __future__ import annotations

import pytest

from worker.formats.pointers import MISSING, JsonPointer, check_pointer

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
