"""Tokens get their vectors, rows their surprises and class logits, and no row's bits depend on other rows."""

import pytest
import torch
from torch import Tensor

from kernels.triton.inference.embedding_and_heads import Embedding, Heads
from tests.kernels.inputs import assert_close
from tests.kernels.streams import empty_stream, stream_of, sums_of_squares
from tests.kernels.test_projections import BOUNDS, dtypes, normal, rms_norm

UNKNOWN, FEATURES, BUCKETS = 2, 3, 16


def line(*buckets: int) -> int:
    """The token of an unknown line."""
    return -1 - sum(bucket << (4 * i) for i, bucket in enumerate(buckets))


@dtypes
@pytest.mark.parametrize("d_model", [36, 136])
def test_tokens_get_their_vectors_and_unknown_lines_the_mean_of_their_texts(
    d_model: int, dtype: torch.dtype, device: torch.device
) -> None:
    known, unknown, texts = normal(9, d_model), normal(d_model, seed=1), normal(BUCKETS, d_model, seed=2)
    texts[0] = 0
    tokens = torch.tensor([0, 8, line(5), 3, line(15, 1, 7), line(2, 3), line(), *range(9), 4])
    carried = {2: [5], 4: [15, 1, 7], 5: [2, 3]}
    expected = known[tokens.clamp(min=0)]
    expected[6] = unknown
    for row, buckets in carried.items():
        expected[row] = unknown + texts[buckets].mean(0)
    stream = empty_stream(len(tokens), d_model, dtype, device)
    Embedding(known.to(device), unknown.to(device), texts.to(device), FEATURES)(tokens.to(device), stream)
    assert_close("vectors", stream.u.cpu(), expected.to(dtype), 1e-6)
    assert_close("squares", stream.squares, sums_of_squares(stream.u.double()), 1e-6)


@dtypes
@pytest.mark.parametrize("vocabulary", [5, 127, 128, 300])
def test_heads_give_the_surprise_of_the_next_token_and_the_class_logit(
    vocabulary: int, dtype: torch.dtype, device: torch.device
) -> None:
    T, D = 70, 36
    norm, token, of_class = 1 + normal(D, scale=0.2), normal(vocabulary, D, seed=1), normal(1, D, seed=2)
    bias = torch.tensor([0.75])
    u = normal(T, D, seed=3).to(dtype)
    tokens = torch.randint(0, vocabulary, (T,), generator=torch.Generator().manual_seed(4))
    tokens[::7] = -5
    heads = Heads.of(*(t.to(device) for t in (norm, token, of_class, bias)), unknown=UNKNOWN, dtype=dtype)

    def measured(rows: slice) -> Tensor:
        part = u[rows].to(device)
        out = torch.full((2, len(part)), torch.nan, device=device)
        heads(stream_of(part), tokens[rows].to(device), out)
        return out.cpu()

    out = measured(slice(T))
    logits = rms_norm(u.double(), norm.double()) @ torch.cat((token, of_class)).double().T
    targets = tokens.masked_fill(tokens < 0, UNKNOWN)[1:]
    log_p = logits[:-1, :-1].log_softmax(1)
    assert_close("surprises", out[0, :-1], -log_p.gather(1, targets[:, None]).squeeze(1), BOUNDS[dtype])
    assert_close("class logits", out[1], logits[:, -1] + 0.75, BOUNDS[dtype])
    assert torch.isfinite(out).all()
    for rows in (slice(3, 6), slice(61, T), slice(1, T)):
        part = measured(rows)
        assert torch.equal(part[1], out[1, rows])
        assert torch.equal(part[0, :-1], out[0, rows][:-1])
