"""What the client library's statistics say of the brokers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

_UP = frozenset({"UP", "UPDATE"})
_NOT_ASKED_FOR = frozenset({"INIT"})  # a connection is made when something is needed of that broker
_SILENT_MS = 5_000


class BrokerStates:
    """Tells how many of the brokers that a client knows it is connected to (a client's `stats_cb`).

    Args:
        tell: called with how many are up and how many down. Neither are those that nothing is wanted of, and those
            that the cluster lists no longer: all of them after some seconds without any broker. A broker that hangs
            counts as down: its connection stays, but what it was asked for some seconds ago is not answered.
        fetch_wait_ms: how long a broker that is well may take, since it waits for new records.
    """

    def __init__(self, tell: Callable[[int, int], None], fetch_wait_ms: int) -> None:
        self._tell = tell
        self._silent_us = 1000 * (fetch_wait_ms + _SILENT_MS)

    def __call__(self, statistics: str) -> None:
        """The client has new statistics, as JSON."""
        # Those without a number are addresses that were only used to find the others, or stand for one of these.
        brokers = [each for each in orjson.loads(statistics)["brokers"].values() if each["nodeid"] >= 0]
        needed = [each for each in brokers if each["source"] != "logical" and each["state"] not in _NOT_ASKED_FOR]
        up = sum(map(self._answers, needed))
        self._tell(up, len(needed) - up)

    def _answers(self, broker: Mapping[str, Any]) -> bool:
        hangs = broker["waitresp_cnt"] > 0 and broker["rxidle"] > self._silent_us
        return broker["state"] in _UP and not hangs
