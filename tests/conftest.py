"""What every test runs under."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.broker.kafka import KafkaBroker

# As `logmamba` itself does, and before PyTorch is loaded: small models are slower on two busy cores than on one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes is a matter of the machine and of what else it does.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """When tests run in several processes, a file keeps to one, which makes its fixtures once, and so do all the tests
    of the folders that share the broker."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFixtures(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::")[0]
            folder = path.rpartition("/")[0]
            return "broker" if folder in ("tests/broker", "tests/faults") else path

    return ByFixtures(config, log)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """One real Kafka broker for the whole run; a test uses topics and an application id of its own."""
    # Here, since the tests of the kernels also run where there is no Kafka client.
    from tests.broker.kafka import KafkaBroker, require_kafka

    require_kafka()
    broker = KafkaBroker(tmp_path_factory.mktemp("kafka")).start()
    yield broker
    broker.stop()
