"""The log of a worker."""

import json
import logging
import re
import sys
from typing import Literal

import pytest
import structlog

from worker.observability.log import configure_logging


@pytest.mark.usefixtures("logging_restored")
class TestLog:
    def test_json_is_one_object_a_line_on_stderr(self, capsys: pytest.CaptureFixture[str]) -> None:
        configure_logging("info", "json")
        structlog.get_logger("worker.delivery.loop").info("partition_live", partition=3, note="a\nb")
        logging.getLogger("librdkafka").warning("broker %s", "down")
        out, err = capsys.readouterr()
        assert out == ""
        first, second = map(json.loads, err.splitlines())
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", first.pop("timestamp"))
        assert first == {
            "event": "partition_live",
            "level": "info",
            "logger": "worker.delivery.loop",
            "partition": 3,
            "note": "a\nb",
        }
        assert (second["event"], second["logger"], second["level"]) == ("broker down", "librdkafka", "warning")

    def test_what_is_less_severe_than_the_level_is_left_out(self, capsys: pytest.CaptureFixture[str]) -> None:
        configure_logging("warning", "json")
        log = structlog.get_logger("any")
        log.info("quiet")
        log.warning("loud")
        assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["loud"]

    def test_auto_is_json_where_there_is_no_terminal_and_for_people_on_one(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        configure_logging("info", "auto")
        structlog.get_logger("any").info("said", count=1)
        assert json.loads(capsys.readouterr().err)["count"] == 1
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        configure_logging("info", "auto")
        structlog.get_logger("any").info("said", count=1)
        shown = capsys.readouterr().err
        assert "said" in shown
        assert not shown.startswith("{")

    def test_an_exception_is_logged_with_its_trace(self, capsys: pytest.CaptureFixture[str]) -> None:
        configure_logging("info", "json")
        try:
            raise KeyError("gone")
        except KeyError:
            structlog.get_logger("any").exception("failed")
        assert "KeyError: 'gone'" in json.loads(capsys.readouterr().err)["exception"]

    @pytest.mark.parametrize("log_format", ["console", "json"])
    def test_a_trace_does_not_show_what_variables_hold(
        self, capsys: pytest.CaptureFixture[str], log_format: Literal["console", "json"]
    ) -> None:
        configure_logging("info", log_format)

        def fail(line: bytes) -> None:
            raise KeyError(len(line))

        try:
            fail(b"a raw " + b"line")
        except KeyError:
            structlog.get_logger("any").exception("failed")
        shown = capsys.readouterr().err
        assert "KeyError: 10" in shown
        assert "a raw line" not in shown
