"""`docker compose up`: its parts exist and fit together, and what it runs shows scores."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.dockerfile import ROOT, image, words
from worker.settings.document import Settings, load_settings

FOLDER = ROOT / "deploy" / "compose"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
PORT = Settings().observability.port


def mounts(service: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """What of the repository a container sees, and where."""
    for volume in service.get("volumes", ()):
        source, target, mode = volume.split(":")
        assert mode == "ro"
        yield (FOLDER / source).resolve(), target


def worker_settings() -> Settings:
    return load_settings(FOLDER / "worker.yaml")


def test_what_is_not_built_here_is_pinned_by_version() -> None:
    images = {service["image"] for name, service in SERVICES.items() if name not in OURS}
    assert len(images) == 3
    assert all(re.search(r":v?\d+\.\d+\.\d+$", each) for each in images)


def test_the_broker_is_the_one_that_the_tests_run_on() -> None:
    [version] = re.findall(r"<version>(\d+\.\d+\.\d+)</version>", (ROOT / "tests/broker/pom.xml").read_text())[:1]
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{version}"


@pytest.mark.parametrize("service", SERVICES)
def test_every_mounted_path_exists(service: str) -> None:
    assert [str(path) for path, _ in mounts(SERVICES[service]) if not path.exists()] == []


def test_the_worker_reads_the_settings_that_the_image_s_command_names_and_a_checkpoint_that_is_there() -> None:
    seen = {target: path for path, target in mounts(SERVICES["worker"])}
    assert seen[words(image()["CMD"])[-1]] == FOLDER / "worker.yaml"
    assert (seen[str(worker_settings().model.checkpoint)] / "manifest.json").exists()


def test_containers_of_the_image_cannot_be_written_to_and_have_no_rights() -> None:
    assert OURS == ["worker", "generator", "scores"]
    for name in OURS:
        assert SERVICES[name]["read_only"]
        assert SERVICES[name]["tmpfs"] == ["/tmp"]
        assert SERVICES[name]["cap_drop"] == ["ALL"]


def test_the_topic_that_is_made_is_the_one_that_the_worker_reads() -> None:
    command = dict(part.partition("=")[::2] for part in SERVICES["topics"]["command"])
    assert (command["--topic"],) == worker_settings().input.topics
    assert command["--bootstrap-server"] == worker_settings().kafka["bootstrap.servers"]
    assert SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].endswith(command["--bootstrap-server"])


def test_ports_are_the_usual_ones_and_only_this_machine_s() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports == {
        name: [f"127.0.0.1:{port}:{port}"]
        for name, port in {"worker": PORT, "prometheus": 9090, "grafana": 3000}.items()
    }
    assert worker_settings().observability.port == PORT
    assert worker_settings().observability.address == "0.0.0.0"


def test_the_worker_has_more_time_to_stop_than_it_takes() -> None:
    seconds = int(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    assert seconds * 1000 > worker_settings().worker.shutdown_timeout_ms


def test_prometheus_scrapes_the_worker_and_has_the_rules() -> None:
    seen = {target: path for path, target in mounts(SERVICES["prometheus"])}
    config = yaml.safe_load(seen["/etc/prometheus/prometheus.yml"].read_text())
    [job] = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"worker:{PORT}"]}]
    assert job["job_name"].startswith("logmamba")  # by which rules and dashboard know workers
    [rules] = config["rule_files"]
    assert yaml.safe_load(inside(seen, rules).read_text())["groups"]


def test_grafana_has_the_dashboard_and_the_source_that_it_asks() -> None:
    seen = {target: path for path, target in mounts(SERVICES["grafana"])}
    dashboard = inside(seen, SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    provisioned = yaml.safe_load(seen["/etc/grafana/provisioning/dashboards/logmamba.yaml"].read_text())
    assert dashboard.parent == inside(seen, provisioned["providers"][0]["options"]["path"])
    [source] = yaml.safe_load(seen["/etc/grafana/provisioning/datasources/logmamba.yaml"].read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    asked = {*re.findall(r'"uid": *"([^"]+)"', re.sub(r'"uid": *"logmamba[^"]*"', "", dashboard.read_text()))}
    assert asked <= {source["uid"], "${datasource}", "-- Grafana --"}


def inside(seen: Mapping[str, Path], path: str) -> Path:
    """The file of the repository that a container sees at a path."""
    [target] = [target for target in seen if path == target or path.startswith(f"{target}/")]
    return seen[target] / path[len(target) + 1 :] if path != target else seen[target]
