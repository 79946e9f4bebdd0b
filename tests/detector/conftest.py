"""Some of the detector's tests run Triton's kernels, on a GPU where there is one."""

from tests.kernels.conftest import device, poisoned

__all__ = ["device", "poisoned"]
