"""A proposal as a settings file, with the reasons as comments, and as lines for people."""

from __future__ import annotations

import re
from collections.abc import Iterator
from statistics import median_high
from textwrap import wrap

from worker.commands.suggestion.proposal import Proposal
from worker.commands.suggestion.trials import Candidate
from worker.processing.clock import NO_TIME
from worker.processing.score_records import iso_time
from worker.settings.values import flow_yaml

_WIDTH = 118
_OTHERS = 3
_ZONE = re.compile(rb"\d\d:\d\d:\d\d(?:[.,]\d+)? ?(?:Z|UTC|GMT|[+-]\d\d:?\d\d)\b")
_DAY_ABOVE_12 = re.compile(rb"\b(?:1[3-9]|[23]\d)/\d{1,2}/\d{4}|\b\d{1,2}/(?:1[3-9]|[23]\d)/\d{4}")
_AMBIGUOUS = ("%d/%m/%Y", "%m/%d/%Y")


def settings_file(proposal: Proposal, name: str, bootstrap: str | None, topic: str | None) -> str:
    """The text of a settings file that says what is proposed and why.

    Args:
        proposal: for a sample.
        name: of the sample.
        bootstrap: brokers from which it was read; None for files.
        topic: its topic.
    """
    application = application_of(topic or name)
    lines = [
        *_comment(
            f"Written by logmamba init after a look at {proposal.sample.lines:,} lines of {name}. What is not written "
            "here has the default that config/worker.example.yaml explains."
        ),
        f"application_id: {application}",
        "",
        "kafka:",
        f"  bootstrap.servers: {flow_yaml(bootstrap or 'localhost:9092')}{'' if bootstrap else '  # yours'}",
        "",
        "input:",
        f"  topics: [{flow_yaml(topic or 'raw-logs')}]{'' if topic else '  # yours'}",
        *_input(proposal),
        "",
        "sessions:",
        *_sessions(proposal),
        "",
        "model:",
        *_comment("What logmamba train --output writes.", 2),
        f"  checkpoint: checkpoints/{application}",
    ]
    return "\n".join(lines) + "\n"


def told(proposal: Proposal) -> Iterator[str]:
    """The same for people, a line each."""
    yield f"format: {proposal.shape.input.get('format', 'text')}: {proposal.shape.why}"
    yield f"times: {_times_told(proposal)}"
    yield f"session key ({proposal.sureness}): {_key_written(proposal)}: {_key_told(proposal)}"
    yield f"sessions: {_sessions_told(proposal)}"
    for each in proposal.others[:_OTHERS]:
        yield f"another key: {flow_yaml(each.idea.key)}: {_candidate_told(each)}"
    for line in (*proposal.trial.refused, *_of_times(proposal)):
        yield f"note: {line}"


def application_of(name: str) -> str:
    """A name for the application, from that of a file or topic."""
    bare = re.sub(r"(\.(records|jsonl?|ndjson|log|txt|gz|\d+))+$", "", name.rsplit("/", 1)[-1].lower())
    return re.sub("[^a-z0-9._-]+", "-", bare).strip("-._")[:64] or "logs"


def _comment(text: str, indent: int = 0) -> list[str]:
    before = f"{' ' * indent}# "
    return [before + line for line in wrap(text, _WIDTH - len(before), break_long_words=False, break_on_hyphens=False)]


def _sentence(*parts: str) -> str:
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts)


def _input(proposal: Proposal) -> Iterator[str]:
    shape = proposal.shape
    yield from _comment(_sentence(shape.why), 2)
    for name, value in shape.input.items():
        yield f"  {name}: {flow_yaml(value)}"
    yield from _comment(_sentence(_times_told(proposal), *_of_times(proposal)), 2)
    if shape.timestamp is not None:
        yield f"  timestamp: {flow_yaml(shape.timestamp.setting)}"
    elif "timestamp" not in shape.preset.input:
        yield "  timestamp: null"
    for line in proposal.trial.refused:
        yield from _comment(line, 2)


def _sessions(proposal: Proposal) -> Iterator[str]:
    yield from _comment(f"{proposal.sureness.capitalize()}: {_key_told(proposal)}.", 2)
    if proposal.key == proposal.shape.preset.key:
        yield from _comment("That is the format's own key, which logmamba check --show prints.", 2)
    else:
        yield f"  key: {flow_yaml(proposal.key)}"
    if proposal.others:
        yield from _comment("What else makes sessions:", 2)
    for each in proposal.others[:_OTHERS]:
        yield f"  #   key: {flow_yaml(each.idea.key)}"
        yield from (line.replace("# ", "#     ", 1) for line in _comment(_candidate_told(each), 2))
    if proposal.no_key == "ignore":
        yield from _comment("Lines without the key are only counted; dead_letter would publish each of them.", 2)
        yield "  no_key: ignore"
    endings = proposal.endings
    yield from _comment(_sentence(endings.why), 2)
    yield f"  gap: {endings.gap}"
    yield f"  max_age: {endings.max_age}"
    yield f"  idle_flush: {endings.idle_flush}"
    yield from _comment(f"With all of this: {_sessions_told(proposal)}.", 2)
    if proposal.end_events:
        yield from _comment(
            "These seem to end sessions, which then need not wait for the gap. Written as the vocabulary.json of the "
            "trained checkpoint has them, they can be given before the next training:",
            2,
        )
        yield f"  # end_events: {flow_yaml(list(proposal.end_events))}"


def _key_written(proposal: Proposal) -> str:
    return "the format's own" if proposal.key == proposal.shape.preset.key else flow_yaml(proposal.key)


def _times_told(proposal: Proposal) -> str:
    shape = proposal.shape
    times = [time for closed in proposal.trial.sessions for time in closed.session.times if time != NO_TIME]
    if not times:
        return (
            "no usual way of writing times fits the lines, so the times of Kafka's records hold; in a file there are "
            "none"
        )
    span = f"{iso_time(min(times))} to {iso_time(max(times))}"
    where = f"{len(times):,} of {proposal.trial.events:,} events have a time, {span}"
    if shape.timestamp is None and "timestamp" not in shape.preset.input:
        return f"{where}, that of Kafka's records: no usual way of writing times fits the lines"
    return where


def _key_told(proposal: Proposal) -> str:
    chosen = proposal.chosen
    if chosen is None:
        return (
            "nothing in the lines is a good session key: what comes again does not tell one piece of work from "
            "another. Sessions are windows of time of all lines of a partition"
        )
    told = f"{chosen.idea.what}; {_candidate_told(chosen)}"
    if proposal.sureness == "unsure" and chosen.varied < 0.3:
        told += ". Hardly any key has different events here: try a longer sample, without gaps"
    return told


def _candidate_told(candidate: Candidate) -> str:
    parts = [
        f"{candidate.keys:,} keys with {candidate.typical:,} events each (median)",
        f"in {candidate.coverage:.0%} of the lines",
    ]
    if candidate.largest > 0.3:
        parts.append(f"the commonest has {candidate.largest:.0%} of the events")
    if candidate.varied < 0.8:
        parts.append(f"{candidate.varied:.0%} of the events are of keys with different events")
    if candidate.spread:
        parts.append(f"{candidate.spread:.0%} of the keys are spread over several partitions")
    return ", ".join(parts)


def _sessions_told(proposal: Proposal) -> str:
    sizes = [len(closed.session) for closed in proposal.trial.sessions]
    if not sizes:
        return "no session"
    ends = ", ".join(f"{name} {count:,}" for name, count in proposal.closed_by.most_common())
    most = f"median; at most {max(sizes):,}"
    return f"{len(sizes):,} sessions of {median_high(sizes):,} events ({most}), closed by {ends}"


def _of_times(proposal: Proposal) -> Iterator[str]:
    """What a person should know of how the times were read."""
    rule = proposal.shape.settings().timestamp
    if rule is None or proposal.shape.timestamp is None:
        return
    written = "".join(rule.formats)
    if "syslog" in rule.formats or "klog" in rule.formats or ("%" in written and "%y" not in written.lower()):
        told = "it follows from when the file was last written to"
        if "%" in written and "%d" not in written:
            yield f"the times have no date: in a file {told}"
        else:
            yield f"the times have no year: in a file {told}; for a copied file add year: to input.timestamp"
    if any(each in written for each in _AMBIGUOUS) and not any(map(_DAY_ABOVE_12.search, proposal.sample.values)):
        yield f"the day could be the month and the month the day: {written} is a guess"
    if rule.zones:
        yield "zone abbreviations are ambiguous: see whether input.timestamp.zones says what yours mean"
    elif "%z" not in written and "epoch" not in written and not any(map(_ZONE.search, proposal.sample.values[:1000])):
        yield "the times name no zone and are taken for UTC: add timezone: Europe/Berlin, say, where they are not"
