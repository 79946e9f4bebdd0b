"""What the packages never do, whatever else they do: run what they read, or import against the arrows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for package in ("worker", "detector", "kernels") for path in (ROOT / package).rglob("*.py"))
# Each can run code that stands in what it is given.
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "torch.jit.load"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "logging.config.fileConfig"),
}
FORBIDDEN_KEYWORDS = {"allow_pickle", "shell", "weights_only"}


def offences(source: str) -> Iterator[str]:
    """Each place of a module that could run what it reads, by its line."""
    for node in ast.walk(ast.parse(source)):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name for name in names if name.split(".")[0] in FORBIDDEN_MODULES or name in FORBIDDEN_CALLS]
        elif isinstance(node, ast.Call):
            found = [name for name in (ast.unparse(node.func),) if name in FORBIDDEN_CALLS]
            found += [keyword.arg for keyword in node.keywords if keyword.arg in FORBIDDEN_KEYWORDS]
        for name in found:
            yield f"{node.lineno}: {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_code_that_stands_in_what_it_reads(path: Path) -> None:
    assert list(offences(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "from torch import load",
        "torch.load(path)",
        "eval(text)",
        "yaml.load(text, yaml.Loader)",
        "numpy.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_what_could_is_seen(source: str) -> None:
    assert len(list(offences(source))) == 1


# Which folders of a package each folder of it may import from, beside itself and the package's own modules.
ARROWS = {
    "worker": {
        "observability": set(),
        "formats": set(),
        "settings": {"formats"},
        "processing": {"formats", "settings", "observability"},
        "delivery": {"formats", "settings", "processing", "observability"},
        "alerting": {"formats", "settings", "processing", "delivery", "observability"},
        "kafka": {"formats", "settings", "processing", "delivery", "observability"},
        "files": {"formats", "settings", "processing", "observability"},
        "pages": {"formats", "observability"},
        "generator": set(),
        "commands": {
            *("formats", "settings", "processing", "delivery", "kafka"),
            *("files", "generator", "observability", "alerting", "pages"),
        },
    },
    "detector": {
        "text": set(),
        "model": {"text"},
        "quality": {"text"},
        "scoring": {"text", "model"},
        "training": {"text", "model", "scoring", "quality"},
    },
}
PACKAGES = {"kernels": set(), "detector": {"kernels"}, "worker": {"detector"}}
# Only what lies in these places may import these libraries.
HOMES = {
    "confluent_kafka": ("worker.kafka.",),
    "torch": ("detector.", "kernels."),
    "triton": ("kernels.triton.",),
}


def imported(source: str) -> set[str]:
    """Every module that a module names in an import, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def against_the_arrows(module: str, source: str) -> set[str]:
    """The imports of a module, such as `worker.kafka.sink`, that its place does not allow."""
    package, folder, *_ = (*module.split("."), "")
    refused = set()
    for name in imported(source):
        top, below, *_ = (*name.split("."), "")
        if top in PACKAGES and top != package and top not in PACKAGES[package]:
            refused.add(name)
        allowed = ARROWS.get(package, {})
        if top == package and folder in allowed and below in allowed and below not in {folder, *allowed[folder]}:
            refused.add(name)
        if top in HOMES and not f"{module}.".startswith(HOMES[top]):
            refused.add(name)
    return refused


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert against_the_arrows(module, path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("worker.delivery.loop", "from worker.kafka.sink import TransactionalSink"),
        ("worker.delivery.loop", "from worker.kafka import sink"),
        ("worker.observability.metrics", "def late():\n    from worker.processing.records import Records"),
        ("worker.formats.times", "import worker.settings.document"),
        ("worker.alerting.loop", "from worker.kafka.source import KafkaSource"),
        ("worker.processing.decoder", "import confluent_kafka"),
        ("worker.cli", "from confluent_kafka import Consumer"),
        ("worker.processing.scorer", "import torch"),
        ("detector.text.tokenizer", "from detector.model import model"),
        ("detector.model.model", "from worker.errors import RunError"),
        ("detector.model.cuda_inference", "import triton"),
        ("kernels.mamba3", "from detector.errors import DeviceError"),
        ("kernels.mamba3", "import triton.language as tl"),
    ],
)
def test_an_import_against_them_is_seen(module: str, source: str) -> None:
    assert against_the_arrows(module, source)


def test_every_folder_has_its_arrows() -> None:
    folders = {path.relative_to(ROOT).parts[:2] for path in FILES if len(path.relative_to(ROOT).parts) > 2}
    known = {(package, folder) for package, below in ARROWS.items() for folder in below}
    assert {each for each in folders if each[0] != "kernels"} == known
