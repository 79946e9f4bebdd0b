"""Mamba-3 MIMO on CUDA devices, in Triton."""

import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
"""Whether Triton interprets these kernels, which it settles for each when its module is imported."""
