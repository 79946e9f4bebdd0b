"""What is told of the brokers, by the client library's statistics."""

import json

import pytest

from worker.kafka.statistics import BrokerStates


def broker(
    node: int, state: str, source: str = "learned", unanswered: int = 1, silent_s: float = 0.5
) -> dict[str, object]:
    told = {"waitresp_cnt": unanswered, "rxidle": int(silent_s * 1e6)}
    return {"nodeid": node, "state": state, "source": source, **told}


@pytest.mark.parametrize(
    ("brokers", "up", "down"),
    [
        ([broker(1, "UP"), broker(2, "UP"), broker(3, "UP")], 3, 0),
        ([broker(1, "UP"), broker(2, "TRY_CONNECT"), broker(3, "DOWN")], 1, 2),
        ([broker(1, "UP"), broker(2, "INIT")], 1, 0),
        ([broker(1, "UP"), broker(-1, "DOWN", "configured"), broker(1, "DOWN", "logical")], 1, 0),
        ([broker(1, "UP"), broker(2, "UP", silent_s=5.4), broker(3, "UP", silent_s=5.6)], 2, 1),
        ([broker(1, "UP", unanswered=0, silent_s=600)], 1, 0),
        ([], 0, 0),
    ],
    ids=[
        "all are up",
        "two are away",
        "one is not needed",
        "addresses and the group's coordinator",
        "one hangs",
        "one rests",
        "none is known",
    ],
)
def test_brokers_are_told_by_whether_the_client_reaches_them(
    brokers: list[dict[str, object]], up: int, down: int
) -> None:
    told = []
    BrokerStates(lambda *states: told.append(states), fetch_wait_ms=500)(
        json.dumps({"brokers": dict(enumerate(brokers))})
    )
    assert told == [(up, down)]
