"""Writes the pages that are made from the code: `python docs/generate.py`.

`settings.md` has every setting: default and what is allowed from the settings themselves, words from the comments of
`config/worker.example.yaml`. `records.md` gets its table of fields from `config/score-record.schema.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from worker.settings.document import Settings
from worker.settings.sections import Section
from worker.settings.values import Duration, Told, Whole, flow_yaml

ROOT = Path(__file__).parents[1]
_INTRODUCTION = """\
Every setting of the YAML file with its default; what a file leaves out has it, so an empty file means the same as all
of these. `logmamba example worker.example.yaml` prints them as a file, `logmamba check --config FILE` tells whether one
is right, and `--set section.key=value` overrides one setting for one run. Durations are a number with a unit: 250ms,
30s, 10m, 6h, 1d. `${NAME}` in a value is the environment variable NAME, `$${` stands for the two characters.
"""
_BEGIN = "<!-- fields: made by docs/generate.py from config/score-record.schema.json -->"
_TABLE = re.compile(f"(?<={re.escape(_BEGIN)}\n).*?(?=<!-- /fields -->)", re.DOTALL)


def pages() -> dict[Path, str]:
    """Every page that is made, or made in part, as it should be."""
    records = ROOT / "docs" / "records.md"
    fields = "\n".join(["| field | type | what it is |", "| --- | --- | --- |", *_fields()])
    return {
        ROOT / "docs" / "settings.md": "\n".join(_settings()),
        records: _TABLE.sub(lambda _: f"\n{fields}\n\n", records.read_text(encoding="utf-8")),
    }


def _settings() -> Iterator[str]:
    comments, described = _comments(), Settings().describe()
    yield "# Settings\n"
    yield _INTRODUCTION
    for name, info in Settings.model_fields.items():
        yield f"## {name}\n"
        if name in comments:
            yield from _words(comments[name])
        section = info.annotation
        if not (isinstance(section, type) and issubclass(section, Section)):
            yield from _facts(described[name], info)
            continue
        values = described[name]
        assert isinstance(values, dict)
        for key, below in section.model_fields.items():
            written = below.alias or key
            yield f"### {name}.{written}\n"
            yield from _facts(values[written], below)
            yield from _words(comments[f"{name}.{written}"])


def _facts(default: object, info: FieldInfo) -> Iterator[str]:
    allowed = _allowed(info)
    yield f"Default: `{flow_yaml(default)}`" + (f". Allowed: {allowed}" if allowed else "") + ".\n"


def _allowed(info: FieldInfo) -> str:
    """What may stand there, as far as the constraints say it; the words say the rest."""
    kinds = (info.annotation, *get_args(info.annotation))
    null = " or `null`" if type(None) in kinds else ""
    values = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    if values:
        return ", ".join(f"`{value}`" for value in values) + null
    rules = [*info.metadata, *(rule for kind in kinds for rule in getattr(kind, "__metadata__", ()))]
    for rule in sorted(rules, key=lambda rule: not isinstance(rule, Told)):  # a sentence knows best
        if isinstance(rule, Told):
            return (rule.sentence.partition("allowed: ")[2] or rule.sentence.removeprefix("is not ")) + (
                "" if "null" in rule.sentence else null
            )
        if isinstance(rule, Whole):
            return f"{rule.least:,} to {rule.most:,}".replace(",", "_") + null
        if isinstance(rule, Duration):
            return f"{rule.least} to {rule.most}{null}"
    return ""


def _comments() -> dict[str, list[str]]:
    """The comment above each key of the example, by the key's path."""
    found: dict[str, list[str]] = {}
    section, comment, before = "", [], []
    for line in (ROOT / "config" / "worker.example.yaml").read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("#"):
            comment.append(text[1:].removeprefix(" "))
        elif not text:
            comment = []
        elif key := re.match(r"( *)([a-z_]+):", line):
            if key[1]:
                before = comment or before  # one comment above several keys is of all of them
                found[f"{section}.{key[2]}"] = before
            else:
                section, before = key[2], []
                found[section] = comment
            comment = []
    return found


def _words(comment: list[str]) -> Iterator[str]:
    """A comment as Markdown: indented lines are a table of values and stay as they are."""
    block: list[str] = []
    aligned = False
    for line in [*comment, ""]:
        if line.startswith("  ") != aligned or not line:
            if block:
                yield "\n".join(["```text", *block, "```\n"] if aligned else [*block, ""])
            block, aligned = [], line.startswith("  ")
        block.append(line if aligned else _plain(line))


def _plain(line: str) -> str:
    """A line in which only what stands in backticks means anything to Markdown."""
    parts = line.split("`")
    return "`".join(part if i % 2 else re.sub(r"([\\*_{}\[\]<>#|~$])", r"\\\1", part) for i, part in enumerate(parts))


def _fields() -> Iterator[str]:
    schema = json.loads((ROOT / "config" / "score-record.schema.json").read_text(encoding="utf-8"))

    def whole(rule: dict[str, Any]) -> dict[str, Any]:
        """A rule with what it refers to."""
        found = schema
        for step in rule["$ref"].split("/")[1:] if "$ref" in rule else ():
            found = found[step]
        return {**found, **rule} if "$ref" in rule else rule

    def kind_of(rule: dict[str, Any]) -> str:
        if "enum" in rule:
            return ", ".join("null" if value is None else f"`{value}`" for value in rule["enum"])
        if "const" in rule:
            return f"`{rule['const']}`"
        kinds = [str(each["type"]) for each in rule.get("oneOf", rule.get("anyOf", (rule,)))]
        of = f" of {kind_of(whole(rule['items']))}" if "items" in rule else ""
        return " or ".join(sorted(kinds, key=lambda kind: kind == "null")) + of

    def rows(properties: dict[str, Any], above: str) -> Iterator[str]:
        for name, short in properties.items():
            rule = whole(short)
            words = str(rule.get("description", "")).replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")
            yield f"| `{above}{name}` | {kind_of(rule)} | {words} |"
            yield from rows(rule.get("properties", {}), f"{above}{name}.")
            yield from rows(whole(rule.get("items", {})).get("properties", {}), f"{above}{name}[].")

    yield from rows(schema["properties"], "")


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
