"""Parsed sessions (TSV) and session labels (CSV), plain or gzip-compressed.

A sessions file has a header line; its columns are found by name: ``session_id`` or ``block_id``,
``events`` (event ids separated by spaces, each its own template), and optionally ``label`` (0 or 1),
``order`` (an integer to sort by) and ``count`` (how many equal sessions the row stands for). A labels
file has a column ``block_id``, ``session_id`` or ``session`` and a column ``label``. Names are taken
without regard to case and underscores, and labels as ``Normal`` and ``Anomaly`` too (``BlockId,Label`` of
public sets). Other columns are ignored in both; an empty optional value means "not known". A byte order
mark at the beginning is none of the text.
"""

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from detector.errors import InputFileError

SESSION_COLUMNS = ("session_id", "block_id")
LABEL_KEY_COLUMNS = ("block_id", "session_id", "session")
NORMAL, ANOMALOUS, UNLABELLED = 0, 1, -1
NO_ORDER = -1
_LABELS = {"0": NORMAL, "normal": NORMAL, "1": ANOMALOUS, "anomaly": ANOMALOUS, "": UNLABELLED}
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class ParsedSessions:
    """The rows of one sessions file, in file order; row numbers count from 0 and leave the header out.

    Attributes:
        name: the file's name, without its folder.
        sessions: session id of each row.
        events: event ids of each row, at least one.
        labels: int8 (rows,): 1 anomalous, 0 normal, -1 not known.
        order: int64 (rows,): rank to sort by, -1 where not known.
        counts: int64 (rows,): how many equal sessions the row stands for, at least 1.
    """

    name: str
    sessions: tuple[str, ...]
    events: tuple[tuple[str, ...], ...]
    labels: npt.NDArray[np.int8]
    order: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sessions)


def is_sessions_file(path: Path) -> bool:
    """Whether the file starts with a sessions header (and so is not a raw log).

    Raises:
        InputFileError: the file cannot be opened.
    """
    with _lines(path, decode_errors="replace") as lines:
        columns = next(lines, "").split("\t")
    return "events" in columns and any(name in columns for name in SESSION_COLUMNS)


def read_sessions(path: Path) -> ParsedSessions:
    """Read a sessions file.

    Raises:
        InputFileError: the file is missing, damaged, not UTF-8, lacks a column or holds a bad value.
    """
    sessions: list[str] = []
    events: list[tuple[str, ...]] = []
    labels: list[int] = []
    order: list[int] = []
    counts: list[int] = []
    with _lines(path) as lines:
        columns = next(lines, "").split("\t")
        key = _column(path, columns, SESSION_COLUMNS)
        events_at = _column(path, columns, ("events",))
        optional = {name: columns.index(name) for name in ("label", "order", "count") if name in columns}
        interned: dict[str, str] = {}
        for number, line in enumerate(lines, start=2):
            row = line.split("\t")
            if len(row) != len(columns):
                found = f"{len(row)} columns where the header has {len(columns)}"
                raise InputFileError(f"{path}, line {number}: {found}")
            names = tuple(interned.setdefault(name, name) for name in row[events_at].split())
            if not names:
                raise InputFileError(f"{path}, line {number}: no events; a session has at least one")
            values = {name: row[index].strip() for name, index in optional.items()}
            sessions.append(row[key])
            events.append(names)
            labels.append(_label(path, number, values.get("label", "")))
            order.append(_integer(path, number, "order", values.get("order", ""), minimum=0, default=NO_ORDER))
            counts.append(_integer(path, number, "count", values.get("count", ""), minimum=1, default=1))
    if not sessions:
        raise InputFileError(f"{path}: no sessions after the header line")
    return ParsedSessions(
        name=path.name,
        sessions=tuple(sessions),
        events=tuple(events),
        labels=np.array(labels, dtype=np.int8),
        order=np.array(order, dtype=np.int64),
        counts=np.array(counts, dtype=np.int64),
    )


def read_labels(path: Path) -> dict[str, int]:
    """Read a labels file: session id to 1 (anomalous) or 0 (normal).

    Raises:
        InputFileError: the file is missing, damaged, not UTF-8, lacks a column, holds a label that is
            neither 0 nor 1, or gives one session both.
    """
    labels: dict[str, int] = {}
    with _lines(path) as lines:
        reader = csv.reader(lines, strict=True)
        try:
            columns = [name.strip() for name in next(reader, [])]
            key = _column(path, columns, LABEL_KEY_COLUMNS)
            label_at = _column(path, columns, ("label",))
            for row in reader:
                if not row:
                    continue
                if len(row) != len(columns):
                    found = f"{len(row)} columns where the header has {len(columns)}"
                    raise InputFileError(f"{path}, line {reader.line_num}: {found}")
                label = _label(path, reader.line_num, row[label_at].strip())
                if label == UNLABELLED:
                    continue
                if labels.setdefault(row[key], label) != label:
                    raise InputFileError(f"{path}, line {reader.line_num}: {row[key]!r} is labelled both 0 and 1")
        except csv.Error as error:
            raise InputFileError(f"{path}, line {reader.line_num}: {error}") from error
    return labels


@contextmanager
def _lines(path: Path, decode_errors: str = "strict") -> Iterator[Iterator[str]]:
    """The file's lines without their ends; what goes wrong while they are read becomes an InputFileError."""
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if compressed else raw
            texts = (line.decode("utf-8", decode_errors).rstrip("\r\n") for line in stream)
            yield chain([next(texts, "").removeprefix("\ufeff")], texts)
    except UnicodeDecodeError as error:
        raise InputFileError(f"{path}: not UTF-8: {error.object[:60]!r}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputFileError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _column(path: Path, columns: Sequence[str], names: Sequence[str]) -> int:
    plain = [_plain(name) for name in columns]
    for name in map(_plain, names):
        if name in plain:
            return plain.index(name)
    wanted = " or ".join(repr(name) for name in names)
    found = ", ".join(repr(name) for name in columns if name) or "none"
    raise InputFileError(f"{path}, line 1: no column {wanted} in the header; found: {found[:200]}")


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "")


def _label(path: Path, number: int, value: str) -> int:
    label = _LABELS.get(value.lower())
    if label is None:
        allowed = "0 or Normal, 1 or Anomaly, or empty"
        raise InputFileError(f"{path}, line {number}: label {value!r}; allowed: {allowed}")
    return label


def _integer(path: Path, number: int, name: str, value: str, minimum: int, default: int) -> int:
    if value == "":
        return default
    if value.isascii() and value.isdigit() and minimum <= int(value) < 2**63:
        return int(value)
    raise InputFileError(f"{path}, line {number}: {name} {value!r}; allowed: an integer from {minimum} or empty")
