"""The compiled loop that makes one digit of each run of them."""

from __future__ import annotations

from typing import Final

import numpy as np

from detector.compiled import Bytes, Column, allocating

TOGETHER: Final = 256  # bytes of a text that are looked at before they are moved


@allocating
def collapse_digits(data: Bytes, bounds: Column, texts: Bytes, text_bounds: Column) -> None:
    """Fill in n texts in which each run of ASCII digits of the given ones is one `0`.

    What becomes of a byte is found out of many at the same time, and only where it goes of one after the other.

    Args:
        data: of n texts.
        bounds: (n + 1,) theirs, the first of them 0.
        texts: with as much room as `data`.
        text_bounds: (n + 1,) to be filled in.
    """
    shown, moves = np.empty(TOGETHER + 1, np.uint8), np.empty(TOGETHER, np.uint8)
    zero, to = np.uint8(48), np.uint64(0)
    for number in range(len(bounds) - 1):
        text_bounds[number] = to
        at, end = np.uint64(bounds[number]), np.uint64(bounds[number + 1])
        while at < end:
            left = end - at
            n = min(left, np.uint64(TOGETHER))
            for place in range(min(left, n + np.uint64(1))):
                byte = data[at + place]
                shown[place] = zero if np.uint8(byte - zero) < np.uint8(10) else byte
            if n == left:
                shown[n] = np.uint8(0)  # behind the text
            for place in range(n):
                # Of a run all digits are written to where its last one stays.
                moves[place] = np.uint8((shown[place] != zero) | (shown[place + np.uint64(1)] != zero))
            for place in range(n):
                texts[to] = shown[place]
                to += np.uint64(moves[place])
            at += n
    text_bounds[len(bounds) - 1] = to
