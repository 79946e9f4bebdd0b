"""Learning a vocabulary from raw lines, in one pass, linear time and bounded memory.

Texts that no template matches are gathered, up to a block; then templates are learned from their shapes and from the
templates there are (`detector.text.learning`), and the texts go through the tree of these, as lines do that are served.
What a template matches is only counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detector.text.canonical import (
    CANONICAL_CHARACTERS,
    Mask,
    chunks,
    collapse,
    digit_runs,
    fold,
    prepare,
    strings,
)
from detector.text.learning import Template, generalise
from detector.text.matching import Match, Matcher
from detector.text.patterns import CODES, Pattern, Place, integers, spell, spell_plainly
from detector.text.vocabulary import Seen, Vocabulary
from detector.text.words import layout, words

MAX_TEMPLATES = 4096
"""Templates that a vocabulary keeps; of more, those of the fewest lines go."""

BLOCK_TEXTS = 20_000
"""So many texts, about, are learned from together."""

MOST_CODES = 12
"""A place with more different numbers holds no code."""

LINES_A_CODE = 10
"""A place with codes has on average so many lines for each, or more."""

_BLOCK_CHARACTERS = 32 * 2**20
_WINDOW_LINES = 8_192  # a block ends after a multiple of these, however lines fall into batches
_EXAMPLE_CHARACTERS = 500
_KNOWN_TEXTS = 100_000  # texts whose template is remembered

_Ints = NDArray[np.int64]
_Codes = dict[int, dict[int, Seen]]  # by the run of digits, of the lines with each code
_Places = dict[Place, dict[int, Seen]]


@dataclass
class _Text:
    """A folded text that no template matches yet, and the lines that have it."""

    shape: tuple[str, ...]
    seen: Seen
    codes: _Codes

    def add(self, seen: Seen, codes: _Codes) -> None:
        self.seen = _together(self.seen, seen)
        _count(self.codes, codes)


@dataclass
class _Learned:
    """A template, a text that it matches, and what is known of its lines."""

    template: Template
    text: str
    seen: Seen
    places: _Places = field(default_factory=dict)

    def add(self, text: str, seen: Seen, places: _Places) -> None:
        if seen.first < self.seen.first:
            self.text = text
        self.seen = _together(self.seen, seen)
        _count(self.places, places)

    def codes(self) -> tuple[Place, dict[int, Seen]] | None:
        """The first place in which all lines have one of a few codes, and the lines that have which."""
        for place, codes in sorted(self.places.items()):
            few = 2 <= len(codes) <= MOST_CODES
            if few and sum(seen.lines for seen in codes.values()) == self.seen.lines >= LINES_A_CODE * len(codes):
                return place, codes
        return None

    def spelt(self, match: Match | None) -> Iterator[tuple[str, Seen]]:
        """The templates, one for each code.

        Args:
            match: of the text with this template, None where another template takes the text.
        """
        words, widths, _ = self.template
        if match is not None:
            widths = tuple(map(max, widths, match.taken))
        found = self.codes()
        if found is None:
            yield self._text(Pattern(words, widths, None, None), match), self.seen
            return
        place, codes = found
        for code, seen in sorted(codes.items()):
            yield self._text(Pattern(words, widths, place, code), match), seen

    def _text(self, pattern: Pattern, match: Match | None) -> str:
        return spell_plainly(pattern) if match is None else spell(pattern, layout(self.text), match.parts())


def learn_vocabulary(
    batches: Iterable[pa.Array], masks: Sequence[Mask] = (), max_templates: int = MAX_TEMPLATES
) -> Vocabulary:
    """Learn the templates of raw lines.

    Templates are in the order of their first lines. The result depends on the lines and their order, not on how they
    fall into batches; on the order it depends only where there are more texts than a block has. Every line matches a
    template unless there were more than `max_templates`.

    Args:
        batches: arrays of strings without nulls.
        masks: custom masks of the vocabulary.
        max_templates: most templates kept, at least 1; those that differ in a code count as one.

    Raises:
        ValueError: not an array of strings, a null among them, or `max_templates` below 1.
    """
    if max_templates < 1:
        raise ValueError(f"max_templates is at least 1, not {max_templates}")
    miner = _Miner(masks, max_templates)
    for window in _windows(map(strings, batches)):
        for chunk in chunks(window):
            miner.add(chunk)
        miner.learn_when_due()
    spelt = dict(miner.spelt())
    return Vocabulary(tuple(spelt), tuple(masks), seen=tuple(spelt.values()))


class _Miner:
    def __init__(self, masks: Sequence[Mask], max_templates: int) -> None:
        self._masks = masks
        self._max_templates = max_templates
        self._n_lines = 0
        self._new: dict[str, _Text] = {}
        self._new_characters = 0
        self._matcher = Matcher()
        self._learned: list[_Learned] = []
        self._known: dict[str, Match] = {}

    def add(self, lines: pa.StringArray) -> None:
        """Gather lines."""
        prepared = prepare(lines, self._masks)
        canonical = collapse(prepared).dictionary_encode()
        folded = fold(canonical.dictionary).dictionary_encode()
        text_of = folded.indices.to_numpy()[canonical.indices.to_numpy()]
        n = len(folded.dictionary)
        rows = np.arange(len(lines))
        first, last = np.full(n, len(lines)), np.zeros(n, np.int64)
        np.minimum.at(first, text_of, rows)
        np.maximum.at(last, text_of, rows)
        counts = np.bincount(text_of, minlength=n)
        seen = self._seen(lines, counts, first, last)
        codes = self._codes(lines, prepared, text_of)
        texts = folded.dictionary.to_pylist()
        for number in np.argsort(first, kind="stable").tolist():
            self._see(texts[number], seen[number], codes.get(number, {}))
        self._n_lines += len(lines)

    def _seen(self, lines: pa.StringArray, counts: _Ints, first: _Ints, last: _Ints) -> list[Seen]:
        """What is known of groups of lines, given how many they are and the rows of the first and the last ones."""
        examples = pc.utf8_slice_codeunits(lines.take(pa.array(first)), 0, _EXAMPLE_CHARACTERS).to_pylist()
        begun, ended = (first + self._n_lines).tolist(), (last + self._n_lines).tolist()
        return list(map(Seen, counts.tolist(), begun, ended, examples))

    def _codes(self, lines: pa.StringArray, prepared: pa.StringArray, text_of: _Ints) -> dict[int, _Codes]:
        """For each text, its runs of digits that are a code in all of these lines, and the lines that have which.

        Args:
            lines: (n,) as they are.
            prepared: (n,) the same, prepared.
            text_of: (n,) the number of each one's folded text.
        """
        # Longer lines are folded otherwise; that none of them counts makes sure that their templates have no codes.
        short = np.flatnonzero(np.asarray(pc.binary_length(prepared)) <= CANONICAL_CHARACTERS)
        starts, values = digit_runs(fold(prepared.take(pa.array(short))))
        if not len(values):
            return {}
        row = np.repeat(short, np.diff(starts))
        run = np.arange(len(values)) - np.repeat(starts[:-1], np.diff(starts))
        _, place = np.unique(text_of[row] * (int(run.max()) + 1) + run, return_inverse=True)
        is_code = (values >= CODES.start) & (values < CODES.stop)
        chosen = np.flatnonzero((np.bincount(place[~is_code], minlength=len(place)) == 0)[place])
        _, first, of, counts = np.unique(
            place[chosen] * CODES.stop + values[chosen], return_index=True, return_inverse=True, return_counts=True
        )
        last = np.zeros(len(first), np.int64)
        np.maximum.at(last, of, row[chosen])
        at = chosen[first]
        seen = self._seen(lines, counts, row[at], last)
        found: dict[int, _Codes] = {}
        for number, each, code, those in zip(
            text_of[row[at]].tolist(), run[at].tolist(), values[at].tolist(), seen, strict=True
        ):
            found.setdefault(number, {}).setdefault(each, {})[code] = those
        return found

    def _see(self, text: str, seen: Seen, codes: _Codes) -> None:
        new = self._new.get(text)
        if new is not None:
            new.add(seen, codes)
            return
        match = self._known.get(text)
        if match is None:
            shape = words(text)
            match = self._matcher.match(shape) if self._learned else None
            if match is None:
                if shape:
                    self._new[text] = _Text(shape, seen, codes)
                    self._new_characters += len(text)
                return
        if len(self._known) < _KNOWN_TEXTS:
            self._known[text] = match
        self._learned[match.number].add(text, seen, _places(text, match, codes))

    def learn_when_due(self) -> None:
        """Learn from what was gathered if that is a block."""
        if len(self._new) >= BLOCK_TEXTS or self._new_characters >= _BLOCK_CHARACTERS:
            self._learn()

    def spelt(self) -> Iterator[tuple[str, Seen]]:
        """Return the templates of all lines, in the order of their first lines."""
        self._learn()
        for number, learned in enumerate(self._learned):
            match = self._matcher.match(words(learned.text))
            yield from learned.spelt(match if match is not None and match.number == number else None)

    def _learn(self) -> None:
        shapes: Counter[tuple[str, ...]] = Counter()
        for new in self._new.values():
            shapes[new.shape] += new.seen.lines
        older = [learned.template for learned in self._learned]
        templates = generalise([*older, *(Template(shape, (1,) * len(shape), n) for shape, n in shapes.items())])
        matcher = Matcher()
        for index, template in enumerate(templates):
            matcher.put(template.words, template.widths, index)
        found: dict[int, _Learned] = {}

        def add(match: Match | None, text: str, seen: Seen, places: _Places) -> None:
            if match is None:
                return  # a tree that takes too many steps
            if match.number in found:
                found[match.number].add(text, seen, places)
            else:
                found[match.number] = _Learned(templates[match.number], text, seen, places)

        for learned in self._learned:
            match = matcher.match(learned.template.words)
            add(match, learned.text, learned.seen, {} if match is None else _moved(learned.places, match))
        for text, new in self._new.items():
            match = matcher.match(new.shape)
            add(match, text, new.seen, {} if match is None else _places(text, match, new.codes))
        most = sorted(found.values(), key=lambda each: (-each.seen.lines, each.seen.first))[: self._max_templates]
        self._learned = sorted(most, key=lambda each: each.seen.first)
        self._matcher = Matcher()
        for index, learned in enumerate(self._learned):
            self._matcher.put(learned.template.words, learned.template.widths, index)
        self._new, self._new_characters, self._known = {}, 0, {}


def _windows(batches: Iterable[pa.StringArray]) -> Iterator[pa.StringArray]:
    """The lines of all batches, in parts of equal length, but for the last one."""
    waiting: list[pa.StringArray] = []
    n = 0
    for batch in batches:
        start = 0
        while n + len(batch) - start >= _WINDOW_LINES:
            end = start + _WINDOW_LINES - n
            yield pa.concat_arrays([*waiting, batch.slice(start, end - start)])
            waiting, n, start = [], 0, end
        waiting.append(batch.slice(start))
        n += len(batch) - start
    if n:
        yield pa.concat_arrays(waiting)


def _places(text: str, match: Match, codes: _Codes) -> _Places:
    """Where in the template the codes of a text are."""
    if not codes:
        return {}
    return {place: codes[run] for place, run in integers(layout(text), match.parts()) if run in codes}


def _moved(places: _Places, match: Match) -> _Places:
    """Where in a template the codes of an older one are, if it is known."""
    begins = {part.start: index for index, part in enumerate(match.parts())}
    return {Place(begins[place.word], place.token): n for place, n in places.items() if place.word in begins}


def _together(one: Seen, other: Seen) -> Seen:
    early = min(one, other, key=lambda each: each.first)
    return replace(early, lines=one.lines + other.lines, last=max(one.last, other.last))


_Key = TypeVar("_Key")


def _count(mine: dict[_Key, dict[int, Seen]], more: dict[_Key, dict[int, Seen]]) -> None:
    for key, codes in more.items():
        kept = mine.setdefault(key, {})
        for code, seen in codes.items():
            if code in kept:
                kept[code] = _together(kept[code], seen)
            elif len(kept) <= MOST_CODES:  # one more tells that there are too many
                kept[code] = seen
