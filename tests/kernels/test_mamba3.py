"""The public entry refuses arguments that do not fit, and says which and why, before it launches anything."""

import os
import re
import subprocess
import sys

import pytest
import torch

from kernels import Backend, Mamba3State, mamba3_mimo
from tests.kernels.inputs import Sizes, random_arguments, random_state

SIZES = Sizes(heads=2, headdim=16, d_state=16, rank=2)
BACKENDS: tuple[Backend, ...] = ("reference", "triton")


def arguments_on(device: torch.device, lengths: list[int]) -> dict[str, torch.Tensor]:
    return {name: t.to(device) for name, t in random_arguments(SIZES, lengths).items()}


@pytest.mark.parametrize(
    "name",
    ["B", "z", "adt", "dt", "trap", "C_bias", "B_bias", "mimo_x", "mimo_z", "mimo_o", "D"],
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("no_launch")
def test_a_shape_that_disagrees_is_refused_with_both_shapes(name: str, backend: Backend, device: torch.device) -> None:
    arguments = arguments_on(device, [3, 4])
    expected = tuple(arguments[name].shape)
    arguments[name] = torch.zeros(5, *expected[1:], device=device)
    message = f"{name} has shape {tuple(arguments[name].shape)}; with T=7, H=2, P=16, N=16, R=2"
    with pytest.raises(ValueError, match=re.escape(message) + ".*" + re.escape(str(expected))):
        mamba3_mimo(**arguments, backend=backend)


@pytest.mark.parametrize("name", Mamba3State._fields)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("no_launch")
def test_a_state_of_other_sequences_is_refused(name: str, backend: Backend, device: torch.device) -> None:
    state = random_state(SIZES, 2)._replace(**{name: getattr(random_state(SIZES, 3), name)})
    state = Mamba3State(*(part.to(device) for part in state))
    with pytest.raises(ValueError, match=rf"initial_state\.{name} has shape \(3, .*2 sequences"):
        mamba3_mimo(**arguments_on(device, [3, 4]), initial_state=state, backend=backend)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("C", torch.zeros(7, 16), r"C has shape \(7, 16\); it must be \(T, R, N\)"),
        ("x", torch.zeros(7, 32), r"x has shape \(7, 32\); it must be \(T, H, P\)"),
        ("angles", torch.zeros(7), r"angles has shape \(7,\); it must be \(T, S\)"),
        ("angles", torch.zeros(7, 9), r"angles has S=9 angles; d_state N=16 has only 8 pairs"),
        ("C", torch.zeros(7, 2, 15), r"d_state N=15; it must be even"),
        ("x", torch.zeros(7, 0, 16), r"so H is 0"),
        ("x", torch.zeros(7, 2, 16, dtype=torch.int64), r"x is torch\.int64"),
        ("dt", torch.zeros(7, 2, dtype=torch.float16), r"dt is torch\.float16; it must be float32, bfloat16 or"),
        ("D", torch.zeros(2, device="meta"), r"D is on meta but x is on "),
        ("cu_seqlens", torch.tensor([0, 3, 7]), r"cu_seqlens is torch\.int64 of shape \(3,\); it must be int32"),
        ("cu_seqlens", torch.zeros(0, dtype=torch.int32), r"cu_seqlens is torch\.int32 of shape \(0,\)"),
        ("cu_seqlens", torch.tensor([0, 5, 4, 7]).int(), r"cu_seqlens decreases from 5 to 4 at index 2"),
        ("cu_seqlens", torch.tensor([1, 3, 7]).int(), r"cu_seqlens goes from 1 to 7; it must start at 0"),
        ("cu_seqlens", torch.tensor([0, 3, 6]).int(), r"cu_seqlens goes from 0 to 6; with T=7 tokens it must"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("no_launch")
def test_an_impossible_argument_is_refused_by_name(
    name: str, tensor: torch.Tensor, message: str, backend: Backend, device: torch.device
) -> None:
    wrong = tensor if tensor.is_meta else tensor.to(device)
    with pytest.raises(ValueError, match=message):
        mamba3_mimo(**arguments_on(device, [3, 4]) | {name: wrong}, backend=backend)


def test_an_unknown_backend_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="backend is 'cuda'; it must be one of auto, triton, reference"):
        mamba3_mimo(**random_arguments(SIZES, [3]), backend="cuda")  # type: ignore[arg-type]


def test_float64_is_refused_by_triton(device: torch.device) -> None:
    arguments = {name: t.to(device) for name, t in random_arguments(SIZES, [3], dtype=torch.float64).items()}
    with pytest.raises(ValueError, match=r"backend is 'triton'.* x is torch\.float64; use 'reference'"):
        mamba3_mimo(**arguments, backend="triton")


def test_triton_is_refused_on_the_cpu_unless_it_is_interpreted() -> None:
    """In a process of its own: what Triton does on the CPU is settled when its kernels are imported."""
    program = (
        "from kernels import mamba3_mimo\n"
        "from tests.kernels.inputs import Sizes, random_arguments\n"
        "mamba3_mimo(**random_arguments(Sizes(), [3]), backend='triton')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "ValueError: backend is 'triton' but x is on cpu; Triton needs a CUDA device" in result.stderr


def test_auto_is_the_reference_on_the_cpu() -> None:
    arguments = random_arguments(SIZES, [3, 20])
    automatic, _ = mamba3_mimo(**arguments)
    reference, _ = mamba3_mimo(**arguments, backend="reference")
    assert torch.equal(automatic, reference)


def test_views_into_one_projection_are_as_good_as_tensors_of_their_own() -> None:
    """A layer passes slices of its projection, whose rows are far apart."""
    arguments = random_arguments(SIZES, [3, 20])
    rows = torch.cat([arguments[name].flatten(1) for name in ("x", "z", "B", "C", "dt")], 1)
    views = torch.split(rows, [32, 32, 32, 32, 2], 1)
    shapes = {"x": (2, 16), "z": (2, 16), "B": (2, 16), "C": (2, 16), "dt": (2,)}
    sliced = {name: view.unflatten(1, shape) for (name, shape), view in zip(shapes.items(), views, strict=True)}
    assert torch.equal(mamba3_mimo(**arguments | sliced)[0], mamba3_mimo(**arguments)[0])
