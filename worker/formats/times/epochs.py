"""Times written as a number of seconds, or of parts of a second, since 1970 UTC."""

import re
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from worker.formats.times.columns import LONGEST_TEXT, TextTimes, TimeFormat
from worker.formats.times.shapes import by_shape

Unit = Literal["s", "ms", "us", "ns"]

_SHAPE = re.compile(r"(-?)(0{1,19})(?:\.(0+))?")
_MOST = 9_199_999_999  # as the first ten of 19 digits: what lies above needs more than 64 bits
_IN_MS: dict[Unit, int] = {"s": 0, "ms": 1, "us": 1_000, "ns": 1_000_000}  # of each unit; a second is no part of one
_BEYOND_MS = 10**15  # further than any year of a calendar, and small enough to multiply


class EpochTimes(TimeFormat):
    """Reads numbers since 1970, of either sign and with or without a fraction.

    Args:
        unit: of the numbers; None tells it from their magnitude: seconds below 10^11 (as seconds that is the year 5138,
            as milliseconds 1973), milliseconds below 10^14, microseconds below 10^17, nanoseconds above.
    """

    pattern = r"^[^0-9A-Za-z-]?([0-9]{9,19}(?:\.[0-9]+)?)\b"
    numbers = True

    def __init__(self, unit: Unit | None = None) -> None:
        self.name = "epoch" if unit is None else f"epoch_{unit}"
        self._unit = unit

    def read(self, texts: pa.StringArray) -> TextTimes:
        """Read the texts that are numbers."""
        found = TextTimes.none(len(texts))
        found.offsets[:] = 0
        for alike in by_shape(texts, LONGEST_TEXT):
            match = _SHAPE.fullmatch(alike.shape)
            if match is None:
                continue
            start, stop = match.span(2)
            good = np.ones(len(alike.rows), bool)
            if stop - start == 19:
                good = alike.number(start, start + 10) <= _MOST
            # 19 digits at once would not fit before it is known that they are small enough.
            whole = np.where(good, alike.number(start, stop - 1), 0) * 10 + alike.number(stop - 1, stop)
            thousandths, finer = np.zeros(len(whole), np.int64), np.zeros(len(whole), bool)
            if match[3]:
                start, stop = match.span(3)
                digits = min(3, stop - start)
                thousandths = alike.number(start, start + digits) * 10 ** (3 - digits)
                for at in range(start + 3, stop):
                    finer |= alike.number(at, at + 1) > 0
            times, cut = self._milliseconds(whole, thousandths, finer)
            found.times[alike.rows] = -times - cut if match[1] else times
            found.read[alike.rows] = good
        return found

    def _milliseconds(
        self, whole: NDArray[np.int64], thousandths: NDArray[np.int64], finer: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(n,) milliseconds of numbers without their sign, and whether a part of one was cut off.

        Args:
            whole: their whole part.
            thousandths: the first three digits of their fraction.
            finer: whether there is more than these.
        """
        in_ms = (
            np.full(len(whole), _IN_MS[self._unit])
            if self._unit
            else np.select([whole < 10**11, whole < 10**14, whole < 10**17], [0, 1, 1_000], 1_000_000)
        )
        seconds = in_ms == 0
        cut = np.where(seconds, finer, (whole % np.maximum(in_ms, 1) > 0) | (thousandths > 0) | finer)
        times = np.where(seconds, np.minimum(whole, _BEYOND_MS) * 1000 + thousandths, whole // np.maximum(in_ms, 1))
        return times, cut
