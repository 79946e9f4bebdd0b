"""Parsed sessions and labels are read by column name, and a bad file is refused with its place."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from detector.errors import InputFileError
from detector.sessions_file import is_sessions_file, read_labels, read_sessions
from tests.shared import SHARED, needs_shared

SESSIONS = "order\tblock_id\textra\tlabel\tevents\tcount\n7\tblk_1\tx\t0\t5 22 5\t\n\tblk_2\ty\t1\t5 9\t30\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_columns_are_found_by_name_in_any_order_and_others_are_ignored(tmp_path: Path) -> None:
    parsed = read_sessions(write(tmp_path / "s.tsv", SESSIONS))
    assert parsed.name == "s.tsv"
    assert parsed.sessions == ("blk_1", "blk_2")
    assert parsed.events == (("5", "22", "5"), ("5", "9"))
    assert parsed.labels.tolist() == [0, 1]
    assert parsed.order.tolist() == [7, -1]
    assert parsed.counts.tolist() == [1, 30]


def test_optional_columns_may_be_absent(tmp_path: Path) -> None:
    parsed = read_sessions(write(tmp_path / "s.tsv", "session_id\tevents\na\tE1 E2\n"))
    assert parsed.labels.tolist() == [-1]
    assert parsed.order.tolist() == [-1]
    assert parsed.counts.tolist() == [1]


def test_a_gzip_file_reads_as_the_plain_one_whatever_its_name(tmp_path: Path) -> None:
    packed = tmp_path / "s.tsv"
    packed.write_bytes(gzip.compress(SESSIONS.replace("\n", "\r\n").encode()))
    assert read_sessions(packed).events == (("5", "22", "5"), ("5", "9"))
    assert is_sessions_file(packed)


def test_a_raw_log_is_not_taken_for_a_sessions_file(tmp_path: Path) -> None:
    log = tmp_path / "raw.log"
    log.write_bytes(b"081109 203530 INFO Receiving block\xff session_id events\n")
    assert not is_sessions_file(log)
    assert not is_sessions_file(write(tmp_path / "empty.log", ""))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: no column 'session_id' or 'block_id' in the header; found: none"),
        ("name\tevents\n", r"line 1: no column 'session_id' or 'block_id'.*'name', 'events'"),
        ("session_id\tlabel\n", r"line 1: no column 'events'"),
        ("session_id\tevents\n", r"no sessions after the header"),
        ("session_id\tevents\na\tE1\nb\n", r"line 3: 1 columns where the header has 2"),
        ("session_id\tevents\na\t \n", r"line 2: no events"),
        ("session_id\tevents\tlabel\na\tE1\tyes\n", r"line 2: label 'yes'; allowed: 0"),
        ("session_id\tevents\tcount\na\tE1\t0\n", r"line 2: count '0'; allowed: an integer from 1"),
        ("session_id\tevents\torder\na\tE1\t-4\n", r"line 2: order '-4'"),
        ("session_id\tevents\tcount\na\tE1\t9223372036854775808\n", r"line 2: count '9223372036854775808'"),
    ],
)
def test_a_bad_sessions_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "bad.tsv", text)
    with pytest.raises(InputFileError, match=r"bad\.tsv.*" + message):
        read_sessions(path)


def test_what_cannot_be_read_at_all_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"nowhere\.tsv: No such file"):
        read_sessions(tmp_path / "nowhere.tsv")
    with pytest.raises(InputFileError, match="Is a directory"):
        read_sessions(tmp_path)
    latin = tmp_path / "latin.tsv"
    latin.write_bytes(b"session_id\tevents\nM\xfcller\tE1\n")
    with pytest.raises(InputFileError, match=r"latin\.tsv: not UTF-8"):
        read_sessions(latin)
    whole = gzip.compress(SESSIONS.encode())
    broken = tmp_path / "broken.gz"
    for damaged in (whole[:-12], whole[:20] + bytes([whole[20] ^ 255]) + whole[21:]):
        broken.write_bytes(damaged)
        with pytest.raises(InputFileError, match=r"broken\.gz"):
            read_sessions(broken)


@pytest.mark.parametrize("column", ["block_id", "session_id", "session"])
def test_labels_are_read_by_column_name(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "l.csv", f'label,{column},why\n1,"blk_-1, odd",x\n0,b,\n,c,\n\n0,b,again\n')
    assert read_labels(path) == {"blk_-1, odd": 1, "b": 0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: no column 'block_id' or 'session_id' or 'session'"),
        ("session,labels\n", r"line 1: no column 'label'"),
        ("session,label\na,2\n", r"line 2: label '2'"),
        ("session,label\na\n", r"line 2: 1 columns where the header has 2"),
        ("session,label\na,0\na,1\n", r"line 3: 'a' is labelled both 0 and 1"),
        ('session,label\n"a,0\n', r"line 2: unexpected end of data"),
    ],
)
def test_a_bad_labels_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputFileError, match=r"bad\.csv, " + message):
        read_labels(write(tmp_path / "bad.csv", text))


@needs_shared
def test_the_hdfs_sessions_file_reads_whole() -> None:
    assert SHARED is not None
    parsed = read_sessions(SHARED / "data/hdfs/sessions.tsv.gz")
    assert len(parsed) == 32_526 + 13_423
    assert np.bincount(parsed.labels).tolist() == [32_526, 13_423]
    labels = read_labels(SHARED / "data/hdfs/raw_labels.csv.gz")
    assert len(labels) == 9_217
    assert sum(labels.values()) == 280
