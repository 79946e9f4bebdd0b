"""The one name that an installation owns; the packages `worker`, `detector` and `kernels` are in it and found first.

Other distributions install packages of such names (`pip install kernels`); neither overwrites the other, and a process
that imports `logmamba` means ours. In the repository the three lie beside this folder instead.

Raises:
    ImportError: another distribution's package of one of the names is imported already.
"""

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_HOME = _HERE if (_HERE / "worker").is_dir() else _HERE.parent

for _name in ("worker", "detector", "kernels"):
    _file = getattr(sys.modules.get(_name), "__file__", None)
    if _name in sys.modules and (_file is None or _HOME not in Path(_file).resolve().parents):
        raise ImportError(f"another package named {_name!r} is imported already ({_file}): import logmamba before it")
sys.path.insert(0, str(_HOME))


def main() -> None:
    """The `logmamba` command."""
    from worker.cli import main as run

    run()
