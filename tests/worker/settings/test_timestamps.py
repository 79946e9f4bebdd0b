"""Every way to write `input.timestamp`, and every mistake in it at once."""

from __future__ import annotations

import pytest
import yaml

from worker.errors import SettingsError
from worker.settings.document import Settings, load_settings
from worker.settings.timestamps import TimestampRule


def load(timestamp: str, *, json: bool = False) -> Settings:
    return load_settings(None, [f"input.timestamp={timestamp}", f"input.format={'json' if json else 'text'}"])


def errors_of(timestamp: str, *, json: bool = False) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(timestamp, json=json)
    assert all(error.startswith("--set ") for error in caught.value.errors)
    return [error.removeprefix("--set ") for error in caught.value.errors]


WRITTEN = [
    ("null", None),
    ("{pattern: '^a', format: '%Y'}", TimestampRule(pattern="^a", formats=("%Y",))),
    ("{format: iso8601}", TimestampRule(formats=("iso8601",))),
    ("{format: [iso8601, syslog, epoch_ms]}", TimestampRule(formats=("iso8601", "syslog", "epoch_ms"))),
    ("{pattern: '^a', format: [rfc3339, '%d %b %Y']}", TimestampRule(pattern="^a", formats=("rfc3339", "%d %b %Y"))),
    (
        "{format: syslog, timezone: Europe/Berlin, year: 2023}",
        TimestampRule(formats=("syslog",), timezone="Europe/Berlin", year=2023),
    ),
    ("{format: klog, year: '2023'}", TimestampRule(formats=("klog",), year=2023)),
    (
        "{pattern: a, format: '%Y %Z', zones: {CET: '+01:00', EST: '-0500'}}",
        TimestampRule(pattern="a", formats=("%Y %Z",), zones=(("CET", "+01:00"), ("EST", "-0500"))),
    ),
]
WRITTEN_FOR_JSON = [
    ("/ts", TimestampRule(pointers=("/ts",), formats=("iso8601", "epoch"))),
    ("{pointer: /ts}", TimestampRule(pointers=("/ts",), formats=("iso8601", "epoch"))),
    ("{pointer: /ts, format: '%Y'}", TimestampRule(pointers=("/ts",), formats=("%Y",))),
    ("{pointer: /ts, timezone: Asia/Tokyo}", TimestampRule(pointers=("/ts",), timezone="Asia/Tokyo")),
]


@pytest.mark.parametrize(
    ("written", "rule", "json"), [(*each, False) for each in WRITTEN] + [(*each, True) for each in WRITTEN_FOR_JSON]
)
def test_every_form_is_read_and_described_as_it_is_read(written: str, rule: TimestampRule | None, json: bool) -> None:
    settings = load(written, json=json)
    assert settings.input.timestamp == rule
    described = settings.describe()["input"]["timestamp"]  # type: ignore[index]
    assert load(yaml.safe_dump(described, default_flow_style=True, width=1000), json=json) == settings


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("5", "input.timestamp: 5 is no source of timestamps; allowed: null, a JSON pointer or a mapping of pointer, "),
        ("ts", "input.timestamp: 'ts' is not a JSON pointer; allowed: /name"),
        ("{pattern: a}", "input.timestamp.format: is missing; allowed: iso8601, "),
        ("{timezone: UTC}", "input.timestamp.format: is missing; allowed: iso8601, "),
        ("{format: []}", "input.timestamp.format: [] is an empty list; allowed: iso8601, "),
        ("{format: 5}", "input.timestamp.format: 5 is not a format of times; allowed: iso8601, "),
        (
            "{format: '%Y-%m-%d'}",
            "input.timestamp.format: '%Y-%m-%d' needs a pattern beside it that finds the time in a line",
        ),
        (
            "{format: [iso8601, '%Y']}",
            "input.timestamp.format: ['iso8601', '%Y'] holds '%Y', which needs a pattern beside it",
        ),
        ("{pattern: a, format: '%Q'}", "input.timestamp.format: '%Q' is not a format that strptime can read ("),
        (
            "{pattern: a, format: '%Y %Z'}",
            "input.timestamp.format: '%Y %Z' has %Z, but an abbreviation of a zone means nothing by itself; allowed: "
            "%Z with zones: {CET: '+01:00'} beside the format, or %z for an offset such as +0100",
        ),
        ("{pattern: a, format: '%d %H:%M'}", "input.timestamp.format: '%d %H:%M' tells a part of a date; allowed: "),
        (
            "{format: iso8601, timezone: Berlin}",
            "input.timestamp.timezone: 'Berlin' is not a time zone that is known here; allowed: a name of the IANA",
        ),
        ("{format: iso8601, timezone: null}", "input.timestamp.timezone: null is not a time zone"),
        ("{format: syslog, year: 24}", "input.timestamp.year: 24 is not a year from 1970 to 9998, or null"),
        (
            "{format: iso8601, zones: {CET: 60}}",
            "input.timestamp.zones.CET: 60 is not an offset from UTC; allowed: hours and minutes in quotes, such as ",
        ),
        (
            "{format: iso8601, zones: {C1: '+01:00'}}",
            "input.timestamp.zones.C1: '+01:00' is not of a zone's abbreviation; allowed: two to six letters",
        ),
        ("{format: iso8601, zones: CET}", "input.timestamp.zones: 'CET' is not a table of abbreviations; allowed: "),
        (
            "{format: iso8601, zone: UTC}",
            "input.timestamp.zone: is not a part of a timestamp; allowed: pointer, pattern, format, timezone, zones, ",
        ),
        ("{pointer: /a}", "input.timestamp: is a JSON pointer, which needs input.format: json"),
        (
            "{pointer: /a, pattern: b, format: iso8601}",
            "input.timestamp.pattern: 'b' is given beside pointer; allowed: one of the two",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place_and_what_is_allowed(written: str, expected: str) -> None:
    [error] = errors_of(written)
    assert error.startswith(expected)


def test_every_mistake_is_told_at_once() -> None:
    errors = errors_of(
        "{pattern: '(', format: [iso8601, noon, '%Q'], timezone: Mars, zones: {CET: 1, Z: '+00:00'}, year: x, zone: y}"
    )
    assert [error.split(": ")[0] for error in errors] == [
        "input.timestamp.zone",
        "input.timestamp.pattern",
        "input.timestamp.timezone",
        "input.timestamp.year",
        "input.timestamp.zones.CET",
        "input.timestamp.zones.Z",
        "input.timestamp.format",
        "input.timestamp.format",
    ]


@pytest.mark.parametrize(
    ("written", "what"), [("{format: iso8601}", "has no pointer"), ("{pattern: a, format: iso8601}", "is a pattern")]
)
def test_json_needs_a_pointer(written: str, what: str) -> None:
    [error] = errors_of(written, json=True)
    assert error.startswith("input.timestamp: ")
    assert f"{what}, which needs input.format: text; allowed with json: null or a JSON pointer" in error
