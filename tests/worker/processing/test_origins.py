"""Where the events of score records came from, written many records at once."""

from __future__ import annotations

from random import Random

import numpy as np
import orjson
import pytest

from worker.processing.origins import MOST_OFFSET, Origins
from worker.processing.records import Partition


def told_of(origins: Origins) -> list[dict[str, object]]:
    """By what records promise: the partitions in order, the offsets of each in the order of the events."""
    found: dict[Partition, list[int]] = {}
    for partition, offset in origins.each():
        found.setdefault(partition, []).append(offset)
    return [{**partition._asdict(), "offsets": found[partition]} for partition in sorted(found)]


# So many spans of so many partitions are told apart by numbers of 16 bits, and those of the last case are not.
@pytest.mark.parametrize(("records", "partitions"), [(1, 1), (40, 3), (600, 300)])
def test_records_say_where_their_events_came_from(records: int, partitions: int) -> None:
    random = Random(records)
    known = [Partition(random.choice(['raw"é', "raw", "other"]), number) for number in range(partitions)]
    random.shuffle(known)
    lengths = [random.choice([1, 2, 20]) for _ in range(records)]
    ends = np.cumsum(lengths)
    begins = ends - lengths
    numbers = np.array([random.randrange(partitions) for _ in range(ends[-1])])
    offsets = np.array([random.choice([0, 7, 10**9 + at, MOST_OFFSET]) for at in range(ends[-1])])
    origins = Origins.of(known, numbers, offsets)
    wanted = np.array([at % 4 != 1 for at in range(records)])
    endings = origins.endings(begins, ends, wanted)
    cuts = [0, *endings.ends.tolist()]
    for at, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        own = origins.select(slice(begin, end))
        assert own.grouped() == told_of(own)
        ending = endings.data[cuts[at] : cuts[at + 1]].tobytes()
        if wanted[at]:
            assert b'{"at":1' + ending == orjson.dumps({"at": 1, "origins": told_of(own)})
        else:
            assert not ending
    assert not origins.endings(begins, ends, np.zeros(records, np.bool_)).ends.any()
