"""Sizes of every kernel's tiles, the most programs that share its work, and how it is compiled.

A function gives what a kernel is launched with beyond its arguments and the layer's sizes. Tiles follow from the sizes
and the dtype alone: did they follow from the batch, so would the order of sums, and with it a sequence's bits. Figures
behind the choices are in benchmarks/results/kernels.md.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.triton import INTERPRETED

Launch = dict[str, int]
"""Keyword arguments of a kernel: sizes in capitals, options of the compiler in lower case."""

# Which sums are fused with the product before them, and so their last bits, would depend on what else a launch does.
_NO_FUSION = {"enable_fp_fusion": False}

# Of an H100. Where each program adds up its own sums, there are as many programs as run at a time: none waits for
# others to end, and there are no more sums than need be.
_MULTIPROCESSORS = 132


def _at_once(count: int) -> int:
    """How many numbers a program takes: interpreted 8 times `count`, for that saves operations, not numbers."""
    return 8 * count if INTERPRETED else count


@dataclass(frozen=True)
class Blocks:
    """Sizes of the tiles for an operation of rank R and state N x P, powers of two where Triton wants them.

    Attributes:
        R: rank.
        L: tokens of a chunk.
        HALF: pairs of columns, at least N / 2.
        BP: rows of the state, at least P.
    """

    R: int
    L: int
    HALF: int
    BP: int

    @classmethod
    def of(cls, R: int, N: int, P: int) -> "Blocks":
        """At least 32 columns and 64 rows of the state: what Triton 3.6 makes of smaller tiles computes amiss on sm_90.

        With 16 of either float32 products read memory that is not theirs; with 32 rows bfloat16 chunks read a wrong
        state of the chunk before.
        """
        return cls(
            R=R, L=max(16, 64 // R), HALF=max(16, triton.next_power_of_2(N // 2)), BP=max(64, triton.next_power_of_2(P))
        )

    @property
    def are_small(self) -> bool:
        """Whether no tile has more than 64 x 64 numbers, 32 registers of each thread where there are four warps."""
        widest = max(self.R * self.L, 2 * self.HALF)
        return widest * max(widest, self.BP) <= 64 * 64


def segments(dtype: torch.dtype, blocks: Blocks, *, long: bool, states_only: bool, keep: bool) -> Launch:
    """The operation forward.

    Few registers let more programs share a multiprocessor: three of those that have long segments or keep what
    gradients need, four of others.
    """
    options = {"num_warps": 4, "num_stages": 1, **_NO_FUSION}
    if dtype == torch.bfloat16 and blocks.are_small:
        options["maxnreg"] = 128 if states_only or not (long or keep) else 168
    return options


def first_tokens(dtype: torch.dtype) -> Launch:
    """The operation forward of tokens that need no state, of SEGMENTS segments a program.

    As many registers as let six programs share a multiprocessor, in float32 four: there fewer spill.
    """
    return {"SEGMENTS": 4, "num_warps": 2, "maxnreg": 168 if dtype == torch.bfloat16 else 255, **_NO_FUSION}


def segments_backward(dtype: torch.dtype, blocks: Blocks) -> Launch:
    """The operation backward.

    Fewer registers would let more programs share a multiprocessor, but what does not fit them costs more.
    """
    return {"num_warps": 4 if dtype == torch.bfloat16 and blocks.are_small else 8, "num_stages": 1}


def timeline(H: int, S: int, L: int) -> Launch:
    """Decays and rotations, of 32 tokens at once."""
    return {"CHUNKS": max(1, 32 // L), **timeline_backward(H, S)}


def timeline_backward(H: int, S: int) -> Launch:
    """Their gradients, of a chunk at once."""
    return {
        "HEADS": triton.next_power_of_2(H),
        "ANGLES": triton.next_power_of_2(max(S, 1)),
        "num_warps": 4,
    }


def scan() -> Launch:
    """PAIRS pairs of the state's columns a program, of which blocks have a multiple."""
    return {"PAIRS": _at_once(2), "num_warps": 1, "num_stages": 1, **_NO_FUSION}


def scan_backward() -> Launch:
    """PART of the state's rows a program, of which blocks have a multiple."""
    return {"PART": 16, "num_warps": 1, "num_stages": 1}


GATES_PROGRAMS = 12 * _MULTIPROCESSORS


def gates_backward(R: int, P: int, dtype: torch.dtype) -> Launch:
    """BT tokens of a head at once, 512 numbers; fewer registers for as many programs as GATES_PROGRAMS says."""
    BP = max(32, triton.next_power_of_2(P))
    registers = {"maxnreg": 80} if dtype == torch.bfloat16 and R <= 4 else {}
    return {"BT": max(1, _at_once(512) // (BP * R)), "BP": BP, "num_warps": 2, **registers}


VALUES_PROGRAMS = 2 * 4 * _MULTIPROCESSORS


def values_backward(P: int) -> Launch:
    """BT tokens of a head at once, 1,024 numbers of x."""
    BP = max(32, triton.next_power_of_2(P))
    return {"BT": 1024 // BP, "BP": BP, "num_warps": 4}


QK_PROGRAMS = 8 * _MULTIPROCESSORS


def qk_backward(H: int, R: int, N: int, S: int) -> Launch:
    """BT tokens of HEADS heads at once: 128 numbers of the projection, 1,024 of the heads together.

    One warp, which sums over ranks and pairs by itself; its threads have a few numbers of each head.
    """
    numbers = R * triton.next_power_of_2(N // 2)
    BT = max(1, _at_once(128) // numbers)
    return {
        "BT": BT,
        "HEADS": min(triton.next_power_of_2(H), max(1, _at_once(1024) // (BT * numbers))),
        "TURNS": triton.next_power_of_2(max(S, 1)),
        "RESTS": triton.next_power_of_2(max(N // 2 - S, 1)),
        "num_warps": 1,
    }


def step(R: int, N: int, P: int) -> Launch:
    """BLOCK_P rows of a head's state at once, 1,024 numbers.

    The loop over them is written out PARTS times, up to 16 for one rank; more would take minutes to compile.
    """
    BLOCK_N, ALL_P = triton.next_power_of_2(N // 2), triton.next_power_of_2(P)
    BLOCK_P = min(ALL_P, max(1, 1024 // (2 * BLOCK_N)))
    return {
        "BLOCK_P": BLOCK_P,
        "BLOCK_N": BLOCK_N,
        "ALL_P": ALL_P,
        "PARTS": min(ALL_P // BLOCK_P, max(1, 16 // R)),
        "num_warps": 2,
    }


MIXER_PROGRAMS = 8 * _MULTIPROCESSORS


def mixer(H: int, R: int, N: int) -> Launch:
    """TOKENS tokens at once, 2,048 numbers of B but no more than 32 tokens."""
    filled = triton.next_power_of_2(N)
    return {
        "TOKENS": max(1, min(32, 2048 // (R * filled))),
        "FILLED": filled,
        "HEADS": triton.next_power_of_2(H),
        "num_warps": 4,
    }


# Columns of the residual stream whose squares are summed up together; tiles that write it have whole parts.
STREAM_PART = tl.constexpr(128)


class Tile(NamedTuple):
    """How a product of inference is cut.

    Attributes:
        rows: tokens of a program.
        columns: output columns of a program.
        depth: columns of the input it takes at a time.
        warps: of a program.
        stages: how many depths are in flight.
        registers: most of a thread; with 128, two programs of eight warps run side by side on a multiprocessor.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    registers: int

    @property
    def launch(self) -> Launch:
        """As keyword arguments of a kernel."""
        return {
            "ROWS": self.rows,
            "COLUMNS": self.columns,
            "DEPTH": self.depth,
            "num_warps": self.warps,
            "num_stages": self.stages,
            "maxnreg": self.registers,
        }


IN_PROJECTION = {torch.bfloat16: Tile(128, 128, 64, 8, 3, 128), torch.float32: Tile(128, 128, 32, 8, 3, 255)}
OUT_PROJECTION = {torch.bfloat16: Tile(128, 128, 64, 8, 3, 128), torch.float32: Tile(128, 128, 32, 8, 3, 255)}
HEADS = {torch.bfloat16: Tile(64, 128, 64, 4, 3, 255), torch.float32: Tile(64, 128, 32, 8, 3, 255)}


def embedding() -> Launch:
    """ROWS tokens a program, of one part of the residual stream."""
    return {"ROWS": 16, "num_warps": 4}
