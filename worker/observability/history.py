"""The last hour of a worker, for the status page: a look at its metrics every few seconds, in a thread of its own."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from worker.observability.metrics import Observed
from worker.observability.repeated import repeated
from worker.observability.status import WorkerStatus

INTERVAL_S = 5.0
SPAN_S = 3600.0
_POINTS = 120  # of a series: as many as a small chart can show

_DELAY = "logmamba_end_to_end_seconds"
_READ = (
    *("logmamba_records_total", "logmamba_events_total", "logmamba_unknown_lines_total", "logmamba_scores_total"),
    *("logmamba_commit_failures_total", "logmamba_brokers", f"{_DELAY}_bucket"),
)


class _Look(NamedTuple):
    """What the metrics said at a moment; counts are since the start."""

    at: float  # monotonic seconds
    records: float
    events: float
    unknown: float
    alerts: float
    delays: npt.NDArray[np.float64]  # by upper bound, each with those before it
    scores: npt.NDArray[np.float64]
    failures: Mapping[str, float]
    lag: float  # NaN where it is not known
    lag_seconds: float


@dataclass(frozen=True, slots=True)
class Hour:
    """The last hour, or what there is of it. Series have as many values as `ago`, the oldest first, NaN for none.

    Attributes:
        span_s: how long it is, in seconds.
        ago: how many seconds ago each value of a series was.
        records: a second.
        alerts: a minute; score records from a warning on, early ones among them.
        lag: records, the most at a time.
        lag_seconds: likewise.
        delay, slow_delay: median and 95th percentile of the delays from cause to committed score, in seconds.
        unknown: share of the events that no template matches.
        all_delay, all_slow_delay, all_unknown: the same of the whole hour.
        scores: how many final scores there were in each bin of `detector.scoring.score_histogram`.
        failures: commits that failed, by cause; only those of which there are any.
        brokers: how many the client is connected to, and how many it fails to reach; as of the latest look.
    """

    span_s: float = 0.0
    ago: Sequence[float] = ()
    records: Sequence[float] = ()
    alerts: Sequence[float] = ()
    lag: Sequence[float] = ()
    lag_seconds: Sequence[float] = ()
    delay: Sequence[float] = ()
    slow_delay: Sequence[float] = ()
    unknown: Sequence[float] = ()
    all_delay: float = np.nan
    all_slow_delay: float = np.nan
    all_unknown: float = np.nan
    scores: Sequence[float] = ()
    failures: Mapping[str, int] = field(default_factory=dict)
    brokers: tuple[int, int] = (0, 0)


class History:
    """Looks at a worker's metrics and status; a look takes about a millisecond, an hour of them 400 KB.

    Args:
        metrics: of the worker.
        status: likewise.
        clock: monotonic seconds.
    """

    def __init__(
        self, metrics: Observed, status: Callable[[], WorkerStatus], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics, self._status, self._clock = metrics, status, clock
        self._registry = metrics.registry.restricted_registry(_READ)
        self._looks: deque[_Look] = deque(maxlen=int(SPAN_S / INTERVAL_S) + 1)
        self._bounds: tuple[float, ...] = ()
        self._brokers = 0, 0

    def look(self) -> None:
        """Once more."""
        sums, delays, failures, brokers = dict.fromkeys(_READ, 0.0), dict[float, float](), dict[str, float](), [0, 0]
        alerts = 0.0
        for family in self._registry.collect():
            for each in family.samples:
                if each.name not in sums:
                    continue
                sums[each.name] += each.value
                if each.name == f"{_DELAY}_bucket":
                    bound = float(each.labels["le"])
                    delays[bound] = delays.get(bound, 0.0) + each.value
                elif each.name == "logmamba_commit_failures_total":
                    cause = each.labels["cause"]
                    failures[cause] = failures.get(cause, 0.0) + each.value
                elif each.name == "logmamba_brokers":
                    down = each.labels["state"] == "down"
                    brokers[down] = max(brokers[down], int(each.value))  # processes have the same brokers
                elif each.name == "logmamba_scores_total" and each.labels["severity"] != "normal":
                    alerts += each.value
        partitions = self._status().partitions
        lags = [each.lag for each in partitions]
        seconds = [each.lag_seconds for each in partitions]
        self._bounds, self._brokers = tuple(delays), (brokers[0], brokers[1])
        self._looks.append(
            _Look(
                at=self._clock(),
                records=sums["logmamba_records_total"],
                events=sums["logmamba_events_total"],
                unknown=sums["logmamba_unknown_lines_total"],
                alerts=alerts,
                delays=np.array([*delays.values()]),
                scores=self._metrics.score_histogram,
                failures=failures,
                lag=float(sum(each for each in lags if each is not None)) if None not in lags else np.nan,
                lag_seconds=max((each for each in seconds if each is not None), default=np.nan),
            )
        )

    def hour(self) -> Hour:
        """What the looks of the last hour say together; without values before the second one."""
        looks = list(self._looks)
        if len(looks) < 2:
            return Hour(brokers=self._brokers)
        first, last = looks[0], looks[-1]
        step = -(-(len(looks) - 1) // _POINTS)
        # Counted from the end, so that only the oldest point has fewer looks.
        edges = [*range(len(looks) - 1, 0, -step), 0][::-1]
        steps = [(looks[start], looks[end], looks[start + 1 : end + 1]) for start, end in pairwise(edges)]
        now = self._clock()
        return Hour(
            span_s=now - first.at,
            ago=[now - end.at for _, end, _ in steps],
            records=[_ratio(end.records - start.records, end.at - start.at) for start, end, _ in steps],
            alerts=[_ratio(60 * (end.alerts - start.alerts), end.at - start.at) for start, end, _ in steps],
            lag=[max(each.lag for each in among) for _, _, among in steps],
            lag_seconds=[max(each.lag_seconds for each in among) for _, _, among in steps],
            delay=[self._delay(start, end, 0.5) for start, end, _ in steps],
            slow_delay=[self._delay(start, end, 0.95) for start, end, _ in steps],
            unknown=[_ratio(end.unknown - start.unknown, end.events - start.events) for start, end, _ in steps],
            all_delay=self._delay(first, last, 0.5),
            all_slow_delay=self._delay(first, last, 0.95),
            all_unknown=_ratio(last.unknown - first.unknown, last.events - first.events),
            scores=(last.scores - first.scores).tolist(),
            failures={
                cause: int(count - first.failures.get(cause, 0.0))
                for cause, count in last.failures.items()
                if count > first.failures.get(cause, 0.0)
            },
            brokers=self._brokers,
        )

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Look every `INTERVAL_S` within a `with` block."""
        self.look()
        with repeated(self.look, INTERVAL_S, "logmamba-history"):
            yield

    def _delay(self, start: _Look, end: _Look, share: float) -> float:
        return quantile(self._bounds, end.delays - start.delays, share)


def quantile(bounds: Sequence[float], counts: npt.NDArray[np.float64], share: float) -> float:
    """A quantile of a histogram, taken to be spread evenly within a bucket, as Prometheus does.

    Args:
        bounds: upper bounds of the buckets, increasing, the last one infinite; the first bucket begins at 0.
        counts: of each bucket together with those before it.
        share: in [0, 1].

    Returns:
        NaN where nothing was counted; of the last bucket, where it begins.
    """
    if not len(counts) or counts[-1] <= 0:
        return np.nan
    wanted = share * counts[-1]
    at = int(np.searchsorted(counts, wanted))
    low = bounds[at - 1] if at else 0.0
    if bounds[at] == np.inf:
        return low
    before = counts[at - 1] if at else 0.0
    return float(low + (bounds[at] - low) * (wanted - before) / max(counts[at] - before, 1e-9))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else np.nan
