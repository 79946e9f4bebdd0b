"""What `docker compose up` runs of this project, in a root file system like the image's, on a real broker."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import psutil
import yaml

from tests.broker.harness import create_topic
from tests.broker.kafka import KafkaBroker
from tests.deploy.clean_root import CleanRoot
from tests.deploy.dockerfile import ROOT, image, words

_COMPOSE = ROOT / "deploy" / "compose"
_PATIENCE_S = 120.0
# What tells of a broker that keeps a worker waiting.
_OF_A_SLOW_BROKER = ("librdkafka", "worker.kafka.client_log", "worker.kafka.sink", "worker.delivery.")


def _services() -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = yaml.safe_load((_COMPOSE / "compose.yaml").read_text())["services"]
    return services


def _mounts(service: Mapping[str, Any], settings: Path) -> dict[str, Path]:
    """What a service sees, its settings replaced by those of the test."""
    pairs = [volume.split(":")[:2] for volume in service["volumes"]]
    found = {target: (_COMPOSE / source).resolve() for source, target in pairs}
    return {target: settings if path.name == "worker.yaml" else path for target, path in found.items()}


def _lines(path: Path, text: str, process: subprocess.Popen[str]) -> list[str]:
    """Wait until a process has written this text; the lines with it."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (found := [line for line in path.read_text().rpartition("\n")[0].splitlines() if text in line]):
        assert process.poll() is None, path.read_text()[-4000:]
        assert time.monotonic() < deadline, path.read_text()[-4000:]
        time.sleep(0.1)
    return found


def test_generated_faults_are_shown_while_they_stream_and_sigterm_ends_the_worker_in_order(
    broker: KafkaBroker, clean_root: CleanRoot, tmp_path: Path
) -> None:
    services = _services()
    written = yaml.safe_load((_COMPOSE / "worker.yaml").read_text())
    written["kafka"]["bootstrap.servers"] = broker.bootstrap
    written["observability"] = {"address": "127.0.0.1", "port": 0}  # the network is this machine's, and others' too
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(written))
    create_topic(broker.bootstrap, written["input"]["topics"][0], 4)
    processes: list[subprocess.Popen[str]] = []

    def start(name: str, arguments: list[str] | None) -> tuple[subprocess.Popen[str], Path]:
        log = tmp_path / f"{name}.log"
        with log.open("w") as file:
            mounts = _mounts(services[name], settings)
            processes.append(clean_root.start(arguments, mounts, stdout=file.fileno(), stderr=file.fileno()))
        return processes[-1], log

    try:
        worker, log = start("worker", services["worker"].get("command"))
        [endpoint] = _lines(log, "http_endpoint", worker)
        port = endpoint.split("127.0.0.1:")[1].split("/")[0]
        healthy = [word.replace("9108", port) for word in words(image()["HEALTHCHECK"])]
        assert clean_root.run(entrypoint=healthy) == (0, "")
        _lines(log, "partition_starts_new", worker)

        scores, shown = start("scores", services["scores"]["command"])
        _lines(shown, "following", scores)
        fewer = {"20000000": "10000", "1000": "5000"}
        generator, told = start("generator", [fewer.get(each, each) for each in services["generator"]["command"]])
        assert generator.wait(_PATIENCE_S) == 0, told.read_text()
        assert "critical" in _lines(shown, "critical", scores)[0]

        # As an engine does it, from outside: process 1 of a container gets only signals that it handles.
        for process in (worker, scores):
            [first] = psutil.Process(process.pid).children()
            first.send_signal(getattr(signal, image()["STOPSIGNAL"]))
            assert process.wait(_PATIENCE_S) == 0, log.read_text()[-4000:]
        assert '"event":"stopped"' in log.read_text().splitlines()[-1]
        # A broker on a machine that stands still for seconds keeps one waiting, and then that is said.
        told = map(orjson.loads, filter(None, log.read_text().splitlines()))
        loud = [line for line in told if line["level"] != "info" and not line["logger"].startswith(_OF_A_SLOW_BROKER)]
        assert loud == []
        code, printed = clean_root.run(entrypoint=healthy)
        assert code == 1, f"{shlex.join(healthy)}: {printed}"
    finally:
        for process in processes:
            process.kill()
            process.wait()
