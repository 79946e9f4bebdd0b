"""The versions of a checkpoint that changes: the one that scores, and copies of those there were.

A checkpoint at ``app`` stays a plain directory, which a save replaces as a whole. Beside it, ``app.versions`` holds a
whole checkpoint for each version, named ``<number>-<first 12 hexadecimal digits of its digest>``: score records name
the digest, so a score's version is found by its name. ``current`` is no file there: it is the version whose digest the
checkpoint has. Of `MOST_KEPT` versions the oldest go, but not the one that scores, nor the training's, number 1.

Whatever strikes amid a change, ``app`` holds the version before or the one after, and each is among the versions: a
version is written there first. What was written to ``app`` by others since (a training, a verdict) becomes a version of
its own before it is replaced. A change takes a lock, ``app.versions/.lock``, for as long as it lasts.

After `Versions.back`, a file ``held`` says so until `Versions.release`: nothing adapts meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from detector import checkpoint
from detector.checkpoint import Checkpoint
from detector.errors import CheckpointError

MOST_KEPT: Final = 10

_NAME: Final = re.compile(r"(\d{4,})-([0-9a-f]{12})")
_PREFIX: Final = "sha256:"
_DIGITS: Final = 12
_LEAST_DIGITS: Final = 6  # of a digest; fewer are a version's number
_HELD: Final = "held"
_LOCK: Final = ".lock"
_CANDIDATE: Final = ".candidate."


@dataclass(frozen=True)
class Version:
    """A version that was kept.

    Attributes:
        name: ``<number>-<beginning of its digest>``.
        directory: of the checkpoint.
        current: whether it is the one that scores.
    """

    name: str
    directory: Path
    current: bool

    @property
    def number(self) -> int:
        """From 1 on."""
        return int(self.name.partition("-")[0])


class Versions:
    """Of one checkpoint.

    Args:
        place: where the checkpoint is that scores. A symbolic link is followed.
    """

    def __init__(self, place: Path) -> None:
        self.place = place.resolve()
        self.directory = self.place.with_name(f"{self.place.name}.versions")

    def all(self) -> list[Version]:
        """Those that are kept, the oldest first; none before the first change.

        Raises:
            CheckpointError: they cannot be read.
        """
        now = checkpoint.digest_of(self.place)
        names = [entry.name for entry in _entries(self.directory) if _NAME.fullmatch(entry.name)]
        found = [Version(name, self.directory / name, _stands_for(name, now)) for name in names]
        return sorted(found, key=lambda each: each.number)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Keep others from changing anything while the block runs.

        Raises:
            CheckpointError: somebody else is at it, or the place cannot be written to.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CheckpointError(f"cannot write to {self.directory}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise CheckpointError(f"{self.place} is being adapted or rolled back by another process") from error
            for left in self.directory.glob(".*"):  # by a process that was killed
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            os.close(lock)

    @contextmanager
    def candidate(self) -> Iterator[Path]:
        """Yields where a new checkpoint may be written to be tried; what is there at the end is removed."""
        staging = self.directory / f"{_CANDIDATE}{secrets.token_hex(4)}"
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def take(self, candidate: Path, parent: Checkpoint) -> tuple[Version, Version]:
        """Make a checkpoint the one that scores; it and the one before become versions.

        To be called within `changing`.

        Args:
            candidate: directory of the new one.
            parent: that it was made from.

        Returns:
            The version that scored, and the one that scores now.

        Raises:
            CheckpointError: what scores is no longer the parent, or something cannot be written.
        """
        if checkpoint.digest_of(self.place) != parent.digest:
            raise CheckpointError(
                f"{self.place} was changed by another command meanwhile; what was learnt is for the one before it"
            )
        was, version = self._keep(self.place), self._keep(candidate)
        checkpoint.copy(version.directory, self.place)
        self._forget()
        return was, Version(version.name, version.directory, current=True)

    def back(self, to: str | None, reason: str) -> tuple[Version, Version]:
        """Let an older version score again, and hold adaptations from now on. To be called within `changing`.

        Args:
            to: its name, its number or the beginning of its digest; None for the one before the one that scores.
            reason: what the hold says.

        Returns:
            The version that scored, and the one that scores now.

        Raises:
            CheckpointError: there is no such version, it scores already, or something cannot be written.
        """
        was = self._keep(self.place)
        version = self._found(to, was)
        checkpoint.load(version.directory)  # a damaged one is refused before anything changes
        _write(self.directory / _HELD, reason)
        checkpoint.copy(version.directory, self.place)
        return was, Version(version.name, version.directory, current=True)

    def held(self) -> str | None:
        """Why nothing may adapt; None where it may."""
        try:
            return (self.directory / _HELD).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointError(f"cannot read {self.directory / _HELD}: {error.strerror}") from error

    def release(self) -> None:
        """Let adaptations go on."""
        (self.directory / _HELD).unlink(missing_ok=True)

    def _keep(self, directory: Path) -> Version:
        """Make a checkpoint a version, unless it is one."""
        digest = checkpoint.digest_of(directory)
        versions = self.all()
        for each in versions:
            if _stands_for(each.name, digest):
                return each
        number = versions[-1].number + 1 if versions else 1
        name = f"{number:04}-{digest.removeprefix(_PREFIX)[:_DIGITS]}"
        checkpoint.copy(directory, self.directory / name)
        return Version(name, self.directory / name, current=directory == self.place)

    def _found(self, to: str | None, was: Version) -> Version:
        versions = self.all()
        if to is None:
            found = [each for each in versions if each.number < was.number][-1:]
        else:
            number, start = int(to) if to.isdecimal() and len(to) < _LEAST_DIGITS else None, to.removeprefix(_PREFIX)
            found = [
                each
                for each in versions
                if to == each.name
                or number == each.number
                or (len(start) >= _LEAST_DIGITS and _stands_for(each.name, start))
            ]
        there = ", ".join(each.name for each in versions)
        if len(found) != 1:
            which = "before the one that scores" if to is None else f"{to!r}"
            raise CheckpointError(f"there is no version {which} of {self.place}; there are {there}")
        if found[0].name == was.name:
            raise CheckpointError(f"{was.name} is the version that scores already; there are {there}")
        return found[0]

    def _forget(self) -> None:
        versions = self.all()
        spare = [each for each in versions if not each.current and each.number > 1]
        for each in spare[: max(len(versions) - MOST_KEPT, 0)]:
            shutil.rmtree(each.directory, ignore_errors=True)


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"cannot read {directory}: {error.strerror}") from error


def _stands_for(name: str, digest: str) -> bool:
    return name.partition("-")[2].startswith(digest.removeprefix(_PREFIX)[:_DIGITS])


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
