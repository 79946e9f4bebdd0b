"""Patterns that take one text from each line of a batch, in RE2 over Arrow arrays: linear time, whatever the line."""

import re

import pyarrow as pa
import pyarrow.compute as pc

_GROUP = "text"

_TOKEN = re.compile(
    r"""
    \\Q .*? (?: \\E | \Z )                              # quoted text
    | \\.                                              # escaped character
    | \[ \^? \]? (?: \\. | \[: .*? :\] | [^\]] )*+ \]?   # character class; its first ] is literal
    | \(\?P?< [^>]* >                                  # opening of a named group
    | \(\?                                             # of a group with flags, or one that does not capture
    | .
    """,
    re.VERBOSE | re.DOTALL,
)
_CAPTURING = re.compile(r"\(|\(\?P?<.*>", re.DOTALL)


class LinePattern:
    r"""The first group of a pattern's first match in a line, or the whole match where the pattern has no group.

    Args:
        pattern: RE2 syntax, such as `blk_-?\d+`.

    Raises:
        ValueError: RE2 refuses the pattern.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._named = _with_one_group(pattern)
        for candidate in (pattern, self._named):  # the user's own first, so that the reason speaks of it
            try:
                pc.match_substring_regex(pa.array([""]), candidate)
            except (pa.ArrowInvalid, UnicodeEncodeError) as error:
                raise ValueError(f"{pattern!r} is not a pattern that RE2 can run: {error}") from error

    def extract(self, lines: pa.StringArray) -> pa.StringArray:
        """Return the text of each line, empty for a line without a match or where the group took no part in it."""
        return pc.extract_regex(lines, self._named).field(0)


def _with_one_group(pattern: str) -> str:
    """Name the first capturing group and make the others non-capturing; without any, name the whole pattern.

    Arrow extracts named groups only, and every capturing group costs time.
    """
    pieces: list[str] = []
    named = False
    for token in _TOKEN.findall(pattern):
        if _CAPTURING.fullmatch(token):
            pieces.append("(?:" if named else f"(?P<{_GROUP}>")
            named = True
        elif token.startswith(r"\Q") and not token.endswith(r"\E"):
            pieces.append(token + r"\E")  # it would quote the closing bracket below as well
        else:
            pieces.append(token)
    text = "".join(pieces)
    return text if named else f"(?P<{_GROUP}>{text})"
