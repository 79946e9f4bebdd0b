"""Mamba-3, an LSTM and a Transformer of as many parameters in the product's model: accuracy, training and forward time.

All else is the same: embeddings, heads, training, calibration, count profile. Times are CPU seconds of one thread; the
forward passes of the three alternate, the best of several rounds counts. On a GPU Mamba-3 has kernels that the others
have not, so this is about a CPU alone.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import torch
from rich.console import Console

from benchmarks.accuracy import measures
from benchmarks.accuracy.datasets import require_data
from benchmarks.accuracy.protocols import PROTOCOLS
from benchmarks.accuracy.results import markdown
from benchmarks.accuracy.tasks import Task
from benchmarks.accuracy.variants import Variant, variants
from detector.model.devices import CPU_BATCH_TOKENS
from detector.model.inference import Inference, flat
from detector.training.train import TrainingOptions

TITLES = {"base": "Mamba-3", "lstm": "LSTM", "transformer": "Transformer"}
SESSIONS = 2_000


@dataclass(frozen=True)
class Figures:
    """Of one architecture; times in CPU seconds."""

    name: str
    parameters: int
    forward_us: float
    training_s: float
    misses: int
    false_alarms: int
    f1: float
    auprc: float


def forward_times(task: Task, found: list[Variant], rounds: int) -> list[float]:
    """CPU seconds of one pass over the first sessions of the test part, of each variant."""
    sessions = task.test.tokens[:SESSIONS]
    passes = [
        Inference(each.architecture.initial(task, "tiny", 0).eval(), batch_tokens=CPU_BATCH_TOKENS, backend="reference")
        for each in found
    ]
    best = [float("inf")] * len(found)
    for _ in range(rounds + 1):
        for number, inference in enumerate(passes):
            begun = time.process_time()
            for _ in inference.measure(*flat(sessions)):
                pass
            best[number] = min(best[number], time.process_time() - begun)
    return best


def measure(protocol: str, seed: int, options: TrainingOptions, rounds: int) -> list[Figures]:
    """Train and judge each."""
    task = Task.of(PROTOCOLS[protocol], seed)
    found = [each for each in variants("tiny", "cpu", options).values() if each.title in TITLES]
    forward = forward_times(task, found, rounds)
    events = sum(map(len, task.test.tokens[:SESSIONS]))
    figures = []
    for each, seconds in zip(found, forward, strict=True):
        begun = time.process_time()
        outcome = each.run(task, seed)
        training_s = time.process_time() - begun
        at = measures.measure(task, outcome.test, outcome.fixed)["sessions"]
        point = at["at"]["warning"]  # type: ignore[index]
        parameters = sum(x.numel() for x in each.architecture.initial(task, "tiny", seed).blocks.parameters())
        figures.append(
            Figures(
                TITLES[each.title],
                parameters,
                seconds / events * 1e6,
                training_s,
                point["misses"],
                point["false_alarms"],
                point["f1"],
                at["auprc"],  # type: ignore[arg-type]
            )
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.architectures", description=__doc__)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="hdfs-random", metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs=2, metavar="N", help="most steps of each stage of the training")
    parser.add_argument("--rounds", type=int, default=5, help="of forward passes")
    arguments = parser.parse_args()
    require_data()
    torch.set_num_threads(1)
    header = "blocks of|parameters of the blocks|misses + false alarms at 0.7|F1|AUPRC|training, s|forward, us an event"
    steps = arguments.steps or (None, None)
    options = TrainingOptions(next_token_steps=steps[0], classifier_steps=steps[1])
    rows = [
        (
            each.name,
            f"{each.parameters:,}",
            f"{each.misses} + {each.false_alarms}",
            f"{each.f1:.4f}",
            f"{each.auprc:.4f}",
            f"{each.training_s:.0f}",
            f"{each.forward_us:.2f}",
        )
        for each in measure(arguments.protocol, arguments.seed, options, arguments.rounds)
    ]
    Console().print(markdown(header, rows), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
