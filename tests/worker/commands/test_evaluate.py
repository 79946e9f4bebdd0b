"""`logmamba evaluate`: the sessions it judges, what it writes, and that its page is harmless."""

from __future__ import annotations

import io
import json
from collections import Counter
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from detector.checkpoint import demo_checkpoint
from detector.errors import InputFileError
from detector.quality.session_sketch import session_sketch
from detector.text.vocabulary import Vocabulary
from tests.detector.small_models import random_checkpoint, save_random
from tests.worker.command_line import logmamba
from tests.worker.small_worker import ODD, VOCABULARY, OddScorer, settings
from worker.commands.demo import LINES_SETTINGS
from worker.commands.evaluate import evaluate_checkpoint
from worker.commands.evaluation.examples import EXAMPLES
from worker.commands.evaluation.sessions import read_evaluated_sessions, score_sequences
from worker.commands.score import score_files
from worker.errors import RunError
from worker.processing.scorer import Scorer

THRESHOLDS = {"warning": 0.7, "critical": 0.95}


def write_log(path: Path, seed: int = 0, keys: int = 60) -> dict[str, int]:
    """Sessions of <= 8 lines in the words of the small worker; every fifth key is anomalous and mostly odd."""
    rng = np.random.default_rng(seed)
    lines, labels = [], {}
    for number in range(keys):
        key = f"k{number}"
        labels[key] = int(number % 5 == 0)
        for _ in range(int(rng.integers(2, 9))):
            odd = rng.random() < (0.9 if labels[key] else 0.2)
            lines.append((rng.random(), f"{key} {'odd' if odd else 'read'}"))
    path.write_text("".join(f"{line}\n" for _, line in sorted(lines)))
    return labels


def write_labels(path: Path, labels: dict[str, int]) -> Path:
    path.write_text("session,label\n" + "".join(f"{key},{label}\n" for key, label in labels.items()))
    return path


def evaluated(
    report: Path,
    *inputs: Path,
    labels: Path | None = None,
    scorer: Scorer | None = None,
    normal_weight: float = 1.0,
    max_events: int = 1024,
    console: Console | None = None,
) -> tuple[dict[str, Any], str]:
    """`metrics.json` and the page."""
    evaluate_checkpoint(
        settings(f"sessions.max_events={max_events}"),
        scorer or OddScorer(),
        inputs,
        labels,
        report,
        normal_weight=normal_weight,
        seed=0,
        console=console or Console(file=io.StringIO(), width=200),
        at=datetime(2026, 3, 1, 12, 30, tzinfo=UTC),
    )
    return json.loads((report / "metrics.json").read_bytes()), (report / "index.html").read_text("utf-8")


@pytest.fixture(scope="module")
def labelled_logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two logs of the same keys, which are one stream, and their labels."""
    folder = tmp_path_factory.mktemp("logs")
    write_log(folder / "a.log", 1)
    return folder / "a.log", folder / "b.log", write_labels(folder / "labels.csv", write_log(folder / "b.log", 2))


@pytest.fixture(scope="module")
def labelled_report(labelled_logs: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report about their sessions of four events, normal ones weighing double."""
    *logs, labels = labelled_logs
    report = tmp_path_factory.mktemp("report")
    evaluated(report, *logs, labels=labels, normal_weight=2.0, max_events=4)
    return report


def test_the_sessions_and_scores_are_those_of_logmamba_score(tmp_path: Path) -> None:
    first, second = tmp_path / "a.log", tmp_path / "b.log"
    write_log(first, 1)
    write_log(second, 2)
    use = settings("sessions.max_events=3")  # so that keys have several sessions
    score_files(use, OddScorer(), [first, second], tmp_path / "scores.jsonl")
    records = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    read = read_evaluated_sessions(use, OddScorer(), [first, second], None)
    scores = score_sequences(OddScorer(), read.sessions.sequences, read.least, THRESHOLDS)
    assert [
        (read.keys[key], read.places[place], offset, len(read.sessions.sequences[sequence]), scores.final[sequence])
        for key, place, offset, sequence in zip(
            read.sessions.key, read.place, read.first_offset, read.sessions.sequence, strict=True
        )
    ] == [
        (each["session"], each["source"]["topic"], each["source"]["first_offset"], each["events"], each["score"])
        for each in records
    ]
    assert len(records) > len(read.keys)
    assert len({sequence.tobytes() for sequence in read.sessions.sequences}) == len(read.sessions.sequences)


def test_an_early_score_crosses_a_threshold_with_the_first_event_that_brings_it_there() -> None:
    read = VOCABULARY.token_of("<*> read")
    sequences = [np.array(tokens) for tokens in ([read, ODD, ODD, ODD], [ODD, read], [read, read])]
    found = score_sequences(OddScorer(), sequences, [0.0, 0.8, 0.0], THRESHOLDS)
    assert {severity: crossed.tolist() for severity, crossed in found.crossed.items()} == {
        "warning": [4, 1, 0],
        "critical": [0, 1, 0],
    }
    assert found.final.tolist() == [0.75, 0.8, 0.0], "the pace of the second says more than its events"


def test_a_label_is_that_of_every_session_of_its_key(tmp_path: Path) -> None:
    labels = write_log(tmp_path / "a.log")
    del labels["k7"]
    read = read_evaluated_sessions(
        settings("sessions.max_events=2"), OddScorer(), [tmp_path / "a.log"], labels | {"elsewhere": 1}
    )
    for key, label in zip(read.sessions.key.tolist(), read.sessions.labels.tolist(), strict=True):
        assert label == labels.get(read.keys[key], -1)
    assert read.unmatched_labels == 1
    assert max(Counter(read.sessions.key.tolist()).values()) > 1


def test_the_metrics_file_has_its_documented_names(
    labelled_logs: tuple[Path, Path, Path], labelled_report: Path
) -> None:
    metrics = json.loads((labelled_report / "metrics.json").read_bytes())
    assert metrics["schema"] == "logmamba.evaluation/1"
    assert list(metrics) == [
        *("schema", "checkpoint", "vocabulary", "inputs", "thresholds", "normal_weight", "seed"),
        *(
            "refused_lines",
            "unmatched_labels",
            "decides",
            "learnt_from",
            "expected_warnings",
            "sessions",
            "keys",
            "distinct_sequences",
            "events",
            "unknown_events",
        ),
        *(
            "alerts",
            "histogram",
            "share_at_or_above",
            "labelled",
            "worst_misses",
            "worst_false_alarms",
            "highest_scores",
        ),
    ]
    assert (metrics["inputs"], metrics["normal_weight"], metrics["thresholds"]) == (["a.log", "b.log"], 2.0, THRESHOLDS)
    *logs, _ = labelled_logs
    events = Counter(line.split()[0] for log in logs for line in log.read_text().splitlines())
    sessions: Counter[str] = Counter()
    for key, count in events.items():
        sessions["normal" if int(key[1:]) % 5 else "anomalous"] += -(-count // 4)
    assert (metrics["sessions"], metrics["keys"]) == (dict(sessions), 60)
    labelled = metrics["labelled"]
    assert list(labelled) == ["by_session", "by_key", "baselines", "delay", "reliability", "curves"]
    assert list(labelled["by_session"]) == list(labelled["by_key"]) == ["operating", "auprc", "auroc"]
    point = labelled["by_session"]["operating"]["critical"]
    assert list(point) == ["threshold", "precision", "recall", "f1", "misses", "false_alarms"]
    assert list(point["f1"]) == ["value", "low", "high"]
    assert [each["name"] for each in labelled["baselines"]][:2] == ["logistic regression", "random forest"]


def test_the_page_leads_with_the_figures_of_what_the_labels_are_about(labelled_report: Path, tmp_path: Path) -> None:
    metrics = json.loads((labelled_report / "metrics.json").read_bytes())
    assert metrics["decides"] == "by_key"
    read = _Page((labelled_report / "index.html").read_text("utf-8"))
    shown = " ".join(" ".join(read.text).split())
    point = metrics["labelled"]["by_key"]["operating"]["warning"]
    lead = f"of the anomalous key s are found ( {point['misses']} missed)"
    assert lead.replace(" ", "") in shown.replace(" ", "")
    assert shown.index("By session key") < shown.index("simple detectors beside it")
    for told in (
        "2026-03-01 12:30 UTC",
        "labels.csv",
        "sessions.max_events",
        "What the words mean",
        "Precision over all",
    ):
        assert told in shown, told

    (tmp_path / "s.tsv").write_text("block_id\tlabel\tevents\na\t0\t5 9\na\t1\t5 5\nb\t0\t9\n")
    save_random(tmp_path / "checkpoint", Vocabulary(("5", "9"), kind="events"))
    from detector.scoring.scorer import Scorer as ModelScorer

    scorer = ModelScorer.load(tmp_path / "checkpoint", device="cpu")
    metrics, page = evaluated(tmp_path / "report", tmp_path / "s.tsv", scorer=scorer)
    assert metrics["labelled"]["by_key"] is not None
    assert (metrics["decides"], "of the anomalous sessions are found" in page) == ("by_session", True)


def test_it_is_told_when_the_sessions_are_those_of_the_training(
    labelled_logs: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    log, knowing = labelled_logs[0], OddScorer()
    metrics, page = evaluated(tmp_path, log)
    assert (metrics["learnt_from"], "nobody can tell" in page) == (None, True)
    seen = [*read_evaluated_sessions(settings(), knowing, [log], None).hashes()]
    knowing.trained_sketch = session_sketch(seen)
    metrics, page = evaluated(tmp_path, log, scorer=knowing)
    assert (metrics["learnt_from"], "<b>100 % of these sessions" in " ".join(page.split())) == (1.0, True)
    knowing.trained_sketch = session_sketch(each + 1 for each in seen)
    metrics, page = evaluated(tmp_path, log, scorer=knowing)
    assert (metrics["learnt_from"], "trained on" in page) == (0.0, False)


def test_what_the_training_promised_is_told_beside_what_happened(
    labelled_logs: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    log, promising = labelled_logs[0], OddScorer()
    promising.expected_warnings = 0.025
    console = Console(file=io.StringIO(), record=True, width=200)
    metrics, page = evaluated(tmp_path, log, scorer=promising, console=console)
    assert metrics["expected_warnings"] == 0.025
    happened = metrics["alerts"]["warning"]["unlabelled"]
    assert (
        f"{happened:.2%} of the unlabelled sessions are warnings; the training expected 2.50%" in console.export_text()
    )
    assert "2.5 % of the normal sessions of another time" in page


def test_the_same_input_gives_the_same_bytes(
    labelled_logs: tuple[Path, Path, Path], labelled_report: Path, tmp_path: Path
) -> None:
    *logs, labels = labelled_logs
    evaluated(tmp_path, *logs, labels=labels, normal_weight=2.0, max_events=4)
    for file in ("metrics.json", "index.html"):
        assert (tmp_path / file).read_bytes() == (labelled_report / file).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "metrics.json"]


def test_worst_mistakes_come_worst_first_with_their_events(tmp_path: Path) -> None:
    rows = [("m", "read read odd"), ("n", "read read odd"), ("o", "odd read"), ("hit", "odd odd")]
    rows += [("f", "odd odd odd read"), ("g", "odd odd"), ("quiet", "read read")]
    (tmp_path / "a.log").write_text("".join(f"{key} {word}\n" for key, words in rows for word in words.split()))
    truth = {key: int(key in {"m", "n", "o", "hit"}) for key, _ in rows}
    labels = write_labels(tmp_path / "labels.csv", truth)
    metrics, _ = evaluated(tmp_path / "report", tmp_path / "a.log", labels=labels)
    misses, false_alarms = metrics["worst_misses"], metrics["worst_false_alarms"]
    assert [(each["keys"], each["sessions"], each["score"]) for each in misses] == [
        (["m", "n"], 2, 0.333333),
        (["o"], 1, 0.5),
    ]
    assert [(each["keys"], each["score"], each["first_offset"]) for each in false_alarms] == [
        (["g"], 1.0, 14),
        (["f"], 0.75, 10),
    ]
    assert misses[1]["events"] == [
        {"number": 1, "template": "<*> odd", "surprise": 2.0, "score": 1.0},
        {"number": 2, "template": "<*> read", "surprise": 1.0, "score": 0.5},
    ]
    assert metrics["highest_scores"] == []


def test_without_labels_the_highest_scores_are_shown_and_shares_instead_of_quality(tmp_path: Path) -> None:
    write_log(tmp_path / "a.log")
    metrics, page = evaluated(tmp_path / "report", tmp_path / "a.log")
    assert metrics["labelled"] is None
    assert metrics["sessions"] == {"unlabelled": 60}
    scores = [each["score"] for each in metrics["highest_scores"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == EXAMPLES
    assert "does not have sessions of both labels" in page
    assert "AUPRC" not in page


def test_of_a_long_session_the_most_surprising_events_are_shown(tmp_path: Path) -> None:
    words = ["read"] * 200
    words[77] = words[113] = "odd"
    (tmp_path / "a.log").write_text("".join(f"k1 {word}\n" for word in words))
    metrics, page = evaluated(tmp_path / "report", tmp_path / "a.log")
    [example] = metrics["highest_scores"]
    numbers = [event["number"] for event in example["events"]]
    assert numbers[:20] == list(range(1, 21))
    assert numbers[-20:] == list(range(181, 201))
    assert {78, 114} <= set(numbers)
    assert (len(numbers), example["length"]) == (60, 200)
    assert "events left out" in page


class _Page(HTMLParser):
    """Collects what a page could load, run or point at."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.ids: Counter[str] = Counter()
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            if name in {"href", "src", "xlink:href", "srcset", "action", "data"}:
                self.links.append(value or "")
            if name == "id":
                self.ids[value or ""] += 1
            assert not name.startswith("on")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_page_of_hostile_lines_loads_and_runs_nothing(tmp_path: Path) -> None:
    hostile = '</code></td><script>alert(1)</script><img src="http://x/y" onerror=alert(2)>'
    turned = "a\u202eb\x1b[31m\x00"
    names = (hostile, "fine", turned)
    rows = [f"{hostile}{number}{turned}\t{number % 2}\t{hostile} fine {turned}" for number in range(12)]
    # Event ids hold no spaces: what would break them is put into one word each.
    words = [name.replace(" ", "\u00a0") for name in names]
    for name, word in zip(names, words, strict=True):
        rows = [row.replace(name, word) for row in rows]
    (tmp_path / "s.tsv").write_text("session_id\tlabel\tevents\n" + "\n".join(rows) + "\n")
    from detector.scoring.scorer import Scorer as ModelScorer

    checkpoint = random_checkpoint(tmp_path / "checkpoint", Vocabulary(tuple(words), kind="events"))
    metrics, page = evaluated(tmp_path / "report", tmp_path / "s.tsv", scorer=ModelScorer(checkpoint, device="cpu"))
    assert metrics["worst_misses"] or metrics["worst_false_alarms"] or metrics["highest_scores"]
    read = _Page(page)
    assert "script" not in read.tags
    assert "img" not in read.tags
    assert read.tags["svg"] - page.count('<svg class="gauge"') == 6
    assert all(link.startswith("#") for link in read.links)
    assert "alert(1)" in "".join(read.text)
    assert not {"\u202e", "\x1b", "\x00"} & set(page)
    assert r"a\u202eb\x1b[31m\x00" in "".join(read.text)
    assert "default-src 'none'" in page


def test_what_the_plots_of_a_page_point_at_is_there(labelled_report: Path) -> None:
    page = (labelled_report / "index.html").read_text("utf-8")
    read = _Page(page)
    assert {link.removeprefix("#") for link in read.links} <= read.ids.keys()
    assert "By session key" in page
    assert "url(http" not in page
    assert "#0000" not in page


def test_parsed_sessions_count_as_their_rows_say_and_bring_their_labels(tmp_path: Path) -> None:
    (tmp_path / "s.tsv").write_text("block_id\tlabel\tcount\tevents\na\t0\t40\t5 9\nb\t1\t3\t5 5\nc\t\t2\t9\n")
    save_random(tmp_path / "checkpoint", Vocabulary(("5", "9"), kind="events"))
    from detector.scoring.scorer import Scorer as ModelScorer

    scorer = ModelScorer.load(tmp_path / "checkpoint", device="cpu")
    metrics, _ = evaluated(tmp_path / "report", tmp_path / "s.tsv", scorer=scorer)
    assert metrics["sessions"] == {"normal": 40, "anomalous": 3, "unlabelled": 2}
    assert metrics["events"] == 40 * 2 + 3 * 2 + 2
    assert metrics["labelled"]["baselines"] == []  # one anomalous key
    labels = write_labels(tmp_path / "labels.csv", {"a": 1})
    metrics, _ = evaluated(tmp_path / "report", tmp_path / "s.tsv", labels=labels, scorer=scorer)
    assert metrics["sessions"] == {"anomalous": 40, "unlabelled": 5}


def test_an_input_without_sessions_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("\n \n")
    with pytest.raises(InputFileError, match="holds no session"):
        evaluated(tmp_path / "report", tmp_path / "a.log")
    assert list((tmp_path / "report").iterdir()) == []


def test_a_report_where_a_file_lies_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("")
    with pytest.raises(RunError, match="report: cannot be made"):
        evaluated(tmp_path / "report", tmp_path / "missing.log")


def test_the_command_prints_a_table_and_where_the_report_is(tmp_path: Path) -> None:
    log, labels, report = tmp_path / "app.log", tmp_path / "labels.csv", tmp_path / "report"
    logmamba("generate", "--lines", 1500, "--output", log, "--labels", labels, "--anomalies", 0.2)
    done = logmamba(
        *("evaluate", "--checkpoint", demo_checkpoint(), "--input", log, "--labels", labels, "--set", *LINES_SETTINGS),
        *("--normal-weight", 4, "--set", "scoring.critical=0.9", "--report", report),
    )
    assert done.returncode == 0, done.stderr
    assert f"Report: {report / 'index.html'}" in done.stderr
    for detector in ("logmamba", "random forest", "isolation forest"):
        assert detector in done.stderr
    metrics = json.loads((report / "metrics.json").read_bytes())
    assert metrics["thresholds"] == {"warning": 0.7, "critical": 0.9}
    truth = [row.split(",")[1] for row in labels.read_text().splitlines()[1:]]
    assert metrics["sessions"] == {"normal": truth.count("0"), "anomalous": truth.count("1")}
    # The shipped model was trained on such logs; far below what it reaches, far above a broken path.
    assert metrics["labelled"]["by_session"]["auprc"]["value"] > 0.7
