"""How fast does the model run on this CPU: sessions of about 20 events, scored and trained on, by size and threads?

Nothing is timed before a session scored alone has given the same bits as among the others. Figures are wall time, the
best of several rounds; with more threads than idle cores the threads wait for each other and the figures collapse.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from detector.model.model import DetectorModel, ModelConfig
from detector.text.word_hashes import TEXT_BUCKETS, TEXT_FEATURES

VOCABULARY = 100
SIZES: tuple[Literal["tiny", "small"], ...] = ("tiny", "small")


@dataclass(frozen=True)
class Rate:
    """Tokens, BOS and EOS included, a second."""

    size: str
    threads: int
    scored_per_s: float
    trained_per_s: float


def sessions(count: int) -> tuple[Tensor, Tensor]:
    """Packed tokens and cu_seqlens of sessions of 15 to 25 events."""
    lengths = torch.randint(17, 28, (count,))
    bounds = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    return torch.randint(0, VOCABULARY, (int(bounds[-1]),)), bounds.int()


def best_seconds(run: Callable[[], object], rounds: int) -> float:
    """Of several rounds, after one that is not timed."""
    run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


@torch.inference_mode()
def score(model: DetectorModel, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
    next_token, _ = model(tokens, cu_seqlens)
    return next_token


def train(model: DetectorModel, tokens: Tensor, cu_seqlens: Tensor) -> None:
    next_token, class_logits = model(tokens, cu_seqlens)
    (functional.cross_entropy(next_token, tokens) + class_logits.mean()).backward()
    model.zero_grad(set_to_none=True)


def measure(size: Literal["tiny", "small"], threads: int, n_sessions: int, rounds: int) -> Rate:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    features = torch.randint(0, TEXT_BUCKETS, (VOCABULARY, TEXT_FEATURES))
    model = DetectorModel(ModelConfig.preset(size, VOCABULARY), features)
    tokens, cu_seqlens = sessions(n_sessions)
    first = cu_seqlens[:2]
    end = int(first[1])
    if not torch.equal(score(model, tokens[:end], first), score(model, tokens, cu_seqlens)[:end]):
        raise SystemExit(f"{size}: a session alone gets other scores than among others; no speed to tell")
    scored = best_seconds(lambda: score(model, tokens, cu_seqlens), rounds)
    part = cu_seqlens[: min(n_sessions, 180) + 1]
    n_trained = int(part[-1])
    trained = best_seconds(lambda: train(model, tokens[:n_trained], part), rounds)
    return Rate(size, threads, tokens.numel() / scored, n_trained / trained)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()

    rates = [
        measure(size, threads, arguments.sessions, arguments.rounds) for size in SIZES for threads in arguments.threads
    ]
    table = Table("model", "threads", "scored", "trained on")
    for each in rates:
        scored, trained = f"{each.scored_per_s / 1e3:.1f} k tokens/s", f"{each.trained_per_s / 1e3:.1f} k tokens/s"
        table.add_row(each.size, str(each.threads), scored, trained)
    Console().print(table)
    if arguments.output:
        arguments.output.write_text(json.dumps([asdict(each) for each in rates], indent=2) + "\n")


if __name__ == "__main__":
    main()
