"""The systemd unit: systemd understands it, and it gives the worker what it needs to stop in order."""

from __future__ import annotations

import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.deploy.dockerfile import ROOT
from worker.settings.document import Settings

UNIT = ROOT / "deploy" / "systemd" / "logmamba.service"


def service() -> dict[str, str]:
    parser = ConfigParser(interpolation=None, strict=False, delimiters="=", comment_prefixes="#")
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.read_text())
    return dict(parser["Service"])


def test_systemd_has_nothing_against_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    program = service()["ExecStart"].split()[0]
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(program, sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_worker_has_more_time_to_stop_than_it_takes() -> None:
    assert int(service()["TimeoutStopSec"]) * 1000 > Settings().worker.shutdown_timeout_ms


def test_wrong_settings_are_not_tried_again_and_a_failure_is() -> None:
    assert service()["Restart"] == "on-failure"
    assert service()["RestartPreventExitStatus"] == "2"
