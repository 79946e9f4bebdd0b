"""The commands that check what lies in deploy/, which `make tools` fetches."""

from __future__ import annotations

import subprocess

import pytest

from tests.deploy.dockerfile import ROOT

SCHEMAS = ROOT / ".tools" / "schemas"


def run_tool(name: str, *arguments: object, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a fetched command to its end; the test is skipped where there is none."""
    path = ROOT / ".tools" / "bin" / name
    if not path.exists():
        pytest.skip(f"needs {name}: run `make tools` (needs Go)")
    command = [str(path), *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=120)
