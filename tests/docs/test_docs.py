"""The manual says what the code does: settings, messages, fields, commands and consumers are those that there are."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from tests.worker.command_line import logmamba, parse
from tests.worker.commands.test_tail import ScoreTopic, record
from tests.worker.test_cli import commands
from worker import cli
from worker.kafka.mock_broker import MockBroker

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONSUMERS = ROOT / "docs" / "consumers"


def named(path: Path) -> str:
    return path.name


def test_pages_that_are_made_from_the_code_are_as_it_would_make_them() -> None:
    """`python docs/generate.py` makes them so."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for path, text in generate.pages().items():
        assert path.read_text(encoding="utf-8") == text, path.name


def shell_commands(text: str) -> Iterator[str]:
    """Lines of the shell in a page."""
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            yield line.partition("  #")[0].strip()


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_every_command_of_a_page_is_one_that_there_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for line in shell_commands(text):
        if line.startswith("logmamba "):
            parse(shlex.split(line)[1:])
    there = dict(commands(get_command(cli.app)))
    for line in re.findall(r"`logmamba ([a-z][^`]*)`", text):  # such a one may leave out what it is not about
        words = line.split()
        path_of = tuple(words[:2]) if tuple(words[:2]) in there else tuple(words[:1])
        assert {word for word in words if word.startswith("--")} <= there[path_of], line


def headings(path: Path) -> set[str]:
    """What a link to a heading of a page may name."""
    found = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_links_of_the_repository_lead_somewhere(name: str) -> None:
    """Those within the manual are followed when it is built."""
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        assert (ROOT / (file or name)).exists(), target
        assert not heading or heading in headings(ROOT / (file or name)), target


def test_the_way_through_ones_own_logs_is_that_of_the_readme() -> None:
    """Which `tests/worker/commands/test_init.py` goes."""
    readme, page = (path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "docs" / "quick-start.md"))
    own = [list(shell_commands(text.split("## Your own logs\n")[1].split("\n## ")[0])) for text in (readme, page)]
    assert own[0] == own[1] != []


def test_the_quick_start_goes_as_it_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "quick-start.md").read_text(encoding="utf-8")
    block = page.split("## Ten minutes without Kafka")[1].split("## ")[0]
    for line in shell_commands(block):
        _, name, *arguments = shlex.split(line)
        if name == "generate":  # fewer lines and steps, so that it takes seconds
            arguments[arguments.index("--lines") + 1] = "3000"
        done = logmamba(name, *arguments, *(["--steps", "3"] if name == "train" else []), cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
    assert (tmp_path / "report" / "index.html").exists()
    assert (tmp_path / "scores.jsonl").read_text().startswith('{"schema":"logmamba.score/1"')


def text_of(node: ast.expr) -> str | None:
    """A text as a message shows it: `…` stands for what differs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return None


class Said:
    """What the code says: log events at a warning or above, errors that end a worker, and every text there is."""

    def __init__(self) -> None:
        self.events: set[str] = set()
        self.ends: set[str] = set()
        self.texts: set[str] = set()
        for path in sorted(path for package in ("worker", "detector") for path in (ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.expr) and (text := text_of(node)):
                    self.texts.add(text)
                if isinstance(node, ast.Call) and node.args and (text := text_of(node.args[0])):
                    self._call(node.func, text, ends_a_worker=path.parent.name in RUNNING and path.stem not in OTHERS)

    def _call(self, called: ast.expr, text: str, *, ends_a_worker: bool) -> None:
        if isinstance(called, ast.Attribute) and called.attr in {"warning", "error", "exception"}:
            if ast.unparse(called.value).endswith("_log"):
                self.events.add(text)
        elif ends_a_worker and ast.unparse(called) == "RunError" and re.search("[a-z]", text):
            self.ends.add(text)


RUNNING = {"kafka", "delivery", "alerting", "observability", "processing"}
OTHERS = {"memory", "follower", "writer"}  # the broker of tests, and what only other commands use


def messages() -> list[str]:
    """What the page of troubleshooting has in the first columns of its tables."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    return [message for cell in cells for message in re.findall("`([^`]+)`", cell)]


def test_troubleshooting_names_messages_that_there_are_and_none_of_a_running_worker_is_left_out() -> None:
    said, named_there = Said(), messages()
    assert [message for message in named_there if not any(message in text for text in said.texts)] == []
    assert said.events - set(named_there) == set()
    assert [end for end in said.ends if not any(message in end for message in named_there)] == []
    assert (len(said.events) > 20, len(said.ends) > 15) == (True, True)


def test_the_python_consumer_prints_what_is_anomalous() -> None:
    broker = MockBroker()
    topic = ScoreTopic(broker)
    source = {"topic": "raw", "partition": 1, "first_offset": 7}
    topic.write(record("quiet", source=source), record("loud", "critical", source=source))
    command = [sys.executable, str(CONSUMERS / "scores.py"), broker.bootstrap, topic.name, "team"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as consumer:
        assert consumer.stdout is not None
        line = consumer.stdout.readline()
        consumer.kill()
    assert line == "critical\tfinal\t0.9987\tloud\traw/1@7\tReceiving block <*>\n"


def test_the_java_consumer_compiles(tmp_path: Path) -> None:
    libraries = ROOT / ".kafka" / "libs"
    if shutil.which("javac") is None or not libraries.is_dir():
        pytest.skip("no JDK, or no Kafka jars (make kafka)")
    command = ["javac", "-Xlint:all", "-Werror", "-cp", f"{libraries}/*", "-d", tmp_path, CONSUMERS / "Scores.java"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_columns_of_the_ksqldb_stream_are_fields_of_a_record() -> None:
    schema = json.loads((ROOT / "config" / "score-record.schema.json").read_text())["properties"]
    stream = (CONSUMERS / "scores.sql").read_text().split("CREATE STREAM scores (\n")[1].split("\n) WITH")[0]
    columns = {}
    for line in stream.splitlines():
        name, kind = line.strip().rstrip(",").split(" ", 1)
        columns[name] = kind
    assert columns.pop("session_key") == "VARCHAR KEY"
    assert set(columns) <= set(schema)
    for name, kind in columns.items():
        if below := re.search("STRUCT<(.*?)>", kind):
            properties = schema[name].get("properties") or schema[name]["items"]["properties"]
            assert {field.split()[0].strip("`") for field in below[1].split(", ")} <= set(properties)


def test_the_version_is_the_same_everywhere_and_the_changelog_begins_with_it() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = (ROOT / "deploy" / "helm" / "logmamba" / "Chart.yaml").read_text()
    assert re.findall(r"^(?:version|appVersion): (\S+)$", chart, re.MULTILINE) == [version, version]
    first = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == version
