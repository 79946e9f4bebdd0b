"""The two training stages: packed batches, losses, schedule, early stopping.

- Equal sessions are merged and weigh as their counts: logs repeat themselves, and most sessions of a block
  store are copies. In the classifier's loss they weigh as the square root of their counts, so that rare
  normal sessions are not drowned, and both classes weigh the same.
- The classifier stage goes on predicting the next token of normal sessions, so that the surprise stays what
  it was while the layers learn to tell the classes apart.
- The class logit is trained at the end of the session and, with less weight, after each event with the label
  of the whole session: that is what early scores are made of.
- Some input events lose their learned vector and keep their text's, as an unknown line does when serving. As
  a target, an unknown line has the probability that the training sessions themselves suggest (`novelty`).
  Without either the model would never have met that class, and its surprise would be arbitrary.
- A stage ends early when the validation loss no longer falls, and leaves the model with its best weights.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from detector.calibration import SessionStatistics
from detector.errors import TrainingError
from detector.inference import Backend, Inference, batches, pack
from detector.model import DetectorModel
from detector.training_data import ANOMALOUS, NORMAL, UNLABELLED, TrainingSessions
from detector.vocabulary import EOS, N_SPECIAL, UNK

Stage = Literal["next_token", "classifier"]
Floats = npt.NDArray[np.float64]

_REPORT_STEPS = 10
_WARM_UP, _FLOOR = 0.05, 0.01


@dataclass(frozen=True)
class TrainingOptions:
    """How long and how fast to train; the defaults suit ten thousand sessions of a few dozen events.

    Attributes:
        next_token_steps: most optimiser steps of the first stage.
        classifier_steps: most optimiser steps of the second.
        passes: both are raised, if need be, to this many passes over the distinct sessions.
        batch_tokens: tokens in a step, BOS and EOS included.
        learning_rate: peak, after a linear warm-up over the first 5 % of a stage; then a cosine down to 1 %.
        weight_decay: of matrices; vectors have none.
        clip_norm: the gradient's norm is cut to this.
        unknown_rate: share of input events that are shown as unknown lines.
        prefix_weight: of the class loss after the events, beside 1 at the end.
        next_token_weight: of the next-token loss in the classifier stage.
        validation_share: of the sessions, where no validation sessions are given.
        validations: how often a stage looks at the validation sessions.
        patience: a stage ends after so many validations in a row without a better loss.
    """

    next_token_steps: int = 600
    classifier_steps: int = 400
    passes: int = 2
    batch_tokens: int = 2048
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    unknown_rate: float = 0.02
    prefix_weight: float = 0.2
    next_token_weight: float = 0.5
    validation_share: float = 0.2
    validations: int = 12
    patience: int = 4

    def steps(self, stage: Stage, sessions: TrainingSessions) -> int:
        """Most steps of a stage on these sessions, equal ones merged."""
        asked = self.next_token_steps if stage == "next_token" else self.classifier_steps
        tokens = int(sessions.lengths.sum()) + 2 * len(sessions)
        return max(asked, self.passes * -(-tokens // self.batch_tokens))


@dataclass(frozen=True)
class TrainingProgress:
    """Where the training is.

    Attributes:
        stage: what is being trained.
        step: optimiser steps done in this stage.
        steps: most steps of this stage.
        loss: mean training loss since the last report.
        validation_loss: at this step, where it was measured.
        seconds_left: of this stage and the next, if neither ends early.
    """

    stage: Stage
    step: int
    steps: int
    loss: float
    validation_loss: float | None
    seconds_left: float


@dataclass(frozen=True)
class _Outputs:
    """What the model says at each target (event or end) of a batch; all (rows,)."""

    session: Tensor  # which session of the batch the target belongs to
    is_end: Tensor
    surprise: Tensor  # training form: with the mass of the unknown class mixed in
    class_logit: Tensor


class Trainer:
    """Trains a model stage by stage and measures it on the validation sessions.

    Args:
        model: on the device to train on.
        held_out: validation sessions, each with at least one event, one of them not anomalous.
        kernels: which kernels to use.
        options: how long and how fast.
        seed: of the order of the sessions.
        progress: called every few steps.
    """

    def __init__(
        self,
        model: DetectorModel,
        held_out: TrainingSessions,
        *,
        kernels: Backend,
        options: TrainingOptions,
        seed: int,
        progress: Callable[[TrainingProgress], None] | None,
    ) -> None:
        self._model = model
        self._held_out = held_out
        self._kernels: Backend = kernels
        self._options = options
        self._rng = np.random.default_rng(seed)
        self._progress = progress
        self._device = next(model.parameters()).device

    def next_token(self, sessions: TrainingSessions, *, steps_after: int) -> None:
        """Learn to predict the next token of sessions taken for normal."""
        unseen = novelty(sessions)
        rates = self._masking_rates(sessions)

        def loss_of(chosen: npt.NDArray[np.int64]) -> Tensor:
            outputs = self._forward(sessions, chosen, unseen, rates)
            return _weighted_mean(outputs.surprise, self._tensor(sessions.counts[chosen])[outputs.session])

        self._run("next_token", sessions, loss_of, steps_after)

    def classifier(self, sessions: TrainingSessions) -> None:
        """Learn to tell anomalous sessions from normal ones."""
        unseen = novelty(sessions.select(sessions.labels != ANOMALOUS))
        rates = self._masking_rates(sessions)
        class_weights = balanced_weights(sessions)
        normal_counts = np.where(sessions.labels == ANOMALOUS, 0, sessions.counts)
        anomalous = sessions.labels == ANOMALOUS
        lengths = sessions.lengths

        def loss_of(chosen: npt.NDArray[np.int64]) -> Tensor:
            outputs = self._forward(sessions, chosen, unseen, rates)
            next_token = _weighted_mean(outputs.surprise, self._tensor(normal_counts[chosen])[outputs.session])
            at_end = self._tensor(class_weights[chosen])
            per_event = self._tensor(self._options.prefix_weight * class_weights[chosen] / lengths[chosen])
            weights = torch.where(outputs.is_end, at_end[outputs.session], per_event[outputs.session])
            losses = functional.binary_cross_entropy_with_logits(
                outputs.class_logit, self._tensor(anomalous[chosen])[outputs.session], reduction="none"
            )
            class_loss = (weights * losses).sum() / len(chosen)
            return class_loss + self._options.next_token_weight * next_token

        self._run("classifier", sessions, loss_of, steps_after=0)

    def statistics(self) -> SessionStatistics:
        """What the calibration needs to know of every validation session."""
        highest, logits, early_highest, early_logits = np.empty((4, len(self._held_out)))
        for measured in self.inference().measure(self._held_out.sequences):
            rows, starts, ends = measured.indices, measured.bounds[:-1], measured.bounds[1:] - 1
            highest[rows] = np.maximum.reduceat(measured.surprises, starts)
            logits[rows] = measured.logits[ends]
            early_starts = starts - np.arange(len(rows))
            early_highest[rows] = np.maximum.reduceat(np.delete(measured.surprises, ends), early_starts)
            early_logits[rows] = np.maximum.reduceat(np.delete(measured.logits, ends), early_starts)
        counts = self._held_out.counts.astype(np.float64)
        return SessionStatistics(highest, logits, early_highest, early_logits, self._held_out.labels, counts)

    def inference(self) -> Inference:
        """The model as it is now, ready to measure sessions."""
        return Inference(self._model.eval(), batch_tokens=4 * self._options.batch_tokens, backend=self._kernels)

    def _run(
        self,
        stage: Stage,
        sessions: TrainingSessions,
        loss_of: Callable[[npt.NDArray[np.int64]], Tensor],
        steps_after: int,
    ) -> None:
        options = self._options
        steps = options.steps(stage, sessions)
        optimiser = torch.optim.AdamW(self._parameter_groups(), betas=(0.9, 0.98))
        every = max(1, steps // options.validations)
        best_loss, best_weights, worse = np.inf, self._weights(), 0
        started = time.monotonic()
        losses: list[float] = []
        for step, chosen in zip(range(1, steps + 1), self._epochs(sessions), strict=False):
            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * _schedule(step / steps)
            self._model.train()
            optimiser.zero_grad()
            loss = loss_of(chosen)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), options.clip_norm)
            optimiser.step()
            losses.append(loss.item())
            if not np.isfinite(losses[-1]):
                raise TrainingError(f"training diverged: the loss of stage {stage} is {losses[-1]} at step {step}")
            validation_loss = self._validation_loss(stage) if step % every == 0 or step == steps else None
            if self._progress and (validation_loss is not None or step % _REPORT_STEPS == 0):
                left = (time.monotonic() - started) / step * (steps - step + steps_after)
                mean = float(np.mean(losses))
                self._progress(TrainingProgress(stage, step, steps, mean, validation_loss, left))
                losses.clear()
            if validation_loss is None:
                continue
            if validation_loss < best_loss:
                best_loss, best_weights, worse = validation_loss, self._weights(), 0
            else:
                worse += 1
            if worse == options.patience:
                break
        self._model.load_state_dict(best_weights)

    def _epochs(self, sessions: TrainingSessions) -> Iterator[npt.NDArray[np.int64]]:
        """Batches of session indices without end, in a new order each time round."""
        lengths = sessions.lengths
        while True:
            order = self._rng.permutation(len(sessions))
            for part in batches(lengths[order], self._options.batch_tokens):
                yield order[part]

    def _forward(
        self, sessions: TrainingSessions, chosen: npt.NDArray[np.int64], unseen: float, rates: Tensor
    ) -> _Outputs:
        packed = pack([sessions.sequences[index] for index in chosen], self._device)
        known = packed.tokens.clamp(min=UNK)
        masked = torch.rand(known.shape).to(self._device) < rates[known]
        next_logits, class_logits = self._model(
            packed.tokens,
            packed.cu_seqlens,
            unknown_mask=masked,
            backend=self._kernels,
        )
        positions, classes = packed.targets()
        log_p = functional.log_softmax(next_logits[positions - 1].float(), dim=1)
        surprise = -(1 - unseen) * log_p.gather(1, classes[:, None]).squeeze(1) - unseen * log_p[:, UNK]
        return _Outputs(
            session=torch.bucketize(positions, packed.cu_seqlens[1:].long(), right=True),
            is_end=classes == EOS,
            surprise=surprise,
            class_logit=class_logits[positions].float(),
        )

    def _masking_rates(self, sessions: TrainingSessions) -> Tensor:
        """Of each token, how often it is shown as an unknown line: the rarer it is, the likelier."""
        rates = np.zeros(self._model.config.vocabulary_size)
        frequency = token_frequency(sessions, len(rates))
        rates[N_SPECIAL:] = np.maximum(self._options.unknown_rate, 1 / (1 + frequency[N_SPECIAL:]))
        return self._tensor(rates)

    def _validation_loss(self, stage: Stage) -> float:
        """Nats per event of the sessions taken for normal; in the classifier stage with the class loss."""
        held_out, options = self._held_out, self._options
        normal_counts = np.where(held_out.labels == ANOMALOUS, 0, held_out.counts)
        class_weights = balanced_weights(held_out)
        signs = np.where(held_out.labels == ANOMALOUS, -1.0, 1.0)
        nats = events = class_loss = 0.0
        for measured in self.inference().measure(held_out.sequences):
            rows, starts, sizes = measured.indices, measured.bounds[:-1], np.diff(measured.bounds)
            nats += float(normal_counts[rows] @ np.add.reduceat(measured.surprises.astype(np.float64), starts))
            events += float(normal_counts[rows] @ sizes)
            if stage == "classifier":
                losses = np.logaddexp(0.0, np.repeat(signs[rows], sizes) * measured.logits)
                at_end = losses[measured.bounds[1:] - 1]
                before = (np.add.reduceat(losses, starts) - at_end) / (sizes - 1)
                class_loss += float(class_weights[rows] @ (at_end + options.prefix_weight * before))
        if stage == "next_token":
            return nats / events
        return class_loss / len(held_out) + options.next_token_weight * nats / events

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self._model.state_dict().items()}

    def _parameter_groups(self) -> list[dict[str, object]]:
        parameters = list(self._model.parameters())
        return [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": self._options.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]

    def _tensor(self, values: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(self._device)


def token_frequency(sessions: TrainingSessions, size: int) -> Floats:
    """How often each of the first `size` tokens occurs, unknown lines as UNK."""
    events = np.concatenate(sessions.sequences)
    weights = np.repeat(sessions.counts, sessions.lengths)
    frequency = np.bincount(np.where(events < 0, UNK, events), weights=weights, minlength=size)
    return frequency.astype(np.float64)


def novelty(sessions: TrainingSessions) -> float:
    """Probability that the next event has a template never seen: the share of those seen once (Good 1953)."""
    frequency = token_frequency(sessions, N_SPECIAL)
    return float((frequency[N_SPECIAL:] == 1).sum() + 1) / float(frequency.sum() + 1)


def balanced_weights(sessions: TrainingSessions) -> Floats:
    """Weight of each session in the class loss: 1 on average, each label half of all, unlabelled sessions 0."""
    weights = np.sqrt(sessions.counts)
    for label in (NORMAL, ANOMALOUS):
        of_label = sessions.labels == label
        weights[of_label] /= max(weights[of_label].sum(), 1e-9)
    weights[sessions.labels == UNLABELLED] = 0.0
    return weights * len(sessions) / 2


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / weights.sum().clamp(min=1e-6)


def _schedule(done: float) -> float:
    """Share of the peak learning rate after this share of the steps."""
    if done < _WARM_UP:
        return done / _WARM_UP
    cosine = 0.5 * (1 + np.cos(np.pi * (done - _WARM_UP) / (1 - _WARM_UP)))
    return float(_FLOOR + (1 - _FLOOR) * cosine)
