"""Answers of operators as files have them, and verdicts tried on files."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import orjson
import pytest

from detector.checkpoint import demo_checkpoint
from detector.errors import InputFileError
from tests.worker.alerting.receiving import score_record
from tests.worker.command_line import logmamba
from tests.worker.processing.said import record_of
from worker.commands.feedback import Answer, as_json, read_answers
from worker.errors import RunError
from worker.processing.feedback import Feedback, FeedbackRecord, read_feedback_file
from worker.shipped import shipped_text

PATTERN = "counts 0123456789ab*2 cdef01234567"
RECORD = record_of(PATTERN, "normal")


def answers(tmp_path: Path, text: str | bytes, *verdict: str) -> list[Answer | FeedbackRecord]:
    path = tmp_path / "answers"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_answers(path, *verdict)  # type: ignore[arg-type]


def test_answers_are_csv_json_lines_score_records_or_verdicts_of_elsewhere(tmp_path: Path) -> None:
    csv = answers(tmp_path, "session,verdict,note\na,normal,backup\nb,none,\nc,,\n")
    assert [each[:4] for each in csv if isinstance(each, Answer)] == [
        ("session", "a", "normal", "backup"),
        ("session", "b", None, None),
    ]
    lines = answers(tmp_path, '{"id":"0f","verdict":"anomalous"}\n\n' + f'{{"pattern":"{PATTERN}"}}\n', "normal")
    assert [each[:3] for each in lines if isinstance(each, Answer)] == [
        ("id", "0f", "anomalous"),
        ("pattern", PATTERN, "normal"),
    ]
    final, early = score_record("a", pattern=PATTERN), score_record("b", kind="early")
    [whole, begun] = answers(tmp_path, final + b"\n" + early, "normal")
    assert isinstance(whole, Answer)
    assert whole.record is not None, "it need not be looked for"
    assert (whole.record.pattern, whole.record.why) == (PATTERN, "Receiving block <*>")
    assert isinstance(begun, Answer)
    assert begun.record is None, "its final record tells the pattern"
    assert answers(tmp_path, "\n".join(as_json(Feedback({PATTERN: RECORD})))) == [RECORD]
    jsonschema.validate(orjson.loads(RECORD.to_json()), orjson.loads(shipped_text("feedback.schema.json")))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "key,verdict\na,normal\n",
            ": no column session, id or pattern; allowed: one of them and verdict, or JSON lines",
        ),
        ("session,verdict\na,fine\n", ", line 2: verdict 'fine'; allowed: normal, anomalous, none"),
        ("session,verdict\n,normal\n", ", line 2: names no session; allowed: session, id or pattern"),
        ('{"verdict":"normal","session":7}', ", line 1: names no session; allowed: session, id or pattern"),
        ('{"verdict":"normal","pattern":"F1"}', ", line 1: 'F1' is no pattern of a score record"),
        ('{"verdict":"normal","session":"a","note":7}', ", line 1: note is not a text"),
        ('{"session":"a"}\n{', ", line 2: not JSON: "),
        ('{"schema":"logmamba.feedback/1"}', ", line 1: no record of logmamba.feedback/1: pattern: Field required"),
        ('{"schema":"logmamba.score/1","session":"a","verdict":"normal"}', ", line 1: not one score record"),
    ],
)
def test_what_is_no_answer_is_named_with_its_line(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(InputFileError) as raised:
        answers(tmp_path, text)
    assert str(raised.value).startswith(f"{tmp_path / 'answers'}{error}")


def test_of_a_file_of_verdicts_the_latest_on_a_pattern_counts_and_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    later = record_of(PATTERN, "anomalous")
    path.write_bytes(RECORD.to_json() + b"\n\n" + later.to_json() + b"\n")
    assert read_feedback_file(path).records == {PATTERN: later}
    path.write_bytes(RECORD.to_json() + b"\n" + RECORD.to_json().replace(b"counts", b"sets"))
    with pytest.raises(RunError, match=r"line 2: no record of logmamba\.feedback/1: pattern: .* is no pattern"):
        read_feedback_file(path)
    with pytest.raises(RunError, match="cannot be read: No such file"):
        read_feedback_file(tmp_path / "none")


def test_verdicts_are_tried_on_files_before_workers_have_them(tmp_path: Path) -> None:
    lines = tmp_path / "app.log"
    texts = [
        f"240301 120046 64 INFO store.Intake: inbound stream for blk_{at} opened by 10.1.5.3:5456 towards 10.5.2.1:70\n"
        f"240301 120047 59 INFO meta.Index: replica of blk_{at} registered at 10.5.2.15:7010 holding 67108864 bytes\n"
        for at in range(3)
    ]
    lines.write_text("".join(texts))
    config = tmp_path / "worker.yaml"
    config.write_text(shipped_text("hdfs.yaml") + "feedback: {topic: said}\n")
    command = ["score", "--config", config, "--checkpoint", demo_checkpoint(), "--input", lines, "--output"]

    def scored(*also: object) -> list[dict[str, object]]:
        done = logmamba(*command, tmp_path / "scores.jsonl", *also)
        assert done.returncode == 0, done.stderr
        return [orjson.loads(line) for line in (tmp_path / "scores.jsonl").read_bytes().splitlines()]

    before = scored()
    assert {each["severity"] for each in before} == {"critical"}
    [pattern] = {str(each["pattern"]) for each in before}
    (tmp_path / "said.jsonl").write_bytes(record_of(pattern, "normal").to_json())
    after = scored("--feedback", tmp_path / "said.jsonl")
    assert {each["severity"] for each in after} == {"normal"}
    assert [each["score"] for each in after] == [each["score"] for each in before]
    assert all(each["feedback"] == {"verdict": "normal", "scored": "critical"} for each in after)
