"""Batches gathered on the device are the sessions they were asked for."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.model.inference import pack
from detector.training.batches import PackedSessions
from detector.training.data import TrainingSessions

CPU = torch.device("cpu")


@st.composite
def sessions_and_choice(draw: st.DrawFn) -> tuple[TrainingSessions, list[int]]:
    events = st.lists(st.integers(-5, 9).filter(lambda token: token not in (0, 1)), min_size=1, max_size=6)
    sequences = [np.array(tokens, dtype=np.int64) for tokens in draw(st.lists(events, min_size=1, max_size=8))]
    chosen = draw(st.lists(st.integers(0, len(sequences) - 1), min_size=1, max_size=8))
    return TrainingSessions.of(sequences), chosen


@given(sessions_and_choice())
def test_a_batch_is_its_sessions_packed_one_by_one(drawn: tuple[TrainingSessions, list[int]]) -> None:
    sessions, chosen = drawn
    batch = PackedSessions(sessions, CPU).batch(np.array(chosen))
    expected = pack([sessions.sequences[index] for index in chosen], CPU)
    positions, classes = expected.targets()
    assert torch.equal(batch.tokens, expected.tokens)
    assert torch.equal(batch.cu_seqlens, expected.cu_seqlens)
    assert batch.cu_seqlens.dtype == torch.int32
    assert torch.equal(batch.positions, positions)
    assert torch.equal(batch.classes, classes)
    assert batch.n_sessions == len(chosen)
    assert batch.unknown_lines or int(batch.tokens.min()) >= 0
    assert batch.rows.tolist() == [index for index in chosen for _ in range(len(sessions.sequences[index]) + 1)]
