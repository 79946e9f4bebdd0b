"""Lines to tokens: a dictionary of canonical lines, and the vocabulary's tree of templates for those it does not hold.

A token is a pure function of the line and the vocabulary. The dictionary only remembers it, so neither its
size nor the order of lines ever shows.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detector.text.canonical import CANONICAL_CHARACTERS, chunks, collapse, digit_runs, fold, prepare, strings
from detector.text.patterns import CODES
from detector.text.vocabulary import UNK, CodedTemplate, Found, Vocabulary

_CODED: Final = -(1 << 62)
"""In the dictionary, `_CODED - i` stands for the i-th place of a code; tokens are above."""


class Tokenizer:
    """Turns lines into tokens of one vocabulary.

    Args:
        vocabulary: the templates, or the event names of parsed sessions.
        unknown: what no template matches becomes `semantic` the token of the template that says the same in other
            words, or else a negative token that carries its text; `unk` UNK.
        dictionary_lines: most canonical lines remembered.
        dictionary_characters: most characters of theirs remembered.

    Attributes:
        unknown_lines: lines that became no token of a template, so far.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        unknown: Literal["semantic", "unk"] = "semantic",
        dictionary_lines: int = 131_072,
        dictionary_characters: int = 64 * 2**20,
    ) -> None:
        self.vocabulary = vocabulary
        self.unknown_lines = 0
        self._semantic = unknown == "semantic"
        self._dictionary = _Dictionary(dictionary_lines, dictionary_characters)
        self._folded = _Dictionary(dictionary_lines, dictionary_characters)
        self._codes = _Codes()

    def encode(self, lines: pa.Array) -> NDArray[np.int64]:
        """Return the token of each line.

        Args:
            lines: (n,) strings without nulls; event names for a vocabulary of events.

        Returns:
            (n,) tokens; negative ones are unknown lines with their text (`detector.text.word_hashes.unpack`).

        Raises:
            ValueError: not an array of strings, or a null among them.
        """
        lines = strings(lines)
        tokens = np.empty(len(lines), np.int64)
        encode = self._lines if self.vocabulary.kind == "lines" else self._events
        start = 0
        for chunk in chunks(lines):
            tokens[start : start + len(chunk)] = encode(chunk)
            start += len(chunk)
        self.unknown_lines += int(np.count_nonzero(tokens <= UNK))
        return tokens

    def _events(self, names: pa.StringArray) -> NDArray[np.int64]:
        encoded = names.dictionary_encode()
        distinct = np.array([self._event(name) for name in encoded.dictionary.to_pylist()], np.int64)
        tokens: NDArray[np.int64] = distinct[encoded.indices.to_numpy()]
        return tokens

    def _event(self, name: str) -> int:
        token = self._dictionary.get(name)
        if token is None:
            found = self.vocabulary.token_of(name)
            token = self._unknown(name) if found is None else found
            self._dictionary.put(name, token)
        return token

    def _lines(self, lines: pa.StringArray) -> NDArray[np.int64]:
        prepared = prepare(lines, self.vocabulary.masks)
        encoded = collapse(prepared).dictionary_encode()
        texts = encoded.dictionary.to_pylist()
        entries = [self._dictionary.get(text) for text in texts]
        new = [index for index, entry in enumerate(entries) if entry is None]
        if new:
            for index, folded in zip(new, fold(encoded.dictionary.take(pa.array(new))).to_pylist(), strict=True):
                entries[index] = entry = self._search(folded)
                self._dictionary.put(texts[index], entry)
        tokens: NDArray[np.int64] = np.array(entries, np.int64)[encoded.indices.to_numpy()]
        coded = np.flatnonzero(tokens <= _CODED)
        if len(coded):
            tokens[coded] = self._codes.read(prepared.take(pa.array(coded)), _CODED - tokens[coded])
        return tokens

    def _search(self, folded: str) -> int:
        """The token of a folded line, or where its code is that decides about it."""
        token = self._folded.get(folded)
        if token is None:
            token = self._found(folded, self.vocabulary.find(folded))
            self._folded.put(folded, token)
        return token

    def _found(self, folded: str, found: Found) -> int:
        if found.coded is None:
            like = self.vocabulary.like(folded) if self._semantic and found.token is None else found.token
            return self._unknown(folded) if like is None else like
        other = found.token
        if other is None:  # as the template's own text says, so that there are few such tokens
            other = self._unknown(self.vocabulary.text(min(found.coded.tokens.values())))
        return other if found.run is None else _CODED - self._codes.place(found.coded, found.run, other)

    def _unknown(self, text: str) -> int:
        return self.vocabulary.sketch(text) if self._semantic else UNK


def event_tokens(vocabulary: Vocabulary, sessions: Iterable[Sequence[str]]) -> Iterator[NDArray[np.int64]]:
    """Tokens of parsed sessions, with a vocabulary of such: each event's name is its own template."""
    tokenizer = Tokenizer(vocabulary, unknown="unk")
    for events in sessions:
        yield tokenizer.encode(pa.array(events, pa.string()))


class _Codes:
    """Places in folded lines where a code decides about the token."""

    def __init__(self) -> None:
        self._number: dict[tuple[int, int, int], int] = {}
        self._runs: list[int] = []
        self._tokens: list[NDArray[np.int64]] = []

    def place(self, coded: CodedTemplate, run: int, other: int) -> int:
        """The number of a place: a run of digits, the tokens by code, and the token of any other code."""
        key = (id(coded), run, other)
        number = self._number.get(key)
        if number is None:
            number = self._number[key] = len(self._runs)
            tokens = np.full(CODES.stop + 1, other)
            for code, token in coded.tokens.items():
                tokens[code] = token
            self._runs.append(run)
            self._tokens.append(tokens)
        return number

    def read(self, prepared: pa.StringArray, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the token of each line whose place of a code is given."""
        codes = np.full(len(places), CODES.stop)
        short = np.flatnonzero(np.asarray(pc.binary_length(prepared)) <= CANONICAL_CHARACTERS)
        starts, values = digit_runs(fold(prepared.take(pa.array(short))))
        at = starts[:-1] + np.array(self._runs)[places[short]]
        there = at < starts[1:]
        found = values[at[there]]
        codes[short[there]] = np.where((found >= CODES.start) & (found < CODES.stop), found, CODES.stop)
        tokens = np.empty(len(places), np.int64)
        for place in np.unique(places).tolist():
            of_place = places == place
            tokens[of_place] = self._tokens[place][codes[of_place]]
        return tokens


class _Dictionary:
    """A bounded memory of tokens in two generations; a text found in the older one moves to the younger."""

    def __init__(self, lines: int, characters: int) -> None:
        self._lines = lines // 2
        self._characters = characters // 2
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}
        self._young_characters = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, text: str) -> int | None:
        token = self._young.get(text)
        if token is None:
            token = self._old.pop(text, None)
            if token is not None:
                self.put(text, token)
        return token

    def put(self, text: str, token: int) -> None:
        self._young[text] = token
        self._young_characters += len(text)
        if len(self._young) > self._lines or self._young_characters > self._characters:
            self._old, self._young, self._young_characters = self._young, {}, 0
