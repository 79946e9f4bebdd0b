"""A real Prometheus that scrapes a worker, as config/monitoring/prometheus.yaml sets it up, only more often."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import urlopen

import yaml

from tests.broker.kafka import free_ports
from tests.monitoring_tools import tool

MONITORING = Path(__file__).resolve().parents[2] / "config" / "monitoring"
_PATIENCE_S = 150.0


class Prometheus:
    """A process of Prometheus that scrapes the endpoint at an address, and the answers to queries.

    With `hasty`, what the rules look back over and wait for is as many seconds as it is minutes otherwise.
    """

    def __init__(self, folder: Path, address: str, *, hasty: bool = False) -> None:
        config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        for number, name in enumerate(config["rule_files"]):
            rules = (MONITORING / name).read_text()
            config["rule_files"][number] = str(folder / name)
            (folder / name).write_text(re.sub(r"(?<=\d)m\b", "s", rules) if hasty else rules)
        config["scrape_configs"][0]["static_configs"] = [{"targets": [urlsplit(address).netloc]}]
        path = folder / "prometheus.yaml"
        path.write_text(yaml.safe_dump(config))
        listens = f"127.0.0.1:{free_ports(1)[0]}"
        self._url = f"http://{listens}/api/v1"
        self._log = folder / "prometheus.log"
        command = [tool("prometheus"), f"--config.file={path}", f"--web.listen-address={listens}"]
        command += [f"--storage.tsdb.path={folder / 'prometheus'}", "--log.level=warn"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def query(self, query: str) -> list[dict[str, Any]]:
        """What an instant query finds now: labels as `metric`, the value as text in `value`."""
        found: list[dict[str, Any]] = self._get("query?" + urlencode({"query": query}))["result"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Every rule as Prometheus knows it."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def wait_until(self, condition: Callable[[], bool], what: str = "") -> None:
        """Wait for something that shows in its answers; it may still be starting."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            assert self._process.poll() is None, self._log.read_text()
            try:
                if condition():
                    return
            except URLError:
                pass
            assert time.monotonic() < deadline, f"{what}\n{self._log.read_text()}"
            time.sleep(0.2)

    def _get(self, path: str) -> Any:
        with urlopen(f"{self._url}/{path}", timeout=_PATIENCE_S) as answer:
            return json.load(answer)["data"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(30)
