"""The chunked reference gives what the recurrence gives, token by token, for any shape and packing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import Mamba3State, mamba3_mimo
from kernels.packing import REFERENCE_SEGMENT
from tests.kernels.inputs import Sizes, assert_close, random_arguments, random_state
from tests.kernels.recurrence import mamba3_mimo_recurrence

SIZES = [
    Sizes(heads=heads, headdim=headdim, d_state=d_state, rank=rank, rope_fraction=rope_fraction)
    for heads, headdim, d_state, rank, rope_fraction in [
        (1, 16, 16, 1, 0.5),
        (3, 16, 32, 2, 1.0),
        (2, 32, 20, 3, 1.0),
        (2, 24, 64, 4, 0.5),
        (1, 64, 128, 8, 0.5),
        (1, 128, 16, 4, 1.0),
    ]
]
LENGTHS = [
    [1],
    [8],
    [0, 9, 0],
    [3, 1, 17, 0, 8, 33, 16],
    [70, 2, 7],
]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("continued", [False, True], ids=["afresh", "continued"])
def test_results_and_final_states_are_those_of_the_recurrence(
    sizes: Sizes, lengths: list[int], continued: bool
) -> None:
    arguments = random_arguments(sizes, lengths)
    state = random_state(sizes, len(lengths)) if continued else None
    expected_y, expected = mamba3_mimo_recurrence(arguments, state)

    y, final = mamba3_mimo(**arguments, initial_state=state, return_final_state=True)

    assert_close("y", y, expected_y, 1e-5)
    assert final is not None
    for name, result in final._asdict().items():
        assert_close(name, result, getattr(expected, name), 1e-5)
    without_final, none = mamba3_mimo(**arguments, initial_state=state)
    assert none is None
    assert_close("y", without_final, expected_y, 1e-5)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.builds(
        Sizes,
        heads=st.integers(1, 3),
        headdim=st.sampled_from([16, 24, 40]),
        d_state=st.sampled_from([16, 24, 40]),
        rank=st.integers(1, 4),
        rope_fraction=st.sampled_from([0.5, 1.0]),
    ),
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    continued=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_float64_agrees_with_the_recurrence_to_rounding(
    sizes: Sizes, lengths: list[int], continued: bool, seed: int
) -> None:
    arguments = random_arguments(sizes, lengths, seed, torch.float64)
    state = random_state(sizes, len(lengths), seed + 1, torch.float64) if continued else None
    expected_y, expected = mamba3_mimo_recurrence(arguments, state)
    y, final = mamba3_mimo(**arguments, initial_state=state, return_final_state=True)
    assert y.dtype == torch.float64
    assert_close("y", y, expected_y, 1e-12)
    assert final is not None
    for name, result in final._asdict().items():
        assert_close(name, result, getattr(expected, name), 1e-12)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    data=st.data(),
    continued=st.booleans(),
)
def test_a_sequence_may_be_cut_anywhere_and_its_state_carried(
    lengths: list[int], data: st.DataObject, continued: bool
) -> None:
    sizes = Sizes()
    arguments = random_arguments(sizes, lengths, dtype=torch.float64)
    state = random_state(sizes, len(lengths), dtype=torch.float64) if continued else None
    whole, whole_final = mamba3_mimo(**arguments, initial_state=state, return_final_state=True)

    cuts = [data.draw(st.integers(0, length)) for length in lengths]
    starts = arguments["cu_seqlens"][:-1].tolist()
    head_tokens = [t for start, cut in zip(starts, cuts, strict=True) for t in range(start, start + cut)]
    tail_tokens = sorted(set(range(sum(lengths))) - set(head_tokens))
    results = torch.empty_like(whole)
    for tokens, parts in (
        (head_tokens, cuts),
        (tail_tokens, [n - c for n, c in zip(lengths, cuts, strict=True)]),
    ):
        per_token = ("C", "B", "x", "z", "adt", "dt", "trap", "angles")
        part = arguments | {name: arguments[name][tokens] for name in per_token}
        part["cu_seqlens"] = torch.tensor([0, *parts]).cumsum(0).int()
        results[tokens], state = mamba3_mimo(**part, initial_state=state, return_final_state=True)

    assert_close("y", results, whole, 1e-12)
    assert state is not None
    assert whole_final is not None
    for name, result in state._asdict().items():
        assert_close(name, result, getattr(whole_final, name), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [Sizes(), Sizes(heads=3, headdim=24, d_state=20, rank=3, rope_fraction=1.0)], ids=str)
def test_a_sequence_cut_at_ends_of_segments_gets_the_same_bits(sizes: Sizes, dtype: torch.dtype) -> None:
    lengths = [5 * REFERENCE_SEGMENT + 9, 20]
    arguments = random_arguments(sizes, lengths, dtype=dtype)
    whole, whole_final = mamba3_mimo(**arguments, return_final_state=True)
    assert whole_final is not None
    for cuts in ([1], [2, 3], [0, 5], [1, 2, 3, 4]):
        results, state, begin = [], None, 0
        for end in [*(cut * REFERENCE_SEGMENT for cut in cuts), lengths[0]]:
            per_token = ("C", "B", "x", "z", "adt", "dt", "trap", "angles")
            part = arguments | {name: arguments[name][begin:end] for name in per_token}
            part["cu_seqlens"] = torch.tensor([0, end - begin], dtype=torch.int32)
            y, state = mamba3_mimo(**part, initial_state=state, return_final_state=True)
            results.append(y)
            begin = end
        assert torch.equal(torch.cat(results), whole[: lengths[0]])
        assert state is not None
        for carried, expected in zip(state, whole_final, strict=True):
            assert torch.equal(carried[0], expected[0])


def test_gradients_are_those_of_the_recurrence_for_every_float_input() -> None:
    sizes, lengths = Sizes(rank=3, d_state=20, rope_fraction=1.0), [19, 0, 1, 40]
    arguments = random_arguments(sizes, lengths, dtype=torch.float64)
    state = random_state(sizes, len(lengths), dtype=torch.float64)
    leaves = [t for t in (*arguments.values(), *state) if t.is_floating_point()]
    for leaf in leaves:
        leaf.requires_grad_()
    weights = torch.randn(sum(lengths), sizes.heads, sizes.headdim).double()

    def loss(y: torch.Tensor, final: Mamba3State | None) -> torch.Tensor:
        assert final is not None
        return (y * weights).sum() + final.ssm.square().sum() + final.k.sum() + final.x.sum() + final.angle.sum()

    expected = torch.autograd.grad(loss(*mamba3_mimo_recurrence(arguments, state)), leaves)
    y, final = mamba3_mimo(**arguments, initial_state=state, return_final_state=True)
    for gradient, reference in zip(torch.autograd.grad(loss(y, final), leaves), expected, strict=True):
        assert_close("gradient", gradient, reference, 1e-11)


def test_bfloat16_inputs_are_summed_over_time_in_float32() -> None:
    """Rounded results would differ more from the exact ones than a single rounding of the exact result does."""
    arguments = random_arguments(Sizes(), [200, 3, 0, 31], dtype=torch.bfloat16)
    expected, expected_final = mamba3_mimo_recurrence(arguments)
    y, final = mamba3_mimo(**arguments, return_final_state=True)
    assert y.dtype == torch.bfloat16
    assert_close("y", y, expected.bfloat16(), 1e-4 + 2**-9)
    assert final is not None
    assert final.ssm.dtype == torch.float32
    assert_close("ssm", final.ssm, expected_final.ssm, 1e-5)


def test_rotations_stay_exact_over_thousands_of_tokens() -> None:
    arguments = random_arguments(Sizes(heads=1), [5000])
    arguments["angles"] = arguments["angles"].abs()  # thousands of radians
    _, expected = mamba3_mimo_recurrence(arguments | {"x": torch.zeros_like(arguments["x"])})
    _, final = mamba3_mimo(**arguments, return_final_state=True)
    assert final is not None
    assert_close("angle", final.angle, expected.angle, 1e-5)


def test_gates_and_trapezoids_beyond_the_range_of_exp_have_finite_gradients() -> None:
    arguments = random_arguments(Sizes(), [20])
    for name in ("z", "trap"):
        arguments[name] = (arguments[name] * 1e4).requires_grad_()
    y, _ = mamba3_mimo(**arguments)
    expected, _ = mamba3_mimo_recurrence(arguments)
    assert_close("y", y, expected, 1e-5)
    y.sum().backward()
    for name in ("z", "trap"):
        gradient = arguments[name].grad
        assert gradient is not None
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]], ids=str)
def test_without_tokens_states_stay_what_they_were(lengths: list[int], continued: bool) -> None:
    sizes = Sizes()
    state = random_state(sizes, len(lengths)) if continued else None
    y, final = mamba3_mimo(**random_arguments(sizes, lengths), initial_state=state, return_final_state=True)
    assert y.shape == (0, sizes.heads, sizes.headdim)
    assert final is not None
    for name, result in final._asdict().items():
        expected = torch.zeros_like(result) if state is None else getattr(state, name)
        assert torch.equal(result, expected), name
        assert result.shape[0] == len(lengths)


def test_the_final_angle_is_within_a_turn() -> None:
    sizes = Sizes()
    state = random_state(sizes, 3)._replace(angle=torch.full((3, sizes.heads, sizes.angles), -7.0))
    _, final = mamba3_mimo(**random_arguments(sizes, [0, 5, 30]), initial_state=state, return_final_state=True)
    assert final is not None
    assert 0 <= float(final.angle.min()) <= float(final.angle.max()) < 2 * math.pi


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_gives_what_the_cpu_gives() -> None:
    sizes, lengths = Sizes(heads=4, headdim=64, d_state=64, rank=4), [19, 0, 1, 90]
    arguments, state = random_arguments(sizes, lengths), random_state(sizes, len(lengths))
    expected, _ = mamba3_mimo(**arguments, initial_state=state)
    on_device = {name: t.cuda() for name, t in arguments.items()}
    y, _ = mamba3_mimo(**on_device, initial_state=Mamba3State(*(t.cuda() for t in state)))
    assert_close("y", y.cpu(), expected, 1e-5)
