"""Lines as applications write them, for the tests of this folder."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

BEGIN = datetime(2024, 5, 6, 7, 0, tzinfo=UTC)
STAMP = r"input.timestamp={pattern: '^(\S+ \S+)', format: '%Y-%m-%d %H:%M:%S'}"


def visits(users: int, rounds: int, steps: tuple[str, ...] = ("open", "read", "read", "close")) -> list[str]:
    """Every user comes back each hour; a visit is one line a second, `<time> <user> <step>`."""
    lines = []
    for hour in range(rounds):
        for user in range(users):
            for second, step in enumerate(steps):
                at = BEGIN + timedelta(hours=hour, minutes=user, seconds=second)
                lines.append(f"{at:%Y-%m-%d %H:%M:%S} user{user} {step}")
    return lines


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
