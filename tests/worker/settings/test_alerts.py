"""Receivers are checked as a whole, and nothing shows where they are or what they are told by."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.worker.settings.written import errors_of, load, only_error

SECRET = "hunter2-hunter2"
KEY = "0123456789abcdef0123456789abcdef"


def test_receivers_have_their_secrets_from_the_environment_or_from_files(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(f"https://hooks.slack.com/services/{SECRET}\n")
    settings = load(
        tmp_path,
        "alert:\n"
        "  receivers:\n"
        f"    chat: {{type: slack, url_file: {tmp_path}/url}}\n"
        "    oncall: {type: pagerduty, routing_key: '${KEY}', severity: critical}\n"
        "    am: {type: alertmanager, url: 'http://am:9093', lasts: 1h}\n"
        f"    hook: {{type: webhook, url: 'https://a/{SECRET}', headers: {{Authorization: 'B ${{KEY}}', X-A: b}}}}\n",
        KEY=KEY,
    )
    receivers = settings.alert.receivers
    assert receivers["chat"].url == f"https://hooks.slack.com/services/{SECRET}"
    assert (receivers["oncall"].routing_key, receivers["oncall"].severity) == (KEY, "critical")
    assert (receivers["am"].url, receivers["am"].lasts_ms) == ("http://am:9093", 3_600_000)
    assert receivers["hook"].headers == {"Authorization": f"B {KEY}", "X-A": "b"}
    for shown in (repr(settings), str(settings), str(settings.describe())):
        assert SECRET not in shown
        assert KEY not in shown
        assert "http://am" not in shown
        assert "critical" in shown


@pytest.mark.parametrize(
    ("receiver", "error"),
    [
        ("{type: slak}", "a.type: 'slak' is not allowed; allowed: webhook, slack, pagerduty or alertmanager"),
        ("{url: 'http://a'}", "a.type: is missing"),
        ("{type: webhook}", "a.url: is missing; type webhook needs one"),
        ("{type: pagerduty}", "a.routing_key: is missing; type pagerduty needs one"),
        ("{type: pagerduty, routing_key: '${PW}'}", "a.routing_key: is not a routing key; allowed: the 32 letters"),
        ("{type: pagerduty, routing_key: hunter2-hunter2}", "a.routing_key: is a secret, which does not belong in"),
        ("{type: slack, url: 'https://hunter2-hunter2'}", "a.url: is a secret, which does not belong in this file; "),
        ("{type: slack, url_file: /hunter2-hunter2}", "a.url_file: names a file that cannot be read: No such file"),
        ("{type: slack, url: '${NOWHERE}'}", "a.url: refers to the environment variable NOWHERE, which is not set"),
        ("{type: slack, url: '${URL}', answers: true}", "a.answers: is only for type webhook, and this one is slack"),
        ("{type: webhook, url: 'http://a', answers: yes please}", "a.answers: 'yes please' is not true or false"),
        ("{type: webhook, url: 'hunter2-hunter2'}", "a.url: is not an address; allowed: http:// or https:// and a"),
        ("{type: webhook, url: 'ftp://hunter2-hunter2'}", "a.url: is not an address"),
        ("{type: webhook, url: 'http://a:hunter2-hunter2'}", "a.url: is not an address"),
        ("{type: webhook, url: 'http://me:hunter2-hunter2@a'}", "a.url: holds a login; allowed: one in headers"),
        ("{type: webhook, url: 'http://a', headers: {a b: c}}", "a.headers.a b: is not the name of a header"),
        ('{type: webhook, url: "http://a", headers: {a: "b\\nc"}}', "a.headers.a: is not the value of a header"),
        ("{type: webhook, url: 'http://a', headers: [hunter2-hunter2]}", "a.headers: is not a mapping; allowed: names"),
        (
            "{type: webhook, url: 'http://a', headers: {X-Api-Key: hunter2-hunter2}}",
            "a.headers.X-Api-Key: is a secret, which does not belong in this file; allowed: ${NAME} for a part of it",
        ),
        ("{type: slack, url: '${URL}', headers: {a: b}}", "a.headers: are only for types webhook and alertmanager"),
        ("{type: webhook, url: 'http://a', routing_key: '${KEY}'}", "a.routing_key: is only for type pagerduty"),
        ("{type: webhook, url: 'http://a', severity: normal}", "a.severity: 'normal' is not allowed; allowed: warning"),
        ("{type: webhook, url: 'http://a', lasts: 1s}", "a.lasts: '1s' is out of range; allowed: 1m to 30d"),
        ("{type: webhook, utl: hunter2-hunter2, url: 'http://a'}", "a.utl: is not a setting; did you mean alert.rec"),
        ("hunter2-hunter2", "a: is not a mapping; allowed: type, url, routing_key, headers, severity, lasts"),
    ],
)
def test_what_is_wrong_with_a_receiver_is_said_at_its_path_without_a_secret(
    tmp_path: Path, receiver: str, error: str
) -> None:
    found = only_error(tmp_path, f"alert: {{receivers: {{a: {receiver}}}}}", PW=SECRET, KEY=KEY, URL="http://a")
    assert f"alert.receivers.{error}" in found
    assert SECRET not in found


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("receivers: [hunter2-hunter2]", "alert.receivers: is not a mapping; allowed: a name for each receiver, with"),
        ("receivers: {a b: {type: webhook, url: 'http://a'}}", "alert.receivers.a b[key]: is not a name; allowed: "),
        ("mutes: [{until: 2026-01-01}]", "alert.mutes[0]: {until: '2026-01-01'} mutes everything; allowed: a pattern"),
        ("mutes: [{session: a}]", "alert.mutes[0].until: is missing"),
        ("mutes: [{session: '(', until: 2026-01-01}]", "alert.mutes[0].session: '(' is not a pattern that RE2 can run"),
        ("mutes: [{reason: a, until: soon}]", "alert.mutes[0].until: 'soon' is not a time; allowed: one such as 2026-"),
        ("mutes: [{reasn: a, until: 2026-01-01}]", "alert.mutes[0].reasn: is not a setting; did you mean alert.mutes"),
        ("most_per_minute: 0", "alert.most_per_minute: 0 is not a whole number from 1 to 10_000"),
        ("group_wait: 2h", "alert.group_wait: '2h' is out of range; allowed: 0ms to 1h"),
        ("start: newest", "alert.start: 'newest' is not allowed; allowed: latest or earliest"),
    ],
)
def test_what_is_wrong_with_the_section_is_said_at_its_path(tmp_path: Path, text: str, error: str) -> None:
    assert error in "\n".join(errors_of(tmp_path, f"alert: {{{text}}}"))


@pytest.mark.parametrize(
    ("written", "until"),
    [
        ("2026-12-01T08:00:00Z", datetime(2026, 12, 1, 8, tzinfo=UTC)),
        ("2026-12-01T08:00:00+01:00", datetime(2026, 12, 1, 7, tzinfo=UTC)),
        ("'2026-12-01 08:00'", datetime(2026, 12, 1, 8, tzinfo=UTC)),
        ("2026-12-01", datetime(2026, 12, 1, tzinfo=UTC)),
    ],
)
def test_a_mute_ends_at_a_time_in_utc_if_it_names_no_zone(tmp_path: Path, written: str, until: datetime) -> None:
    [mute] = load(tmp_path, f"alert: {{mutes: [{{session: a, until: {written}}}]}}").alert.mutes
    assert mute.until == until


def test_the_example_of_the_manual_has_every_type_of_receiver(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "alerts.md").read_text(encoding="utf-8")
    example = page.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "key").write_text(KEY)
    example = example.replace("/run/secrets/pagerduty", f"{tmp_path}/key")
    settings = load(tmp_path, example, SLACK_URL="https://hooks.slack.com/services/T/B/X", TOKEN="t")
    types = {receiver.type for receiver in settings.alert.receivers.values()}
    assert types == {"webhook", "slack", "pagerduty", "alertmanager"}
