"""A real Apache Kafka broker (KRaft, combined mode) on free loopback ports, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from confluent_kafka.admin import AdminClient

LIBS = Path(__file__).resolve().parents[2] / ".kafka" / "libs"
START_TIMEOUT_S = 60.0


def unavailable() -> str | None:
    """Why no broker can be started here, or None."""
    if shutil.which("java") is None:
        return "no JDK: `java` is not on the PATH"
    if not (LIBS / ".ready").exists():
        return "the Kafka jars are missing: run `make setup` (needs Maven)"
    return None


class KafkaBroker:
    """One broker process: start, stop (clean), kill (SIGKILL) and start again on the same data and ports.

    Args:
        directory: holds the broker's data, configuration and log.
        overrides: server properties that differ from the ones below.
        heap: the JVM's heap, as for -Xmx.
    """

    def __init__(self, directory: Path, overrides: dict[str, str] | None = None, heap: str = "512m") -> None:
        self.directory = directory
        self.port, controller_port = _free_ports(2)
        self.bootstrap = f"127.0.0.1:{self.port}"
        self._heap = heap
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        properties = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.port}",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(directory / "data"),
            "num.partitions": "1",
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": "false",
            # A killed broker may come back at once: the controller waits this long for the dead one's session.
            "broker.session.timeout.ms": "1000",
            "broker.heartbeat.interval.ms": "250",
            # Old event times must not make the broker delete what a test has just written.
            "log.retention.ms": "-1",
            **(overrides or {}),
        }
        self._config = directory / "server.properties"
        self._config.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        (directory / "log4j2.properties").write_text(
            "rootLogger.level=WARN\nrootLogger.appenderRef.console.ref=console\nappender.console.type=Console\n"
            "appender.console.name=console\nappender.console.layout.type=PatternLayout\n"
            "appender.console.layout.pattern=%d %p %c %m%n\n"
        )
        self._run_java("kafka.tools.StorageTool", "format", "-t", "bG9nbWFtYmEtdGVzdC0wMQ", "-c", str(self._config))

    def start(self) -> KafkaBroker:
        """Start the process and wait until it answers; raises RuntimeError with the end of its log otherwise."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._java("kafka.Kafka", str(self._config)), stdout=log, stderr=log, start_new_session=True
            )
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(Exception):
                if admin.list_topics(timeout=1.0).brokers:
                    return self
        self.kill()
        raise RuntimeError(f"the Kafka broker did not start:\n{self._log.read_text()[-4000:]}")

    def stop(self) -> None:
        """Stop cleanly (SIGTERM) and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Stop as a crash would (SIGKILL) and wait."""
        self._end(signal.SIGKILL)

    @property
    def _log(self) -> Path:
        return self.directory / "broker.log"

    def _end(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)
            self._process.wait(timeout=60)
        self._process = None

    def _java(self, main: str, *arguments: str) -> list[str]:
        return [
            "java",
            f"-Xmx{self._heap}",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Xshare:auto",
            f"-Dlog4j2.configurationFile={self.directory / 'log4j2.properties'}",
            "-cp",
            f"{LIBS}/*",
            main,
            *arguments,
        ]

    def _run_java(self, main: str, *arguments: str) -> None:
        result = subprocess.run(self._java(main, *arguments), capture_output=True, check=False, timeout=60)
        if result.returncode != 0:
            raise RuntimeError(f"{main} failed:\n{(result.stdout + result.stderr).decode()[-4000:]}")


def _free_ports(count: int) -> list[int]:
    """Ports free at this moment; all are held open together, so they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
