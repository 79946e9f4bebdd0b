"""Settings as `logmamba` reads them, from a file with the text that a test writes."""

import re
from pathlib import Path

import pytest

from worker.errors import SettingsError
from worker.kafka.clients import rejection
from worker.settings.document import Settings, load_settings


def load(tmp_path: Path, text: str, *overrides: str, **environment: str) -> Settings:
    path = tmp_path / "worker.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path, overrides, environment, rejection=rejection)


def placed_errors_of(tmp_path: Path, text: str, *overrides: str, **environment: str) -> list[str]:
    """The errors as they are told, with their places."""
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text, *overrides, **environment)
    assert str(caught.value) == "\n".join(caught.value.errors)
    assert all("\n" not in error for error in caught.value.errors)
    return caught.value.errors


def errors_of(tmp_path: Path, text: str, *overrides: str, **environment: str) -> list[str]:
    """The errors without their places, which each of them has: a place in the file, or `--set`."""
    place = re.compile(rf"{re.escape(str(tmp_path))}/worker\.yaml(:\d+:\d+)?: |--set ")
    errors = placed_errors_of(tmp_path, text, *overrides, **environment)
    assert all(place.match(error) for error in errors), errors
    return [place.sub("", error, count=1) for error in errors]


def only_error(tmp_path: Path, text: str, *overrides: str, **environment: str) -> str:
    [error] = errors_of(tmp_path, text, *overrides, **environment)
    return error
