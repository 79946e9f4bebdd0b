"""The loops of `detector.scoring.growing_sessions` over the events of sessions, of which each has a slot."""

from typing import NamedTuple

from detector.compiled import Column, Floats, Singles, Table, compiled


class SoFar(NamedTuple):
    """What the next early scores of sessions follow from, a slot each.

    Attributes:
        highest: surprise of the events.
        logits: the highest class logit after them.
        counts: how often each token came and, last, any unknown line, (slots, tokens + 1).
    """

    highest: Floats
    logits: Floats
    counts: Table


class Told(NamedTuple):
    """Surprises and scores of the events of sessions, those of one end to end.

    Attributes:
        begins: where those of each slot's session begin.
        surprises: with room between sessions.
        scores: likewise.
    """

    begins: Column
    surprises: Singles
    scores: Singles


@compiled
def go_on(
    tokens: Column,
    surprises: Singles,
    class_logits: Singles,
    bounds: Column,
    slots: Column,
    unknown: int,
    so_far: SoFar,
    highest: Floats,
    logits: Floats,
    occurrences: Column,
    with_unknown: Column,
) -> None:
    """Go on with sessions by their next events.

    Args:
        tokens: of the events of each session, one after the other; negative ones are unknown lines.
        surprises: of the events.
        class_logits: after each.
        bounds: where each session's events begin and, last, how many there are.
        slots: of the sessions.
        unknown: the token that stands for unknown lines; up to it, all tokens are as good as them.
        so_far: of all slots; goes on with these.
        highest: written: up to each event.
        logits: written: likewise.
        occurrences: written: how often its token has come, the event included; of an unknown line, any of them.
        with_unknown: written: likewise, where whatever is as good as an unknown line is one token.
    """
    last = so_far.counts.shape[1] - 1
    for session in range(len(slots)):
        slot = slots[session]
        most, greatest = so_far.highest[slot], so_far.logits[slot]
        for at in range(bounds[session], bounds[session + 1]):
            value, logit, token = float(surprises[at]), float(class_logits[at]), tokens[at]
            # What is no number stays, whatever comes after it.
            if value > most or value != value:
                most = value
            if logit > greatest or logit != logit:
                greatest = logit
            highest[at], logits[at] = most, greatest
            place = last if token < 0 else token
            so_far.counts[slot, place] += 1
            occurrences[at] = with_unknown[at] = so_far.counts[slot, place]
            if token <= unknown:
                total = so_far.counts[slot, last]
                for each in range(unknown + 1):
                    total += so_far.counts[slot, each]
                with_unknown[at] = total
        so_far.highest[slot], so_far.logits[slot] = most, greatest


@compiled
def join(rest: Table, slots: Column, seen: Column, new: Column, bounds: Column, into: Column) -> None:
    """The tokens of sessions end to end, of each those that are kept and then the new ones.

    Args:
        rest: tokens kept of each slot.
        slots: of the sessions.
        seen: how many are kept of each.
        new: of each session, one after the other.
        bounds: where those of each begin and, last, how many there are.
        into: written.
    """
    to = 0
    for session in range(len(slots)):
        for at in range(seen[session]):
            into[to] = rest[slots[session], at]
            to += 1
        for at in range(bounds[session], bounds[session + 1]):
            into[to] = new[at]
            to += 1


@compiled
def keep(rest: Table, slots: Column, tokens: Column, ends: Column, kept: Column) -> None:
    """Keep so many of the last tokens of sessions that lie end to end, and end there, in their slots."""
    for session in range(len(slots)):
        begin = ends[session] - kept[session]
        for at in range(kept[session]):
            rest[slots[session], at] = tokens[begin + at]


@compiled
def tell(told: Told, slots: Column, known: Column, surprises: Singles, scores: Singles, bounds: Column) -> None:
    """Add those of the next events of sessions, which have room for them, to the `known` ones of each."""
    for session in range(len(slots)):
        to = told.begins[slots[session]] + known[session]
        for at in range(bounds[session], bounds[session + 1]):
            told.surprises[to], told.scores[to] = surprises[at], scores[at]
            to += 1


@compiled
def look_up(told: Told, slots: Column, firsts: Column, surprises: Singles, scores: Singles, bounds: Column) -> None:
    """Write those of as many events of sessions as there is place between `bounds`, of each from its first one on."""
    for session in range(len(slots)):
        place = told.begins[slots[session]] + firsts[session]
        for at in range(bounds[session], bounds[session + 1]):
            surprises[at], scores[at] = told.surprises[place], told.scores[place]
            place += 1


@compiled
def move(told: Told, slots: Column, known: Column, into: Told) -> None:
    """Copy the `known` ones of these slots to another place."""
    for session in range(len(slots)):
        place, to = told.begins[slots[session]], into.begins[slots[session]]
        for at in range(known[session]):
            into.surprises[to + at], into.scores[to + at] = told.surprises[place + at], told.scores[place + at]
