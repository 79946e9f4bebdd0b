"""The two training stages: what the model learns in each, and what it is worth on the validation sessions.

- Equal sessions are merged and weigh as their counts: logs repeat themselves, and most sessions of a block
  store are copies. In the classifier's loss they weigh as the square root of their counts, so that rare
  normal sessions are not drowned, and both classes weigh the same.
- The classifier stage goes on predicting the next token of normal sessions, so that the surprise stays what
  it was while the layers learn to tell the classes apart.
- The classifier also sees normal sessions that end too early, as normal ones: a gap, the end of the log or a later
  version of what logs may leave out the last phases, and a classifier that never saw such an end takes whatever comes
  last in all others for granted. They end between two phases (`TrainingSessions.cut_short`), and those whose counts an
  anomalous session has are left out.
- The class logit is trained at the end of the session and, with less weight, after each event with the label
  of the whole session: that is what early scores are made of.
- Some input events lose their learned vector and keep their text's, as an unknown line does when serving. As
  a target, an unknown line has the probability that the training sessions themselves suggest (`novelty`).
  Without either the model would never have met that class, and its surprise would be arbitrary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from detector.model.devices import pass_tokens
from detector.model.inference import Backend, Inference, flat
from detector.model.model import DetectorModel
from detector.scoring.calibration import SessionStatistics, calibrated_loss
from detector.scoring.count_profile import CountProfile
from detector.sessions_file import ANOMALOUS, NORMAL, UNLABELLED
from detector.text.vocabulary import EOS, N_SPECIAL, UNK
from detector.training.batches import Batch, PackedSessions
from detector.training.data import TrainingSessions
from detector.training.loop import TrainingLoop, TrainingProgress
from detector.training.options import Stage, TrainingOptions
from detector.training.state import TrainingState

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Outputs:
    """What the model says at each target (event or end) of a batch; both (targets,), float32."""

    surprise: Tensor  # training form: with the mass of the unknown class mixed in
    class_logit: Tensor


class Trainer:
    """Trains a model stage by stage and measures it on the validation sessions.

    Args:
        model: float32, on the device to train on.
        held_out: validation sessions, each with at least one event, one of them not anomalous.
        kernels: which kernels to use.
        precision: of activations and matrix products while training, float32 or bfloat16. Weights, gradients and
            validation are float32.
        options: how long and how fast.
        seed: of the order of the sessions and of what is masked.
        progress: called every few steps.
        state: where the training is saved, and taken up again.

    Raises:
        TrainingError: the state is of another training or damaged.
    """

    def __init__(
        self,
        model: DetectorModel,
        held_out: TrainingSessions,
        *,
        kernels: Backend,
        precision: torch.dtype,
        options: TrainingOptions,
        seed: int,
        progress: Callable[[TrainingProgress], None] | None,
        state: TrainingState | None,
    ) -> None:
        self._model = model
        self._held_out = held_out
        self._kernels: Backend = kernels
        self._precision = precision
        self._options = options
        self._seed = seed
        self._device = next(model.parameters()).device
        self._loop = TrainingLoop(model, options=options, seed=seed, progress=progress, state=state)

    def next_token(self, sessions: TrainingSessions, *, steps_after: int) -> None:
        """Learn to predict the next token of sessions taken for normal."""
        unseen = novelty(sessions)
        rates = self._masking_rates(sessions)
        counts = self._tensor(sessions.counts)

        def loss_of(batch: Batch, random: torch.Generator) -> Tensor:
            outputs = self._forward(batch, random, unseen, rates)
            return _weighted_mean(outputs.surprise, counts[batch.rows])

        self._run("next_token", sessions, loss_of, steps_after)

    def classifier(self, sessions: TrainingSessions) -> None:
        """Learn to tell anomalous sessions from normal ones."""
        unseen = novelty(sessions.select(sessions.labels != ANOMALOUS))
        rates = self._masking_rates(sessions)
        cut = sessions.cut_short(self._options.cuts, self._seed)
        weight_of_cut = self._options.cut_weight * len(sessions) / 2 / max(len(cut), 1)
        class_weights = np.append(balanced_weights(sessions), np.full(len(cut), weight_of_cut))
        class_weights *= len(class_weights) / class_weights.sum()
        normal_counts = np.append(np.where(sessions.labels == ANOMALOUS, 0, sessions.counts), np.zeros(len(cut)))
        counts = self._tensor(normal_counts)  # where a session is cut says nothing of what comes next
        sessions = sessions.joined(cut)
        at_end = self._tensor(class_weights)
        per_event = self._tensor(self._options.prefix_weight * class_weights / sessions.lengths)
        anomalous = self._tensor(sessions.labels == ANOMALOUS)

        def loss_of(batch: Batch, random: torch.Generator) -> Tensor:
            outputs = self._forward(batch, random, unseen, rates)
            next_token = _weighted_mean(outputs.surprise, counts[batch.rows])
            weights = torch.where(batch.classes == EOS, at_end[batch.rows], per_event[batch.rows])
            losses = functional.binary_cross_entropy_with_logits(
                outputs.class_logit, anomalous[batch.rows], reduction="none"
            )
            class_loss = (weights * losses).sum() / batch.n_sessions
            return class_loss + self._options.next_token_weight * next_token

        self._run("classifier", sessions, loss_of, steps_after=0)

    def statistics(self, profile: CountProfile, sessions: TrainingSessions | None = None) -> SessionStatistics:
        """What the calibration needs to know of sessions, at least one; of the validation ones by default.

        `profile` is of the training ones.
        """
        held_out = self._held_out if sessions is None else sessions
        highest, logits, early_highest, early_logits = np.empty((4, len(held_out)))
        for measured in self.inference().measure(*flat(held_out.sequences)):
            rows, starts, ends = measured.indices, measured.bounds[:-1], measured.bounds[1:] - 1
            highest[rows] = np.maximum.reduceat(measured.surprises, starts)
            logits[rows] = measured.logits[ends]
            early_starts = starts - np.arange(len(rows))
            early_highest[rows] = np.maximum.reduceat(np.delete(measured.surprises, ends), early_starts)
            early_logits[rows] = np.maximum.reduceat(np.delete(measured.logits, ends), early_starts)
        bounds = np.append(0, np.cumsum(held_out.lengths))
        judged = profile.judge(np.concatenate(held_out.sequences), bounds)
        return SessionStatistics(
            highest=highest,
            logits=logits,
            unusual=judged.final,
            seen=judged.seen,
            early_highest=early_highest,
            early_logits=early_logits,
            early_unusual=judged.running[bounds[1:] - 1],
            labels=held_out.labels,
            counts=held_out.counts.astype(np.float64),
        )

    def cut_logits(self) -> Floats:
        """Class logit at the end of the validation sessions labelled normal where they are cut short, (k,)."""
        cut = self._held_out.cut_short(self._options.cuts, self._seed)
        logits = np.empty(len(cut))
        if len(cut):
            for measured in self.inference().measure(*flat(cut.sequences)):
                logits[measured.indices] = measured.logits[measured.bounds[1:] - 1]
        return logits

    def inference(self) -> Inference:
        """The model as it is now, ready to measure sessions."""
        return Inference(self._model.eval(), batch_tokens=pass_tokens(self._device), backend=self._kernels)

    def _run(
        self,
        stage: Stage,
        sessions: TrainingSessions,
        loss_of: Callable[[Batch, torch.Generator], Tensor],
        steps_after: int,
    ) -> None:
        self._loop.run(
            stage,
            PackedSessions(sessions, self._device),
            loss_of,
            lambda: self._validation_loss(stage),
            steps=self._options.steps(stage, sessions),
            steps_after=steps_after,
        )

    def _forward(self, batch: Batch, random: torch.Generator, unseen: float, rates: Tensor) -> _Outputs:
        drawn = torch.rand(len(batch.tokens), generator=random, device=self._device)
        masked = drawn < rates[batch.tokens.clamp(min=UNK)]
        with torch.autocast(self._device.type, self._precision, enabled=self._precision != torch.float32):
            next_logits, class_logits = self._model(
                batch.tokens,
                batch.cu_seqlens,
                unknown_mask=masked,
                unknown_lines=batch.unknown_lines,
                backend=self._kernels,
            )
        log_p = functional.log_softmax(next_logits[batch.positions - 1].float(), dim=1)
        surprise = -(1 - unseen) * log_p.gather(1, batch.classes[:, None]).squeeze(1) - unseen * log_p[:, UNK]
        return _Outputs(surprise, class_logits[batch.positions].float())

    def _masking_rates(self, sessions: TrainingSessions) -> Tensor:
        """Of each token, how often it is shown as an unknown line: the rarer it is, the likelier."""
        rates = np.zeros(self._model.config.vocabulary_size)
        frequency = token_frequency(sessions, len(rates))
        rates[N_SPECIAL:] = np.maximum(self._options.unknown_rate, 1 / (1 + frequency[N_SPECIAL:]))
        return self._tensor(rates)

    def _validation_loss(self, stage: Stage) -> float:
        """Nats per event of the sessions taken for normal; in the classifier stage with the class loss at the end.

        That is the loss of calibrated logits, as the scores will be: a classifier that grows sure of itself on kinds of
        sessions that training has not shown is no worse for it while it still ranks them right.
        """
        held_out = self._held_out
        normal_counts = np.where(held_out.labels == ANOMALOUS, 0, held_out.counts)
        logits = np.empty(len(held_out))
        nats = events = 0.0
        for measured in self.inference().measure(*flat(held_out.sequences)):
            rows, starts, sizes = measured.indices, measured.bounds[:-1], np.diff(measured.bounds)
            nats += float(normal_counts[rows] @ np.add.reduceat(measured.surprises.astype(np.float64), starts))
            events += float(normal_counts[rows] @ sizes)
            logits[rows] = measured.logits[measured.bounds[1:] - 1]
        if stage == "next_token":
            return nats / events
        known, weights = held_out.labels != UNLABELLED, balanced_weights(held_out)
        anomalous = held_out.labels[known] == ANOMALOUS
        class_loss = calibrated_loss(logits[known], anomalous, weights[known])
        return class_loss + self._options.next_token_weight * nats / events

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
