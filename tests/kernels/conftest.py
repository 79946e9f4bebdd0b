"""What the tests of the kernels run under: a device, and memory that shows what nobody has written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import pytest
import torch

from tests.kernels.interpreter import interpret_kernels
from tests.kernels.poison import poisoned_memory

interpret_kernels()


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where Triton's kernels run: on the GPU, or interpreted on the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Every float tensor that is created without values is full of NaN."""
    with poisoned_memory():
        yield


@pytest.fixture
def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is launched fails the test."""
    from triton.runtime.interpreter import GridExecutor
    from triton.runtime.jit import JITFunction

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(GridExecutor, "__call__", refuse)
    monkeypatch.setattr(JITFunction, "run", refuse)
