"""Templates as people read them, and what they say: one text for both.

`<*> GET <path> HTTP/<num>" 500 <num>`: constants as they stand in lines, values by their types, `<*>` for words that
turned out to vary. A number from `CODES` in a template is a code: lines with another number there are other events.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from detector.text.lexicon import DECISIVE_MARKS, SEVERITIES
from detector.text.words import SHAPE_WORDS, WILDCARD, Layout, Token, is_fixed, layout

CODES = range(100, 600)
"""Numbers that can be codes: the status codes of HTTP and of what took over their order."""

_DIGITS = re.compile("[0-9]+")


class Place(NamedTuple):
    """Where a template has its code.

    Attributes:
        word: a value among the template's words.
        token: which of the tokens that the value takes.
    """

    word: int
    token: int


class Pattern(NamedTuple):
    """What a template's text says.

    Attributes:
        words: `WILDCARD` for a value.
        widths: most words of a line that each stands for.
        place, code: of the code, None where there is none.
    """

    words: tuple[str, ...]
    widths: tuple[int, ...]
    place: Place | None
    code: int | None


def read(template: str) -> Pattern:
    """Read a template.

    Raises:
        ValueError: a text that is no template, with the reason.
    """
    numbers = list(_DIGITS.finditer(template))
    if " ".join(template.split()) != template or not template:
        raise ValueError("is not in canonical form: words with one space between them")
    if len(numbers) > 1 or (numbers and int(numbers[0][0]) not in CODES):
        raise ValueError(f"is not in canonical form: only one code from {CODES[0]} to {CODES[-1]} may be a number")
    found = layout(_DIGITS.sub("0", template))
    widths = tuple(_width(tokens) if word == WILDCARD else 1 for word, tokens in zip(*found[1:], strict=True))
    if not numbers:
        return Pattern(found.words, widths, None, None)
    # The only 0 of the text, but for those that stand for <num> behind letters.
    for index, (word, tokens) in enumerate(zip(found.words, found.tokens, strict=True)):
        for at, token in enumerate(tokens):
            if word == WILDCARD and found.text[token.start : token.end] == "0":
                return Pattern(found.words, widths, Place(index, at), int(numbers[0][0]))
    raise ValueError("is not in canonical form: its number is part of a word")


def _width(tokens: Sequence[Token]) -> int:
    """How many words of a line these stand for: what has no digit is a word each, the others are one together."""
    free = sum(token.type == "*" for token in tokens)
    runs = sum(
        token.type not in ("*", "unit") and (not at or tokens[at - 1].type == "*") for at, token in enumerate(tokens)
    )
    return max(free + runs, 1)


def spell(pattern: Pattern, example: Layout, parts: Sequence[slice]) -> str:
    """Return the text of a template.

    Args:
        pattern: what it has to say.
        example: a line that it matches.
        parts: the words of the line that each word of the template takes.
    """
    pieces, last = [], 0
    for index, (word, part) in enumerate(zip(pattern.words, parts, strict=True)):
        tokens = _taken(example, part)
        pieces.append(example.text[last : tokens[0].start])
        last = tokens[-1].end
        if word != WILDCARD:
            pieces.append(_constant(word, example.text[tokens[0].start : tokens[0].end]))
            continue
        pieces.append(f"{WILDCARD} " * (pattern.widths[index] - _width(tokens)))
        at = tokens[0].start
        for number, token in enumerate(tokens):
            pieces.append(example.text[at : token.start])
            at = token.end
            if pattern.place == Place(index, number):
                pieces.append(str(pattern.code))
            else:
                pieces.append(example.text[token.start : at] if token.type == "unit" else f"<{token.type}>")
    if len(example.words) < SHAPE_WORDS:
        pieces.append(example.text[last:])
    text = " ".join("".join(pieces).split())
    return text if _says(text, pattern) else spell_plainly(pattern)


def code_run(line: Layout, parts: Sequence[slice], place: Place) -> int | None:
    """Return which run of digits of a line is its code, counted from 0, or None where no integer is in that place.

    Args:
        line: that the template matches.
        parts: the words of the line that each word of the template takes.
        place: of the code in the template.
    """
    tokens = _taken(line, parts[place.word])
    if place.token >= len(tokens):
        return None
    token = tokens[place.token]
    return line.text.count("0", 0, token.start) if line.text[token.start : token.end] == "0" else None


def integers(line: Layout, parts: Sequence[slice]) -> Iterator[tuple[Place, int]]:
    """Yield the places of a template where a line has integers, and which run of its digits each is."""
    for index, part in enumerate(parts):
        for number, token in enumerate(_taken(line, part)):
            if token.type == "num" and line.text[token.start : token.end] == "0":
                yield Place(index, number), line.text.count("0", 0, token.start)


def reasons(template: str) -> dict[str, str]:
    """Return the words of a template that stay although they vary, and why: they never become values."""
    pattern = read(template)
    why = {word: _reason(word) for word in pattern.words if is_fixed(word)}
    return why if pattern.code is None else why | {str(pattern.code): "code"}


def _reason(word: str) -> str:
    if word[-1] == "=":
        return "key"
    return "severity" if word in DECISIVE_MARKS or word.lower() in SEVERITIES else "state"


def _taken(line: Layout, part: slice) -> list[Token]:
    """The tokens of some words; those of words that are no values by themselves have the type `*`."""
    return [
        token._replace(type=token.type if word == WILDCARD else "*")
        for word, tokens in zip(line.words[part], line.tokens[part], strict=True)
        for token in tokens
    ]


def _says(text: str, pattern: Pattern) -> bool:
    try:
        found = read(text)
    except ValueError:
        return False
    wide = all(has >= needs for has, needs in zip(found.widths, pattern.widths, strict=False))
    return found.words == pattern.words and wide and found[2:] == pattern[2:]


def spell_plainly(pattern: Pattern) -> str:
    """Return the text of a template without an example, and without punctuation."""
    shown = []
    for index, (word, width) in enumerate(zip(pattern.words, pattern.widths, strict=True)):
        if pattern.place is not None and pattern.place.word == index:
            tokens = ["<num>"] * (pattern.place.token + 1)
            tokens[-1] = str(pattern.code)
            shown += [*tokens, *[WILDCARD] * (width - 1)]
        else:
            shown += [WILDCARD] * width if word == WILDCARD else [_constant(word, word)]
    return " ".join(shown)


def _constant(word: str, shown: str) -> str:
    return shown if "0" not in shown else word.replace("0", "<num>")
