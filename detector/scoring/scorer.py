"""The scorer: event sequences in, calibrated scores out, the same bits whatever the batch or the cache."""

from collections import OrderedDict
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from detector.checkpoint import Checkpoint, load
from detector.errors import DeviceError
from detector.model.explanation import Explanation, expectations
from detector.model.inference import Backend, GpuUsage, Inference, Measured, Tokens
from detector.scoring import judge
from detector.scoring.count_profile import Judged
from detector.scoring.reasons import Reason

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Precision = Literal["auto", "float32", "bfloat16"]

# Longer sequences hardly ever come twice, and a cache full of them would take gigabytes: an entry needs about
# 16 bytes an event and 450 more, 160 on top of it for one that is not complete.
MAX_CACHED_EVENTS = 256

BATCH_TOKENS = 65536
# On a CPU larger passes only leave its caches: 65,536 tokens at once took 1.5 GB and three times as long a token.
CPU_BATCH_TOKENS = 4096


class EventScores(NamedTuple):
    """Scores of one session; the arrays are read-only and shared between equal sessions.

    Attributes:
        surprises: nats of each event given those before it, float32 (n,).
        scores: calibrated score in [0, 1] of events 0 to i, the session going on, float32 (n,).
        final: calibrated score of the session complete with its n events; NaN where it was never asked for.
    """

    surprises: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    final: float


class _AtEnd(NamedTuple):
    """What the final score of a session needs besides its events."""

    highest: float  # surprise over the events and the end
    logit: float  # of the class, at the end


class Scorer:
    """Scores event sequences with one checkpoint; not to be shared between threads.

    Args:
        checkpoint: what to score with.
        device: ``auto`` (CUDA when there), ``cpu``, ``cuda`` or ``cuda:N``.
        precision: of weights and activations; ``auto`` is float32.
        kernels: ``auto``, ``triton`` or ``reference``.
        batch_tokens: most tokens in one forward pass, BOS and EOS included; a longer session goes alone. On the
            CPU a pass never has more than `CPU_BATCH_TOKENS`.
        cache_size: how many distinct sequences are remembered, the least recently asked for going first;
            sequences of more than `MAX_CACHED_EVENTS` events never are.

    Attributes:
        checkpoint: digest of the checkpoint's manifest, ``sha256:<hex>``.
        vocabulary: its templates.
        reading: how the sessions that it was trained on came about; None where that is not known.
        trained_score_shares: how the scores of its validation sessions are spread (`TrainingRecord.score_shares`).
        trained_sketch: which sessions those of its training were (`TrainingRecord.sketch`).
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
    ) -> None:
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}; it must be at least 1")
        if cache_size < 0:
            raise ValueError(f"cache_size is {cache_size}; it must be at least 0")
        self.checkpoint = checkpoint.digest
        self.vocabulary = checkpoint.vocabulary
        self.reading = checkpoint.manifest.reading
        self.trained_score_shares = checkpoint.manifest.training.score_shares
        self.trained_sketch = checkpoint.manifest.training.sketch
        self.cache_hits = 0
        self.cache_misses = 0
        self.events_scored = 0
        self._calibration = checkpoint.manifest.calibration
        self._profile = checkpoint.profile
        self._judge = checkpoint.judge
        self._cache: OrderedDict[bytes, EventScores] = OrderedDict()
        self._at_ends: dict[bytes, _AtEnd] = {}  # of those in the cache without a final score
        self._cache_size = cache_size
        target = resolve_device(device)
        dtype = compute_dtype(precision, target)
        self._kernels = kernels
        try:
            self._model = checkpoint.build_model().to(target)
            self._inference = Inference(
                self._model, batch_tokens=pass_tokens(target, batch_tokens), backend=kernels, dtype=dtype
            )
            self._inference.check()
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
    ) -> list[EventScores]:
        """Score sessions, and events so far of some that go on; in the order given, the unfinished ones last.

        Args:
            sequences: each the int64 tokens of a session's events in native byte order, ``array("q").tobytes()``.
            unfinished: likewise; no final score is worked out for them.
            after_pass: called after each forward pass. What it raises ends the call; what was scored by then is
                remembered.

        Raises:
            ValueError: a sequence is not a whole number of tokens, or a token is beyond the vocabulary.
            DeviceError: the device's memory does not even hold one of the sessions.
        """
        if self.vocabulary.learned < len(self.vocabulary):
            sequences, unfinished = ([self._as_learned(key) for key in keys] for keys in (sequences, unfinished))
        cache, complete = self._cache, set(sequences)
        asked = [*sequences, *unfinished]
        found = {key: scores for key in dict.fromkeys(asked) if (scores := cache.get(key)) is not None}
        absent = [key for key in dict.fromkeys(asked) if key not in found]
        for key in found:
            cache.move_to_end(key)
        found |= self._completed([key for key in found if key in self._at_ends and key in complete])
        if absent:
            found |= self._run(absent, complete, after_pass)
        self.cache_hits += len(asked) - len(absent)
        return [found[key] for key in asked]

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

    def _as_learned(self, sequence: bytes) -> bytes:
        """A sequence with the tokens that the model knows."""
        if len(sequence) % 8:
            return sequence  # refused where the model is run
        tokens = np.frombuffer(sequence, dtype=np.int64)
        self._check(tokens)
        return self.vocabulary.as_learned(tokens).tobytes()

    def _check(self, tokens: Tokens) -> None:
        size = len(self.vocabulary)
        if len(tokens) and int(tokens.max()) >= size:
            raise ValueError(f"a token is beyond the vocabulary of {size} tokens")

    def _run(
        self, keys: list[bytes], complete: Container[bytes], after_pass: Callable[[], None]
    ) -> dict[bytes, EventScores]:
        """Scores of distinct sequences, through the model; remembers those of each pass.

        Of those that are not complete it also remembers what their final scores may need later.
        """
        if any(len(key) % 8 for key in keys):
            raise ValueError("a sequence is not a multiple of 8 bytes, a token each")
        joined = np.frombuffer(b"".join(keys), np.int64)
        self._check(joined)
        tokens = [joined[begin:end] for begin, end in pairwise([0, *accumulate(len(key) // 8 for key in keys)])]
        results: dict[bytes, EventScores] = {}
        for measured in self._inference.measure(tokens):
            indices = measured.indices.tolist()
            chosen, events = [keys[index] for index in indices], [tokens[index] for index in indices]
            is_complete = np.fromiter((key in complete for key in chosen), np.bool_, len(chosen))
            found, at_ends = self._calibrated(measured, events, is_complete)
            scores = dict(zip(chosen, found, strict=True))
            self._remember(scores, {chosen[row]: at_end for row, at_end in at_ends.items()})
            results |= scores
            self.cache_misses += len(events)
            self.events_scored += int(measured.bounds[-1]) - len(events)
            after_pass()
        return results

    def _completed(self, keys: list[bytes]) -> dict[bytes, EventScores]:
        """Remembered sequences without a final score, with it."""
        if not keys:
            return {}
        highest, logits = np.array([self._at_ends.pop(key) for key in keys]).T
        events = [np.frombuffer(key, dtype=np.int64) for key in keys]
        judged = self._profile.judge(np.concatenate(events), np.cumsum([0, *map(len, events)]))
        finals = self._finals(events, highest, logits, judged, [self._cache[key].scores for key in keys]).tolist()
        before = [self._cache[key] for key in keys]
        completed = {
            key: EventScores(each.surprises, each.scores, final)
            for key, each, final in zip(keys, before, finals, strict=True)
        }
        self._cache.update(completed)
        return completed

    def _finals(
        self,
        events: Sequence[Tokens],
        highest: Floats,
        logits: Floats,
        judged: Judged,
        early: Sequence[npt.NDArray[np.float32]],
    ) -> Floats:
        """Final scores of complete sessions; `judged` is the count profile's, `early` their scores so far."""
        if self._judge is None:
            return self._calibration.final_scores(highest, logits, judged.final, judged.seen)
        standings, broken = self._judge.standings(events)
        levels = self._calibration.levels(highest, judged.final, np.zeros_like(judged.seen))
        finals = judge.scores(levels, standings, broken)
        so_far = np.array([scores[-1] if len(scores) else 0.0 for scores in early], np.float64)
        return np.maximum(finals, so_far)

    def _early(
        self, highest: Floats, logits: Floats, unusual: Floats, events: Tokens, bounds: Integers
    ) -> npt.NDArray[np.float32]:
        """Scores after each event of sessions that go on, from the running maxima of their statistics; (events,)."""
        if self._judge is None:
            return self._calibration.early_scores(highest, logits, unusual).astype(np.float32)
        levels = self._calibration.early_levels(highest, np.zeros_like(unusual))
        return judge.early_scores(levels, self._judge.running(events, bounds)).astype(np.float32)

    def _remember(self, fresh: dict[bytes, EventScores], at_ends: dict[bytes, _AtEnd]) -> None:
        for key, scores in fresh.items():
            if len(scores.surprises) <= MAX_CACHED_EVENTS:
                self._cache[key] = scores
                if key in at_ends:
                    self._at_ends[key] = at_ends[key]
        while len(self._cache) > self._cache_size:
            key, _ = self._cache.popitem(last=False)
            self._at_ends.pop(key, None)

    def _calibrated(
        self, measured: Measured, events: Sequence[Tokens], complete: npt.NDArray[np.bool_]
    ) -> tuple[list[EventScores], dict[int, _AtEnd]]:
        """Scores of the sessions of a pass, and, by row, what is needed later of those that are not complete."""
        lasts = measured.bounds[1:] - 1
        highest = running_maxima(measured.surprises, measured.bounds)
        logits = running_maxima(measured.logits, measured.bounds)
        first_events = measured.bounds - np.arange(len(measured.bounds))
        joined = np.concatenate(events)
        judged = self._profile.judge(joined, first_events, complete)
        is_event = np.ones(len(highest), dtype=bool)
        is_event[lasts] = False
        early = self._early(highest[is_event], logits[is_event], judged.running, joined, first_events)
        # Copies: a view would keep its whole batch alive for as long as the cache keeps one session.
        so_far = [early[start:stop].copy() for start, stop in pairwise(first_events.tolist())]
        surprises = [measured.surprises[start : stop - 1].copy() for start, stop in pairwise(measured.bounds.tolist())]
        for array in (*so_far, *surprises):
            array.flags.writeable = False
        at_end, end_logits = highest[lasts], measured.logits[lasts].astype(np.float64)
        finals = np.full(len(lasts), np.nan)
        rows = np.flatnonzero(complete)
        finals[rows] = self._finals(
            [events[row] for row in rows.tolist()],
            at_end[rows],
            end_logits[rows],
            Judged(judged.final[rows], judged.running, judged.seen[rows]),
            [so_far[row] for row in rows.tolist()],
        )
        later = np.flatnonzero(~complete)
        needed = map(_AtEnd, at_end[later].tolist(), end_logits[later].tolist())
        return list(map(EventScores, surprises, so_far, finals.tolist())), dict(
            zip(later.tolist(), needed, strict=True)
        )


def running_maxima(values: npt.NDArray[np.float32], bounds: Integers) -> Floats:
    """The highest of the values of its session up to each one, float64 (k,).

    In steps of 1, 2, 4, …: after each the highest of twice as many values is known, so a batch takes as many steps as
    the length of its longest session has digits in binary.

    Args:
        values: session after session, (k,).
        bounds: where each session starts and, last, k, (sessions + 1,).
    """
    found: Floats = values.astype(np.float64)
    lengths = np.diff(bounds)
    places = np.arange(len(found)) - np.repeat(bounds[:-1], lengths)
    reach, rows = 1, np.flatnonzero(places)
    while len(rows):
        found[rows] = np.maximum(found[rows], found[rows - reach])
        reach *= 2
        rows = rows[places[rows] >= reach]
    return found


def resolve_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        DeviceError: the name is not allowed or there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (":" in name and not number.isdecimal())):
        raise DeviceError(f"device {name!r} is unknown; allowed: auto, cpu, cuda, cuda:N")
    if kind == "cuda":
        count = cuda_devices()
        if int(number or 0) >= count:
            raise DeviceError(f"device {name!r} is not here: PyTorch finds {count} CUDA devices")
    return torch.device(name)


def cuda_devices() -> int:
    """How many CUDA devices PyTorch finds here."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def pass_tokens(device: torch.device, most: int = BATCH_TOKENS) -> int:
    """Most tokens that one forward pass should have on the device, no more than asked for."""
    return min(most, CPU_BATCH_TOKENS) if device.type == "cpu" else most


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 without emulating it."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of that name; ``auto`` is float32.

    Raises:
        DeviceError: the name is not allowed, or the device does not compute in it.
    """
    if precision in ("auto", "float32"):
        return torch.float32
    if precision != "bfloat16":
        raise DeviceError(f"precision {precision!r} is unknown; allowed: auto, float32, bfloat16")
    if not has_bfloat16(device):
        raise DeviceError(f"precision bfloat16 is not available on {torch.cuda.get_device_name(device)}")
    return torch.bfloat16


def _of_events(counts: Mapping[int, float], events: Tokens, tokens: Tokens) -> dict[int, float]:
    """Counts by tokens as a model knows them, by the tokens that the events have."""
    own: dict[int, list[int]] = {}
    for event, token in dict.fromkeys(zip(events.tolist(), tokens.tolist(), strict=True)):
        own.setdefault(token, []).append(event)
    return {event: nats for token, nats in counts.items() for event in own.get(token, [token])}
