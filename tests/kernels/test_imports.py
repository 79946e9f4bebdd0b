"""The modules of `kernels` import each other in one direction, and nothing outside `kernels/triton` needs Triton."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "kernels").rglob("*.py"))
}


def imported(module: str) -> Iterator[str]:
    """What a module imports, inside its functions, too; of packages, what they are asked for."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)


def test_no_module_imports_one_that_imports_it() -> None:
    arrows = {module: [name for name in imported(module) if name in MODULES] for module in MODULES}
    order = list(TopologicalSorter(arrows).static_order())  # raises where there is a circle
    assert set(order) == set(MODULES)
    assert order.index("kernels.arguments") < order.index("kernels.mamba3") < order.index("kernels.mixer")


def test_the_reference_runs_where_triton_is_not_installed() -> None:
    program = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "from kernels import mamba3_mimo\n"
        "from tests.kernels.inputs import Sizes, random_arguments\n"
        "mamba3_mimo(**random_arguments(Sizes(), [3]))\n"
        "try:\n"
        "    mamba3_mimo(**random_arguments(Sizes(), [3]), backend='triton')\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "backend is 'triton' but x is on cpu; Triton needs a CUDA device" in result.stdout


def test_each_module_can_be_imported_first() -> None:
    program = "import importlib, sys\nfor name in sys.argv[1:]:\n    {}\n    importlib.import_module(name)"
    forget = "[sys.modules.pop(loaded) for loaded in [*sys.modules] if loaded.split('.')[0] == 'kernels']"
    subprocess.run([sys.executable, "-c", program.format(forget), *MODULES], check=True, cwd=ROOT)
