"""The image: built from pinned parts, and a worker in it needs no more than it is given.

There is no container engine here: what the Dockerfile says is tried in a root file system made of namespaces.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from deploy.requirements import requirements
from tests.deploy.clean_root import CleanRoot
from tests.deploy.dockerfile import DOCKERFILE, ROOT, copy_context, image, instructions, words
from tests.deploy.tools import run_tool
from worker.settings.document import Settings

LOCK = (ROOT / "requirements.lock").read_text()
TORCH_CPU = (ROOT / "deploy" / "torch-cpu.txt").read_text()
ONLY_CUDA = re.compile(r"nvidia-|cuda-|triton")


def names(text: str) -> set[str]:
    return {*re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(package: str) -> set[str]:
    """What an installed package needs here."""
    found = map(Requirement, requires(package) or ())
    return {normal(each.name) for each in found if each.marker is None or each.marker.evaluate({"extra": ""})}


def direct() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {normal(Requirement(each).name) for each in project["dependencies"]}


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_an_image_has_every_library_that_the_worker_needs(variant: str) -> None:
    chosen = names(requirements(variant, LOCK, TORCH_CPU))
    assert direct() <= chosen
    # By what each library says itself; those of PyTorch's build with CUDA are not those of the other one.
    missing = {name: needed(name) - chosen for name in chosen & {normal(each) for each in installed()}}
    if variant == "cpu":
        missing["torch"] = {name for name in missing["torch"] if not ONLY_CUDA.match(name)}
    assert {name: lacks for name, lacks in missing.items() if lacks} == {}


def installed() -> list[str]:
    from importlib.metadata import distributions

    return [each.metadata["Name"] for each in distributions()]


def test_an_image_for_a_cpu_has_nothing_of_cuda_and_no_image_has_what_only_development_needs() -> None:
    cpu, cuda = (names(requirements(variant, LOCK, TORCH_CPU)) for variant in ("cpu", "cuda"))
    assert {name for name in cuda - cpu if not ONLY_CUDA.match(name)} == set()
    assert not {"pytest", "mypy", "ruff", "hatchling", "hypothesis"} & cuda
    assert "hatchling" in names(requirements("build", LOCK, TORCH_CPU))


def test_every_package_of_an_image_is_pinned_by_hashes() -> None:
    for variant in ("build", "cpu", "cuda"):
        entries = re.split(r"^(?=[a-z])", requirements(variant, LOCK, TORCH_CPU), flags=re.MULTILINE)[1:]
        assert all("--hash=sha256:" in entry for entry in entries)
        assert all("==" in entry for entry in entries)


def test_pytorch_without_cuda_is_of_the_locked_version() -> None:
    [locked] = re.findall(r"^torch==(\S+)", LOCK, re.MULTILINE)
    [cpu] = re.findall(r"^torch==(\S+)", TORCH_CPU, re.MULTILINE)
    assert cpu == f"{locked}+cpu"


def test_a_variant_that_there_is_not_is_refused() -> None:
    script = [sys.executable, str(ROOT / "deploy" / "requirements.py"), "rocm"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "requirements.py: 'rocm' is no variant; allowed: build, cpu, cuda\n"


def test_the_dockerfile_has_no_findings() -> None:
    done = run_tool("hadolint", DOCKERFILE)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_the_worker_itself_as_a_user_who_is_not_root() -> None:
    said = image()
    assert words(said["ENTRYPOINT"]) == ["logmamba"]  # no shell, which would keep signals from it
    assert said["STOPSIGNAL"] == "SIGTERM"
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", said["USER"])
    port = Settings().observability.port
    assert said["EXPOSE"] == str(port)
    assert f"http://127.0.0.1:{port}/healthz" in words(said["HEALTHCHECK"])[-1]


def test_images_are_pinned_by_version() -> None:
    bases = {argument.split()[0] for name, argument in instructions() if name == "FROM"}
    assert bases == {"python:${PYTHON}"}
    [python] = [argument for name, argument in instructions() if name == "ARG" and argument.startswith("PYTHON=")]
    assert re.match(r"PYTHON=3\.\d+\.\d+-", python)


def test_the_context_has_what_the_dockerfile_copies_and_nothing_of_the_tests(tmp_path: Path) -> None:
    copy_context(tmp_path)
    copied = [argument.split()[:-1] for name, argument in instructions() if name == "COPY" and "--from" not in argument]
    assert all((tmp_path / path).exists() for paths in copied for path in paths)
    assert not (tmp_path / "tests").exists()
    assert not (tmp_path / ".git").exists()


# Fails unless the temporary folder alone can be written to.
_TRY_TO_WRITE = """
touch /tmp/it || exit 9
for where in / /work /opt/logmamba /usr; do if touch "$where/it" 2> /tmp/error; then exit 9; fi; done
"""


def test_a_worker_needs_a_temporary_folder_and_nothing_else_to_write_to(clean_root: CleanRoot) -> None:
    code, printed = clean_root.run(entrypoint=["sh", "-c", _TRY_TO_WRITE + "exec logmamba demo --lines 2000"])
    assert code == 0, printed
    assert "precision" in printed


def test_the_compiled_loops_are_in_it_for_any_user(clean_root: CleanRoot) -> None:
    told = (
        "import logmamba, worker.processing.pipeline; from detector.compiled import served; "
        "found = served(); print(found.loaded == found.loops > 0)"
    )
    code, printed = clean_root.run(entrypoint=["python", "-c", told], user="54321:0")
    assert (code, printed) == (0, "True\n")


def test_any_user_will_do(clean_root: CleanRoot) -> None:
    shell = ["sh", "-c", _TRY_TO_WRITE + "exec logmamba run --config worker.yaml"]
    code, printed = clean_root.run(entrypoint=shell, user="54321:0")
    assert (code, printed) == (2, "logmamba: worker.yaml: cannot be read: No such file or directory\n")
