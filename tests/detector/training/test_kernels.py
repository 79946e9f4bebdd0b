"""Training through Triton's kernels, on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch

from detector.model.devices import Precision
from detector.model.inference import Backend
from detector.model.model import ModelConfig
from detector.training.train import Trained, TrainingOptions, TrainingProgress, train
from tests.detector.training.test_train import VOCABULARY, sessions

# The smallest sizes that the kernels take.
SMALL = ModelConfig(len(VOCABULARY), d_model=16, n_layers=1, d_state=16, headdim=16, mimo_rank=2)


def trained(
    device: torch.device, kernels: Backend, *, steps: int, precision: Precision = "float32"
) -> tuple[Trained, list[float]]:
    """A training of so many steps, and the validation losses on the way."""
    losses: list[float] = []

    def note(progress: TrainingProgress) -> None:
        if progress.validation_loss is not None:
            losses.append(progress.validation_loss)

    options = TrainingOptions(
        next_token_steps=steps, batch_tokens=80, learning_rate=0.03, validations=steps, patience=steps
    )
    data = sessions(26, 0, seed=4, labelled=False)
    result = train(
        data,
        VOCABULARY,
        size=SMALL,
        device=str(device),
        kernels=kernels,
        precision=precision,
        options=options,
        progress=note,
    )
    return result, losses


# Rows that fill a batch up belong to no session and compute with what they find.
@pytest.mark.filterwarnings("ignore:(invalid value|overflow):RuntimeWarning")
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-3), *([("bfloat16", 1e-2)] if torch.cuda.is_available() else [])]
)
def test_triton_kernels_learn_what_the_reference_learns(
    device: torch.device, precision: Precision, tolerance: float
) -> None:
    _, losses = trained(device, "triton", steps=4, precision=precision)
    _, expected = trained(device, "reference", steps=4)
    assert losses == pytest.approx(expected, rel=tolerance)
    assert losses[3] < 0.9 * losses[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_seed_gives_the_same_weights_on_a_gpu(precision: Precision) -> None:
    (first, _), (second, _) = (trained(torch.device("cuda"), "auto", steps=10, precision=precision) for _ in range(2))
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name
    assert first.calibration == second.calibration
