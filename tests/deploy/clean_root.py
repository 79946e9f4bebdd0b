"""A root file system that holds what the image holds, and processes in it that run as the image says.

No container engine is needed: namespaces give a process a root of its own that cannot be written to, process id 1,
and the image's user, entry point and variables. The libraries are those of the tests' environment, less those that the
image does not install and what the Dockerfile deletes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest

from deploy.requirements import requirements
from tests.deploy.dockerfile import ROOT, copy_context, environment, image, instructions, words

_HOME = "/opt/logmamba"  # where the image has its virtual environment

# Arguments: the new root, the image's home, its folder of packages, those of the wheel, the libraries, where Python is,
# the user, then the command. Standard input: lines `SOURCE TARGET` of what to mount.
_ENTER = r"""
set -e
root=$1 home=$2 packages=$2/$3 wheel=$4 libraries=$5 python=$6 user=$7
shift 7
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir -p usr etc dev proc tmp work .upper .work ".$packages" ".$home/bin"
for link in bin sbin lib lib64; do if [ -e "/$link" ]; then ln -s "usr/$link" "$link"; fi; done
cp /etc/ld.so.cache etc/
for source in /usr /dev; do mount --rbind "$source" ".$source"; done
if [ ! -e ".$python" ]; then  # it looks for its libraries where it is
  mkdir -p ".$python"
  mount --bind "$python" ".$python"
  mount -o remount,bind,ro ".$python"
fi
mount -t overlay overlay -o "lowerdir=$libraries,upperdir=$root/.upper,workdir=$root/.work" ".$packages"
mount -t proc proc proc
ln -s "$python/bin/python3" ".$home/bin/python"
echo "home = $python/bin" > ".$home/pyvenv.cfg"
sed "1s|.*|#!$home/bin/python|" "$wheel/bin/logmamba" > ".$home/bin/logmamba"
chmod 755 ".$home/bin/logmamba"
cd ".$packages"
rm -rf $UNWANTED
cp -r "$wheel"/* .
cd "$root"
chroot . sh -ec "$PRUNE"
while read -r source target; do
  mkdir -p ".$(dirname "$target")"
  if [ -d "$source" ]; then mkdir ".$target"; else touch ".$target"; fi
  mount --bind "$source" ".$target"
  mount -o remount,bind,ro ".$target"
done
mount -o remount,bind,ro usr
mount -o remount,ro ".$packages"
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -o remount,bind,ro "$root"
exec chroot --userspec="$user" . env --ignore-environment --chdir=/work "$@" < /dev/null
"""


def _unavailable() -> str | None:
    """Why there can be no such root here, or None."""
    if os.geteuid() != 0:
        return "needs root for namespaces"
    tried = "mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/m && mount -t overlay overlay -o "
    tried += "lowerdir=/usr,upperdir=/mnt/u,workdir=/mnt/w /mnt/m"
    try:
        done = subprocess.run(["unshare", "--mount", "sh", "-c", tried], capture_output=True, check=False)
    except FileNotFoundError:
        return "needs `unshare` (util-linux)"
    return None if done.returncode == 0 else f"no namespaces or overlays here: {done.stderr.decode().strip()}"


class CleanRoot:
    """The image's file system; each command gets a fresh one. The test is skipped where there can be none.

    Args:
        folder: for what is built: the wheel from the files that .dockerignore lets through.
    """

    def __init__(self, folder: Path) -> None:
        reason = _unavailable()
        if reason is not None:
            pytest.skip(f"needs a root file system of its own: {reason}")
        self._root, self._wheel = folder / "root", folder / "wheel"
        self._root.mkdir()
        copy_context(folder / "context")
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        wheel = [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder / "dist")]
        subprocess.run([*wheel, str(folder / "context")], check=True)
        [built] = (folder / "dist").glob("*.whl")
        subprocess.run(
            [*pip, "install", "--no-deps", "--no-index", "--target", str(self._wheel), str(built)], check=True
        )
        # As the Dockerfile does, which is read-only afterwards.
        compiling = [
            sys.executable,
            "-c",
            "import logmamba, worker.processing.pipeline, detector.scoring.count_profile_loop",
        ]
        subprocess.run(compiling, env={"PYTHONPATH": str(self._wheel)}, cwd=folder, check=True)

    def start(
        self,
        arguments: Sequence[str] | None = None,
        mounts: Mapping[str, Path] | None = None,
        *,
        entrypoint: Sequence[str] | None = None,
        user: str | None = None,
        **streams: int,
    ) -> subprocess.Popen[str]:
        """Start the image's entry point as process 1.

        Args:
            arguments: the image's own (CMD) when None.
            mounts: files and folders to be seen, read-only, by their path in the root.
            entrypoint: another command than the image's.
            user: another uid:gid than the image's.
            streams: where standard output and error go, as for `Popen`.
        """
        said = image()
        command = [
            *(entrypoint or words(said["ENTRYPOINT"])),
            *(words(said["CMD"]) if arguments is None else arguments),
        ]
        variables = [f"{name}={value}" for name, value in environment().items()]
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        libraries = next(path for path in sys.path if path.endswith("site-packages"))
        where = [str(self._root), _HOME, f"lib/{version}/site-packages", str(self._wheel), libraries, sys.base_prefix]
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        process = subprocess.Popen(
            [*namespaces, "sh", "-c", _ENTER, "sh", *where, user or said["USER"], *variables, *command],
            stdin=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], "UNWANTED": " ".join(_not_installed()), "PRUNE": _pruning()},
            **streams,
        )
        assert process.stdin is not None
        process.stdin.write("".join(f"{source} {target}\n" for target, source in (mounts or {}).items()))
        process.stdin.close()
        process.stdin = None
        return process

    def run(self, *arguments: str, entrypoint: Sequence[str] | None = None, user: str | None = None) -> tuple[int, str]:
        """Run the image's entry point to its end: its exit code, and all that it printed."""
        process = self.start(
            arguments, entrypoint=entrypoint, user=user, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        printed, _ = process.communicate(timeout=200)
        return process.returncode, printed


def _pruning() -> str:
    """The Dockerfile's own command that deletes parts of libraries."""
    [command] = [argument for name, argument in instructions() if name == "RUN" and argument.startswith("find ")]
    return command


def _not_installed() -> list[str]:
    """The packages' folder's entries that belong to no distribution that the image has."""
    lock = requirements("cuda", (ROOT / "requirements.lock").read_text(), "")
    wanted = {*re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE)}
    inside, outside = set[str](), set[str]()
    for each in distributions():
        name = re.sub(r"[-_.]+", "-", each.metadata["Name"]).lower()
        (inside if name in wanted else outside).update(_entries(each))
    return sorted(outside - inside)


def _entries(distribution: Distribution) -> set[str]:
    return {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
