"""Sizes of the kernels' tiles, and how they are compiled."""

from dataclasses import dataclass

import triton

from kernels.triton import INTERPRETED

# Which sums are fused with the product before them, and so their last bits, would depend on what else a launch does.
NO_FUSION = {"enable_fp_fusion": False}


def at_once(count: int) -> int:
    """How many numbers a program takes: interpreted 8 times `count`, for that saves operations, not numbers."""
    return 8 * count if INTERPRETED else count


@dataclass(frozen=True)
class Blocks:
    """Sizes of the tiles for an operation of rank R, state N x P and S angles, powers of two where Triton wants them.

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
    def tile(self) -> int:
        """Numbers of the largest tile."""
        widest = max(self.R * self.L, 2 * self.HALF)
        return widest * max(widest, self.BP)
