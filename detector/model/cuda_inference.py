"""A model prepared for inference on a GPU: four launches a block, one for each end, and CUDA graphs for small batches.

- Weights are laid out once, for kernels whose results do not depend on what shares the batch (`kernels.triton`). Logits
  never reach memory: of each position only the next token's surprise and the class logit do.
- Launching a small batch's kernels takes longer than running them. So a batch of short sessions is filled up to one of
  a few shapes, in buffers that stay where they are, and from its second use on a shape's launches are one CUDA graph.
"""

import gc
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from detector.model.carried import CarriedPass, StatePool
from detector.model.model import Block, DetectorModel
from detector.text.vocabulary import BOS, UNK
from detector.text.word_hashes import TEXT_FEATURES
from kernels.carried import Pieces, put_back
from kernels.packing import SEGMENT, Packing
from kernels.state import Mamba3State
from kernels.triton import INTERPRETED
from kernels.triton.inference.embedding_and_heads import Embedding, Heads
from kernels.triton.inference.layer import LayerWeights, layer_carried_on, layer_forward
from kernels.triton.inference.projections import Stream

# Running a model of the reference size on so many tokens takes longer than launching its kernels one by one.
MOST_SHAPED_TOKENS = 8192
# Fewer would not be faster: tiles of the matrix products have as many rows.
_FEWEST_SHAPED_TOKENS = 128
_FEWEST_SHAPED_SESSIONS = 16
_MOST_SHAPES = 64
# Of sessions that go on, as many as take a tenth of a gigabyte of states a block in the reference size.
_MOST_SHAPED_SLOTS = 768
_USES_BEFORE_ANOTHER_CAPTURE = 100

# Waits for a pass and returns what `PreparedModel.begin` says.
Fetch = Callable[[], tuple[npt.NDArray[np.float32], float]]
# Launches what it is given, as a graph, and returns what replays it.
_Capture = Callable[[Callable[[], None]], Callable[[], None]]


class PreparedModel:
    """A model whose weights are laid out for the kernels; later changes of its parameters do not reach it.

    Args:
        model: float32, on a CUDA device, or on the CPU where Triton interprets its kernels.
        dtype: of the residual stream and of the matrix products, float32 or bfloat16; the rest is float32.

    Raises:
        ValueError: the kernels do not run on the model's device, or its sizes are beyond what they take.
    """

    @torch.inference_mode()
    def __init__(self, model: DetectorModel, dtype: torch.dtype) -> None:
        self.device = model.token_embedding.weight.device
        if self.device.type != "cuda" and not INTERPRETED.value:
            raise ValueError(f"backend is 'triton', which needs a CUDA device; the model is on {self.device}")
        if (obstacle := model.config.triton_obstacle) is not None:
            raise ValueError(f"backend is 'triton', whose kernels {obstacle}; use 'auto' or 'reference'")
        self._dtype = dtype
        self._d_model = model.config.d_model
        self._embedding = Embedding(
            known=model.token_vectors(),
            unknown=model.token_embedding.weight[UNK].clone(),
            texts=model.text_embedding.weight.clone(),
            features=TEXT_FEATURES,
        )
        self._layers = [layer_weights(cast(Block, block), dtype) for block in model.blocks]
        self._heads = Heads.of(
            model.norm.weight,
            model.next_token_head.weight,
            model.class_head.weight,
            model.class_head.bias,
            unknown=UNK,
            dtype=dtype,
        )
        self._shapes = _Shapes(self)

    @torch.inference_mode()
    def begin(self, tokens: npt.NDArray[np.int64], bounds: npt.NDArray[np.int32]) -> Fetch:
        """Have the device work out what the model says at each position of packed sessions, and go on meanwhile.

        Args:
            tokens: (T,), T > 0; negative ones are unknown lines.
            bounds: (n + 1,), where each session starts and, last, T; each has at least two tokens.

        Returns:
            What waits for it and returns (2, T), the surprise of the next token in nats (it means nothing at a
            session's last) and the class logit, and the seconds that the device took.
        """
        lengths = np.diff(bounds)
        # Triton launches on the current device, which need not be the model's.
        with torch.cuda.device_of(self._heads.matrix):  # type: ignore[no-untyped-call]
            timer = _Timer(self.device)
            if len(tokens) <= MOST_SHAPED_TOKENS and lengths.max() <= SEGMENT:
                return _timed(self._shapes.measure(tokens, bounds[:-1], lengths), timer)
            out = torch.empty(2, len(tokens), dtype=torch.float32, device=self.device)
            packing = Packing.of(torch.from_numpy(bounds), self.device)
            self.run(self._on_device(tokens), packing, out)
            return self._fetching(out, timer)

    @torch.inference_mode()
    def carry_on(self, going: CarriedPass, pool: StatePool) -> Fetch:
        """Have the device work out what the model says of sessions that go on, and go on meanwhile.

        Returns:
            As `begin`, of each row the surprise of its follower.
        """
        with torch.cuda.device_of(self._heads.matrix):  # type: ignore[no-untyped-call]
            timer = _Timer(self.device)
            if going.single and len(going.tokens) <= MOST_SHAPED_TOKENS and len(going.slots) <= _MOST_SHAPED_SLOTS:
                return _timed(self._shapes.carry_on(going, pool.layers), timer)
            out = torch.empty(2, len(going.tokens), dtype=torch.float32, device=self.device)
            # What a row is asked about is what the heads find one place further.
            tokens = self._on_device(np.stack((going.tokens, np.roll(going.followers, 1))))
            self.run_carried(tokens, going.pieces(self.device), pool.layers, out)
            return self._fetching(out, timer)

    def run_carried(self, tokens: Tensor, pieces: Pieces, layers: Sequence[Mamba3State], out: Tensor) -> None:
        """Launch the model as `run`, on rows of tokens and, one place further each, followers, (2, T)."""
        stream = Stream.empty(tokens.shape[1], self._d_model, self._dtype, self.device)
        self._embedding(tokens[0], stream)
        after = [
            layer_carried_on(stream, weights, pieces, states)
            for weights, states in zip(self._layers, layers, strict=True)
        ]
        self._heads(stream, tokens[1], out)
        # Once all is launched: what does not fit the device's memory leaves the states as they are.
        for states, left in zip(layers, after, strict=True):
            if left is not None:
                put_back(pieces, states, left)

    def _fetching(self, out: Tensor, timer: "_Timer") -> Fetch:
        """What waits for a pass that was launched, and brings what it has filled out with."""
        fetched = torch.empty(out.shape, dtype=out.dtype, pin_memory=self.device.type == "cuda")
        fetched.copy_(out, non_blocking=True)
        return _timed(fetched.numpy, timer)

    def _on_device(self, tokens: npt.NDArray[np.int64]) -> Tensor:
        if self.device.type != "cuda":
            return torch.from_numpy(tokens)
        # Pinned memory is given to nobody else before the copy from it is through.
        return torch.from_numpy(tokens).pin_memory().to(self.device, non_blocking=True)

    def run(self, tokens: Tensor, packing: Packing, out: Tensor) -> None:
        """Launch the model on tokens (T,) and have it fill out, float32 (2, T), as `measure` returns it."""
        stream = Stream.empty(tokens.numel(), self._d_model, self._dtype, self.device)
        self._embedding(tokens, stream)
        for weights in self._layers:
            layer_forward(stream, weights, packing)
        self._heads(stream, tokens, out)


class _Timer:
    """Takes the time that a device spends on what is launched between its making and `stop`."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream() if device.type == "cuda" else None
        self._began = self._event() if self._stream else None
        self._began_at = perf_counter()

    def stop(self) -> Callable[[], float]:
        """What waits for all that was launched and returns the seconds."""
        if self._began is None:
            seconds = perf_counter() - self._began_at
            return lambda: seconds
        began, ended = self._began, self._event()

        def seconds_taken() -> float:
            ended.synchronize()
            return float(began.elapsed_time(ended)) / 1000

        return seconds_taken

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event


def _timed(read: Callable[[], npt.NDArray[np.float32]], timer: _Timer) -> Fetch:
    """What waits for all that was launched until now, and then reads what came of it."""
    stop = timer.stop()

    def fetch() -> tuple[npt.NDArray[np.float32], float]:
        seconds = stop()
        return read(), seconds

    return fetch


class _Host:
    """Where the host puts a pass's inputs and finds its outputs, in memory that the device copies by itself."""

    def __init__(self, room: int, *, on_gpu: bool) -> None:
        self.staged = torch.empty(room, dtype=torch.int64, pin_memory=on_gpu)
        self.fetched = torch.empty(room, dtype=torch.float32, pin_memory=on_gpu)
        self._used: torch.cuda.Event | None = torch.cuda.Event() if on_gpu else None  # type: ignore[no-untyped-call]

    def used(self) -> None:
        """All copies were launched."""
        if self._used is not None:
            self._used.record()

    def wait(self) -> None:
        """Wait until the latest copies are through."""
        if self._used is not None:
            self._used.synchronize()


class _Shapes:
    """The shapes that batches are filled up to, the least recently used going first, and the buffers they share.

    The host has two sets of buffers in turn, so that it works at a pass while the device is at the one before. What a
    call returns is to be read before the next call but one.
    """

    def __init__(self, model: PreparedModel) -> None:
        self._model = model
        device, on_gpu = model.device, model.device.type == "cuda"
        # A session has at least two tokens, BOS and EOS, and of each session there is a row of four int32. Those that
        # go on have followers, too, and slots.
        room = 2 * MOST_SHAPED_TOKENS + 4 * _MOST_SHAPED_SLOTS
        self._host, self._other_host = (_Host(room, on_gpu=on_gpu) for _ in range(2))
        # Of the device one set is enough, as it does one thing after the other.
        self._inputs = torch.empty(room, dtype=torch.int64, device=device)
        self._outputs = torch.empty(room, dtype=torch.float32, device=device)
        # Graphs of a pool overwrite each other's intermediate results, which is well: they run one after the other.
        self._capture: _Capture | None = partial(_captured, torch.cuda.graph_pool_handle()) if on_gpu else None
        self._uses_to_wait = 0  # before anything is captured
        self._layers: Sequence[Mamba3State] | None = None  # that shapes of sessions that go on have their states in
        self._shapes: OrderedDict[tuple[int, int, bool], _Shape] = OrderedDict()

    def measure(
        self, tokens: npt.NDArray[np.int64], starts: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]
    ) -> Callable[[], npt.NDArray[np.float32]]:
        """Launch the model; what reads what it says once the device has done all that was asked of it, (2, T)."""
        T, n = len(tokens), len(lengths)
        n_tokens, n_sessions = _rounded_up(T, _FEWEST_SHAPED_TOKENS), _rounded_up(n, _FEWEST_SHAPED_SESSIONS)
        shape = self._shape(n_tokens, n_sessions, None)
        staged = self._next_staged(n_tokens + 2 * n_sessions)
        staged[:T], staged[T:n_tokens] = tokens, BOS
        _fill(staged[n_tokens:].view(np.int32).reshape(n_sessions, 4), starts, lengths)
        return self._run(shape, len(staged), n_tokens, T)

    def carry_on(self, going: CarriedPass, layers: Sequence[Mamba3State]) -> Callable[[], npt.NDArray[np.float32]]:
        """Likewise of sessions that go on, whose states are in these layers of a pool."""
        T, n, bounds = len(going.tokens), len(going.slots), going.rest_bounds
        n_tokens, n_sessions = _rounded_up(T, _FEWEST_SHAPED_TOKENS), _rounded_up(n, _FEWEST_SHAPED_SESSIONS)
        shape = self._shape(n_tokens, n_sessions, layers)
        staged = self._next_staged(2 * n_tokens + 3 * n_sessions)
        tokens, asked, table, slots = np.split(staged, np.cumsum([n_tokens, n_tokens, 2 * n_sessions]))
        tokens[:T], tokens[T:] = going.tokens, BOS
        asked[0], asked[1:T], asked[T:] = BOS, going.followers[:-1], BOS
        _fill(table.view(np.int32).reshape(n_sessions, 4), bounds[:-1], np.diff(bounds))
        slots[:n], slots[n:] = going.slots, going.slots[0]
        return self._run(shape, len(staged), n_tokens, T)

    def _next_staged(self, n: int) -> npt.NDArray[np.int64]:
        """Where the next pass's inputs belong, which no copy reads any more."""
        self._host, self._other_host = self._other_host, self._host
        self._host.wait()
        return self._host.staged[:n].numpy()

    def _run(self, shape: "_Shape", n_inputs: int, n_tokens: int, T: int) -> Callable[[], npt.NDArray[np.float32]]:
        """Launch a shape on so many staged inputs; what reads the first T columns of what it says."""
        n_outputs, host = 2 * n_tokens, self._host
        try:
            self._inputs[:n_inputs].copy_(host.staged[:n_inputs], non_blocking=True)
            shape.run(self._graph_of if self._capture is not None and not self._uses_to_wait else None)
            self._uses_to_wait = max(0, self._uses_to_wait - 1)
            host.fetched[:n_outputs].copy_(self._outputs[:n_outputs], non_blocking=True)
        finally:
            # Also after an error: what is staged must not change before it is copied.
            host.used()
        return host.fetched[:n_outputs].numpy().reshape(2, n_tokens)[:, :T].copy

    def _graph_of(self, launch: Callable[[], None]) -> Callable[[], None]:
        assert self._capture is not None
        self._uses_to_wait = _USES_BEFORE_ANOTHER_CAPTURE  # should it fail; smaller shapes would fail one by one
        replay = self._capture(launch)
        self._uses_to_wait = 0
        return replay

    def _shape(self, n_tokens: int, n_sessions: int, layers: Sequence[Mamba3State] | None) -> "_Shape":
        if layers is not None and layers is not self._layers:
            # What was captured has the addresses of a pool that has grown since.
            self._shapes = OrderedDict((key, shape) for key, shape in self._shapes.items() if not key[2])
            self._layers = layers
        key = n_tokens, n_sessions, layers is not None
        shape = self._shapes.pop(key, None)
        if shape is None:
            shape = _Shape(self._model, self._inputs, self._outputs, n_tokens, n_sessions, layers)
            while len(self._shapes) >= _MOST_SHAPES:
                self._shapes.popitem(last=False)
        self._shapes[key] = shape
        return shape


def _fill(table: npt.NDArray[np.int32], starts: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]) -> None:
    """A table of segments (sessions or more, 4) of sessions that are one segment each; the others have no tokens."""
    n = len(lengths)
    table[:n, 0], table[:n, 1], table[:n, 2:] = starts, lengths, (0, -1)
    table[n:] = 0


class _Shape:
    """Runs the model on a number of tokens and of sessions, the last of which are fillings, afresh or from a pool.

    The fillings' tokens belong to no session, and sessions that are fillings have no tokens. What is computed of such
    tokens is anybody's guess, but rows do not mix.
    """

    def __init__(
        self,
        model: PreparedModel,
        inputs: Tensor,
        outputs: Tensor,
        n_tokens: int,
        n_sessions: int,
        layers: Sequence[Mamba3State] | None,
    ) -> None:
        self._model = model
        n_rows = n_tokens if layers is None else 2 * n_tokens
        self._tokens, rest = inputs[:n_rows], inputs[n_rows:]
        segments = rest[: 2 * n_sessions].view(torch.int32).view(n_sessions, 4)
        # Without states and sessions of more than one segment, the kernels read nothing but the table of segments.
        numbers = segments.new_zeros(1)
        self._layers = layers
        if layers is not None:
            numbers = torch.arange(n_sessions + 1, dtype=torch.int32, device=inputs.device)
        self._packing = Packing(numbers, n_tokens, segments, numbers)
        slots = rest[2 * n_sessions : 3 * n_sessions]
        self._pieces = Pieces(None, self._packing, slots, slots[:0])
        self._out = outputs[: 2 * n_tokens].view(2, n_tokens)
        self._uses = 0
        self._replay: Callable[[], None] | None = None

    def run(self, capture: _Capture | None) -> None:
        """Launch everything. The first launch compiles the kernels, which nothing that is captured may do."""
        self._uses += 1
        if capture is not None and self._uses > 1 and self._replay is None:
            self._replay = capture(self._launch)
        if self._replay is None:
            self._launch()
        else:
            self._replay()

    def _launch(self) -> None:
        if self._layers is None:
            self._model.run(self._tokens, self._packing, self._out)
        else:
            self._model.run_carried(self._tokens.view(2, -1), self._pieces, self._layers, self._out)


def _captured(pool: "torch.cuda._POOL_HANDLE", launch: Callable[[], None]) -> Callable[[], None]:
    """What is launched, as a CUDA graph; returns what replays it.

    Everything is launched once before it is captured: memory that is short shows then, where nothing has to be undone,
    and what that launch took is free for the capture. Whatever is raised, nothing of the graph is left, and the current
    stream is the one it was.

    Raises:
        torch.OutOfMemoryError: the device's memory does not hold what is launched.
    """
    launch()
    stream = torch.cuda.current_stream()
    graph = torch.cuda.CUDAGraph()
    short: torch.OutOfMemoryError | None = None
    try:
        with _without_collection(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The CUDA Graph is empty")  # when the first allocation fails
            with torch.cuda.graph(graph, pool=pool):
                try:
                    launch()
                except torch.OutOfMemoryError as error:
                    # The capture ends as one that succeeds. What was allocated in it must be freed before that, and the
                    # frames of the error's trace hold on to it.
                    short = error.with_traceback(None)
    except BaseException:
        torch.cuda.set_stream(stream)  # where the end of the capture fails, its stream remains the current one
        graph.reset()
        raise
    if short is not None:
        graph.reset()
        del graph  # here, where its memory is accounted for, and not with the error's trace
        raise short
    return graph.replay


@contextmanager
def _without_collection() -> Iterator[None]:
    """Another graph that is garbage must not be destroyed amid a capture: CUDA takes that for an error of it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _rounded_up(n: int, least: int) -> int:
    """The smallest of least, 1.5 * least, 2 * least, 3 * least, 4 * least ... that is at least n."""
    size = least
    while size < n:
        size *= 2
    return size * 3 // 4 if size > least and size * 3 // 4 >= n else size


def layer_weights(block: Block, dtype: torch.dtype) -> LayerWeights:
    """A block's parameters, laid out for `kernels.triton.inference.layer.layer_forward`."""
    parameters = {name.removesuffix(".weight"): parameter for name, parameter in block.mixer.named_parameters()}
    return LayerWeights.of(norm=block.norm.weight, **parameters, dtype=dtype)
