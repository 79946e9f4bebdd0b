"""What every test runs under."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.broker.kafka import KafkaBroker
    from tests.deploy.clean_root import CleanRoot

# As `logmamba` itself does, and before PyTorch is loaded: small models are slower on two busy cores than on one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes is a matter of the machine and of what else it does.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


# Their tests share a broker, and spend more time waiting for it than working; but for some, which need none.
_BROKER_FOLDERS = ("tests/broker", "tests/faults")
_WITHOUT_BROKER = ("tests/faults/test_client_errors.py",)


def _file(nodeid: str) -> str:
    return nodeid.split("::")[0]


def _waits_for_broker(nodeid: str) -> bool:
    file = _file(nodeid)
    return file.rpartition("/")[0] in _BROKER_FOLDERS and file not in _WITHOUT_BROKER


def _scope(nodeid: str) -> str:
    """What keeps to one process: a file, which makes its fixtures once; files that share a broker, in three lanes of
    about the same length."""
    file = _file(nodeid)
    if not _waits_for_broker(nodeid):
        return file
    if file.startswith("tests/broker"):
        return "broker a to l" if file < "tests/broker/test_m" else "broker m to z"
    return "faults"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Tests in several processes are shared out by `_scope`; at full size by file, each with a broker of its own."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _file(nodeid) if config.getoption("--faults", default="core") == "full" else _scope(nodeid)

    config.option.loadscopereorder = False
    return ByFixtures(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """When tests run in several processes, what takes longest begins first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not _waits_for_broker(item.nodeid))


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    """The run fails when a test has left a process or a thread behind; set up first, it looks last."""
    yield
    helpers = ("multiprocessing.forkserver", "multiprocessing.resource_tracker")  # end with this process
    left = [command for command in _commands_of_children() if not any(helper in command for helper in helpers)]
    left += [
        thread.name for thread in threading.enumerate() if not (thread.daemon or thread is threading.main_thread())
    ]
    assert left == [], "tests left these running"


def _commands_of_children() -> Iterator[str]:
    for thread in Path("/proc/self/task").iterdir():
        for child in _read(thread / "children").split():
            if name := _read(Path("/proc", child, "comm")).strip():
                yield f"{name}: {_read(Path('/proc', child, 'cmdline'))}"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # whose it was has ended meanwhile
        return ""


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """One real Kafka broker for the whole run; a test uses topics and an application id of its own."""
    # Here, since the tests of the kernels also run where there is no Kafka client.
    from tests.broker.kafka import KafkaBroker, require_kafka

    require_kafka()
    # Nobody kills it, and a machine that stands still for some seconds must not cost it its place.
    broker = KafkaBroker(tmp_path_factory.mktemp("kafka"), overrides={"broker.session.timeout.ms": "30000"}).start()
    yield broker
    broker.kill()  # nothing of it is looked at any more, and a clean stop may take a minute


@pytest.fixture(scope="session")
def clean_root(tmp_path_factory: pytest.TempPathFactory) -> CleanRoot:
    """The image's file system, made once for the whole run; each command in it gets a fresh one."""
    from tests.deploy.clean_root import CleanRoot

    return CleanRoot(tmp_path_factory.mktemp("image"))
