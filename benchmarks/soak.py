"""Does a worker's memory stay flat, hour after hour?

A real broker on this machine and a steady stream of generated lines. The worker's resident memory is sampled once a
second; after a warm-up, in which caches fill, a straight line is fitted through the lowest sample of each of 20 spans
of time, whose scatter gives the slope's standard error: what a worker holds is what remains at its lowest, the rest
comes and goes with each forward pass. The memory is flat when the slope is no more than noise: at most two standard
errors above zero. Every block must also have been scored, and no session twice.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from detector.checkpoint import demo_checkpoint
from tests.broker.harness import Application
from tests.broker.kafka import KafkaBroker

PARTITIONS = 4
WARM_UP = 0.2  # share of the time
SPANS = 20
MEGABYTE = 1e6
# What fills over hours would look like growth over minutes; each is bounded by its setting.
SETTINGS = {"model": {"score_cache": 2_000}, "sessions": {"gap": "2m", "idle_flush": "5s"}}


@dataclass(frozen=True)
class Soak:
    """What a run showed; memory in MB (10^6 bytes)."""

    minutes: float
    lines: int
    sessions: int
    blocks_without_score: int
    scored_twice: int
    first_mb: float
    last_mb: float
    peak_mb: float
    spans_mb: list[float]
    slope_mb_per_hour: float
    standard_error_mb_per_hour: float
    flat: bool


def slope(values: Sequence[float]) -> tuple[float, float]:
    """Slope of the line through values at equal distances, and its standard error, both from one value to the next."""
    levels = np.asarray(values)
    centred = np.arange(len(levels)) - (len(levels) - 1) / 2
    spread = float(centred @ centred)
    fitted = float(centred @ levels) / spread
    scatter = levels - levels.mean() - fitted * centred
    return fitted, float(np.sqrt(scatter @ scatter / (len(levels) - 2) / spread))


def soak(folder: Path, minutes: float, rate: int) -> Soak:
    """Run a broker, a generator and a worker for so long."""
    broker = KafkaBroker(folder / "kafka").start()
    try:
        application = Application(broker.bootstrap, folder, demo_checkpoint(), PARTITIONS, **SETTINGS)
        lines, truth = int(minutes * 60 * rate), folder / "truth.csv"
        arguments = ["generate", "--lines", lines, "--rate", rate, "--config", application.config, "--labels", truth]
        times: list[float] = []
        resident: list[float] = []
        with application.start() as worker:
            process = psutil.Process(worker.process.pid)
            generator = subprocess.Popen(
                [sys.executable, "-m", "worker", *map(str, arguments)], stderr=subprocess.DEVNULL
            )
            began = time.monotonic()
            while generator.poll() is None:
                if worker.process.poll() is not None:
                    generator.terminate()
                    raise SystemExit(f"the worker ended early:\n{worker.tail()}")
                times.append(time.monotonic() - began)
                resident.append(process.memory_info().rss / MEGABYTE)
                time.sleep(1.0)
            took_s = time.monotonic() - began
            worker.wait_until(lambda: sum(max(0, each.offset) for each in application.committed().values()) >= lines)
            blocks = {row.split(",")[0] for row in truth.read_text().splitlines()[1:]}
            worker.wait_until(lambda: blocks <= {each["session"] for each in application.scores()}, 300)
            assert worker.stop() == 0, worker.tail()
        finals = [score for score in application.scores() if score["kind"] == "final"]
    finally:
        broker.stop()
    sessions = Counter((score["source"]["partition"], score["source"]["first_offset"]) for score in finals)
    begin = next(at for at, now in enumerate(times) if now >= WARM_UP * took_s)
    # Neighbouring samples are alike: an error taken from them one by one would be far too small.
    spans = [float(part.min()) for part in np.array_split(np.asarray(resident[begin:]), SPANS)]
    per_span, error = slope(spans)
    spans_per_hour = 3600 * SPANS / (times[-1] - times[begin])
    return Soak(
        minutes=took_s / 60,
        lines=lines,
        sessions=len(sessions),
        blocks_without_score=len(blocks - {score["session"] for score in finals}),
        scored_twice=sum(count > 1 for count in sessions.values()),
        first_mb=resident[begin],
        last_mb=resident[-1],
        peak_mb=max(resident),
        spans_mb=spans,
        slope_mb_per_hour=per_span * spans_per_hour,
        standard_error_mb_per_hour=error * spans_per_hour,
        flat=per_span <= 2 * error,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=int, default=1_000, help="lines a second")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = soak(Path(name), arguments.minutes, arguments.rate)
    table = Table("", "", title=f"{result.minutes:.0f} minutes, {result.lines:,} lines", show_header=False)
    table.add_row("sessions scored", f"{result.sessions:,}")
    table.add_row("blocks without a score", f"{result.blocks_without_score:,}")
    table.add_row("sessions scored twice", f"{result.scored_twice:,}")
    table.add_row(
        "resident MB: after the warm-up, last, peak",
        f"{result.first_mb:,.1f}, {result.last_mb:,.1f}, {result.peak_mb:,.1f}",
    )
    table.add_row("slope, MB an hour", f"{result.slope_mb_per_hour:+.2f} ± {result.standard_error_mb_per_hour:.2f}")
    table.add_row("memory", "flat: the slope is within noise" if result.flat else "grows")
    Console().print(table)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(asdict(result), indent=2) + "\n")
    if not result.flat or result.blocks_without_score or result.scored_twice:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
