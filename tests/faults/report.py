"""How much a fault test does, what it measured, and the table of `make faults`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

_HEADINGS = (
    "#",
    "fault",
    "records",
    "rounds",
    "missing",
    "duplicates",
    "different",
    "longest gap, s",
    "time to recover, s",
    "test",
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much a fault test does: `core` is part of `make test`, `full` is `make faults`."""

    name: Literal["core", "full"]

    @property
    def full(self) -> bool:
        return self.name == "full"

    @property
    def records(self) -> int:
        """Input records of a test."""
        return 100_000 if self.full else 12_000


class Counts(Protocol):
    """How a stream differs from what must be there (`tests.faults.checker.Verdict` is one)."""

    @property
    def missing(self) -> Sequence[object]: ...

    @property
    def duplicate(self) -> Sequence[object]: ...

    @property
    def different(self) -> Sequence[object]: ...


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of the table; None where a column has no meaning for the fault."""

    fault: str
    records: int | None = None  # input records or lines that the test fed
    rounds: int | None = None  # how often the fault struck
    missing: int | None = None
    duplicates: int | None = None
    different: int | None = None
    longest_gap_s: float | None = None  # between two records of the output
    recovery_s: float | None = None  # from the fault to the next visible output, at worst


class FaultReport:
    """Given to a test by the fixture `fault_report`; the test calls it once, before it asserts."""

    def __init__(self, keep: Callable[[Measured], None]) -> None:
        self._keep = keep

    def __call__(
        self,
        fault: str,
        *,
        records: int | None = None,
        rounds: int | None = None,
        verdict: Counts | None = None,
        longest_gap_s: float | None = None,
        recovery_s: float | None = None,
    ) -> None:
        counts = (len(each) for each in (verdict.missing, verdict.duplicate, verdict.different)) if verdict else ()
        missing, duplicates, different = [*counts] or [None] * 3
        self._keep(Measured(fault, records, rounds, missing, duplicates, different, longest_gap_s, recovery_s))


def table(rows: Iterable[tuple[int, str, Measured]]) -> str:
    """The table in Markdown, by the numbers of the fault list.

    Args:
        rows: number of the fault, how its test ended, what it measured.
    """
    lines = [_line(_HEADINGS), _line(["--:", "---", *["--:"] * 7, "---"])]
    for number, outcome, measured in sorted(rows, key=lambda row: row[0]):
        cells = [
            str(number),
            measured.fault,
            *map(_whole, (measured.records, measured.rounds)),
            *map(_whole, (measured.missing, measured.duplicates, measured.different)),
            *map(_seconds, (measured.longest_gap_s, measured.recovery_s)),
            outcome,
        ]
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _whole(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _seconds(number: float | None) -> str:
    return "" if number is None else f"{number:.1f}"
