"""In which partition a key's records are, as Kafka's own producers decide it.

The positive 32 bits of MurmurHash2 of the key, modulo the number of partitions: Kafka's `BuiltInPartitioner`, and
librdkafka's `murmur2`. So whatever else reads or writes the topic by key agrees.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from detector.compiled import Bytes, Column, compiled

_SEED: Final = 0x9747B28C
_FACTOR: Final = 0x5BD1E995
_BITS: Final = 0xFFFFFFFF
_POSITIVE: Final = 0x7FFFFFFF


@compiled
def partitions_of(keys: Bytes, ends: Column, partitions: int, found: Column) -> None:
    """Find the partition of each key.

    Args:
        keys: one after the other.
        ends: where each ends.
        partitions: how many there are.
        found: as long as `ends`; is written to.
    """
    begin = 0
    for number in range(len(ends)):
        end = ends[number]
        # Products of 31 and 32 bits: an int64 holds them.
        value = np.int64((_SEED ^ (end - begin)) & _BITS)
        at = begin
        while at + 4 <= end:
            word = np.int64(keys[at])
            for byte in range(1, 4):
                word |= np.int64(keys[at + byte]) << (8 * byte)
            word = (word * _FACTOR) & _BITS
            word ^= word >> 24
            word = (word * _FACTOR) & _BITS
            value = ((value * _FACTOR) & _BITS) ^ word
            at += 4
        rest = end - at
        if rest > 0:
            for byte in range(rest):
                value ^= np.int64(keys[at + byte]) << (8 * byte)
            value = (value * _FACTOR) & _BITS
        value ^= value >> 13
        value = (value * _FACTOR) & _BITS
        value ^= value >> 15
        found[number] = (value & _POSITIVE) % partitions
        begin = end
