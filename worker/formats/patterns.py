"""Patterns that a user writes, in RE2 over Arrow arrays: linear time, whatever the text."""

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


def check_pattern(pattern: object) -> str:
    """Return a pattern that the linear-time engine (RE2, through Arrow) can run.

    Raises:
        ValueError: a sentence, with the engine's reason: it is none.
    """
    if not isinstance(pattern, str) or not pattern:
        raise ValueError("is not a pattern; allowed: a regular expression in RE2 syntax")
    for candidate in (pattern, with_one_group(pattern)):  # the user's own first, so that the reason speaks of it
        try:
            matches(candidate, "")
        except (pa.ArrowInvalid, UnicodeEncodeError) as error:
            reason = str(error).removeprefix("Invalid regular expression: ")
            raise ValueError(
                f"is not a pattern that RE2 can run ({reason}); allowed: RE2 syntax, "
                "which has no back-references and no look-around"
            ) from error
    return pattern


def matches(pattern: str, text: str) -> bool:
    """Whether a pattern that was checked is found anywhere in a text."""
    found: bool = pc.match_substring_regex(pa.array([text]), pattern)[0].as_py()
    return found


def with_one_group(pattern: str) -> str:
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
