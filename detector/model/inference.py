"""Running the model over whole sessions: packing, batches bounded by tokens, surprises and class logits.

On the CPU the model itself runs, on a GPU what `detector.model.cuda_inference` makes of it.

A session of n events enters the model as BOS, its events, EOS, and comes out as n + 1 surprises (of each
event and of the end, given what came before) and n + 1 class logits (after each event and after the end).
They are the same bits whichever sessions share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor
from torch.nn import functional

from detector.errors import DeviceError
from detector.model.carried import CarriedPass, GoingOn, StatePool, Told
from detector.model.model import DetectorModel
from detector.text.vocabulary import BOS, EOS, UNK
from kernels.carried import put_back
from kernels.packing import REFERENCE_SEGMENT, SEGMENT

if TYPE_CHECKING:
    from detector.model.cuda_inference import PreparedModel

Backend = Literal["auto", "triton", "reference"]
Tokens = npt.NDArray[np.int64]

Result = TypeVar("Result")
# A forward pass that is under way: waits for it and returns what it measured, and the seconds that it took.
_Pass = Callable[[], tuple[Result, float]]

# Rows of the log-softmax at a time, in logits: bounds its memory for large vocabularies.
_SOFTMAX_LOGITS = 1 << 22

_FEWEST_PASSES_BEFORE_GROWTH = 50
_MOST_PASSES_BEFORE_GROWTH = 3_200

_log = structlog.get_logger(__name__)


class Packed(NamedTuple):
    """Sessions end to end, each as BOS, events, EOS.

    Attributes:
        tokens: int64 (T,).
        cu_seqlens: int32 (n + 1,), where each session starts and, last, T.
    """

    tokens: Tensor
    cu_seqlens: Tensor

    def targets(self) -> tuple[Tensor, Tensor]:
        """Positions of all tokens but BOS and their classes, unknown lines as UNK; each int64 (T - n,)."""
        is_target = torch.ones_like(self.tokens, dtype=torch.bool)
        is_target[self.cu_seqlens[:-1].long()] = False
        positions = is_target.nonzero().squeeze(1)
        classes = self.tokens[positions]
        return positions, classes.masked_fill(classes < 0, UNK)


class Measured(NamedTuple):
    """What the model says about some sessions.

    Attributes:
        indices: which of the given sessions these are, (k,).
        bounds: session i of these owns rows bounds[i] to bounds[i + 1], its end being the last, (k + 1,).
        surprises: nats, float32 (rows,).
        logits: class logits, float32 (rows,).
    """

    indices: npt.NDArray[np.int64]
    bounds: npt.NDArray[np.int64]
    surprises: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]


class GpuUsage(NamedTuple):
    """How a GPU is used at a moment.

    Attributes:
        busy_s: seconds so far with a forward pass of this process under way.
        memory_bytes: the device's memory.
        free_bytes: what no process has taken of it.
        reserved_bytes: what this process has taken of it for tensors, in use or not.
    """

    busy_s: float
    memory_bytes: int
    free_bytes: int
    reserved_bytes: int


def pack(sequences: Sequence[Tokens], device: torch.device) -> Packed:
    """Pack sessions, given as their events, for the model."""
    tokens, bounds = _packed(*flat(sequences), np.arange(len(sequences)))
    return Packed(torch.from_numpy(tokens).to(device), torch.from_numpy(bounds).to(device))


def flat(sequences: Sequence[Tokens]) -> tuple[Tokens, Tokens]:
    """Tokens of sessions end to end, and where each ends."""
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    return np.concatenate([np.empty(0, np.int64), *sequences]), np.cumsum(lengths)


def _packed(tokens: Tokens, ends: Tokens, chosen: npt.NDArray[np.int64]) -> tuple[Tokens, npt.NDArray[np.int32]]:
    """Tokens and bounds of `Packed`, of these of sessions that lie end to end."""
    lengths = np.diff(ends, prepend=0)[chosen]
    bounds = np.zeros(len(chosen) + 1, dtype=np.int32)
    np.cumsum(lengths + 2, out=bounds[1:])
    # From each place of the pack to that of the same event among all, BOS one before it and EOS one after.
    away = ends[chosen] - lengths - 1 - bounds[:-1]
    places = np.arange(bounds[-1]) + np.repeat(away, lengths + 2)
    packed = tokens.take(places, mode="clip") if len(tokens) else np.empty(len(places), np.int64)
    packed[bounds[:-1]] = BOS
    packed[bounds[1:] - 1] = EOS
    return packed, bounds


def batches(lengths: npt.NDArray[np.int64], batch_tokens: int) -> Iterator[npt.NDArray[np.int64]]:
    """Cut sessions, in the given order, into runs of at most `batch_tokens` tokens (a longer session: alone).

    Args:
        lengths: events of each session.
        batch_tokens: most tokens in a run, BOS and EOS included.
    """
    ends = np.cumsum(lengths + 2)
    start = 0
    while start < len(lengths):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + batch_tokens, side="right")), start + 1)
        yield np.arange(start, stop)
        start = stop


class _PassTokens:
    """Most tokens of a forward pass: those asked for, and fewer for a while after a pass did not fit.

    After so many passes that fitted, twice the tokens are tried again. Each time that was too early it takes twice as
    many passes: memory that is short for good then costs hardly a pass in a thousand.

    Attributes:
        now: tokens.
    """

    def __init__(self, most: int) -> None:
        self.now = self._most = most
        self._patience = _FEWEST_PASSES_BEFORE_GROWTH
        self._fitted = 0  # passes since it changed
        self._has_grown = False  # since a pass did not fit

    def fitted(self) -> None:
        self._fitted += 1
        if self._fitted < self._patience:
            return
        self._fitted = 0
        if self.now < self._most:
            self.now, self._has_grown = min(self._most, 2 * self.now), True
        else:
            self._patience, self._has_grown = _FEWEST_PASSES_BEFORE_GROWTH, False

    def too_many(self, tokens: int) -> None:
        """A pass of so many tokens did not fit."""
        self.now, self._fitted = tokens // 2, 0
        if self._has_grown:
            self._patience, self._has_grown = min(2 * self._patience, _MOST_PASSES_BEFORE_GROWTH), False


class Inference:
    """A model ready to measure sessions, as its weights are now.

    Args:
        model: float32, in evaluation mode, on its device.
        batch_tokens: most tokens in one forward pass; fewer for a while when the device runs out of memory.
        backend: which kernels to use.
        dtype: of the computation, float32 or bfloat16; the model is converted where it runs itself.

    Attributes:
        batches_split: how many batches did not fit the device's memory and were split.
        busy_s: seconds in forward passes so far; the device has nothing of ours to do between them.
    """

    def __init__(
        self,
        model: DetectorModel,
        *,
        batch_tokens: int,
        backend: Backend = "auto",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.batches_split = 0
        self.busy_s = 0.0
        self._pass_tokens = _PassTokens(batch_tokens)
        self._model = model
        self._backend = backend
        self._dtype = dtype
        self._device = next(model.parameters()).device

    @property
    def batch_tokens(self) -> int:
        """Most tokens in a forward pass, as it is now."""
        return self._pass_tokens.now

    def gpu_usage(self) -> GpuUsage | None:
        """How the GPU is used that the model runs on; None on a CPU. Not from another thread during a pass."""
        if self._device.type != "cuda":
            return None
        free_bytes, memory_bytes = torch.cuda.mem_get_info(self._device)
        return GpuUsage(self.busy_s, memory_bytes, free_bytes, torch.cuda.memory_reserved(self._device))

    def check(self) -> None:
        """Run the model once, so that what cannot work here is found before the first session.

        Raises:
            DeviceError: the device or the kernels do not run the model.
        """
        one = np.ones(1, np.int64)
        try:
            self._begin(EOS * one, one, 0 * one)()
        except (ValueError, RuntimeError) as error:
            raise DeviceError(f"the model does not run on {self._device}: {error}") from error

    def measure(self, tokens: Tokens, ends: Tokens) -> Iterator[Measured]:
        """Measure every session once, the longest first.

        While the caller works on what it was given, a GPU is at the next pass.

        Args:
            tokens: int64 (events,), of the sessions end to end.
            ends: int64 (n,), where each session ends.

        Raises:
            DeviceError: the device's memory does not even hold one session.
        """
        lengths = np.diff(ends, prepend=0)
        return self._in_passes(lengths, lambda chosen: self._begin(tokens, ends, chosen))

    def pool(self, most: int) -> StatePool | None:
        """A pool of states for at most so many sessions that go on; None where the model has none to carry."""
        if self._prepared is None and self._device.type != "cpu":
            return None  # no promise holds there that a score is the same bits
        return StatePool(self._model, most, REFERENCE_SEGMENT if self._prepared is None else SEGMENT)

    def carry_on(self, given: GoingOn, pool: StatePool) -> Iterator[Told]:
        """Measure the new events of sessions that go on, once each, as `measure` does, and carry their states on.

        What is told of a session was measured with all that was carried of it before.

        Raises:
            DeviceError: as `measure`.
        """
        lengths = np.diff(given.ends, prepend=0)
        return self._in_passes(lengths, lambda chosen: self._begin_carried(CarriedPass(given, chosen, pool), pool))

    def _in_passes(
        self, lengths: npt.NDArray[np.int64], begin: Callable[[npt.NDArray[np.int64]], _Pass[Result]]
    ) -> Iterator[Result]:
        """What passes over sessions of these lengths measure, the longest first."""
        order = np.argsort(-lengths, kind="stable")
        done = 0
        under_way: _Pass[Result] | None = None
        while done < len(order):
            rest = order[done:]
            chosen = rest[next(batches(lengths[rest], self.batch_tokens))]
            begun = self._attempt(begin, chosen)
            if under_way is not None:
                yield self._ended(under_way)
                under_way = None
            if begun is None and len(chosen) == 1:
                # All that was kept for later is free now, and what was captured as a graph is launched without one.
                begun = self._attempt(begin, chosen)
                if begun is None:
                    raise DeviceError(
                        f"{self._device} has not enough memory for one session of {lengths[chosen[0]]} events"
                    )
            if begun is None:
                n_tokens = int(lengths[chosen].sum() + 2 * len(chosen))
                self._pass_tokens.too_many(n_tokens)
                self.batches_split += 1
                _log.warning("batch_did_not_fit", device=str(self._device), tokens=n_tokens, from_now=self.batch_tokens)
                continue
            self._pass_tokens.fitted()
            done += len(chosen)
            if self._device.type == "cuda":
                under_way = begun
            else:
                yield self._ended(begun)
        if under_way is not None:
            yield self._ended(under_way)

    def _ended(self, under_way: _Pass[Result]) -> Result:
        measured, seconds = under_way()
        self.busy_s += seconds
        return measured

    def _attempt(
        self, begin: Callable[[npt.NDArray[np.int64]], _Pass[Result]], chosen: npt.NDArray[np.int64]
    ) -> _Pass[Result] | None:
        """A pass that is under way; None when the device's memory does not hold these sessions."""
        try:
            return begin(chosen)
        except RuntimeError as error:
            # PyTorch's allocator has an error of its own; Triton's launches and CUDA graphs only say so.
            if not (isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)):
                raise
        # Not before here: an error holds on to the tensors of the functions it came through.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _begin(self, tokens: Tokens, ends: Tokens, chosen: npt.NDArray[np.int64]) -> _Pass[Measured]:
        began = perf_counter()
        packed, bounds = _packed(tokens, ends, chosen)
        positions = np.delete(np.arange(len(packed)), bounds[:-1])
        own_bounds = bounds.astype(np.int64) - np.arange(len(bounds))
        if self._prepared is None:
            measured = Measured(chosen, own_bounds, *self._run_model(packed, bounds))
            seconds = perf_counter() - began
            return lambda: (measured, seconds)
        fetch = self._prepared.begin(packed, bounds)

        def fetched() -> tuple[Measured, float]:
            (surprises, logits), busy_s = fetch()
            return Measured(chosen, own_bounds, surprises[positions - 1], logits[positions]), busy_s

        return fetched

    def _begin_carried(self, going: CarriedPass, pool: StatePool) -> _Pass[Told]:
        began = perf_counter()
        if self._prepared is None:
            told = going.told(*self._carry_on_model(going, pool))
            going.has_run()
            seconds = perf_counter() - began
            return lambda: (told, seconds)
        fetch = self._prepared.carry_on(going, pool)
        going.has_run()

        def fetched() -> tuple[Told, float]:
            (surprises, logits), busy_s = fetch()
            return going.told(surprises, logits), busy_s

        return fetched

    @torch.inference_mode()
    def _carry_on_model(
        self, going: CarriedPass, pool: StatePool
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        pieces, followers = going.pieces(self._device), torch.from_numpy(going.followers)
        next_logits, class_logits, after = self._model.carry_on(torch.from_numpy(going.tokens), pieces, pool.layers)
        surprises = _surprises(next_logits, torch.arange(len(followers)), followers.masked_fill(followers < 0, UNK))
        for states, left in zip(pool.layers, after, strict=False):
            put_back(pieces, states, left)
        return surprises.numpy(), class_logits.float().numpy()

    @cached_property
    def _prepared(self) -> PreparedModel | None:
        """None where the model itself runs."""
        on_gpu = self._device.type == "cuda" and self._model.config.triton_obstacle is None
        if self._backend == "triton" or (self._backend == "auto" and on_gpu):
            # Triton takes a second to import, which what runs on the CPU need not wait for.
            from detector.model.cuda_inference import PreparedModel

            return PreparedModel(self._model, self._dtype)
        self._model.to(self._dtype)
        return None

    @torch.inference_mode()
    def _run_model(
        self, tokens: Tokens, bounds: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        packed = Packed(torch.from_numpy(tokens).to(self._device), torch.from_numpy(bounds).to(self._device))
        next_logits, class_logits = self._model(packed.tokens, packed.cu_seqlens, backend=self._backend)
        positions, classes = packed.targets()
        surprises = _surprises(next_logits, positions - 1, classes)
        return surprises.cpu().numpy(), class_logits[positions].float().cpu().numpy()


def _surprises(logits: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
    """Nats of a class at each of some rows of next-token logits, (rows,)."""
    at_once = max(1, _SOFTMAX_LOGITS // logits.shape[1])
    return torch.cat(
        [
            -log_probabilities(logits[part]).gather(1, targets[:, None]).squeeze(1)
            for part, targets in zip(torch.split(rows, at_once), torch.split(classes, at_once), strict=True)
        ]
    )


def log_probabilities(logits: Tensor) -> Tensor:
    """Log softmax of each row in float32; (rows, classes) to (rows, classes and up to 3 more), those at -inf."""
    # CUDA's softmax over long rows starts each at the next 16-byte boundary, so the order of its sums would
    # depend on the row's place in the batch; rows of a multiple of 16 bytes all sit alike.
    padded = functional.pad(logits.float(), (0, -logits.shape[1] % 4), value=-torch.inf)
    return functional.log_softmax(padded, dim=1)
