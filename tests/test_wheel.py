"""The wheel has everything that the commands need, and works where there is no repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from worker.processing import session_loop

ROOT = Path(__file__).parents[1]
_SHIPPED = {
    *("worker.example.yaml", "hdfs.yaml", "json.yaml", "worker.schema.json"),
    *("score-record.schema.json", "score-record.avsc"),
}


def run(*arguments: object, code: int = 0, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        cwd="/",
        env=os.environ | {"COLUMNS": "400"} | environment,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, ROOT)
    [built] = folder.glob("*.whl")
    return built


def test_it_owns_one_name_and_holds_the_packages_the_settings_and_schemas_and_the_checkpoint_of_the_demo(
    wheel: Path,
) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"logmamba"}
    code = {
        path.relative_to(ROOT)
        for package in ("worker", "detector", "kernels")
        for path in (ROOT / package).rglob("*.py")
    }
    assert {f"logmamba/{path}" for path in code} <= names
    assert {"logmamba/worker/py.typed", "logmamba/worker/commands/evaluation/page.html"} <= names
    shipped = {path.relative_to(ROOT) for path in (ROOT / "config").rglob("*.*")}
    assert {f"logmamba/worker/{path}" for path in shipped} <= names
    demo = "logmamba/detector/checkpoints/demo"
    assert {f"{demo}/{name}" for name in ("manifest.json", "model.safetensors", "vocabulary.json")} <= names
    assert not any("__pycache__" in name for name in names)


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed, beside another distribution's package of the same name as one of ours."""
    target = tmp_path_factory.mktemp("site")
    run("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel)
    # Its loops are kept by their text: those of the repository are the same.
    code = Path(session_loop.__file__).parent / "__pycache__"
    shutil.copytree(code, target / "logmamba" / "worker" / "processing" / "__pycache__", dirs_exist_ok=True)
    (target / "kernels").mkdir()
    (target / "kernels" / "__init__.py").write_text("raise RuntimeError('of another distribution')\n")
    return target


def test_installed_beside_other_packages_it_checks_settings_that_it_brings_with_it(site: Path, tmp_path: Path) -> None:
    config = tmp_path / "worker.yaml"
    where = "import logmamba, kernels.mamba3; from detector.checkpoint import demo_checkpoint as d; print(d())"
    demo = Path(run("-c", where, PYTHONPATH=str(site)).strip())
    assert site in demo.parents
    listed = run("-m", "logmamba", "example", PYTHONPATH=str(site)).split()
    assert set(listed) >= _SHIPPED
    config.write_text(run("-m", "logmamba", "example", "hdfs.yaml", PYTHONPATH=str(site)))
    assert config.read_text() == (ROOT / "config" / "hdfs.yaml").read_text()
    overrides = "--set", f"model.checkpoint={demo}", "--set", "kafka.bootstrap.servers=localhost:1"
    shown = run("-m", "logmamba", "check", "--config", config, *overrides, code=1, PYTHONPATH=str(site))
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in shown.splitlines()]
    assert ["checkpoint", "ok"] in rows
    assert ["brokers", "failed"] in rows


def test_where_another_package_of_the_name_is_imported_already_the_import_says_so(site: Path) -> None:
    before = """
import sys, types
sys.modules["kernels"] = types.ModuleType("kernels")
try:
    import logmamba
except ImportError as error:
    print(error)
"""
    told = run("-c", before, PYTHONPATH=str(site))
    assert told == "another package named 'kernels' is imported already (None): import logmamba before it\n"
