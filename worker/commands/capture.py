"""`logmamba capture`: records of the input topics into a file that train, score, evaluate and explain read.

It reads beside every consumer group, commits nothing, and sees only what is committed.
"""

from __future__ import annotations

import gzip
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, cast

from worker.delivery.outage import outage_of_a_command
from worker.errors import RunError
from worker.files.record_files import write_records
from worker.formats.durations import parse_duration
from worker.kafka.clients import ClientProperties
from worker.kafka.source import KafkaReader
from worker.kafka.topics import Topics
from worker.processing.records import Partition
from worker.settings.document import Settings


def since_ms(text: str) -> int:
    """The time that `--since` names: a duration before now (`2d`), or an ISO 8601 time, UTC if it names no zone.

    Raises:
        ValueError: it is neither.
    """
    try:
        return time.time_ns() // 1_000_000 - parse_duration(text)
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a duration such as 2d nor an ISO 8601 time") from None
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def capture_records(
    settings: Settings,
    output: Path,
    *,
    records: int | None = None,
    since: int | None = None,
    progress: Callable[[int], object] = lambda _records: None,
) -> int:
    """Write what the input topics hold now to a file, partition after partition in the order of their offsets.

    The file is written beside `output` and renamed when it is whole; it is compressed if its name ends in .gz.

    Args:
        settings: `kafka` and `input.topics` are used.
        output: JSON lines (`worker.files.record_files`).
        records: only the newest so many, of all partitions about as many; None for no such limit.
        since: only those from this time of Kafka's on, in ms; None for all.
        progress: told how many records were written since the last call.

    Returns:
        How many records were written.

    Raises:
        RunError: no broker answers, a topic cannot be read, or the output cannot be written.
    """
    properties = ClientProperties(settings)
    topics = Topics(properties.admin(), settings)
    topics.require_inputs()
    partitions = [Partition(topic.name, number) for topic in topics.inputs() for number in range(topic.partitions)]
    reader = KafkaReader(
        properties.reader(), outage_of_a_command(), batch_records=settings.worker.batch_records, with_headers=True
    )
    written = 0
    try:
        spans = {}
        for partition in partitions:
            start, end = reader.watermarks(partition)
            spans[partition] = start if since is None else reader.offset_at(partition, since, end), end
        if records is not None:
            spans = _newest(spans, records)
        handle, temporary = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
        try:
            with os.fdopen(handle, "wb") as raw:
                file = cast(BinaryIO, gzip.GzipFile("", "wb", 6, raw, mtime=0)) if output.suffix == ".gz" else raw
                for partition, (start, end) in spans.items():
                    for batch in reader.read(partition, start, end):
                        write_records(file, batch)
                        written += len(batch.offsets)
                        progress(len(batch.offsets))
                if file is not raw:
                    file.close()
            Path(temporary).chmod(0o644)
            Path(temporary).replace(output)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RunError(f"{output}: cannot be written: {error.strerror}") from error
    finally:
        reader.close()
    return written


def _newest(spans: Mapping[Partition, tuple[int, int]], records: int) -> dict[Partition, tuple[int, int]]:
    """The last offsets of each span, `records` together: what a short one leaves is shared among the longer ones."""
    newest = {}
    by_length = sorted(spans.items(), key=lambda item: item[1][1] - item[1][0])
    for number, (partition, (start, end)) in enumerate(by_length):
        share = min(end - start, -(-records // (len(by_length) - number)))
        records -= share
        newest[partition] = end - share, end
    return {partition: newest[partition] for partition in spans}
