"""Files of records give back what was written, and a line that is no record is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.errors import InputFileError
from worker.files.record_files import has_places, is_record_file, read_record_file, write_records
from worker.processing.records import Records

_BYTES = st.none() | st.binary(max_size=20) | st.text(max_size=20).map(lambda text: text.encode(errors="replace"))
_HEADERS = st.lists(st.tuples(st.text(st.characters(codec="utf-8"), max_size=5), _BYTES), max_size=3)
_RECORD = st.tuples(_BYTES, _BYTES, st.integers(-1, 2**60), _HEADERS)


@given(st.lists(_RECORD, min_size=1, max_size=5), st.booleans())
def test_what_is_written_is_read_again_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[object, ...]], packed: bool
) -> None:
    keys, values, timestamps, headers = (list(column) for column in zip(*rows, strict=True))
    offsets = [7 * number for number in range(len(rows))]
    records = Records("raw-logs", 3, offsets, values, keys, timestamps, headers)  # type: ignore[arg-type]
    path = tmp_path_factory.mktemp("records") / ("a.jsonl.gz" if packed else "a.jsonl")
    with gzip.open(path, "wb") if packed else path.open("wb") as file:
        write_records(file, records)  # type: ignore[arg-type]
    assert is_record_file(path)
    assert has_places(path)
    assert list(read_record_file(path)) == [records]


def test_records_of_other_tools_need_no_place_and_their_headers_may_be_an_object(tmp_path: Path) -> None:
    path = tmp_path / "mine.records.jsonl"
    path.write_text('{"value": "a", "headers": {"trace": "x"}}\n{"value": {"base64": "/w=="}, "key": "k"}\n')
    assert is_record_file(path)
    assert not has_places(path)
    assert list(read_record_file(path)) == [
        Records("mine.records.jsonl", 0, [0, 1], [b"a", b"\xff"], [None, b"k"], [-1, -1], [[("trace", b"x")], None])
    ]


@pytest.mark.parametrize(
    "line", ["", "a log line", '{"msg": "a"}', '{"key": "a", "value": "b", "level": "INFO"}', '{"value": 3}', "[1]"]
)
def test_a_log_is_not_taken_for_records(tmp_path: Path, line: str) -> None:
    (tmp_path / "app.jsonl").write_text(f"{line}\n")
    assert not is_record_file(tmp_path / "app.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "not a record"),
        ("{}", "it has no member 'value'"),
        ('{"value": 3}', "value; allowed: text"),
        ('{"value": "a", "key": {"base64": "!"}}', "key; allowed: text"),
        ('{"value": "a", "timestamp": "now"}', "timestamp 'now'; allowed: a whole number"),
        ('{"value": "a", "headers": [["x"]]}', "headers; allowed: a list of pairs"),
        ('{"value": "a", "level": "INFO"}', "member 'level' of a record; allowed: headers, key"),
        ('{"value": "a", "topic": "t", "partition": 0, "offset": 1}', "all three in every line, or none of them"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.records.jsonl"
    path.write_text(json.dumps({"value": "fine"}) + f"\n{line}\n")
    with pytest.raises(InputFileError, match=rf"a\.records\.jsonl, line 2: .*{message}"):
        list(read_record_file(path))
