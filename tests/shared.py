"""Where the data lies that tests read and the project does not ship."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_FOLDER = Path(os.environ.get("LOGMAMBA_SHARED") or Path(__file__).resolve().parents[2] / "shared")
SHARED: Path | None = _FOLDER if _FOLDER.is_dir() else None

needs_shared = pytest.mark.skipif(SHARED is None, reason=f"needs the shared data; there is none at {_FOLDER.name}/")


def shared(name: str) -> Path:
    """A file of the shared data; only for tests marked with `needs_shared`."""
    assert SHARED is not None
    return SHARED / name
