"""The LSTM baselines learn, and what stands in for Mamba-3 keeps to what a mixer is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.accuracy.lstm import LstmClassifier, LstmNextEvent
from benchmarks.accuracy.mixers import Lstm, Transformer
from benchmarks.accuracy.protocols import Protocol, random_split
from benchmarks.accuracy.tasks import Task
from detector.quality.metrics import average_precision
from detector.training.train import TrainingOptions
from kernels.packing import Packing
from tests.benchmarks.sessions import blocks

OPTIONS = TrainingOptions(next_token_steps=60, classifier_steps=60, learning_rate=1e-2, batch_tokens=512)


def packing(*lengths: int) -> Packing:
    return Packing.of(torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32))


@pytest.mark.parametrize("labelled", [False, True])
def test_it_learns_which_sessions_are_anomalous_and_is_the_same_for_the_same_seed(labelled: bool) -> None:
    few = blocks(300, 40)
    protocol = Protocol("", lambda: few, random_split, labelled=labelled)
    task = Task.of(protocol, 0)
    kind = LstmClassifier if labelled else LstmNextEvent
    detector = kind(options=OPTIONS)
    assert detector.fits(protocol)
    assert not (LstmNextEvent if labelled else LstmClassifier)().fits(protocol)
    outcome, again = (detector.run(task, 0) for _ in range(2))
    assert np.array_equal(outcome.test, again.test)
    assert average_precision(outcome.test, task.test.anomalous, task.test.weights) > 0.95
    assert len(outcome.validation) == len(task.validation)


@pytest.mark.parametrize("kind", [Lstm, Transformer])
def test_a_mixer_sees_the_tokens_of_its_own_sequence_up_to_each(kind: type[Lstm | Transformer]) -> None:
    torch.manual_seed(0)
    mixer, u = kind(64, 30_000), torch.randn(9, 64)
    together = mixer(u, packing(4, 0, 5), "reference")
    torch.testing.assert_close(mixer(u[4:], packing(5), "reference"), together[4:])
    torch.testing.assert_close(mixer(u[4:7], packing(3), "reference"), together[4:7])
    assert not torch.allclose(mixer(u[5:], packing(4), "reference"), together[5:]), "it sees those before it"


@pytest.mark.parametrize("kind", [Lstm, Transformer])
@pytest.mark.parametrize("parameters", [30_300, 120_000])
def test_a_mixer_has_about_as_many_parameters_as_asked_for(kind: type[Lstm | Transformer], parameters: int) -> None:
    found = sum(each.numel() for each in kind(64, parameters).parameters())
    assert found == pytest.approx(parameters, rel=0.02)
