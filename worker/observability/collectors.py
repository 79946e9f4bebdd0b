"""What the Prometheus client has no metric for: many observations at once, and numbers that come together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Protocol

import numpy as np
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Delays(Collector):
    """A histogram that takes thousands of delays in one go; those below 0, of clocks that disagree, count as 0.

    Args:
        name: of the metric.
        text: its help.
        bounds: upper bounds of the buckets in seconds, increasing, without infinity.
    """

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name, self._text, self._bounds = name, text, bounds
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0
        self._lock = Lock()

    def observe(self, seconds: Sequence[float]) -> None:
        """So many delays, each in seconds."""
        if not seconds:
            return
        delays = np.maximum(seconds, 0.0)
        counts = np.bincount(np.searchsorted(self._bounds, delays), minlength=len(self._counts))
        with self._lock:
            self._counts += counts
            self._sum += float(delays.sum())

    def describe(self) -> Iterator[Metric]:
        """By its names it can be asked for alone."""
        yield HistogramMetricFamily(self._name, self._text)

    def collect(self) -> Iterator[Metric]:
        """The histogram as it is now."""
        with self._lock:
            counts, total = np.cumsum(self._counts).tolist(), self._sum
        names = map(floatToGoString, (*self._bounds, float("inf")))
        yield HistogramMetricFamily(self._name, self._text, buckets=[*zip(names, counts, strict=True)], sum_value=total)


class GpuUsage(Protocol):
    """How a GPU is used at a moment."""

    @property
    def busy_s(self) -> float:
        """Seconds so far with a forward pass of this process under way."""

    @property
    def memory_bytes(self) -> int:
        """The device's memory."""

    @property
    def free_bytes(self) -> int:
        """What nobody has taken of it."""

    @property
    def reserved_bytes(self) -> int:
        """What this process has taken of it for tensors, in use or not."""


class Gpu(Collector):
    """The use of a GPU, as of the latest `look`.

    The thread that scores looks, not the one that reads the metrics: while CUDA captures a graph, a call from another
    thread may spoil it.
    """

    def __init__(self, usage: Callable[[], GpuUsage | None]) -> None:
        self._usage = usage
        self.look()

    def look(self) -> None:
        """Ask the device."""
        self._latest = self._usage()

    def collect(self) -> Iterator[Metric]:
        """What the device said; nothing where there is none."""
        now = self._latest
        if now is None:
            return
        yield CounterMetricFamily(
            "logmamba_gpu_busy_seconds", "Time with a forward pass under way on the GPU", value=now.busy_s
        )
        for name, text, value in (
            ("memory", "Memory of the GPU", now.memory_bytes),
            ("memory_free", "Memory of the GPU that no process has taken", now.free_bytes),
            ("memory_reserved", "Memory of the GPU that the worker has taken for tensors", now.reserved_bytes),
        ):
            yield GaugeMetricFamily(f"logmamba_gpu_{name}_bytes", text, value=value)
