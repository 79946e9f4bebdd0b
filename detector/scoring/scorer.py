"""The scorer: event sequences in, calibrated scores out, the same bits whatever the batch or the cache."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from detector.checkpoint import Checkpoint, load
from detector.errors import DeviceError
from detector.model.devices import BATCH_TOKENS, Precision, compute_dtype, pass_tokens, resolve_device
from detector.model.explanation import Explanation, expectations
from detector.model.inference import Backend, GpuUsage, Inference, Measured, Tokens
from detector.scoring import judge
from detector.scoring import scored_sequences_loop as loop
from detector.scoring.count_profile import Judged
from detector.scoring.count_vectors import CountVectors
from detector.scoring.growing_sessions import GrowingSessions
from detector.scoring.pace import Timed
from detector.scoring.paced import Paced, paced
from detector.scoring.reasons import Reason
from detector.scoring.score_cache import Distinct, ScoreCache
from detector.scoring.scored_sequences_loop import Remembered
from detector.scoring.scores import LONG, Growth, Scores, Sequences
from detector.scoring.session_pattern import SessionPatterns

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Singles = npt.NDArray[np.float32]


class Scorer:
    """Scores event sequences with one checkpoint; not to be shared between threads.

    Args:
        checkpoint: what to score with.
        device: ``auto`` (CUDA when there), ``cpu``, ``cuda`` or ``cuda:N``.
        precision: of weights and activations; ``auto`` is float32.
        kernels: ``auto``, ``triton`` or ``reference``.
        batch_tokens: most tokens in one forward pass, BOS and EOS included; a longer session goes alone. On the
            CPU a pass never has more than `detector.model.devices.CPU_BATCH_TOKENS`.
        cache_size: most distinct sequences that are remembered (`detector.scoring.score_cache`).
        growing: most sessions that are scored as they grow (`detector.scoring.growing_sessions`).

    Attributes:
        checkpoint: digest of the checkpoint's manifest, ``sha256:<hex>``.
        vocabulary: its templates.
        reading: how the sessions that it was trained on came about; None where that is not known.
        trained_score_shares: how the scores of its validation sessions are spread (`TrainingRecord.score_shares`).
        fingerprint: how its training's sessions were spread (`Manifest.fingerprint`).
        trained_sketch: which sessions those of its training were (`TrainingRecord.sketch`).
        expected_warnings: share of later normal sessions that its training expects (`TrainingRecord`).
        cache_hits: sequences answered without the model so far, repeated ones within a call among them.
        cache_misses: sequences the model was run on so far.
        events_scored: events in those.

    Raises:
        DeviceError: the device, precision or kernels are not available here, or its memory does not hold the model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        kernels: Backend = "auto",
        batch_tokens: int = BATCH_TOKENS,
        cache_size: int = 100_000,
        growing: int = 1_024,
    ) -> None:
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}; it must be at least 1")
        if cache_size < 0:
            raise ValueError(f"cache_size is {cache_size}; it must be at least 0")
        if growing < 0:
            raise ValueError(f"growing is {growing}; it must be at least 0")
        self.checkpoint = checkpoint.digest
        self.vocabulary = checkpoint.vocabulary
        self.reading = checkpoint.manifest.reading
        self.trained_score_shares = checkpoint.manifest.training.score_shares
        self.fingerprint = checkpoint.manifest.fingerprint
        self.trained_sketch = checkpoint.manifest.training.sketch
        self.expected_warnings = checkpoint.manifest.training.expected_warnings
        self.cache_hits = 0
        self.cache_misses = 0
        self.events_scored = 0
        self._calibration = checkpoint.manifest.calibration
        self._profile = checkpoint.profile
        self._judge = checkpoint.judge
        self._verdict_weights = checkpoint.verdict_weights
        self._patterns = SessionPatterns(checkpoint.vocabulary, checkpoint.judge)
        self._pace = checkpoint.pace
        self._cache = ScoreCache(cache_size)
        target = resolve_device(device)
        dtype = compute_dtype(precision, target)
        self._kernels = kernels
        try:
            self._model = checkpoint.build_model().to(target)
            self._inference = Inference(
                self._model, batch_tokens=pass_tokens(target, batch_tokens), backend=kernels, dtype=dtype
            )
            self._inference.check()
            self._growing = GrowingSessions(
                self._inference,
                growing,
                profile=self._profile,
                judge=self._judge,
                early=self._early,
                verdict_weights=self._verdict_weights,
                vocabulary=len(self.vocabulary),
            )
        except torch.OutOfMemoryError as error:
            raise DeviceError(f"the memory of {target} does not hold the model") from error

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        kernels: Backend = "auto",
        batch_tokens: int = BATCH_TOKENS,
        cache_size: int = 100_000,
        growing: int = 1_024,
    ) -> "Scorer":
        """Load a checkpoint directory; arguments as for the class.

        Raises:
            CheckpointError: the checkpoint is missing, damaged or of another kind.
            DeviceError: the device, precision or kernels are not available here.
        """
        return cls(
            load(path),
            device=device,
            precision=precision,
            kernels=kernels,
            batch_tokens=batch_tokens,
            cache_size=cache_size,
            growing=growing,
        )

    @property
    def batches_split(self) -> int:
        """Batches so far that did not fit the device's memory and were run in parts."""
        return self._inference.batches_split

    def gpu_usage(self) -> GpuUsage | None:
        """How the GPU is used that it scores on; None on a CPU. Not from another thread while it scores."""
        return self._inference.gpu_usage()

    def score(
        self,
        sequences: Sequence[bytes],
        unfinished: Sequence[bytes] = (),
        after_pass: Callable[[], None] = lambda: None,
    ) -> Scores:
        """Score sessions, and events so far of some that go on, as `score_columns` does.

        Args:
            sequences: each the int64 tokens of a session's events in native byte order, ``array("q").tobytes()``.
            unfinished: likewise; no final score is worked out for them.
            after_pass: called after each forward pass.

        Raises:
            ValueError: a sequence is not a whole number of tokens, or a token is beyond the vocabulary.
            DeviceError: the device's memory does not even hold one of the sessions.
        """
        return self.score_columns(Sequences.of([*sequences, *unfinished]), len(sequences), after_pass)

    def score_columns(
        self,
        sequences: Sequences,
        complete: int,
        after_pass: Callable[[], None] = lambda: None,
        numbers: Integers | None = None,
    ) -> Scores:
        """Score sessions, and events so far of some that go on, in the order given.

        Args:
            sequences: of the sessions.
            complete: how many, from the first on, are complete; no final score is worked out for the others.
            after_pass: called after each forward pass. What it raises ends the call; what was scored by then is
                remembered.
            numbers: of the sessions, as of `Growth`, 0 for one without. Of those that were scored before, by `go_on` or
                here with so many events that there is a state to go on from, only what is new is looked at, as far as
                there is room. None where none has one.

        Raises:
            ValueError: a token is beyond the vocabulary.
            DeviceError: the device's memory does not even hold one of the sessions.
        """
        sequences = self._checked(sequences)
        asked = self._cache.distinct(sequences)
        known, n = asked.known, len(asked.sequences.ends)
        is_complete = np.zeros(n, np.bool_)
        is_complete[asked.of[:complete]] = True
        found = self._cache.recall(known)
        # Of a sequence that went on from a state, what is remembered says nothing of its end.
        endless = found & is_complete & np.isnan(known.finals) & np.isnan(known.logits)
        found &= ~endless
        if numbers is not None:
            self._recall_grown(asked, numbers, complete, found, endless, after_pass)
        lacking = np.flatnonzero(found & is_complete & np.isnan(known.finals))
        if len(lacking):
            self._complete(asked, lacking)
        if not found.all():
            self._run(asked, np.flatnonzero(~found), is_complete, endless, after_pass)
        self.cache_hits += len(asked.of) - n + int(found.sum())
        if n == len(asked.of):
            return Scores(known.ends, known.surprises, known.scores, known.finals)
        surprises, scores = np.empty((2, len(sequences.tokens)), np.float32)
        loop.gather(known.ends, known.surprises, known.scores, asked.of, surprises, scores)
        return Scores(sequences.ends, surprises, scores, known.finals[asked.of])

    def known_events(self, numbers: Integers) -> Integers:
        """How many events of sessions, by their numbers, `go_on` need not be given again; 0 where it needs all."""
        return self._growing.events(numbers)

    def go_on(self, growth: Growth, after_pass: Callable[[], None] = lambda: None) -> Singles:
        """Scores of the events of sessions that go on, (events,): those that `score_columns` gives, to the bit.

        The next call, or `score_columns`, then needs only what comes after them, as far as there is room for so many
        sessions.

        Args:
            growth: the sessions, each from an event on that is at most `known_events`.
            after_pass: as of `score_columns`.

        Raises:
            ValueError: a token is beyond the vocabulary, or events are missing.
            DeviceError: as of `score_columns`.
        """
        if (growth.begins > self.known_events(growth.numbers)).any():
            raise ValueError("events before those given are not known")
        growth = growth._replace(sequences=self._checked(growth.sequences))
        taken, scores = self._growing.take_in(growth.numbers), np.empty(len(growth.sequences.tokens), np.float32)
        of_events = np.repeat(taken, np.diff(growth.sequences.bounds))
        rows = np.flatnonzero(taken)
        if len(rows):
            self._count(growth.numbers[rows], growth.begins[rows], growth.sequences.select(rows))
            goes_on = np.zeros(len(rows), np.bool_)
            scores[of_events] = self._growing.score(growth.select(rows), goes_on, after_pass).scores
        if len(rows) < len(taken):
            rest = growth.sequences.select(np.flatnonzero(~taken))
            scores[~of_events] = self.score_columns(rest, 0, after_pass).scores
        return scores

    def explain(self, sequence: bytes, k: int = 3) -> Explanation:
        """Score one session and tell what the model expected instead of each event.

        Surprises and scores of the events are those of `score`, to the bit. The end's surprise and the probabilities
        come from logits that `score` never forms on a GPU: there they may differ from it in the last digits.

        Args:
            sequence: the session's events, as for `score`.
            k: how many of the likeliest tokens to give instead of each event.

        Raises:
            ValueError: as for `score`, or k is below 1.
            DeviceError: the device's memory does not hold the session.
        """
        [scores] = self.score([sequence])
        events = np.frombuffer(sequence, dtype=np.int64)
        tokens = self.vocabulary.as_learned(events)
        counts = self._profile.unusual_counts(tokens)
        found = expectations(self._model, tokens, k, self._kernels)
        return Explanation(
            surprises=np.append(scores.surprises, found.surprises[-1]),
            scores=scores.scores,
            final=scores.final,
            expected=found.expected,
            probabilities=found.probabilities,
            unusual_counts=counts if events is tokens else _of_events(counts, events, tokens),
        )

    def reason(self, sequence: bytes) -> Reason | None:
        """Why a complete session stands out, in words; None where nothing is broken that sessions are held to.

        Args:
            sequence: the session's events, as for `score`.
        """
        if self._judge is None:
            return None
        tokens = self.vocabulary.as_learned(np.frombuffer(sequence, dtype=np.int64))
        return self._judge.reason(tokens, self.vocabulary)

    def pattern(self, sequence: bytes) -> str | None:
        """What a complete session has in common with those that a verdict on it is also about; None for nothing.

        Args:
            sequence: the session's events, as for `score`.
        """
        return self._patterns.of(np.frombuffer(sequence, dtype=np.int64))

    def pattern_so_far(self, sequence: bytes) -> str:
        """What is certain of the pattern of a session that goes on (`detector.scoring.session_pattern.may_become`)."""
        return self._patterns.so_far(np.frombuffer(sequence, dtype=np.int64))

    def paced(self, sessions: Timed) -> Mapping[int, Paced]:
        """Which of complete sessions stand out by pauses or bursts, by number; no final score of theirs is lower."""
        if self._pace is None:
            return {}
        sessions = sessions._replace(sequences=self._checked(sessions.sequences))
        return paced(self._pace.unusual(sessions), self._judge, self.vocabulary)

    def _checked(self, sequences: Sequences) -> Sequences:
        """With tokens as the model knows them."""
        size, tokens = len(self.vocabulary), sequences.tokens
        if len(tokens) and int(tokens.max()) >= size:
            raise ValueError(f"a token is beyond the vocabulary of {size} tokens")
        if self.vocabulary.learned < size:
            return sequences._replace(tokens=self.vocabulary.as_learned(tokens))
        return sequences

    def _recall_grown(
        self,
        asked: Distinct,
        numbers: Integers,
        complete: int,
        found: Flags,
        endless: Flags,
        after_pass: Callable[[], None],
    ) -> None:
        """Fill in the scores of those sequences that grow or have grown, and let those go that are complete.

        Args:
            asked: the distinct sequences.
            numbers: of the sessions.
            complete: how many of the sessions are.
            found: of which distinct sequences the scores are known; filled in.
            endless: of which the scores are remembered, but the end has to be looked at.
            after_pass: as of `score_columns`.
        """
        least = self._growing.least
        if least is None:
            return
        lengths = np.diff(asked.sequences.bounds)
        rows = np.flatnonzero((lengths[asked.of] >= least) & (numbers > 0))
        ends = np.zeros(len(lengths), np.bool_)
        ends[asked.of[:complete]] = True
        is_known = self.known_events(numbers[rows]) > 0
        # One of each sequence, whose end is looked at if any ends there: if it may be, one of which something is known.
        order = np.flatnonzero((rows < complete) | ~ends[asked.of[rows]])
        order = order[np.argsort(~is_known[order], kind="stable")]
        of, first = np.unique(asked.of[rows[order]], return_index=True)
        some = order[first[~found[of]]]
        wanted, is_known = rows[some], is_known[some]
        short = np.flatnonzero((lengths[asked.of[wanted]] <= LONG) & (is_known | (wanted >= complete)))
        is_known[short] = self._growing.take_in(numbers[wanted[short]], short=True)
        wanted = wanted[is_known]
        if len(wanted):
            of, known = asked.of[wanted], asked.known
            growth = Growth(numbers[wanted], np.zeros_like(wanted), asked.sequences.select(of))
            self._count(growth.numbers, growth.begins, growth.sequences)
            grown = self._growing.score(growth, wanted < complete, after_pass)
            starts = asked.sequences.bounds[:-1]
            for number, (begin, end) in zip(of.tolist(), pairwise(grown.bounds.tolist()), strict=True):
                place = slice(starts[number], starts[number] + end - begin)
                known.surprises[place], known.scores[place] = grown.surprises[begin:end], grown.scores[begin:end]
            known.highest[of], known.logits[of], known.finals[of] = grown.highest, grown.logits, np.nan
            found[of] = True
            # Short sessions often have what others had; long ones hardly ever do.
            self._cache.remember(known, of[(lengths[of] <= LONG) & ~endless[of]])
        self._growing.forget(numbers[rows[rows < complete]])

    def _count(self, numbers: Integers, begins: Integers, sequences: Sequences) -> None:
        """Count what the model is run on."""
        new = begins + np.diff(sequences.bounds) - self.known_events(numbers)
        self.cache_misses += int(np.count_nonzero(new > 0))
        self.events_scored += int(np.maximum(new, 0).sum())

    def _run(
        self, asked: Distinct, absent: Integers, complete: Flags, endless: Flags, after_pass: Callable[[], None]
    ) -> None:
        """Fill in the scores of these of distinct sequences, through the model, and remember those of each pass."""
        sequences = asked.sequences
        if len(absent) < len(sequences.ends):
            sequences = sequences.select(absent)
        for measured in self._inference.measure(*sequences):
            events, numbers = sequences.select(measured.indices).tokens, absent[measured.indices]
            self._calibrate(measured, events, numbers, complete[numbers], asked.known)
            self._cache.remember(asked.known, numbers[~endless[numbers]])
            self._cache.complete(asked.known, numbers[endless[numbers]])
            self.cache_misses += len(numbers)
            self.events_scored += len(events)
            after_pass()

    def _complete(self, asked: Distinct, numbers: Integers) -> None:
        """Fill in the final scores of these of distinct sequences, whose other scores are known."""
        complete = asked.sequences.select(numbers)
        events, bounds = complete.tokens, complete.bounds
        self._fill_finals(asked.known, numbers, events, bounds, self._profile.judge(events, bounds))
        self._cache.complete(asked.known, numbers)

    def _calibrate(
        self,
        measured: Measured,
        events: Tokens,
        numbers: Integers,
        complete: Flags,
        known: Remembered,
    ) -> None:
        """Fill in the scores of the sessions of a pass.

        Args:
            measured: what the model says of them.
            events: their tokens end to end.
            numbers: which of the distinct sequences each is.
            complete: which of them get a final score.
            known: the distinct sequences.
        """
        starts = measured.bounds - np.arange(len(measured.bounds))
        highest, logits = np.empty((2, len(events)))
        at_end, unused = np.empty((2, len(numbers)))
        loop.running_maxima(measured.surprises, measured.bounds, highest, at_end)
        loop.running_maxima(measured.logits, measured.bounds, logits, unused)
        judged = self._profile.judge(events, starts, complete)
        suspect = None if self._judge is None else self._judge.running(events, starts)
        early = self._early(highest, logits, judged.running, suspect)
        if self._verdict_weights is not None:
            early = self._verdict_weights.lowered(early, events, starts)
        loop.take_pass(measured.surprises, early, measured.bounds, numbers, known)
        known.highest[numbers], known.logits[numbers] = at_end, measured.logits[measured.bounds[1:] - 1]
        known.finals[numbers] = np.nan
        rows = np.flatnonzero(complete)
        if len(rows) < len(numbers):
            of_events = np.repeat(complete, np.diff(starts))
            events, starts = events[of_events], np.append(0, np.cumsum(np.diff(starts)[rows]))
            judged = Judged(judged.final[rows], judged.running, judged.seen[rows])
        if len(rows):
            self._fill_finals(known, numbers[rows], events, starts, judged)

    def _fill_finals(
        self, known: Remembered, numbers: Integers, events: Tokens, bounds: Integers, judged: Judged
    ) -> None:
        """Fill in the final scores of these of distinct sequences.

        Args:
            known: the distinct sequences.
            numbers: which of them are complete.
            events: their tokens end to end.
            bounds: where each of them begins and, last, how many events there are.
            judged: the count profile's judgement of each.
        """
        finals = self._finals(known, numbers, events, bounds, judged)
        if self._verdict_weights is not None:
            finals = self._verdict_weights.shifted(finals, events, bounds)
        known.finals[numbers] = finals

    def _finals(self, known: Remembered, numbers: Integers, events: Tokens, bounds: Integers, judged: Judged) -> Floats:
        """Final scores of these of distinct sequences, without what verdicts on sessions add; arguments likewise."""
        highest, logits = known.highest[numbers], known.logits[numbers]
        if self._judge is None:
            return self._calibration.final_scores(highest, logits, judged.final, judged.seen)
        vectors = CountVectors.of(events, bounds)
        standings, broken = self._judge.standings(vectors)
        rising = None if self._judge.rising is None else self._judge.rising.of_sessions(vectors)
        levels = self._calibration.levels(highest, judged.final, np.zeros_like(judged.seen))
        so_far, has_events = np.zeros(len(numbers)), np.diff(bounds) > 0
        so_far[has_events] = known.scores[known.ends[numbers[has_events]] - 1]
        finals: Floats = np.maximum(judge.scores(levels, standings, broken, rising), so_far)
        return finals

    def _early(self, highest: Floats, logits: Floats, unusual: Floats, suspect: Flags | None) -> Floats:
        """Scores after each event of sessions that go on, from the running maxima of their statistics; (events,)."""
        if suspect is None:
            return self._calibration.early_scores(highest, logits, unusual)
        return judge.early_scores(self._calibration.early_levels(highest, np.zeros_like(unusual)), suspect)


def _of_events(counts: Mapping[int, float], events: Tokens, tokens: Tokens) -> dict[int, float]:
    """Counts by tokens as a model knows them, by the tokens that the events have."""
    own: dict[int, list[int]] = {}
    for event, token in dict.fromkeys(zip(events.tolist(), tokens.tolist(), strict=True)):
        own.setdefault(token, []).append(event)
    return {event: nats for token, nats in counts.items() for event in own.get(token, [token])}
