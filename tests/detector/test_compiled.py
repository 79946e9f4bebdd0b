"""How loops over columns are compiled, and that a start finds their code where it may write nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
import pytest

from detector.compiled import Bytes, Column, Served, Table, allocating, compiled, served

ROOT = Path(__file__).parents[2]
MODULE = """
from detector.compiled import Column, compiled

@compiled
def total(values: Column) -> int:
    found = 0
    for value in values:
        found += value
    return found
"""
START = """
import numpy, small
from detector.compiled import served
assert small.total(numpy.arange(5)) == 10
found = served()
print(found.loaded, found.loops, found.folder)
"""
# Root writes where nobody may, unless it gives that up.
WITHOUT_RIGHTS = ("setpriv", "--bounding-set", "-dac_override") if os.getuid() == 0 else ()


class Sums(NamedTuple):
    values: Column
    rows: Table
    texts: Bytes
    factor: int


@compiled
def half(value: int) -> int:
    return value // 2


@compiled
def sums(of: Sums, doubled: bool) -> int:
    found = of.values.sum() + of.rows[:, 0].sum() + np.int64(of.texts[0])
    of.values[0] = half(found)
    return found * of.factor if doubled else found


@allocating
def sorted_sum(values: Column, times: int) -> int:
    found = 0
    for _ in range(times):
        own = np.sort(values)
        found += own[0] + half(own[-1])
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Of a module with a loop; it may be made read-only."""
    made = tmp_path / "code"
    (made / "__pycache__").mkdir(parents=True)
    (made / "small.py").write_text(MODULE)
    yield made
    allow(made, 0o755)


def allow(folder: Path, mode: int) -> None:
    for path in (folder, folder / "__pycache__"):
        path.chmod(mode)


def start(folder: Path, home: Path | None = None) -> str:
    """What a process without rights tells: how many loops it found compiled, of how many, and where they are kept."""
    environment = {"PYTHONPATH": f"{folder}:{ROOT}", "PATH": os.environ["PATH"], "PYTHONWARNINGS": "error"}
    if home is not None:
        environment["HOME"] = str(home)
    done = subprocess.run(
        [*WITHOUT_RIGHTS, sys.executable, "-c", START], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_loop_takes_tuples_of_columns_and_numbers_and_calls_others() -> None:
    of = Sums(np.array([1, 2]), np.array([[3, 4], [5, 6]]), np.array([7], np.uint8), 10)
    assert sums(of, True) == 180
    assert of.values.tolist() == [9, 2]


def test_an_annotation_that_no_loop_may_have_is_refused() -> None:
    def wrong(texts: list) -> int:  # type: ignore[type-arg]
        return len(texts)

    with pytest.raises(TypeError, match=r"list.*allowed: int, bool, float, None, Column"):
        compiled(wrong)


def test_a_loop_makes_arrays_only_where_it_says_so_and_gives_none() -> None:
    values = np.array([3, 1, 8])
    assert sorted_sum(values, 1_000) == 5_000

    def copied(values: Column) -> int:
        return len(values.copy())

    def itself(values: Column) -> Column:
        return values

    with pytest.raises(numba.core.errors.NumbaError, match="NRT"):
        compiled(copied)
    for compile_it in (compiled, allocating):
        with pytest.raises(TypeError, match="itself returns no number"):
            compile_it(itself)


@pytest.mark.skipif(bool(numba.config.BOUNDSCHECK), reason="checks of bounds are compiled anew")
def test_the_loops_of_this_process_are_kept() -> None:
    found = served()
    assert found.loops >= 2
    assert isinstance(found, Served)
    assert found.folder is not None
    assert any(found.folder.glob("*.nbi"))


def test_a_start_that_may_write_nothing_takes_the_code_of_its_text_and_compiles_any_other_anew(folder: Path) -> None:
    assert start(folder) == f"0 1 {folder / '__pycache__'}"
    allow(folder, 0o555)
    assert start(folder) == f"1 1 {folder / '__pycache__'}"
    (folder / "small.py").write_text(MODULE + "# another\n")
    assert start(folder) == "0 1 None"


def test_where_the_source_is_read_only_the_code_is_kept_in_the_cache_folder_of_the_user(
    folder: Path, tmp_path: Path
) -> None:
    allow(folder, 0o555)
    kept = tmp_path / ".cache" / "logmamba"
    assert start(folder, home=tmp_path) == f"0 1 {kept}"
    assert start(folder, home=tmp_path) == f"1 1 {kept}"
