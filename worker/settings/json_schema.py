"""The JSON Schema of a settings file, for editors: `config/worker.schema.json`.

It is made of the settings themselves, and of the comments of `config/worker.example.yaml`, which describe each of them.
It says less than a worker checks: not what two settings must be to each other, nor what a pattern or a pointer is.
`make config-schema` writes it anew.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any, Final

from pydantic.json_schema import GenerateJsonSchema

from worker.settings.document import Settings
from worker.shipped import shipped_text

_KEY: Final = re.compile(r"( {0,2})([a-z_]+):")
_COMMENT: Final = re.compile(r" *# ?(.*)")


class _Generator(GenerateJsonSchema):
    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012  as the base class has it


def settings_schema() -> dict[str, Any]:
    """The schema, draft 2020-12."""
    schema = Settings.model_json_schema(schema_generator=_Generator)
    described, comments = Settings().describe(), _comments(shipped_text("worker.example.yaml"))
    parts = [schema, *schema["$defs"].values()]
    for part in parts:
        part.pop("title", None)
        for each in part["properties"].values():
            each.pop("title", None)
            each.pop("default", None)  # as the code has it: a duration in milliseconds
    for name, section in schema["properties"].items():
        reference = section.pop("$ref", None)
        if reference is None:
            section |= {"description": comments[name,], "default": described[name]}
            continue
        keys, defaults = schema["$defs"][reference.rpartition("/")[2]], described[name]
        assert isinstance(defaults, dict)
        # A section may be empty, as when all its keys are comments.
        about = comments[name,] or keys["description"]
        section |= {"description": about, "anyOf": [{"$ref": reference}, {"type": "null"}]}
        for key, each in keys["properties"].items():
            each |= {"description": comments[name, key], "default": defaults[key]}
            if not each["description"]:
                del each["description"]
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:logmamba:settings",
        "title": "Settings of a logmamba worker",
    }
    return head | schema


def _comments(text: str) -> dict[tuple[str, ...], str]:
    """What the lines of comment before each setting of a file say, by its path."""
    found: dict[tuple[str, ...], str] = {}
    section, said = "", []
    for line in text.splitlines():
        if (comment := _COMMENT.fullmatch(line)) is not None:
            said.append(comment[1])
            continue
        if (key := _KEY.match(line)) is not None:
            indent, name = key.groups()
            section = section if indent else name
            found[(section, name) if indent else (name,)] = "\n".join(said)
        said = []
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(settings_schema(), indent=1, ensure_ascii=False) + "\n")
