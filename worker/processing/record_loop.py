"""Score records, many at once, byte for byte as `ScoreEncoder.encode` makes them.

A record is a form with holes: the pieces between them are the same for all records of a partition, kind and severity,
and are cut from one that was encoded as a whole. Numbers are written as orjson writes what `round` leaves of them. A
record that cannot be written here, since it is too large or a number in it too great, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np

from detector.compiled import Bytes, Column, Floats, compiled

# Holes of a form, in their order; a piece stands before each, and a last one behind them all.
(ID, SESSION, SCORE, SURPRISE, EVENTS, UNKNOWN, FIRST_TIME, LAST_TIME, CLOSED_BY, TOP, LINES) = range(11)
FIRST_OFFSET, LAST_OFFSET, CAUSE = range(11, 14)
HOLES: Final = 14

# Of an event that a record lists.
EVENT_OFFSET, EVENT_TEMPLATE, EVENT_SURPRISE = range(3)
EVENT_HOLES: Final = 3

ID_BYTES: Final = 16
DECIMALS: Final = 6
MICROS: Final = 1e6
#: Numbers from here on have more digits with six decimals than a float64 tells apart.
TOO_GREAT: Final = 1e9

# At most, with quotes.
_NUMBER_BYTES: Final = 24
_TIME_BYTES: Final = 26
_ESCAPED_BYTES: Final = 6  # of a byte of a text

_LINE_FEED, _QUOTE, _BACKSLASH, _COMMA, _MINUS, _POINT, _COLON = 10, 34, 92, 44, 45, 46, 58
_BRACKET, _END_BRACKET, _ZERO, _E, _N, _U, _L = 91, 93, 48, 101, 110, 117, 108
_HEX: Final = np.frombuffer(b"0123456789abcdef", np.uint8)
_SHORT: Final = np.zeros(32, np.uint8)  # control characters that have an escape of one letter
_SHORT[[8, 9, 10, 12, 13]] = np.frombuffer(b"btnfr", np.uint8)
_PAIRS: Final = np.frombuffer(b"".join(b"%02d" % number for number in range(100)), np.uint8)

_WORD: Final = 8
#: Bytes behind texts that may be read, and behind what is written that may be written over.
BEHIND: Final = _WORD - 1

_DAY_MS: Final = 86_400_000
_FIRST_MS: Final = -62_135_596_800_000  # the years 1 to 9999
_END_MS: Final = 253_402_300_800_000


class Texts(NamedTuple):
    """Texts in UTF-8, one after the other, and where each ends; BEHIND bytes more come after the last."""

    data: Bytes
    ends: Column

    @property
    def longest(self) -> int:
        """How many bytes the longest of them has; there has to be one."""
        return int(np.diff(self.ends, prepend=0).max())


def texts_in(parts: Iterable[bytes], ends: Column) -> Texts:
    """Texts of which all parts consist together, as the loops take them."""
    return Texts(np.frombuffer(bytearray().join(parts) + bytes(BEHIND), np.uint8), ends)


def texts_of(texts: Iterable[bytes]) -> Texts:
    """These texts, likewise."""
    texts = list(texts)
    return texts_in(texts, np.cumsum([len(text) for text in texts], dtype=np.int64))


class Frame(NamedTuple):
    """What records are made of besides their sessions."""

    forms: Texts  # the pieces of each form
    before: Texts  # of each form, what stands before a session's numbers in what an id is of
    behind: Texts  # likewise, between them and the session's key
    extras: Texts  # what some records have behind `closed_by`
    event: Texts  # the pieces of an event
    templates: Texts  # by token, as JSON
    closed_by: Texts  # as JSON
    unknown: int  # the token that is shown for those below 0
    specials: int  # how many tokens are no template
    most_lines: int  # events of which the offsets are listed
    most_bytes: int  # of the value and `key_copies` keys
    key_copies: int


class Events(NamedTuple):
    """Sessions; events session after session."""

    keys: Texts
    tokens: Column
    offsets: Column
    times: Column
    surprises: Floats
    ends: Column


class Told(NamedTuple):
    """Records, each of which is about the first events of a session."""

    sessions: Column  # their numbers, and so on
    events: Column  # how many
    nth: Column  # of the sessions
    scores: Floats
    causes: Column
    starts: Column  # what every offset is less
    closed_by: Column
    forms: Column
    extras: Column
    endings: Texts  # what some have in place of the end of their form


# -- numbers and texts -------------------------------------------------------------------------------------------------


@compiled
def begin_of(ends: Column, number: int) -> int:
    """Where the texts or the events of a number begin."""
    return int(ends[number - 1]) if number > 0 else 0


@compiled
def put(out: Bytes, at: int, texts: Texts, number: int) -> int:
    """Write one of the texts; returns where it ends, as all that write do. BEHIND bytes more are written over."""
    begin, end = begin_of(texts.ends, number), texts.ends[number]
    # Words of eight bytes, which the loops below are a load and a store of; an index that may be below 0 would be
    # looked at for each byte.
    source, target = np.uint64(begin), np.uint64(at)
    for _ in range(np.uint64(end - begin + _WORD - 1) // np.uint64(_WORD)):
        word = np.uint64(0)
        for byte in range(np.uint64(_WORD)):
            word |= np.uint64(texts.data[source + byte]) << (byte * np.uint64(8))
        for byte in range(np.uint64(_WORD)):
            out[target + byte] = np.uint8(word >> (byte * np.uint64(8)))
        source += np.uint64(_WORD)
        target += np.uint64(_WORD)
    return int(at + end - begin)


@compiled
def put_pair(out: Bytes, at: int, value: int) -> int:
    """Write a number below 100 with two digits."""
    pair = np.uint64(2 * value)
    out[at], out[at + 1] = _PAIRS[pair], _PAIRS[pair + np.uint64(1)]
    return at + 2


@compiled
def put_whole(out: Bytes, at: int, value: int) -> int:
    """Write an integer."""
    if value < 0:
        out[at] = _MINUS
        at += 1
    left = np.uint64(-value) if value < 0 else np.uint64(value)
    digits, beyond = 1, np.uint64(10)
    while digits < 19 and left >= beyond:
        digits += 1
        beyond *= np.uint64(10)
    place = at + digits
    while left >= np.uint64(10):
        rest = left // np.uint64(100)
        place -= 2
        put_pair(out, place, int(np.int64(left - rest * np.uint64(100))))
        left = rest
    if place > at:
        out[at] = _ZERO + np.int64(left)
    return at + digits


@compiled
def fits(value: float) -> bool:
    """Whether `put_rounded` writes a number."""
    return abs(value) < TOO_GREAT


@compiled
def micros(value: float) -> int:
    """How many millionths `round(value, 6)` is, half to even of the exact value, of a number from 0 to `TOO_GREAT`."""
    scaled = value * MICROS
    # The two halves of the value times a number of 20 bits are exact (Veltkamp 1968, Dekker 1971).
    shifted = value * 134_217_729.0
    high = shifted - (shifted - value)
    missing = (high * MICROS - scaled) + (value - high) * MICROS
    whole = math.floor(scaled)
    beyond_half = scaled - whole - 0.5
    found = np.int64(whole)
    if beyond_half > 0 or (beyond_half == 0 and (missing > 0 or (missing == 0 and found % 2 == 1))):
        found += 1
    return int(found)


@compiled
def round_all(values: Floats, found: Floats) -> None:
    """Fill in what `round` leaves of numbers with six decimals; those that are too great for it stay as they are."""
    for place in range(len(values)):
        value = values[place]
        if fits(value):
            # The nearest number to a quotient of whole ones is what the digits read as.
            value = math.copysign(micros(abs(value)) / MICROS, value)
        found[place] = value


@compiled
def put_rounded(out: Bytes, at: int, value: float) -> int:
    """Write a number with at most DECIMALS decimals, as the shortest text that reads as it."""
    if math.copysign(1.0, value) < 0:
        out[at] = _MINUS
        at += 1
        value = -value
    found = micros(value)
    if 0 < found < 10:
        out[at] = _ZERO + found
        out[at + 1] = _E
        out[at + 2] = _MINUS
        out[at + 3] = _ZERO + 6
        return at + 4
    whole = found // 1_000_000
    left = found - whole * 1_000_000
    at = put_whole(out, at, whole)
    out[at] = _POINT
    at += 1
    for place in range(at + 4, at - 2, -2):
        rest = left // 100
        put_pair(out, place, left - 100 * rest)
        left = rest
    end = at + DECIMALS
    while end > at + 1 and out[end - 1] == _ZERO:
        end -= 1
    return end


@compiled
def put_time(out: Bytes, at: int, milliseconds: int) -> int:
    """Write a time as `iso_time` gives it; NO_TIME is none."""
    if milliseconds < _FIRST_MS or milliseconds >= _END_MS:
        out[at], out[at + 1], out[at + 2], out[at + 3] = _N, _U, _L, _L
        return at + 4
    day, rest = milliseconds // _DAY_MS, milliseconds % _DAY_MS
    # Days since 1 March of the year 0; years then end with the day that not all of them have.
    since = day + 719_468
    era = since // 146_097
    of_era = since - era * 146_097
    year = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153  # from March on
    of_month = of_year - (153 * month + 2) // 5
    out[at] = _QUOTE
    year += era * 400 + (1 if month >= 10 else 0)
    at = put_pair(out, put_pair(out, at + 1, year // 100), year % 100)
    out[at] = _MINUS
    at = put_pair(out, at + 1, month - 9 if month >= 10 else month + 3)
    out[at] = _MINUS
    at = put_pair(out, at + 1, of_month + 1)
    out[at] = 84  # T
    at = put_pair(out, at + 1, rest // 3_600_000)
    out[at] = _COLON
    at = put_pair(out, at + 1, rest // 60_000 % 60)
    out[at] = _COLON
    at = put_pair(out, at + 1, rest // 1_000 % 60)
    out[at] = _POINT
    at = put_pair(out, at + 1, rest % 1_000 // 10)
    out[at] = _ZERO + rest % 10
    at += 1
    out[at] = 90  # Z
    out[at + 1] = _QUOTE
    return at + 2


@compiled
def put_key(out: Bytes, at: int, keys: Texts, number: int) -> int:
    """Write a key as JSON."""
    out[at] = _QUOTE
    at += 1
    for place in range(begin_of(keys.ends, number), keys.ends[number]):
        byte = keys.data[place]
        if byte >= 32 and byte != _QUOTE and byte != _BACKSLASH:
            out[at] = byte
            at += 1
            continue
        out[at] = _BACKSLASH
        if byte >= 32:
            out[at + 1] = byte
            at += 2
        elif _SHORT[byte] != 0:
            out[at + 1] = _SHORT[byte]
            at += 2
        else:
            out[at + 1] = _U
            out[at + 2] = _ZERO
            out[at + 3] = _ZERO
            out[at + 4] = _HEX[byte >> 4]
            out[at + 5] = _HEX[byte & 15]
            at += 6
    out[at] = _QUOTE
    return at + 1


@compiled
def put_id(out: Bytes, at: int, ids: Bytes, number: int) -> int:
    """Write an id in hexadecimal digits."""
    out[at] = _QUOTE
    at += 1
    for place in range(number * ID_BYTES, (number + 1) * ID_BYTES):
        out[at] = _HEX[ids[place] >> 4]
        out[at + 1] = _HEX[ids[place] & 15]
        at += 2
    out[at] = _QUOTE
    return at + 1


# -- records -----------------------------------------------------------------------------------------------------------


@compiled
def mean(values: Floats, begin: int, end: int) -> float:
    """The mean of some numbers by the nearest to their exact sum, as `fsum` has it; NaN where that is not found.

    What an addition rounds off is added up apart (Knuth's two-sum); what is rounded off there would be lost.
    """
    total, apart = 0.0, 0.0
    for place in range(begin, end):
        value = values[place]
        summed = total + value
        given = summed - total
        rest = (total - (summed - given)) + (value - given)
        total = summed
        summed = apart + rest
        given = summed - apart
        if (apart - (summed - given)) + (rest - given) != 0.0:
            return math.nan
        apart = summed
    return (total + apart) / (end - begin)


@compiled
def find_top(values: Floats, begin: int, end: int, top: Column) -> int:
    """Find the places of the greatest numbers, the first of equal ones first; returns how many there are."""
    n = 0
    for place in range(begin, end):
        if n == len(top) and (n == 0 or not values[place] > values[top[n - 1]]):
            continue
        at = n if n < len(top) else n - 1
        while at > 0 and values[place] > values[top[at - 1]]:
            top[at] = top[at - 1]
            at -= 1
        top[at] = place
        n = min(n + 1, len(top))
    return n


@compiled
def shown(frame: Frame, token: int) -> int:
    """The token whose text an event has."""
    return token if token >= 0 else frame.unknown


@compiled
def write_identities(frame: Frame, events: Events, told: Told, out: Bytes, ends: Column) -> None:
    """Write what the ids of records are of, one after the other, and where each ends; there has to be room."""
    at = 0
    for row in range(len(ends)):
        number, form = told.sessions[row], told.forms[row]
        at = put(out, at, frame.before, form)
        at = put_whole(out, at, events.offsets[begin_of(events.ends, number)] - told.starts[row])
        out[at] = _LINE_FEED
        at = put_whole(out, at + 1, told.nth[row])
        at = put(out, at, frame.behind, form)
        at = put(out, at, events.keys, number)
        ends[row] = at


@compiled
def write(
    frame: Frame, events: Events, told: Told, ids: Bytes, first: int, out: Bytes, ends: Column, top: Column
) -> int:
    """Write records from the first on, one after the other, as long as there is room.

    Args:
        frame: of all records.
        events: of their sessions.
        told: the records.
        ids: of them, ID_BYTES each.
        first: of those to be written.
        out: is filled with records.
        ends: is filled with where each ends in `out`; one that is left out takes no room.
        top: is written over; as long as the list of events of a record at most.

    Returns:
        The row that comes next, for which there is no room left.
    """
    at, n_templates = 0, len(frame.templates.ends)
    for row in range(first, len(told.sessions)):
        number, form, extra = told.sessions[row], told.forms[row] * (HOLES + 1), told.extras[row]
        begin, n = begin_of(events.ends, number), told.events[row]
        end, score, start_at = begin + n, told.scores[row], told.starts[row]
        surprise = mean(events.surprises, begin, end)
        n_top = find_top(events.surprises, begin, end, top)
        key_bytes = events.keys.ends[number] - begin_of(events.keys.ends, number)

        room = frame.forms.ends[form + HOLES] - begin_of(frame.forms.ends, form)
        room += frame.extras.ends[extra] - begin_of(frame.extras.ends, extra)
        ending = told.endings.ends[row] - begin_of(told.endings.ends, row)
        room += 2 * ID_BYTES + _ESCAPED_BYTES * key_bytes + 2 * _TIME_BYTES + _NUMBER_BYTES * (n + 12) + ending + BEHIND
        writable = fits(score) and fits(surprise) and 0 < n <= frame.most_lines
        for place in top[:n_top]:
            token = shown(frame, events.tokens[place])
            writable = writable and token < n_templates and fits(events.surprises[place])
            if writable:
                room += frame.event.ends[EVENT_HOLES] + 2 * _NUMBER_BYTES
                room += frame.templates.ends[token] - begin_of(frame.templates.ends, token)
        if not writable or room > len(out):
            ends[row] = at
            continue
        if at + room > len(out):
            return row

        begun = at
        at = put_id(out, put(out, at, frame.forms, form + ID), ids, row)
        at = put_key(out, put(out, at, frame.forms, form + SESSION), events.keys, number)
        at = put_rounded(out, put(out, at, frame.forms, form + SCORE), score)
        at = put_rounded(out, put(out, at, frame.forms, form + SURPRISE), surprise)
        at = put_whole(out, put(out, at, frame.forms, form + EVENTS), n)
        at = put(out, at, frame.forms, form + UNKNOWN)
        unknown = 0
        for place in range(begin, end):
            unknown += 1 if events.tokens[place] < frame.specials else 0
        at = put_whole(out, at, unknown)
        at = put_time(out, put(out, at, frame.forms, form + FIRST_TIME), events.times[begin])
        at = put_time(out, put(out, at, frame.forms, form + LAST_TIME), events.times[end - 1])
        at = put(out, put(out, at, frame.forms, form + CLOSED_BY), frame.closed_by, told.closed_by[row])
        at = put(out, at, frame.extras, extra)
        at = put(out, at, frame.forms, form + TOP)
        out[at] = _BRACKET
        at += 1
        for nth in range(n_top):
            if nth > 0:
                out[at] = _COMMA
                at += 1
            place = top[nth]
            at = put_whole(out, put(out, at, frame.event, EVENT_OFFSET), events.offsets[place] - start_at)
            at = put(
                out, put(out, at, frame.event, EVENT_TEMPLATE), frame.templates, shown(frame, events.tokens[place])
            )
            at = put_rounded(out, put(out, at, frame.event, EVENT_SURPRISE), events.surprises[place])
            at = put(out, at, frame.event, EVENT_HOLES)
        out[at] = _END_BRACKET
        at = put(out, at + 1, frame.forms, form + LINES)
        out[at] = _BRACKET
        for place in range(begin, end):
            at = put_whole(out, at + 1, events.offsets[place] - start_at)
            out[at] = _COMMA
        out[at] = _END_BRACKET
        at = put(out, at + 1, frame.forms, form + FIRST_OFFSET)
        at = put_whole(out, at, events.offsets[begin] - start_at)
        at = put_whole(out, put(out, at, frame.forms, form + LAST_OFFSET), events.offsets[end - 1] - start_at)
        at = put_whole(out, put(out, at, frame.forms, form + CAUSE), told.causes[row] - start_at)
        at = put(out, at, frame.forms, form + HOLES)
        if ending > 0:
            at = put(out, at - 1, told.endings, row)
        if at - begun + frame.key_copies * key_bytes > frame.most_bytes:
            at = begun
        ends[row] = at
    return len(told.sessions)


@compiled
def write_origins(heads: Texts, numbers: Column, offsets: Column, ends: Column, out: Bytes, told_ends: Column) -> None:
    """Write where events came from: of each span of them an array with an object for each partition.

    Args:
        heads: what stands before the offsets of each partition, where it is the first of its array and where it is not;
            what ends an array.
        numbers: of the partitions of the events, which ascend in each span.
        offsets: of the events there.
        ends: where the spans end among them; none is empty.
        out: is filled; there has to be room.
        told_ends: is filled with where each array ends in it.
    """
    at, begin = 0, 0
    for span in range(len(ends)):
        for place in range(begin, ends[span]):
            if place == begin:
                at = put(out, at, heads, 2 * numbers[place])
            elif numbers[place] != numbers[place - 1]:
                at = put(out, at, heads, 2 * numbers[place] + 1)
            else:
                out[at] = _COMMA
                at += 1
            at = put_whole(out, at, offsets[place])
        at = put(out, at, heads, len(heads.ends) - 1)
        told_ends[span], begin = at, ends[span]
