"""What do the model's sizes cost: parameters, checkpoint, time of a forward pass, speed of training, memory?

Sessions are made up, as many templates and events in them as in HDFS: nothing else decides what a pass takes. A size
trains in a process of its own and scores in another, so that neither's memory is taken for the other's.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar, get_args

import numpy as np
import orjson
import torch
from rich.console import Console

from benchmarks.accuracy.devices import device_name
from benchmarks.accuracy.results import insert, markdown
from detector.checkpoint import load
from detector.model.devices import Precision, compute_dtype, pass_tokens, resolve_device
from detector.model.inference import Inference, Tokens, flat
from detector.text.vocabulary import N_SPECIAL, Vocabulary
from detector.training.train import Size, TrainingOptions, TrainingProgress, TrainingSessions, train

BEGIN, END = "<!-- sizes -->", "<!-- end of sizes -->"
TEMPLATES = 28
SHORTEST, LONGEST = 13, 26
# Sessions repeat each other's counts, in other orders.
COUNT_VECTORS = 100
TRAINED_SESSIONS = 2000
# The first report of a training is of steps that compile kernels, the last of one that validates.
TRAINED_STEPS = 30
WARM_UP_ROUNDS, TIMED_ROUNDS = 3, 7

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Trained:
    """Of a training.

    Attributes:
        parameters: numbers that it learns.
        checkpoint_bytes: of all the checkpoint's files.
        tokens_per_s: trained on, BOS and EOS included.
        memory_bytes: most that it took: on a GPU what PyTorch had allocated there, else what the process had beyond
            Python and its libraries.
    """

    parameters: int
    checkpoint_bytes: int
    tokens_per_s: float
    memory_bytes: int


@dataclass(frozen=True)
class Pass:
    """Of scoring so many sessions at once, from tokens in the host's memory to surprises there: the median."""

    sessions: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Cost:
    """Of a size.

    Attributes:
        size: of the model.
        device: what people call it.
        precision: of scoring.
        batch_tokens: of a training step.
        trained: of a training, in the precision that it chooses there.
        passes: of scoring.
        memory_bytes: of scoring, as `Trained.memory_bytes`.
    """

    size: Size
    device: str
    precision: Precision
    batch_tokens: int
    trained: Trained
    passes: Sequence[Pass]
    memory_bytes: int

    @classmethod
    def measure(
        cls, size: Size, *, device: str, precision: Precision, sessions: Sequence[int], batch_tokens: int
    ) -> Cost:
        """Train for some steps, then score.

        Args:
            size: of the model.
            device: as for the scorer.
            precision: of scoring.
            sessions: in a pass.
            batch_tokens: of a training step.
        """
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "checkpoint"
            trained = _apart(_train, size, device, batch_tokens, checkpoint)
            passes, memory_bytes = _apart(_score, checkpoint, device, precision, sessions)
        name = device_name(resolve_device(device))
        return cls(size, name, precision, batch_tokens, trained, passes, memory_bytes)

    def write(self, output: Path) -> None:
        """As a file of its own."""
        device = "-".join(self.device.split())
        path = output / f"{self.size}-{self.precision}-{self.batch_tokens}-{device}.json"
        output.mkdir(parents=True, exist_ok=True)
        path.write_bytes(orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def table(output: Path) -> str:
    """Everything measured, as Markdown."""
    costs = [orjson.loads(path.read_bytes()) for path in sorted(output.glob("*.json"))]
    costs.sort(key=lambda each: (each["device"], each["precision"], each["trained"]["parameters"]))
    rows = [
        [
            each["size"],
            each["device"],
            each["precision"],
            f"{each['trained']['parameters'] / 1e6:.2f} M",
            f"{each['trained']['checkpoint_bytes'] / 1e6:.1f} MB",
            ", ".join(
                f"{one['sessions']:,} in {one['seconds'] * 1e3:.1f} ms ({one['tokens'] / one['seconds'] / 1e3:,.1f} k)"
                for one in each["passes"]
            ),
            f"{each['memory_bytes'] / 1e6:,.0f} MB",
            f"{each['batch_tokens']:,} a step ({each['trained']['tokens_per_s'] / 1e3:,.1f} k)",
            f"{each['trained']['memory_bytes'] / 1e6:,.0f} MB",
        ]
        for each in costs
    ]
    header = (
        "size|device|precision|parameters|checkpoint|sessions scored (tokens/s)|memory|trained on (tokens/s)|memory"
    )
    return markdown(header, rows) + "\n"


def _apart(run: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """What it returns, from a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(run, *args, **kwargs).result()


def _train(size: Size, device: str, batch_tokens: int, checkpoint: Path) -> Trained:
    without = _memory_bytes(device)
    reports: list[TrainingProgress] = []
    trained = train(
        TrainingSessions.of(_sessions(TRAINED_SESSIONS)),
        Vocabulary(tuple(f"E{number}" for number in range(TEMPLATES)), kind="events"),
        size=size,
        device=device,
        options=TrainingOptions(next_token_steps=TRAINED_STEPS, validations=1, batch_tokens=batch_tokens),
        progress=reports.append,
    )
    trained.save(checkpoint)
    return Trained(
        parameters=sum(each.numel() for each in trained.model.parameters()),
        checkpoint_bytes=sum(path.stat().st_size for path in checkpoint.iterdir()),
        tokens_per_s=max(each.tokens_per_s for each in reports if each.validation_loss is None),
        memory_bytes=_memory_bytes(device) - without,
    )


def _score(checkpoint: Path, device: str, precision: Precision, sessions: Sequence[int]) -> tuple[list[Pass], int]:
    without = _memory_bytes(device)
    target = resolve_device(device)
    inference = Inference(
        load(checkpoint).build_model().to(target),
        batch_tokens=pass_tokens(target),
        dtype=compute_dtype(precision, target),
    )
    passes = []
    for count in sessions:
        sequences = _sessions(count)
        tokens = sum(len(events) + 2 for events in sequences)
        passes.append(Pass(count, tokens, _seconds(inference, sequences)))
    return passes, _memory_bytes(device) - without


def _memory_bytes(device: str) -> int:
    """Most that this process has had so far."""
    target = resolve_device(device)
    if target.type == "cuda":
        return torch.cuda.max_memory_allocated(target)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _seconds(inference: Inference, sequences: Sequence[Tokens]) -> float:
    """The median of some rounds, after others that compile kernels and capture graphs."""
    rounds: list[float] = []
    while len(rounds) < WARM_UP_ROUNDS + TIMED_ROUNDS:
        begun = time.perf_counter()
        for _ in inference.measure(*flat(sequences)):
            pass
        rounds.append(time.perf_counter() - begun)
    return statistics.median(rounds[WARM_UP_ROUNDS:])


def _sessions(count: int) -> list[Tokens]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(SHORTEST, LONGEST, COUNT_VECTORS, endpoint=True)
    vectors = [rng.integers(N_SPECIAL, N_SPECIAL + TEMPLATES, length) for length in lengths]
    return [rng.permutation(vectors[number % COUNT_VECTORS]) for number in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy.sizes", description=__doc__)
    sizes = get_args(Size)
    parser.add_argument("--size", nargs="*", choices=sizes, default=sizes, help="none: only the table")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--precision", nargs="+", choices=["float32", "bfloat16"], default=["float32"], help="of scoring"
    )
    parser.add_argument("--sessions", nargs="+", type=int, default=[64, 1024], metavar="N", help="scored at once")
    parser.add_argument("--batch-tokens", type=int, default=TrainingOptions().batch_tokens, help="of a training step")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the results, a file each")
    parser.add_argument("--report", type=Path, metavar="FILE", help="Markdown that gets the table of all results")
    arguments = parser.parse_args()
    for size, precision in product(arguments.size, arguments.precision):
        cost = Cost.measure(
            size,
            device=arguments.device,
            precision=precision,
            sessions=arguments.sessions,
            batch_tokens=arguments.batch_tokens,
        )
        cost.write(arguments.output)
    text = table(arguments.output)
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
    if arguments.report:
        insert(arguments.report, BEGIN, END, text)


if __name__ == "__main__":
    main()
