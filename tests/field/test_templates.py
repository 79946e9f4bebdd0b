"""Templates of other people's logs: what varies without end is a value, what tells events apart is not."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pyarrow as pa
import pytest

from detector.text.mining import learn_vocabulary
from detector.text.tokenizer import Tokenizer
from detector.text.vocabulary import UNK, Vocabulary

PEOPLE = [
    "ada",
    "brook",
    "cyrus",
    "dilan",
    "elif",
    "farah",
    "goran",
    "hana",
    "ivo",
    "jun",
    "kofi",
    "lena",
    "mei",
    "noor",
]
THINGS = ["kettle", "stool", "rug", "vase", "clock", "shelf", "mirror", "pan", "tray", "bench", "hook", "bowl"]


def learnt(lines: Sequence[str]) -> Vocabulary:
    return learn_vocabulary([pa.array(lines, pa.string())])


def tokens(vocabulary: Vocabulary, lines: Sequence[str]) -> list[int]:
    return Tokenizer(vocabulary).encode(pa.array(lines, pa.string())).tolist()


def syslog(host: str, minute: int) -> list[str]:
    steps = ("task opened by planner", "input checked for gaps", "sums written to disk", "task done")
    return [
        f"Feb {1 + minute // 60:2} 07:{minute % 60:02}:{second:02} {host} planner[{minute}]: plan {minute}: {step}"
        for second, step in enumerate(steps)
    ]


@pytest.mark.parametrize("hosts", [["north"], ["north", "east", "south"]])
def test_a_new_host_is_nothing_new(hosts: list[str]) -> None:
    vocabulary = learnt([line for minute in range(90) for line in syslog(hosts[minute % len(hosts)], minute)])
    assert len(vocabulary.templates) == 4
    assert tokens(vocabulary, syslog("west-2.example", 30)) == [3, 4, 5, 6]


def request(randomness: random.Random, status: int, user: str = "-", agent: str = "Opera/9.8") -> str:
    path = "/".join(randomness.choices(THINGS, k=randomness.randint(1, 4)))
    return (
        f"10.9.{randomness.randrange(250)}.{randomness.randrange(250)} - {user} [02/Feb/2024:07:00:01 +0000] "
        f'"GET /{path}?n={randomness.randrange(99)} HTTP/1.1" {status} {randomness.randrange(100, 9000)} "-" "{agent}"'
    )


def test_an_access_log_has_an_event_for_each_status_whatever_the_path_and_the_user() -> None:
    r = random.Random(5)
    lines = [request(r, r.choice((200, 200, 200, 301, 404)), r.choice(("-", *PEOPLE))) for _ in range(600)]
    vocabulary = learnt(lines)
    assert len(vocabulary.templates) == 3
    ok, moved, lost = (tokens(vocabulary, [request(r, status, "zoe", "Links (2.8)")]) for status in (200, 301, 404))
    assert len({*ok, *moved, *lost}) == 3
    assert min(*ok, *moved, *lost) > UNK
    for status in (500, 503, 201):
        assert tokens(vocabulary, [request(r, status)])[0] <= UNK, "a status that the training did not have"
    assert [vocabulary.text(token).split()[8] for token in (*ok, *moved, *lost)] == ["200", "301", "404"]


def test_numbers_that_are_many_or_seldom_are_no_codes() -> None:
    sizes = [f"sent {100 + n % 400} bytes" for n in range(2000)]
    assert learnt(sizes).templates == ("sent <num> bytes",)
    mostly = [f"waited {n} turns for the till" for n in [*(200, 404) * 30, 7, 1200]]
    assert learnt(mostly).templates == ("waited <num> turns for the till",)
    seldom = [f"sent {code} to the till" for code in (200, 404, 200)]
    assert learnt(seldom).templates == ("sent <num> to the till",)


@pytest.mark.parametrize(
    "line",
    [
        "Feb  2 07:00:01 gate sshd[77]: Failed password for invalid user {} from 10.1.2.3 port 99 ssh2",
        "{} signed in at the front desk",
        "2024-02-02 07:00:01 [pool-1-thread-9] WARN Removed the file /srv/{}/list.txt of the archive",
        "ticket moved over to desk {} by the planner",
    ],
)
def test_names_are_values_although_they_hold_no_digit(line: str) -> None:
    vocabulary = learnt([line.format(name) for name in PEOPLE])
    assert len(vocabulary.templates) == 1
    assert tokens(vocabulary, [line.format("zoe")]) == [3]


LEVELS = {
    "klog": ["I0202 07:00:0{n}.1 7 run.go:5] cache swept", "W0202 07:00:0{n}.1 7 run.go:5] cache swept"],
    "logrus": ["INFO[000{n}] volume resized   part={n}", "ERRO[000{n}] volume resized   part={n}"],
    "colour": ["\x1b[32mINFO\x1b[0m volume {n} resized", "\x1b[31mERROR\x1b[0m volume {n} resized"],
    "coloured words": [
        "\x1b[2m07:00:0{n}\x1b[0m \x1b[32mjoined\x1b[0m",
        "\x1b[2m07:00:0{n}\x1b[0m \x1b[31mrefused\x1b[0m",
    ],
    "syslog": ["<30>Feb  2 07:00:0{n} gate app[{n}]: swept", "<27>Feb  2 07:00:0{n} gate app[{n}]: swept"],
    "word": ["07:00:0{n} INFO shop.Till - drawer counted", "07:00:0{n} ERROR shop.Till - drawer counted"],
    "state": ["07:00:0{n} node {n}: VM Started (event)", "07:00:0{n} node {n}: VM Paused (event)"],
    "direction": ["07:00:0{n} port {n} changed its state to up", "07:00:0{n} port {n} changed its state to down"],
    "Chinese": ["07:00:0{n} 用户 {n} 登录 成功", "07:00:0{n} 用户 {n} 登录 失败"],
    "compact JSON": ['{{"t":{n},"lvl":"info","msg":"swept"}}', '{{"t":{n},"lvl":"error","msg":"swept"}}'],
    "CSV": ["2024-02-02,7{n},door,open,ok", "2024-02-02,7{n},door,shut,bad"],
}


@pytest.mark.parametrize("kind", LEVELS)
def test_what_tells_events_apart_stays(kind: str) -> None:
    pair = LEVELS[kind]
    lines = [line.format(n=n) for n in range(10) for line in pair]
    vocabulary = learnt(lines)
    assert tokens(vocabulary, lines) == [3, 4] * 10
    assert not any("\x1b" in template for template in vocabulary.templates)
