"""A Quix Streams program that does a worker's work as far as that library goes: `benchmarks.quix_streams` runs it.

Raw lines in; a template by Drain3; a session by the record's key; a record for each session out, exactly once. It runs
in an environment of its own and takes one JSON document as its argument; it prints one of figures.
"""

import hashlib
import json
import logging
import math
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from drain3 import TemplateMiner
from drain3.template_miner_config import TemplateMinerConfig
from quixstreams import Application, State  # type: ignore[import-not-found]
from quixstreams.dataframe.windows import Collect  # type: ignore[import-not-found]

_HEADER_WORDS = 5  # date, time, thread, level and component, which are no part of a message
_TOP_EVENTS = 5


@lru_cache(4_096)
def milliseconds(stamp: bytes) -> int:
    """Milliseconds since 1970 UTC of a line's first 13 bytes."""
    return int(datetime.strptime(stamp.decode(), "%y%m%d %H%M%S").replace(tzinfo=UTC).timestamp() * 1000)


def line_time(value: Any, _headers: Any, timestamp: float, _kind: Any) -> int:
    """The time of a line, as Quix Streams asks for it."""
    return milliseconds(value[:13]) if value else int(timestamp)


class Scores:
    """A stand-in for the model: how rare the templates of a session are, by what was seen so far."""

    def __init__(self) -> None:
        logging.getLogger("drain3").setLevel(logging.ERROR)
        self._miner = TemplateMiner(config=TemplateMinerConfig())
        self._seen: Counter[int] = Counter()

    def event(self, value: bytes) -> dict[str, int]:
        """A line as an event."""
        words = value.decode().split(" ", _HEADER_WORDS)
        template = self._miner.add_log_message(words[-1])["cluster_id"]
        self._seen[template] += 1
        return {"template": template, "time": milliseconds(value[:13])}

    def record(self, key: bytes, events: list[dict[str, int]]) -> dict[str, Any]:
        """A record with what one of the worker has, but for offsets, which Quix Streams does not hand on."""
        total = self._seen.total()
        surprises = [math.log(total / self._seen[each["template"]]) for each in events]
        top = sorted(range(len(events)), key=surprises.__getitem__, reverse=True)[:_TOP_EVENTS]
        session = key.decode()
        mean = math.fsum(surprises) / len(surprises)
        clusters = self._miner.drain.id_to_cluster
        return {
            "schema": "stand-in/1",
            "id": hashlib.sha256(f"{session}\n{events[0]['time']}".encode()).hexdigest()[:32],
            "session": session,
            "kind": "final",
            "score": round(1 - math.exp(-mean / 10), 6),
            "severity": "normal",
            "surprise": round(mean, 6),
            "events": len(events),
            "first_event_time": events[0]["time"],
            "last_event_time": events[-1]["time"],
            "top_events": [
                {
                    "event": at,
                    "template": clusters[events[at]["template"]].get_template(),
                    "surprise": round(surprises[at], 6),
                }
                for at in top
            ],
        }


def main() -> None:
    asked = json.loads(sys.argv[1])
    counts = {"lines": 0, "records": 0}
    times: list[float] = []

    def processed(_topic: str, _partition: int, _offset: int) -> None:
        if not times:
            times.append(time.perf_counter())
        counts["lines"] += 1

    application = Application(
        broker_address=asked["bootstrap"],
        consumer_group=asked["group"],
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        state_dir=asked["state"],
        on_message_processed=processed,
        loglevel="WARNING",
    )
    source = application.topic(
        asked["input"], value_deserializer="bytes", key_deserializer="bytes", timestamp_extractor=line_time
    )
    target = application.topic(asked["output"], value_serializer="json", key_serializer="bytes")
    scores = Scores()

    def told(found: Any, key: Any, _time: Any, _headers: Any) -> Any:
        counts["records"] += 1
        return scores.record(key, found)

    def collected(event: dict[str, int], state: State) -> Any:
        """The session that the event ends, if it does: there is no clock but that of the key's own lines."""
        events: list[dict[str, int]] = state.get("events", [])
        ended = None
        if events and event["time"] - events[-1]["time"] > asked["gap_ms"]:
            ended, events = events, []
        state.set("events", [*events, event])
        return ended

    frame = application.dataframe(source).apply(scores.event)
    if asked["sessions"] == "windows":
        frame = frame.session_window(asked["gap_ms"]).agg(events=Collect()).final(closing_strategy="partition")
        frame = frame.apply(lambda window: window["events"])
    else:
        frame = frame.apply(collected, stateful=True).filter(lambda events: events is not None)
    frame.apply(told, metadata=True).to_topic(target)
    application.run(count=asked["lines"])
    # The last commit is in the time.
    print(json.dumps({**counts, "seconds": time.perf_counter() - times[0]}))


if __name__ == "__main__":
    main()
