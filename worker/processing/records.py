"""Raw records as columns, and the partition that they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from worker.formats.times.years import FileYears


class Partition(NamedTuple):
    """A partition of an input topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"


@dataclass(frozen=True, slots=True)
class Records:
    """Raw records of one partition in offset order, as columns of equal length.

    Attributes:
        topic: name of the topic, or of a file.
        partition: its number.
        offsets: increasing.
        values: None for a tombstone.
        keys: None where no record has one.
        timestamps: Kafka's, in ms; None where there are none.
        headers: None where no record has one.
        years: of a file's lines, which are then decoded in their order: finds the years that their times lack.
    """

    topic: str
    partition: int
    offsets: list[int]
    values: list[bytes | None]
    keys: list[bytes | None] | None
    timestamps: list[int] | None
    headers: list[list[tuple[str, bytes | None]] | None] | None
    years: FileYears | None = None
