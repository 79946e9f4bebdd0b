"""What documents are asked for is what pointers resolve to in each of them, parsed or not."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from worker.formats.pointers import FirstPointer
from worker.processing.documents import DocumentReader
from worker.processing.lines import Batch
from worker.processing.records import Records

values = st.sampled_from(["x", "", "0", 'say "hi"', 0, 7, -7, 1.5, None, True, [], ["x"], {"stringValue": "y"}])
members = st.dictionaries(st.sampled_from(["a", "b", "k"]), values, max_size=3)
documents = st.dictionaries(st.sampled_from(["a", "b", "c", "k"]), st.one_of(values, members), max_size=4)
rows = st.one_of(
    documents.map(orjson.dumps),
    st.lists(documents, max_size=3).map(orjson.dumps),
    st.lists(documents, min_size=2, max_size=3).map(lambda some: b"\n".join(map(orjson.dumps, some))),
    st.sampled_from([None, b"", b"no JSON", b'{"a":"\xff"}', b"\xef\xbb\xbf{}"]),
)


WORDS = (None, "", 0, "0")  # for nothing, as times have them
PLAIN: list[bytes | None] = [b'{"a":"","b":"x"}', b'{"a":"0","b":""}', b'{"b":"0","a":7}', b'{"k":1,"l":2}']


@examples(max_examples=150, deadline=None)
@example(texts=PLAIN, skipped=set(), pointers=["/a", "/b"], nothing=WORDS)
@example(texts=[*PLAIN, b"no JSON"], skipped={0}, pointers=["/b", "/a"], nothing=WORDS)
@given(
    texts=st.lists(rows, max_size=6),
    skipped=st.sets(st.integers(0, 5), max_size=2),
    pointers=st.lists(st.sampled_from(["/a", "/b", "/c/a", "/c/b"]), min_size=1, max_size=3, unique=True),
    nothing=st.sampled_from([(None,), WORDS]),
)
def test_what_a_pointer_names_is_the_same_whether_a_document_was_parsed_or_not(
    texts: list[bytes | None], skipped: set[int], pointers: list[str], nothing: tuple[object, ...]
) -> None:
    offsets = list(range(len(texts)))
    batch = Batch([Records("raw", 0, offsets, texts, None, None, None)])
    skipped &= set(offsets)
    found = DocumentReader(None, "utf-8", ["/a", "/b", "/c/a", "/c/b"]).read(batch, skipped)
    pointer = FirstPointer(pointers)
    values = found.at(pointer, nothing)
    expected = pointer.resolve_each(found.whole(), nothing)
    shown = [int(str(each)) if whole else each for each, whole in zip(values.as_objects(), values.whole, strict=True)]
    assert [(type(each), each) for each in shown] == [(type(each), each) for each in expected]
    taken = list(range(0, len(expected), 2))[::-1]
    assert values.take(batch.item_rows[:0]).as_objects() == []
    assert values.take(np.array(taken, np.int64)).as_objects() == [values.as_objects()[at] for at in taken]


def test_records_that_are_lists_or_broken_leave_those_around_them_where_they_are() -> None:
    offsets = list(range(5))
    texts: list[bytes | None] = [b'{"a":"1"}', b'[{"a":"2"},{"a":"3"}]', b"no JSON", b"[]", b'{"a":"4"}']
    batch = Batch([Records("raw", 0, offsets, texts, None, None, None)])
    found = DocumentReader(None, "utf-8", ["/a"]).read(batch, {0})
    assert batch.item_rows.tolist() == [0, 1, 1, 2, 3, 4]
    assert found.at(FirstPointer(["/a"])).as_objects()[1:3] == ["2", "3"]
    assert found.at(FirstPointer(["/a"])).as_objects()[5] == "4"
    assert batch.skipped == {0}
    assert {item: reason for item, (reason, _) in batch.faults.items()} == {3: "bad_json", 4: "empty"}
    assert str(batch.places[2]) == "at /1"


@pytest.mark.parametrize("text", [b'{"a":"x","k":1}', b'{"a":{"stringValue":"x"}}'])
def test_a_split_decides_even_where_a_document_is_an_object(text: bytes) -> None:
    batch = Batch([Records("raw", 0, [0], [b'{"logs":[' + text + b"]}"], None, None, None)])
    found = DocumentReader("/logs/*", "utf-8", ["/a"]).read(batch, ())
    assert found.at(FirstPointer(["/a"])).as_objects() == ["x"]
