"""Picks from requirements.lock, beside it or above it, what an image needs, with the hashes.

`python requirements.py build` prints what builds the wheel, `cuda` what it runs on, and `cpu` the same with PyTorch's
build without CUDA. The lock says after each package which others need it (`# via …`).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
_PACKAGE = re.compile(r"^([a-z0-9-]+)==")
_PROJECT = "logmamba (pyproject.toml)"
_ONLY_CUDA = re.compile(r"nvidia-|cuda-|triton$")


def requirements(variant: str, lock: str, torch_cpu: str) -> str:
    """The part of a lock that a variant needs.

    Args:
        variant: `build`, `cuda` or `cpu`.
        lock: the text of requirements.lock.
        torch_cpu: the requirement that stands for torch in `cpu`.
    """
    entries = [entry for entry in re.split(r"^(?=\S)", lock, flags=re.MULTILINE) if _PACKAGE.match(entry)]
    needed_by = [(_name(entry), _needed_by(entry)) for entry in entries]
    wanted = {name for name, by in needed_by if (name == "hatchling" if variant == "build" else _PROJECT in by)}
    while more := {name for name, by in needed_by if by & wanted} - wanted:
        wanted |= more
    if variant != "cpu":
        return "".join(entry for entry in entries if _name(entry) in wanted)
    wanted = {name for name in wanted if name != "torch" and not _ONLY_CUDA.match(name)}
    return torch_cpu + "".join(entry for entry in entries if _name(entry) in wanted)


def _name(entry: str) -> str:
    found = _PACKAGE.match(entry)
    assert found is not None
    return found[1]


def _needed_by(entry: str) -> set[str]:
    """The packages that need this one, and the project's own name with the file that says so."""
    comments = re.findall(r"^ +# *(?:via\b)? *(.*)$", entry, flags=re.MULTILINE)
    return {comment for comment in comments if comment}


def main() -> None:
    """Print the requirements of the variant that the command line names."""
    variants = ("build", "cpu", "cuda")
    if len(sys.argv) != 2 or sys.argv[1] not in variants:
        sys.exit(f"requirements.py: {' '.join(sys.argv[1:])!r} is no variant; allowed: {', '.join(variants)}")
    lock = next(path for path in (FOLDER / "requirements.lock", FOLDER.parent / "requirements.lock") if path.exists())
    sys.stdout.write(requirements(sys.argv[1], lock.read_text(), (FOLDER / "torch-cpu.txt").read_text()))


if __name__ == "__main__":
    main()
