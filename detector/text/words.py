"""The words of a canonical line: what holds a digit is a value, the others tell kinds of lines apart.

Punctuation only parts words. A value is the one word `WILDCARD`, whatever its type, and values that follow each
other are one: a line with two numbers and a line with three are of one kind. A word that ends in digits keeps its
letters (`blk_0`), and `key=` keeps its sign.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from detector.text.lexicon import CALENDAR, DECISIVE, DECISIVE_MARKS, NOTHING, UNITS

WILDCARD = "<*>"

SHAPE_WORDS = 256
"""Words of a line that count."""

TYPES = frozenset(
    ("num", "hex", "uuid", "ip", "mac", "path", "url", "email", "duration", "size", "time", "text", "host")
)
"""Types of values, shown as `<num>` and so on; `<*>` is a value of any type, without a digit."""

_MARK = rf"<(?:\*|{'|'.join(sorted(TYPES))})>"
_WIDE = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"  # Chinese, Japanese, Korean: each character is a word
_LETTER = rf"[^\W{_WIDE}]"
_MONTH = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_TOKEN = re.compile(
    rf"{_MARK}"
    rf"|(?<!{_LETTER})[-+]?0{_LETTER}*(?:[.:,/+-]+(?:0|{_MONTH}){_LETTER}*)*"
    rf"|{_LETTER}+(?:[.$'@\-]+{_LETTER}+)*=?"
    rf"|[{_WIDE}]"
    r"|(?<!\S)(?:[+!]|\*+|[<>]=?|==|!=|->|<-|=>|[^\x00-\x7f\w\s]+)(?!\S)"
)
_PLAIN = re.compile(r"\S+")
_GLUED = re.compile(rf"(?<={_LETTER})<num>")
_HEX = re.compile(r"[0a-f]*0[a-f][0a-f]*|[0A-F]*0[A-F][0A-F]*")
_ADDRESS = re.compile(r"0(?:\.0){3}(?::0)?")
_TIME = re.compile(rf"0:0(?::0)?(?:[.,]0)?|.*[0T:/-]0:0:0.*|0([-/.])(?:0|{_MONTH})\1(?:0).*")
_MEASURE = re.compile(r"[-+]?0(?:\.0)?([a-zA-Zµ]+)")
_SHORT = 64  # characters of a token that is remembered
_DURATIONS = frozenset(("ns", "us", "µs", "ms", "s", "sec", "min", "m", "h", "d"))
_SIZES = frozenset(("b", "k", "kb", "kib", "mb", "mib", "g", "gb", "gib", "tb", "tib"))


class Token(NamedTuple):
    """A piece of a line that is a word, or belongs to one.

    Attributes:
        start, end: where it stands.
        type: of a value, else empty.
    """

    start: int
    end: int
    type: str


class Layout(NamedTuple):
    """The words of a line and where they stand.

    Attributes:
        text: the line, as the places count.
        words: as `words` returns them.
        tokens: of each word, at least one.
    """

    text: str
    words: tuple[str, ...]
    tokens: tuple[list[Token], ...]

    def values(self) -> int:
        """Return how many values the line has; some that follow each other are one word."""
        of_values = (tokens for word, tokens in zip(self.words, self.tokens, strict=True) if word == WILDCARD)
        return sum(token.type != "unit" for tokens in of_values for token in tokens)


def is_fixed(word: str) -> bool:
    """Whether a word never becomes a value: it tells events apart, or names the value behind it."""
    return word in DECISIVE_MARKS or word[-1] == "=" or word.lower() in DECISIVE


def words(canonical: str) -> tuple[str, ...]:
    """Return the words of a canonical line, or of a template as it is shown.

    A line without words but with other characters has these as its words; an empty tuple means a blank line.
    """
    if "<num>" in canonical:
        canonical = _GLUED.sub("0", canonical)
    found: list[str] = []
    value = False  # the last word is a value
    for token in _TOKEN.findall(canonical):
        word, kind = _classify(token)
        if word == WILDCARD:
            if not value:
                while found and _belongs_before(found):
                    found.pop()
                value = bool(found) and found[-1] == WILDCARD
            if not value:
                found.append(word)
                value = True
        elif not (value and kind):
            if not (word[-1] == "0" and found and found[-1] == word):
                found.append(word)
            value = False
    return tuple(found[:SHAPE_WORDS] or canonical.split(None, SHAPE_WORDS)[:SHAPE_WORDS])


def layout(canonical: str) -> Layout:
    """Return the same words as `words`, and where they stand."""
    text = _GLUED.sub("0", canonical)
    found: list[str] = []
    tokens: list[list[Token]] = []
    value = False
    for match in _TOKEN.finditer(text):
        word, kind = _classify(match[0])
        token = Token(*match.span(), kind)
        if word == WILDCARD:
            taken: list[Token] = []
            if not value:
                while found and _belongs_before(found):
                    found.pop()
                    taken = [each._replace(type=each.type or "num") for each in tokens.pop()] + taken
                value = bool(found) and found[-1] == WILDCARD
            if not value:
                found.append(word)
                tokens.append([])
                value = True
            tokens[-1] += [*taken, token]
        elif value and kind:
            tokens[-1].append(token)
        else:
            if word[-1] == "0" and found and found[-1] == word:
                tokens[-1].append(token)
            else:
                found.append(word)
                tokens.append([token])
            value = False
    if not found:
        plain = list(_PLAIN.finditer(text))
        found, tokens = [each[0] for each in plain], [[Token(*each.span(), "")] for each in plain]
    return Layout(text, tuple(found[:SHAPE_WORDS]), tuple(tokens[:SHAPE_WORDS]))


def _belongs_before(found: list[str]) -> bool:
    """Whether the last word belongs to a value behind it."""
    word = found[-1]
    return word in CALENDAR or (word[-1] == "0" and found[-2:-1] == [WILDCARD] and word not in DECISIVE_MARKS)


def _classify(token: str) -> tuple[str, str]:
    return _remembered(token) if len(token) <= _SHORT else _read_token(token)


def _read_token(token: str) -> tuple[str, str]:
    """The word of a token and the type of a value; what only belongs to a value before it has a type too."""
    if token[0] == "<" and len(token) > 2:
        return WILDCARD, token[1:-1]
    first = token.find("0")
    if first < 0:
        if token.lower() in NOTHING:
            return WILDCARD, "text"
        if token in CALENDAR:
            return token, "time"
        return token, "unit" if token.lower() in UNITS and not is_fixed(token) else ""
    if first == 0 or token[0] in "+-" or _HEX.fullmatch(token):
        return WILDCARD, _type(token)
    return token[:first].rstrip("-.+'$@") + ("0=" if token[-1] == "=" else "0"), ""


_remembered = lru_cache(1 << 16)(_read_token)


def _type(token: str) -> str:
    if _ADDRESS.fullmatch(token):
        return "ip"
    if _TIME.fullmatch(token):
        return "time"
    if token.startswith("0x") or _HEX.fullmatch(token):
        return "hex"
    measure = _MEASURE.fullmatch(token)
    if measure is not None:
        unit = measure[1].lower()
        return "duration" if unit in _DURATIONS else "size" if unit in _SIZES else "num"
    return "num"
