"""A template's text says what it matches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.text.matching import Matcher
from detector.text.patterns import Pattern, Place, read, reasons, spell
from detector.text.words import WILDCARD, layout
from tests.detector.text.test_words import LINE, collapsed


@given(LINE, st.integers(1, 4), st.data())
def test_what_is_spelt_is_read_again(line: str, width: int, data: st.DataObject) -> None:
    example = layout(collapsed(line))
    if not example.words:
        return
    widths = tuple(width if word == WILDCARD else 1 for word in example.words)
    places = [
        Place(index, at)
        for index, tokens in enumerate(example.tokens)
        for at, token in enumerate(tokens)
        if example.words[index] == WILDCARD and example.text[token.start : token.end] == "0"
    ]
    place = data.draw(st.sampled_from([None, *places]))
    pattern = Pattern(example.words, widths, place, None if place is None else 404)
    matcher = Matcher()
    matcher.put(pattern.words, pattern.widths, 0)
    match = matcher.match(example.words)
    assert match is not None
    text = spell(pattern, example, match.parts())
    again = read(text)
    assert again.words == pattern.words
    assert again.code == pattern.code
    assert all(has >= needs for has, needs in zip(again.widths, pattern.widths, strict=True))


@pytest.mark.parametrize(
    ("template", "words", "widths"),
    [
        ("<time> INFO Download of <*> finished", "<*> INFO Download of <*> finished", (1, 1, 1, 1, 1, 1)),
        ("from <*> <*> (<ip>) at <time> <time>", "from <*> at <*>", (1, 3, 1, 1)),
        ("Received block blk_<num> of size <num>", "Received block blk_0 of size <*>", (1, 1, 1, 1, 1, 1)),
    ],
)
def test_free_words_of_a_value_are_counted(template: str, words: str, widths: tuple[int, ...]) -> None:
    assert read(template)[:2] == (tuple(words.split()), widths)


def test_a_number_is_a_code() -> None:
    assert read('"GET <path> HTTP/<num>" 404 <num>')[2:] == (Place(3, 1), 404)
    for text in ("disk 7 full", "disk 99 full", "disk 600 full", "disk 404 of 404 full", "disk404 full", "a  b", ""):
        with pytest.raises(ValueError, match="is not in canonical form"):
            read(text)


def test_it_is_told_why_words_stay() -> None:
    assert reasons("<time> ERROR link down uid=<num> answer 503") == {
        "ERROR": "severity",
        "down": "state",
        "uid=": "key",
        "503": "code",
    }
