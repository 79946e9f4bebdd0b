"""What `make test-lowest` installs is what pyproject.toml promises to work with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def version(text: str) -> list[int]:
    """Its numbers, of which trailing zeros say nothing."""
    return [int(each) for each in re.sub(r"(\.0)+$", "", text).split(".")]


def test_the_lower_bound_of_every_dependency_is_the_version_that_the_tests_run_with_at_the_lowest() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    required = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    bounds = {name: version(least) for name, least in (each.split(">=") for each in required)}
    lock = (ROOT / "requirements.lowest.lock").read_text()
    locked = {name: version(exact) for name, exact in re.findall(r"^([a-z0-9-]+)==([\d.]+)", lock, re.MULTILINE)}
    assert {name: locked[name][: len(least)] for name, least in bounds.items()} == bounds
