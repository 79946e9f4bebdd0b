"""Lines that a container runtime wrote in parts.

The runtimes of Kubernetes write a line that is longer than their buffer (16 KB) as several, each with a time, the
stream and a tag of its own: `P` where the line goes on, `F` where it ends
(https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md).
"""

from collections.abc import Hashable, Sequence
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

MOST_APART: Final = 1_000
"""A part and the others of its line stand at most so many lines apart; what comes later is a line of its own."""

_GOES_ON = r"^\S+ (?:stdout|stderr) P[: ]"
_HEAD = r"^(?P<head>\S+ (?P<stream>stdout|stderr) (?P<tag>[FP])(?::\S*)? )"


class Parts(NamedTuple):
    """Which rows are one line.

    Attributes:
        groups: the rows of each line, ascending; the lines by their first rows.
        heads: (rows,) how many characters each row has before its text.
        waiting: the first rows of those lines whose end is not among the rows, and may come.
    """

    groups: list[list[int]]
    heads: list[int]
    waiting: list[int]

    def line(self, texts: Sequence[str], group: list[int]) -> str:
        """Join a line.

        Its head is that of its first part with the tag of a line that ends, whether its end came or not: so long lines
        have the template of short ones, and what was joined once stays as it is where lines are joined again.
        """
        first, *others = group
        text = texts[first]
        if self.heads[first]:
            tag = text.index(" ") + len(" stdout ")
            text = f"{text[:tag]}F{text[tag + 1 :]}"
        return "".join([text, *(texts[row][self.heads[row] :] for row in others)])


def cri_parts(lines: pa.StringArray, numbers: Sequence[int], owners: Sequence[Hashable]) -> Parts | None:
    """Find the parts of lines, which go on in the next row of the same stream and owner.

    Args:
        lines: (rows,) as a runtime writes them; any others are whole.
        numbers: (rows,) which line each is, ascending.
        owners: (rows,) what each belongs to.

    Returns:
        None where no row goes on.
    """
    if not pc.any(pc.match_substring_regex(lines, _GOES_ON)).as_py():
        return None
    found = pc.extract_regex(lines, _HEAD).flatten()
    heads, streams, tags = (column.to_pylist() for column in found)
    groups: list[list[int]] = []
    waiting: dict[Hashable, list[int]] = {}
    for row, (stream, tag, number, owner) in enumerate(zip(streams, tags, numbers, owners, strict=True)):
        group = waiting.pop((owner, stream), None) if tag else None
        if group is None or number - numbers[group[0]] > MOST_APART:
            group = []
            groups.append(group)
        group.append(row)
        if tag == "P":
            waiting[owner, stream] = group
    last = numbers[-1]
    rows = [group[0] for group in waiting.values() if last - numbers[group[0]] < MOST_APART]
    return Parts(groups, [len(head or "") for head in heads], rows)
