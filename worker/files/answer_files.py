"""Files of answers: CSV with a header line, or a JSON object a line."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from detector.errors import InputFileError

Row = tuple[int, dict[str, Any]]
"""Number of a line, from 1, and what it holds."""


def read_rows(path: Path, lacking: Callable[[Collection[str]], str | None]) -> Iterator[Row]:
    """The rows of a file, blank lines left out; JSON lines where the first one begins as an object does.

    Args:
        path: of the file.
        lacking: what CSV lacks with these columns, and what is allowed; None where it has what it needs.

    Raises:
        InputFileError: the file cannot be read, or naming the line that is no object.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"{path}: cannot be read: {error}") from error
    begun = next((line for line in lines if line.strip()), "")
    if begun.lstrip().startswith("{"):
        return _json_rows(path, lines)
    reader = csv.DictReader(lines)
    if (wrong := lacking(reader.fieldnames or ())) is not None:
        raise InputFileError(f"{path}: {wrong}, or JSON lines")
    return ((reader.line_num, row) for row in reader)


def _json_rows(path: Path, lines: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise InputFileError(f"{path}, line {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise InputFileError(f"{path}, line {number}: not a JSON object")
            yield number, row
