"""Mamba-3 MIMO on packed sequences."""

from kernels.arguments import Backend
from kernels.mamba3 import mamba3_mimo
from kernels.mixer import mamba3_mixer
from kernels.packing import Packing
from kernels.state import Mamba3State
from kernels.step import mamba3_mimo_step

__all__ = ["Backend", "Mamba3State", "Packing", "mamba3_mimo", "mamba3_mimo_step", "mamba3_mixer"]
