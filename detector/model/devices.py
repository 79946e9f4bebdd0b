"""What a model computes on, in which precision, and how much at once."""

from typing import Literal

import torch

from detector.errors import DeviceError

Precision = Literal["auto", "float32", "bfloat16"]

BATCH_TOKENS = 65536
# On a CPU larger passes only leave its caches: 65,536 tokens at once took 1.5 GB and three times as long a token.
CPU_BATCH_TOKENS = 4096


def resolve_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        DeviceError: the name is not allowed or there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (":" in name and not number.isdecimal())):
        raise DeviceError(f"device {name!r} is unknown; allowed: auto, cpu, cuda, cuda:N")
    if kind == "cuda":
        count = cuda_devices()
        if int(number or 0) >= count:
            raise DeviceError(f"device {name!r} is not here: PyTorch finds {count} CUDA devices")
    return torch.device(name)


def cuda_devices() -> int:
    """How many CUDA devices PyTorch finds here."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def pass_tokens(device: torch.device, most: int = BATCH_TOKENS) -> int:
    """Most tokens that one forward pass should have on the device, no more than asked for."""
    return min(most, CPU_BATCH_TOKENS) if device.type == "cpu" else most


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 without emulating it."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of that name; ``auto`` is float32.

    Raises:
        DeviceError: the name is not allowed, or the device does not compute in it.
    """
    if precision in ("auto", "float32"):
        return torch.float32
    if precision != "bfloat16":
        raise DeviceError(f"precision {precision!r} is unknown; allowed: auto, float32, bfloat16")
    if not has_bfloat16(device):
        raise DeviceError(f"precision bfloat16 is not available on {torch.cuda.get_device_name(device)}")
    return torch.bfloat16
