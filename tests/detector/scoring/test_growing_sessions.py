"""Sessions that are scored as they grow get the scores that they get from their start, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch

from detector.checkpoint import Checkpoint
from detector.scoring.families import Families
from detector.scoring.judge import Judge
from detector.scoring.learning import learn
from detector.scoring.scorer import Scorer
from detector.scoring.scores import LONG, Growth, Scores, Sequences
from detector.scoring.verdict_weights import VerdictWeights
from detector.text.vocabulary import UNK
from tests.detector.small_models import VOCABULARY, random_checkpoint

UNKNOWN_LINE = VOCABULARY.sketch("Receiving replica <*> from <*>")
# The fourth template is rare, of the fifth no session has many; both are to be met with seldom.
TOKENS = [*[3, 4, 5] * 20, 6, 7, 7, UNK, UNKNOWN_LINE]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return random_checkpoint(tmp_path_factory.mktemp("growing") / "model")


def with_judge(checkpoint: Checkpoint) -> Checkpoint:
    random = Random(1)
    sessions = [
        np.array([3, *[4, 5] * random.randint(20, 60), *[7] * random.randint(1, 3), *([6] if row % 200 == 0 else [])])
        for row in range(1_000)
    ]
    families = Families(()).judged("+6", "normal", "2026-02-03")
    return replace(checkpoint, judge=Judge(learn(sessions, np.ones(len(sessions), np.int64)), families))


def with_verdicts(checkpoint: Checkpoint) -> Checkpoint:
    """Also with verdicts on single sessions."""
    checkpoint, random = with_judge(checkpoint), Random(2)
    judged, usual = ([np.array(random.choices(TOKENS, k=40)) for _ in range(20)] for _ in range(2))
    wrong = np.array([(each == 7).sum() > 1 or each[-1] == 4 for each in judged])
    ones = np.ones(len(judged))
    weights = VerdictWeights.fit(judged, wrong, ones, 0.8 * ones, (usual, ones, 0.4 * ones))
    return replace(checkpoint, verdict_weights=weights)


MADE: dict[str, Callable[[Checkpoint], Checkpoint]] = {
    "by its training": lambda checkpoint: checkpoint,
    "by tolerances": with_judge,
    "by tolerances and verdicts on sessions": with_verdicts,
}
all_kinds = pytest.mark.parametrize("made", MADE)


class Session:
    """A session, and how far it has got."""

    def __init__(self, number: int, events: Sequence[int]) -> None:
        self.number = number
        self.events = np.array(events, np.int64)
        self.upto = 0

    def takes(self, more: int) -> None:
        self.upto = min(len(self.events), self.upto + more)

    @property
    def so_far(self) -> np.ndarray:
        return self.events[: self.upto]


def random_sessions(count: int, seed: int, lengths: Sequence[int] = (20, 60, 100, 180)) -> list[Session]:
    random = Random(seed)
    return [Session(1 + at, random.choices(TOKENS, k=random.choice(lengths))) for at in range(count)]


def sequences(parts: Sequence[np.ndarray]) -> Sequences:
    return Sequences.of([part.tobytes() for part in parts])


def go_on(scorer: Scorer, sessions: Sequence[Session], before: Sequence[int], whole: bool = False) -> list[bytes]:
    """Scores of the new events of sessions that had so many before, given no more than is needed unless `whole`."""
    numbers = np.array([each.number for each in sessions])
    known = scorer.known_events(numbers)
    begins = np.where((known == before) & (not whole), before, 0)
    parts = [each.so_far[begin:] for each, begin in zip(sessions, begins, strict=True)]
    growth = Growth(numbers, begins, sequences(parts))
    scores = np.split(scorer.go_on(growth), growth.sequences.ends[:-1])
    late = zip(scores, before, begins, strict=True)
    return [own[upto - begin :].tobytes() for own, upto, begin in late]


def from_start(scorer: Scorer, sessions: Sequence[Session]) -> Scores:
    return scorer.score_columns(sequences([each.so_far for each in sessions]), len(sessions))


@all_kinds
@pytest.mark.parametrize("room", [0, 3, 100])
def test_early_scores_are_those_from_the_start_in_any_pieces(checkpoint: Checkpoint, made: str, room: int) -> None:
    checkpoint = MADE[made](checkpoint)
    scorer, other = (Scorer(checkpoint, device="cpu", cache_size=0, growing=each) for each in (room, 0))
    random, sessions = Random(room), random_sessions(9, seed=1)
    told = set()
    for _ in range(40):
        some = random.sample(sessions, random.randint(1, 4))
        before = [each.upto for each in some]
        for each in some:
            each.takes(random.choice([0, 1, 1, 2, 20, 33]))
        right = from_start(other, some)
        expected = [scores.scores[upto:].tobytes() for scores, upto in zip(right, before, strict=True)]
        assert go_on(scorer, some, before, whole=random.random() < 0.1) == expected
        told.update(score for scores in right for score in scores.scores[-1:].tolist())
    assert len(told) > 5
    if made == "by tolerances":
        assert min(told) < 0.7 <= max(told)


@all_kinds
def test_what_has_grown_needs_only_its_rest_when_it_is_complete_or_asked_for_as_a_whole(
    checkpoint: Checkpoint, made: str
) -> None:
    checkpoint = MADE[made](checkpoint)
    scorer, other = (Scorer(checkpoint, device="cpu", growing=each) for each in (100, 0))
    sessions = random_sessions(6, seed=2, lengths=(60, 100, 180))
    for each in sessions:
        each.takes(70)
    go_on(scorer, sessions, [0] * len(sessions))
    for each in sessions[:4]:
        each.takes(1)
    measured, numbers = scorer.events_scored, np.array([each.number for each in sessions])
    twin = sessions[0].so_far  # another session of the same events, which nobody has scored
    asked = sequences([*(each.so_far for each in sessions), twin])
    results = scorer.score_columns(asked, 3, numbers=np.append(numbers, 0))
    assert scorer.events_scored == measured + sum(each.upto == 71 for each in sessions)
    right = other.score_columns(asked, 3)
    for scores, expected in zip(results, right, strict=True):
        assert scores.surprises.tobytes() == expected.surprises.tobytes()
        assert scores.scores.tobytes() == expected.scores.tobytes()
    assert results.finals[:3].tolist() == right.finals[:3].tolist()
    assert scorer.known_events(numbers).tolist() == [0, 0, 0, *(each.upto for each in sessions[3:])]


@all_kinds
@pytest.mark.parametrize("room", [2, 100])
def test_short_sessions_are_scored_from_where_they_were_too_and_the_same(
    checkpoint: Checkpoint, made: str, room: int
) -> None:
    """Event by event as a pipeline asks: up to `LONG` events as a whole, also of sequences that others have."""
    checkpoint = MADE[made](checkpoint)
    scorer, other = (Scorer(checkpoint, device="cpu", cache_size=40 * bool(each), growing=each) for each in (room, 0))
    random, sessions = Random(3), random_sessions(8, seed=3, lengths=(30, 50, LONG + 20))
    for number in (0, 1):  # the same events in two sessions
        sessions[number].events = sessions[2].events
    while left := [each for each in sessions if each.upto < len(each.events)]:
        some = random.sample(left, random.randint(1, len(left)))
        before = [each.upto for each in some]
        for each in some:
            each.takes(random.choice([1, 1, 2, 20]))
        long = [at for at, each in enumerate(some) if len(each.so_far) > LONG and each.upto < len(each.events)]
        if long:
            right = from_start(other, [some[at] for at in long])
            expected = [scores.scores[before[at] :].tobytes() for scores, at in zip(right, long, strict=True)]
            assert go_on(scorer, [some[at] for at in long], [before[at] for at in long]) == expected
        some.sort(key=lambda each: each.upto < len(each.events))
        complete = sum(each.upto == len(each.events) for each in some)
        asked, numbers = sequences([each.so_far for each in some]), np.array([each.number for each in some])
        results, right = scorer.score_columns(asked, complete, numbers=numbers), other.score_columns(asked, complete)
        assert results.surprises.tobytes() == right.surprises.tobytes()
        assert results.scores.tobytes() == right.scores.tobytes()
        assert results.finals[:complete].tolist() == right.finals[:complete].tolist()
    assert not scorer.known_events(np.array([each.number for each in sessions])).any()


@all_kinds
@pytest.mark.parametrize("room", [0, 1, 100])
def test_the_end_is_looked_at_of_sessions_that_close_without_another_event(
    checkpoint: Checkpoint, made: str, room: int
) -> None:
    """Also where the same events were scored before of a session that went on, or are of one that does."""
    checkpoint = MADE[made](checkpoint)
    scorer, other = (Scorer(checkpoint, device="cpu", growing=each) for each in (room, 0))
    sessions = random_sessions(5, seed=5, lengths=(40, 60, 100))
    twins = [Session(100 + each.number, each.events) for each in sessions]
    for each in (*sessions, *twins):
        each.takes(len(each.events) - 1)

    def check(closing: Sequence[Session], going_on: Sequence[Session]) -> None:
        some = [*closing, *going_on]
        asked, numbers = sequences([each.so_far for each in some]), np.array([each.number for each in some])
        results = scorer.score_columns(asked, len(closing), numbers=numbers)
        right = other.score_columns(asked, len(closing))
        assert results.scores.tobytes() == right.scores.tobytes()
        assert results.finals[: len(closing)].tolist() == right.finals[: len(closing)].tolist()

    check([], sessions)
    for each in (*sessions, *twins):
        each.takes(1)
    check([], sessions[:4])
    check([sessions[0], twins[1], sessions[4]], [twins[0], sessions[1], twins[4]])
    check([sessions[1], sessions[2], twins[0], twins[3]], [twins[2]])
    check([sessions[3], twins[2], twins[4]], [])


def test_of_a_short_session_only_new_events_are_looked_at_once_it_has_a_state(checkpoint: Checkpoint) -> None:
    scorer = Scorer(checkpoint, device="cpu", cache_size=0)
    session, looked_at = Session(1, Random(0).choices(TOKENS, k=100)), []
    for _ in range(100):
        session.takes(1)
        scored = scorer.events_scored
        scorer.score_columns(sequences([session.so_far]), 0, numbers=np.array([1]))
        looked_at.append(scorer.events_scored - scored)
    assert looked_at == [*range(1, 33), *[1] * 68]


def test_short_sessions_take_no_slot_of_a_long_one_but_make_room_for_it(checkpoint: Checkpoint) -> None:
    scorer = Scorer(checkpoint, device="cpu", cache_size=0, growing=16)
    sessions = [Session(1 + at, Random(at).choices(TOKENS, k=40 if at else 200)) for at in range(40)]
    numbers = np.array([each.number for each in sessions])
    for each in sessions:
        each.takes(1_000)

    def known() -> list[bool]:
        return (scorer.known_events(numbers) > 0).tolist()

    go_on(scorer, sessions[:1], [0])
    for _ in range(3):
        for each in sessions[1:]:
            scorer.score_columns(sequences([each.so_far]), 0, numbers=np.array([each.number]))
    assert known()[0]
    assert sum(known()) == 16
    later = [Session(100 + at, sessions[0].events) for at in range(15)]
    for each in later:
        each.takes(1_000)
        go_on(scorer, [each], [0])
    assert known() == [True] + [False] * 39


def test_what_was_measured_when_a_call_ends_early_is_not_gone_on_from_wrongly(checkpoint: Checkpoint) -> None:
    scorer, other = (Scorer(checkpoint, device="cpu", batch_tokens=100, growing=each) for each in (100, 0))
    sessions = [Session(1 + at, Random(at).choices(TOKENS, k=100)) for at in range(4)]
    numbers = np.array([each.number for each in sessions])
    for each in sessions:
        each.takes(70)
    go_on(scorer, sessions, [0] * 4)
    for each in sessions:
        each.takes(29)

    def stop() -> None:
        raise InterruptedError

    growth = Growth(numbers, np.full(4, 70), sequences([each.so_far[70:] for each in sessions]))
    with pytest.raises(InterruptedError):
        scorer.go_on(growth, stop)
    assert set(scorer.known_events(numbers).tolist()) == {0, 99}
    for each in sessions:
        each.takes(1)
    expected = [scores.scores[99:].tobytes() for scores in from_start(other, sessions)]
    assert go_on(scorer, sessions, [99] * 4) == expected


def test_events_that_are_missing_are_not_guessed(checkpoint: Checkpoint) -> None:
    scorer = Scorer(checkpoint, device="cpu")
    with pytest.raises(ValueError, match="events before those given are not known"):
        scorer.go_on(Growth(np.array([5]), np.array([1]), sequences([np.array([3])])))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_a_gpu_scores_are_those_from_the_start(checkpoint: Checkpoint, precision: str) -> None:
    scorer, other = (
        Scorer(checkpoint, device="cuda", precision=precision, cache_size=0, growing=each)  # type: ignore[arg-type]
        for each in (40, 0)
    )
    random = Random(4)
    sessions = [Session(1 + at, random.choices(TOKENS, k=2_000)) for at in range(60)]
    for turn in range(60):
        some = random.sample(sessions, random.choice([1, 3, 30]))
        before = [each.upto for each in some]
        for each in some:
            each.takes(random.choice([1, 1, 1, 2, 50, 129]))
        right = from_start(other, some)
        expected = [scores.scores[upto:].tobytes() for scores, upto in zip(right, before, strict=True)]
        assert go_on(scorer, some, before) == expected, turn
    numbers = np.array([each.number for each in sessions])
    results = scorer.score_columns(sequences([each.so_far for each in sessions]), len(sessions), numbers=numbers)
    right = from_start(other, sessions)
    assert results.finals.tolist() == right.finals.tolist()
    assert results.surprises.tobytes() == right.surprises.tobytes()
