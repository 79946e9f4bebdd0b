"""An adaptation as a whole: what recent traffic may teach, the learning, and whether what came of it may score.

What is learnt from recent sessions and what is replayed of before weigh so that recent ones are `LEAST_RECENT` to
`MOST_RECENT` of all. By older sessions and by recent ones that were held out the checkpoints before and after are
compared. The sample that the new checkpoint keeps is of both, at the same weights: what no longer comes is forgotten in
the course of adaptations, not in one.

Where nearly all recent sessions are alarms, as after a release, nothing can be learnt from the others. The new
checkpoint then scores as the one before and only knows what it saw: the new templates, and on which days what was
usual, so that the next adaptations need not begin anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from detector import checkpoint
from detector.checkpoint import Checkpoint, TrainingRecord
from detector.errors import TrainingError
from detector.history import Adaptation, Change
from detector.model.devices import Precision
from detector.model.inference import Backend
from detector.quality.fingerprint import Fingerprint, Pauses, Stream
from detector.quality.session_sketch import session_hash, session_sketch
from detector.scoring.calibration import WARNING_SCORE
from detector.scoring.count_vectors import CountVectors
from detector.scoring.families import Verdict, code_of, name_of, ways_of
from detector.scoring.judge import Judge
from detector.scoring.scorer import Scorer
from detector.scoring.session_pattern import SessionPatterns
from detector.sessions_file import ANOMALOUS, NORMAL, UNLABELLED
from detector.text.vocabulary import N_SPECIAL, Vocabulary
from detector.training.adaptation import AdaptationOptions, Adapted, adapt, unchanged
from detector.training.bounds import DAYS, Bounded, bounded
from detector.training.data import TrainingSessions
from detector.training.gate import Figure, compare
from detector.training.loop import TrainingProgress
from detector.training.replay import sample
from detector.training.train import History, by_sequence, fingerprint_of

LEAST_RECENT: Final = 0.2
MOST_RECENT: Final = 0.5
MOST_REMEMBERED: Final = 1_000_000
"""Sessions that the sample stands for; it would grow without end."""
LEAST_SESSIONS: Final = 50
"""Recent sessions to learn from; of fewer nobody can tell whether they are better off."""

Integers = npt.NDArray[np.int64]


class TooLittle(TrainingError):
    """There are too few recent sessions that may be learnt from, and nothing to wait for."""


@dataclass(frozen=True)
class Recent:
    """Recent traffic.

    Attributes:
        sessions: in tokens of `vocabulary`, with their keys and without labels.
        days: the day on which each began, counted from 1970-01-01, (n,).
        vocabulary: that only adds to the checkpoint's.
        held_out: whether nothing is learnt from the sessions of a key.
        verdicts: what people said of patterns of sessions (`detector.scoring.session_pattern`).
        pauses: before the events of each session (`detector.quality.fingerprint.fill_pauses`); None where not known.
    """

    sessions: TrainingSessions
    days: Integers
    vocabulary: Vocabulary
    held_out: Callable[[str], bool]
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    pauses: Sequence[Pauses] | None = None


@dataclass(frozen=True)
class Renewal:
    """What came of an adaptation.

    Attributes:
        adaptation: what it did, as the manifest has it.
        bounded: what of the recent traffic was learnt from.
        learnt: recent sessions that it learnt from; 0 where too few may be, and only what is usual by now was noted.
        figures: of before and after.
        digest: of the checkpoint that was written.
    """

    adaptation: Adaptation
    bounded: Bounded
    learnt: int
    figures: tuple[Figure, ...]
    digest: str

    @property
    def worse(self) -> list[Figure]:
        """The figures for which the new checkpoint may not score."""
        return [each for each in self.figures if not each.ok]


@dataclass(frozen=True)
class RenewalOptions:
    """How an adaptation is done.

    Attributes:
        days: on so many different ones a session's doings have to be usual before they are.
        planned: somebody vouches for what is usual in the recent traffic.
        steps: most optimiser steps; None for as many as there is to learn.
        device: as for a training.
        precision: likewise.
        kernels: likewise.
    """

    days: int = DAYS
    planned: bool = False
    steps: int | None = None
    device: str = "auto"
    precision: Precision = "auto"
    kernels: Backend = "auto"


_DEFAULTS = RenewalOptions()


def renew(
    parent: Checkpoint,
    recent: Recent,
    older: TrainingSessions,
    output: Path,
    *,
    options: RenewalOptions = _DEFAULTS,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> Renewal:
    """Write a checkpoint that has learnt from recent traffic, and compare it with the one before.

    Args:
        parent: the one before; verdicts that came since are part of its judge.
        recent: what came since.
        older: sessions of before, in tokens of the parent's vocabulary.
        output: where the new checkpoint is written, whether it may score or not.
        options: how.
        progress: called every few steps.

    Raises:
        TooLittle: to learn from.
        TrainingError: training diverged.
        DeviceError: as for a training.
        CheckpointError: the new one cannot be written.
    """
    history = parent.manifest.history
    seed = len(history)
    watched = history[-1].watched if history else {}
    parent, sessions, older = _told(parent, recent, older)
    before = _scorer(replace(parent, vocabulary=recent.vocabulary), options)
    if parent.judge is None:
        found = _by_score(sessions, before, planned=options.planned)
    else:
        found = bounded(
            sessions,
            recent.days,
            _aware(parent.judge, recent.vocabulary),
            recent.vocabulary,
            watched=watched,
            needed_days=options.days,
            planned=options.planned,
        )
    learnt, tried = _parted(found.sessions, recent)
    n, may = (int(each.counts.sum()) for each in (recent.sessions, learnt))
    enough = may >= LEAST_SESSIONS
    if not enough and not found.watched:
        raise TooLittle(f"of {n:,} recent sessions {may:,} may be learnt from; at least {LEAST_SESSIONS} are needed")
    if enough:
        adapted = adapt(
            parent,
            *_weighed(learnt, older),
            recent.vocabulary,
            traffic=recent.sessions,
            changed={way for each in found.usual for way in ways_of(each.name)},
            verdicts=_verdicts(sessions, older, by_pattern=bool(recent.verdicts)),
            seed=seed,
            device=options.device,
            precision=options.precision,
            kernels=options.kernels,
            options=AdaptationOptions() if options.steps is None else _steps(options.steps),
            progress=progress,
        )
    else:
        adapted = unchanged(parent, older, recent.sessions, recent.vocabulary)
    judge = None if adapted.judge is None else _aware(adapted.judge, adapted.vocabulary)
    after = _scorer(replace(adapted.checkpoint(parent), judge=judge), options)
    still = older.select(~_usual_now(parent, older, found))
    figures = compare(before, after, still, tried.select(tried.labels != ANOMALOUS), found.held_back)
    adaptation = Adaptation(
        at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        parent=parent.digest,
        sessions=int(recent.sessions.counts.sum()),
        replayed=int(older.counts.sum()),
        templates=recent.vocabulary.templates[len(parent.vocabulary.templates) :],
        usual=found.usual,
        held_back=found.stays,
        watched=found.watched,
        figures={f"{each.name}.{when}": getattr(each, when) for each in figures for when in ("before", "after")},
    )
    judged_too = found.sessions.joined(found.held_back.select(found.held_back.labels != UNLABELLED))
    kept = sample(_joined(*_weighed(judged_too, older)), seed) if enough else sample(older, seed)
    digest = checkpoint.save(
        output,
        model=adapted.model,
        vocabulary=adapted.vocabulary,
        profile=adapted.profile,
        calibration=adapted.calibration,
        training=_record(parent.manifest.training, adapted, kept, found.sessions),
        reading=parent.manifest.reading,
        judge=judge,
        pace=parent.pace,
        # Of too few sessions there is none, and what drift was told by goes on to be.
        fingerprint=(_fingerprint(recent, after) if enough else None) or parent.manifest.fingerprint,
        verdict_weights=adapted.verdict_weights,
        replay=kept,
        history=(*history, adaptation),
    )
    return Renewal(adaptation, found, may * enough, tuple(figures), digest)


def _usual_now(parent: Checkpoint, older: TrainingSessions, found: Bounded) -> npt.NDArray[np.bool_]:
    """Older sessions that were set aside and do what becomes usual, (n,)."""
    if parent.judge is None:
        return np.zeros(len(older), np.bool_)
    usual = {each.name for each in found.usual}
    codes = [code_of(each.ways) for each in parent.judge.families.all if name_of(each.ways) in usual]
    judged = parent.judge.tolerances.judge(CountVectors.of_sequences(older.sequences))
    return np.isin(judged.families, np.array(codes, np.uint64))


def _fingerprint(recent: Recent, after: Scorer) -> Fingerprint | None:
    """Of all that came recently, as what drift is told by next; parsed sessions have no order that is known."""
    sessions = recent.sessions
    assert sessions.keys is not None, "recent traffic has keys"
    if int(sessions.counts.max(initial=1)) > 1:
        return None
    held_out = np.array([recent.held_out(key) for key in sessions.keys], np.bool_)
    apart = sessions.select(held_out).distinct()
    finals = after.score_columns(apart.columns, len(apart)).finals if len(apart) else np.empty(0)
    return fingerprint_of(History(Stream.of(sessions.sequences, recent.pauses), held_out), by_sequence(apart, finals))


def _told(
    parent: Checkpoint, recent: Recent, older: TrainingSessions
) -> tuple[Checkpoint, TrainingSessions, TrainingSessions]:
    """The checkpoint with the verdicts on its families, and the sessions of no family with theirs as labels."""
    if not recent.verdicts:
        return parent, recent.sessions, older
    judge = None if parent.judge is None else _aware(parent.judge, recent.vocabulary)
    patterns = SessionPatterns(recent.vocabulary, judge)
    on, parts, said = datetime.now(UTC).date().isoformat(), [], dict[str, Verdict]()
    for sessions in (recent.sessions, older):
        labels = sessions.labels.copy()
        for row, events in enumerate(sessions.sequences):
            pattern = patterns.of(events)
            verdict = None if pattern is None else recent.verdicts.get(pattern)
            if verdict is None:
                continue
            if judge is not None and (ways := judge.ways(events)):
                said[name_of(ways)] = verdict
            else:
                labels[row] = NORMAL if verdict == "normal" else ANOMALOUS
        parts.append(replace(sessions, labels=labels))
    if judge is not None and parent.judge is not None:
        families = parent.judge.families
        for name, verdict in said.items():
            families = families.judged(name, verdict, on)
        parent = replace(parent, judge=Judge(parent.judge.tolerances, families, parent.judge.rising))
    return parent, parts[0], parts[1]


def _scorer(of: Checkpoint, options: RenewalOptions) -> Scorer:
    return Scorer(of, device=options.device, precision=options.precision, kernels=options.kernels, cache_size=0)


def _steps(steps: int) -> AdaptationOptions:
    return AdaptationOptions(next_token_steps=steps, classifier_steps=steps)


def _aware(judge: Judge, vocabulary: Vocabulary) -> Judge:
    """To which each template that was added since the training is rare by itself where it was not learnt from."""
    if not vocabulary.generations:
        return judge
    added = range(N_SPECIAL + vocabulary.generations[0], len(vocabulary))
    return Judge(judge.tolerances.aware_of(added), judge.families, judge.rising)


def _by_score(recent: TrainingSessions, before: Scorer, *, planned: bool) -> Bounded:
    """Without tolerances: what is an alarm is not learnt from, whatever it does, unless somebody vouches for it."""
    finals = before.score_columns(recent.columns, len(recent)).finals
    admitted = (finals < WARNING_SCORE) | planned | (recent.labels != UNLABELLED)
    held = int(recent.counts[~admitted].sum())
    words = f"Scores of {WARNING_SCORE} and more: without tolerances nothing tells them apart."
    stays = (Change("alarms", words, held),) if held else ()
    return Bounded(recent.select(admitted), recent.select(~admitted), 0, (), stays, {})


def _verdicts(recent: TrainingSessions, older: TrainingSessions, *, by_pattern: bool) -> TrainingSessions:
    """Sessions that were judged, now or before; of one verdict on a pattern, equal ones count once."""
    both = replace(recent, keys=None).joined(replace(older, keys=None))
    judged = both.select(both.labels != UNLABELLED)
    if not by_pattern:
        return judged
    distinct = judged.distinct()
    return replace(distinct, counts=np.ones_like(distinct.counts))


def _parted(sessions: TrainingSessions, recent: Recent) -> tuple[TrainingSessions, TrainingSessions]:
    """Those to learn from, and those held out, by their keys."""
    assert sessions.keys is not None, "recent traffic has keys"
    mask = np.array([recent.held_out(key) for key in sessions.keys], np.bool_)
    return sessions.select(~mask), sessions.select(mask)


def _weighed(recent: TrainingSessions, older: TrainingSessions) -> tuple[TrainingSessions, TrainingSessions]:
    """Both, one of them with greater counts, so that recent sessions have a share within the bounds."""
    n, m = int(recent.counts.sum()), int(older.counts.sum())
    if not n or not m:
        return recent, older
    more_recent = LEAST_RECENT / (1 - LEAST_RECENT) * m / n
    more_older = (1 - MOST_RECENT) / MOST_RECENT * n / m
    return (
        replace(recent, counts=recent.counts * max(round(more_recent), 1)),
        replace(older, counts=older.counts * max(round(more_older), 1)),
    )


def _joined(recent: TrainingSessions, older: TrainingSessions) -> TrainingSessions:
    """Both, at most `MOST_REMEMBERED` sessions: of more each is one of several, by chance for those that come once."""
    both = replace(older, keys=None).joined(replace(recent, keys=None)).distinct()
    share = MOST_REMEMBERED / max(int(both.counts.sum()), 1)
    if share >= 1:
        return both
    rng = np.random.default_rng(int(both.counts.sum()))
    counts = np.floor(both.counts * share + rng.random(len(both))).astype(np.int64)
    return replace(both.select(counts > 0), counts=counts[counts > 0])


def _record(
    before: TrainingRecord, adapted: Adapted, kept: TrainingSessions, recent: TrainingSessions
) -> TrainingRecord:
    """Where the new checkpoint comes from: what the old one came from, and recent sessions."""
    keys = recent.keys or ()
    hashes = [session_hash(key, row.tobytes()) for key, row in zip(keys, recent.sequences, strict=True)]
    return replace(
        before,
        fingerprint=kept.fingerprint(),
        sessions=int(kept.counts.sum()),
        anomalous=int(kept.counts[kept.labels == ANOMALOUS].sum()),
        events=int(kept.counts @ kept.lengths),
        metrics=adapted.metrics,
        score_shares=adapted.score_shares,
        sketch=None if before.sketch is None else session_sketch([*before.sketch, *hashes]),
    )
