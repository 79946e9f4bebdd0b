"""What is each part of the model worth?

Trains the variants of `variants.py` and judges them as `benchmarks.accuracy` does, then makes the tables of all there
is. What has a result is not measured again. Every result is a file of its own, so that several processes may write
into one folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import orjson
from rich.console import Console

from benchmarks.accuracy import results
from benchmarks.accuracy.datasets import require_data
from benchmarks.accuracy.protocols import PROTOCOLS
from benchmarks.accuracy.results import RAW_LINES
from benchmarks.accuracy.runner import run
from benchmarks.accuracy.variants import variants
from detector.training.train import Size, TrainingOptions

BEGIN, END = "<!-- ablations -->", "<!-- end of ablations -->"
DEFAULT_PROTOCOLS = ("hdfs-random", "hdfs-random-normals", RAW_LINES)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.ablations", description=__doc__)
    titles = list(variants("tiny", "cpu", TrainingOptions()))
    parser.add_argument("--variant", nargs="*", choices=titles, default=titles, metavar="NAME", help=", ".join(titles))
    parser.add_argument("--size", nargs="+", choices=get_args(Size), default=["tiny"])
    parser.add_argument("--protocol", nargs="+", choices=PROTOCOLS, default=list(DEFAULT_PROTOCOLS), metavar="NAME")
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1], metavar="N", help="which, not how many")
    parser.add_argument("--training", nargs="+", default=[], metavar="NAME=VALUE", help="options of the training")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the results, a file each")
    parser.add_argument("--report", type=Path, metavar="FILE", help="Markdown that gets the tables of all results")
    arguments = parser.parse_args()
    require_data()
    try:
        options = training_options(arguments.training)
    except ValueError as error:
        raise SystemExit(str(error)) from error

    found = [variants(size, arguments.device, options) for size in arguments.size]
    asked = [of_size[title] for of_size in found for title in arguments.variant]
    for name in arguments.protocol:
        fitting = [each for each in asked if not each.protocols or name in each.protocols]
        run({name: PROTOCOLS[name]}, fitting, arguments.seed, arguments.output, command_of(arguments), Console())
    text = results.comparison(results.read_all(arguments.output, PROTOCOLS))
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
    if arguments.report:
        results.insert(arguments.report, BEGIN, END, text)


def training_options(pairs: Sequence[str]) -> TrainingOptions:
    """Options from "name=value" each, the rest at its default.

    Raises:
        ValueError: there is no such option, or the value is not JSON.
    """
    given = {}
    names = [each.name for each in fields(TrainingOptions)]
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in names:
            raise ValueError(f"{name!r} is no training option; allowed: {', '.join(names)}")
        try:
            given[name] = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"training option {pair!r}: its value is not JSON") from error
    return replace(TrainingOptions(), **given)


def command_of(arguments: argparse.Namespace) -> str:
    """The command without the paths, which change no figure."""
    lists = {"--variant": arguments.variant, "--size": arguments.size, "--protocol": arguments.protocol}
    lists |= {"--seed": map(str, arguments.seed), "--training": arguments.training, "--device": [arguments.device]}
    words = [" ".join((name, *values)) for name, given in lists.items() if (values := list(given))]
    return " ".join(("python -m benchmarks.accuracy.ablations", *words))


if __name__ == "__main__":
    main()
