"""How loops over columns are compiled, and where the compiled code is kept.

`compiled` turns a function over flat arrays and integers into machine code by numba. Its signature is fixed by its
annotations, so it is compiled where it is defined, when its module is imported, and never while records are processed:

- `int`, `bool` and `float`, which it may return; `Column`, `Table`, `Links`, `Bytes`, `Floats` and `Singles`, which are
  C-contiguous arrays; `NamedTuple`s of these; `None`.

The code is kept beside its source, in `__pycache__`, where `make setup` and the image put it, and a start takes it from
there although it may write nothing; where there is none and nothing may be written, in the cache folder of the user
(`XDG_CACHE_HOME`, or `.cache` below `HOME`); without either it is compiled at each start. It serves on every machine
of the same architecture, since it is compiled for what all of them have. Code goes by the text of its own file: what a
compiled function calls, and the constants that it uses, have to stand in that file too.

numba checks no index unless `NUMBA_BOUNDSCHECK=1` says so; `make bounds-test` runs the tests that way, without a cache.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import FunctionType, NoneType
from typing import Annotated, Any, Final, ParamSpec, Self, TypeVar, cast, get_args, get_origin, get_type_hints

import numba
import numpy as np
from numpy.typing import NDArray

types: Any = numba.types
_config: Any = numba.config

Column = Annotated[NDArray[np.int64], types.int64[::1]]
Table = Annotated[NDArray[np.int64], types.int64[:, ::1]]
Links = Annotated[NDArray[np.int32], types.int32[:, ::1]]
Bytes = Annotated[NDArray[np.uint8], types.uint8[::1]]
Floats = Annotated[NDArray[np.float64], types.float64[::1]]
Singles = Annotated[NDArray[np.float32], types.float32[::1]]

_PLAIN: Final = {int: types.int64, bool: types.boolean, float: types.float64, NoneType: types.none}

# For every machine of the architecture, so that what an image or a shared folder holds serves wherever it is mounted.
if _config.CPU_NAME is None:
    _config.CPU_NAME, _config.CPU_FEATURES = "generic", ""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Served:
    """Where the compiled loops of this process came from.

    Attributes:
        folder: where they are kept; None where there is no such place.
        loops: how many of them there are.
        loaded: how many came from there; the others were compiled.
    """

    folder: Path | None
    loops: int
    loaded: int


class Place:
    """Where numba keeps the code of a function; a class as `NUMBA_CACHE_LOCATOR_CLASSES` may name one.

    numba's own ones pass over a folder that cannot be written to, although the code is there.
    """

    def __init__(self, folder: Path, function: FunctionType) -> None:
        self._folder = folder
        self._function = function

    @classmethod
    def from_function(cls, function: FunctionType, source: str) -> Self | None:
        """Where the function's code is or could be written; None where nothing is and nothing can."""
        beside = cls(Path(source).parent / "__pycache__", function)
        if beside.has_code() or _writable(beside.folder):
            return beside
        folder = _user_folder()
        return cls(folder, function) if folder is not None and _writable(folder, mine=True) else None

    @property
    def folder(self) -> Path:
        """Where the code is kept."""
        return self._folder

    def has_code(self) -> bool:
        """Whether the code of the function as it stands in its file is there."""
        return any(self._folder.glob(f"{_stem(self._function)}-{self.get_disambiguator()}.*.nbi"))

    def get_cache_path(self) -> str:
        """What numba asks for: the folder."""
        return str(self._folder)

    def get_source_stamp(self) -> str:
        """What numba asks for: what the code is fresh by, which is in its name already."""
        return self.get_disambiguator()

    def get_disambiguator(self) -> str:
        """What numba asks for: a part of the names of files. It is of all that the code is made of."""
        texts = (Path(file).read_bytes() for file in (inspect.getfile(self._function), __file__))
        made_by = f"{numba.__version__} {_config.CPU_NAME} {_config.CPU_FEATURES}".encode()
        return hashlib.sha256(b"\0".join((made_by, *texts))).hexdigest()[:16]

    def ensure_cache_path(self) -> None:
        """What numba calls before it writes: lets the code of older texts go."""
        for path in self._folder.glob(f"{_stem(self._function)}-*"):
            if self.get_disambiguator() not in path.name:
                path.unlink(missing_ok=True)


def _stem(function: FunctionType) -> str:
    return f"{Path(inspect.getfile(function)).stem}.{function.__qualname__}"


def _user_folder() -> Path | None:
    caches = os.environ.get("XDG_CACHE_HOME")
    home = os.environ.get("HOME")
    return Path(caches, "logmamba") if caches else Path(home, ".cache", "logmamba") if home else None


def _writable(folder: Path, *, mine: bool = False) -> bool:
    """Whether a folder is there or can be made, and can be written to; what is loaded from one may run as code."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return not mine or folder.stat().st_uid == os.getuid()
    except OSError:
        return False


_loops: list[Any] = []


def compiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function as machine code, which runs without the interpreter's lock; its integers wrap around, as in C.

    It may make no array. So no references are counted in it, which takes an atomic operation wherever one is passed on
    and costs a loop over short runs as much as its work.

    Raises:
        TypeError: an annotation that no compiled loop may have, or a result that is no number.
    """
    return _compiled(function, counted=False)


def allocating(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """As `compiled`, of one that makes arrays."""
    return _compiled(function, counted=True)


def _compiled(function: Callable[Arguments, Result], *, counted: bool) -> Callable[Arguments, Result]:
    hints = {name: _type(hint) for name, hint in get_type_hints(function, include_extras=True).items()}
    signature = hints.pop("return")(*hints.values())
    if signature.return_type not in _PLAIN.values():
        raise TypeError(f"{function.__qualname__} returns no number")
    locators, _config.CACHE_LOCATOR_CLASSES = _config.CACHE_LOCATOR_CLASSES, f"{__name__}.{Place.__name__}"
    try:
        # The switch for counting references has no other name.
        options: dict[str, Any] = {"nogil": True, "_nrt": counted, "cache": _kept(cast(FunctionType, function))}
        loop = numba.njit(signature, **options)(function)
    finally:
        _config.CACHE_LOCATOR_CLASSES = locators
    _loops.append(loop)
    return cast(Callable[Arguments, Result], loop)


def served() -> Served:
    """Where the code of the loops that were imported so far came from."""
    if _config.DISABLE_JIT:
        return Served(None, 0, 0)
    paths = {loop.stats.cache_path for loop in _loops} - {None}
    loaded = sum(bool(loop.stats.cache_hits) for loop in _loops)
    return Served(Path(min(paths)) if paths else None, len(_loops), loaded)


def _kept(function: FunctionType) -> bool:
    # Code that checks bounds has the same key as code that does not.
    if _config.DISABLE_JIT or _config.BOUNDSCHECK:
        return False
    return Place.from_function(function, inspect.getfile(function)) is not None


def _type(hint: Any) -> Any:
    if get_origin(hint) is Annotated:
        return get_args(hint)[1]
    if isinstance(hint, type) and issubclass(hint, tuple):
        fields = get_type_hints(hint, include_extras=True)
        return types.BaseTuple.from_types([_type(field) for field in fields.values()], hint)
    if hint not in _PLAIN:
        raise TypeError(
            f"{hint!r}; allowed: int, bool, float, None, Column, Table, Links, Bytes, Floats, Singles and NamedTuples "
            "of them"
        )
    return _PLAIN[hint]
