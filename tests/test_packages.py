"""What the packages never do, whatever else they do."""

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
