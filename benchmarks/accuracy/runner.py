"""Runs detectors on protocols, skipping what has a result already."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.accuracy import measures, results
from benchmarks.accuracy.detectors import Detector
from benchmarks.accuracy.devices import device_name
from benchmarks.accuracy.protocols import Protocol
from benchmarks.accuracy.tasks import Task
from detector.model.devices import resolve_device


def run(
    protocols: Mapping[str, Protocol],
    detectors: Sequence[Detector],
    seeds: Sequence[int],
    output: Path,
    command: str,
    console: Console,
) -> None:
    """Write a result for every protocol, seed and detector that fits it, unless there is one.

    Args:
        protocols: by name.
        detectors: to run.
        seeds: of splits and detectors.
        output: folder of the results.
        command: that runs them, for the record.
        console: told of each result.
    """
    for name, protocol in protocols.items():
        fitting = [detector for detector in detectors if detector.fits(protocol)]
        for seed in seeds:
            paths = {each: results.path_of(output, name, each.name, seed) for each in fitting}
            missing = [detector for detector, path in paths.items() if not path.exists()]
            if not missing:
                continue
            task = Task.of(protocol, seed)
            for detector in missing:
                result: results.Result = {"protocol": name, "title": protocol.title, "command": command}
                result |= _measure(task, detector, seed)
                results.write(paths[detector], result)
                point = result["figures"]["sessions"]["at"][result["headline"]]
                console.print(
                    f"{name}, {detector.name}, seed {seed}: F1 {point['f1']:.4f} ({result['headline']}), "
                    f"{point['misses']} misses, {point['false_alarms']} false alarms, {result['seconds']:.0f} s",
                    highlight=False,
                    soft_wrap=True,
                )


def _measure(task: Task, detector: Detector, seed: int) -> results.Result:
    """Train and judge one detector."""
    begun = time.monotonic()
    outcome = detector.run(task, seed)
    seconds = time.monotonic() - begun
    at = measures.thresholds(task, outcome.validation, outcome.fixed)
    headline = "validation" if task.labelled else f"p{measures.PERCENTILES[0]}"
    if task.as_they_come:
        headline = outcome.headline
    return {
        "detector": detector.name,
        "seed": seed,
        "device": device_name(resolve_device(detector.device)),
        "torch": torch.__version__,
        "seconds": seconds,
        "notes": dict(outcome.notes),
        "data": measures.describe(task),
        "figures": measures.measure(task, outcome.test, at),
        "early": {name: each._asdict() for name, each in outcome.early.items()},
        "headline": headline,
        "mistakes": measures.mistakes(task.test, outcome.test, at[headline]),
    }
