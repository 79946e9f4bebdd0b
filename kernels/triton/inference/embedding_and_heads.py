"""What a model begins and ends with: tokens to vectors, and the residual stream to surprises and class logits.

As everywhere in inference, a row's result is the same bits whatever the other rows are and however many.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from kernels.triton import tiles
from kernels.triton.inference.projections import Stream, laid_out, norm_factors, product, store_stream
from kernels.triton.tiles import STREAM_PART, Tile


@triton.jit
def _unpacked(token, position: tl.constexpr, BITS: tl.constexpr):
    """The text bucket that negative tokens carry at a position, 0 for none."""
    return ((-1 - token) >> (position * BITS)) & ((1 << BITS) - 1)


@triton.jit(do_not_specialize=["n_rows"])
def _embed(
    tokens, known, unknown, texts, u, squares, n_rows,
    D: tl.constexpr, FEATURES: tl.constexpr, BITS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One part of some rows of the residual stream."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * STREAM_PART + tl.arange(0, STREAM_PART)
    inside = (columns < D)[None, :]
    token = tl.load(tokens + rows, rows < n_rows, 0)
    is_known = (token >= 0)[:, None]
    vectors = tl.load(known + token[:, None] * D + columns[None, :], is_known & inside, 0.0)
    total = tl.zeros((ROWS, STREAM_PART), tl.float32)
    count = tl.zeros((ROWS,), tl.float32)
    for i in tl.static_range(FEATURES):
        bucket = _unpacked(token, i, BITS)
        total += tl.load(texts + bucket[:, None] * D + columns[None, :], (token < 0)[:, None] & inside, 0.0)
        count += (bucket > 0).to(tl.float32)
    text = total / tl.maximum(count, 1.0)[:, None] + tl.load(unknown + columns, columns < D, 0.0)[None, :]
    vectors = tl.where(is_known, vectors, text)
    store_stream(u, squares, rows, rows < n_rows, tl.program_id(1) * STREAM_PART, vectors, D)


@triton.jit(do_not_specialize=["n_rows", "vocabulary"])
def _heads(
    u, squares, matrix, class_bias, tokens, out, n_rows, vocabulary,
    D: tl.constexpr, UNKNOWN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The sum of all exponentials is kept up to date from tile to tile, relative to the largest logit so far."""
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    u += first_row * D
    squares += first_row * ((D + STREAM_PART - 1) // STREAM_PART)
    tokens += first_row
    out += first_row
    rows = tl.arange(0, ROWS)
    inside = rows < n_rows - first_row
    target = tl.load(tokens + rows + 1, rows + 1 < n_rows - first_row, 0)
    target = tl.where(target < 0, UNKNOWN, target)
    factors = norm_factors(squares, rows, inside, D)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    at_target = tl.zeros((ROWS,), tl.float32)
    class_logit = tl.zeros((ROWS,), tl.float32)
    for first in range(0, vocabulary + 1, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        logits = product(rows, inside, columns, u, matrix, D, DEPTH) * factors[:, None]
        class_logit += tl.sum(tl.where((columns == vocabulary)[None, :], logits, 0.0), 1)
        at_target += tl.sum(tl.where(columns[None, :] == target[:, None], logits, 0.0), 1)
        logits = tl.where((columns < vocabulary)[None, :], logits, float("-inf"))
        before, largest = largest, tl.maximum(largest, tl.max(logits, 1))
        total = total * tl.exp(before - largest) + tl.sum(tl.exp(logits - largest[:, None]), 1)
    tl.store(out + rows, (largest - at_target) + tl.log(total), inside)
    tl.store(out + n_rows + rows, class_logit + tl.load(class_bias), inside)


@dataclass(frozen=True)
class Embedding:
    """Vectors of tokens.

    Attributes:
        known: float32 (vocabulary, D), the vectors of the tokens from 0 on.
        unknown: float32 (D,), what unknown lines have in common.
        texts: float32 (buckets, D), vectors of text buckets, that of bucket 0 zero; their number is a power of two.
        features: buckets an unknown line's token carries.
    """

    known: Tensor
    unknown: Tensor
    texts: Tensor
    features: int

    def __call__(self, tokens: Tensor, stream: Stream) -> None:
        """Write the vector of each token.

        Args:
            tokens: int64 (T,); a negative one is an unknown line: -1 - token holds its buckets, the first in the
                lowest bits, 0 for none.
            stream: of T tokens; of an unknown line it gets `unknown` and the mean of its buckets' vectors.
        """
        T, D = stream.u.shape
        if T:
            tile = tiles.embedding()
            _embed[(triton.cdiv(T, tile["ROWS"]), stream.squares.shape[1])](
                tokens, self.known, self.unknown, self.texts, *stream, T,
                D=D, FEATURES=self.features, BITS=self.texts.shape[0].bit_length() - 1, **tile,
            )  # fmt: skip


@dataclass(frozen=True)
class Heads:
    """The last RMSNorm and both heads, ready to run; logits never leave a program.

    Attributes:
        matrix: rows are the tokens' weights and, last, the class's, filled up with zeros to whole tiles.
        class_bias: float32 (1,).
        vocabulary: tokens.
        unknown: the token that unknown lines are as targets.
        tile: how the product is cut.
    """

    matrix: Tensor
    class_bias: Tensor
    vocabulary: int
    unknown: int
    tile: Tile

    @classmethod
    def of(
        cls,
        norm_weight: Tensor,
        token_weight: Tensor,
        class_weight: Tensor,
        class_bias: Tensor,
        *,
        unknown: int,
        dtype: torch.dtype,
    ) -> "Heads":
        """Lay copies of the weights (D,), (vocabulary, D), (1, D) and (1,) out, for products in bfloat16 or float32."""
        tile = tiles.HEADS[dtype]
        matrix = torch.cat((token_weight, class_weight)).float() * norm_weight.float()
        filled = functional.pad(matrix, (0, 0, 0, -matrix.shape[0] % tile.columns))
        return cls(
            matrix=laid_out(filled, tile.depth, dtype),
            class_bias=class_bias.float().clone(),
            vocabulary=token_weight.shape[0],
            unknown=unknown,
            tile=tile,
        )

    def __call__(self, stream: Stream, tokens: Tensor, out: Tensor) -> None:
        """Measure every row of packed sequences.

        Args:
            stream: of T tokens.
            tokens: int64 (T,), the tokens; negative ones are unknown lines.
            out: float32 (2, T), contiguous; gets -log p in nats of the token in the next row given those up to this
                row (it means nothing in a sequence's last row), and the class logits.
        """
        (T, D), tile = stream.u.shape, self.tile
        if T:
            _heads[(triton.cdiv(T, tile.rows),)](
                *stream, self.matrix, self.class_bias, tokens, out, T, self.vocabulary,
                D=D, UNKNOWN=self.unknown, **tile.launch,
            )  # fmt: skip
