"""Settings and checkpoint that are read again beside a worker: what is taken, what is refused, and what says so."""

from __future__ import annotations

import gc
import re
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import structlog

from detector.checkpoint import MODEL_FILE, VOCABULARY_FILE
from detector.text.vocabulary import Vocabulary
from tests.detector.small_models import VOCABULARY, save_random
from tests.worker.delivery.test_feedback import ODD_ONES, say
from tests.worker.small_worker import FEEDBACK
from worker.commands.reload import Reload
from worker.delivery.feedback_topic import FeedbackTopic
from worker.delivery.memory import MemoryBroker
from worker.errors import RunError, SnapshotError
from worker.observability.metrics import Metrics
from worker.processing.fit import reading_record
from worker.processing.pipeline import Pipeline
from worker.processing.records import Partition, Records
from worker.processing.score_records import Serialize
from worker.processing.scorer import checkpoint_stamp, load_scorer
from worker.settings.document import Settings, load_settings

Found = TypeVar("Found")
RULES = (r"sessions.key={regex: '^\w+'}", "sessions.end_events=[Verification succeeded for block]")


def put(place: Path, *overrides: str, seed: int, vocabulary: Vocabulary = VOCABULARY) -> str:
    """A checkpoint of these sessions."""
    reading = reading_record(load_settings(None, [*RULES, *overrides]), times=True)
    return save_random(place, vocabulary, seed=seed, reading=reading)


class Reloading:
    """A reload, without its worker; its settings are those of `overrides` when they are read again."""

    def __init__(self, place: Path, look_every_s: float, feedback: FeedbackTopic | None = None) -> None:
        self.overrides = [*RULES, f"model.checkpoint={place}", "model.device=cpu", "output.top_events=7"]
        self.metrics = Metrics()
        self.settings = self.read()
        self.reload = Reload(self.settings, self.read, look_every_s, feedback_every_s=0.01)
        self.feedback = feedback
        self.running = load_scorer(self.settings).checkpoint

    def read(self) -> Settings:
        return load_settings(None, self.overrides)

    def ended(self, result: str) -> float | None:
        return self.metrics.registry.get_sample_value("logmamba_reloads_total", {"result": result})

    def pipeline(self) -> Pipeline:
        """The next one that is due."""
        found = wait_for(self.reload.due)
        self.reload.taken(0.0)
        return found

    def refusal(self) -> str:
        """Why the next one is refused."""
        wait_for(lambda: self.reload.due() or self.ended("refused"))
        assert self.reload.due() is None
        assert self.reload.latest is not None
        return self.reload.latest.reason or ""


@contextmanager
def reloading(
    place: Path,
    look_every_s: float = 3600.0,
    serialize: Serialize | None = None,
    feedback: FeedbackTopic | None = None,
) -> Iterator[Reloading]:
    made = Reloading(place, look_every_s, feedback)
    stamp = checkpoint_stamp(made.settings)
    with made.reload.watching(load_scorer(made.settings), stamp, made.metrics, serialize, feedback):
        yield made


def wait_for(look: Callable[[], Found | None]) -> Found:
    deadline = time.monotonic() + 150
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_a_checkpoint_that_takes_the_place_of_the_one_before_is_noticed(tmp_path: Path) -> None:
    put(tmp_path / "model", seed=1)
    with reloading(tmp_path / "model", look_every_s=0.02) as made:
        digest = put(tmp_path / "model", seed=2)
        wait_for(made.reload.due)
        waits = made.reload.latest
        assert waits is not None
        assert (waits.result, waits.checkpoint) == ("waiting", digest), "it is the loop that takes it"
        assert made.pipeline().scorer.checkpoint == digest
        assert made.reload.latest is not None
        assert (made.reload.latest.result, made.reload.latest.checkpoint) == ("taken", digest)
        assert made.ended("taken") == 1
        again = put(tmp_path / "model", seed=1)
        assert made.pipeline().scorer.checkpoint == again == made.running
        assert (made.ended("taken"), made.ended("refused")) == (2, 0)


def test_asked_for_another_directory_and_thresholds_it_takes_them_and_keeps_what_needs_a_restart(
    tmp_path: Path,
) -> None:
    put(tmp_path / "old", seed=1)
    digest = put(tmp_path / "new", seed=2)
    with structlog.testing.capture_logs() as log, reloading(tmp_path / "old") as made:
        made.overrides += [f"model.checkpoint={tmp_path / 'new'}", "scoring.warning=0.6", "output.top_events=2"]
        made.overrides += ["kafka={bootstrap.servers: 'elsewhere:9092', client.id: me}", "alert.group_wait=9s"]
        made.reload.ask()
        pipeline = made.pipeline()
        assert pipeline.scorer.checkpoint == digest
        assert pipeline._outputs.fixed.warning == 0.6
        made.reload.ask()
        wait_for(lambda: made.reload.due() or made.ended("taken") == 2)
        assert made.reload.due() is None, "nothing differs from what holds now"
    for told in [each for each in log if each["event"] == "settings_need_restart"]:
        assert told["kept"] == {
            "kafka.bootstrap.servers": "localhost:9092",
            "kafka.client.id": None,
            "output.top_events": 7,
        }
    [taken] = [each for each in log if each["event"] == "reload_taken"]
    assert (taken["checkpoint"], taken["scoring"]["warning"]) == (digest, 0.6)


def test_records_are_written_in_the_format_of_those_before(tmp_path: Path) -> None:
    put(tmp_path / "model", seed=1)
    with reloading(tmp_path / "model", serialize=lambda record: record["session"].encode()) as made:
        put(tmp_path / "model", seed=2)
        made.reload.ask()
        pipeline = made.pipeline()
    partition = Partition("raw-logs", 0)
    pipeline.open(partition)
    assert pipeline.process([Records(*partition, [0], [b"a read"], None, [1], None)]) == []
    assert [each.value for each in pipeline.flush(partition, 1, "end_of_input")] == [b"a"]


def flip(place: Path) -> None:
    weights = bytearray((place / MODEL_FILE).read_bytes())
    weights[len(weights) // 2] ^= 1
    (place / MODEL_FILE).write_bytes(weights)


def test_nothing_holds_on_to_the_checkpoint_before(tmp_path: Path) -> None:
    put(tmp_path / "model", seed=1)
    made = Reloading(tmp_path / "model", 3600.0)
    scorer = load_scorer(made.settings)
    old = weakref.ref(scorer)
    with made.reload.watching(scorer, checkpoint_stamp(made.settings), made.metrics, None):
        del scorer
        put(tmp_path / "model", seed=2)
        made.reload.ask()
        made.pipeline()
        gc.collect()
        assert old() is None


def damaged(place: Path) -> str:
    put(place, seed=2)
    flip(place)
    return "model.safetensors is sha256:.*: it is damaged or belongs to another training$"


def not_there(place: Path) -> str:
    return f"model.checkpoint: no checkpoint at {place}: no such directory$"


def of_another_training(place: Path) -> str:
    put(place, seed=2)
    other = Vocabulary(VOCABULARY.templates[:3])
    (place / VOCABULARY_FILE).write_bytes(other.to_json())
    return "vocabulary.json is sha256:.*: it is damaged or belongs to another training$"


def of_other_sessions(place: Path) -> str:
    put(place, "sessions.gap=7m", seed=2)
    return "sessions.gap: 10m, but the checkpoint was trained with 7m, which shifts scores$"


def of_another_key(place: Path) -> str:
    put(place, "sessions.key=record_key", seed=2)
    return r"sessions.key: .* is another kind of key than the checkpoint was trained with"


def of_other_lines(place: Path) -> str:
    put(place, "input.format=json", "input.message=/text", "sessions.key={pointer: /id}", seed=2)
    return "is another kind of key.*"


def without_the_end_event(place: Path) -> str:
    put(place, seed=2, vocabulary=Vocabulary(VOCABULARY.templates[:4]))
    return r"sessions.end_events\[0\]: 'Verification succeeded for block' is no template of the checkpoint"


@pytest.mark.parametrize(
    "bad",
    [
        *(damaged, not_there, of_another_training, of_other_sessions),
        *(of_another_key, of_other_lines, without_the_end_event),
    ],
)
def test_a_checkpoint_that_cannot_take_over_is_refused_in_one_line_and_a_later_one_that_can_is_taken(
    tmp_path: Path, bad: Callable[[Path], str]
) -> None:
    put(tmp_path / "old", seed=1)
    reason = bad(tmp_path / "new")
    with structlog.testing.capture_logs() as log, reloading(tmp_path / "old") as made:
        made.overrides.append(f"model.checkpoint={tmp_path / 'new'}")
        made.reload.ask()
        refusal = made.refusal()
        assert re.search(reason, refusal), refusal
        [told] = [each for each in log if each["event"] == "reload_refused"]
        assert (told["reason"], told["kept"], told["log_level"]) == (refusal, made.running, "error")
        assert "\n" not in refusal
        digest = put(tmp_path / "new", seed=3)
        made.reload.ask()
        assert made.pipeline().scorer.checkpoint == digest


def test_one_that_was_noticed_and_refused_is_told_once_until_its_files_change(tmp_path: Path) -> None:
    put(tmp_path / "model", seed=1)
    with structlog.testing.capture_logs() as log, reloading(tmp_path / "model", look_every_s=0.02) as made:
        flip(tmp_path / "model")
        assert "damaged" in made.refusal()
        digest = put(tmp_path / "model", seed=2)
        assert made.pipeline().scorer.checkpoint == digest
    assert [each["event"] for each in log if each["event"].startswith("reload_")] == ["reload_refused", "reload_taken"]


def test_settings_that_are_wrong_are_refused_as_a_whole(tmp_path: Path) -> None:
    put(tmp_path / "model", seed=1)
    with structlog.testing.capture_logs() as log, reloading(tmp_path / "model") as made:
        made.overrides += ["scoring.warning=2", "observability.log_level=loud"]
        made.reload.ask()
        assert made.refusal().startswith("--set scoring.warning")
    [told] = [each for each in log if each["event"] == "settings_refused"]
    assert len(told["errors"]) == 2


class Brokers(MemoryBroker):
    """Which can be away."""

    away = False

    def partitions(self, topic: str) -> list[int]:
        if self.away:
            raise RunError("nobody is there")
        return super().partitions(topic)


def test_verdicts_are_offered_as_they_come_with_whatever_checkpoint_is_due_then(tmp_path: Path) -> None:
    put(tmp_path / "old", seed=1)
    digest = put(tmp_path / "new", seed=2)
    brokers = Brokers({FEEDBACK: 1})
    say(brokers, ODD_ONES[0], "normal")
    topic = FeedbackTopic(FEEDBACK, brokers)
    topic.look()
    with structlog.testing.capture_logs() as log, reloading(tmp_path / "old", feedback=topic) as made:
        patterns = made.metrics.registry.get_sample_value
        assert patterns("logmamba_judged_patterns", {"verdict": "normal"}) == 1
        assert made.reload.due() is None, "the worker began with these"
        say(brokers, ODD_ONES[1], "anomalous")
        pipeline = made.pipeline()
        assert pipeline.scorer.checkpoint == made.running
        assert pipeline.feedback_version == 2
        assert patterns("logmamba_judged_patterns", {"verdict": "anomalous"}) == 1
        assert made.ended("taken") == 0, "nothing was reloaded"

        made.overrides.append(f"model.checkpoint={tmp_path / 'new'}")
        made.reload.ask()
        wait_for(made.reload.due)
        say(brokers, ODD_ONES[1], None)
        wait_for(lambda: (due := made.reload.due()) is not None and due.feedback_version == 3)
        pipeline = made.pipeline()
        assert (pipeline.scorer.checkpoint, pipeline.feedback_version) == (digest, 3)
        assert made.ended("taken") == 1

        brokers.away = True
        wait_for(lambda: [each for each in log if each["event"] == "feedback_unread"])
        assert made.reload.due() is None, "what is known holds"
        say(brokers, ODD_ONES[2], "normal")
        brokers.away = False
        assert made.pipeline().feedback_version == 4
    assert [each["version"] for each in log if each["event"] == "feedback_taken"] == [2, 3, 4]
    assert len([each for each in log if each["event"] == "feedback_unread"]) == 1


def test_a_reload_that_is_refused_when_it_is_taken_keeps_no_verdict_from_holding(tmp_path: Path) -> None:
    put(tmp_path / "old", seed=1)
    put(tmp_path / "new", seed=2)
    brokers = Brokers({FEEDBACK: 1})
    topic = FeedbackTopic(FEEDBACK, brokers)
    topic.look()
    with reloading(tmp_path / "old", feedback=topic) as made:
        made.overrides.append(f"model.checkpoint={tmp_path / 'new'}")
        made.reload.ask()
        wait_for(made.reload.due)
        say(brokers, ODD_ONES[0], "normal")
        wait_for(lambda: (due := made.reload.due()) is not None and due.feedback_version == 1)
        made.reload.refused(SnapshotError("its records are deleted"))
        pipeline = made.pipeline()
        assert (pipeline.scorer.checkpoint, pipeline.feedback_version) == (made.running, 1)
