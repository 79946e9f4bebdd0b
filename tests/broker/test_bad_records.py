"""Records that cannot be used, between good ones, on a real broker: kept with their reason, the rest unharmed."""

from __future__ import annotations

import urllib.request
from pathlib import Path

from tests.broker.harness import Application, Record, hdfs_lines, keyed_by_block
from tests.broker.kafka import KafkaBroker
from tests.shared import needs_shared

BLOCK = b"blk_42"
MEGABYTE_LINE = b"081109 203540 1 INFO dfs.X: " + BLOCK + b" " + b"x" * 1_000_000


@needs_shared
def test_bad_records_are_dead_lettered_or_cut_and_counted_and_the_rest_is_unharmed(
    broker: KafkaBroker, checkpoint: Path, tmp_path: Path
) -> None:
    good = keyed_by_block(hdfs_lines(400), 1)
    bad = [
        Record(b"081109 203532 9 INFO \xff\xfe " + BLOCK, b"k1"),
        Record(b"", b"k2"),
        Record(None, b"k3"),
        Record(b"081109 203532 9 INFO no block here", b"k4"),
        Record(b"no time " + BLOCK, b"k5"),
    ]
    alone = Application(broker.bootstrap, tmp_path, checkpoint)
    mixed = Application(broker.bootstrap, tmp_path, checkpoint, observability={"port": 0, "log_level": "info"})
    alone.produce(good)
    mixed.produce([*good[:100], *bad[:2], *good[100:250], *bad[2:], *good[250:], Record(MEGABYTE_LINE, BLOCK)])

    with alone.start() as worker:
        worker.wait_until(lambda: sum(finished(alone).values()) == len(good))
        assert worker.stop() == 0
    with mixed.start() as worker:
        worker.wait_until(lambda: sum(finished(mixed).values()) == len(good) + 1)
        metrics = urllib.request.urlopen(worker.address() + "/metrics", timeout=10).read().decode()
        assert worker.stop() == 0

    expected = finished(alone)
    found = finished(mixed)
    assert found.pop(BLOCK.decode()) == 1
    assert found == expected

    letters = {message.key(): message for message in mixed.dead_letters()}
    reasons = {key: dict(message.headers() or ())["logmamba-error-reason"] for key, message in letters.items()}
    assert reasons == {b"k1": b"not_utf8", b"k2": b"empty", b"k3": b"null", b"k4": b"no_key", b"k5": b"bad_timestamp"}
    assert [letters[record.key].value() for record in bad if record.value] == [r.value for r in bad if r.value]
    origin = dict(letters[b"k1"].headers() or ())
    assert origin["logmamba-error-topic"].decode() == mixed.input_topic
    assert (origin["logmamba-error-partition"], origin["logmamba-error-offset"]) == (b"0", b"100")

    for reason in ("not_utf8", "empty", "null", "no_key", "bad_timestamp"):
        assert f'logmamba_dead_letters_total{{reason="{reason}"}} 1.0' in metrics
    assert "logmamba_lines_cut_total 1.0" in metrics


def finished(application: Application) -> dict[str, int]:
    """Events of each session's final scores."""
    events: dict[str, int] = {}
    for record in application.scores():
        if record["kind"] == "final":
            events[record["session"]] = events.get(record["session"], 0) + record["events"]
    return events
