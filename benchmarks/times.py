"""How fast do texts become event times, in each format?

Each text names another moment, so none is read once for many. Beside it stands what reads such texts one by one:
`datetime.strptime`, or `datetime.fromisoformat` where there is no format for it. Figures are CPU time of one core, the
best of several rounds, which alternate. `extract` finds the texts in lines before they are read.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from worker.formats.line_patterns import LinePattern
from worker.formats.times.reader import TimeReader

LINES = 200_000
BATCH = 10_000
ONE_BY_ONE = 20_000  # that is slow: fewer texts tell its rate
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
BERLIN = ZoneInfo("Europe/Berlin")
START = datetime(2024, 1, 15, tzinfo=UTC)

STRPTIME = "%Y-%m-%d %H:%M:%S"
# Format, how its texts are written, how they are read one by one, further settings of the reader.
CASES: Sequence[tuple[str, Callable[[datetime], str], Callable[[str], object], dict[str, str]]] = [
    (STRPTIME, lambda t: t.strftime(STRPTIME), lambda x: datetime.strptime(x, STRPTIME), {}),  # noqa: DTZ007
    (
        "iso8601",
        lambda t: t.isoformat(timespec="milliseconds"),
        lambda x: (datetime.fromisoformat(x) - EPOCH) // MILLISECOND,
        {},
    ),
    (
        "iso8601",
        lambda t: t.strftime(STRPTIME),
        lambda x: (datetime.fromisoformat(x).replace(tzinfo=BERLIN) - EPOCH) // MILLISECOND,
        {"timezone": "Europe/Berlin"},
    ),
    ("epoch", lambda t: f"{t.timestamp():.3f}", lambda x: datetime.fromtimestamp(float(x), UTC), {}),
    ("epoch_ns", lambda t: f"{t.timestamp():.0f}123456789", lambda x: datetime.fromtimestamp(int(x) / 1e9, UTC), {}),
    ("syslog", lambda t: f"{t:%b} {t.day:2} {t:%H:%M:%S}", lambda x: datetime.strptime(x, "%b %d %H:%M:%S"), {}),  # noqa: DTZ007
    ("klog", lambda t: f"I{t:%m%d %H:%M:%S.%f}", lambda x: datetime.strptime(x, "I%m%d %H:%M:%S.%f"), {}),  # noqa: DTZ007
    (
        "%d/%b/%Y:%H:%M:%S %z",
        lambda t: t.strftime("%d/%b/%Y:%H:%M:%S %z"),
        lambda x: datetime.strptime(x, "%d/%b/%Y:%H:%M:%S %z"),
        {},
    ),
    (
        "%Y%m%d-%H:%M:%S:%L",
        lambda t: f"{t:%Y%m%d}-{t.hour}:{t.minute}:{t.second}:{t.microsecond // 1000}",
        lambda x: datetime.strptime(x, "%Y%m%d-%H:%M:%S:%f"),  # noqa: DTZ007
        {},
    ),
]


@dataclass(frozen=True)
class Speed:
    """Of one format: lines a second of CPU time, and how many times as many as one by one."""

    format: str
    example: str
    settings: dict[str, str]
    lines_per_s: float
    extract_lines_per_s: float | None
    one_by_one_per_s: float
    ratio: float


def seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def measure(rounds: int) -> list[Speed]:
    speeds = []
    for name, write, one, settings in CASES:
        texts = [write(START + timedelta(seconds=n, milliseconds=n % 997)) for n in range(LINES)]
        batches = [pa.array(texts[first : first + BATCH]) for first in range(0, LINES, BATCH)]
        lines = [pa.array([f"{text} service message {text}" for text in batch.to_pylist()]) for batch in batches]
        reader = TimeReader([name], **settings)
        pattern = reader.formats[0].pattern
        references = np.full(BATCH, 1_705_276_800_000)

        def read(batches: Sequence[pa.StringArray] = batches, reader: TimeReader = reader) -> None:
            for batch in batches:
                times = reader.read(batch)
                reader.complete(times, references)  # noqa: B023
                reader.utc(times)
                if not times.read.all():
                    raise SystemExit(f"{name}: not every text is a time; no figures")  # noqa: B023

        def extract(lines: Sequence[pa.StringArray] = lines, pattern: str | None = pattern) -> None:
            found = LinePattern(pattern or "")
            for batch in lines:
                found.extract(batch).dictionary_encode()

        def one_by_one(texts: Sequence[str] = texts, one: Callable[[str], object] = one) -> None:
            for text in texts[:ONE_BY_ONE]:
                one(text)

        best = [float("inf")] * 3
        for _ in range(rounds):
            for index, work in enumerate((read, one_by_one, extract)):
                if work is not extract or pattern is not None:
                    best[index] = min(best[index], seconds(work))
        rate, alone = LINES / best[0], ONE_BY_ONE / best[1]
        found = None if pattern is None else LINES / best[2]
        speeds.append(Speed(name, texts[1], settings, rate, found, alone, rate / alone))
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    speeds = measure(arguments.rounds)
    table = Table("format", "example", "k lines/s", "extract, k lines/s", "one by one, k/s", "ratio")
    for each in speeds:
        extract = "" if each.extract_lines_per_s is None else f"{each.extract_lines_per_s / 1e3:,.0f}"
        name = " ".join((each.format, *each.settings.values()))
        figures = f"{each.lines_per_s / 1e3:,.0f}", extract, f"{each.one_by_one_per_s / 1e3:,.0f}", f"{each.ratio:.1f}"
        table.add_row(name, each.example, *figures)
    Console().print(table)
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(each) for each in speeds], indent=2) + "\n")


if __name__ == "__main__":
    main()
