"""SHA-256 of many texts at once (FIPS 180-4)."""

from __future__ import annotations

from typing import Final

import numpy as np

from detector.compiled import Bytes, Column, allocating

DIGEST_BYTES: Final = 32

_BLOCK_BYTES: Final = 64
_LENGTH_BYTES: Final = 8  # at the end of the last block, which says how many bits the text has
_ROUNDS: Final = 64


def _fractions(power: int, count: int) -> list[int]:
    """The first 32 bits of the fractions of the roots of the first primes."""
    primes = [number for number in range(2, 312) if all(number % divisor for divisor in range(2, number))]
    found = []
    for prime in primes[:count]:
        root = 0
        for bit in reversed(range(40)):
            if (root | 1 << bit) ** power <= prime << 32 * power:
                root |= 1 << bit
        found.append(root % (1 << 32))
    return found


_CONSTANTS: Final = np.array(_fractions(3, _ROUNDS), np.uint32)
_FIRST: Final = np.array(_fractions(2, 8), np.uint32)


@allocating
def digests(data: Bytes, ends: Column, found: Bytes) -> None:
    """Fill in the digests of texts.

    Args:
        data: of n texts, one after the other.
        ends: (n,) where each ends.
        found: (n * DIGEST_BYTES,) to be filled in.
    """
    # Every cast to 32 bits says that a word wraps around; a shift of each side is a rotation, which LLVM sees.
    longest, begin = 0, 0
    for number in range(len(ends)):
        longest, begin = max(longest, ends[number] - begin), ends[number]
    padded = np.empty((longest + _LENGTH_BYTES) // _BLOCK_BYTES * _BLOCK_BYTES + _BLOCK_BYTES, np.uint8)
    words, state = np.empty(_ROUNDS, np.uint32), np.empty(8, np.uint32)
    begin = 0
    for number in range(len(ends)):
        length = ends[number] - begin
        size = (length + _LENGTH_BYTES) // _BLOCK_BYTES * _BLOCK_BYTES + _BLOCK_BYTES
        padded[:length] = data[begin : begin + length]
        padded[length] = 0x80
        padded[length + 1 : size - _LENGTH_BYTES] = 0
        for place in range(_LENGTH_BYTES):
            padded[size - 1 - place] = (8 * length) >> (8 * place) & 255
        begin += length
        state[:] = _FIRST
        for block in range(0, size, _BLOCK_BYTES):
            for place in range(16):
                at = block + 4 * place
                high = np.uint32(padded[at]) << 24 | np.uint32(padded[at + 1]) << 16
                words[place] = np.uint32(high | np.uint32(padded[at + 2]) << 8 | np.uint32(padded[at + 3]))
            for place in range(16, _ROUNDS):
                x, y = words[place - 15], words[place - 2]
                small_0 = np.uint32(x >> 7 | x << 25) ^ np.uint32(x >> 18 | x << 14) ^ np.uint32(x >> 3)
                small_1 = np.uint32(y >> 17 | y << 15) ^ np.uint32(y >> 19 | y << 13) ^ np.uint32(y >> 10)
                words[place] = np.uint32(words[place - 16] + small_0 + words[place - 7] + small_1)
            a, b, c, d = state[0], state[1], state[2], state[3]
            e, f, g, h = state[4], state[5], state[6], state[7]
            for first in range(0, _ROUNDS, 8):
                for place in range(first, first + 8):  # after which all words are in their places again
                    big_1 = np.uint32(e >> 6 | e << 26) ^ np.uint32(e >> 11 | e << 21) ^ np.uint32(e >> 25 | e << 7)
                    one = np.uint32(h + big_1 + ((e & f) ^ (~e & g)) + _CONSTANTS[place] + words[place])
                    big_0 = np.uint32(a >> 2 | a << 30) ^ np.uint32(a >> 13 | a << 19) ^ np.uint32(a >> 22 | a << 10)
                    other = np.uint32(big_0 + ((a & b) ^ (a & c) ^ (b & c)))
                    h, g, f, e = g, f, e, np.uint32(d + one)
                    d, c, b, a = c, b, a, np.uint32(one + other)
            for place, word in enumerate((a, b, c, d, e, f, g, h)):
                state[place] = np.uint32(state[place] + word)
        for word in range(8):
            for place in range(4):
                found[number * DIGEST_BYTES + 4 * word + place] = state[word] >> (24 - 8 * place) & 255
