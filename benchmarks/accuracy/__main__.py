"""`python -m benchmarks.accuracy`: measure what is not measured yet, then make the tables of all there is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from rich.console import Console

from benchmarks.accuracy import results
from benchmarks.accuracy.datasets import require_data
from benchmarks.accuracy.detectors import Detector, detectors
from benchmarks.accuracy.lstm import LstmClassifier, LstmNextEvent
from benchmarks.accuracy.protocols import PROTOCOLS
from benchmarks.accuracy.runner import run
from detector.training.train import Size


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    names = list(_detectors("tiny", "auto"))
    parser.add_argument("--protocol", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS), metavar="NAME")
    parser.add_argument("--detector", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N - 1")
    parser.add_argument("--size", choices=get_args(Size), default="tiny", help="of the product's model")
    parser.add_argument("--device", default="auto", help="of the product's model")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the results, a file each")
    parser.add_argument("--report", type=Path, metavar="FILE", help="Markdown that gets the tables of all results")
    arguments = parser.parse_args()
    require_data()

    console = Console()
    chosen = _detectors(arguments.size, arguments.device)
    run(
        {name: PROTOCOLS[name] for name in arguments.protocol},
        [chosen[name] for name in arguments.detector],
        range(arguments.seeds),
        arguments.output,
        command_of(arguments),
        console,
    )
    found = results.read_all(arguments.output, PROTOCOLS)
    results.show(console, found)
    if arguments.report:
        results.write_report(arguments.report, found)


def _detectors(size: Size, device: str) -> dict[str, Detector]:
    recurrent: tuple[Detector, ...] = (LstmNextEvent(), LstmClassifier())
    return detectors(size, device) | {each.name: each for each in recurrent}


def command_of(arguments: argparse.Namespace) -> str:
    """The command without the paths, which change no figure."""
    return (
        f"python -m benchmarks.accuracy --protocol {' '.join(arguments.protocol)} "
        f"--detector {' '.join(arguments.detector)} --seeds {arguments.seeds} --size {arguments.size} "
        f"--device {arguments.device}"
    )


if __name__ == "__main__":
    main()
