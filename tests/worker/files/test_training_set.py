"""What `logmamba train` and `adapt` learn from where all sessions have one key, as where a partition is the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.files.input_files import open_inputs
from worker.files.recent_traffic import read_recent_traffic
from worker.files.training_set import is_validation, read_training_set
from worker.settings.document import Settings, load_settings

SESSIONS = 100
SIDES = [next(seed for seed in range(100) if is_validation("all", seed) is side) for side in (False, True)]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "worker.yaml"
    path.write_text(
        "input: {timestamp: {pattern: '^(\\S+) ', format: epoch_s}}\n"
        "sessions: {key: {regex: 'on (all|host-\\d+)'}, gap: 10m, max_age: 1h}\n"
    )
    return load_settings(path)


def log(path: Path, keys: int) -> Path:
    """Sessions of three lines, hours apart, of one key or of several in turn."""
    names = ["all"] if keys == 1 else [f"host-{number}" for number in range(keys)]
    texts = [
        f"{1_714_953_600 + 7_200 * number + second} on {names[number % keys]}: {text}\n"
        for number in range(SESSIONS)
        for second, text in enumerate(("job started", "job is running", "job ended"))
    ]
    path.write_text("".join(texts))
    return path


@pytest.mark.parametrize("seed", SIDES)
def test_sessions_of_one_key_are_divided_one_by_one(settings: Settings, tmp_path: Path, seed: int) -> None:
    found = read_training_set(settings, open_inputs(settings, [log(tmp_path / "app.log", 1)]), None, seed)
    assert len(found.vocabulary.templates) == 3
    assert len(found.training) + len(found.validation) == SESSIONS
    assert 5 <= len(found.validation) <= 40
    again = read_training_set(settings, open_inputs(settings, [tmp_path / "app.log"]), None, seed)
    assert (again.held_out == found.held_out).all()


def test_parsed_sessions_of_one_key_are_divided_likewise(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "sessions.tsv"
    path.write_text("session_id\tlabel\tcount\tevents\n" + "all\t\t1\topened closed\n" * SESSIONS)
    for seed in SIDES:
        found = read_training_set(settings, open_inputs(settings, [path]), None, seed)
        assert found.vocabulary.templates == ("opened", "closed")
        assert 5 <= len(found.validation) <= 40


def test_sessions_of_several_keys_are_divided_by_these(settings: Settings, tmp_path: Path) -> None:
    found = read_training_set(settings, open_inputs(settings, [log(tmp_path / "app.log", 20)]), None, 0)
    assert not set(found.training.keys or ()) & set(found.validation.keys or ())


@pytest.mark.parametrize("seed", SIDES)
def test_new_templates_of_one_key_are_learnt_whichever_side_it_is_on(
    settings: Settings, tmp_path: Path, seed: int
) -> None:
    first = read_training_set(settings, open_inputs(settings, [log(tmp_path / "app.log", 1)]), None, seed)
    new = tmp_path / "new.log"
    new.write_text((tmp_path / "app.log").read_text().replace("job is running", "task runs on a node"))
    found = read_recent_traffic(settings, open_inputs(settings, [new]), first.vocabulary, most_templates=10, seed=seed)
    assert len(found.vocabulary.templates) == 4
