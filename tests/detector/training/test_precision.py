"""Mixed precision: what is rounded to bfloat16 while training, and what it costs."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from detector.model.devices import Precision
from detector.model.model import Mamba3Layer
from detector.training.train import TrainingOptions, TrainingProgress, train
from tests.detector.training.test_train import SMALL, VOCABULARY, sessions


def test_in_bfloat16_about_the_same_is_learnt_and_weights_stay_float32() -> None:
    data = sessions(200, 40, seed=4)
    options = TrainingOptions(next_token_steps=36, classifier_steps=24, learning_rate=1e-2, batch_tokens=256)
    losses: dict[str, list[float]] = {}
    for precision in get_args(Precision):
        reports: list[TrainingProgress] = []
        trained = train(
            data,
            VOCABULARY,
            size=SMALL,
            device="cpu",
            precision=precision,
            options=options,
            progress=reports.append,
        )
        losses[precision] = [report.validation_loss for report in reports if report.validation_loss is not None]
        assert {parameter.dtype for parameter in trained.model.parameters()} == {torch.float32}
    assert losses["auto"] == losses["float32"] != losses["bfloat16"]
    for stage in (slice(0, 12), slice(12, None)):
        rounded, exact = losses["bfloat16"][stage], losses["float32"][stage]
        assert exact[-1] < 0.6 * exact[0]
        assert rounded[-1] == pytest.approx(exact[-1], rel=0.1)


def test_under_autocast_a_layer_rounds_its_projections_and_nothing_that_it_sums_over_time() -> None:
    layer = Mamba3Layer(d_model=32, d_state=16, headdim=16, mimo_rank=2)
    u, cu_seqlens = torch.randn(64, 32), torch.tensor([0, 40, 64], dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(u, cu_seqlens)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float32}
    for projection in (layer.in_proj, layer.out_proj):
        projection.to(torch.bfloat16)
    assert torch.equal(mixed, layer(u.to(torch.bfloat16), cu_seqlens))
