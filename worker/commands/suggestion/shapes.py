"""The settings of `input` that read a sample: its format, and for JSON where the message and the severity stand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from detector.errors import InputFileError
from worker.files.timestamp_suggestion import FoundTimestamp, find_timestamp, members
from worker.formats.json_texts import bare_texts, parse_json
from worker.formats.patterns import matches
from worker.formats.pointers import MISSING, JsonPointer
from worker.formats.presets import PRESETS, Preset
from worker.settings.sections import InputSettings

_LOOKED_AT = 2_000
_MOST = 0.9
_DEPTH = 4
_FEW = 0.005
# Lines that never begin an event: indented ones, and those of stack traces that are not.
_GOES_ON = re.compile(
    rb"[ \t]+\S|Caused by: |Traceback \(most recent|\.\.\. \d+ more|[a-z][\w$]*(?:\.[\w$]+)+(?:Exception|Error)\b"
)
_STARTS = (
    r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d",
    r"^\S+ \d{4}-\d\d-\d\d[T ]\d\d:\d\d",
    r"^(?:<\d{1,3}>)?[A-Z][a-z]{2} +\d{1,2} \d\d:\d\d:\d\d",
    r"^[IWEF]\d{4} \d\d:\d\d",
    r"^\d{10}",
)
_MESSAGES = ("message", "msg", "log", "text", "@message", "body", "event", "original", "description", "short_message")
_SEVERITIES = ("level", "severity", "loglevel", "log.level", "lvl", "levelname", "priority", "severitytext")


@dataclass(frozen=True, slots=True)
class Shape:
    """How a sample is read.

    Attributes:
        input: settings of `input` that differ from the defaults, without the time, as a file writes them.
        timestamp: what reads the times; None where nothing that is known does, or where a preset's own does.
        why: in words.
        looked_at: how many lines that is of.
    """

    input: Mapping[str, object]
    timestamp: FoundTimestamp | None
    why: str
    looked_at: int

    @property
    def preset(self) -> Preset:
        """Of the format."""
        return PRESETS[str(self.input.get("format", "text"))]

    def settings(self) -> InputSettings:
        """The section `input`, the time included."""
        time = {} if self.timestamp is None else {"timestamp": self.timestamp.setting}
        return InputSettings.model_validate({**self.input, **time})


def find_shape(values: Sequence[bytes], name: str) -> Shape:
    """Find how values are to be read.

    Args:
        values: none of them blank.
        name: of the sample, for errors.

    Raises:
        InputFileError: a JSON document that goes over several lines.
    """
    values = values[:_LOOKED_AT]
    documents = [document for value in values if (document := _document(value)) is not MISSING]
    if len(documents) >= _MOST * len(values):
        return _json(values, documents)
    if values[0].strip() in (b"{", b"["):
        raise InputFileError(f"{name}: is JSON over several lines; allowed: a document a line, as jq -c writes it")
    return _text(values)


def _document(value: bytes) -> object:
    for text in bare_texts(value):
        try:
            found = parse_json(text)
        except ValueError:
            try:
                found = parse_json(text.split(b"\n", 1)[0])  # NDJSON
            except ValueError:
                continue
        if isinstance(found, dict | list):
            return found
    return MISSING


def _text(values: Sequence[bytes]) -> Shape:
    encoding = _encoding(values)
    texts = [value.decode(errors="replace") for value in values]
    for name, preset in PRESETS.items():
        message = preset.input.get("message")
        if preset.base == "text" and isinstance(message, dict):
            found = sum(matches(message["pattern"], text) for text in texts)
            if found >= _MOST * len(texts):
                why = f"{found:,} of {len(texts):,} lines are as {name} writes them"
                return Shape({"format": name, **encoding}, None, why, len(values))
    source = InputSettings.model_validate({"format": "text", **encoding})
    why = f"{len(values):,} lines, which are not JSON"
    goes_on = [_GOES_ON.match(value) is not None for value in values]
    begins = [value for value, later in zip(values, goes_on, strict=True) if not later]
    time = find_timestamp(begins or values, source)
    start = None if time is None else _start(time.setting, texts, goes_on)
    if start is None:
        return Shape({"format": "text", **encoding}, time, why, len(values))
    why += f"; {sum(goes_on):,} of them go on with the event before, as those of a stack trace do"
    return Shape({"format": "text", **encoding, "multiline": {"start": start}}, time, why, len(values))


def _start(timestamp: object, texts: Sequence[str], goes_on: Sequence[bool]) -> str | None:
    """A pattern of the lines with which events begin, where others go on with them; None where it is not needed."""
    if sum(goes_on) < _FEW * len(texts):
        return None
    own = timestamp.get("pattern") if isinstance(timestamp, dict) else None
    for pattern in (own, *_STARTS):
        if pattern is None:
            continue
        found = [matches(pattern, text) for text in texts]
        begins = sum(at for at, later in zip(found, goes_on, strict=True) if not later)
        wrong = sum(at for at, later in zip(found, goes_on, strict=True) if later)
        if begins > _MOST * (len(texts) - sum(goes_on)) and wrong < _FEW * sum(goes_on):
            return pattern
    return None


def _encoding(values: Sequence[bytes]) -> Mapping[str, object]:
    odd = 0
    for value in values:
        try:
            value.decode()
        except UnicodeDecodeError:
            odd += 1
    if not odd:
        return {}
    not_ascii = sum(any(byte > 0x7F for byte in each) for each in values)
    return {"encoding": "latin-1" if odd == not_ascii else "utf-8-replace"}


def _json(values: Sequence[bytes], documents: Sequence[object]) -> Shape:
    events = [each for document in documents for each in (document if isinstance(document, list) else [document])]
    told = f"{len(documents):,} of {len(values):,} lines are JSON"
    name = _known(events)
    if name is not None:
        return Shape({"format": name}, None, f"{told}, with the members that {name} writes", len(values))
    found: dict[str, object] = {"format": "json"}
    found["message"] = _message(events)
    severity = _named(events, _SEVERITIES)
    if severity is not None:
        found["severity"] = severity
    time = find_timestamp(values, InputSettings.model_validate(found))
    return Shape(found, time, f"{told}, of no shipper that is known by name", len(values))


def _known(events: Sequence[object]) -> str | None:
    best: tuple[int, str] | None = None
    for name, preset in PRESETS.items():
        for signs in preset.signs:
            pointers = [JsonPointer(sign) for sign in signs]
            has = sum(all(pointer.resolve(event) is not MISSING for pointer in pointers) for event in events)
            if has >= _MOST * len(events) and (best is None or len(signs) > best[0]):
                best = len(signs), name
    return None if best is None else best[1]


def _message(events: Sequence[object]) -> str | list[str]:
    """The member that is most like a message: by its name, or else the longest text of several words.

    Where no member is in nearly all of the documents it is a list of those that have a message's name.
    """
    texts: dict[str, list[str]] = {}
    for event in events:
        for pointer, value in members(event, depth=_DEPTH):
            if isinstance(value, str):
                texts.setdefault(pointer, []).append(value)
    wordy = {pointer: mean(text.count(" ") for text in found) for pointer, found in texts.items()}
    named = sorted(
        (pointer for pointer in texts if pointer.rsplit("/", 1)[1].lower() in _MESSAGES and wordy[pointer]),
        key=lambda pointer: _MESSAGES.index(pointer.rsplit("/", 1)[1].lower()),
    )
    often = [pointer for pointer, found in texts.items() if len(found) >= _MOST * len(events)]
    for pointer in named:
        if pointer in often:
            return pointer
    sentences = [pointer for pointer in often if wordy[pointer] >= 1]
    if sentences or not named:
        return max(sentences or often, key=wordy.__getitem__, default="/message")
    return named


def _named(events: Sequence[object], names: Sequence[str]) -> str | None:
    counts: Counter[str] = Counter()
    for event in events:
        counts.update(
            pointer
            for pointer, value in members(event, depth=_DEPTH)
            if isinstance(value, str) and pointer[1:].lower().replace("/", ".") in (*names, "log.level")
        )
    found = [pointer for pointer, count in counts.items() if count >= _MOST * len(events)]
    return found[0] if found else None
