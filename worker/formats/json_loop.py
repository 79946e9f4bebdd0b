"""The compiled walk over JSON documents that finds the texts and whole numbers at some places of each.

It takes a document only where it is sure of it: valid, an object, no place twice, and nothing at a place but a text or
a whole number as Python writes one. Whatever else is *odd*, and is for a parser of whole documents.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from detector.compiled import Bytes, Column, Table, allocating, compiled

ABSENT, TEXT, ESCAPED, WHOLE = range(4)  # what stands at a place; an escaped text has a backslash in it
KIND, BEGIN, END = range(3)
FOUND: Final = 3  # columns of a place

ROOT: Final = 0
NOWHERE: Final = -1  # a node of no place, nor on the way to one

_MOST_DEEP: Final = 32
_MOST_DIGITS: Final = 18
_TOGETHER: Final = 16  # bytes of a text that are looked at at the same time

_QUOTE, _BACKSLASH, _SLASH, _COMMA, _COLON = 34, 92, 47, 44, 58
_OPEN_OBJECT, _CLOSE_OBJECT, _OPEN_LIST, _CLOSE_LIST = 123, 125, 91, 93
_MINUS, _POINT, _ZERO, _NINE = 45, 46, 48, 57
_B, _F, _N, _R, _T, _U, _E, _BIG_E = 98, 102, 110, 114, 116, 117, 101, 69
_ODD: Final = -1

# What a step expects.
_FIRST_KEY, _KEY, _VALUE, _FIRST_ELEMENT, _NEXT = range(5)


class Places(NamedTuple):
    """Members by name, parents before their members: a tree whose root is the document."""

    names: Bytes  # in UTF-8, one after the other
    ends: Column  # where each ends
    parents: Column  # the node whose member each is; the member number n is node n + 1
    slots: Column  # where what stands there is put; NOWHERE for one that is only on the way


@compiled
def past_white(data: Bytes, at: int, end: int) -> int:
    """The next place that is no white space."""
    while at < end and (data[at] == 32 or data[at] == 10 or data[at] == 13 or data[at] == 9):
        at += 1
    return at


@compiled
def hex_digits(data: Bytes, at: int, end: int) -> int:
    """The number of four hexadecimal digits; odd where they are not there."""
    if at + 4 > end:
        return _ODD
    number = 0
    for place in range(at, at + 4):
        byte = data[place]
        if 48 <= byte <= 57:
            digit = byte - 48
        elif 97 <= byte <= 102:
            digit = byte - 87
        elif 65 <= byte <= 70:
            digit = byte - 55
        else:
            return _ODD
        number = 16 * number + int(digit)
    return number


@compiled
def text_end(data: Bytes, at: int, end: int, noted: Column) -> int:
    """Where the text that begins here has its quote; odd where it is not valid, or has half of a pair in it.

    `noted` is filled with whether it has a backslash, 1 or 0.
    """
    noted[0] = 0
    while True:
        while at + _TOGETHER <= end:
            there = np.uint8(0)
            for place in range(_TOGETHER):
                byte = data[np.uint64(at + place)]
                there |= np.uint8(byte < 32) | np.uint8(byte == _QUOTE) | np.uint8(byte == _BACKSLASH)
            if there:
                break
            at += _TOGETHER
        while at < end and data[at] >= 32 and data[at] != _QUOTE and data[at] != _BACKSLASH:
            at += 1
        if at >= end or data[at] < 32:
            return _ODD
        if data[at] == _QUOTE:
            return at
        if at + 1 >= end:
            return _ODD
        noted[0] = 1
        byte = data[at + 1]
        at += 2
        if byte == _U:
            number = hex_digits(data, at, end)
            if number == _ODD or 0xD800 <= number < 0xE000:
                return _ODD
            at += 4
        elif byte not in (_QUOTE, _BACKSLASH, _SLASH, _B, _F, _N, _R, _T):
            return _ODD


@compiled
def digits_end(data: Bytes, at: int, end: int) -> int:
    """Where the digits that begin here end."""
    while at < end and _ZERO <= data[at] <= _NINE:
        at += 1
    return at


@compiled
def number_end(data: Bytes, at: int, end: int, noted: Column) -> int:
    """Where a number ends; odd where it is not valid. `noted` is filled with whether it is a whole one, 1 or 0."""
    if data[at] == _MINUS:
        at += 1
    first = at
    at = digits_end(data, at, end)
    if at == first or (data[first] == _ZERO and at > first + 1):
        return _ODD
    if at - first > _MOST_DIGITS:
        return _ODD
    # -0 is 0, and 0 is a word for nothing where a time is asked for.
    noted[0] = data[first] != _ZERO
    if at < end and data[at] == _POINT:
        noted[0], first = 0, at + 1
        at = digits_end(data, first, end)
        if at == first:
            return _ODD
    # A number with an exponent may be beyond all floats.
    return at if at == end or (data[at] != _E and data[at] != _BIG_E) else _ODD


@compiled
def word_end(data: Bytes, at: int, end: int) -> int:
    """Where `true`, `false` or `null` ends; odd where none of them stands."""
    length = 5 if data[at] == _F else 4
    if at + length > end:
        return _ODD
    a, b, c, d = data[at], data[at + 1], data[at + 2], data[at + 3]
    if a == _T and b == _R and c == _U and d == _E:
        return at + 4
    if a == _N and b == _U and c == 108 and d == 108:
        return at + 4
    if a == _F and b == 97 and c == 108 and d == 115 and data[at + 4] == _E:
        return at + 5
    return _ODD


@compiled
def member_of(places: Places, node: int, data: Bytes, begin: int, end: int) -> int:
    """The node of a member of a node, by its name; NOWHERE where none is looked for."""
    for member in range(len(places.parents)):
        name = places.ends[member - 1] if member > 0 else 0
        if places.parents[member] == node and places.ends[member] - name == end - begin:
            at = 0
            while at < end - begin and data[begin + at] == places.names[name + at]:
                at += 1
            if at == end - begin:
                return member + 1
    return NOWHERE


@compiled
def walk(
    places: Places, data: Bytes, begin: int, end: int, stack: Table, seen: Column, noted: Column, found: Column
) -> bool:
    """Fill in what stands at the places in the document from begin to end; returns whether it is not odd.

    Args:
        places: of members.
        data: of documents.
        begin: of this one.
        end: of it.
        stack: (_MOST_DEEP, 4) to work with: of each object and list that is open its node, NOWHERE - 1 for a list;
            where its first name is; whether it has another one.
        seen: (members,) to work with, all 0.
        noted: (1,) to work with.
        found: (slots * FOUND,) to be filled in, all 0.
    """
    at = past_white(data, begin, end)
    if at >= end or data[at] != _OPEN_OBJECT:
        return False
    depth, node, in_list, target, expected = 0, ROOT, False, NOWHERE, _FIRST_KEY
    first_begin, first_end, several = 0, -1, False
    at += 1
    while True:
        at = past_white(data, at, end)
        if at >= end:
            return False
        byte = data[at]
        closes = (byte == _CLOSE_OBJECT and not in_list and (expected in (_FIRST_KEY, _NEXT))) or (
            byte == _CLOSE_LIST and in_list and (expected in (_FIRST_ELEMENT, _NEXT))
        )
        if closes:
            at += 1
            if node != NOWHERE and not several:
                # One member alone may be a wrapping, in which a name is looked for that is not there.
                for member in range(len(places.parents)):
                    if places.parents[member] == node and not seen[member]:
                        return False
            if depth == 0:
                return past_white(data, at, end) == end
            depth -= 1
            node, in_list = stack[depth, 0], stack[depth, 1] >> 1 == 1
            several, first_begin, first_end = stack[depth, 1] & 1 == 1, stack[depth, 2], stack[depth, 3]
            expected = _NEXT
        elif expected == _NEXT:
            if byte != _COMMA:
                return False
            at += 1
            target, expected = NOWHERE, _VALUE if in_list else _KEY
        elif expected in (_KEY, _FIRST_KEY):
            if byte != _QUOTE:
                return False
            name = at + 1
            at = text_end(data, name, end, noted)
            if at == _ODD:
                return False
            target = NOWHERE
            if node != NOWHERE:
                if noted[0]:
                    return False
                if first_end < 0:
                    first_begin, first_end = name, at
                elif not several:
                    several = at - name != first_end - first_begin
                    for place in range(at - name if not several else 0):
                        several = several or data[name + place] != data[first_begin + place]
                target = member_of(places, node, data, name, at)
                if target != NOWHERE:
                    if seen[target - 1]:
                        return False
                    seen[target - 1] = 1
            at = past_white(data, at + 1, end)
            if at >= end or data[at] != _COLON:
                return False
            at += 1
            expected = _VALUE
        else:
            slot = places.slots[target - 1] if target != NOWHERE else NOWHERE
            value, kind = at, ABSENT
            if byte == _QUOTE:
                value += 1
                at = text_end(data, value, end, noted)
                if at == _ODD:
                    return False
                kind = ESCAPED if noted[0] else TEXT
                value_end = at
                at += 1
                expected = _NEXT
            elif byte in (_OPEN_OBJECT, _OPEN_LIST):
                if slot != NOWHERE or depth == _MOST_DEEP or (byte == _OPEN_LIST and target != NOWHERE):
                    return False
                stack[depth, 0], stack[depth, 1] = node, 2 * np.int64(in_list) + np.int64(several)
                stack[depth, 2], stack[depth, 3] = first_begin, first_end
                depth += 1
                node, in_list, several, first_end, value_end = target, byte == _OPEN_LIST, False, -1, at
                at += 1
                expected = _FIRST_ELEMENT if in_list else _FIRST_KEY
                target = NOWHERE
            else:
                if byte == _MINUS or _ZERO <= byte <= _NINE:
                    at = number_end(data, at, end, noted)
                    kind = WHOLE if noted[0] else ABSENT
                else:
                    at = word_end(data, at, end)
                if at == _ODD:
                    return False
                value_end = at
                expected = _NEXT
            if slot != NOWHERE:
                if kind == ABSENT:
                    return False
                found[slot * FOUND + KIND] = kind
                found[slot * FOUND + BEGIN] = value
                found[slot * FOUND + END] = value_end


@allocating
def walk_all(places: Places, data: Bytes, bounds: Column, ascii_only: bool, plain: Bytes, found: Table) -> None:
    """Fill in what stands at the places in documents.

    Args:
        places: of members.
        data: of n documents.
        bounds: (n + 1,) theirs.
        ascii_only: a document with other bytes is odd.
        plain: (n,) to be filled in: 1 where a document is not odd.
        found: (n, slots * FOUND) to be filled in, all 0: kind, begin and end of each; of odd documents it says nothing.
    """
    stack, noted = np.empty((_MOST_DEEP, 4), np.int64), np.empty(1, np.int64)
    seen = np.empty(len(places.parents), np.int64)
    for row in range(len(plain)):
        seen[:] = 0
        highest = np.uint8(0)
        if ascii_only:
            for place in range(bounds[row], bounds[row + 1]):
                highest |= data[place]
        begin, end = bounds[row], bounds[row + 1]
        plain[row] = highest < 128 and walk(places, data, begin, end, stack, seen, noted, found[row])


@compiled
def put_character(number: int, out: Bytes, at: int) -> int:
    """Write a character of the first 65,536 in UTF-8; returns where it ends."""
    if number < 0x80:
        out[at] = number
        return at + 1
    if number < 0x800:
        out[at] = 0xC0 | number >> 6
        out[at + 1] = 0x80 | number & 63
        return at + 2
    out[at] = 0xE0 | number >> 12
    out[at + 1] = 0x80 | number >> 6 & 63
    out[at + 2] = 0x80 | number & 63
    return at + 3


@compiled
def put_unescaped(data: Bytes, place: int, end: int, out: Bytes, at: int) -> int:
    """Write what a valid text means; returns where it ends."""
    while place < end:
        byte = data[place]
        if byte != _BACKSLASH:
            out[at] = byte
            at += 1
            place += 1
            continue
        byte = data[place + 1]
        place += 2
        if byte == _U:
            at = put_character(hex_digits(data, place, end), out, at)
            place += 4
            continue
        if byte == _B:
            byte = 8
        elif byte == _F:
            byte = 12
        elif byte == _N:
            byte = 10
        elif byte == _R:
            byte = 13
        elif byte == _T:
            byte = 9
        out[at] = byte
        at += 1
    return at


@compiled
def cut_out(data: Bytes, kinds: Column, begins: Column, ends: Column, out: Bytes, bounds: Column) -> None:
    """Fill in what was found, one after the other, and the bounds of each; what is absent is empty."""
    at = 0
    for row in range(len(kinds)):
        if kinds[row] == ESCAPED:
            at = put_unescaped(data, begins[row], ends[row], out, at)
        elif kinds[row] != ABSENT:
            source, target = np.uint64(begins[row]), np.uint64(at)
            for place in range(np.uint64(ends[row] - begins[row])):
                out[target + place] = data[source + place]
            at += ends[row] - begins[row]
        bounds[row + 1] = at
