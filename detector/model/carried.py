"""Model states of sessions that go on: a pool of slots on the device, and passes that start from them.

A session's state is that after whole segments of its tokens (`kernels.carried`), BOS the first of them; the tokens
since, and at least the last one, are run again with the new ones. So what the model says of an event is the same bits
as in a pass over the whole session, and a pool is never needed to know it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from detector.model.model import DetectorModel
from detector.text.vocabulary import EOS
from kernels.carried import Pieces
from kernels.state import Mamba3State

Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_FEWEST_SLOTS = 16


class StatePool:
    """States of as many sessions as there are slots, of each block.

    Args:
        model: whose states these are, on its device.
        most: the most slots there may ever be.
        segment: tokens after whole multiples of which states are carried.

    Attributes:
        segment: that it was given.
        layers: of each block, the states of all slots.
        tokens: how many tokens each slot's state is of, int64 (slots,).
    """

    def __init__(self, model: DetectorModel, most: int, segment: int) -> None:
        config = model.config
        self.segment = segment
        self._most = most
        self._device = model.token_embedding.weight.device
        H, P, N, R = config.expand * config.d_model // config.headdim, config.headdim, config.d_state, config.mimo_rank
        self._shapes = ((H, int(N * config.rope_fraction) // 2), (H, P, N), (H, R, N), (H, P))
        self.tokens = np.zeros(0, np.int64)
        self.layers = [self._empty(0) for _ in range(config.n_layers)]

    def __len__(self) -> int:
        return len(self.tokens)

    def grow(self) -> bool:
        """Make more slots, twice as many if the most there may be allows it; whether there are more now.

        Where the device's memory does not hold them, those that there are are all there will be.
        """
        slots = min(max(2 * len(self), _FEWEST_SLOTS), self._most)
        if slots <= len(self):
            return False
        try:
            layers = [self._larger(states, slots) for states in self.layers]
        except torch.OutOfMemoryError:
            self._most = len(self)
            return False
        self.layers = layers
        self.tokens = np.append(self.tokens, np.zeros(slots - len(self), np.int64))
        return True

    def clear(self, slots: Integers) -> None:
        """Let sessions begin in these slots."""
        self.tokens[slots] = 0
        at = torch.from_numpy(slots).to(self._device)
        for states in self.layers:
            for part in states:
                part.index_fill_(0, at, 0)

    def _empty(self, slots: int) -> Mamba3State:
        return Mamba3State(*(torch.zeros(slots, *shape, device=self._device) for shape in self._shapes))

    def _larger(self, states: Mamba3State, slots: int) -> Mamba3State:
        larger = self._empty(slots)
        for part, old in zip(larger, states, strict=True):
            part[: len(self)] = old
        return larger


class GoingOn(NamedTuple):
    """Sessions that go on.

    Attributes:
        tokens: of each from the first one on that its state is not of, end to end, int64 (tokens,).
        ends: where those of each end, int64 (n,).
        seen: how many of them came before, at least one of each, int64 (n,).
        slots: in the pool, int64 (n,), distinct.
        complete: whether the session ends with them, (n,).
    """

    tokens: Integers
    ends: Integers
    seen: Integers
    slots: Integers
    complete: Flags


class Told(NamedTuple):
    """What the model says about sessions that went on.

    Attributes:
        indices: which of the given sessions these are, (k,).
        bounds: where the new events of each begin and, last, how many there are, (k + 1,).
        surprises: nats of each new event, float32.
        logits: class logits after each, float32.
        end_surprises: nats of the end, of complete sessions, float32 (k,).
        end_logits: class logits after it, likewise.
    """

    indices: Integers
    bounds: Integers
    surprises: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    end_surprises: npt.NDArray[np.float32]
    end_logits: npt.NDArray[np.float32]


class CarriedPass:
    """A pass over some of the sessions that go on: its rows as the model takes them, and back.

    Args:
        given: the sessions.
        chosen: which of them.
        pool: their states.

    Attributes:
        tokens: int64 (T,), a row each.
        followers: int64 (T,), of each row the token that comes next in its session; 0 where none does.
        single: whether every session's rows are within one segment.
    """

    def __init__(self, given: GoingOn, chosen: Integers, pool: StatePool) -> None:
        self._chosen, self._pool = chosen, pool
        lengths, complete = np.diff(given.ends, prepend=0)[chosen], given.complete[chosen]
        rows = lengths + complete
        self._bounds = np.append(0, np.cumsum(rows))
        away = given.ends[chosen] - lengths - self._bounds[:-1]
        places = np.arange(self._bounds[-1]) + np.repeat(away, rows)
        in_order = given.tokens.take(places, mode="clip")
        in_order[self._bounds[1:][complete] - 1] = EOS
        followers = np.append(in_order[1:], 0)
        followers[self._bounds[1:] - 1] = 0
        # Whole segments that end before the last token of a session that goes on: from there it is carried on.
        whole = np.where(complete, 0, (lengths - 1) // pool.segment * pool.segment)
        place_in_session = np.arange(len(in_order)) - np.repeat(self._bounds[:-1], rows)
        is_rest = place_in_session >= np.repeat(whole, rows)
        self._order = np.append(np.flatnonzero(~is_rest), np.flatnonzero(is_rest))
        self.tokens, self.followers = in_order[self._order], followers[self._order]
        self._slots, self._whole, self._rest = given.slots[chosen], whole, rows - whole
        self._seen, self._lengths, self._complete = given.seen[chosen], lengths, complete
        self.single = not whole.any() and bool((rows <= pool.segment).all())

    @property
    def slots(self) -> Integers:
        """Of each session."""
        return self._slots

    @property
    def rest_bounds(self) -> npt.NDArray[np.int32]:
        """Where the rest of each session lies behind all whole segments, (k + 1,)."""
        return np.append(0, np.cumsum(self._rest)).astype(np.int32)

    def pieces(self, device: torch.device) -> Pieces:
        """Where the rows lie."""
        continued = np.flatnonzero(self._whole)
        bounds = np.append(0, np.cumsum(self._whole[continued])).astype(np.int32)
        whole, rest, slots, at = map(torch.from_numpy, (bounds, self.rest_bounds, self._slots, continued))
        return Pieces.of(whole, rest, slots, at, device)

    def has_run(self) -> None:
        """The pool's states are those after the whole segments from now on."""
        self._pool.tokens[self._slots] += self._whole

    def told(self, surprises: npt.NDArray[np.float32], logits: npt.NDArray[np.float32]) -> Told:
        """What was measured, of each row the surprise of its follower and the class logit, as what the model says."""
        measured = np.empty((2, len(self._order)), np.float32)
        measured[:, self._order] = surprises, logits
        starts, new = self._bounds[:-1], self._lengths - self._seen
        bounds = np.append(0, np.cumsum(new))
        # The row before each new event, which says what it thinks of it.
        before = np.arange(bounds[-1]) + np.repeat(starts + self._seen - 1 - bounds[:-1], new)
        last = self._bounds[1:] - 1
        return Told(
            indices=self._chosen,
            bounds=bounds,
            surprises=measured[0, before],
            logits=measured[1, before + 1],
            end_surprises=measured[0, np.maximum(last - 1, 0)],
            end_logits=measured[1, last],
        )
