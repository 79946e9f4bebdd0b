"""A line in other words has the token of its template; what says something else stays unknown."""

from __future__ import annotations

import pyarrow as pa
import pytest

from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import N_SPECIAL, UNK, Vocabulary

VOCABULARY = Vocabulary(
    (
        "<time> INFO node.Receiver: Receiving block blk_<num> src: <ip> dest: <ip>",
        "<time> INFO node.Responder: Responder <num> for block blk_<num> terminating",
        "<time> WARN node.Receiver: Got exception while serving blk_<num> to <path>",
        "<time> INFO auth: user root opened the session of the shop",
        "<time> INFO auth: user root closed the session of the shop",
        "<time> GET page of the web shop answered 200 in <num> ms",
        "<time> red lamp of hall shines",
        "<time> red lamp of yard shines",
        "<time> INFO till: <*> <*> basket",
        "<time> INFO node.Receiver: Forwarded spare block blk_<num> to <ip>",
        "<time> INFO mixer: getVolume of the left speaker gave <num>",
        "<time> INFO pump: pressure of the main pipe is <num>, its flow is <num>",
        "<time> INFO door: badge shown at=<num>",
        "<time> INFO door: badge shown at=<num> holder=<*>",
        "<time> INFO link: went from up to down after <num> ms",
        "<time> INFO robot: arm moves along x by <num> steps",
        "<time> INFO robot: left gripper isRegion<num>",
    )
)
(
    RECEIVING,
    TERMINATING,
    SERVING,
    OPENED,
    CLOSED,
    ANSWERED,
    HALL,
    YARD,
    BASKET,
    FORWARDED,
    VOLUME,
    PRESSURE,
    BADGE,
    HOLDER,
    WENT,
    ALONG_X,
    REGION,
) = range(N_SPECIAL, len(VOCABULARY))


def token(line: str, vocabulary: Vocabulary = VOCABULARY) -> int:
    [found] = Tokenizer(vocabulary).encode(pa.array([f"10:00:00 {line}"])).tolist()
    return int(found)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("INFO node.Receiver: Receiving the block blk_7 src: 10.0.0.1 dest: 10.0.0.2", RECEIVING),
        ("INFO node.Receiver: Receiving blk_7 src: 10.0.0.1 dest: 10.0.0.2", RECEIVING),
        ("INFO node.Receiver: Receiving chunk blk_7 src: 10.0.0.1 dest: 10.0.0.2", RECEIVING),
        ("INFO node.Receiver: src: 10.0.0.1 dest: 10.0.0.2 Receiving block blk_7", RECEIVING),
        ("INFO node.Responder: of block blk_7 Responder 1 now terminating", TERMINATING),
        ("WARN node.Receiver: Got exception while delivering blk_7 to /a/b", SERVING),
        # What never changed before is new: a user, another part of the program.
        ("INFO auth: user alice opened the session of the shop", OPENED),
        ("INFO auth: user alice closed the session of the shop", CLOSED),
        ("INFO auth: user root opened the session of the forum", OPENED),
        # Values stand for words that are no others.
        ("INFO till: new small blue basket", BASKET),
        # A line that only leaves words out needs fewer of them.
        ("INFO node.Receiver: block blk_7 to 10.0.0.1", FORWARDED),
        ("INFO mixer: getVolume of the left loudspeaker gave 7", VOLUME),
        ("INFO pump: pressure of main pipe is 7, flow is 9", PRESSURE),
        ("INFO pump: pressure of main pipe is 7, its flow is steady", PRESSURE),
        ("INFO door: the badge shown at=7", BADGE),
        ("INFO door: the badge shown at=7 holder=alice", HOLDER),
        ("INFO door: the badge shown holder=alice at=7", HOLDER),
        ("INFO link: it went from up to down after 7 ms", WENT),
        ("INFO robot: the arm moves along x by 7 steps", ALONG_X),
        # A value in the place of a word says no more than the word.
        ("INFO auth: user 10.0.0.7 opened the session of the shop", OPENED),
    ],
)
def test_a_line_in_other_words_has_the_token_of_its_template(line: str, expected: int) -> None:
    assert Vocabulary(VOCABULARY.templates).token_of(f"10:00:00 {line}") is None  # no template matches it
    assert token(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        "ERROR node.Receiver: Receiving block blk_7 src: 10.0.0.1 dest: 10.0.0.2",  # another severity
        "INFO node.Responder: Responder 1 for block blk_7 interrupted",
        "INFO node.Responder: Responder 1 for block blk_7 not terminating",
        "INFO node.Receiver: Receiving block blk_7 src: 10.0.0.1 dest: 10.0.0.2 java.io.IOException",
        "WARN node.Receiver: Got stuck while serving blk_7 to /a/b",
        "INFO auth: user root resumed the session of the shop",
        "INFO node.Cleaner: disk of rack sda swept",
        "GET page of web shop answered 503 in 7 ms",  # a code may be anywhere in it
        "red lamp shines",  # in the hall, or in the yard?
        "INFO till: some note on paper lies here",
        "INFO node.Receiver: spare piece blk_7 to 10.0.0.1",  # more than words left out
        "INFO mixer: getBalance of the left speaker gave 7",
        "INFO pump: pressure of the main pipe is 7",  # and the flow?
        "INFO door: badge shown at=7 holder=alice room=9",
        "INFO link: it went from down to up after 7 ms",
        "INFO robot: arm moves along y by 7 steps",
        "INFO robot: arm moves along x by 7 steps, within 9 s",  # says how long, too
        "INFO robot: left gripper getMode",
        "INFO",
    ],
)
def test_what_says_something_else_stays_unknown(line: str) -> None:
    assert token(line) <= UNK


def test_where_unknown_lines_are_all_alike_none_is_like_a_template() -> None:
    line = pa.array(["10:00:00 INFO auth: user alice opened the session of the shop"])
    assert Tokenizer(VOCABULARY, unknown="unk").encode(line).tolist() == [UNK]


def test_a_line_is_like_templates_that_were_added_too() -> None:
    merged = VOCABULARY.merged(Vocabulary(("<time> INFO auth: user alice opened the session of the shop",)))
    assert token("INFO auth: user alice opened the session of the big shop", merged) == len(VOCABULARY)
