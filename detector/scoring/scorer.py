"""The scorer: event sequences in, calibrated scores out, the same bits whatever the batch or the cache."""

from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from detector.checkpoint import Checkpoint, load
from detector.errors import DeviceError
from detector.model.explanation import Explanation, expectations
from detector.model.inference import Backend, Inference, Measured, Tokens

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
        cache_hits: sequences answered without the model so far, repeated ones within a call among them.
        cache_misses: sequences the model was run on so far.
        events_scored: events in those.

    Raises:
        DeviceError: the device, precision or kernels are not available here.
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
        self.cache_hits = 0
        self.cache_misses = 0
        self.events_scored = 0
        self._calibration = checkpoint.manifest.calibration
        self._profile = checkpoint.profile
        self._cache: OrderedDict[bytes, EventScores] = OrderedDict()
        self._at_ends: dict[bytes, _AtEnd] = {}  # of those in the cache without a final score
        self._cache_size = cache_size
        target = resolve_device(device)
        dtype = compute_dtype(precision, target)
        self._model = checkpoint.build_model().to(target)
        self._kernels = kernels
        self._inference = Inference(
            self._model, batch_tokens=pass_tokens(target, batch_tokens), backend=kernels, dtype=dtype
        )
        self._inference.check()

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
        tokens = np.frombuffer(sequence, dtype=np.int64)
        found = expectations(self._model, tokens, k, self._kernels)
        return Explanation(
            surprises=np.append(scores.surprises, found.surprises[-1]),
            scores=scores.scores,
            final=scores.final,
            expected=found.expected,
            probabilities=found.probabilities,
            unusual_counts=self._profile.unusual_counts(tokens),
        )

    def _run(
        self, keys: list[bytes], complete: Container[bytes], after_pass: Callable[[], None]
    ) -> dict[bytes, EventScores]:
        """Scores of distinct sequences, through the model; remembers those of each pass.

        Of those that are not complete it also remembers what their final scores may need later.
        """
        tokens = [np.frombuffer(key, dtype=np.int64) for key in keys]
        size = len(self.vocabulary)
        if any(int(events.max()) >= size for events in tokens if len(events)):
            raise ValueError(f"a token is beyond the vocabulary of {size} tokens")
        results: dict[bytes, EventScores] = {}
        for measured in self._inference.measure(tokens):
            chosen = [keys[index] for index in measured.indices.tolist()]
            events = [tokens[index] for index in measured.indices]
            is_complete = np.fromiter((key in complete for key in chosen), np.bool_, len(chosen))
            scores: dict[bytes, EventScores] = {}
            at_ends: dict[bytes, _AtEnd] = {}
            for key, (of_key, at_end) in zip(chosen, self._calibrated(measured, events, is_complete), strict=True):
                scores[key] = of_key
                if key not in complete:
                    at_ends[key] = at_end
            self._remember(scores, at_ends)
            results |= scores
            self.cache_misses += len(events)
            self.events_scored += sum(map(len, events))
            after_pass()
        return results

    def _completed(self, keys: list[bytes]) -> dict[bytes, EventScores]:
        """Remembered sequences without a final score, with it."""
        if not keys:
            return {}
        at_ends = [self._at_ends.pop(key) for key in keys]
        events = [np.frombuffer(key, dtype=np.int64) for key in keys]
        judged = self._profile.judge(np.concatenate(events), np.cumsum([0, *map(len, events)]))
        highest, logits = np.array(at_ends).T
        finals = self._calibration.final_scores(highest, logits, judged.final, judged.seen).tolist()
        completed = {key: self._cache[key]._replace(final=final) for key, final in zip(keys, finals, strict=True)}
        self._cache.update(completed)
        return completed

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
    ) -> list[tuple[EventScores, _AtEnd]]:
        bounds = measured.bounds.tolist()
        spans = list(pairwise(bounds))
        ends = measured.bounds[1:] - 1
        highest = np.empty(len(measured.surprises), dtype=np.float64)
        logits = np.empty(len(measured.logits), dtype=np.float64)
        for start, stop in spans:
            np.maximum.accumulate(measured.surprises[start:stop], out=highest[start:stop])
            np.maximum.accumulate(measured.logits[start:stop], out=logits[start:stop])
        first_events = measured.bounds - np.arange(len(measured.bounds))
        judged = self._profile.judge(np.concatenate(events), first_events, complete)
        unusual = np.zeros(len(highest))
        is_event = np.ones(len(highest), dtype=bool)
        is_event[ends] = False
        unusual[is_event] = judged.running
        early = self._calibration.early_scores(highest, logits, unusual).astype(np.float32)
        at_end, end_logits = highest[ends], measured.logits[ends].astype(np.float64)
        finals = np.full(len(ends), np.nan)
        finals[complete] = self._calibration.final_scores(
            at_end[complete], end_logits[complete], judged.final[complete], judged.seen[complete]
        )
        # Copies: a view would keep its whole batch alive for as long as the cache keeps one session.
        return [
            (
                EventScores(
                    surprises=_read_only(measured.surprises[start : stop - 1].copy()),
                    scores=_read_only(early[start : stop - 1].copy()),
                    final=final,
                ),
                _AtEnd(*needed),
            )
            for (start, stop), final, *needed in zip(
                spans, finals.tolist(), at_end.tolist(), end_logits.tolist(), strict=True
            )
        ]


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
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            raise DeviceError(f"device {name!r} is not here: PyTorch finds {count} CUDA devices")
    return torch.device(name)


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


def _read_only(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    array.flags.writeable = False
    return array
