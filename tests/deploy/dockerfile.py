"""What deploy/Dockerfile says, read as far as its tests need it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """Every instruction with its argument, in order, continued lines joined and comments left out."""
    text = re.sub(r"^ *#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    split = (line.split(None, 1) for line in lines if line.strip())
    return [(name, argument) for name, argument in split]


def image() -> dict[str, str]:
    """The last stage: of each instruction the last one's argument."""
    last = max(index for index, (name, _) in enumerate(instructions()) if name == "FROM")
    return dict(instructions()[last:])


def words(argument: str) -> list[str]:
    """The arguments of an exec form, such as ["run", "--config", "…"]; what stands before it is left out."""
    found = json.loads(argument[argument.index("[") :])
    assert isinstance(found, list)
    return found


def environment() -> dict[str, str]:
    """The image's variables, on top of those that its base has."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    pairs = (pair.partition("=") for pair in image()["ENV"].split())
    return {name: value.replace("$PATH", path) for name, _, value in pairs}


def copy_context(target: Path) -> None:
    """Copy what .dockerignore lets through: everything is refused but for the paths that follow a !."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert patterns[0] == "*"
    for pattern in patterns:
        if pattern.startswith("!"):
            path = ROOT / pattern[1:]
            (target / pattern[1:]).parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, target / pattern[1:], ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, target / pattern[1:])
