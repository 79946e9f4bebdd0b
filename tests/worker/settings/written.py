"""Settings as `logmamba` reads them, from a file with the text that a test writes."""

from pathlib import Path

import pytest

from worker.errors import SettingsError
from worker.kafka.clients import rejection
from worker.settings.document import Settings, load_settings


def load(tmp_path: Path, text: str, *overrides: str, **environment: str) -> Settings:
    path = tmp_path / "worker.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path, overrides, environment, rejection=rejection)


def errors_of(tmp_path: Path, text: str, *overrides: str, **environment: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text, *overrides, **environment)
    assert str(caught.value) == "\n".join(caught.value.errors)
    assert all("\n" not in error for error in caught.value.errors)
    return caught.value.errors


def only_error(tmp_path: Path, text: str, *overrides: str, **environment: str) -> str:
    [error] = errors_of(tmp_path, text, *overrides, **environment)
    return error
