"""Which words of lines are values: templates from shapes, in linear time.

A shape is the words of a line (`detector.text.words`). Each round leaves out every place of every shape in turn, by a
sum of hashes, so that shapes which differ in this place alone fall into one bucket; the words met there decide whether
the place is a value. Shapes that became equal are one. What is decided depends on the set of shapes, not on their
order.

A place becomes a value without doubt where all its words hold digits. Otherwise something must remain that tells what
the line is about (an anchor), and the words are many, or look like identifiers, or stand beside a value, or behind a
word such as `user`. A word that tells events apart (`detector.text.words.is_fixed`) never becomes a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from detector.text.lexicon import CALENDAR, ENTITY_KEYS, PREPOSITIONS, STOP_WORDS, UNITS
from detector.text.matching import Match, Matcher
from detector.text.shapes import VALUE, Flags, Groups, Ints, Kinds, Shapes, hash_of, mix, unique
from detector.text.words import WILDCARD, is_fixed

ROUNDS = 8

MANY = 8
"""More words than this in one place are values."""

VERY_MANY = 100
"""So many tails, of words that hardly any other shape has, are values behind what else would count as a header."""

FEW_IDS = 3
"""So many words that look like identifiers are values."""

HEADER_PLACES = 6
"""Leading places that may turn out to be columns of a header."""

_HEADER_RESTS = 4  # messages that come with different words of such a column
_HEADER_SHARE = 0.5  # of the lines, those whose message comes with different words of it
_KEY_WORDS = 3  # most words that are the value of a `key=`
_RARE_SHAPES = (1, 3)  # a word that so many shapes have, or one in a thousand, is rare
_SLACK = 6  # words by which a value may outgrow what it has taken yet
_RARER = 10  # times as many lines allow a value to take a strange word
_CONSTANTS = 3  # that a template needs for it


class Template(NamedTuple):
    """What lines of one kind have in common.

    Attributes:
        words: `WILDCARD` for a value.
        widths: most words of a line that each word stands for, 1 for those that are no values.
        lines: lines that have it.
    """

    words: tuple[str, ...]
    widths: tuple[int, ...]
    lines: int


def generalise(shapes: Sequence[Template]) -> list[Template]:
    """Learn templates.

    Args:
        shapes: of lines, or templates that were learned earlier; each has at least one word.

    Returns:
        Templates in the order of the first shape of each. Every shape matches one of them.
    """
    if not shapes:
        return []
    learner = _Learner(shapes)
    table = learner.rounds(learner.without_header(learner.table))
    before = 0
    while before != len(table):
        before = len(table)
        table = learner.masked(table, learner.behind_keys(table), FEW_IDS - 1)
        for n in (*_RARE_SHAPES, before // 1000):
            table = learner.masked(table, learner.rare(table, n), MANY)
    return _absorbed(learner.templates(table))


class _Learner:
    def __init__(self, shapes: Sequence[Template]) -> None:
        words = list(dict.fromkeys((WILDCARD, *(word for shape in shapes for word in shape.words))))
        number = {word: index for index, word in enumerate(words)}
        self.table = Shapes.of(
            [[number[word] for word in shape.words] for shape in shapes],
            [shape.widths for shape in shapes],
            [shape.lines for shape in shapes],
        )
        self._words = words
        self._kinds = _kinds(words)

    def templates(self, table: Shapes) -> list[Template]:
        """Return the rows of a table."""
        words, widths = [self._words[number] for number in table.words.tolist()], table.widths.tolist()
        parts = [slice(end - length, end) for end, length in zip(np.cumsum(table.lengths), table.lengths, strict=True)]
        return [
            Template(tuple(words[part]), tuple(widths[part]), lines)
            for part, lines in zip(parts, table.lines.tolist(), strict=True)
        ]

    def rounds(self, table: Shapes) -> Shapes:
        """Decide about single places until nothing changes."""
        for _ in range(ROUNDS):
            becomes = self._single_places(table)
            if not becomes.any():
                break
            table = table.with_values(becomes, self._kinds)
        return table

    def _single_places(self, table: Shapes) -> Flags:
        kinds = self._kinds
        words, n = table.words, len(table.words)
        anchor = self._anchors(table)
        rests, left_out = table.without_words()
        anchored = table.count(anchor)[table.row] > np.where(anchor, left_out, 0)
        before = np.where(table.place > 0, words[np.arange(n) - 1], VALUE)

        at = np.flatnonzero(~kinds.fixed[words])
        groups = Groups(rests[at])
        w = words[at]
        distinct = groups.distinct(w)
        all_digits = groups.count(~kinds.digit[w]) == 0
        ids = groups.count(kinds.odd[w])
        beside_value = groups.count(w == VALUE) > 0
        often_named = groups.count(kinds.preposition[before[at]]) > 0
        named = groups.count(kinds.entity_key[before[at]]) > 0
        many = (distinct > MANY) | ((ids >= FEW_IDS) & (2 * ids > groups.count(w == w)))
        evidence = many | beside_value | named | (often_named & (distinct >= FEW_IDS))
        becomes = np.zeros(n, np.bool_)
        becomes[at] = (distinct > 1)[groups.of] & (all_digits[groups.of] | (evidence[groups.of] & anchored[at]))
        becomes &= words != VALUE
        return becomes

    def _anchors(self, table: Shapes) -> Flags:
        """Words that tell what a line is about: behind its header, and followed by few different words."""
        constant = np.flatnonzero(table.words != VALUE)
        here, following = constant[:-1], constant[1:]
        same = table.row[here] == table.row[following]
        n = len(self._words)
        pairs = unique(table.words[here[same]] * n + table.words[following[same]])
        followers = np.bincount(pairs // n, minlength=n)
        specific = self._kinds.plain & (followers <= MANY)
        anchors: Flags = specific[table.words] & (table.place >= self._header_ends(table)[table.row])
        return anchors

    def _header_ends(self, table: Shapes) -> Ints:
        """(n,) the place behind the header of each shape.

        A logger writes many different messages: a header ends where many words follow the same words, most of them with
        rests of their own.
        """
        before, after = table.prefixes()
        at = np.flatnonzero(table.place < table.lengths[table.row] - 1)
        groups = Groups(mix(before[at] + mix(table.place[at].astype(np.uint64))))
        children = groups.distinct(table.words[at])
        forks = (children > MANY) & (2 * groups.distinct(after[at]) > children)
        ends = np.zeros(len(table), np.int64)
        fork = at[forks[groups.of]]
        np.maximum.at(ends, table.row[fork], table.place[fork])
        return ends

    def without_header(self, table: Shapes) -> Shapes:
        """Make values of leading places whose words do not depend on the rest of the line: hosts, programs.

        They are where most lines have a rest that comes with other words of the place too, and several such rests.
        """
        for place in range(HEADER_PLACES):
            at = self._open(table, place)
            digits = at[self._kinds.digit[table.words[at]]]
            if len(np.unique(table.words[digits])) >= FEW_IDS:
                table = self._with(table, digits)
                at = self._open(table, place)
            row = table.row[at]
            rests = Groups(table.totals[row] - table.hashes[at])
            size = rests.count(np.ones(len(at), np.bool_))
            constant = (table.place == place) & (table.words != VALUE)
            lines = table.lines[table.row[constant]].sum()
            shared = table.lines[row[size[rests.of] > 1]].sum()
            if np.count_nonzero(size > 1) >= _HEADER_RESTS and shared >= _HEADER_SHARE * lines:
                table = self._with(table, at)
        return table

    def _open(self, table: Shapes, place: int) -> Ints:
        """Where words in this place could become values."""
        return np.flatnonzero((table.place == place) & (table.words != VALUE) & ~self._kinds.fixed[table.words])

    def _with(self, table: Shapes, at: Ints) -> Shapes:
        becomes = np.zeros(len(table.words), np.bool_)
        becomes[at] = True
        return table.with_values(becomes, self._kinds)

    def rare(self, table: Shapes, shapes: int) -> Flags:
        """Words that no more than so many shapes have."""
        return (np.bincount(table.words) <= shapes)[table.words]

    def behind_keys(self, table: Shapes) -> Flags:
        """Words behind `key=`, up to the next one."""
        key = self._kinds.key[table.words]
        behind = table.next_to(key)[0] & ~key
        for _ in range(_KEY_WORDS - 1):
            behind |= table.next_to(behind)[0] & ~key
        return behind

    def masked(self, table: Shapes, masked: Flags, more_than: int) -> Shapes:
        """Make values of the places in which shapes differ that are equal but for masked words.

        Args:
            table: the shapes.
            masked: candidates among their words.
            more_than: a place needs more different words than this.
        """
        words, row = table.words, table.row
        masked = masked & ~self._kinds.fixed[words] & (words != VALUE)
        if not masked.any():
            return table
        without = table.with_values(masked, self._kinds)
        value = masked | (words == VALUE)
        head = ~(value & table.next_to(value)[0])
        run = np.cumsum(head) - 1
        heads = np.flatnonzero(head)
        place = run - run[table.starts][row]
        content = np.add.reduceat(hash_of(words, np.arange(len(words)) - heads[run]), heads)[run]
        groups = Groups(mix(without.totals[without.became][row] + mix(place.astype(np.uint64))))
        distinct = groups.distinct(content)[groups.of]
        anchored = table.any_of(self._anchors(table) & ~masked)[row]
        anchored_without = without.any_of(self._anchors(without))[without.became][row]
        becomes = masked & (((distinct > more_than) & anchored) | ((distinct > VERY_MANY) & anchored_without))
        return self.rounds(table.with_values(becomes, self._kinds)) if becomes.any() else table


def _kinds(words: Sequence[str]) -> Kinds:
    flags = [
        (
            fixed := is_fixed(word),
            word[-1] == "=",
            digit := word == WILDCARD or word[-1] == "0" or word[-2:] == "0=",
            word in CALENDAR or word.lower() in UNITS,
            word in CALENDAR,
            digit or ((any(each in "-_@" for each in word) or word.count(".") > 1) and word != word.upper()),
            not (fixed or digit) and len(word) > 2 and word.lower() not in STOP_WORDS,
            word.rstrip("=").lower() in ENTITY_KEYS,
            word.lower() in PREPOSITIONS,
        )
        for word in words
    ]
    return Kinds(*np.array(flags, np.bool_).T)


def _absorbed(templates: Sequence[Template]) -> list[Template]:
    """A template that a more general one matches is part of it, and the general one takes from now on what it took."""
    found: dict[int, Template] = dict(enumerate(templates))
    matcher = Matcher()
    for index, (words, widths, _) in found.items():
        matcher.put(words, widths, index)
    for index in sorted(found, key=lambda index: found[index].words.count(WILDCARD) - len(found[index].words)):
        template = found[index]
        matcher.put(template.words, template.widths, None)
        match = matcher.match(template.words, _SLACK)
        if match is None or not _may_take(found[match.number], template, match):
            matcher.put(template.words, template.widths, index)
            continue
        general = found[match.number]
        widths = tuple(
            max(width, sum(template.widths[part])) for width, part in zip(general.widths, match.parts(), strict=True)
        )
        found[match.number] = Template(general.words, widths, general.lines + template.lines)
        matcher.put(general.words, widths, match.number)
        del found[index]
    return list(found.values())


def _may_take(general: Template, template: Template, match: Match) -> bool:
    """Whether values of the general template may take more words than they have taken yet.

    They may where these are a value and words that look like identifiers, or stand behind `key=`, or are rare.
    """
    wider, strange = False, 0
    for width, part in zip(general.widths, match.parts(), strict=True):
        words = template.words[part]
        if len(words) > 1 and sum(template.widths[part]) > width:
            wider = True
            if WILDCARD not in words:
                return False
            if not (part.start > 0 and template.words[part.start - 1][-1] == "="):
                strange += sum(word != WILDCARD and not _looks_strange(word) for word in words)
    if not wider:
        return True
    constants = [word for word in general.words if word != WILDCARD]
    return (
        len(constants) >= _CONSTANTS
        and any(_kinds([word]).plain[0] for word in constants)
        and template.lines <= general.lines
        and strange <= (template.lines * _RARER <= general.lines)
    )


def _looks_strange(word: str) -> bool:
    return word[-1] == "0" or any(each in "-_@." for each in word)
