"""What the model says of a session that goes on from carried states is what it says of the whole one, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
import torch

from detector.model.carried import GoingOn, StatePool
from detector.model.inference import Backend, Inference, flat
from detector.text.vocabulary import BOS
from tests.detector.small_models import VOCABULARY, random_model

ON_GPU = torch.cuda.is_available()
UNKNOWN_LINE = VOCABULARY.sketch("Receiving replica <*> from <*>")
Events = list[int]

pytestmark = [pytest.mark.usefixtures("poisoned"), pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")]


class Growing:
    """Sessions that are measured piece by piece, and what was said of each so far."""

    def __init__(self, inference: Inference, sessions: Sequence[Events]) -> None:
        self._inference = inference
        pool = inference.pool(64)
        assert pool is not None
        assert pool.grow()
        self.pool: StatePool = pool
        self._tokens = [[BOS, *events] for events in sessions]
        self.upto = [0] * len(sessions)  # events that were measured
        self.said: list[list[bytes]] = [[] for _ in sessions]
        self.rows = 0

    def on(self, steps: dict[int, int], complete: Sequence[int] = ()) -> None:
        """So many more events of each of these sessions, in one call."""
        numbers = list(steps)
        slots = np.array([number + 3 for number in numbers])
        carried = self.pool.tokens[slots].tolist()
        parts = [
            np.array(self._tokens[number][begin : 1 + self.upto[number] + steps[number]])
            for number, begin in zip(numbers, carried, strict=True)
        ]
        seen = np.array([1 + self.upto[number] - begin for number, begin in zip(numbers, carried, strict=True)])
        ends = np.cumsum([len(part) for part in parts])
        given = GoingOn(np.concatenate(parts), ends, seen, slots, np.isin(numbers, complete))
        self.rows += len(given.tokens)
        for told in self._inference.carry_on(given, self.pool):
            for at, index in enumerate(told.indices.tolist()):
                events = slice(told.bounds[at], told.bounds[at + 1])
                number, said = numbers[index], np.stack((told.surprises[events], told.logits[events]), 1)
                self.said[number] += [each.tobytes() for each in said]
                if number in complete:
                    end = np.array([told.end_surprises[at], told.end_logits[at]])
                    self.said[number].append(end.tobytes())
                self.upto[number] += steps[number]


def said_of_whole(inference: Inference, sessions: Sequence[Events]) -> list[list[bytes]]:
    """Of each event and of the end, surprise and class logit."""
    found: dict[int, list[bytes]] = {}
    for measured in inference.measure(*flat([np.array(events, np.int64) for events in sessions])):
        both = np.stack((measured.surprises, measured.logits), 1)
        for index, start, stop in zip(measured.indices.tolist(), measured.bounds, measured.bounds[1:], strict=False):
            found[index] = [each.tobytes() for each in both[start:stop]]
    return [found[index] for index in range(len(sessions))]


def inference_on(device: torch.device, backend: Backend, dtype: torch.dtype, batch_tokens: int = 1_000) -> Inference:
    return Inference(random_model().to(device), batch_tokens=batch_tokens, backend=backend, dtype=dtype)


def random_sessions(lengths: Sequence[int], seed: int) -> list[Events]:
    random = Random(seed)
    tokens = [UNKNOWN_LINE, *range(2, len(VOCABULARY))]
    return [random.choices(tokens, k=length) for length in lengths]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_on_the_cpu_any_pieces_in_any_company_say_the_same_bits(dtype: torch.dtype, seed: int) -> None:
    sessions = random_sessions([400, 37, 31, 33, 200, 1, 64], seed)
    whole = said_of_whole(inference_on(torch.device("cpu"), "reference", dtype), sessions)
    growing = Growing(inference_on(torch.device("cpu"), "reference", dtype, batch_tokens=150), sessions)
    random = Random(seed)
    while left := [number for number in range(len(sessions)) if growing.upto[number] < len(sessions[number])]:
        some = random.sample(left, random.randint(1, len(left)))
        longest = {number: len(sessions[number]) - growing.upto[number] for number in some}
        steps = {number: min(most, random.choice([1, 1, 2, 30, 31, 32, 33, 100])) for number, most in longest.items()}
        growing.on(steps, complete=[number for number in some if steps[number] == longest[number]])
    assert growing.said == whole


def test_of_a_long_session_no_more_than_a_segment_is_run_again() -> None:
    growing = Growing(inference_on(torch.device("cpu"), "reference", torch.float32), random_sessions([300], 0))
    growing.on({0: 250})
    for _ in range(35):
        before = growing.rows
        growing.on({0: 1})
        assert growing.rows - before <= growing.pool.segment + 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, *([torch.float32] if ON_GPU else [])], ids=str)
def test_the_kernels_say_the_same_bits_of_pieces(dtype: torch.dtype, device: torch.device) -> None:
    lengths = [260, 129, 128, 127, 20, *([5_000, 1_000, 256, 255] if ON_GPU else [])]
    sessions = random_sessions(lengths, 1)
    whole = said_of_whole(inference_on(device, "triton", dtype, batch_tokens=20_000), sessions)
    growing = Growing(inference_on(device, "triton", dtype, batch_tokens=2_000), sessions)
    for number, length in enumerate(lengths):
        if length == 20:
            growing.on({number: 20}, complete=[number])
    growing.on({0: 130, 1: 127, 2: 100})
    growing.on({0: 1, 1: 1, 3: 126})
    growing.on({0: 125, 1: 1, 2: 28, 3: 1}, complete=[1, 2, 3])
    if ON_GPU:
        random = Random(2)
        others = range(5, len(lengths))
        while left := [number for number in others if growing.upto[number] < lengths[number] - 200]:
            some = random.sample(left, random.randint(1, len(left)))
            growing.on({number: random.choice([1, 1, 1, 50, 127, 128, 200]) for number in some})
        growing.on({number: lengths[number] - growing.upto[number] for number in others}, complete=list(others))
    growing.on({0: 4}, complete=[0])
    assert growing.said == whole


def test_a_pool_grows_to_what_is_allowed_and_to_what_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = StatePool(random_model(), most=40, segment=32)
    sizes = []
    while pool.grow():
        sizes.append(len(pool))
        pool.layers[0].ssm[len(pool) - 1] = len(pool)
    assert sizes == [16, 32, 40]
    assert [float(pool.layers[0].ssm[size - 1].max()) for size in sizes] == sizes, "states move with the pool"

    cramped = StatePool(random_model(), most=40, segment=32)
    assert cramped.grow()

    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(StatePool, "_larger", no_memory)
    assert not cramped.grow()
    monkeypatch.undo()
    assert not cramped.grow()
    assert len(cramped) == len(cramped.tokens) == 16
