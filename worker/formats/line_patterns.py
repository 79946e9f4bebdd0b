"""Patterns that take one text from each line of a batch, in linear time, whatever the line.

RE2 says what they mean. The simplest and commonest of them have a compiled loop of their own, which gives the same in
half the time.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detector.text.flat import flat, strings_of
from worker.formats.one_pass import automaton_of
from worker.formats.one_pass_loop import TOO_LONG, cut_out, find_all
from worker.formats.patterns import check_pattern, with_one_group


class LinePattern:
    r"""The first group of a pattern's first match in a line, or the whole match where the pattern has no group.

    Args:
        pattern: RE2 syntax, such as `blk_-?\d+`.

    Raises:
        ValueError: as `check_pattern`.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = check_pattern(pattern)
        self._named = with_one_group(pattern)
        self._automaton = automaton_of(pattern)

    def extract(self, lines: pa.StringArray) -> pa.StringArray:
        """Return the text of each line, empty for a line without a match or where the group took no part in it."""
        if self._automaton is not None:
            data, bounds = flat(lines)
            begins, ends = np.empty(len(lines), np.int64), np.empty(len(lines), np.int64)
            size = find_all(self._automaton, data, bounds, begins, ends)
            if size != TOO_LONG:
                found, found_bounds = np.empty(size, np.uint8), np.zeros(len(lines) + 1, np.int64)
                cut_out(data, begins, ends, found, found_bounds)
                return strings_of(found, found_bounds)
        return pc.extract_regex(lines, self._named).field(0)
