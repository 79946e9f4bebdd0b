"""TLS and SASL on a real broker: a worker with the right credentials works, and no secret shows anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from detector.checkpoint import demo_checkpoint
from tests.broker.harness import Application
from tests.broker.kafka import KafkaBroker, Secured, require_kafka
from tests.faults.report import FaultReport
from tests.faults.stream import Stream

USERNAME, PASSWORD = "alice", "correct-horse-battery"  # two words, neither of which a log would say by chance
LINES = 5_000


class Certificate:
    """A certificate of 127.0.0.1 that vouches for itself.

    Attributes:
        public: PEM file of the certificate.
        keystore: PEM file of its private key and the certificate.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.public, key = folder / f"{name}.crt", folder / f"{name}.key"
        elliptic = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key)]
        names = ["-subj", "/CN=broker", "-addext", "subjectAltName=IP:127.0.0.1"]
        command = ["openssl", "req", "-x509", "-days", "2", *elliptic, *names, "-out", str(self.public)]
        subprocess.run(command, check=True, capture_output=True)
        self.keystore = folder / f"{name}.pem"
        self.keystore.write_text(key.read_text() + self.public.read_text())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificates"), "broker")


@pytest.fixture(scope="module")
def secured(certificate: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A broker whose secured listener knows one user."""
    require_kafka()
    folder = tmp_path_factory.mktemp("secured")
    broker = KafkaBroker(folder, secured=Secured(certificate.keystore, USERNAME, PASSWORD)).start()
    yield broker
    broker.stop()


@pytest.fixture
def kafka(
    secured: KafkaBroker, certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The section `kafka` as an operator writes it: the name from the environment, the password from a file."""
    monkeypatch.setenv("KAFKA_USERNAME", USERNAME)
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    return {
        "bootstrap.servers": secured.secured_bootstrap,
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "${KAFKA_USERNAME}",
        "sasl.password_file": str(tmp_path / "password"),
        "ssl.ca.location": str(certificate.public),
        "debug": "security,conf",  # what the client library logs of its own properties and of the handshake
    }


@pytest.fixture
def config(secured: KafkaBroker, kafka: dict[str, str], tmp_path: Path) -> Path:
    """Settings that are right."""
    return Application(secured.bootstrap, tmp_path, demo_checkpoint(), kafka=kafka).config


class Done(NamedTuple):
    """A command that has ended."""

    code: int
    shown: str  # on standard output and standard error
    seconds: float


def logmamba(*arguments: object) -> Done:
    began = time.monotonic()
    command = [sys.executable, "-m", "worker", *map(str, arguments)]
    wide = os.environ | {"COLUMNS": "1000"}  # a table that breaks its lines could hide what it shows
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=90, env=wide
    )
    return Done(done.returncode, done.stdout, time.monotonic() - began)


def check_and_run(*arguments: object) -> list[Done]:
    """Both commands at the same time."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(lambda command: logmamba(command, *arguments), ("check", "run")))


def test_a_worker_scores_exactly_over_tls_and_scram_and_shows_its_password_nowhere(
    secured: KafkaBroker, kafka: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = Stream.make(LINES, tmp_path, demo_checkpoint(), secured.bootstrap)
    with stream.sent(tmp_path, kafka=kafka, observability={"port": 0, "log_level": "debug"}) as run:
        checked = logmamba("check", "--config", run.application.config)
        assert checked.code == 0, checked.shown
        with run.application.start("sessions.idle_flush=1s") as worker:
            worker.wait_until(lambda: run.share() >= 1)
            paths = ("/", "/status", "/metrics", "/healthz", "/readyz")
            pages = [urllib.request.urlopen(worker.address() + path, timeout=10).read().decode() for path in paths]
            assert worker.stop() == 0, worker.tail()
        run.assert_exact(FaultReport(lambda _: None), "none")

    log = worker.log.read_text()
    assert "sasl.password" in log, "the log does not name the setting, so it cannot show that it hides it"
    for shown in (checked.shown, log, *capfd.readouterr(), *pages):
        assert PASSWORD not in shown


def test_a_wrong_password_is_refused_within_seconds_and_told_without_showing_it(config: Path, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("not-the-password")
    for done in check_and_run("--config", config):
        assert done.code == 1, done.shown
        assert "no access to Kafka" in done.shown
        assert "invalid credentials" in done.shown
        assert "not-the-password" not in done.shown
        assert "Traceback" not in done.shown
        assert done.seconds < 60


def test_a_broker_whose_certificate_is_not_trusted_is_refused_within_seconds(config: Path, tmp_path: Path) -> None:
    other = Certificate(tmp_path, "other")
    for done in check_and_run("--config", config, "--set", f"kafka.ssl.ca.location={other.public}"):
        assert done.code == 1, done.shown
        assert "no access to Kafka" in done.shown
        assert "certificate verify failed" in done.shown
        assert PASSWORD not in done.shown
        assert "Traceback" not in done.shown
        assert done.seconds < 60
