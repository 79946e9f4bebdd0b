"""The Triton kernels give what the recurrence gives, whatever shares the batch and wherever a sequence is cut.

Without a GPU they are interpreted on the CPU, in the shapes that take another way through the kernels.
"""

import gc
import weakref
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kernels import Mamba3State, mamba3_mimo
from kernels.packing import SEGMENT, Packing
from tests.kernels.inputs import Sizes, assert_close, random_arguments, random_state
from tests.kernels.recurrence import mamba3_mimo_recurrence
from tests.kernels.test_golden import OPERATIONS, section
from tests.shared import needs_shared

pytestmark = pytest.mark.usefixtures("poisoned")

ON_GPU = torch.cuda.is_available()
PER_TOKEN = ("C", "B", "x", "z", "adt", "dt", "trap", "angles")
PRECISIONS = [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
SMALL = Sizes(heads=1, headdim=16, d_state=16, rank=2)
# With kernels of its own on a GPU, in each type.
REFERENCE = Sizes(heads=8, headdim=64, d_state=64, rank=4)
KINDS = [(SMALL, torch.float32)]
# Every rank; tiles that are filled and that are not, small and large; both rope fractions.
SIZES = [Sizes(2, 16, 128, 1, 0.5), Sizes(1, 24, 16, 2, 1.0), Sizes(1, 64, 64, 4, 0.5), Sizes(1, 96, 48, 8, 1.0)]
GOLDEN = OPERATIONS
# Of SMALL around the ends of one chunk, two and four, which are a segment.
EDGES = [0, 31, 32, 33, 0, 64, 65, 128, 2 * SEGMENT + 1]
if ON_GPU:  # every size from 16 to 128
    KINDS += [(REFERENCE, torch.float32), (REFERENCE, torch.bfloat16)]
    SIZES += [
        *(Sizes(1, 48, 24, 4, 0.5), Sizes(1, 128, 96, 2, 0.5), Sizes(1, 128, 128, 8, 1.0), Sizes(1, 64, 32, 1, 1.0)),
        *(Sizes(2, 32, 64, 4, 0.5), Sizes(1, 32, 128, 2, 0.5), Sizes(2, 64, 64, 4, 1.0)),
    ]
    EDGES += [1, 15, 16, 17, 127, 129, 300, 0]
else:  # not those of more heads, whose programs do the same, and of a kind of sizes that SIZES has
    GOLDEN = [path for path in GOLDEN if "reference_size" not in path.stem and path.stem != "op_sessions"]
# Sizes, whether there are initial states, types and bounds: all, or each two of size, states and type.
CASES = [
    pytest.param(sizes, continued, dtype, bound, id=f"{sizes}-{'continued' if continued else 'afresh'}-{dtype}")
    for i, sizes in enumerate(SIZES)
    for continued in (False, True)
    for k, (dtype, bound) in enumerate(PRECISIONS)
    if ON_GPU or (i + continued + k) % 2 == 0
]


kinds = pytest.mark.parametrize(("sizes", "dtype"), KINDS, ids=lambda kind: str(kind))


def on(device: torch.device, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.to(device) for name, t in tensors.items()}


def state_on(device: torch.device, state: Mamba3State | None) -> Mamba3State | None:
    return None if state is None else Mamba3State(*(t.to(device) for t in state))


def run(
    arguments: dict[str, Tensor], state: Mamba3State | None = None, packing: Packing | None = None
) -> tuple[Tensor, Mamba3State]:
    """Outputs and final states of the Triton kernels."""
    given = arguments if packing is None else arguments | {"cu_seqlens": packing}
    y, final = mamba3_mimo(**given, initial_state=state, return_final_state=True, backend="triton")  # type: ignore[arg-type]
    assert final is not None
    return y, final


def sequences_of(arguments: dict[str, Tensor], chosen: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
    """The same layer's arguments for these spans of tokens, each a sequence."""
    tokens = [t for start, stop in chosen for t in range(start, stop)]
    bounds = torch.tensor([0, *(stop - start for start, stop in chosen)]).cumsum(0).int()
    part = {name: arguments[name][tokens] for name in PER_TOKEN}
    return arguments | part | {"cu_seqlens": bounds.to(arguments["x"].device)}


def assert_same_bits(result: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        assert torch.equal(result[name], tensor), name


def gradients(
    arguments: dict[str, Tensor], state: Mamba3State | None, y: Tensor, final: Sequence[Tensor] = (), seed: int = 7
) -> dict[str, Tensor]:
    """Of a sum of all results with random weights, by every float input that asks for one."""
    g = torch.Generator().manual_seed(seed)
    loss = torch.zeros((), dtype=torch.float64, device=y.device)
    for result in (y, *final):
        # As x is rounded, so that y's gradient is the same numbers whatever the type of y.
        weights = torch.randn(result.shape, generator=g).to(y.device, arguments["x"].dtype)
        loss = loss + (result.double() * weights.double()).sum()
    named = dict(arguments) | ({} if state is None else {f"state.{n}": t for n, t in state._asdict().items()})
    leaves = {name: t for name, t in named.items() if t.requires_grad}
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def require_gradients(arguments: dict[str, Tensor], state: Mamba3State | None) -> None:
    for tensor in (*arguments.values(), *(() if state is None else state)):
        tensor.requires_grad_(tensor.is_floating_point())


def check_against_recurrence(
    arguments: dict[str, Tensor], state: Mamba3State | None, device: torch.device, bound: float
) -> None:
    """Results, final states and all gradients, within `bound` of the recurrence in float64 on the same numbers."""
    require_gradients(arguments, state)
    expected_y, expected_final = mamba3_mimo_recurrence(arguments, state)
    expected = {"y": expected_y} | expected_final._asdict()
    expected_gradients = gradients(arguments, state, expected_y, expected_final)

    arguments = {name: t.detach() for name, t in on(device, arguments).items()}
    state = None if state is None else Mamba3State(*(t.detach().to(device) for t in state))
    require_gradients(arguments, state)
    y, final = run(arguments, state)
    results = {"y": y} | final._asdict()
    found = gradients(arguments, state, y, final)

    assert y.dtype == arguments["x"].dtype
    assert final.ssm.dtype == torch.float32
    for name, tensor in expected.items():
        assert_close(name, results[name].cpu(), tensor, bound)
    assert found.keys() == expected_gradients.keys()
    for name, tensor in expected_gradients.items():
        assert found[name].dtype == (arguments | ({} if state is None else _named(state)))[name].dtype
        assert_close(f"{name} gradient", found[name].cpu(), tensor, bound)


def _named(state: Mamba3State) -> dict[str, Tensor]:
    return {f"state.{name}": t for name, t in state._asdict().items()}


@needs_shared
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize(("dtype", "bound"), PRECISIONS, ids=["f32", "bf16"])
def test_results_final_states_and_gradients_are_those_of_the_golden_files(
    path: Path, dtype: torch.dtype, bound: float, device: torch.device
) -> None:
    vectors = load_file(path)
    inputs = on(device, section(vectors, "in.", dtype))
    dy = inputs.pop("dy", None)
    initial = on(device, section(vectors, "init.", torch.float32))
    state = Mamba3State(**initial) if initial else None
    # The rounding of the inputs alone moves some gradients by more than the bound, so bfloat16 has results only here.
    if dy is not None and dtype == torch.float32:
        require_gradients(inputs, state)
    y, final = run(inputs, state)
    results = {"out.y": y} | {f"final.{name}": t for name, t in final._asdict().items()}
    if dy is not None and dtype == torch.float32:
        (y * dy).sum().backward()
        named = inputs | {f"init.{name}": tensor for name, tensor in initial.items()}
        results |= {f"grad.{name}": t.grad for name, t in named.items() if t.grad is not None}
        assert results.keys() == {name for name in vectors if name.startswith(("out.", "final.", "grad."))}
    for name, result in results.items():
        label = f"{name} gradient" if name.startswith("grad.") else name  # not compared around the circle
        assert_close(label, result.cpu(), vectors[name], bound)


@pytest.mark.parametrize(("sizes", "continued", "dtype", "bound"), CASES)
def test_results_final_states_and_gradients_are_those_of_the_recurrence(
    sizes: Sizes, continued: bool, dtype: torch.dtype, bound: float, device: torch.device
) -> None:
    lengths = [19, 0, 1, 70, SEGMENT + 40] if ON_GPU else [19, 0, 1, 40]
    arguments = random_arguments(sizes, lengths, dtype=dtype)
    state = random_state(sizes, len(lengths)) if continued else None
    if ON_GPU and dtype == torch.float32 and (sizes.rank > 4 or min(sizes.d_state, sizes.headdim) > 64):
        pytest.skip(
            "no gradients in float32 in Triton of rank 8 or such states: the tiles do not fit into shared memory"
        )
    check_against_recurrence(arguments, state, device, bound)


@pytest.mark.parametrize(
    ("continued", "lengths"),
    [(True, EDGES), (False, EDGES if ON_GPU else [65, 0, SEGMENT + 1])],
    ids=["continued", "afresh"],
)
def test_lengths_around_the_ends_of_chunks_and_segments_give_what_the_recurrence_gives(
    continued: bool, lengths: list[int], device: torch.device
) -> None:
    state = random_state(SMALL, len(lengths)) if continued else None
    check_against_recurrence(random_arguments(SMALL, lengths, seed=3), state, device, 1e-5)


def test_without_states_long_sequences_among_others_give_what_the_recurrence_gives(device: torch.device) -> None:
    """Then only the long ones take part in the scans."""
    arguments = random_arguments(SMALL, EDGES if ON_GPU else [33, SEGMENT + 1, 20, 0, 2 * SEGMENT + 1], seed=3)
    require_gradients(arguments, None)
    expected, _ = mamba3_mimo_recurrence(arguments)
    expected_gradients = gradients(arguments, None, expected)
    arguments = {name: t.detach() for name, t in on(device, arguments).items()}
    require_gradients(arguments, None)
    y, _ = mamba3_mimo(**arguments, backend="triton")
    assert_close("y", y.cpu(), expected, 1e-5)
    for name, gradient in gradients(arguments, None, y).items():
        assert_close(f"{name} gradient", gradient.cpu(), expected_gradients[name], 1e-5)


@pytest.mark.parametrize("continued", [False, True], ids=["afresh", "continued"])
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]], ids=str)
def test_without_tokens_states_stay_what_they_were(lengths: list[int], continued: bool, device: torch.device) -> None:
    state = state_on(device, random_state(SMALL, len(lengths))) if continued else None
    y, final = run(on(device, random_arguments(SMALL, lengths)), state)
    assert y.shape == (0, SMALL.heads, SMALL.headdim)
    for name, result in final._asdict().items():
        expected = torch.zeros_like(result) if state is None else getattr(state, name)
        assert_close(name, result, expected, 1e-6)
        assert result.shape[0] == len(lengths)


@kinds
def test_results_are_the_same_without_final_states_and_without_gradients(
    sizes: Sizes, dtype: torch.dtype, device: torch.device
) -> None:
    arguments = on(device, random_arguments(sizes, [20, 0, SEGMENT + 9], dtype=dtype))
    y, _ = run(arguments)
    alone, none = mamba3_mimo(**arguments, backend="triton")
    assert none is None
    assert torch.equal(alone, y)
    require_gradients(arguments, None)
    differentiable, _ = mamba3_mimo(**arguments, backend="triton")
    assert differentiable.requires_grad
    assert torch.equal(differentiable.detach(), y)


def test_gradients_are_those_of_the_inputs_that_ask_for_them(device: torch.device) -> None:
    arguments = on(device, random_arguments(SMALL, [9, 20]))
    asking = ("z", "dt", "mimo_x")
    require_gradients(arguments, None)
    expected = gradients(arguments, None, *run(arguments))
    arguments = {name: t.detach().requires_grad_(name in asking) for name, t in arguments.items()}
    found = gradients(arguments, None, *run(arguments))
    assert_same_bits(found, {name: expected[name] for name in asking})


@pytest.mark.parametrize("exponent", [-60, 60])
def test_tiny_and_huge_gradients_are_as_exact_as_others(exponent: int, device: torch.device) -> None:
    """Those of a loss that is divided by the tokens, or scaled up, in bfloat16."""
    arguments = on(device, random_arguments(SMALL, [9, 20], dtype=torch.bfloat16))
    require_gradients(arguments, None)
    leaves = {name: t for name, t in arguments.items() if t.requires_grad}
    y, _ = mamba3_mimo(**arguments, backend="triton")
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(device, y.dtype)
    expected = torch.autograd.grad(y, list(leaves.values()), dy, retain_graph=True)
    found = torch.autograd.grad(y, list(leaves.values()), dy * 2.0**exponent)
    for name, gradient, scaled in zip(leaves, expected, found, strict=True):
        assert_close(name, scaled.double() * 2.0**-exponent, gradient, 1e-5)


@pytest.mark.parametrize("with_states", [False, True], ids=["outputs", "states"])
def test_what_is_kept_for_gradients_goes_with_the_results(with_states: bool, device: torch.device) -> None:
    """Else a training holds the memory of every step it has taken."""
    arguments = on(device, random_arguments(SMALL, [9, 20]))
    require_gradients(arguments, None)
    y, final = mamba3_mimo(**arguments, return_final_state=with_states, backend="triton")
    torch.autograd.grad(y.sum(), [arguments["x"]])
    result = weakref.ref(y)
    del y, final
    gc.collect()
    assert result() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_a_second_run_gives_the_same_bits_gradients_included(dtype: torch.dtype, device: torch.device) -> None:
    sizes = REFERENCE if ON_GPU else SMALL
    lengths = [20] * 500 + [300] * 10 + [2000] if ON_GPU else [20, 0, 33]
    arguments = on(device, random_arguments(sizes, lengths, dtype=dtype))
    state = state_on(device, random_state(sizes, len(lengths)))
    require_gradients(arguments, state)
    runs = []
    for _ in range(2):
        y, final = run(arguments, state)
        runs.append(
            {"y": y} | final._asdict() | {f"grad.{n}": t for n, t in gradients(arguments, state, y, final).items()}
        )
    assert_same_bits(runs[1], runs[0])


@kinds
@pytest.mark.parametrize("states", ["none", "continued", *(["afresh"] if ON_GPU else [])])
def test_a_sequence_gets_the_same_bits_alone_in_other_batches_and_in_any_order(
    states: str, sizes: Sizes, dtype: torch.dtype, device: torch.device
) -> None:
    """Without states it is the batch that decides whether there is a scan: whether any of its sequences is long."""
    lengths = [3, 65, 0, SEGMENT, SEGMENT + 5, 26, 1] + ([26] * 100 + [1500] if ON_GPU else [])
    arguments = on(device, random_arguments(sizes, lengths, dtype=dtype))
    state = state_on(device, random_state(sizes, len(lengths))) if states == "continued" else None
    spans = list(pairwise(arguments["cu_seqlens"].tolist()))

    def of(chosen: list[int]) -> list[dict[str, Tensor]]:
        """Results of each sequence, run in this batch."""
        picked = None if state is None else Mamba3State(*(t[chosen] for t in state))
        given = sequences_of(arguments, [spans[i] for i in chosen])
        y, final = mamba3_mimo(**given, initial_state=picked, return_final_state=states != "none", backend="triton")
        outputs = torch.split(y, [lengths[i] for i in chosen])
        named = {} if final is None else final._asdict()
        return [{"y": out} | {n: t[k] for n, t in named.items()} for k, out in enumerate(outputs)]

    together = of(list(range(len(lengths))))
    for i in (1, 3, 4, len(lengths) - 1):
        assert_same_bits(of([i])[0], together[i])
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(5)).tolist()
    for i, result in zip(order, of(order), strict=True):
        assert_same_bits(result, together[i])
    assert_same_bits(of([4, 0])[0], together[4])


@kinds
def test_numbers_that_are_none_stay_in_their_sequence(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> None:
    lengths = [3, 20, 5, SEGMENT + 5, 33, 17]
    arguments = random_arguments(sizes, lengths, dtype=dtype)
    expected, _ = run(on(device, arguments))
    bounds = list(pairwise(arguments["cu_seqlens"].tolist()))
    for i in (1, 3, 4):
        for name in PER_TOKEN:
            arguments[name][slice(*bounds[i])] = torch.nan
    y, _ = run(on(device, arguments))
    for i in (0, 2, 5):
        assert torch.equal(y[slice(*bounds[i])], expected[slice(*bounds[i])]), i


CUTS = [0, 100, SEGMENT, 2 * SEGMENT, *([16, SEGMENT + 1] if ON_GPU else [])]


@kinds
@pytest.mark.parametrize("cut", CUTS, ids="cut at {}".format)
def test_a_sequence_may_be_cut_anywhere_and_its_state_carried(
    cut: int, sizes: Sizes, dtype: torch.dtype, device: torch.device
) -> None:
    """Within rounding, and at the end of a segment bit for bit."""
    length = 2 * SEGMENT + 20
    arguments = on(device, random_arguments(sizes, [length, 7], dtype=dtype))
    state = state_on(device, random_state(sizes, 2))
    whole, whole_final = run(arguments, state)
    # The other sequence goes in one piece, with the first part.
    head, middle = run(sequences_of(arguments, [(0, cut), (length, length + 7)]), state)
    tail, last = run(sequences_of(arguments, [(cut, length), (0, 0)]), middle)

    results = {"y": torch.cat((head[:cut], tail, head[cut:]))} | last._asdict()
    expected = {"y": whole} | whole_final._asdict()
    if cut % SEGMENT == 0:
        assert_same_bits(results, expected)
    for name, tensor in expected.items():
        assert_close(name, results[name], tensor, dict(PRECISIONS)[dtype])


def test_a_packing_is_as_good_as_the_bounds_it_was_made_from(device: torch.device) -> None:
    arguments = on(device, random_arguments(SMALL, [20, 0, SEGMENT + 9]))
    y, final = run(arguments)
    packed, packed_final = run(arguments, packing=Packing.of(arguments["cu_seqlens"].cpu(), device))
    assert_same_bits({"y": packed} | packed_final._asdict(), {"y": y} | final._asdict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, *([torch.float32] if ON_GPU else [])], ids=str)
def test_views_into_one_projection_are_as_good_as_tensors_of_their_own(
    dtype: torch.dtype, device: torch.device
) -> None:
    """A layer passes slices of its projection, whose rows are far apart, and gets gradients of the projection."""
    names = ("z", "x", "B", "C", "dt", "adt", "trap", "angles")
    arguments = on(device, random_arguments(Sizes(heads=2, rank=4), [3, 20], dtype=dtype))
    require_gradients(arguments, None)
    y, final = run(arguments)
    expected = gradients(arguments, None, y, final)

    rows = torch.cat([arguments[name].detach().flatten(1) for name in names], 1).requires_grad_()
    views = torch.split(rows, [arguments[name][0].numel() for name in names], 1)
    shaped = {name: view.unflatten(1, arguments[name].shape[1:]) for name, view in zip(names, views, strict=True)}
    sliced_y, sliced_final = run(arguments | shaped)
    assert_same_bits({"y": sliced_y} | sliced_final._asdict(), {"y": y} | final._asdict())
    found = gradients({"x": rows}, None, sliced_y, sliced_final)["x"]
    assert torch.equal(found, torch.cat([expected[name].flatten(1) for name in names], 1))


@pytest.mark.parametrize("sizes", [SMALL, *([REFERENCE] if ON_GPU else [])], ids=str)
def test_inputs_may_be_of_different_types(sizes: Sizes, device: torch.device) -> None:
    """As a layer in bfloat16 passes them: its projection rounded, steps and some weights not."""
    arguments = random_arguments(sizes, [19, 40])
    rounded = ("C", "B", "x", "z", "trap", "angles", "mimo_x", "D")
    arguments |= {name: arguments[name].bfloat16() for name in rounded}
    check_against_recurrence(arguments, None, device, 1e-2)
    check_against_recurrence(arguments, random_state(sizes, 2), device, 1e-2)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # NumPy's, where the kernels are interpreted
def test_gates_and_trapezoids_beyond_the_range_of_exp_have_finite_gradients(device: torch.device) -> None:
    arguments = random_arguments(SMALL, [20])
    for name in ("z", "trap"):
        arguments[name] = arguments[name] * 1e4
    expected, _ = mamba3_mimo_recurrence(arguments)
    arguments = on(device, arguments)
    require_gradients(arguments, None)
    y, final = run(arguments)
    assert_close("y", y.cpu(), expected, 1e-5)
    for name, gradient in gradients(arguments, None, y, final).items():
        assert bool(gradient.isfinite().all()), name


def test_rotations_stay_exact_over_thousands_of_tokens(device: torch.device) -> None:
    arguments = random_arguments(Sizes(heads=1, rank=1), [5000 if ON_GPU else 1500])
    arguments["angles"] = arguments["angles"].abs()  # thousands of radians
    _, expected = mamba3_mimo_recurrence(arguments)
    _, final = run(on(device, arguments))
    assert 0 <= float(final.angle.min()) <= float(final.angle.max()) <= 2 * torch.pi
    assert_close("angle", final.angle.cpu(), expected.angle, 1e-5)
    assert_close("ssm", final.ssm.cpu(), expected.ssm, 1e-5)


@pytest.mark.parametrize(
    "sizes", [Sizes(heads=1, headdim=16, d_state=16, rank=4), *([REFERENCE] if ON_GPU else [])], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_what_a_token_gets_does_not_depend_on_those_after_it(
    dtype: torch.dtype, sizes: Sizes, device: torch.device
) -> None:
    arguments = random_arguments(sizes, [300 if ON_GPU else SEGMENT + 20], dtype=dtype)
    whole, _ = run(on(device, arguments))
    # In the middle and at the end of chunks: of the first two, which need no state, of others, and of a segment.
    for length in (1, 17, 32, 33, SEGMENT, SEGMENT + 1, *((7, 8, 9, 15, 16, 30, 100, 290) if ON_GPU else ())):
        per_token = ("C", "B", "x", "z", "adt", "dt", "trap", "angles")
        start = arguments | {name: arguments[name][:length] for name in per_token}
        part, _ = run(on(device, start | {"cu_seqlens": torch.tensor([0, length]).int()}))
        assert torch.equal(part, whole[:length]), length


def test_weights_may_be_views_whose_heads_lie_apart(device: torch.device) -> None:
    arguments = on(device, random_arguments(Sizes(heads=2, headdim=16, d_state=16, rank=2), [20]))
    apart = {n: torch.cat((arguments[n], arguments[n]), 1)[:, :2] for n in ("C_bias", "B_bias", "mimo_x", "mimo_z")}
    expected, _ = run(arguments)
    y, _ = run(arguments | apart)
    assert torch.equal(y, expected)
