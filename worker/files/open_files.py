"""Log files as bytes: plain or compressed with gzip; of what else there is, its name."""

from __future__ import annotations

import gzip
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from detector.errors import InputFileError

_TAIL_BYTES = 256 * 1024
_GZIP = b"\x1f\x8b"
_UNREADABLE = {
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\x04\x22\x4d\x18": "compressed with lz4",
    b"PK\x03\x04": "a zip archive",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"PAR1": "Parquet",
}


@contextmanager
def opened(path: Path) -> Iterator[tuple[Iterable[bytes], BinaryIO]]:
    """The lines of a file with their ends, and the file, whose position is in its own (compressed) bytes.

    Raises:
        InputFileError: the file cannot be opened or read, within the block too, or is of a kind that is not read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            file.seek(0)
            for magic, kind in _UNREADABLE.items():
                if start.startswith(magic):
                    raise InputFileError(f"{path}: is {kind}; allowed: UTF-8 text, plain or compressed with gzip")
            if start.startswith(_GZIP) or path.suffix == ".gz":
                with gzip.open(file) as lines:
                    yield lines, file
            else:
                yield file, file
    except (OSError, EOFError, zlib.error) as error:
        raise InputFileError(f"{path}: cannot be read: {error}") from error


def lines_of(
    path: Path, at_once: int, progress: Callable[[int], object] = lambda _bytes: None
) -> Iterator[list[bytes]]:
    """The lines of a file in batches of at most `at_once`.

    A line ends at LF; a CR before it is not part of the line. An empty line at the very end is none.

    Args:
        path: the file.
        at_once: how many.
        progress: told how many bytes of the file (compressed ones for gzip) were read since the last call.

    Raises:
        InputFileError: as `opened`.
    """
    at = 0
    with opened(path) as (lines, file):
        batch: list[bytes] = []
        for line in lines:
            batch.append(line.removesuffix(b"\n").removesuffix(b"\r"))
            if len(batch) == at_once:
                yield batch
                progress(file.tell() - at)
                batch, at = [], file.tell()
        if batch:
            yield batch
        progress(file.tell() - at)


def last_lines(path: Path, count: int) -> list[bytes]:
    """The last lines of a file, `count` at most; of a plain file those in its last 256 KB.

    Raises:
        InputFileError: as `opened`.
    """
    with opened(path) as (lines, file):
        if lines is file and (size := path.stat().st_size) > _TAIL_BYTES:
            file.seek(size - _TAIL_BYTES)
            file.readline()  # a part of one
        return [line.removesuffix(b"\n").removesuffix(b"\r") for line in deque(lines, count)]
