"""The open sessions of a partition as columns, and the compiled loop that takes events in.

A session has a row of `Columns.rows`, its *slot*. Slot 0 is no session but the end of three rings, in each of which
every open session stands between one before it and one after it: by the time of its latest event, by that of its
opening, and by its first offset. Its events lie in blocks of five, each of which names the next. A slot is found by
its key in a table with open addressing, whose hash has a secret seed, so that nobody can choose keys that collide.

What is closed keeps its slot and its events until `release`, which is after they were gathered. Nothing here grows: who
calls makes room for what can come.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from detector.compiled import Bytes, Column, Table, compiled

NONE: Final = 0  # a slot or a block that is none
END: Final = 0  # the slot where each ring begins and ends
LEAST: Final = -(2**63)
NEVER: Final = 2**63 - 1
NO_LIMIT: Final = 0

# Columns of `rows`. What an event touches lies together.
KEY, KEY_BYTES, HASH, LAST_AT, QUIETER, LIVELIER, EVENTS, LAST_BLOCK = range(8)
OPENED_AT, ORDER, FIRST_BLOCK, FIRST_OFFSET, OLDER, YOUNGER, SMALLER, GREATER = range(8, 16)
ROW: Final = 16

# Columns of `blocks`: the next block, then token, offset and time of each event.
NEXT, FIRST_EVENT = range(2)
FIELDS: Final = 3
BLOCK_EVENTS: Final = 5
BLOCK: Final = FIRST_EVENT + BLOCK_EVENTS * FIELDS

# Columns of `table`; a power of two of entries.
ENTRY_HASH, ENTRY_SLOT = range(2)

# `counts`
OPEN, OPENED, NEXT_EXPIRY, USED_ROWS, FREE_ROW, USED_BLOCKS, FREE_BLOCK, USED_KEYS, OPEN_KEYS, SEED, AHEAD = range(11)
COUNTS: Final = 11

TOGETHER: Final = 32  # events, for which memory is read ahead

# Why a session closed.
GAP, MAX_AGE, END_EVENT, MAX_EVENTS, MAX_OPEN, FLUSHED = range(6)

# Columns of what a call closed, a row each; the first row of a group of sessions that close together by first offset.
SLOT, CAUSE, REASON, GROUP = range(4)
CLOSED: Final = 4


class Columns(NamedTuple):
    """The open sessions."""

    rows: Table  # (slots, ROW)
    blocks: Table  # (blocks, BLOCK)
    table: Table  # (entries, 2)
    keys: Bytes  # of all sessions, one after the other, and at least one byte more
    counts: Column  # (COUNTS,)


class Limits(NamedTuple):
    """When sessions close; NO_LIMIT for a gap or a greatest age that there is not. Times in ms."""

    gap: int
    max_age: int
    max_events: int
    max_open: int


class Arrivals(NamedTuple):
    """Events in the order in which they are processed."""

    keys: Bytes
    key_ends: Column  # in `keys`
    tokens: Column
    offsets: Column
    times: Column
    stream_times: Column
    causes: Column  # offsets of the records that cause what the events close
    ends: Column  # 1 for an event that ends its session


class Saved(NamedTuple):
    """Sessions in the order of their opening; events session after session."""

    keys: Bytes
    key_ends: Column  # in `keys`
    lengths: Column  # events of each, at least 1
    opened_at: Column
    last_at: Column
    tokens: Column
    offsets: Column
    times: Column


# -- keys --------------------------------------------------------------------------------------------------------------


@compiled
def hash_of(keys: Bytes, begin: int, end: int, seed: int) -> int:
    """64 bits of a key, each eight bytes multiplied by a secret odd number."""
    found = np.int64((end - begin) * seed)
    at = begin
    while at + 8 <= end:
        word = np.int64(keys[at])
        for byte in range(1, 8):
            word |= np.int64(keys[at + byte]) << (8 * byte)
        found = (found ^ word) * seed
        found ^= found >> 32
        at += 8
    word = np.int64(0)
    while at < end:
        word = (word << 8) | np.int64(keys[at])
        at += 1
    found = (found ^ word) * seed
    return int(found ^ (found >> 29))


@compiled
def find(c: Columns, keys: Bytes, begin: int, end: int, hashed: int) -> int:
    """The slot of the open session that has this key; NONE if no session has."""
    last = len(c.table) - 1
    entry = hashed & last
    while c.table[entry, ENTRY_SLOT] != NONE:
        slot = c.table[entry, ENTRY_SLOT]
        if c.table[entry, ENTRY_HASH] == hashed and c.rows[slot, KEY_BYTES] == end - begin:
            # An index that may be below 0 is looked at for each byte, which costs twenty times the comparison.
            wanted, held = np.uint64(begin), np.uint64(c.rows[slot, KEY])
            differs = np.uint8(0)
            for place in range(np.uint64(end - begin)):
                differs |= keys[wanted + place] ^ c.keys[held + place]
            if differs == 0:
                return int(slot)
        entry = (entry + 1) & last
    return NONE


@compiled
def enter(c: Columns, slot: int) -> None:
    """Let a session be found."""
    last = len(c.table) - 1
    entry = c.rows[slot, HASH] & last
    while c.table[entry, ENTRY_SLOT] != NONE:
        entry = (entry + 1) & last
    c.table[entry, ENTRY_HASH], c.table[entry, ENTRY_SLOT] = c.rows[slot, HASH], slot


@compiled
def strike(c: Columns, slot: int) -> None:
    """Let a session be found no more; what stood behind it for want of its entry moves up."""
    last = len(c.table) - 1
    hole = c.rows[slot, HASH] & last
    while c.table[hole, ENTRY_SLOT] != slot:
        hole = (hole + 1) & last
    entry = (hole + 1) & last
    while c.table[entry, ENTRY_SLOT] != NONE:
        home = c.table[entry, ENTRY_HASH] & last
        if (entry - home) & last >= (entry - hole) & last:
            for column in (ENTRY_HASH, ENTRY_SLOT):
                c.table[hole, column] = c.table[entry, column]
            hole = entry
        entry = (entry + 1) & last
    c.table[hole, ENTRY_SLOT] = NONE


# -- rings -------------------------------------------------------------------------------------------------------------


@compiled
def put_after(rows: Table, slot: int, place: int, before: int, after: int) -> None:
    """Put a session into a ring, after the one at `place`; `before` and `after` are the ring's columns."""
    following = rows[place, after]
    rows[slot, before], rows[slot, after] = place, following
    rows[place, after] = rows[following, before] = slot


@compiled
def take_out(rows: Table, slot: int, before: int, after: int) -> None:
    """Take a session out of a ring."""
    rows[rows[slot, before], after] = rows[slot, after]
    rows[rows[slot, after], before] = rows[slot, before]


# -- sessions ----------------------------------------------------------------------------------------------------------


@compiled
def opened(c: Columns, keys: Bytes, begin: int, end: int, hashed: int, stream_time: int, offset: int) -> int:
    """The slot of a new session, which has no event yet."""
    counts, rows = c.counts, c.rows
    slot = counts[FREE_ROW]
    if slot == NONE:
        slot = counts[USED_ROWS]
        counts[USED_ROWS] += 1
    else:
        counts[FREE_ROW] = rows[slot, KEY]
    at = counts[USED_KEYS]
    counts[USED_KEYS] += end - begin
    counts[OPEN_KEYS] += end - begin
    source, target = np.uint64(begin), np.uint64(at)
    for place in range(np.uint64(end - begin)):
        c.keys[target + place] = keys[source + place]
    counts[OPEN] += 1
    counts[OPENED] += 1
    rows[slot, KEY], rows[slot, KEY_BYTES], rows[slot, HASH] = at, end - begin, hashed
    rows[slot, OPENED_AT] = rows[slot, LAST_AT] = stream_time
    rows[slot, ORDER] = counts[OPENED]
    rows[slot, FIRST_OFFSET] = offset
    rows[slot, EVENTS] = 0
    enter(c, slot)
    put_after(rows, slot, rows[END, QUIETER], QUIETER, LIVELIER)
    put_after(rows, slot, rows[END, OLDER], OLDER, YOUNGER)
    # An event that waited may open a session after others of greater offsets, which are those since it came.
    place = rows[END, SMALLER]
    while place != END and rows[place, FIRST_OFFSET] > offset:
        place = rows[place, SMALLER]
    put_after(rows, slot, place, SMALLER, GREATER)
    return int(slot)


@compiled
def append(c: Columns, slot: int, token: int, offset: int, time: int) -> None:
    """Add an event to a session."""
    counts, rows, blocks = c.counts, c.rows, c.blocks
    number = rows[slot, EVENTS]
    rows[slot, EVENTS] = number + 1
    place = number % BLOCK_EVENTS
    block = rows[slot, LAST_BLOCK]
    if place == 0:
        new = counts[FREE_BLOCK]
        if new == NONE:
            new = counts[USED_BLOCKS]
            counts[USED_BLOCKS] += 1
        else:
            counts[FREE_BLOCK] = blocks[new, NEXT]
        if number == 0:
            rows[slot, FIRST_BLOCK] = new
        else:
            blocks[block, NEXT] = new
        rows[slot, LAST_BLOCK] = new
        block = new
    at = FIRST_EVENT + place * FIELDS
    blocks[block, at] = token
    blocks[block, at + 1] = offset
    blocks[block, at + 2] = time


@compiled
def close(c: Columns, slot: int, cause: int, reason: int, group: int, closed: Table, n: int) -> int:
    """Close a session, the n-th of the call; returns how many there are then."""
    strike(c, slot)
    take_out(c.rows, slot, QUIETER, LIVELIER)
    take_out(c.rows, slot, OLDER, YOUNGER)
    take_out(c.rows, slot, SMALLER, GREATER)
    c.rows[slot, ORDER] = -c.rows[slot, ORDER]
    c.counts[OPEN] -= 1
    c.counts[OPEN_KEYS] -= c.rows[slot, KEY_BYTES]
    closed[n, SLOT], closed[n, CAUSE] = slot, cause
    closed[n, REASON], closed[n, GROUP] = reason, group
    return n + 1


# -- the rules ---------------------------------------------------------------------------------------------------------


@compiled
def reached(limit: int, since: int, now: int) -> bool:
    """Whether a limit of time is reached; `since` is not after `now`, and their difference may take 64 bits."""
    return bool(limit != NO_LIMIT and np.uint64(now - since) >= np.uint64(limit))


@compiled
def reached_at(limit: int, since: int) -> int:
    """The stream time at which a limit of time is reached."""
    return NEVER if limit == NO_LIMIT or since > NEVER - limit else since + limit


@compiled
def expire(c: Columns, limits: Limits, now: int, cause: int, closed: Table, n: int) -> int:
    """Close the sessions that reached the gap, then those that reached the greatest age."""
    rows, group = c.rows, n
    while c.counts[OPEN] > 0 and reached(limits.gap, rows[rows[END, LIVELIER], LAST_AT], now):
        n = close(c, rows[END, LIVELIER], cause, GAP, group, closed, n)
    group = n
    while c.counts[OPEN] > 0 and reached(limits.max_age, rows[rows[END, YOUNGER], OPENED_AT], now):
        n = close(c, rows[END, YOUNGER], cause, MAX_AGE, group, closed, n)
    # A session that is not open yet is not touched before now.
    quietest = rows[rows[END, LIVELIER], LAST_AT] if c.counts[OPEN] > 0 else now
    oldest = rows[rows[END, YOUNGER], OPENED_AT] if c.counts[OPEN] > 0 else now
    c.counts[NEXT_EXPIRY] = min(reached_at(limits.gap, quietest), reached_at(limits.max_age, oldest))
    return n


@compiled
def look_ahead(c: Columns, events: Arrivals, first: int, stop: int, hashes: Column) -> None:
    """Fill in the hashes of events, and read once what they will change.

    Where an event finds what it changes is known only from what it has read, so it waits for memory several times;
    many events that read ahead wait at the same time.
    """
    rows, last, seen = c.rows, len(c.table) - 1, 0
    begin = events.key_ends[first - 1] if first > 0 else 0
    for at in range(first, stop):
        hashes[at] = hash_of(events.keys, begin, events.key_ends[at], c.counts[SEED])
        begin = events.key_ends[at]
    for at in range(first, stop):
        seen ^= c.table[hashes[at] & last, ENTRY_SLOT]
    for at in range(first, stop):
        seen ^= rows[c.table[hashes[at] & last, ENTRY_SLOT], LAST_AT]
    for at in range(first, stop):
        slot = c.table[hashes[at] & last, ENTRY_SLOT]
        seen ^= rows[rows[slot, QUIETER], LIVELIER] ^ rows[rows[slot, LIVELIER], QUIETER]
        seen ^= c.blocks[rows[slot, LAST_BLOCK], FIRST_EVENT] ^ np.int64(c.keys[rows[slot, KEY]])
    c.counts[AHEAD] = seen  # or the compiler would leave the reading out


@compiled
def take(c: Columns, limits: Limits, events: Arrivals, slots: Column, closed: Table) -> int:
    """Take events in; returns how many sessions they closed.

    Args:
        c: the sessions, with room for as many rows, blocks and bytes of keys as the events could need.
        limits: when sessions close.
        events: the events.
        slots: is filled with the slot of each event.
        closed: is filled with the sessions closed; it has room for all that are open and one an event.
    """
    counts, rows = c.counts, c.rows
    n, begin = 0, 0
    for at in range(len(events.tokens)):
        if at % TOGETHER == 0:
            look_ahead(c, events, at, min(at + TOGETHER, len(slots)), slots)
        now, cause, end = events.stream_times[at], events.causes[at], events.key_ends[at]
        if now >= counts[NEXT_EXPIRY]:
            n = expire(c, limits, now, cause, closed, n)

        hashed = slots[at]
        slot = find(c, events.keys, begin, end, hashed)
        if slot == NONE:
            slot = opened(c, events.keys, begin, end, hashed, now, events.offsets[at])
        elif rows[slot, LAST_AT] != now:
            rows[slot, LAST_AT] = now
            take_out(rows, slot, QUIETER, LIVELIER)
            put_after(rows, slot, rows[END, QUIETER], QUIETER, LIVELIER)
        append(c, slot, events.tokens[at], events.offsets[at], events.times[at])
        slots[at] = slot

        if events.ends[at]:
            n = close(c, slot, cause, END_EVENT, n, closed, n)
        elif rows[slot, EVENTS] >= limits.max_events:
            n = close(c, slot, cause, MAX_EVENTS, n, closed, n)
        while counts[OPEN] > limits.max_open:
            n = close(c, rows[END, GREATER], cause, MAX_OPEN, n, closed, n)
        begin = end
    return n


@compiled
def flush(c: Columns, cause: int, closed: Table) -> int:
    """Close every session; returns how many there were."""
    n = 0
    while c.counts[OPEN] > 0:
        n = close(c, c.rows[END, GREATER], cause, FLUSHED, 0, closed, n)
    return n


# -- columns of sessions -----------------------------------------------------------------------------------------------


@compiled
def in_order(c: Columns, slots: Column) -> None:
    """Fill in the slots of the open sessions, in the order of their opening."""
    slot = END
    for at in range(len(slots)):
        slot = c.rows[slot, YOUNGER]
        slots[at] = slot


@compiled
def gather(c: Columns, slots: Column, events: Table, keys: Bytes) -> None:
    """Fill in tokens, offsets and times (FIELDS, all events) of sessions, and their keys, one after the other."""
    at, key_at = 0, 0
    for number in range(len(slots)):
        slot = slots[number]
        begin, length = c.rows[slot, KEY], c.rows[slot, KEY_BYTES]
        source, target = np.uint64(begin), np.uint64(key_at)
        for place in range(np.uint64(length)):
            keys[target + place] = c.keys[source + place]
        key_at += length
        block, left = c.rows[slot, FIRST_BLOCK], c.rows[slot, EVENTS]
        while left > 0:
            for place in range(min(left, BLOCK_EVENTS)):
                for field in range(FIELDS):
                    events[field, at] = c.blocks[block, FIRST_EVENT + place * FIELDS + field]
                at += 1
            left -= BLOCK_EVENTS
            block = c.blocks[block, NEXT]


@compiled
def look_up(c: Columns, keys: Bytes, key_ends: Column, slots: Column) -> None:
    """Fill in the slots of the open sessions that have these keys, NONE where none has."""
    begin = 0
    for number in range(len(key_ends)):
        end = key_ends[number]
        slots[number] = find(c, keys, begin, end, hash_of(keys, begin, end, c.counts[SEED]))
        begin = end


@compiled
def release(c: Columns, slots: Column) -> None:
    """Let go of closed sessions, which were gathered."""
    for slot in slots:
        c.blocks[c.rows[slot, LAST_BLOCK], NEXT] = c.counts[FREE_BLOCK]
        c.counts[FREE_BLOCK] = c.rows[slot, FIRST_BLOCK]
        c.rows[slot, KEY] = c.counts[FREE_ROW]
        c.counts[FREE_ROW] = slot


@compiled
def put_in_order(rows: Table, numbers: Column, before: int, after: int) -> None:
    """Fill a ring with the sessions of these numbers."""
    place = END
    for number in numbers:
        rows[number + 1, before] = place
        rows[place, after] = number + 1
        place = number + 1
    rows[END, before] = place
    rows[place, after] = END


@compiled
def enter_all(c: Columns) -> None:
    """Fill a new table with the open sessions."""
    slot = c.rows[END, YOUNGER]
    while slot != END:
        enter(c, slot)
        slot = c.rows[slot, YOUNGER]


@compiled
def restore(c: Columns, sessions: Saved, by_last_at: Column, by_first_offset: Column) -> None:
    """Open sessions in the order of their opening, in columns without one but with room for them, and their keys.

    `by_last_at` and `by_first_offset` are their numbers in the order of their latest events and of their first offsets.
    """
    begin, at, block, n = 0, 0, 1, len(sessions.lengths)
    for number in range(n):
        slot, end, length = number + 1, sessions.key_ends[number], sessions.lengths[number]
        c.rows[slot, KEY] = begin
        c.rows[slot, KEY_BYTES] = end - begin
        c.rows[slot, HASH] = hash_of(sessions.keys, begin, end, c.counts[SEED])
        c.rows[slot, OPENED_AT] = sessions.opened_at[number]
        c.rows[slot, LAST_AT] = sessions.last_at[number]
        c.rows[slot, ORDER] = slot
        c.rows[slot, FIRST_OFFSET] = sessions.offsets[at]
        c.rows[slot, EVENTS] = length
        c.rows[slot, OLDER] = number
        c.rows[number, YOUNGER] = slot
        begin, at = end, at + length
    c.rows[END, OLDER] = n
    c.rows[n, YOUNGER] = END
    put_in_order(c.rows, by_last_at, QUIETER, LIVELIER)
    put_in_order(c.rows, by_first_offset, SMALLER, GREATER)
    enter_all(c)
    # By themselves, since they drive everything else out of the caches.
    at = 0
    for number in range(n):
        c.rows[number + 1, FIRST_BLOCK] = block
        stop = at + sessions.lengths[number]
        while at < stop:
            for place in range(min(BLOCK_EVENTS, stop - at)):
                field = FIRST_EVENT + place * FIELDS
                c.blocks[block, field] = sessions.tokens[at]
                c.blocks[block, field + 1] = sessions.offsets[at]
                c.blocks[block, field + 2] = sessions.times[at]
                at += 1
            c.blocks[block, NEXT] = block + 1
            block += 1
        c.rows[number + 1, LAST_BLOCK] = block - 1
    c.counts[OPEN] = c.counts[OPENED] = n
    c.counts[USED_ROWS], c.counts[USED_BLOCKS] = n + 1, block
    c.counts[USED_KEYS] = c.counts[OPEN_KEYS] = begin


@compiled
def move_keys(c: Columns, keys: Bytes) -> None:
    """Move the keys of the open sessions to other bytes."""
    at, slot = 0, c.rows[END, YOUNGER]
    while slot != END:
        begin, length = c.rows[slot, KEY], c.rows[slot, KEY_BYTES]
        c.rows[slot, KEY] = at
        for place in range(length):
            keys[at + place] = c.keys[begin + place]
        at += length
        slot = c.rows[slot, YOUNGER]
    c.counts[USED_KEYS] = at
