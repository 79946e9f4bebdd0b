"""The list of faults (one mark a test, `fault(row, core)`), its two sizes, and the table that `make faults` prints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.broker.kafka import KafkaBroker, require_kafka
from tests.faults.report import FaultReport, Measured, Size, table
from tests.faults.stream import Stream

_MEASURED = "fault measured"
_ROW = "fault row"
_FULL_TIMEOUT_S = 900  # of a test; the one of the other tests is meant for less

_ABOUT = """\
# Faults the worker survives

What `make faults` found on {cores} cores. A round is one strike of the fault. Missing, duplicate and different
outputs are those of a reader of committed records, held against an independent reckoning of what must be there and
against `logmamba score`. Such a reader also sees the longest gap between two outputs, and the time from a fault to
the next output of the input partition that waited longest; both hold the start of processes, brokers included, and
the time-outs of groups and transactions (3 to 30 s in these tests).

Not in this table: 16, 17, 21 and 30 (batches, kernels, GPU memory) belong to `tests/detector` and `tests/kernels`, 22
(half an hour without growth) to `make soak`.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--faults", choices=("core", "full"), default="core", help="which faults, and how many records")
    group.addoption("--faults-table", type=Path, metavar="FILE", help="also write the table of faults to FILE")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(row, core): shows a row of the list of faults; core: in `make test`, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen, left_out = [], []
    for item in items:
        mark = item.get_closest_marker("fault")
        if mark is not None:
            item.user_properties.append((_ROW, mark.kwargs["row"]))
            if _size(config).full:
                item.add_marker(pytest.mark.timeout(_FULL_TIMEOUT_S))
            elif not mark.kwargs["core"]:
                left_out.append(item)
                continue
        chosen.append(item)
    if left_out:
        items[:] = chosen
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def size(pytestconfig: pytest.Config) -> Size:
    """How much a test does."""
    return _size(pytestconfig)


@pytest.fixture
def fault_report(request: pytest.FixtureRequest) -> FaultReport:
    """Takes what the test measured into the table."""
    return FaultReport(lambda measured: request.node.user_properties.append((_MEASURED, asdict(measured))))


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The shipped checkpoint: it knows the templates of generated logs."""
    return Path(__file__).parents[2] / "checkpoints" / "demo"


@pytest.fixture(scope="session")
def stream(size: Size, checkpoint: Path, broker: KafkaBroker, tmp_path_factory: pytest.TempPathFactory) -> Stream:
    """The log that the tests with real workers score."""
    return Stream.make(size.records, tmp_path_factory.mktemp("stream"), checkpoint, broker.bootstrap)


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[KafkaBroker]:
    """A broker for the test alone, which may do with it what it likes."""
    require_kafka()
    broker = KafkaBroker(tmp_path / "kafka").start()
    yield broker
    broker.kill()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = []
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            found = dict(report.user_properties)
            if _ROW in found and (report.when == "call" or not report.passed):
                name = report.nodeid.rpartition("::test_")[2].replace("_", " ")
                measured = Measured(**found.get(_MEASURED, {"fault": name}))
                rows.append((found[_ROW], outcome, measured))
    if not rows:
        return
    terminalreporter.section("faults")
    terminalreporter.write(table(rows))
    path = config.getoption("--faults-table", default=None)
    if path is not None:
        path.write_text(f"{_ABOUT.format(cores=os.cpu_count())}\n{table(rows)}")


def _size(config: pytest.Config) -> Size:
    # The default stands here too: under a plain `pytest` this file is found after the command line was read.
    return Size(config.getoption("--faults", default="core"))
