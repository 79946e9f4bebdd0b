"""The canonical form of log lines, and the shape of a line that templates are made of.

`canonicalise` runs over every line: custom masks, then each run of ASCII digits becomes one `0`, over the
joined bytes of a whole batch. Lines of one kind fall together to a handful of canonical texts, which the
tokenizer's dictionary knows. `shape` runs only over canonical lines that the dictionary has not seen.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

WILDCARD = "<*>"

CANONICAL_CHARACTERS = 4096
"""A canonical line ends here: the rest says nothing more about its kind, and this bounds what a line costs."""

SHAPE_WORDS = 256
"""Words of a line that count."""

_CHUNK_LINES = 16_384
_CHUNK_BYTES = 1 << 20
_MASK_NAME = re.compile(r"[A-Za-z0-9._-]+")
_ZERO = np.uint8(ord("0"))
_SEPARATORS = ("=", "|")
_BRACKETS = "[](){}<>,;:.\"'"
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_CALENDAR = frozenset((*_WEEKDAYS, *_MONTHS))


@dataclass(frozen=True)
class Mask:
    """What a custom pattern matches becomes `<name>` before digits collapse.

    Attributes:
        pattern: RE2 syntax, so matching takes linear time.
        name: ASCII letters, digits, dots, underscores and hyphens. With a digit in it, the word is a value to
            the templates; without one, a word like others.

    Raises:
        ValueError: another name, or a pattern that RE2 refuses.
    """

    pattern: str
    name: str

    def __post_init__(self) -> None:
        if not _MASK_NAME.fullmatch(self.name):
            raise ValueError(
                f"mask name {self.name!r} is not made of ASCII letters, digits, dots, underscores and hyphens"
            )
        try:
            pc.replace_substring_regex(pa.array([""], pa.string()), pattern=self.pattern, replacement="")
        except (pa.ArrowInvalid, UnicodeEncodeError) as error:
            raise ValueError(f"mask {self.name}: {self.pattern!r} is not an RE2 pattern: {error}") from error


def canonicalise(lines: pa.StringArray, masks: Sequence[Mask] = ()) -> pa.StringArray:
    """Return the canonical text of each line.

    Args:
        lines: (n,) strings without nulls; a slice of a longer array will do.
        masks: applied first, in this order, each to the first `CANONICAL_CHARACTERS` characters of a line.

    Returns:
        (n,) strings, each of at most `CANONICAL_CHARACTERS` characters.
    """
    for mask in masks:
        # RE2 takes linear time for one match, but quadratic time for all of them where each looks at the whole rest of
        # the line before it ends, as `a[^b]*b|a` does.
        lines = pc.replace_substring_regex(_cut(lines), pattern=mask.pattern, replacement=f"<{mask.name}>")
    return _cut(_collapse_digits(lines))


def chunks(lines: pa.StringArray) -> Iterator[pa.StringArray]:
    """Cut an array into slices whose bytes stay in the processor's cache while they are canonicalised.

    A slice has at least one line, at most `_CHUNK_LINES` of them, and more than `_CHUNK_BYTES` only in its
    last line.
    """
    ends = _bounds(lines)[1:]
    start = 0
    while start < len(lines):
        first_byte = int(ends[start - 1] if start else _bounds(lines)[0])
        stop = int(np.searchsorted(ends, first_byte + _CHUNK_BYTES)) + 1
        stop = min(stop, start + _CHUNK_LINES, len(lines))
        yield lines.slice(start, stop - start)
        start = stop


def shape(canonical: str) -> str:
    """Return the words of a canonical line that templates are made of, one space between them.

    A word that holds a digit is a value and becomes the wildcard, and so does the name of a weekday or a
    month. A word ends after `=` and `|`, so that `rhost=10.0.0.1` and fields glued with bars keep their
    names. Words past `SHAPE_WORDS` do not count. An empty text means that the line has no words at all.
    """
    for separator in _SEPARATORS:
        canonical = canonical.replace(separator, f"{separator} ")
    words = canonical.split(None, SHAPE_WORDS)[:SHAPE_WORDS]
    return " ".join(WILDCARD if "0" in word or word.strip(_BRACKETS) in _CALENDAR else word for word in words)


def _cut(lines: pa.StringArray) -> pa.StringArray:
    """End each line after `CANONICAL_CHARACTERS` characters."""
    if np.diff(_bounds(lines)).max(initial=0) > CANONICAL_CHARACTERS:
        return pc.utf8_slice_codeunits(lines, 0, CANONICAL_CHARACTERS)
    return lines


def _collapse_digits(lines: pa.StringArray) -> pa.StringArray:
    """Keep the first digit of each run as `0` and drop the others."""
    bounds = _bounds(lines)
    if bounds[0] == bounds[-1]:
        return lines
    data = np.frombuffer(lines.buffers()[2], np.uint8)[bounds[0] : bounds[-1]]
    lengths = np.diff(bounds)
    starts = bounds[:-1] - bounds[0]

    value = data - _ZERO
    digit = value < 10
    dropped = np.empty(len(data), np.bool_)
    dropped[0] = False
    np.logical_and(digit[1:], digit[:-1], out=dropped[1:])
    filled = lengths > 0
    dropped[starts[filled]] = False  # a run does not reach over from the line before
    text = (data - value * digit)[~dropped]

    # reduceat gives an element, not an empty sum, for an empty line: those keep their length of 0.
    lengths[filled] -= np.add.reduceat(dropped, starts[filled], dtype=np.int32)
    kept = np.zeros(len(bounds), np.int32)
    np.cumsum(lengths, out=kept[1:])
    return pa.StringArray.from_buffers(len(lines), pa.py_buffer(kept), pa.py_buffer(text))


def _bounds(lines: pa.StringArray) -> NDArray[np.int32]:
    """(n + 1,) where in the joined bytes each line starts, and where the last one ends."""
    if not len(lines):  # such an array may have no buffers at all
        return np.zeros(1, np.int32)
    return np.frombuffer(lines.buffers()[1], np.int32)[lines.offset : lines.offset + len(lines) + 1]
