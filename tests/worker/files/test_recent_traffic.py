"""What `logmamba adapt` reads of recent logs: sessions in the tokens of a checkpoint, new templates, and no more."""

from __future__ import annotations

import gzip
from pathlib import Path

import orjson
import pytest

from detector.errors import InputFileError
from detector.text.vocabulary import UNK, Vocabulary
from worker.files.input_files import open_inputs
from worker.files.recent_traffic import LEAST_LINES, RecentTraffic, read_recent_traffic
from worker.settings.document import Settings, load_settings

KNOWN = Vocabulary(tuple(f"<num> order=<num> {step}" for step in ("opened", "paid", "closed")))
BEGIN_S, DAY_S = 1_714_953_600, 86_400  # 2024-05-06


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "worker.yaml"
    path.write_text(
        "input: {timestamp: {pattern: '^(\\S+) ', format: epoch_s}}\n"
        "sessions: {key: {regex: 'order=\\d+'}, gap: 10m, max_age: 1h}\n"
    )
    return load_settings(path)


def lines(orders: int, more: str = "", every: int = 1, apart_s: int = 60) -> list[str]:
    found = []
    for order in range(orders):
        steps = ["opened", "paid", *([more] if more and order % every == 0 else []), "closed"]
        found += [f"{BEGIN_S + order * apart_s} order={order} {step}" for step in steps]
    return found


def read(settings: Settings, path: Path, most_templates: int = 100, most_events: int = 10_000) -> RecentTraffic:
    files = open_inputs(settings, [path])
    return read_recent_traffic(settings, files, KNOWN, most_templates=most_templates, most_events=most_events)


def test_new_templates_are_learnt_from_lines_that_have_none_and_the_known_ones_stay(
    settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "app.log.gz"
    log.write_bytes(gzip.compress("\n".join(lines(200, "was rerouted by warehouse", every=4)).encode()))
    found = read(settings, log)
    assert found.vocabulary.only_adds_to(KNOWN)
    [new] = found.vocabulary.templates[len(KNOWN.templates) :]
    assert "rerouted by warehouse" in new
    assert len(found.sessions) == 200
    assert found.share == 1
    tokens = {
        key: events.tolist() for key, events in zip(found.sessions.keys or (), found.sessions.sequences, strict=True)
    }
    assert tokens["order=0"] == [3, 4, 6, 5]
    assert tokens["order=1"] == [3, 4, 5]
    none = read(settings, log, most_templates=0)
    assert none.vocabulary == KNOWN
    assert all(min(events) > UNK for events in none.sessions.sequences if len(events) == 3)


def test_what_hardly_any_line_says_is_no_template(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("\n".join(lines(200, "was struck by lightning", every=200 // (LEAST_LINES - 1))) + "\n")
    assert read(settings, log).vocabulary == KNOWN


def test_each_session_has_the_day_on_which_it_began(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("\n".join(lines(48, apart_s=DAY_S // 16)) + "\n")
    days = read(settings, log).days
    assert days.tolist() == sorted(days.tolist())
    assert [(days == day).sum() for day in range(BEGIN_S // DAY_S, BEGIN_S // DAY_S + 3)] == [16, 16, 16]


def test_of_too_many_events_whole_keys_are_left_out(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("\n".join(lines(400)) + "\n")
    found = read(settings, log, most_events=300)
    assert found.share in (1 / 4, 1 / 8)
    assert 0 < found.sessions.lengths.sum() <= 300
    assert set(found.sessions.lengths.tolist()) == {3}


def test_of_records_of_a_topic_what_is_still_open_at_its_end_is_left_out(settings: Settings, tmp_path: Path) -> None:
    def records(name: str, texts: list[str]) -> Path:
        path = tmp_path / name
        places = [{"topic": "raw", "partition": 0, "offset": at, "value": text} for at, text in enumerate(texts)]
        path.write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in places))
        return path

    found = read(settings, records("day.records.jsonl", lines(30)))
    assert len(found.sessions) == 30 - 10  # those of the last ten minutes
    few = read(settings, records("minutes.records.jsonl", lines(5)))
    assert len(few.sessions) == 5


def test_nothing_to_learn_from_is_an_error(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("1714953600 no order\n")
    with pytest.raises(InputFileError, match="the input holds no session"):
        read(settings, log)
