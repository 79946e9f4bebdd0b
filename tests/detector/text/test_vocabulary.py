"""vocabulary.json: its bytes, what is refused, and the text of known and unknown lines."""

import hashlib

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.text import word_hashes as text
from detector.text.canonical import Mask, canonicalise, fold
from detector.text.lexicon import CALENDAR, DECISIVE, DECISIVE_MARKS, NOTHING, UNITS
from detector.text.vocabulary import BOS, EOS, N_SPECIAL, UNK, Seen, Vocabulary
from detector.text.words import words

DOWNLOADS = Vocabulary(
    (
        "<*> INFO Download of <*> started",
        "<*> INFO Download of <*> finished in <*> ms overall",
        "<*> ERROR Disk is full",
    ),
    masks=(Mask("[0-9a-f]{32}", "hash"),),
)


def test_json_there_and_back_is_the_same_vocabulary() -> None:
    again = Vocabulary.from_json(DOWNLOADS.to_json())
    assert again == DOWNLOADS
    assert again.to_json() == DOWNLOADS.to_json()
    assert again.sha256 == DOWNLOADS.sha256


def test_what_was_seen_of_templates_is_told_and_decides_nothing() -> None:
    seen = (Seen(lines=7, first=0, last=90, example="17:30 INFO Download of a.txt started"),)
    told = Vocabulary(DOWNLOADS.templates[:1], DOWNLOADS.masks, seen=seen)
    again = Vocabulary.from_json(told.to_json())
    assert again.seen == seen
    assert told.sha256 == DOWNLOADS.truncated(1).sha256
    first = orjson.loads(told.to_json())["templates"][0]
    assert first["id"] == N_SPECIAL
    assert first["decisive"] == {"INFO": "severity", "started": "state"}
    with pytest.raises(ValueError, match="knows of 1 templates what it saw, not of 3"):
        Vocabulary(DOWNLOADS.templates, seen=seen)


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), unique=True))
def test_any_event_names_survive_json_verbatim(names: list[str]) -> None:
    vocabulary = Vocabulary(tuple(names), kind="events")
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary
    assert [vocabulary.token_of(name) for name in names] == list(range(N_SPECIAL, len(vocabulary)))


def test_a_vocabulary_that_only_adds_templates_is_recognised_by_its_beginning() -> None:
    longer = Vocabulary((*DOWNLOADS.templates, "one more"), DOWNLOADS.masks)
    assert longer.truncated(3).sha256 == DOWNLOADS.sha256
    assert longer.sha256 != DOWNLOADS.sha256
    assert Vocabulary(DOWNLOADS.templates).sha256 != DOWNLOADS.sha256
    with pytest.raises(ValueError, match="has 4 templates, not 5"):
        longer.truncated(5)


def test_what_is_added_takes_no_line_from_an_older_template() -> None:
    older = Vocabulary(("<*> lamp glows", "answered 200 in <num>", "answered 404 in <num>"))
    newer = Vocabulary(("left lamp glows", "left lamp <*>", "answered 500 in <num>", "answered 404 in <num>"))
    merged = older.merged(newer)
    assert merged.templates == (*older.templates, "left lamp <*>", "answered 500 in <num>")
    assert merged.generations == (3, 2)
    assert Vocabulary.from_json(merged.to_json()) == merged
    assert merged.only_adds_to(older)
    assert not older.only_adds_to(merged)
    # By itself "left lamp <*>" is the more specific one: words are looked at from the left.
    assert Vocabulary(merged.templates).token_of("left lamp glows") == 6
    assert merged.token_of("left lamp glows") == 3
    assert merged.token_of("left lamp burns") == 6
    assert [merged.token_of(f"answered {code} in 7") for code in (200, 404, 500, 503)] == [4, 5, 7, None]
    again = merged.merged(Vocabulary(("door opened",)))
    assert again.generations == (3, 2, 1)
    assert again.truncated(4).generations == (3, 1)
    assert again.truncated(5) == merged
    assert again.truncated(3) == older


def test_what_is_added_changes_nothing_of_what_a_model_knows() -> None:
    merged = DOWNLOADS.merged(Vocabulary(("<*> ERROR Disk is gone", "<*> lamp off"), DOWNLOADS.masks))
    assert merged.learned == len(DOWNLOADS)
    assert np.array_equal(merged.template_features(), DOWNLOADS.template_features())
    gone = DOWNLOADS.sketch("0 ERROR Disk is gone")
    tokens = np.array([-17, BOS, UNK, 3, 5, 6, 7])
    assert merged.as_learned(tokens).tolist() == [-17, BOS, UNK, 3, 5, gone, UNK]
    assert DOWNLOADS.as_learned(tokens[:5]).tolist() == tokens[:5].tolist()
    assert merged.sketch("0 FATAL disk gone") == DOWNLOADS.sketch("0 FATAL disk gone")


def content(**changes: object) -> bytes:
    return orjson.dumps(orjson.loads(DOWNLOADS.to_json()) | changes)


def templates(*texts: object) -> bytes:
    return content(templates=[{"id": 3 + index, "text": text} for index, text in enumerate(texts)])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "does not have the schema"),
        (content(schema="logmamba.vocabulary/4"), "does not have the schema"),
        (content(schema="logmamba.vocabulary/1"), "cut otherwise than lines are now; train the checkpoint anew"),
        (content(schema="logmamba.vocabulary/2"), "cut otherwise than lines are now; train the checkpoint anew"),
        (content(more=1), "missing or unknown keys: more"),
        (content(kind="words"), "'words' is not one of lines, events"),
        (content(kind=None), "None is not one of lines, events"),
        (content(templates="a"), "not a list of objects"),
        (content(templates=["a"]), "not a list of objects"),
        (templates("a", 1), "template 4 has no text"),
        (templates("a", "b", "a"), "has the template 'a' twice"),
        (templates("a <*>", "a <num>"), "has the template 'a <num>' twice"),
        (templates("a 404 <num>", "a <num> 404"), "has the template 'a 404 <num>' twice"),
        (templates("a", ""), "template 1 is empty"),
        (templates("a  b"), "template 0 is not in canonical form"),
        (templates("block 7"), "template 0 is not in canonical form"),
        (content(templates=[{"id": 4, "text": "a"}]), "template 0 has the id 4, not 3"),
        (content(templates=[{"id": 3, "text": "a", "odd": 1}]), "template 3 has unknown keys: odd"),
        (content(templates=[{"id": 3, "text": "a", "lines": 1}]), "does not say lines, first, last and example"),
        (content(templates=[{"id": 3, "text": "ERROR"}]), "template 3 does not say which of its words are decisive"),
        (content(generations=[2, 2]), r"generations \[2, 2\] are not two or more numbers above 0 that come to its 3"),
        (content(generations=[3]), "are not two or more numbers above 0"),
        (content(generations=[3, 0]), "are not two or more numbers above 0"),
        (content(generations=3), "generations are not a list of numbers"),
        (content(masks={}), "masks are not a list"),
        (content(masks=[{"pattern": "a"}]), "masks are not a list of"),
        (content(masks=[{"pattern": 1, "name": "a"}]), "masks are not a list of"),
        (content(masks=[{"pattern": "(", "name": "a"}]), "is not an RE2 pattern"),
    ],
)
def test_a_damaged_vocabulary_is_refused_with_the_reason(data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Vocabulary.from_json(data)


def test_a_template_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(ValueError, match="template 0 is not Unicode"):
        Vocabulary(("\ud800",), kind="events")


def test_tokens_are_shown_as_templates() -> None:
    assert DOWNLOADS.text(4) == "<*> INFO Download of <*> finished in <*> ms overall"
    assert [DOWNLOADS.text(token) for token in (BOS, EOS, UNK, -17)] == [
        "<bos>",
        "<eos>",
        "<unknown>",
        "<unknown>",
    ]
    with pytest.raises(IndexError):
        DOWNLOADS.text(len(DOWNLOADS))


def test_a_template_is_found_as_shown_or_by_a_line_of_its_shape() -> None:
    assert DOWNLOADS.token_of("<*> ERROR Disk is full") == 5
    assert DOWNLOADS.token_of("17:30 INFO  Download of blk_12 started") == 3
    assert DOWNLOADS.token_of("Disk is full") is None
    assert Vocabulary(("5",), kind="events").token_of("6") is None


def test_a_line_is_found_by_its_code() -> None:
    answers = Vocabulary(("<time> till answered 200 in <num> ms", "<time> till answered 404 in <num> ms", "till <*>"))
    assert answers.token_of("7:30:00 till answered 404 in 123 ms") == 4
    assert answers.token_of("7:30:00 till answered 500 in 200 ms") is None
    assert answers.token_of("7:30:00 till answered 2000 in 200 ms") is None
    assert answers.token_of("till three") == 5
    longer = Vocabulary((*answers.templates, "<time> till answered <num> in <num> ms"))
    assert longer.token_of("7:30:00 till answered 500 in 200 ms") == 6


def test_features_are_the_rarest_buckets_and_specials_have_none() -> None:
    features = DOWNLOADS.template_features()
    assert features.shape == (len(DOWNLOADS), text.TEXT_FEATURES)
    assert not features[:N_SPECIAL].any()
    started, finished, _ = features[N_SPECIAL:].tolist()
    (info,) = text.buckets("info")
    assert text.buckets("started")[0] in started
    assert text.buckets("finished")[0] in finished
    assert info not in finished  # two templates say it, and five other buckets say more


def test_an_unknown_line_is_sketched_by_words_that_describe_templates() -> None:
    token = DOWNLOADS.sketch("0 FATAL disk sda0 gone")
    assert token < 0
    assert DOWNLOADS.sketch("gone: disk!") == token
    (disk,) = text.buckets("disk")
    assert np.stack(text.unpack(np.array([token])), 1).tolist() == [[disk, 0, 0, 0, 0]]


def test_an_unknown_line_without_a_known_word_is_unk() -> None:
    assert DOWNLOADS.sketch("0 0 ouverture terminée") == UNK
    assert DOWNLOADS.sketch("") == UNK


def test_words_between_those_of_an_unknown_line_change_one_of_its_buckets_at_most() -> None:
    colours = ("red", "green", "blue", "white", "black")
    # The pairs are rarer than the words.
    vocabulary = Vocabulary((*colours, " ".join(colours)))
    plain, with_more = (
        {int(column[0]) for column in text.unpack(np.array([vocabulary.sketch(line)]))}
        for line in (" ".join(colours), "red the green the blue and white and black")
    )
    assert len(plain) == text.TEXT_FEATURES
    assert len(plain - with_more) <= 1
    # Pairs tell apart what has the same words.
    assert vocabulary.sketch("red green") != vocabulary.sketch("green red")


CUT = """
<131>Jan 15 10:00:00 gate sshd[7]: Failed password for invalid user bob from 2001:db8::1 port 22 ssh2
10.0.0.1 - anna [15/Jan/2024:10:00:00 +0000] "GET /a/b?c=d%2Fe&f=7 HTTP/1.1" 404 12 "-" "Mozilla/5.0"
2024-01-15 10:00:00,123 ERROR [main] shop.Till: https://a.b/c failed in 1.5ms, 3 KB read, id=9f4ef63 null
E0115 10:00:00.1 7 run.go:5] mail to bob@example.com via mx1.example.com, 0f8fad5b-d9cb-469f-a165-70867728950e
Dec 9 00:1b:44:11:3a:b7 fe80::c6b3:fecd, C:\\x\\y, 43:51:43:a1:b5:fc:8b:b7:0a:3a:a9:b1:0f:66:73:a8, blk_-12
ERRO[0001] \x1b[31mdown\x1b[0m   part=7 -> up 用户 12 登录 {"lvl":"info","t":1.5e9} ==== * 2 * + 3
""".strip().splitlines()


def test_lines_are_cut_as_the_schema_says() -> None:
    """Where this fails, templates learned before do not match their own lines any more: raise the schema, too."""
    cut = [words(text) for text in fold(canonicalise(pa.array(CUT))).to_pylist()]
    known = [sorted(each) for each in (CALENDAR, DECISIVE, DECISIVE_MARKS, NOTHING, UNITS)]
    digest = hashlib.sha256(repr((cut, known)).encode()).hexdigest()[:16]
    assert (orjson.loads(DOWNLOADS.to_json())["schema"], digest) == ("logmamba.vocabulary/3", "1d2cce023a09775f")
