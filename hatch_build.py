"""What a wheel holds beside `logmamba/`: the packages and files of the repository, all under that one name.

An editable installation reads them where they are.
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_UNDER_ONE_NAME = {
    **{name: f"logmamba/{name}" for name in ("worker", "detector", "kernels")},
    "config": "logmamba/worker/config",
    "checkpoints/demo": "logmamba/detector/checkpoints/demo",
}


class OneName(BuildHookInterface):  # type: ignore[type-arg]
    """Moves everything under `logmamba/`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add what a wheel holds; hatchling calls it."""
        if version == "standard":
            build_data["force_include"] |= _UNDER_ONE_NAME
