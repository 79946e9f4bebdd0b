"""The operation agrees with vectors computed in float64 from the reference recurrence of state-spaces/mamba."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kernels import Mamba3State, mamba3_mimo
from tests.kernels.inputs import assert_close
from tests.shared import SHARED, needs_shared

pytestmark = needs_shared

OPERATIONS = [] if SHARED is None else sorted((SHARED / "golden").glob("op_*.safetensors"))


def section(vectors: dict[str, Tensor], prefix: str, dtype: torch.dtype) -> dict[str, Tensor]:
    found = {name.removeprefix(prefix): t for name, t in vectors.items() if name.startswith(prefix)}
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in found.items()}


@pytest.mark.parametrize("path", OPERATIONS, ids=lambda path: path.stem)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["f32", "f64"])
def test_results_final_states_and_gradients_are_those_of_the_recurrence(
    path: Path, dtype: torch.dtype, bound: float
) -> None:
    vectors = load_file(path)
    inputs = section(vectors, "in.", dtype)
    dy = inputs.pop("dy", None)
    initial = section(vectors, "init.", dtype)
    for tensor in (*inputs.values(), *initial.values()):
        tensor.requires_grad_(tensor.is_floating_point())
    state = Mamba3State(**initial) if initial else None

    y, final = mamba3_mimo(**inputs, initial_state=state, return_final_state=True)

    assert y.dtype == dtype
    assert final is not None
    results = {"out.y": y} | {f"final.{name}": t for name, t in final._asdict().items()}
    assert bool((final.angle >= 0).all())
    if dy is not None:
        (y * dy).sum().backward()
        named = inputs | {f"init.{name}": tensor for name, tensor in initial.items()}
        results |= {f"grad.{name}": t.grad for name, t in named.items() if t.grad is not None}
    assert results.keys() == {name for name in vectors if name.startswith(("out.", "final.", "grad."))}
    for name, result in results.items():
        assert_close(name, result, vectors[name], bound)


def test_no_vector_file_is_missing() -> None:
    assert len(OPERATIONS) == 7
