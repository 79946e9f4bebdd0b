"""A real Apache Kafka broker (KRaft, combined mode) on free loopback ports, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tests.broker.forked import die_with_parent

LIBS = Path(__file__).resolve().parents[2] / ".kafka" / "libs"
START_TIMEOUT_S = 120.0


def unavailable() -> str | None:
    """Why no broker can be started here, or None."""
    if shutil.which("java") is None:
        return "no JDK: `java` is not on the PATH"
    if not (LIBS / ".ready").exists():
        return "the Kafka jars are missing: run `make setup` (needs Maven)"
    return None


def require_kafka() -> None:
    """Skip the test where no broker can be started; under CI=true, fail it."""
    reason = unavailable()
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run the tests against a real Kafka broker: {reason}")
        pytest.skip(f"needs a real Kafka broker: {reason}")


@dataclass(frozen=True, slots=True)
class Secured:
    """A listener with TLS and SCRAM-SHA-512 beside the plain one, and ACLs.

    Whoever uses the plain listener may do everything.

    Attributes:
        keystore: PEM file of the broker's private key and its certificate.
        username, password: of the user who may do everything.
        limited: the name of another user, of the same password, who may do what ACLs say.
    """

    keystore: Path
    username: str
    password: str
    limited: str

    def properties(self) -> dict[str, str]:
        """What the server needs to know."""
        login = "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config"
        return {
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.keystore),
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            login: "org.apache.kafka.common.security.scram.ScramLoginModule required;",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:ANONYMOUS;User:{self.username}",
        }

    def users(self) -> list[str]:
        """How the storage tool is told of the users."""
        users = [f"SCRAM-SHA-512=[name={name},password={self.password}]" for name in (self.username, self.limited)]
        return [argument for user in users for argument in ("--add-scram", user)]


class KafkaBroker:
    """One broker process: start, stop (clean), kill (SIGKILL) and start again on the same data and ports.

    Args:
        directory: holds the broker's data, configuration and log.
        overrides: server properties that differ from the ones below.
        heap: the JVM's heap, as for -Xmx.
        quick_start: in a second rather than three, which makes it half as fast later on.
        secured: adds a listener, whose address is `secured_bootstrap`.
    """

    def __init__(
        self,
        directory: Path,
        overrides: dict[str, str] | None = None,
        heap: str = "512m",
        secured: Secured | None = None,
        *,
        quick_start: bool = True,
    ) -> None:
        self.directory = directory
        self.port, controller_port, secured_port = free_ports(3)
        self.bootstrap = f"127.0.0.1:{self.port}"
        self.secured_bootstrap = f"127.0.0.1:{secured_port}"
        advertised = f"PLAINTEXT://{self.bootstrap}"
        if secured is not None:
            advertised += f",SASL_SSL://{self.secured_bootstrap}"
        self._heap, self._quick_start = heap, quick_start
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        properties = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
            "listeners": f"{advertised},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": advertised,
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(directory / "data"),
            "num.partitions": "1",
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # Tests that kill workers wait for what the group and the coordinator of transactions take for a dead one.
            "group.min.session.timeout.ms": "1000",
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
            "auto.create.topics.enable": "false",
            "message.max.bytes": "12000000",
            # A killed broker may come back at once: the controller waits this long for the dead one's session.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "250",
            # Tests that need a compacted topic wait for the cleaner.
            "log.cleaner.backoff.ms": "200",
            # Old event times must not make the broker delete what a test has just written.
            "log.retention.ms": "-1",
            **(secured.properties() if secured else {}),
            **(overrides or {}),
        }
        self._config = directory / "server.properties"
        self._config.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        (directory / "log4j2.properties").write_text(
            "rootLogger.level=WARN\nrootLogger.appenderRef.console.ref=console\nappender.console.type=Console\n"
            "appender.console.name=console\nappender.console.layout.type=PatternLayout\n"
            "appender.console.layout.pattern=%d %p %c %m%n\n"
        )
        arguments = ["-t", "bG9nbWFtYmEtdGVzdC0wMQ", "-c", str(self._config), *(secured.users() if secured else ())]
        self._run_java("kafka.tools.StorageTool", "format", *arguments)

    def start(self) -> KafkaBroker:
        """Start the process and wait until it answers; raises RuntimeError with the end of its log otherwise."""
        with self._log.open("ab") as log:
            command = self._java("kafka.Kafka", str(self._config))
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_parent
            )
        self._wait_for_an_answer("did not start")
        return self

    def stop(self) -> None:
        """Stop cleanly (SIGTERM) and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Stop as a crash would (SIGKILL) and wait."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it hang (SIGSTOP): connections stay open, and nothing answers until `resume`."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`, and wait until it answers, as `start` does."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)
        self._wait_for_an_answer("does not answer after a pause")

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process is not None
        return self._process.pid

    def _wait_for_an_answer(self, problem: str) -> None:
        # Tried again and again: by itself the client lets up to ten seconds pass.
        patience = {"reconnect.backoff.max.ms": 100, "log_level": 0}
        admin = AdminClient({"bootstrap.servers": self.bootstrap, **patience})
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                break
            with contextlib.suppress(Exception):
                if admin.list_topics(timeout=1.0).brokers:
                    return
        self.kill()
        raise RuntimeError(f"the Kafka broker {problem}:\n{self._log.read_text()[-4000:]}")

    @property
    def _log(self) -> Path:
        return self.directory / "broker.log"

    def _end(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)
            self._process.wait(timeout=START_TIMEOUT_S)
        self._process = None

    def _java(self, main: str, *arguments: str) -> list[str]:
        return [
            "java",
            f"-Xmx{self._heap}",
            *(("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1") if self._quick_start else ()),
            "-Xshare:auto",
            f"-Dlog4j2.configurationFile={self.directory / 'log4j2.properties'}",
            "-cp",
            f"{LIBS}/*",
            main,
            *arguments,
        ]

    def _run_java(self, main: str, *arguments: str) -> None:
        result = subprocess.run(self._java(main, *arguments), capture_output=True, check=False, timeout=START_TIMEOUT_S)
        if result.returncode != 0:
            raise RuntimeError(f"{main} failed:\n{(result.stdout + result.stderr).decode()[-4000:]}")


def free_ports(count: int) -> list[int]:
    """Ports free at this moment, of those that no outgoing connection gets: none takes one before the broker listens,
    or while it is down."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = [port for port in range(10_000, 65_536) if not first <= port <= last] or [*range(10_000, 65_536)]
    found: list[int] = []
    for port in random.SystemRandom().sample(ports, len(ports)):
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"{len(found)} free ports; a broker takes {count}")
