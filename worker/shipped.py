"""Files that come with the package: settings to start from, and schemas."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from worker.errors import RunError


def _folder() -> Path:
    installed = Path(str(files("worker") / "config"))
    return installed if installed.is_dir() else Path(__file__).resolve().parents[1] / "config"


def shipped_names() -> list[str]:
    """The names of the files."""
    return sorted(path.name for path in _folder().iterdir() if path.is_file())


def shipped_text(name: str) -> str:
    """What a file holds.

    Raises:
        RunError: there is none of this name; names those that there are.
    """
    names = shipped_names()
    if name not in names:
        raise RunError(f"no file {name!r} comes with this package; allowed: {', '.join(names)}")
    return (_folder() / name).read_text(encoding="utf-8")
