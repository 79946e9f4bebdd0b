"""Results as files, one JSON a run of a detector with a seed on a protocol, and the tables made of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import orjson
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from detector.scoring.calibration import CRITICAL_SCORE, WARNING_SCORE

SCHEMA = "logmamba.accuracy/1"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
RAW_LINES, PARSED_LINES = "hdfs-raw-lines", "hdfs-parsed-lines"
LEGEND = """\
Thresholds: `warning` and `critical` are the worker's 0.7 and 0.95, `fixed` is a baseline's own; `validation` is, of
the thresholds that the validation part cannot tell from the one with its best F1, the nearest to `warning` or `fixed`;
`p99.5` and `p99.9` are percentiles of its normal sessions. `best` is chosen on the test part itself and only says what
a better threshold could give. "Normals" is the share of the test part's normal sessions at or above the threshold,
"promised" at most how many were to be: as the score's levels have it without labels, by the percentile, or, with
labels, at least which precision. "Unseen" leaves out test sessions whose sequence of events is in the training part,
"vectors" counts each distinct event-count vector once. Means over the seeds; lowest and highest in brackets."""

PROMISED = {"warning": 0.01, "critical": 0.001, "p99.5": 0.005, "p99.9": 0.001}
PROMISED_PRECISION = {"warning": WARNING_SCORE, "critical": CRITICAL_SCORE}

Result = dict[str, Any]
VIEWS = ("sessions", "unseen", "vectors")


def path_of(directory: Path, protocol: str, detector: str, seed: int) -> Path:
    """Where the result of a run is."""
    return directory / protocol / f"{detector}-{seed}.json"


def write(path: Path, result: Result) -> None:
    """Write a result, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_bytes(
        orjson.dumps({"schema": SCHEMA, **result}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    )
    beside.replace(path)


def read_all(directory: Path, protocols: Iterable[str]) -> list[Result]:
    """Every result on these protocols, in their order, by detector and seed.

    Raises:
        ValueError: a file is not a result of this version.
    """
    results: list[Result] = []
    for protocol in protocols:
        found = []
        for path in (directory / protocol).glob("*.json"):
            result = cast("Result", orjson.loads(path.read_bytes()))
            if result.get("schema") != SCHEMA:
                raise ValueError(f"{path}: its schema is not {SCHEMA!r}; delete it to measure it anew")
            found.append(result)
        results += sorted(found, key=lambda each: (each["detector"], each["seed"]))
    return results


def show(console: Console, results: Sequence[Result]) -> None:
    """Print each detector's means over the seeds, at its headline threshold."""
    table = Table("protocol", "detector", "seeds", "threshold", "F1", "misses", "false alarms", "AUPRC", box=SIMPLE)
    for protocol, group in groupby(results, key=lambda each: str(each["protocol"])):
        for detector, same in _by_detector(list(group)):
            name = str(same[0]["headline"])
            views = _judged(same, "sessions")
            points = [each["at"][name] for each in views]
            errors = (f"{fmean(each[kind] for each in points):.1f}" for kind in ("misses", "false_alarms"))
            f1, area = fmean(each["f1"] for each in points), fmean(each["auprc"] for each in views)
            table.add_row(protocol, detector, str(len(same)), name, f"{f1:.4f}", *errors, f"{area:.4f}")
        table.add_section()
    console.print(table)


def write_report(path: Path, results: Sequence[Result]) -> None:
    """Put the tables into a Markdown file, as `insert`."""
    insert(path, BEGIN, END, tables(results))


def insert(path: Path, begin: str, end: str, text: str) -> None:
    """Put a text between two marks of a Markdown file and leave the rest of it as it is.

    Raises:
        ValueError: the file is there but has no such marks.
    """
    whole = path.read_text(encoding="utf-8") if path.exists() else f"# Accuracy\n\n{begin}\n{end}\n"
    before, found_begin, rest = whole.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"{path}: has no {begin} and {end} for the tables to stand between")
    path.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")


def tables(results: Sequence[Result]) -> str:
    """All tables, as Markdown."""
    parts = [LEGEND]
    for title, group in groupby(results, key=lambda each: str(each["title"])):
        runs = list(group)
        parts += [f"## {title}", _sizes(runs[0]), _at_thresholds(runs), _areas(runs)]
        parts += [_early(runs)] if any(each["early"] for each in runs) else []
    routes = agreement(results)
    parts += ["## Raw lines against parsed sessions of the same blocks", routes] if routes else []
    return "\n\n".join((*parts, "## Commands", _commands(results))) + "\n"


def _sizes(result: Result) -> str:
    data = result["data"]
    parts = "; ".join(
        f"{name} {each['normal']:,} normal, {each['anomalous']:,} anomalous" for name, each in data["sizes"].items()
    )
    repeated = ", ".join(f"{what} {share:.1%}" for what, share in data["repeated"].items() if share is not None)
    return (
        f"Seed {result['seed']}: {parts}; {data['templates']} templates. "
        f"Share of the test that training has too: {repeated}."
    )


def _at_thresholds(runs: Sequence[Result]) -> str:
    header = "detector|seeds|threshold|F1|misses|false alarms|normals|promised|precision|recall|F1 unseen|F1 vectors"
    rows = []
    for detector, same in _by_detector(runs):
        for name in same[0]["figures"]["sessions"]["at"]:
            counts = (_at(same, "sessions", name, figure, ".0f") for figure in ("misses", "false_alarms"))
            rates = (_at(same, "sessions", name, figure) for figure in ("precision", "recall"))
            f1s = [_at(same, view, name, "f1") for view in VIEWS]
            kept = _normals(same, name), _promised(same[0], name)
            rows.append([detector, str(len(same)), name, f1s[0], *counts, *kept, *rates, *f1s[1:]])
    return markdown(header, rows)


def _normals(runs: Sequence[Result], threshold: str) -> str:
    views = _judged(runs, "sessions")
    return _range((each["at"][threshold]["false_alarms"] / each["normal"] for each in views), ".2%")


def _promised(result: Result, threshold: str) -> str:
    if "validation" in result["figures"]["sessions"]["at"]:
        least = PROMISED_PRECISION.get(threshold)
        return "-" if least is None else f"precision {least:.2f}"
    most = PROMISED.get(threshold)
    return "-" if most is None else f"{most:.1%}"


def _areas(runs: Sequence[Result]) -> str:
    header = "detector|AUPRC|AUROC|AUPRC unseen|AUROC unseen|AUPRC vectors|AUROC vectors|seconds|device"
    rows = []
    for detector, same in _by_detector(runs):
        areas = (_range(each[area] for each in _judged(same, view)) for view in VIEWS for area in ("auprc", "auroc"))
        devices = ", ".join(sorted({each["device"] for each in same}))
        rows.append([detector, *areas, _range((each["seconds"] for each in same), ".0f"), devices])
    return markdown(header, rows)


def _early(runs: Sequence[Result]) -> str:
    header = "early scores of|threshold|flagged before the last event|median delay|precision|final scores' alone"
    rows = []
    for detector, same in _by_detector(runs):
        for name in same[0]["early"]:
            early = [each["early"][name] for each in same]
            figures = ("flagged", "median_delay", "precision", "final_precision")
            rows.append([detector, name, *(_range(each[figure] for each in early) for figure in figures)])
    return markdown(header, rows)


def agreement(results: Sequence[Result]) -> str:
    """Table of how many test sessions are judged otherwise where the tokenizer reads the lines; empty without both."""
    parsed = {(each["detector"], each["seed"]): each for each in results if each["protocol"] == PARSED_LINES}
    rows = []
    for raw in results:
        other = parsed.get((raw["detector"], raw["seed"]))
        if raw["protocol"] != RAW_LINES or other is None:
            continue
        pair = (raw, other)
        wrong = [{*each["mistakes"]["misses"], *each["mistakes"]["false_alarms"]} for each in pair]
        f1s = [f"{each['figures']['sessions']['at'][each['headline']]['f1']:.4f}" for each in pair]
        tested = sum(raw["data"]["sizes"]["test"].values())
        rows.append([raw["detector"], str(raw["seed"]), *f1s, f"{len(wrong[0] ^ wrong[1])} of {tested:,}"])
    return markdown("detector|seed|F1 raw lines|F1 parsed|sessions judged otherwise", rows) if rows else ""


def comparison(results: Sequence[Result]) -> str:
    """A short table a protocol, with the errors of each seed at the headline threshold."""
    parts = []
    for title, group in groupby(results, key=lambda each: str(each["title"])):
        runs = list(group)
        headline = str(runs[0]["headline"])
        rows = []
        for detector, same in _by_detector(runs):
            points = [each["at"][headline] for each in _judged(same, "sessions")]
            errors = ", ".join(f"{each['misses']} + {each['false_alarms']}" for each in points)
            seeds = ", ".join(str(each["seed"]) for each in same)
            f1s = (_at(same, "sessions", name, "f1") for name in (headline, "warning", "critical", "best"))
            areas = (_range(each["auprc"] for each in _judged(same, view)) for view in VIEWS)
            rows.append([detector, seeds, errors, *f1s, *areas, _range((each["seconds"] for each in same), ".0f")])
        header = "variant|seeds|misses + false alarms|F1|F1 at 0.7|F1 at 0.95|best F1|AUPRC|unseen|vectors|seconds"
        parts.append(
            f"### {title}\n\nMisses, false alarms and F1 at the threshold `{headline}`.\n\n{markdown(header, rows)}"
        )
    return "\n\n".join((*parts, "Commands:", _commands(results))) + "\n"


def _commands(results: Sequence[Result]) -> str:
    return "\n".join(dict.fromkeys(f"    {each['command']}" for each in results))


def _by_detector(runs: Sequence[Result]) -> Iterable[tuple[str, list[Result]]]:
    return [(name, list(group)) for name, group in groupby(runs, key=lambda each: str(each["detector"]))]


def _at(runs: Sequence[Result], view: str, threshold: str, figure: str, form: str = ".4f") -> str:
    return _range((each["at"][threshold][figure] for each in _judged(runs, view)), form)


def _judged(runs: Sequence[Result], view: str) -> list[Result]:
    """Figures of a view, of the runs whose test part has both kinds of sessions there."""
    return [each["figures"][view] for each in runs if "at" in each["figures"][view]]


def _range(values: Iterable[float | None], form: str = ".4f") -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean, low, high = (format(pick(known), form) for pick in (fmean, min, max))
    return mean if low == high else f"{mean} ({low} to {high})"


def markdown(header: str, rows: Iterable[Sequence[str]]) -> str:
    """A table, its header's names between bars."""
    names = header.split("|")
    return "\n".join("| " + " | ".join(row) + " |" for row in (names, ["---"] * len(names), *rows))
