"""Optimiser steps of a training stage: schedule, early stopping, reports, and going on where a killed one was.

The device is asked for a result only every few steps, for the report; in between it is never waited for. Orders and
masks are drawn from the seed, the stage and the epoch's or step's number, so they need no memory of earlier ones.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detector.errors import TrainingError
from detector.model.inference import batches
from detector.model.model import DetectorModel
from detector.training.batches import Batch, PackedSessions
from detector.training.options import STAGES, Stage, TrainingOptions
from detector.training.state import Position, Saved, TrainingState

_REPORT_STEPS = 10
_WARM_UP, _FLOOR = 0.05, 0.01
# What a random number is for; with the seed, the stage and a count it decides the number.
_ORDER, _MASKS = range(2)


@dataclass(frozen=True)
class TrainingProgress:
    """Where the training is.

    Attributes:
        stage: what is being trained.
        step: optimiser steps done in this stage.
        steps: most steps of this stage.
        tokens: trained on so far in both stages, BOS and EOS included.
        loss: mean training loss since the last report.
        validation_loss: at this step, where it was measured.
        learning_rate: of this step.
        seconds: of training so far, without what a kill undid.
        seconds_left: of this stage and the next, if neither ends early.
        tokens_per_s: trained on since the last report, validation included.
        peak_memory_bytes: most memory that the process has had so far: on a GPU what PyTorch had allocated there, else
            what was resident.
    """

    stage: Stage
    step: int
    steps: int
    tokens: int
    loss: float
    validation_loss: float | None
    learning_rate: float
    seconds: float
    seconds_left: float
    tokens_per_s: float
    peak_memory_bytes: int


class TrainingLoop:
    """Runs the stages of a training one after the other.

    Args:
        model: on the device to train on.
        options: how long and how fast.
        seed: of orders and masks.
        progress: called every few steps.
        state: where the training is saved after each validation, and taken up again.

    Raises:
        TrainingError: as `TrainingState.load`.
    """

    def __init__(
        self,
        model: DetectorModel,
        *,
        options: TrainingOptions,
        seed: int,
        progress: Callable[[TrainingProgress], None] | None,
        state: TrainingState | None,
    ) -> None:
        self._model = model
        self._options = options
        self._seed = seed
        self._progress = progress
        self._state = state
        self._saved = None if state is None else state.load()
        self._device = next(model.parameters()).device
        self._masks = torch.Generator(self._device)
        self._at = Position(STAGES[0], 0, 0, 0.0, np.inf, 0) if self._saved is None else self._saved.position
        self._began = time.monotonic() - self._at.seconds

    def run(
        self,
        stage: Stage,
        sessions: PackedSessions,
        loss_of: Callable[[Batch, torch.Generator], Tensor],
        validation_loss: Callable[[], float],
        *,
        steps: int,
        steps_after: int,
    ) -> None:
        """Train until the validation loss no longer falls, and leave the model with its best weights.

        A stage that a killed training was done with is passed over.

        Args:
            stage: which one it is.
            sessions: what it learns from.
            loss_of: of a batch, with a generator for what is random in it; a scalar on the model's device.
            validation_loss: of the model as it is.
            steps: most optimiser steps.
            steps_after: of later stages, for the time left.

        Raises:
            TrainingError: the loss is no longer finite, or the state cannot be written.
        """
        if STAGES.index(stage) < STAGES.index(self._at.stage):
            return
        optimiser = self._optimiser()
        best_weights = self._enter(stage, optimiser)
        at, options = self._at, self._options
        entered, first = self._seconds(), at.step
        reported, reported_tokens = entered, at.tokens
        losses: list[Tensor] = []
        every = max(1, steps // options.validations)
        order = islice(self._order(stage, sessions), at.step, None)
        while at.step < steps and at.worse < options.patience:
            batch = sessions.batch(next(order))
            at.step += 1
            at.tokens += len(batch.tokens)
            rate = options.learning_rate * _schedule(at.step / steps)
            losses.append(self._step(optimiser, rate, batch, stage, loss_of))
            validates = at.step % every == 0 or at.step == steps
            if not validates and at.step % _REPORT_STEPS:
                continue
            loss = torch.stack(losses).double().mean().item()
            losses.clear()
            _check_finite("loss", loss, at)
            measured = validation_loss() if validates else None
            if measured is not None:
                _check_finite("validation loss", measured, at)
                if measured < at.best_loss:
                    at.best_loss, at.worse, best_weights = measured, 0, self._weights()
                else:
                    at.worse += 1
                self._save(optimiser, best_weights)
            now = self._seconds()
            if self._progress is not None:
                self._progress(
                    TrainingProgress(
                        stage=stage,
                        step=at.step,
                        steps=steps,
                        tokens=at.tokens,
                        loss=loss,
                        validation_loss=measured,
                        learning_rate=rate,
                        seconds=now,
                        seconds_left=(now - entered) / (at.step - first) * (steps - at.step + steps_after),
                        tokens_per_s=(at.tokens - reported_tokens) / max(now - reported, 1e-9),
                        peak_memory_bytes=_peak_memory_bytes(self._device),
                    )
                )
            reported, reported_tokens = now, at.tokens
        self._model.load_state_dict(best_weights)

    def _step(
        self,
        optimiser: torch.optim.Optimizer,
        rate: float,
        batch: Batch,
        stage: Stage,
        loss_of: Callable[[Batch, torch.Generator], Tensor],
    ) -> Tensor:
        """One optimiser step; the loss before it, on the device."""
        for group in optimiser.param_groups:
            group["lr"] = rate
        seed = self._random(stage, _MASKS, self._at.step).generate_state(1, np.uint64)
        self._masks.manual_seed(int(seed[0]))
        self._model.train()
        optimiser.zero_grad()
        loss = loss_of(batch, self._masks)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._options.clip_norm)
        optimiser.step()
        return loss.detach()

    def _order(self, stage: Stage, sessions: PackedSessions) -> Iterator[npt.NDArray[np.int64]]:
        """Session indices of the batches, without end, in a new order each time round."""
        epoch = 0
        while True:
            order = np.random.default_rng(self._random(stage, _ORDER, epoch)).permutation(len(sessions.lengths))
            for part in batches(sessions.lengths[order], self._options.batch_tokens):
                yield order[part]
            epoch += 1

    def _random(self, stage: Stage, purpose: int, number: int) -> np.random.SeedSequence:
        return np.random.SeedSequence((self._seed, STAGES.index(stage), purpose, number))

    def _enter(self, stage: Stage, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Start a stage or take it up again; its best weights so far."""
        saved, self._saved = self._saved, None
        if saved is None or saved.position.stage != stage:
            self._at = replace(self._at, stage=stage, step=0, best_loss=np.inf, worse=0)
            return self._weights()
        self._model.load_state_dict(saved.weights)
        fresh = optimiser.state_dict()
        optimiser.load_state_dict({**fresh, "state": {number: dict(t) for number, t in saved.moments.items()}})
        return dict(saved.best_weights)

    def _save(self, optimiser: torch.optim.Optimizer, best_weights: dict[str, Tensor]) -> None:
        if self._state is None:
            return
        moments = optimiser.state_dict()["state"]
        position = replace(self._at, seconds=self._seconds())
        self._state.save(Saved(position, self._model.state_dict(), best_weights, moments))

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self._model.state_dict().items()}

    def _optimiser(self) -> torch.optim.Optimizer:
        parameters = list(self._model.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": self._options.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def _check_finite(name: str, value: float, at: Position) -> None:
    if not np.isfinite(value):
        raise TrainingError(f"training diverged: the {name} of stage {at.stage} is {value} at step {at.step}")


def _schedule(done: float) -> float:
    """Share of the peak learning rate after this share of the steps."""
    if done < _WARM_UP:
        return done / _WARM_UP
    cosine = 0.5 * (1 + np.cos(np.pi * (done - _WARM_UP) / (1 - _WARM_UP)))
    return float(_FLOOR + (1 - _FLOOR) * cosine)


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
