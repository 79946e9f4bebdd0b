"""Learning on: a trained checkpoint takes up what recent sessions do, and keeps what it knew.

What it learns from are recent sessions and a sample of those of before, both as they are weighed by the caller. What
recent traffic may teach at all is the caller's to decide, too: here every recent session is one to learn from, but for
those labelled anomalous.

- *Templates* that were added to the vocabulary become tokens of the model. Each begins as what it was until then, an
  unknown line with a text, so nothing else changes by that.
- *Language model*: goes on training, at a lower rate than at first, where recent sessions surprise it more than older
  ones did or have templates it does not know. Otherwise it stays.
- *Tolerances*: stay as long as no recent session breaks them. Those that change are learnt anew from all, those that
  stood out before among them (`detector.scoring.relearning`). What recent sessions and usual older ones still
  break is a family that is accepted. Families keep their names and verdicts.
- *What has become more frequent* (`detector.scoring.rising`): it ranks among what stands out.
- *Verdicts on sessions*: weights of what such sessions have (`detector.scoring.verdict_weights`). A checkpoint that was
  trained with labels goes on training its classifier instead.
- *Profile and calibration*: anew, of what is learnt from, a part of which is held out for that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from detector.checkpoint import Checkpoint
from detector.errors import TrainingError
from detector.model.devices import Precision, resolve_device
from detector.model.inference import Backend, flat
from detector.model.model import DetectorModel
from detector.scoring.calibration import WARNING_SCORE, Calibration
from detector.scoring.count_profile import CountProfile
from detector.scoring.count_vectors import CountVectors
from detector.scoring.families import Families, Way, ways
from detector.scoring.judge import USUAL, Judge
from detector.scoring.learning import learn
from detector.scoring.relearning import relearnt
from detector.scoring.rising import Rising, Stretch
from detector.scoring.scorer import Scorer
from detector.scoring.verdict_weights import VerdictWeights
from detector.sessions_file import ANOMALOUS, UNLABELLED
from detector.text.vocabulary import UNK, Vocabulary
from detector.training.data import TrainingSessions
from detector.training.loop import TrainingProgress
from detector.training.options import TrainingOptions
from detector.training.set_aside import name_families, set_aside
from detector.training.train import calibrated, enough_labels, training_dtype
from detector.training.trainer import Trainer

Flags = npt.NDArray[np.bool_]

MORE_SURPRISE: Final = 0.02
"""Training goes on where an event of recent sessions is by this share more surprising than one of older ones."""


@dataclass(frozen=True)
class AdaptationOptions:
    """How long and how fast to learn.

    Attributes:
        next_token_steps: most optimiser steps of the language model where it goes on training; 0 for none at all.
        classifier_steps: likewise of the classifier.
        learning_rate: peak; a third of a training's.
        held_out: share of the sessions that nothing is learnt from, to stop and calibrate by.
    """

    next_token_steps: int = 200
    classifier_steps: int = 150
    learning_rate: float = 1e-3
    held_out: float = 0.2


_MOST_USUAL: Final = 2_000  # distinct sessions, the commonest
_DEFAULTS = AdaptationOptions()


@dataclass(frozen=True)
class Adapted:
    """What a checkpoint becomes.

    Attributes:
        model: in evaluation mode, float32, on the CPU.
        vocabulary: all of whose templates the model knows.
        profile: of the counts in usual sessions, old and recent.
        calibration: of its scores.
        judge: tolerances, families and verdicts; None where the checkpoint had none.
        verdict_weights: what verdicts on single sessions add to scores; None where there are none.
        trained: whether the model's weights are others than before.
        metrics: figures of the sessions held out, as of a training.
        score_shares: likewise; None where they were not known.
    """

    model: DetectorModel
    vocabulary: Vocabulary
    profile: CountProfile
    calibration: Calibration
    judge: Judge | None
    verdict_weights: VerdictWeights | None
    trained: bool
    metrics: dict[str, float]
    score_shares: list[float] | None

    def checkpoint(self, parent: Checkpoint) -> Checkpoint:
        """A checkpoint to score with that is not on a disk: all else of it is the parent's, its digest as well."""
        calibrated = {"model": self.model.config, "calibration": self.calibration}
        return Checkpoint(
            parent.digest,
            parent.manifest.model_copy(update=calibrated),
            self.vocabulary,
            self.model.state_dict(),
            self.profile,
            self.judge,
            parent.pace,
            self.verdict_weights,
        )


def adapt(
    parent: Checkpoint,
    recent: TrainingSessions,
    older: TrainingSessions,
    vocabulary: Vocabulary,
    *,
    traffic: TrainingSessions | None = None,
    changed: Collection[Way] | None = None,
    verdicts: TrainingSessions | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "auto",
    kernels: Backend = "auto",
    options: AdaptationOptions = _DEFAULTS,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> Adapted:
    """Learn on; the same arguments on the same machine give the same result.

    Args:
        parent: what is known, with the verdicts that were given since.
        recent: sessions to learn from, in tokens of `vocabulary`.
        older: sessions of before, those that stood out among them.
        vocabulary: that only adds to the parent's.
        traffic: all that came since the last adaptation, what is not learnt from as well, by which it is told what has
            become more frequent; None for `recent`.
        changed: what recent sessions break that may become usual; what else they break is accepted together with what
            they break beside it, as a family. None for all of it.
        verdicts: sessions that somebody judged, by their labels, each counted as often as it was; none by default.
        seed: of order, of what is masked and of what is held out.
        device: as for a training.
        precision: likewise.
        kernels: likewise.
        options: how long and how fast.
        progress: called every few steps.

    Raises:
        TrainingError: there are no usual sessions, a token is beyond the vocabulary, or training diverged.
        DeviceError: the device, precision or kernels are not available here.
    """
    vocabulary = vocabulary.all_learned()
    recent, older = recent.distinct(), older.distinct()
    for part in (recent, older):
        if any(not len(events) or int(events.max()) >= len(vocabulary) for events in part.sequences):
            raise TrainingError(f"a session has no events, or one beyond the vocabulary of {len(vocabulary)} tokens")
    usual_recent, usual_older = _usual(parent, recent, older, vocabulary)
    judge = None
    if parent.judge is not None:
        judge = adapted_judge(
            parent.judge,
            recent.select(usual_recent),
            (older, usual_older),
            recent if traffic is None else traffic.distinct(),
            vocabulary,
            n_known=len(parent.vocabulary),
            changed=changed,
        )
    fitting, held_out, measured = _parts(
        (recent, usual_recent | (recent.labels == ANOMALOUS)),
        (older, usual_older | (older.labels == ANOMALOUS)),
        options.held_out,
        seed,
    )
    classifier = parent.manifest.training.mode == "labelled" and enough_labels(fitting, held_out)
    target = resolve_device(device)
    model = grown(parent, vocabulary).to(target)
    trainer = Trainer(
        model,
        held_out,
        kernels=kernels,
        precision=training_dtype(precision, target),
        options=TrainingOptions(
            next_token_steps=options.next_token_steps,
            classifier_steps=options.classifier_steps,
            learning_rate=options.learning_rate,
        ),
        seed=seed,
        progress=progress,
        state=None,
    )
    trainer.inference().check()
    normal = fitting.select(fitting.labels != ANOMALOUS)
    goes_on = options.next_token_steps > 0 and (
        model.config.vocabulary_size > parent.manifest.model.vocabulary_size or _surprises(trainer, *measured)
    )
    if goes_on:
        trainer.next_token(normal, steps_after=options.classifier_steps if classifier else 0)
    if classifier:
        trainer.classifier(fitting)
    known = fitting.usual()
    profile = CountProfile.fit(known.sequences, known.counts, parent.profile.bounds)
    left_out = TrainingSessions.of([]) if judge is None else older.select(~usual_older)
    doubt = parent.manifest.calibration
    rare = float(np.inf) if doubt.doubt is None else doubt.doubt_nats  # what is left of older sessions has no times
    measures = calibrated(trainer, profile, held_out, left_out, judge, classifier=classifier, rare=rare)
    if not classifier:
        known = fitting.joined(held_out).usual()
        profile = CountProfile.fit(known.sequences, known.counts, parent.profile.bounds)
    adapted = Adapted(
        model=model.cpu().eval(),
        vocabulary=vocabulary,
        profile=profile,
        calibration=measures.calibration,
        judge=judge,
        verdict_weights=None,
        trained=goes_on or classifier,
        metrics=measures.metrics,
        score_shares=measures.score_shares,
    )
    if verdicts is None or parent.manifest.training.mode == "labelled":
        return adapted
    usual = recent.select(usual_recent).joined(older.select(usual_older))
    scorer = Scorer(adapted.checkpoint(parent), device=device, precision=precision, kernels=kernels)
    return replace(adapted, verdict_weights=learn_verdicts(scorer, verdicts, usual))


def unchanged(
    parent: Checkpoint, older: TrainingSessions, traffic: TrainingSessions, vocabulary: Vocabulary
) -> Adapted:
    """What scores as the parent does, and has seen the traffic; arguments as for `adapt`."""
    judge = parent.judge
    if judge is not None:
        rising = risen(judge, older.distinct(), traffic.distinct())
        judge = Judge(judge.tolerances, judge.families, rising)
    record = parent.manifest.training
    return Adapted(
        model=grown(parent, parent.vocabulary),
        vocabulary=vocabulary,
        profile=parent.profile,
        calibration=parent.manifest.calibration,
        judge=judge,
        verdict_weights=parent.verdict_weights,
        trained=False,
        metrics=record.metrics,
        score_shares=record.score_shares,
    )


def learn_verdicts(scorer: Scorer, sessions: TrainingSessions, usual: TrainingSessions) -> VerdictWeights | None:
    """What verdicts on single sessions add to scores; None where there are none.

    Args:
        scorer: of a checkpoint without such weights.
        sessions: those with a label were judged, each as often as it counts.
        usual: sessions to learn from, whose scores are to stay where they are no alarms.
    """
    judged = sessions.select(sessions.labels != UNLABELLED)
    if not len(judged):
        return None
    usual = usual.select(usual.labels == UNLABELLED)
    usual = usual.select(np.sort(np.argsort(-usual.counts, kind="stable")[:_MOST_USUAL]))
    scores, usual_scores = (_finals(scorer, each) for each in (judged, usual))
    quiet = usual_scores < WARNING_SCORE
    usual = usual.select(quiet)
    return VerdictWeights.fit(
        judged.sequences,
        judged.labels == ANOMALOUS,
        judged.counts.astype(np.float64),
        scores,
        (usual.sequences, usual.counts.astype(np.float64), usual_scores[quiet]),
    )


def _finals(scorer: Scorer, sessions: TrainingSessions) -> npt.NDArray[np.float64]:
    if not len(sessions):
        return np.zeros(0)
    return scorer.score_columns(sessions.columns, len(sessions)).finals.astype(np.float64)


def grown(parent: Checkpoint, vocabulary: Vocabulary) -> DetectorModel:
    """The model of a checkpoint with tokens for all templates of a vocabulary that only adds to the checkpoint's.

    A new token is what its lines were to the model, and as likely to come next: an unknown one, with its text.
    """
    config = replace(parent.manifest.model, vocabulary_size=vocabulary.learned)
    model = DetectorModel(config, torch.from_numpy(vocabulary.template_features()))
    added = config.vocabulary_size - parent.manifest.model.vocabulary_size
    weights = {name: tensor for name, tensor in parent.weights.items() if name != "template_features"}
    for name in ("token_embedding.weight", "next_token_head.weight"):
        weights[name] = torch.cat((weights[name], weights[name][UNK].expand(added, -1)))
    model.load_state_dict(weights, strict=False)
    return model


def _usual(
    parent: Checkpoint, recent: TrainingSessions, older: TrainingSessions, vocabulary: Vocabulary
) -> tuple[Flags, Flags]:
    """Which sessions are taken for normal: recent ones, and older ones that did not stand out.

    Without tolerances nobody has looked through the recent ones: those without a label that stand out are not.
    """
    usual_recent, usual_older = recent.labels != ANOMALOUS, older.labels != ANOMALOUS
    if parent.judge is not None:
        standings, _ = parent.judge.standings(CountVectors.of_sequences(older.sequences))
        usual_older &= standings == USUAL
    elif (unknown := recent.labels < 0).any():
        found = set_aside(vocabulary, older.select(usual_older), recent.select(unknown))
        judge = found.judge
        standings, _ = judge.standings(CountVectors.of_sequences(recent.sequences))
        usual_recent &= ~unknown | (standings == USUAL)
    if not usual_recent.any() and not usual_older.any():
        raise TrainingError("no session to learn from is usual")
    return usual_recent, usual_older


def adapted_judge(
    parent: Judge,
    recent: TrainingSessions,
    older: tuple[TrainingSessions, Flags],
    traffic: TrainingSessions,
    vocabulary: Vocabulary,
    *,
    n_known: int,
    changed: Collection[Way] | None = None,
) -> Judge:
    """What a session is held to after an adaptation: the parent's tolerances but for what has changed.

    Args:
        parent: what sessions were held to.
        recent: usual ones, no two equal.
        older: sessions of before, likewise, and which of them are usual, (n,).
        traffic: all that came since the last adaptation.
        vocabulary: of the sessions.
        n_known: how many tokens there were before.
        changed: as of `adapt`.
    """
    olds, usual_older = older
    rising = risen(parent, olds, traffic)
    aware = Judge(parent.tolerances.aware_of(range(n_known, len(vocabulary))), parent.families, rising)
    vectors = CountVectors.of_sequences(recent.sequences)
    standings, _ = aware.standings(vectors)
    if (standings == USUAL).all():
        return aware
    families = parent.families.accepting(aware.tolerances.judge(vectors).families)
    if changed is None:
        standing_out = vectors.take(np.flatnonzero(standings != USUAL))
        changed = {way for broken in aware.tolerances.broken(standing_out) for way in ways(broken)}
    whole, usual = recent.joined(olds), np.append(np.ones(len(recent), np.bool_), usual_older)
    tolerances = relearnt(aware.tolerances, learn(whole.sequences, whole.counts), changed)
    vectors = CountVectors.of_sequences(whole.sequences)
    codes = tolerances.judge(vectors).families
    rows: defaultdict[int, list[int]] = defaultdict(list)
    # What an alarm of before breaks, too, an older session does not excuse; a recent one was looked at for that.
    alarms = np.isin(codes, codes[~usual]) & (np.arange(len(whole)) >= len(recent))
    for row in np.flatnonzero((codes > 0) & usual & ~alarms).tolist():
        if families.of_code(int(codes[row])) is None:
            rows[int(codes[row])].append(row)
    sizes = {code: int(whole.counts[own].sum()) for code, own in rows.items()}
    largest_first = sorted(rows, key=lambda code: (-sizes[code], rows[code][0]))
    accepted = name_families(
        whole,
        vectors,
        [rows[code] for code in largest_first],
        [True] * len(rows),
        tolerances=tolerances,
        vocabulary=vocabulary,
        first=len(families.all) + 1,
    )
    return Judge(tolerances, Families((*families.all, *accepted)), rising)


def risen(parent: Judge, older: TrainingSessions, traffic: TrainingSessions) -> Rising:
    """What has become more frequent with the traffic since the last adaptation; no two sessions of either are equal."""
    rising = parent.rising or Rising(Stretch.of(CountVectors.of_sequences(older.sequences), older.counts))
    return rising.then(Stretch.of(CountVectors.of_sequences(traffic.sequences), traffic.counts))


def _parts(
    recent: tuple[TrainingSessions, Flags], older: tuple[TrainingSessions, Flags], share: float, seed: int
) -> tuple[TrainingSessions, TrainingSessions, tuple[TrainingSessions, TrainingSessions]]:
    """What to learn from, what is held out of it, and of that the normal recent and the normal older sessions."""
    parts = [sessions.select(chosen).split(share, seed) for sessions, chosen in (recent, older)]
    (one, held_recent), (other, held_older) = parts
    held_out = held_recent.joined(held_older)
    if not (held_out.labels != ANOMALOUS).any():
        raise TrainingError("no normal session among those held out")
    normal = tuple(part.select(part.labels != ANOMALOUS) for part in (held_recent, held_older))
    return one.joined(other), held_out, (normal[0], normal[1])


def _surprises(trainer: Trainer, recent: TrainingSessions, older: TrainingSessions) -> bool:
    """Whether recent sessions surprise the model more than older ones do."""
    if not len(recent) or not len(older):
        return bool(len(recent))
    now, before = (nats_per_event(trainer, part) for part in (recent, older))
    return now > (1 + MORE_SURPRISE) * before


def nats_per_event(trainer: Trainer, sessions: TrainingSessions) -> float:
    """Mean surprise of an event, or of an end, of sessions."""
    nats = events = 0.0
    for measured in trainer.inference().measure(*flat(sessions.sequences)):
        counts = sessions.counts[measured.indices]
        sums = np.add.reduceat(measured.surprises.astype(np.float64), measured.bounds[:-1])
        nats += float(counts @ sums)
        events += float(counts @ np.diff(measured.bounds))
    return nats / events
