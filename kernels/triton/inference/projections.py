"""The layer's two matrix products with what stands around them: normalisation, activations of the steps, residual.

Libraries choose another kernel for another number of rows, and with it another order of sums. Here the tiles depend on
the layer's sizes and the type alone, and no sum over the columns of a row is split; so a row's result is the same bits
whatever the other rows are and however many.

RMSNorm costs no pass of its own: its weight is multiplied into the matrix beforehand, and what writes the residual
stream sums up the squares while it has them, which leaves one factor a row to apply after the product. The product must
not sum them up from the tiles it loads: to a tile that is read by something besides the tensor cores, Triton 3.6 gives
one buffer too few, and the next load overwrites what the tensor cores have yet to read.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from kernels import constants
from kernels.triton import tiles
from kernels.triton.activations import rate, softplus
from kernels.triton.bfloat16 import product_of_parts, tf32_parts
from kernels.triton.tiles import STREAM_PART, Tile

EPSILON = tl.constexpr(constants.EPSILON)


class Stream(NamedTuple):
    """The residual stream of T tokens, as the launches hand it on.

    Attributes:
        u: (T, D) in bfloat16 or float32, contiguous.
        squares: float32 (T, parts), contiguous: the sums of the squares of each row of u, `STREAM_PART` columns each.
    """

    u: Tensor
    squares: Tensor

    @classmethod
    def empty(cls, T: int, D: int, dtype: torch.dtype, device: torch.device) -> "Stream":
        """Memory for one."""
        squares = torch.empty(T, triton.cdiv(D, STREAM_PART.value), dtype=torch.float32, device=device)
        return cls(torch.empty(T, D, dtype=dtype, device=device), squares)


@triton.jit
def product(rows, inside, columns, a, matrix, K: tl.constexpr, DEPTH: tl.constexpr):
    """Rows of a (T, K) times rows of a matrix as `laid_out` makes it, in float32."""
    PARTS: tl.constexpr = 2 if a.dtype.element_ty == tl.float32 else 1
    PADDED: tl.constexpr = (K + DEPTH - 1) // DEPTH * DEPTH
    depth = tl.arange(0, DEPTH)
    at_a = a + rows[:, None] * K + depth[None, :]
    at_matrix = matrix + columns[None, :] * (PARTS * PADDED) + depth[:, None]
    out = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for k in range(0, K, DEPTH):
        mask = inside[:, None] if K == PADDED else inside[:, None] & (depth < K - k)[None, :]
        rows_of_a = tl.load(at_a + k, mask, 0.0)
        if PARTS == 1:
            out = tl.dot(rows_of_a, tl.load(at_matrix + k), out)
        else:
            large, small = tf32_parts(rows_of_a)
            out += product_of_parts(large, small, tl.load(at_matrix + k), tl.load(at_matrix + PADDED + k))
    return out


@triton.jit
def norm_factors(squares, rows, inside, D: tl.constexpr):
    """What rows of the residual stream are multiplied with to have a root mean square of 1, (rows,)."""
    PARTS: tl.constexpr = (D + STREAM_PART - 1) // STREAM_PART
    total = tl.zeros((rows.shape[0],), tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(squares + rows * PARTS + part, inside, 0.0)
    return tl.rsqrt(total / D + EPSILON)


@triton.jit
def store_stream(u, squares, rows, inside, first_column, values, D: tl.constexpr):
    """Columns of the residual stream, from a multiple of STREAM_PART on, with their squares; values beyond D are 0."""
    ROWS: tl.constexpr = values.shape[0]
    COLUMNS: tl.constexpr = values.shape[1]
    PARTS: tl.constexpr = (D + STREAM_PART - 1) // STREAM_PART
    columns = first_column + tl.arange(0, COLUMNS)
    stored = values.to(u.dtype.element_ty)
    tl.store(u + rows[:, None] * D + columns[None, :], stored, inside[:, None] & (columns < D)[None, :])
    # The squares of what readers will find, which is rounded.
    wide = stored.to(tl.float32)
    sums = tl.sum(tl.reshape(wide * wide, (ROWS, COLUMNS // STREAM_PART, STREAM_PART)), 2)
    parts = first_column // STREAM_PART + tl.arange(0, COLUMNS // STREAM_PART)
    tl.store(squares + rows[:, None] * PARTS + parts[None, :], sums, inside[:, None] & (parts < PARTS)[None, :])


@triton.jit
def _store_groups(at, stride, rows, inside, columns, out, weights, GROUPS: tl.constexpr, N: tl.constexpr):
    """B and C, normalised in their groups of N columns, which are filled up to a power of two."""
    FILLED: tl.constexpr = triton.next_power_of_2(N)
    ROWS: tl.constexpr = out.shape[0]
    COLUMNS: tl.constexpr = out.shape[1]
    grouped = tl.reshape(out, (ROWS, COLUMNS // FILLED, FILLED))
    scales = tl.rsqrt(tl.sum(grouped * grouped, 2) / N + EPSILON)
    out = tl.reshape(grouped * scales[:, :, None], (ROWS, COLUMNS)) * tl.load(weights + columns)[None, :]
    group, member = columns // FILLED, columns % FILLED
    at += rows[:, None] * stride + (group * N + member)[None, :]
    tl.store(at, out.to(at.dtype.element_ty), inside[:, None] & ((group < GROUPS) & (member < N))[None, :])


@triton.jit
def _store_steps(steps, rows, inside, pairs, out, dt_bias, H: tl.constexpr, S: tl.constexpr):
    """Pairs of columns: (dt, A) of each head, then (trap or angle, nothing)."""
    ROWS: tl.constexpr = out.shape[0]
    COLUMNS: tl.constexpr = out.shape[1]
    first, second = tl.split(tl.reshape(out, (ROWS, COLUMNS // 2, 2)))
    of_head = pairs < H
    dt = softplus(first + tl.load(dt_bias + pairs, of_head, 0.0)[None, :])
    forgets = rate(second)
    at = steps + rows[:, None] * (3 * H + S)
    place = tl.where(of_head, pairs, pairs + H)  # after the columns of dt come those of A dt
    tl.store(at + place[None, :], tl.where(of_head[None, :], dt, first), inside[:, None] & (pairs < 2 * H + S)[None, :])
    tl.store(at + (H + pairs)[None, :], -forgets * dt, inside[:, None] & of_head[None, :])


@triton.jit(do_not_specialize=["n_rows"])
def _in_projection(
    u, squares, matrix, group_weights, dt_bias, projected, steps, n_rows,
    D: tl.constexpr, INNER: tl.constexpr, GROUPS: tl.constexpr, N: tl.constexpr, H: tl.constexpr, S: tl.constexpr,
    PLAIN_TILES: tl.constexpr, GROUP_TILES: tl.constexpr, STEP_TILES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile. The tiles of the same rows run together, so that their rows are read from memory once."""
    TILES: tl.constexpr = PLAIN_TILES + GROUP_TILES + STEP_TILES
    WIDTH: tl.constexpr = 2 * INNER + GROUPS * N
    i_column = tl.program_id(0) % TILES
    first_row = (tl.program_id(0) // TILES).to(tl.int64) * ROWS
    u += first_row * D
    squares += first_row * ((D + STREAM_PART - 1) // STREAM_PART)
    projected += first_row * WIDTH
    steps += first_row * (3 * H + S)
    rows = tl.arange(0, ROWS)
    inside = rows < n_rows - first_row
    columns = i_column * COLUMNS + tl.arange(0, COLUMNS)
    out = product(rows, inside, columns, u, matrix, D, DEPTH) * norm_factors(squares, rows, inside, D)[:, None]

    if i_column < PLAIN_TILES:
        at = projected + rows[:, None] * WIDTH + columns[None, :]
        tl.store(at, out.to(projected.dtype.element_ty), inside[:, None] & (columns < 2 * INNER)[None, :])
    elif i_column < PLAIN_TILES + GROUP_TILES:
        columns -= PLAIN_TILES * COLUMNS
        _store_groups(projected + 2 * INNER, WIDTH, rows, inside, columns, out, group_weights, GROUPS, N)
    else:
        pairs = (i_column - PLAIN_TILES - GROUP_TILES) * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
        _store_steps(steps, rows, inside, pairs, out, dt_bias, H, S)


@triton.jit(do_not_specialize=["n_rows"])
def _out_projection(
    y, matrix, u, squares, n_rows,
    INNER: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile of the residual stream, to which it adds.

    The last rows come first: those of y are still in the cache, as the stream's first will be for the next layer.
    """
    TILES: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    first_row = (tile // TILES).to(tl.int64) * ROWS
    y += first_row * INNER
    u += first_row * D
    squares += first_row * ((D + STREAM_PART - 1) // STREAM_PART)
    rows = tl.arange(0, ROWS)
    inside = rows < n_rows - first_row
    first_column = tile % TILES * COLUMNS
    columns = first_column + tl.arange(0, COLUMNS)
    out = product(rows, inside, columns, y, matrix, INNER, DEPTH)
    mask = inside[:, None] & (columns < D)[None, :]
    out += tl.load(u + rows[:, None] * D + columns[None, :], mask, 0.0).to(tl.float32)
    store_stream(u, squares, rows, inside, first_column, out, D)


@dataclass(frozen=True)
class InProjection:
    """RMSNorm, in_proj, the norms of B and C and the activations of the steps, ready to run.

    Attributes:
        matrix: rows are output columns as `_in_projection` takes them, sections filled up with zeros to whole tiles.
        group_weights: float32, of the columns of the section of B and C.
        dt_bias: float32 (H,).
        d_model: D.
        inner: H * P.
        groups: 2 * R.
        d_state: N.
        n_angles: S.
        tiles: column tiles of z and x, of B and C, and of the steps.
        tile: how the product is cut.
    """

    matrix: Tensor
    group_weights: Tensor
    dt_bias: Tensor
    d_model: int
    inner: int
    groups: int
    d_state: int
    n_angles: int
    tiles: tuple[int, ...]
    tile: Tile

    @classmethod
    def of(
        cls,
        weight: Tensor,
        norm_weight: Tensor,
        dt_bias: Tensor,
        B_norm: Tensor,
        C_norm: Tensor,
        *,
        inner: int,
        rank: int,
        dtype: torch.dtype,
        tile: Tile | None = None,
    ) -> "InProjection":
        """Lay copies of the weights out.

        Args:
            weight: in_proj's (2 * H * P + 2 * R * N + 3 * H + S, D), rows z, x, B, C, dt, A, trap, angle.
            norm_weight: (D,) of the norm before it.
            dt_bias: (H,).
            B_norm: (N,).
            C_norm: (N,).
            inner: H * P.
            rank: R.
            dtype: of the products and of u, bfloat16 or float32.
            tile: other than the usual one.

        Raises:
            ValueError: a group of N columns does not fit a tile.
        """
        tile = tile or tiles.IN_PROJECTION[dtype]
        H, N, R = dt_bias.numel(), B_norm.numel(), rank
        filled = triton.next_power_of_2(N)
        if filled > tile.columns:
            raise ValueError(f"d_state is {N}; these kernels take at most {tile.columns}")
        plain, groups, heads, pairs = torch.split(
            torch.arange(weight.shape[0], device=weight.device),
            [2 * inner, 2 * R * N, 2 * H, weight.shape[0] - 2 * inner - 2 * R * N - 2 * H],
        )
        nothing = torch.full_like(pairs, -1)
        unfilled = (
            plain,
            functional.pad(groups.view(2 * R, N), (0, filled - N), value=-1).flatten(),
            torch.stack((torch.cat((heads[:H], pairs)), torch.cat((heads[H:], nothing))), 1).flatten(),
        )
        sections = [functional.pad(section, (0, -len(section) % tile.columns), value=-1) for section in unfilled]
        sources = torch.cat(sections)
        matrix = (weight.float() * norm_weight.float())[sources] * (sources >= 0)[:, None]
        norms = torch.stack((B_norm.float(), C_norm.float())).repeat_interleave(R, 0)
        norms = functional.pad(norms, (0, filled - N)).flatten()
        return cls(
            matrix=laid_out(matrix, tile.depth, dtype),
            group_weights=functional.pad(norms, (0, -len(norms) % tile.columns)),
            dt_bias=dt_bias.float().clone(),
            d_model=weight.shape[1],
            inner=inner,
            groups=2 * R,
            d_state=N,
            n_angles=len(pairs) - H,
            tiles=tuple(len(section) // tile.columns for section in sections),
            tile=tile,
        )

    def __call__(self, stream: Stream, projected: Tensor, steps: Tensor) -> None:
        """Project rows.

        Args:
            stream: of D columns.
            projected: (T, 2 * H * P + 2 * R * N), gets z, x, and B and C normalised; contiguous.
            steps: float32 (T, 3 * H + S), gets dt, A dt, trap and angle; contiguous.
        """
        T, tile = stream.u.shape[0], self.tile
        if T == 0:
            return
        _in_projection[(triton.cdiv(T, tile.rows) * sum(self.tiles),)](
            *stream, self.matrix, self.group_weights, self.dt_bias, projected, steps, T,
            D=self.d_model, INNER=self.inner, GROUPS=self.groups, N=self.d_state, H=self.dt_bias.numel(),
            S=self.n_angles, PLAIN_TILES=self.tiles[0], GROUP_TILES=self.tiles[1], STEP_TILES=self.tiles[2],
            **tile.launch,
        )  # fmt: skip


@dataclass(frozen=True)
class OutProjection:
    """out_proj added to the residual stream, ready to run.

    Attributes:
        matrix: out_proj's weight, filled up with zeros to whole tiles.
        inner: H * P.
        tile: how the product is cut.
    """

    matrix: Tensor
    inner: int
    tile: Tile

    @classmethod
    def of(cls, weight: Tensor, *, dtype: torch.dtype, tile: Tile | None = None) -> "OutProjection":
        """Lay a copy of the weight (D, H * P) out, for products in bfloat16 or float32."""
        tile = tile or tiles.OUT_PROJECTION[dtype]
        matrix = functional.pad(weight.float(), (0, 0, 0, -weight.shape[0] % tile.columns))
        return cls(laid_out(matrix, tile.depth, dtype), weight.shape[1], tile)

    def __call__(self, y: Tensor, stream: Stream) -> None:
        """Add the products of the rows of y (T, H * P), contiguous, to the stream."""
        (T, D), tile = stream.u.shape, self.tile
        if T == 0:
            return
        _out_projection[(triton.cdiv(T, tile.rows) * triton.cdiv(D, tile.columns),)](
            y, self.matrix, *stream, T,
            INNER=self.inner, D=D, **tile.launch,
        )  # fmt: skip


def laid_out(matrix: Tensor, depth: int, dtype: torch.dtype) -> Tensor:
    """Rows of float32 as `product` takes them, filled up with zeros to whole depths: of float32 both tf32 parts."""
    filled = functional.pad(matrix, (0, -matrix.shape[1] % depth)).contiguous()
    if dtype != torch.float32:
        return filled.to(dtype)
    large = (filled.view(torch.int32) & -8192).view(torch.float32)
    return torch.stack((large, filled - large), 1)
