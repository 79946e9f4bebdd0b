"""The compiled loop that makes one digit of each run of them."""

from __future__ import annotations

import numpy as np

from detector.compiled import Bytes, Column, compiled


@compiled
def collapse_digits(data: Bytes, bounds: Column, texts: Bytes, text_bounds: Column) -> None:
    """Fill in n texts in which each run of ASCII digits of the given ones is one `0`.

    Args:
        data: of n texts.
        bounds: (n + 1,) theirs, the first of them 0.
        texts: with as much room as `data`.
        text_bounds: (n + 1,) to be filled in.
    """
    to = 0
    for number in range(len(bounds) - 1):
        text_bounds[number] = to
        before = 0  # whether the byte before is a digit of the same text
        for at in range(bounds[number], bounds[number + 1]):
            byte = data[np.uint64(at)]
            digit = int(48 <= byte <= 57)
            # A further digit of a run is written where the first one was.
            to -= before & digit
            texts[np.uint64(to)] = np.uint8(48) if digit else byte
            to += 1
            before = digit
    text_bounds[len(bounds) - 1] = to
