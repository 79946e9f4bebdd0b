"""Mamba-3 MIMO on packed sequences."""

from kernels.mamba3 import Backend, mamba3_mimo
from kernels.state import Mamba3State

__all__ = ["Backend", "Mamba3State", "mamba3_mimo"]
