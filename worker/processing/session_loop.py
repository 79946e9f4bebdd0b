"""The open sessions of a partition as columns, and the compiled loop that takes events in.

A session has a row of `Columns.rows`, its *slot*. Slot 0 is no session but the end of three rings, in each of which
every open session stands between one before it and one after it: by the time of its latest event, by that of its
opening, and by its first offset. A slot is found by its key in a table with open addressing, whose hash has a secret
seed, so that nobody can choose keys that collide.

What differs in length, its key and then its events, lies in a chain of blocks of bytes, each of which names the next.
An event is three numbers: its token, and what its offset and its time are more than those of the event before it (more
than the session's first offset and than 0, for the first). A number takes seven bits a byte, the lowest first, of which
all but the last have the highest bit set; its sign is its lowest bit. So small distances are short, and every 64 bits
come back as they were.

What is closed keeps its slot and its chain until `release`, after they were gathered. Nothing here grows: who calls
makes room for what can come.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from detector.compiled import Bytes, Column, Links, Table, compiled

NONE: Final = 0  # a slot or a block that is none
END: Final = 0  # the slot where each ring begins and ends
LEAST: Final = -(2**63)
NEVER: Final = 2**63 - 1
NO_LIMIT: Final = 0

# Columns of `rows`, and those of `links`, which are the same memory as numbers of half the width; what an event touches
# lies together.
LAST_AT, LAST_OFFSET, LAST_TIME, WRITTEN = range(4)
KEY_BYTES, FIRST_BLOCK, EVENTS, QUIETER, LIVELIER, HASH = range(8, 14)
OPENED_AT, ORDER, FIRST_OFFSET = range(7, 10)
OLDER, YOUNGER, SMALLER, GREATER, ALERTED, EVALUATED = range(20, 26)
ROW: Final = 13
NEXT_FREE: Final = FIRST_BLOCK  # of a row that is free

# A block: the number of the next one, then what it holds.
BLOCK_BITS: Final = 6
BLOCK: Final = 1 << BLOCK_BITS
NEXT: Final = 0  # column of `nexts`
HEAD: Final = 4
ROOM: Final = BLOCK - HEAD
FIELDS: Final = 3  # token, offset, time
LONGEST: Final = 10  # bytes of a number

# An entry of `table`: the hash of a key, and below it the slot. As many of them are as fit the sessions.
HASH_BITS: Final = 31
SLOT_BITS: Final = 32
SLOT_OF: Final = (1 << SLOT_BITS) - 1

# `counts`
OPEN, OPENED, NEXT_EXPIRY, USED_ROWS, FREE_ROW, USED_BLOCKS, FREE_BLOCK, FREE_BLOCKS, SEED, AHEAD = range(10)
COUNTS: Final = 10

TOGETHER: Final = 32  # events, for which memory is read ahead

# Why a session closed.
GAP, MAX_AGE, END_EVENT, MAX_EVENTS, MAX_OPEN, FLUSHED = range(6)

# Columns of what a call closed, a row each; the first row of a group of sessions that close together by first offset.
SLOT, CAUSE, REASON, GROUP = range(4)
CLOSED: Final = 4


class Columns(NamedTuple):
    """The open sessions."""

    rows: Table  # (slots, ROW)
    links: Links  # (slots, 2 ROW), the same memory
    chains: Bytes  # of all blocks
    nexts: Links  # (blocks, BLOCK / 4), the same memory
    table: Column
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


# -- chains ------------------------------------------------------------------------------------------------------------


@compiled
def lengthened(c: Columns, last: int) -> int:
    """Give a chain one more block behind its last, which is NONE for a new one; returns where its bytes begin."""
    counts, nexts = c.counts, c.nexts
    block = counts[FREE_BLOCK]
    if block == NONE:
        block = counts[USED_BLOCKS]
        counts[USED_BLOCKS] += 1
    else:
        counts[FREE_BLOCK] = nexts[block, NEXT]
        counts[FREE_BLOCKS] -= 1
    nexts[last, NEXT] = block
    return int((block << BLOCK_BITS) + HEAD)


@compiled
def begin_chain(c: Columns, slot: int, keys: Bytes, begin: int, end: int) -> None:
    """Give a session a chain that begins with its key."""
    at = lengthened(c, NONE)
    c.links[slot, FIRST_BLOCK], c.links[slot, KEY_BYTES], c.links[slot, EVENTS] = at >> BLOCK_BITS, end - begin, 0
    while True:
        stop = min(end, begin + ROOM)
        source, target = np.uint64(begin), np.uint64(at)
        for place in range(np.uint64(stop - begin)):
            c.chains[target + place] = keys[source + place]
        at, begin = at + stop - begin, stop
        if begin == end:
            c.rows[slot, WRITTEN] = at
            return
        at = lengthened(c, (at >> BLOCK_BITS) - 1)


@compiled
def append(c: Columns, slot: int, token: int, offset: int, time: int) -> None:
    """Add an event to a session."""
    rows, links, chains, number, at = c.rows, c.links, c.chains, c.links[slot, EVENTS], c.rows[slot, WRITTEN]
    offset_before = rows[slot, FIRST_OFFSET] if number == 0 else rows[slot, LAST_OFFSET]
    time_before = np.int64(0) if number == 0 else rows[slot, LAST_TIME]
    for value in (token, offset - offset_before, time - time_before):
        left, more = (value << 1) ^ (value >> 63), True
        while more:
            if at & (BLOCK - 1) == 0:
                at = lengthened(c, (at >> BLOCK_BITS) - 1)
            more = bool(left < 0 or left > 127)
            chains[at] = (left & 127) | (128 if more else 0)
            left = (left >> 7) & ((1 << 57) - 1)
            at += 1
    rows[slot, WRITTEN], rows[slot, LAST_OFFSET], rows[slot, LAST_TIME] = at, offset, time
    links[slot, EVENTS] = number + 1


# -- keys, rings and sessions ------------------------------------------------------------------------------------------


@compiled
def hash_of(keys: Bytes, begin: int, end: int, seed: int) -> int:
    """HASH_BITS of a key, each eight bytes multiplied by a secret odd number."""
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
    return int((found ^ (found >> 29)) & ((1 << HASH_BITS) - 1))


@compiled
def find(c: Columns, keys: Bytes, begin: int, end: int, hashed: int) -> int:
    """The slot of the open session that has this key; NONE if no session has."""
    entries = len(c.table)
    at = (hashed * entries) >> HASH_BITS
    while c.table[at] & SLOT_OF != NONE:
        slot = c.table[at] & SLOT_OF
        if c.table[at] >> SLOT_BITS == hashed and c.links[slot, KEY_BYTES] == end - begin:
            block, part, differs = np.int64(c.links[slot, FIRST_BLOCK]), begin, np.uint8(0)
            while True:
                # An index that may be below 0 is looked at for each byte, which costs twenty times the comparison.
                wanted, held = np.uint64(part), np.uint64((block << BLOCK_BITS) + HEAD)
                for place in range(np.uint64(min(end - part, ROOM))):
                    differs |= keys[wanted + place] ^ c.chains[held + place]
                part += ROOM
                if differs != 0 or part >= end:
                    break
                block = np.int64(c.nexts[block, NEXT])
            if differs == 0:
                return int(slot)
        at = at + 1 if at + 1 < entries else 0
    return NONE


@compiled
def enter(table: Column, entry: int) -> None:
    """Let a session be found."""
    at = ((entry >> SLOT_BITS) * len(table)) >> HASH_BITS
    while table[at] & SLOT_OF != NONE:
        at = at + 1 if at + 1 < len(table) else 0
    table[at] = entry


@compiled
def enter_all(table: Column, larger: Column) -> None:
    """Fill a new table with what one has."""
    for at in range(len(table)):
        if table[at] & SLOT_OF != NONE:
            enter(larger, table[at])


@compiled
def strike(c: Columns, slot: int) -> None:
    """Let a session be found no more; what stood behind it for want of its entry moves up."""
    table, entries = c.table, len(c.table)
    hole = int((np.int64(c.links[slot, HASH]) * entries) >> HASH_BITS)
    while table[hole] & SLOT_OF != slot:
        hole = hole + 1 if hole + 1 < entries else 0
    at = hole + 1 if hole + 1 < entries else 0
    while table[at] & SLOT_OF != NONE:
        from_home, from_hole = at - (((table[at] >> SLOT_BITS) * entries) >> HASH_BITS), at - hole
        from_home += entries if from_home < 0 else 0
        from_hole += entries if from_hole < 0 else 0
        if from_home >= from_hole:
            table[hole] = table[at]
            hole = at
        at = at + 1 if at + 1 < entries else 0
    table[hole] = NONE


@compiled
def put_after(links: Links, slot: int, place: int, before: int, after: int) -> None:
    """Put a session into a ring, after the one at `place`; `before` and `after` are the ring's columns."""
    following = links[place, after]
    links[slot, before], links[slot, after] = place, following
    links[place, after] = links[following, before] = slot


@compiled
def take_out(links: Links, slot: int, before: int, after: int) -> None:
    """Take a session out of a ring."""
    links[links[slot, before], after] = links[slot, after]
    links[links[slot, after], before] = links[slot, before]


@compiled
def opened(c: Columns, keys: Bytes, begin: int, end: int, hashed: int, stream_time: int, offset: int) -> int:
    """The slot of a new session, which has no event yet."""
    counts, rows, links = c.counts, c.rows, c.links
    slot = counts[FREE_ROW]
    if slot == NONE:
        slot = counts[USED_ROWS]
        counts[USED_ROWS] += 1
    else:
        counts[FREE_ROW] = links[slot, NEXT_FREE]
    counts[OPEN] += 1
    counts[OPENED] += 1
    begin_chain(c, slot, keys, begin, end)
    links[slot, HASH] = hashed
    rows[slot, OPENED_AT] = rows[slot, LAST_AT] = stream_time
    rows[slot, ORDER] = counts[OPENED]
    rows[slot, FIRST_OFFSET] = offset
    links[slot, ALERTED] = links[slot, EVALUATED] = 0
    enter(c.table, (hashed << SLOT_BITS) | slot)
    put_after(links, slot, links[END, QUIETER], QUIETER, LIVELIER)
    put_after(links, slot, links[END, OLDER], OLDER, YOUNGER)
    # An event that waited may open a session after others of greater offsets, which are those since it came.
    place = links[END, SMALLER]
    while place != END and rows[place, FIRST_OFFSET] > offset:
        place = links[place, SMALLER]
    put_after(links, slot, place, SMALLER, GREATER)
    return int(slot)


@compiled
def close(c: Columns, slot: int, cause: int, reason: int, group: int, closed: Table, n: int) -> int:
    """Close a session, the n-th of the call; returns how many there are then."""
    strike(c, slot)
    take_out(c.links, slot, QUIETER, LIVELIER)
    take_out(c.links, slot, OLDER, YOUNGER)
    take_out(c.links, slot, SMALLER, GREATER)
    c.rows[slot, ORDER] = -c.rows[slot, ORDER]
    c.counts[OPEN] -= 1
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
    rows, links, group = c.rows, c.links, n
    while c.counts[OPEN] > 0 and reached(limits.gap, rows[links[END, LIVELIER], LAST_AT], now):
        n = close(c, links[END, LIVELIER], cause, GAP, group, closed, n)
    group = n
    while c.counts[OPEN] > 0 and reached(limits.max_age, rows[links[END, YOUNGER], OPENED_AT], now):
        n = close(c, links[END, YOUNGER], cause, MAX_AGE, group, closed, n)
    # A session that is not open yet is not touched before now.
    quietest = rows[links[END, LIVELIER], LAST_AT] if c.counts[OPEN] > 0 else now
    oldest = rows[links[END, YOUNGER], OPENED_AT] if c.counts[OPEN] > 0 else now
    c.counts[NEXT_EXPIRY] = min(reached_at(limits.gap, quietest), reached_at(limits.max_age, oldest))
    return n


@compiled
def look_ahead(c: Columns, events: Arrivals, first: int, stop: int, hashes: Column) -> None:
    """Fill in the hashes of events, and read once what they will change.

    Where an event finds what it changes is known only from what it has read, so it waits for memory several times;
    many events that read ahead wait at the same time.
    """
    rows, links, table, seen = c.rows, c.links, c.table, 0
    begin = events.key_ends[first - 1] if first > 0 else 0
    for at in range(first, stop):
        hashes[at] = hash_of(events.keys, begin, events.key_ends[at], c.counts[SEED])
        begin = events.key_ends[at]
    for at in range(first, stop):
        seen ^= table[(hashes[at] * len(table)) >> HASH_BITS]
    for at in range(first, stop):
        seen ^= rows[table[(hashes[at] * len(table)) >> HASH_BITS] & SLOT_OF, LAST_AT]
    for at in range(first, stop):
        slot = table[(hashes[at] * len(table)) >> HASH_BITS] & SLOT_OF
        seen ^= int(links[links[slot, QUIETER], LIVELIER] ^ links[links[slot, LIVELIER], QUIETER])
        seen ^= int(c.nexts[links[slot, FIRST_BLOCK], NEXT] ^ c.nexts[(rows[slot, WRITTEN] - 1) >> BLOCK_BITS, NEXT])
    c.counts[AHEAD] = seen  # or the compiler would leave the reading out


@compiled
def take(c: Columns, limits: Limits, events: Arrivals, slots: Column, closed: Table) -> int:
    """Take events in; returns how many sessions they closed.

    Args:
        c: the sessions, with room for as many rows and blocks as the events could need.
        limits: when sessions close.
        events: the events.
        slots: is filled with the slot of each event.
        closed: is filled with the sessions closed; it has room for all that are open and one an event.
    """
    counts, rows, links = c.counts, c.rows, c.links
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
            take_out(links, slot, QUIETER, LIVELIER)
            put_after(links, slot, links[END, QUIETER], QUIETER, LIVELIER)
        append(c, slot, events.tokens[at], events.offsets[at], events.times[at])
        slots[at] = slot

        if events.ends[at]:
            n = close(c, slot, cause, END_EVENT, n, closed, n)
        elif links[slot, EVENTS] >= limits.max_events:
            n = close(c, slot, cause, MAX_EVENTS, n, closed, n)
        while counts[OPEN] > limits.max_open:
            n = close(c, links[END, GREATER], cause, MAX_OPEN, n, closed, n)
        begin = end
    return n


@compiled
def flush(c: Columns, cause: int, closed: Table) -> int:
    """Close every session; returns how many there were."""
    n = 0
    while c.counts[OPEN] > 0:
        n = close(c, c.links[END, GREATER], cause, FLUSHED, 0, closed, n)
    return n


# -- columns of sessions -----------------------------------------------------------------------------------------------


@compiled
def in_order(c: Columns, slots: Column) -> None:
    """Fill in the slots of the open sessions, in the order of their opening."""
    slot = np.int64(END)
    for at in range(len(slots)):
        slot = np.int64(c.links[slot, YOUNGER])
        slots[at] = slot


@compiled
def gather(c: Columns, slots: Column, events: Table, keys: Bytes) -> None:
    """Fill in tokens, offsets and times (FIELDS, all events) of sessions, and their keys, one after the other."""
    n, key_at = 0, 0
    for slot in slots:
        at = (np.int64(c.links[slot, FIRST_BLOCK]) << BLOCK_BITS) + HEAD
        for _ in range(c.links[slot, KEY_BYTES]):
            if at & (BLOCK - 1) == 0:
                at = (np.int64(c.nexts[(at >> BLOCK_BITS) - 1, NEXT]) << BLOCK_BITS) + HEAD
            keys[key_at] = c.chains[at]
            at, key_at = at + 1, key_at + 1
        offset, time = c.rows[slot, FIRST_OFFSET], np.int64(0)
        for _ in range(c.links[slot, EVENTS]):
            for field in range(FIELDS):
                left, bits, more = np.int64(0), 0, True
                while more:
                    if at & (BLOCK - 1) == 0:
                        at = (np.int64(c.nexts[(at >> BLOCK_BITS) - 1, NEXT]) << BLOCK_BITS) + HEAD
                    byte = np.int64(c.chains[at])
                    left |= (byte & 127) << bits
                    at, bits, more = at + 1, bits + 7, bool(byte > 127)
                events[field, n] = ((left >> 1) & NEVER) ^ -(left & 1)
            offset += events[1, n]
            time += events[2, n]
            events[1, n], events[2, n] = offset, time
            n += 1


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
    counts, links, nexts = c.counts, c.links, c.nexts
    for slot in slots:
        block, last = np.int64(links[slot, FIRST_BLOCK]), (c.rows[slot, WRITTEN] - 1) >> BLOCK_BITS
        nexts[last, NEXT] = counts[FREE_BLOCK]
        counts[FREE_BLOCK] = block
        while block != last:
            block = np.int64(nexts[block, NEXT])
            counts[FREE_BLOCKS] += 1
        counts[FREE_BLOCKS] += 1
        links[slot, NEXT_FREE] = counts[FREE_ROW]
        counts[FREE_ROW] = slot


@compiled
def restore(c: Columns, sessions: Saved, by_last_at: Column) -> None:
    """Open sessions in the order of their opening, in columns without one but with room for them.

    `by_last_at` are their numbers in the order of their latest events.
    """
    begin, at, rows, links = 0, 0, c.rows, c.links
    for number in range(len(sessions.lengths)):
        end, opened_at, offset = sessions.key_ends[number], sessions.opened_at[number], sessions.offsets[at]
        hashed = hash_of(sessions.keys, begin, end, c.counts[SEED])
        slot = opened(c, sessions.keys, begin, end, hashed, opened_at, offset)
        rows[slot, LAST_AT] = sessions.last_at[number]
        for _ in range(sessions.lengths[number]):
            append(c, slot, sessions.tokens[at], sessions.offsets[at], sessions.times[at])
            at += 1
        begin = end
    for number in by_last_at:
        take_out(links, number + 1, QUIETER, LIVELIER)
        put_after(links, number + 1, links[END, QUIETER], QUIETER, LIVELIER)
