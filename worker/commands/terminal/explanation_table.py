"""An explained session on a terminal: lines about the whole, and a table of its events and its end."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from detector.text.vocabulary import EOS, UNK
from worker.commands.explain import Expected, ExplainedEvent, ExplainedSession, UnusualCount
from worker.commands.terminal.text import SEVERITY_STYLES, shown
from worker.formats.printable import printable
from worker.processing.score_records import Severity, Thresholds

_LINES = Text("\n")
_LEADING_WILDCARDS = re.compile(r"^(?:<\*> )+")
_LEAST_SHOWN = 0.0005
_SPECIAL = {EOS: "end of session", UNK: "unknown line"}


def explanation_table(explained: ExplainedSession) -> Group:
    """What `logmamba explain` shows of a session; long text is cut to the width of the terminal.

    An expected event is marked when it is the one that came, and left out when its probability would read 0.0%. A
    surprise stands out when the event that came is not among the expected ones. Templates are shown from their first
    word on: wildcards before it are a line's date or process, and the line itself stands below.
    """
    record = explained.record
    thresholds = Thresholds(**record["thresholds"])
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
    for name in ("offset", "surprise", "score"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, share in (("event", 5), ("expected", 4)):
        table.add_column(name, ratio=share, no_wrap=True, overflow="ellipsis")
    for event in explained.events:
        table.add_row(
            str(event.offset) if event.origin is None else f"{event.origin} {event.offset}",
            _surprise(event.surprise, event.class_, event.expected),
            _score(event.score, thresholds.severity(event.score)),
            _LINES.join(_event(event)),
            _LINES.join(_alternatives(event.class_, event.expected)),
        )
    table.add_row(
        "",
        _surprise(explained.end_surprise, EOS, explained.end_expected),
        _score(record["score"], record["severity"]),
        Text(_SPECIAL[EOS], style="italic"),
        _LINES.join(_alternatives(EOS, explained.end_expected)),
    )
    return Group(*_heading(record, adaptive=explained.adaptive), *map(_unusual, explained.unusual_counts), table)


def _heading(record: Mapping[str, Any], *, adaptive: bool) -> Iterator[Text]:
    source, thresholds = record["source"], record["thresholds"]
    yield Text.assemble(
        shown(record["session"], "bold"),
        "  ",
        (f"{record['severity']} {record['score']:.4f}", SEVERITY_STYLES[record["severity"]]),
        (f"  (warning from {thresholds['warning']:g}, critical from {thresholds['critical']:g})", "dim"),
    )
    if adaptive:
        yield Text(
            "severities are by the fixed thresholds; with scoring.adaptive a worker's follow its stream, and its score "
            "record of the session shows them",
            style="dim",
        )
    if "reason" in record:
        yield Text(printable(record["reason"]["text"]))
    yield Text.assemble(
        shown(source["topic"]),
        f", offsets {source['first_offset']} to {source['last_offset']}: {record['events']} events",
        f", {record['unknown_events']} of them unknown" if record["unknown_events"] else "",
        f", mean surprise {record['surprise']:.2f} nats, closed by {record['closed_by'].replace('_', ' ')}",
    )


def _unusual(count: UnusualCount) -> Text:
    often = "missing" if not count.count else f"{count.count} times" if count.count > 1 else "once"
    return Text.assemble(f"unusual: {often} ({count.nats:.1f} nats)  ", _template(count.template))


def _event(event: ExplainedEvent) -> Iterator[Text]:
    """The template, and below it the line that it was made of."""
    if event.unknown:
        yield Text(_SPECIAL[UNK], style="bold magenta")
    else:
        yield _template(event.template)
    if event.text != event.template:
        yield shown(event.text, "dim")


def _alternatives(came: int, expected: Sequence[Expected]) -> Iterator[Text]:
    for each in expected:
        is_it = each.token == came
        if each.probability < _LEAST_SHOWN and not is_it:
            continue
        text = Text("→ " if is_it else "  ", style="bold" if is_it else "dim")
        text.append(f"{each.probability:6.1%}  ")
        name = _SPECIAL.get(each.token)
        text.append_text(_template(each.template) if name is None else Text(name, style="italic"))
        yield text


def _template(template: str) -> Text:
    return shown(_LEADING_WILDCARDS.sub("", template))


def _surprise(surprise: float, came: int, expected: Sequence[Expected]) -> Text:
    return Text(f"{surprise:.2f}", style="" if any(each.token == came for each in expected) else "bold yellow")


def _score(score: float, severity: Severity) -> Text:
    return Text(f"{score:.4f}", style=SEVERITY_STYLES[severity])
