"""Every metric that a worker can show, as its registry describes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from detector.model.inference import GpuUsage
from tests.worker.small_worker import SmallWorker, memory_broker
from tests.worker.small_worker import settings as small_settings
from tests.worker.statuses import STATUS
from worker.observability.processes import JoinedProcesses
from worker.observability.status import DriftStatus, MovedTemplate

# Labels whose values are the application's own.
_OPEN = {"topic", "partition", "application", "worker", "checkpoint", "vocabulary"}
_OPEN |= {"template", "version", "confluent_kafka", "torch"}
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


class Described(NamedTuple):
    """A metric as one who reads /metrics knows it; for each label its values, none where those are open."""

    name: str
    kind: str
    labels: Mapping[str, tuple[str, ...]]
    text: str

    @property
    def series(self) -> set[str]:
        """The names that a query may use."""
        return {self.name.removesuffix("_total") + suffix for suffix in _SUFFIXES[self.kind]}

    def row(self) -> str:
        """Its row in the manual."""
        labels = "; ".join(
            f"`{name}`: {', '.join(values)}" if values else f"`{name}`" for name, values in self.labels.items()
        )
        return f"| `{self.name}` | {self.kind} | {labels} | {self.text} |"


def every_metric() -> list[Described]:
    """Those of a worker that scores on a GPU and has a partition, in the order of /metrics, then of its processes."""
    of_processes = JoinedProcesses(STATUS, ["w0-0"]).registry.collect()
    small = SmallWorker(memory_broker(), small_settings())
    metrics = small.worker._metrics
    metrics.watch_score_cache(lambda: 0, lambda: 0)
    metrics.watch_batches_split(lambda: 0)
    metrics.watch_gpu(lambda: GpuUsage(0.0, 0, 0, 0))
    found: list[Described] = []

    drift = DriftStatus(
        "raw",
        "ok",
        divergence=dict.fromkeys(("tokens", "lengths", "pauses", "scores"), 0.0),
        moved=(MovedTemplate("a", 0, 1),),
    )

    def look() -> None:
        metrics.drift([drift])
        for family in [*metrics.registry.collect(), *of_processes]:
            if not family.name.startswith("logmamba_"):
                continue
            labels: dict[str, dict[str, None]] = {}
            for each in family.samples:
                for name, value in each.labels.items():
                    if name != "le":
                        labels.setdefault(name, {}).update({} if name in _OPEN else {value: None})
            values = {name: tuple(found) for name, found in labels.items()}
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found.append(Described(name, family.type, values, family.documentation))

    small.run([None, look])
    return found


def series_named(text: str) -> set[str]:
    """The series of a worker that a text names."""
    return set(re.findall(r"\blogmamba_[a-z0-9_]+\b", text))
