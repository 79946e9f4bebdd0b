"""How fast do the kernels run on this GPU, beside the layer's two matrix products and a copy of as many bytes?

bfloat16, at the reference size of a layer. Nothing is timed before every kernel has given, on fresh random inputs and
in memory full of NaN, what the recurrence gives in float64. Times are medians of device time, of many calls in a row
out of one CUDA graph, so that launches are hidden, those of forward and backward, too; and over so many bytes that none
is still in the cache from the call before.

Bytes of the operation: what it must read and write at least once, C, B, x, z and y in bfloat16 and adt, dt, trap and
angles in float32, 4,256 a token. Bytes of the step: the float32 matrices of the state, read and written once. A copy's
bytes are counted likewise, read and written.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from detector.model.model import Block, DetectorModel, Mamba3Layer, ModelConfig
from detector.text.word_hashes import TEXT_BUCKETS, TEXT_FEATURES
from kernels import Backend, Mamba3State, mamba3_mimo, mamba3_mimo_step
from kernels.arguments import Operands
from kernels.packing import Packing
from tests.kernels.inputs import Sizes, random_arguments, random_state, relative_error
from tests.kernels.poison import poisoned_memory
from tests.kernels.recurrence import mamba3_mimo_recurrence

CONFIG = ModelConfig.preset("reference", vocabulary_size=100)
SIZES = Sizes(
    heads=CONFIG.expand * CONFIG.d_model // CONFIG.headdim,
    headdim=CONFIG.headdim,
    d_state=CONFIG.d_state,
    rank=CONFIG.mimo_rank,
    rope_fraction=CONFIG.rope_fraction,
)
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
PER_TOKEN = ("C", "B", "x", "z", "adt", "dt", "trap", "angles")
PROJECTED = ("C", "B", "x", "z")
STEP_POOL = 8192
EVENTS = 20


@dataclass(frozen=True)
class Batch:
    """One layer on packed sequences; times in microseconds."""

    what: str
    tokens: int
    operation_us: float
    projections_us: float
    layer_us: float
    training_us: float


@dataclass(frozen=True)
class Step:
    """One token for each of that many sequences, the launch alone."""

    sequences: int
    us: float
    state_bytes: int


@dataclass(frozen=True)
class Figures:
    """All that was measured; latencies are of the whole model on one session, in microseconds."""

    device: str
    torch: str
    triton: str
    copy_bytes_per_s: float
    operation_bytes_per_token: int
    batches: list[Batch]
    steps: list[Step]
    session_us: float
    session_device_us: float


def shapes() -> dict[str, list[int]]:
    """Lengths of the sequences of each batch."""
    g = torch.Generator().manual_seed(0)

    def sessions(count: int) -> list[int]:
        lengths = torch.randint(13, 27, (count,), generator=g)
        lengths[torch.randperm(count, generator=g)[: count * 10 // 4096]] = 298
        return lengths.tolist()

    return {
        "4,096 sessions": sessions(4096),
        "32,768 sessions": sessions(32768),
        "64 x 512": [512] * 64,
        "8 x 4,096": [4096] * 8,
    }


def packing_of(lengths: Sequence[int]) -> Packing:
    return Packing.of(torch.tensor([0, *lengths]).cumsum(0).int(), torch.device("cuda"))


def as_a_layer_passes(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """The projected parts in bfloat16; steps and weights stay in float32."""
    return {name: t.bfloat16() if name in PROJECTED else t for name, t in arguments.items()}


def operation_arguments(tokens: int) -> dict[str, Tensor]:
    """On the device, repeated from a few thousand random tokens."""
    made = as_a_layer_passes(random_arguments(SIZES, [4096]))
    del made["cu_seqlens"]
    repeats = -(-tokens // 4096)
    per_token = {n: made[n].cuda().repeat(repeats, *[1] * (made[n].dim() - 1))[:tokens] for n in PER_TOKEN}
    return {name: t.cuda() for name, t in made.items()} | {name: t.contiguous() for name, t in per_token.items()}


def block_of(scale: float = 1.0) -> Block:
    """Float32 on the device; `scale` times the output of one that has just been initialised."""
    block = Block(CONFIG).cuda()
    with torch.no_grad():
        block.mixer.out_proj.weight.mul_(scale)
        for name, parameter in block.named_parameters():
            if "bias" in name or "mimo" in name or "norm" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return block


def agree(what: str, results: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    for name, tensor in expected.items():
        error = relative_error(results[name].cpu(), tensor.cpu())
        if not error < bound:
            raise SystemExit(
                f"{what}: {name} has a relative error of {error:.1e}, allowed {bound:.0e}; no speed to tell"
            )


def check_operation(dtype: torch.dtype, seed: int) -> None:
    lengths = [0, 1, 19, 26, 298, 40]
    arguments = random_arguments(SIZES, lengths, seed, dtype)
    dy = torch.randn(arguments["x"].shape).to(dtype)
    for name, tensor in arguments.items():
        tensor.requires_grad_(name != "cu_seqlens")
    expected, _ = mamba3_mimo_recurrence(arguments)
    leaves = [name for name in arguments if name != "cu_seqlens"]
    wanted = torch.autograd.grad((expected * dy.double()).sum(), [arguments[name] for name in leaves])

    on_device = {name: t.detach().cuda().requires_grad_(name != "cu_seqlens") for name, t in arguments.items()}
    on_device["cu_seqlens"] = packing_of(lengths)  # type: ignore[assignment]
    with poisoned_memory():
        y, _ = mamba3_mimo(**on_device, backend="triton")  # type: ignore[arg-type]
        found = torch.autograd.grad(y, [on_device[name] for name in leaves], dy.cuda())
    results = {"y": y} | {f"gradient of {name}": t for name, t in zip(leaves, found, strict=True)}
    named = {"y": expected} | {f"gradient of {name}": t for name, t in zip(leaves, wanted, strict=True)}
    agree(f"operation in {dtype}", results, named, BOUNDS[dtype])


def check_step(dtype: torch.dtype, seed: int) -> None:
    m, length = 5, 12
    arguments = random_arguments(SIZES, [length] * m, seed, dtype)
    start, slots = random_state(SIZES, 2 * m, seed), torch.randperm(2 * m)[:m]
    expected, final = mamba3_mimo_recurrence(arguments, Mamba3State(*(part[slots] for part in start)))
    pool = Mamba3State(*(part.cuda() for part in start))
    del arguments["cu_seqlens"]
    outputs = []
    for t in range(length):
        token = {n: v.unflatten(0, (m, length))[:, t] if n in PER_TOKEN else v for n, v in arguments.items()}
        with poisoned_memory():
            y = mamba3_mimo_step(**{n: v.cuda() for n, v in token.items()}, pool=pool, slots=slots, backend="triton")
        outputs.append(y)
    results = {"y": torch.stack(outputs, 1).flatten(0, 1)} | {n: t[slots.cuda()] for n, t in pool._asdict().items()}
    agree(f"step in {dtype}", results, {"y": expected} | final._asdict(), BOUNDS[dtype])


@torch.inference_mode()
def check_layer(dtype: torch.dtype, seed: int) -> None:
    from detector.model.cuda_inference import layer_weights
    from kernels.triton.inference.layer import layer_forward
    from tests.kernels.streams import stream_of

    torch.manual_seed(seed)
    lengths = [0, 1, 19, 26, 298, 40]
    block = block_of(scale=20)  # so that what is added to the residual stream outweighs it
    u = torch.randn(sum(lengths), CONFIG.d_model, device="cuda").to(dtype)
    packing = packing_of(lengths)
    weights = layer_weights(block, dtype)
    stream = stream_of(u)
    with poisoned_memory():
        layer_forward(stream, weights, packing)
    expected = block.double()(u.double(), packing.cu_seqlens, "reference")
    agree(f"layer in {dtype}", {"output": stream.u}, {"output": expected}, BOUNDS[dtype])


def check_training(dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    lengths = [0, 1, 19, 26, 298, 40]
    mixer = block_of().mixer.to(dtype)
    wide = deepcopy(mixer).double()
    u, dy = torch.randn(2, sum(lengths), CONFIG.d_model, device="cuda").to(dtype)
    packing = packing_of(lengths)

    def results(layer: Mamba3Layer, u: Tensor, dy: Tensor, backend: Backend) -> dict[str, Tensor]:
        leaves = {"u": u.requires_grad_(), **dict(layer.named_parameters())}
        y = layer(u, packing, backend)
        gradients = torch.autograd.grad(y, list(leaves.values()), dy)
        return {"y": y} | {f"gradient of {name}": t for name, t in zip(leaves, gradients, strict=True)}

    expected = results(wide, u.double(), dy.double(), "reference")
    with poisoned_memory():
        found = results(mixer, u, dy, "triton")
    agree(f"layer in training in {dtype}", found, expected, BOUNDS[dtype])


def median_us(calls: Sequence[Callable[[], object]], at_least_us: float = 100_000) -> float:
    """Device time of one call, out of rounds of all of them; each call should have a set of inputs of its own."""
    for _ in range(2):
        for call in calls:
            call()

    def round_us() -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for call in calls:
            call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) * 1e3

    rounds = min(50, max(7, math.ceil(at_least_us / round_us())))
    return statistics.median(round_us() for _ in range(rounds)) / len(calls)


def replayed_us(calls: Sequence[Callable[[], object]]) -> float:
    """As `median_us`, the calls being captured in one CUDA graph, which takes the host's part out of them."""
    for call in calls:
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return median_us([graph.replay]) / len(calls)


def copy_bytes_per_s() -> float:
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_us([lambda: target.copy_(source)] * 4) * 1e6


def measure_batch(what: str, lengths: Sequence[int]) -> Batch:
    from detector.model.cuda_inference import layer_weights
    from kernels.triton.inference.layer import layer_forward
    from tests.kernels.streams import stream_of

    packing, tokens = packing_of(lengths), sum(lengths)
    sets = 4
    arguments = operation_arguments(tokens)
    with torch.inference_mode():
        operation = replayed_us([lambda: mamba3_mimo(**arguments, cu_seqlens=packing)] * sets)  # type: ignore[arg-type]

    block = block_of()
    u = torch.randn(tokens, CONFIG.d_model, device="cuda").bfloat16()
    inner = torch.randn(tokens, CONFIG.expand * CONFIG.d_model, device="cuda").bfloat16()
    with torch.inference_mode():
        entering, leaving = (p.weight.bfloat16() for p in (block.mixer.in_proj, block.mixer.out_proj))
        projections = replayed_us([lambda: (functional.linear(u, entering), functional.linear(inner, leaving))] * sets)
        weights = layer_weights(block, torch.bfloat16)
        stream = stream_of(u)
        layer = replayed_us([lambda: layer_forward(stream, weights, packing)] * sets)

    mixer = block.mixer.bfloat16()
    u = torch.randn_like(u).requires_grad_()
    dy = torch.randn_like(u)
    leaves = [u, *mixer.parameters()]
    training = replayed_us([lambda: torch.autograd.grad(mixer(u, packing), leaves, dy)] * sets)
    return Batch(what, tokens, operation, projections, layer, training)


@torch.inference_mode()
def measure_steps() -> list[Step]:
    from kernels.triton.step import mamba3_mimo_step_triton

    pool = Mamba3State(*(t.cuda().repeat(STEP_POOL // 64, *[1] * (t.dim() - 1)) for t in random_state(SIZES, 64)))
    steps = []
    for m in (1, 256, 4096):
        arguments = operation_arguments(m)
        # Slots of eight calls are not in the cache together: each state is from memory.
        order = torch.randperm(STEP_POOL, device="cuda")
        slots = [order.roll(-m * i)[:m] for i in range(8)]
        launches = [partial(mamba3_mimo_step_triton, Operands(**arguments), pool, s) for s in slots]
        us = replayed_us(launches)
        steps.append(Step(m, us, 2 * m * pool.ssm[0].nbytes))
    return steps


@torch.inference_mode()
def measure_session() -> tuple[float, float]:
    """The whole model on one session: from arrays on the host to arrays on the host, and the device alone."""
    from detector.model.cuda_inference import PreparedModel

    features = torch.randint(0, TEXT_BUCKETS, (CONFIG.vocabulary_size, TEXT_FEATURES))
    prepared = PreparedModel(DetectorModel(CONFIG, features).cuda(), torch.bfloat16)
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocabulary_size, EVENTS + 2)
    bounds = np.array([0, EVENTS + 2], dtype=np.int32)
    seconds = []
    for _ in range(300):
        started = time.perf_counter()
        prepared.begin(tokens, bounds)()
        seconds.append(time.perf_counter() - started)
    on_device, packing = torch.from_numpy(tokens).cuda(), packing_of([EVENTS + 2])
    out = torch.empty(2, EVENTS + 2, device="cuda")
    device_us = replayed_us([lambda: prepared.run(on_device, packing, out)])
    return statistics.median(seconds[100:]) * 1e6, device_us


def operation_bytes_per_token() -> int:
    projected = 2 * SIZES.rank * SIZES.d_state + 3 * SIZES.heads * SIZES.headdim
    return 2 * projected + 4 * (3 * SIZES.heads + SIZES.angles)


def print_figures(figures: Figures) -> None:
    console = Console(width=140)
    copy = figures.copy_bytes_per_s
    console.print(f"{figures.device}, torch {figures.torch}, triton {figures.triton}, copy {copy / 1e12:.2f} TB/s")
    table = Table("one layer", "tokens", "operation", "bytes/s (of a copy)", "projections", "operation / projections",
                  "layer", "forward + backward")  # fmt: skip
    for batch in figures.batches:
        moved = figures.operation_bytes_per_token * batch.tokens / batch.operation_us * 1e6
        rates = [
            f"{batch.tokens / us:.1f} Mtok/s"
            for us in (batch.operation_us, batch.projections_us, batch.layer_us, batch.training_us)
        ]
        ratio = f"{batch.operation_us / batch.projections_us:.2f}"
        bandwidth = f"{moved / 1e12:.2f} TB/s ({moved / copy:.0%})"
        table.add_row(batch.what, f"{batch.tokens:,}", rates[0], bandwidth, rates[1], ratio, *rates[2:])
    console.print(table)
    table = Table("step of sequences", "time", "bytes/s (of a copy)")
    for step in figures.steps:
        moved = step.state_bytes / step.us * 1e6
        table.add_row(f"{step.sequences:,}", f"{step.us:.1f} us", f"{moved / 1e12:.2f} TB/s ({moved / copy:.0%})")
    console.print(table)
    console.print(
        f"one session of {EVENTS} events, {CONFIG.n_layers} layers: {figures.session_us:.0f} us from host to host, "
        f"{figures.session_device_us:.0f} us of it on the device"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here, so there is nothing to measure.")
        return
    import triton

    seed = int.from_bytes(np.random.default_rng().bytes(4)) // 2
    print(f"checks with seed {seed}", file=sys.stderr)
    for dtype in BOUNDS:
        check_operation(dtype, seed)
        check_step(dtype, seed)
        check_layer(dtype, seed)
        check_training(dtype, seed)
    batches = [measure_batch(what, lengths) for what, lengths in shapes().items()]
    session_us, session_device_us = measure_session()
    figures = Figures(
        device=torch.cuda.get_device_name(),
        torch=torch.__version__,
        triton=triton.__version__,
        copy_bytes_per_s=copy_bytes_per_s(),
        operation_bytes_per_token=operation_bytes_per_token(),
        batches=batches,
        steps=measure_steps(),
        session_us=session_us,
        session_device_us=session_device_us,
    )
    print_figures(figures)
    if arguments.output:
        arguments.output.write_text(json.dumps(asdict(figures), indent=2) + "\n")


if __name__ == "__main__":
    main()
