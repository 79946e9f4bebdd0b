"""A directory of files that is replaced as a whole: killed at any moment, the old one is there or the new one.

The new one is written beside its place, every file and the directory are synced, the old one is moved aside to
``.<name>.previous``, the new one renamed into its place and the old one removed. Between the two renames only
``.<name>.previous`` is there, which `place_of` then finds. A ``.<name>.<random>.new`` that a killed process leaves is
read by nothing and may be removed.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path


def place_of(directory: Path) -> Path:
    """`directory`, or what was moved aside when `replace_directory` was killed between its two renames."""
    directory = directory.resolve()
    return _previous(directory) if not directory.exists() and _previous(directory).is_dir() else directory


def replace_directory(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Write files, by their names, in the place of all that a directory holds.

    Args:
        directory: that no link leads to; it need not be there.
        contents: of the files.

    Raises:
        OSError: they cannot be written; what was there stays.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.new")
    previous = _previous(directory)
    staging.mkdir()
    try:
        for name, data in contents.items():
            with (staging / name).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        sync_directory(staging)
        if directory.exists():
            # A save that was killed before its last step has left its predecessor; the one in place is newer.
            shutil.rmtree(previous, ignore_errors=True)
            directory.rename(previous)
        try:
            staging.rename(directory)
        except OSError:
            if previous.exists():
                previous.rename(directory)
            raise
        sync_directory(directory.parent)
    except OSError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def sync_directory(directory: Path) -> None:
    """Put on the disk which names a directory holds."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _previous(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.previous")
