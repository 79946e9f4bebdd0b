"""Why a session stands out, in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from detector.scoring.families import Family
from detector.scoring.pace import ANY, Unusual
from detector.scoring.tolerances import Broken, Tolerances
from detector.text.vocabulary import UNK, Vocabulary

_LEADING_WILDCARDS = re.compile(r"^(?:<\S*> )+(?=\S)")
_MOST_CHARACTERS = 100


class Reason(NamedTuple):
    """What a score record says of a session that stands out.

    Attributes:
        text: sentences.
        family: a name that `logmamba verdicts` takes an answer for.
    """

    text: str
    family: str


def in_words(broken: Broken, counts: Mapping[int, int], tolerances: Tolerances, vocabulary: Vocabulary) -> str:
    """One broken tolerance, beside what is tolerated.

    Args:
        broken: by a session.
        counts: how often each token occurs in it.
        tolerances: that it breaks.
        vocabulary: of its tokens.
    """
    name = _template(broken.token, vocabulary)
    if broken.kind == "missing":
        return f"{name}: missing; {percent(tolerances.share_with(broken.token))} of sessions have it."
    often = times(counts[broken.token]) if broken.token in counts else times(0)
    if broken.kind == "rare":
        share = tolerances.share_with(broken.token)
        have = f"{percent(share)} of sessions have" if share else "no session of the training had"
        return f"{name}: {often}; {have} it."
    if broken.kind in ("fewer", "more"):
        low, high, share = tolerances.share_within(broken.token)
        usual = f"exactly {low}" if low == high else f"{low} to {high}" if low > 1 else f"at most {high}"
        return f"{name}: {often}; {percent(share)} of sessions with it have {usual}."
    p, q, share = tolerances.relation(broken.token, broken.other)
    usual = "as many of both" if p == q else f"{p} of the first for {q} of the second"
    other = f"{_template(broken.other, vocabulary)}: {times(counts.get(broken.other, 0))}"
    return f"{name}: {often}, {other}; {percent(share)} of sessions with either have {usual}."


def of_session(
    broken: list[Broken],
    counts: Mapping[int, int],
    family: Family | None,
    name: str,
    tolerances: Tolerances,
    vocabulary: Vocabulary,
) -> Reason:
    """Why a session stands out that breaks at least one tolerance.

    Args:
        broken: what it breaks, the most evidence first.
        counts: how often each token occurs in it.
        family: of the session, where it has a number.
        name: of its family otherwise.
        tolerances: that it breaks.
        vocabulary: of its tokens.
    """
    sentences = [in_words(broken[0], counts, tolerances, vocabulary)]
    if len(broken) > 1:
        sentences.append(f"It breaks {len(broken) - 1} more {'tolerance' if len(broken) == 2 else 'tolerances'}.")
    if family is None:
        sentences.append("The training had no session like it.")
        return Reason(" ".join(sentences), name)
    judged = f"judged {family.verdict} on {family.judged_on}" if family.verdict else "not judged yet"
    had = (
        f" ({family.sessions:,} {'session' if family.sessions == 1 else 'sessions'} set aside)"
        if family.sessions
        else ""
    )
    sentences.append(f"Same as family {family.name}{had}, {judged}.")
    return Reason(" ".join(sentences), family.name)


def of_pace(unusual: Unusual, vocabulary: Vocabulary) -> str:
    """A pause or burst beyond its limit, beside what is usual."""
    name, share = _template(unusual.token, vocabulary), percent(unusual.within / unusual.sessions)
    if unusual.kind == "burst":
        return f"{name}: {times(unusual.value)} within 1 s; {share} of sessions with it have at most {unusual.usual:,}."
    after = "" if unusual.previous == ANY else f", after {_template(unusual.previous, vocabulary)}"
    most = f"{share} of sessions have at most {duration(unusual.usual, up=True)} there"
    return f"{name}: a pause of {duration(unusual.value)} before it{after}; {most}."


def duration(ms: int, *, up: bool = False) -> str:
    """A time in seconds up to ten minutes, in minutes up to two hours, else in hours; rounded down, or up."""
    for unit, name, least in ((3_600_000, "h", 7_200_000), (60_000, "min", 600_000), (1_000, "s", 10_000)):
        if ms >= least:
            return f"{-(-ms // unit) if up else ms // unit:,} {name}"
    tenths = -(-ms // 100) if up else ms // 100
    return f"{tenths / 10:g} s"


def times(count: int) -> str:
    """How often, in words."""
    return "missing" if count == 0 else "1 time" if count == 1 else f"{count:,} times"


def percent(share: float) -> str:
    """A share that never reads greater than it is, and 100 % for all alone."""
    if share == 1:
        return "100 %"
    for digits in range(6):
        shown = int(share * 100 * 10**digits + 1e-9) / 10**digits
        if shown > 0 if digits else 0.1 <= share <= 0.99:
            break
    return f"{shown:.{digits}f} %"


def _template(token: int, vocabulary: Vocabulary) -> str:
    """A template from its first word on, and no longer than is read at a glance."""
    if token == UNK:
        return "A line that no template matches"
    text = _LEADING_WILDCARDS.sub("", vocabulary.text(token))
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"
