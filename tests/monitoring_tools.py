"""Prometheus and promtool, which the project does not ship: `make monitoring-tools` puts them into .prometheus."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

_FOLDER = Path(__file__).resolve().parents[1] / ".prometheus" / "usr" / "bin"


def tool(name: str) -> str:
    """Path of a program; the test is skipped where it is neither there nor on the path."""
    found = shutil.which(name, path=str(_FOLDER)) or shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}: `make monitoring-tools` fetches it")
    return found
