"""The canonical form of log lines, over the joined bytes of a whole batch.

Every line is prepared (escape sequences, masks, syslog priorities), then each run of ASCII digits becomes one `0`:
lines of one kind fall together to a handful of canonical texts, which the tokenizer's dictionary knows. Only canonical
texts that it does not know are folded: paths, URLs, hosts and the like become one mark each.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detector.text.collapse_loop import collapse_digits
from detector.text.flat import flat, strings_of
from detector.text.lexicon import PRIORITIES

CANONICAL_CHARACTERS = 4096
"""A canonical line ends here: the rest says nothing more about its kind, and this bounds what a line costs."""

_CHUNK_LINES = 16_384
_CHUNK_BYTES = 1 << 20
_MASK_NAME = re.compile(r"[A-Za-z0-9._-]+")
_ZERO = np.uint8(ord("0"))
_FACILITIES = 24  # of syslog
# Control sequences (colours, cursor) and operating system commands (titles, links) of ECMA-48.
_ESCAPE = r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))"

_MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_TOP_DOMAINS = "com|net|org|edu|gov|cn|hk|jp|de|uk|fr|ru|br|it|nl|kr|tw|tr|arpa|local|internal|lan"
_FIRST = "(?:[A-Za-z_.~%-]|[0-9]+[/A-Za-z_%-])"  # of a path; what is neither may be an address
_GROUP = "[0-9a-fA-F]+"  # of an IPv6 address; groups with a digit among them, since `ace::bad` is a name
_GROUPS = f"{_GROUP}(?::{_GROUP})*"
_NUMBERED = f"(?:{_GROUP}:)*[0-9a-fA-F]*[0-9][0-9a-fA-F]*(?::{_GROUP})*"
_QUERY = r"(?:[^\s\"'<>]|<[\w.-]+>)*"  # with what was folded in it, or each key behind that would tell paths apart
_END = r"\s\"'<>()\[\]{},;|"  # ends a path or a URL
# What a text has to hold, the pattern and what stands for it. Digits come as runs of any length only, so that a text
# whose digits were collapsed folds alike.
_FOLDS = (
    # The host of RFC 3164; who asked, and with which browser from where, of an access log.
    (b":", rf"^((?:<[a-z]+> ?)?(?:{_MONTHS}) +[0-9]+ [0-9]+:[0-9]+:[0-9]+ )[\w.-]+ ", r"\1<host> "),
    (b"[", rf"^\S+ \S+ \S+( \[[0-9]+/(?:{_MONTHS})/[0-9:]+ [+-][0-9]+\] )", r"<host> - <text>\1"),
    (b'" "', r"(\] \"[^\"]*\" [0-9]+ (?:[0-9]+|-)) \"[^\"]*\" \"[^\"]*\"", r'\1 "<text>" "<text>"'),
    (b"://", rf"[A-Za-z][A-Za-z0-9+.-]*://[^{_END}]+", "<url>"),
    (b"@", r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", "<email>"),
    (b"-", r"\b(?:[0-9a-fA-F]+-){4}[0-9a-fA-F]+\b", "<uuid>"),
    (b"-", r"-[a-f]+[0-9]+\b", "-<hex>"),
    (b".", r"\b[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+\b", "<ip>"),
    (b"::", r"::[fF]+:<ip>", "<ip>"),
    (b"::", rf"(^|[^\w:.])(?:{_NUMBERED}::{_GROUPS}|(?:{_GROUPS})?::{_NUMBERED})\b", r"\1<ip>"),
    (b"::", rf"\b{_NUMBERED}::([^\w:]|$)", r"<ip>\1"),
    (b":", rf"\b{_GROUP}(?::{_GROUP}){{9,}}\b", "<hex>"),  # fingerprints
    (b":", rf"\b{_GROUP}(?::{_GROUP}){{7}}\b", "<ip>"),
    (b":", rf"\b{_GROUP}(?::{_GROUP}){{5}}\b", "<mac>"),
    (b"", r"(^|[^\w.])(?:[0-9a-f]*[0-9][a-f][0-9a-f]*|[0-9A-F]*[0-9][A-F][0-9A-F]*)\b", r"\1<hex>"),
    (b".", rf"\b[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+\.(?:{_TOP_DOMAINS})([^.\w-]|$)", r"<host>\1"),
    (b":", rf"\b[A-Za-z0-9-]+\.(?:{_TOP_DOMAINS}):([0-9])", r"<host>:\1"),
    (
        b"/",
        rf"(^|[\s\"'=(\[{{<>,:;|])(?:~|\.{{1,2}}|[A-Za-z]:)?/{_FIRST}[^=:?{_END}]*(?:\?{_QUERY})?",
        r"\1<path>",
    ),
    (b"/", r"\b[A-Za-z_][\w.~-]*(?:/[\w.~-]+){2,}", "<path>"),
    (b"\\", r"[\w.$~-]+(?:\\[\w.$~-]+){2,}", "<path>"),
    (b"\\", rf"[A-Za-z]:\\[^=:{_END}]*|\\\\[^=:{_END}]+", "<path>"),
)


@dataclass(frozen=True)
class Mask:
    """What a custom pattern matches becomes `<name>` before digits collapse.

    Attributes:
        pattern: RE2 syntax, so matching takes linear time.
        name: ASCII letters, digits, dots, underscores and hyphens. One of `detector.text.words.TYPES` makes it a
            value to the templates; another one is a word like others.

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


def strings(lines: pa.Array) -> pa.StringArray:
    """Return lines as one array of strings.

    Raises:
        ValueError: not an array of strings, or a null among them.
    """
    if isinstance(lines, pa.ChunkedArray):
        lines = lines.combine_chunks()
    if not (pa.types.is_string(lines.type) or pa.types.is_large_string(lines.type)):
        raise ValueError(f"lines are {lines.type}, not strings")
    if lines.null_count:
        raise ValueError(f"{lines.null_count} of {len(lines)} lines are null")
    return lines.cast(pa.string())


def prepare(lines: pa.StringArray, masks: Sequence[Mask] = ()) -> pa.StringArray:
    """Drop escape sequences, apply masks and name the severity of a syslog priority (`<131>` becomes `<err>`).

    Args:
        lines: (n,) strings without nulls; a slice of a longer array will do.
        masks: in this order, each to the first `CANONICAL_CHARACTERS` characters of a line.

    Returns:
        (n,) strings; digits are as they were.
    """
    if _holds(lines, b"\x1b"):
        lines = pc.replace_substring_regex(lines, pattern=_ESCAPE, replacement="")
    for mask in masks:
        # RE2 takes linear time for one match, but quadratic time for all of them where each looks at the whole rest of
        # the line before it ends, as `a[^b]*b|a` does.
        lines = pc.replace_substring_regex(_cut(lines), pattern=mask.pattern, replacement=f"<{mask.name}>")
    if _priorities(lines):
        for severity, name in enumerate(PRIORITIES):
            numbers = "|".join(str(facility * 8 + severity) for facility in range(_FACILITIES))
            lines = pc.replace_substring_regex(lines, pattern=f"^<(?:{numbers})>", replacement=f"<{name}>")
    return lines


def canonicalise(lines: pa.StringArray, masks: Sequence[Mask] = ()) -> pa.StringArray:
    """Return the canonical text of each line: prepared, then each run of ASCII digits is one `0`.

    Args:
        lines: (n,) strings without nulls; a slice of a longer array will do.
        masks: see `prepare`.

    Returns:
        (n,) strings, each of at most `CANONICAL_CHARACTERS` characters.
    """
    return collapse(prepare(lines, masks))


def collapse(prepared: pa.StringArray) -> pa.StringArray:
    """Return the canonical text of prepared lines."""
    return _cut(_collapse_digits(prepared))


def fold(lines: pa.StringArray) -> pa.StringArray:
    """Replace values that hold letters and vary without end: `<path>`, `<url>`, `<host>` and so on.

    Args:
        lines: prepared or canonical; longer ones than `CANONICAL_CHARACTERS` bytes have to be canonical.

    Returns:
        (n,) strings. To fold and to collapse digits may come in either order.
    """
    for needle, pattern, replacement in _FOLDS:
        if _holds(lines, needle):
            lines = pc.replace_substring_regex(lines, pattern=pattern, replacement=replacement)
    return lines


def digit_runs(lines: pa.StringArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers that lines hold.

    Args:
        lines: (n,) strings without nulls.

    Returns:
        (n + 1,) where the runs of each line start among all, and (N,) the value of each run of three ASCII digits, -1
        for a shorter or a longer one.
    """
    bounds = _bounds(lines).astype(np.int64)
    if bounds[0] == bounds[-1]:
        return np.zeros(len(lines) + 1, np.int64), np.zeros(0, np.int64)
    data = np.frombuffer(lines.buffers()[2], np.uint8)[bounds[0] : bounds[-1]]
    digit = np.zeros(len(data) + 2, np.bool_)
    digit[1:-1] = data - _ZERO < 10
    # A run ends with its line: the first byte of a line starts a run even behind a digit.
    first = np.zeros(len(data) + 1, np.bool_)
    first[bounds - bounds[0]] = True
    starts = np.flatnonzero(digit[1:-1] & (~digit[:-2] | first[:-1]))
    ends = np.flatnonzero(digit[1:-1] & (~digit[2:] | first[1:])) + 1
    of_three = starts[ends - starts == 3]
    values = np.full(len(starts), -1, np.int64)
    values[ends - starts == 3] = sum(
        (data[of_three + at].astype(np.int64) - _ZERO) * factor for at, factor in enumerate((100, 10, 1))
    )
    return np.searchsorted(starts, bounds - bounds[0]), values


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


def _holds(lines: pa.StringArray, needle: bytes) -> bool:
    bounds = _bounds(lines)
    if bounds[0] == bounds[-1]:
        return False
    # A buffer has no search of its own; `bytes` copies a chunk, which costs next to nothing beside a pattern.
    return needle in bytes(memoryview(lines.buffers()[2])[bounds[0] : bounds[-1]])


def _priorities(lines: pa.StringArray) -> bool:
    """Whether a line begins like a syslog priority."""
    bounds = _bounds(lines)
    starts = bounds[:-1][np.diff(bounds) > 2]
    if not len(starts):
        return False
    data = np.frombuffer(lines.buffers()[2], np.uint8)
    marked = starts[data[starts] == ord("<")]
    return bool(np.any(data[marked + 1] - _ZERO < 10))


def _cut(lines: pa.StringArray) -> pa.StringArray:
    """End each line after `CANONICAL_CHARACTERS` characters."""
    if np.diff(_bounds(lines)).max(initial=0) > CANONICAL_CHARACTERS:
        return pc.utf8_slice_codeunits(lines, 0, CANONICAL_CHARACTERS)
    return lines


def _collapse_digits(lines: pa.StringArray) -> pa.StringArray:
    data, bounds = flat(lines)
    texts, text_bounds = np.empty(len(data), np.uint8), np.empty(len(bounds), np.int64)
    collapse_digits(data, bounds, texts, text_bounds)
    return strings_of(texts, text_bounds)


def _bounds(lines: pa.StringArray) -> NDArray[np.int32]:
    """(n + 1,) where in the joined bytes each line starts, and where the last one ends."""
    if not len(lines):  # such an array may have no buffers at all
        return np.zeros(1, np.int32)
    return np.frombuffer(lines.buffers()[1], np.int32)[lines.offset : lines.offset + len(lines) + 1]
