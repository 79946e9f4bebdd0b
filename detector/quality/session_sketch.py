"""Which sessions a training had, in a few hundred numbers, so that an evaluation can tell that it judges them.

Of a 64-bit hash of each session the least are kept (a k-minimum-values sketch: Bar-Yossef et al., Counting distinct
elements in a data stream, 2002). Whatever else there is, a session that has one of the least hashes is as good a sample
of the sessions as any.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

SKETCHED: Final = 256
"""Hashes that are kept: a share is then right to about three per cent."""


def session_hash(key: str, tokens: bytes) -> int:
    """Of a session's key and its int64 tokens: below 2^63, which every reader of JSON can hold."""
    digest = blake2b(key.encode(errors="surrogatepass") + b"\0" + tokens, digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def session_sketch(hashes: Iterable[int]) -> list[int]:
    """The least hashes of distinct sessions, in order; all of them where there are no more than `SKETCHED`."""
    return heapq.nsmallest(SKETCHED, set(hashes))


def share_known(sketch: Sequence[int], hashes: Iterable[int]) -> float:
    """Share of distinct sessions that are among those that a sketch was made of, as far as it tells.

    It is exact where the sketch is not full. 0 where none of the sessions can be compared with it.
    """
    known, end = set(sketch), sketch[-1] if len(sketch) == SKETCHED else None
    compared = {each for each in hashes if end is None or each <= end}
    return len(compared & known) / len(compared) if compared else 0.0
