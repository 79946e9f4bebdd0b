"""Mamba-3 MIMO on CUDA devices, in Triton."""
