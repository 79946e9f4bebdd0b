"""The events of a session in token records, and the lines that they were made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from worker.delivery.deadline import Deadline
from worker.delivery.protocols import TopicReader
from worker.errors import RunError
from worker.processing.clock import Column
from worker.processing.origins import NumberedOrigins, Origins
from worker.processing.records import Partition
from worker.processing.token_decoder import TokenDecoder


class TokenEvents(NamedTuple):
    """Events of one session; columns of equal length. `origins` has their offsets, which are numbers of events."""

    tokens: Column
    times: Column
    origins: NumberedOrigins


def read_tokens(
    reader: TopicReader,
    decoder: TokenDecoder,
    partition: Partition,
    offsets: range,
    session: str,
    lines: frozenset[tuple[Partition, int]] | None,
    deadline: Deadline,
) -> TokenEvents:
    """The events of a session.

    Args:
        reader: of the topic.
        decoder: of its records.
        partition: of the token records.
        offsets: of these.
        session: its key.
        lines: partitions and offsets of its lines, by which it is told from other sessions of its key; None where they
            are not known.
        deadline: for reading.

    Raises:
        RunError: there are none, tokens are of another vocabulary, or there was no time.
    """
    tokens, times, numbers, origins = [], [], [], []
    for records in reader.read(partition, offsets.start, offsets.stop):
        (events,) = decoder.decode([records])
        assert events.origins is not None
        own = np.flatnonzero(np.asarray(pc.equal(events.keys, session)))
        if lines is not None:
            lying = events.origins.select(own).each()
            own = own[[at for at, line in enumerate(lying) if line in lines]]
        tokens.append(events.tokens[own])
        times.append(events.times[own])
        numbers.append(events.offsets[own])
        origins.append(events.origins.select(own))
        if deadline.passed and records.last_offset < offsets.stop - 1:
            raise RunError(
                f"{partition}: the {len(offsets):,} records from the session's first to its last take too long to "
                f"read; those up to {records.last_offset} were read in time"
            )
    joined = Origins.joined(origins)
    if not len(joined):
        raise RunError(f"{partition}, offsets {offsets.start} to {offsets.stop - 1}: no event of session {session!r}")
    return TokenEvents(np.concatenate(tokens), np.concatenate(times), NumberedOrigins(np.concatenate(numbers), joined))


def texts_of(reader: TopicReader, origins: Origins, deadline: Deadline) -> Iterator[str]:
    """The raw record of each event as text, or that it is not there any more."""
    wanted: defaultdict[Partition, set[int]] = defaultdict(set)
    for partition, offset in origins.each():
        wanted[partition].add(offset)
    found: dict[tuple[Partition, int], str] = {}
    for partition, offsets in wanted.items():
        if partition.partition not in reader.partitions(partition.topic):
            continue
        oldest, end = reader.watermarks(partition)
        for records in reader.read(partition, max(oldest, min(offsets)), min(end, max(offsets) + 1)):
            for offset, value in zip(records.offsets, records.values, strict=True):
                if offset in offsets:
                    found[partition, int(offset)] = (value or b"").decode(errors="replace").strip()
            if deadline.passed:
                break
    for partition, offset in origins.each():
        yield found.get((partition, offset), f"(offset {offset} of {partition} is not there, or was not read in time)")
