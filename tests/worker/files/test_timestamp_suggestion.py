"""The setting that reads the times of some lines is found where they are written in a usual way, and only there."""

from __future__ import annotations

import pytest

from worker.files.timestamp_suggestion import suggested_timestamp
from worker.settings.document import load_settings
from worker.settings.sections import InputSettings


def suggested(*lines: str, input_format: str = "text") -> str | None:
    return suggested_timestamp(
        [line.encode() for line in lines], InputSettings.model_validate({"format": input_format})
    )


@pytest.mark.parametrize(
    ("line", "setting"),
    [
        ("2024-05-06T07:08:09Z started", "{format: iso8601}"),
        ("2024-05-06T07:08:09.123+02:00 started", "{format: iso8601}"),
        ("INFO 2024-05-06 07:08:09,123 started", "{format: iso8601}"),
        (
            '10.0.0.1 - - [06/May/2024:07:08:09 +0000] "GET / HTTP/1.1" 200',
            r"{pattern: '\[(\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\]', format: '%d/%b/%Y:%H:%M:%S %z'}",
        ),
        (
            "17/06/09 20:10:40 INFO executor",
            r"{pattern: '(\d\d/\d\d/\d\d \d\d:\d\d:\d\d)', format: '%y/%m/%d %H:%M:%S'}",
        ),
        ("081109 203615 148 INFO dfs", r"{pattern: '^(\d{6} \d{6})\b', format: '%y%m%d %H%M%S'}"),
        ("Jun  9 06:06:20 combo kernel: ready", "{format: syslog}"),
        ("2024-05-06 07:08:09.123 CEST [77] LOG: ready", "{format: iso8601, zones: {CEST: '+02:00'}}"),
        (
            "06-May-2024 07:08:09.123 INFO [main] ready",
            r"{pattern: '(\d\d-[A-Z][a-z]{2}-\d{4} \d\d:\d\d:\d\d\.\d{1,6})', format: '%d-%b-%Y %H:%M:%S.%f'}",
        ),
        (
            "26/05/2024 07:08:09 ready",
            r"{pattern: '(\d{1,2}/\d{1,2}/\d{4} \d\d:\d\d:\d\d)', format: '%d/%m/%Y %H:%M:%S'}",
        ),
        (
            "05/26/2024 07:08:09 ready",
            r"{pattern: '(\d{1,2}/\d{1,2}/\d{4} \d\d:\d\d:\d\d)', format: '%m/%d/%Y %H:%M:%S'}",
        ),
        (
            "type=SYSCALL msg=audit(1714979289.123:42): ready",
            r"{pattern: '\baudit\((\d{10}\.\d{1,3}):', format: epoch}",
        ),
        ("I0609 06:06:20.123456   7 main.go:9] ready", "{format: klog}"),
    ],
)
def test_usual_ways_are_found_and_what_is_found_is_a_setting(line: str, setting: str) -> None:
    assert suggested(*[line] * 19, "  a continuation line") == setting
    assert load_settings(None, [f"input.timestamp={setting}"]).input.timestamp is not None


@pytest.mark.parametrize("line", ["started", "job 20240506 of 070809", "1712-05-06 07:08:09 wrong century", ""])
def test_what_is_no_likely_time_is_not(line: str) -> None:
    assert suggested(*[line] * 10) is None


def test_of_json_the_first_member_with_times_is_found() -> None:
    line = '{"n": 4711, "event": {"at": "2024-05-06T07:08:09.5Z"}, "message": "x"}'
    assert suggested(*[line] * 10, input_format="json") == "/event/at"
    assert suggested('{"n": 4711, "message": "x"}', input_format="json") is None
