"""The product with one thing done otherwise, as detectors: what each part of the model and the score is worth.

`base` is the product as it is: the same weights and the same scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.accuracy.datasets import Integers, hdfs_raw_times
from benchmarks.accuracy.detectors import SEVERITIES, Outcome, training_sessions
from benchmarks.accuracy.mixers import WithLstm, WithTransformer
from benchmarks.accuracy.protocols import Protocol
from benchmarks.accuracy.results import RAW_LINES
from benchmarks.accuracy.tasks import Floats, Part, Task
from detector.model.devices import resolve_device
from detector.model.inference import Backend
from detector.model.model import DetectorModel, ModelConfig
from detector.scoring.calibration import Calibration, SessionStatistics
from detector.scoring.count_profile import Bounds, CountProfile, Judged
from detector.scoring.evidence import Evidences
from detector.sessions_file import ANOMALOUS
from detector.text.vocabulary import N_SPECIAL
from detector.training.alarm_bounds import bound
from detector.training.train import DOUBTED, Size, TrainingOptions, TrainingSessions, training_dtype
from detector.training.trainer import Trainer

# Gaps of 0 s, 1 to 2 s, 3 to 6 s ... the last from about 9 hours on.
GAPS = 16


class IdAlone(DetectorModel):
    """A token enters as the learned vector of its id, without that of its text."""

    def __init__(self, config: ModelConfig, template_features: Tensor) -> None:
        super().__init__(config, template_features)
        nn.init.zeros_(self.text_embedding.weight).requires_grad_(False)


class MeanPooled(DetectorModel):
    """The class logit is of the mean of a session's states so far: the head is linear, so the mean of their logits."""

    def forward(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor,
        *,
        unknown_mask: Tensor | None = None,
        unknown_lines: bool = True,
        backend: Backend = "auto",
    ) -> tuple[Tensor, Tensor]:
        """As of `DetectorModel`."""
        next_logits, logits = super().forward(
            tokens, cu_seqlens, unknown_mask=unknown_mask, unknown_lines=unknown_lines, backend=backend
        )
        starts = cu_seqlens[:-1].long()
        sizes = cu_seqlens.diff().long()
        start = torch.repeat_interleave(starts, sizes).to(tokens.device)
        sums = torch.cat((logits.new_zeros(1, dtype=torch.float64), logits.double().cumsum(0)))
        so_far = torch.arange(1, len(tokens) + 1, device=tokens.device)
        return next_logits, ((sums[1:] - sums[start]) / (so_far - start)).float()


class WithTimeGaps(DetectorModel):
    """An event enters with a learned vector of the time since the event before it.

    Its tokens are pairs of a template and a gap (`paired`). It is asked for the next template only: each pair of one
    has the same share of its probability.

    Args:
        config: its sizes, of the vocabulary of templates.
        template_features: of that vocabulary.
    """

    def __init__(self, config: ModelConfig, template_features: Tensor) -> None:
        super().__init__(config, template_features)
        pairs = N_SPECIAL + (config.vocabulary_size - N_SPECIAL) * GAPS
        self.config = replace(config, vocabulary_size=pairs)
        self.gap_embedding = nn.Embedding(1 + GAPS, config.d_model, padding_idx=0)
        nn.init.normal_(self.gap_embedding.weight, std=config.d_model**-0.5)
        nn.init.zeros_(self.gap_embedding.weight[0])

    def forward(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor,
        *,
        unknown_mask: Tensor | None = None,
        unknown_lines: bool = True,
        backend: Backend = "auto",
    ) -> tuple[Tensor, Tensor]:
        """As of `DetectorModel`."""
        logits, classes = super().forward(
            tokens, cu_seqlens, unknown_mask=unknown_mask, unknown_lines=unknown_lines, backend=backend
        )
        of_pairs = (logits[:, N_SPECIAL:] - math.log(GAPS)).repeat_interleave(GAPS, dim=1)
        return torch.cat((logits[:, :N_SPECIAL], of_pairs), dim=1), classes

    def _embed(self, tokens: Tensor, unknown_mask: Tensor | None, unknown_lines: bool) -> Tensor:
        is_pair = tokens >= N_SPECIAL
        template, gap = (tokens - N_SPECIAL) // GAPS, (tokens - N_SPECIAL) % GAPS
        gaps: Tensor = self.gap_embedding(torch.where(is_pair, 1 + gap, 0))
        return super()._embed(torch.where(is_pair, N_SPECIAL + template, tokens), unknown_mask, unknown_lines) + gaps


def paired(tokens: Integers, times: Integers) -> Integers:
    """Tokens of pairs, from those of templates and times in ms, all (events,); unknown lines stay without a gap."""
    seconds = np.maximum(np.diff(times, prepend=times[:1]), 0) // 1000
    gaps = np.minimum(np.log2(seconds + 1).astype(np.int64), GAPS - 1)
    return np.where(tokens >= N_SPECIAL, N_SPECIAL + (tokens - N_SPECIAL) * GAPS + gaps, tokens)


def templates(pairs: Integers) -> Integers:
    """What `paired` made the tokens of."""
    return np.where(pairs >= N_SPECIAL, N_SPECIAL + (pairs - N_SPECIAL) // GAPS, pairs)


class _ProfileOfTemplates(CountProfile):
    """Is asked about pairs and judges their templates."""

    @classmethod
    def fit(cls, sequences: Sequence[Integers], counts: Integers, bounds: Bounds | None = None) -> Self:
        return super().fit([templates(events) for events in sequences], counts, bounds)

    def judge(self, tokens: Integers, bounds: Integers) -> Judged:
        return super().judge(templates(tokens), bounds)


@dataclass(frozen=True)
class Architecture:
    """What is trained.

    Attributes:
        model: whose forward pass it is.
        mimo_rank: None for the size's own.
        kernels: Triton's for inference know of no other forward pass than the product's.
        profile: of the counts of the model's tokens.
    """

    model: type[DetectorModel] = DetectorModel
    mimo_rank: int | None = None
    kernels: Backend = "auto"
    profile: type[CountProfile] = CountProfile

    def initial(self, task: Task, size: Size, seed: int) -> DetectorModel:
        """The model before training; what it shares with the product's has the same weights."""
        config = ModelConfig.preset(size, len(task.vocabulary))
        config = replace(config, mimo_rank=self.mimo_rank or config.mimo_rank)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.model(config, torch.from_numpy(task.vocabulary.template_features()))

    def encode(self, part: Part) -> Part:
        """The sessions in the model's tokens."""
        if self.model is not WithTimeGaps:
            return part
        times = hdfs_raw_times()
        return replace(
            part, tokens=[paired(tokens, times[key]) for key, tokens in zip(part.keys, part.tokens, strict=True)]
        )


class Learnt(NamedTuple):
    """What a trained model says of sessions.

    Attributes:
        held_out: those that it was stopped by, beside a profile that does not know them, for a calibration.
        validation: each row of the part, likewise.
        test: each row of the part, beside the profile of a checkpoint.
        counted: evidence of normal sessions by others like them; None with a classifier.
        cut: class logits of sessions cut short; None without one.
        rare: as of `Calibration.fit`.
    """

    held_out: SessionStatistics
    validation: SessionStatistics
    test: SessionStatistics
    counted: Evidences | None
    cut: Floats | None
    rare: float


@lru_cache(maxsize=1)
def _learn(
    architecture: Architecture, task: Task, size: Size, seed: int, device: str, options: TrainingOptions
) -> Learnt:
    """Train as `detector.training.train.train` does."""
    training, validation, test = (
        training_sessions(architecture.encode(part)) for part in (task.training, task.validation, task.test)
    )
    fitting, held_out = training.distinct(), validation.distinct()
    target = resolve_device(device)
    model = architecture.initial(task, size, seed).to(target)

    def trainer(sessions: TrainingSessions) -> Trainer:
        return Trainer(
            model,
            sessions,
            kernels=architecture.kernels,
            precision=training_dtype("auto", target),
            options=options,
            seed=seed,
            progress=None,
            state=None,
        )

    learner = trainer(held_out)
    normal = fitting.select(fitting.labels != ANOMALOUS)
    learner.next_token(normal, steps_after=0)
    if task.labelled:
        learner.classifier(fitting)
    bounded = bound(*(part.select(part.labels != ANOMALOUS) for part in (training, validation)))
    alarms = None if task.labelled else bounded
    usual = fitting.usual()
    profile = architecture.profile.fit(usual.sequences, usual.counts, alarms and alarms.bounds)
    shipped = profile
    if not task.labelled:
        whole = fitting.joined(held_out).usual()
        shipped = architecture.profile.fit(whole.sequences, whole.counts, alarms and alarms.bounds)
    return Learnt(
        learner.statistics(profile),
        trainer(validation).statistics(profile),
        trainer(test).statistics(shipped),
        alarms and alarms.alike,
        learner.cut_logits() if task.labelled else None,
        bounded.later.rare(DOUBTED) if task.labelled else 0.0,
    )


@dataclass(frozen=True)
class Variant:
    """A detector: the product with one thing done otherwise.

    Attributes:
        title: of what is done otherwise, for files and tables.
        size: of its model.
        device: what it computes on.
        options: how long and how fast it is trained.
        architecture: of its model.
        counts: whether the count profile takes part in the score. Without it that comes from the class logit alone or,
            without labels, from the highest surprise alone.
        labelled_only: whether it says nothing new where no classifier is trained.
        protocols: names of those it can run on; empty for all.
    """

    title: str
    size: Size
    device: str
    options: TrainingOptions
    architecture: Architecture = Architecture()
    counts: bool = True
    labelled_only: bool = False
    protocols: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """With the size of the model."""
        return f"{self.size}-{self.title}"

    def fits(self, protocol: Protocol) -> bool:
        """Whether there is anything to find out, where nothing is set aside."""
        return (protocol.labelled or not self.labelled_only) and not protocol.as_they_come

    def learn(self, task: Task, seed: int) -> Learnt:
        """Train, unless the last training was the same: variants may differ in the score alone."""
        return _learn(self.architecture, task, self.size, seed, self.device, self.options)

    def run(self, task: Task, seed: int) -> Outcome:
        """Thresholds are those of the worker's severities; there are no early scores."""
        learnt = self.learn(task, seed)
        score = (
            partial(
                with_counts,
                classifier=task.labelled,
                combine=self.options.combine,
                counted=learnt.counted,
                cut=learnt.cut,
                rare=learnt.rare,
            )
            if self.counts
            else partial(without_counts, classifier=task.labelled)
        )
        validation, test = (score(learnt.held_out, part) for part in (learnt.validation, learnt.test))
        return Outcome(validation, test, SEVERITIES, early={})


def variants(size: Size, device: str, options: TrainingOptions) -> dict[str, Variant]:
    """All of them, by title."""
    plain = Variant("base", size, device, options)
    found = (
        plain,
        replace(plain, title="without-counts", counts=False),
        replace(plain, title="rank-1", architecture=Architecture(mimo_rank=1)),
        replace(plain, title="rank-4", architecture=Architecture(mimo_rank=4)),
        replace(plain, title="id-alone", architecture=Architecture(IdAlone)),
        replace(plain, title="lstm", architecture=Architecture(WithLstm, kernels="reference")),
        replace(plain, title="transformer", architecture=Architecture(WithTransformer, kernels="reference")),
        replace(
            plain,
            title="mean-pooling",
            architecture=Architecture(MeanPooled, kernels="reference"),
            labelled_only=True,
        ),
        replace(
            plain,
            title="time-gaps",
            architecture=Architecture(WithTimeGaps, kernels="reference", profile=_ProfileOfTemplates),
            protocols=(RAW_LINES,),
        ),
    )
    return {each.title: each for each in found}


def with_counts(
    held_out: SessionStatistics,
    part: SessionStatistics,
    *,
    classifier: bool,
    combine: bool = False,
    counted: Evidences | None = None,
    cut: Floats | None = None,
    rare: float = 0.0,
) -> Floats:
    """Scores of sessions as the product gives them, calibrated on those held out."""
    calibration = Calibration.fit(held_out, classifier=classifier, combine=combine, counted=counted, cut=cut, rare=rare)
    return calibration.final_scores(part.highest, part.logits, part.unusual, part.seen)


def without_counts(held_out: SessionStatistics, part: SessionStatistics, *, classifier: bool) -> Floats:
    """Scores of sessions whose counts nobody looks at, calibrated on those held out."""
    nothing = np.zeros_like(held_out.unusual)
    blind = replace(held_out, unusual=nothing, early_unusual=nothing, seen=np.zeros_like(held_out.seen))
    calibration = Calibration.fit(blind, classifier=classifier)
    # Of the tail itself: beside counts, surprise alone takes a level no further than below a warning.
    return calibration.final.score(part.logits, calibration.tail.level(part.highest), np.zeros_like(part.seen))
