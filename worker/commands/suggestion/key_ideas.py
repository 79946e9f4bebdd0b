"""What could be a session key of a sample: places in lines, members of documents, keys and headers of records.

An idea is only that. Whether it makes sessions is tried by `worker.commands.suggestion.trials`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from worker.commands.suggestion.sample import SampleStream
from worker.files.timestamp_suggestion import members
from worker.formats.any_values import plain
from worker.formats.pointers import JsonPointer, written_path
from worker.formats.presets import Preset

Kind = Literal["work", "id", "process", "thread", "client", "host", "name", "number", "records"]
"""What a key's events have in common.

`id` is of nobody knows what, `records` what the producer of a topic chose. Whether a `name` is one of a machine or of
some work, and whether a `number` (or an id by an unknown name) is one of work, the trial tells.
"""

_LOOKED_AT = 2_000
_LEAST_SHARE = 0.02
_LEAST_VALUES = 3
_COLUMNS = 10
_DEPTH = 4


@dataclass(frozen=True, slots=True)
class KeyIdea:
    """A session key that could be meant.

    Attributes:
        what: the events of a session have in common, in words.
        key: `sessions.key` as a settings file writes it.
        kind: of thing that this is.
    """

    what: str
    key: object
    kind: Kind


# By the words that a name ends with, in lower case and joined: as many of them as are known together. None: what tells
# no sessions apart.
_KIND_OF: Mapping[str, Kind | None] = {
    **dict.fromkeys(("spanid", "eventid", "messageid", "msgid", "keyid", "uid", "euid", "guid"), None),
    **dict.fromkeys(("processid", "pid"), "process"),
    **dict.fromkeys(("threadid", "tid", "thread", "threadname", "ctx", "contextid"), "thread"),
    **dict.fromkeys(("poduid", "podid", "podname", "pod", "containerid", "containername", "agentid"), "host"),
    **dict.fromkeys(("hostid", "bootid", "machineid", "serviceinstanceid", "hostname", "host", "node"), "host"),
    **dict.fromkeys(("nodename", "computer", "computername"), "host"),
    **dict.fromkeys(("userid", "username", "user", "clientid", "clientip", "client", "customerid"), "client"),
    **dict.fromkeys(("accountid", "deviceid", "tenantid", "remoteaddr", "remoteip", "sourceip"), "client"),
    **dict.fromkeys(("traceid", "trace", "traceparent", "requestid", "reqid", "request", "requestuuid"), "work"),
    **dict.fromkeys(("correlationid", "correlation", "transactionid", "transaction", "txnid", "txid"), "work"),
    **dict.fromkeys(("req", "tx", "txn", "cid", "rid"), "work"),
    **dict.fromkeys(("sessionid", "session", "connectionid", "connection", "connid", "conn", "orderid"), "work"),
    **dict.fromkeys(("order", "jobid", "job", "taskid", "task", "operationid", "invocationid"), "work"),
    **dict.fromkeys(("activityid", "flowid", "workflowid", "runid", "callid", "blockid", "instanceid"), "work"),
    **dict.fromkeys(("queryid", "executionid", "buildid", "ticketid", "basketid", "cartid", "paymentid"), "work"),
    **dict.fromkeys(("shipmentid", "attempt", "attemptid"), "work"),
}
_WORDS_OF_NAME = re.compile("[A-Z]?[a-z]+|[A-Z]+(?![a-z])")

# Words that are followed by an id: blk_123, attempt_14_0002, conn42, order 4711, request #7.
_WORDS: Mapping[str, Kind] = {
    **dict.fromkeys(("request", "req", "session", "connection", "conn", "order", "job", "task", "transaction"), "work"),
    **dict.fromkeys(("txn", "attempt", "container", "block", "blk", "trace", "ticket", "build", "run", "call"), "work"),
    **dict.fromkeys(("query", "batch", "flow", "payment", "shipment", "cart", "basket", "invoice"), "work"),
    **dict.fromkeys(("client", "user", "customer", "device"), "client"),
    **dict.fromkeys(("thread", "worker"), "thread"),
}
_WORD_ID = re.compile(
    rf"\b({'|'.join(_WORDS)})((?:[_:#-]|: | #?)?)(-?\d[\w-]*|[0-9a-f]{{8}}[0-9a-f-]*)\b", re.IGNORECASE
)
_OTHER_ID = re.compile(r"\b([A-Za-z]{1,12}[-_#])([0-9a-f]*\d[0-9a-f]*)\b")
_NAMED = re.compile(r"""(?<![\w.-])([A-Za-z][\w.-]{0,40})(["']?\s?[=:]\s?["']?)([\w.:@/-]{1,80})""")
_ADDRESS = re.compile(r"^[A-Za-z#][\w.#@:*-]*\d[\w.:#@-]*$|^\d{1,3}(\.\d{1,3}){3}(:\d+)?$")
_WHOLE = re.compile(r"^\d{1,12}$")
_TIMELIKE = re.compile(r"\d:\d\d:\d\d|\d{4}[-/.]\d\d|^\[?\d\d[-/.]\d\d$|^[IWEF]\d{4}$")

_UUID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_IN_TEXT: Sequence[KeyIdea] = (
    KeyIdea("a request (its id)", {"regex": rf"\b(req-{_UUID})\b"}, "work"),
    KeyIdea(
        "a trace (of a traceparent)", {"regex": r"\b[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}\b"}, "work"
    ),
    KeyIdea("a UUID", {"regex": rf"\b({_UUID})\b"}, "id"),
    KeyIdea("an id of 32 hexadecimal digits", {"regex": r"\b([0-9a-f]{32})\b"}, "id"),
    KeyIdea("a hexadecimal number", {"regex": r"\b(0x[0-9a-fA-F]{8,16})\b"}, "id"),
)
_SYSLOG = re.compile(r"^(?:<\d{1,3}>)?[A-Z][a-z]{2} +\d{1,2} \d\d:\d\d:\d\d (\S+ [^:\[\]]+(?:\[\d+\])?)(?:[:\[]| \()")
_SYSLOG_HOST = 3  # its column
_AT_LINE_START: Sequence[KeyIdea] = (
    KeyIdea(
        "a process: host, program and, where it is told, the process id (syslog)",
        {"regex": _SYSLOG.pattern},
        "process",
    ),
    KeyIdea(
        "a process: host, program and, where it is told, the process id (syslog)",
        {"regex": r"^(?:<\d{1,3}>)?\d{4}-\d\d-\d\dT\S+ (\S+ [^:\[\] ]+(?:\[\d+\])?):"},
        "process",
    ),
    KeyIdea(
        "a process (logcat)",
        {"regex": r"^(?:\d{4}-)?\d\d-\d\d \d\d:\d\d:\d\d\.\d+ +(\d+) +\d+ [VDIWEFA] "},
        "process",
    ),
    KeyIdea("a process (PostgreSQL)", {"regex": r"^\S+ \S+ (?:[A-Z]{2,5} )?\[(\d+)\] "}, "process"),
    KeyIdea("a connection (nginx)", {"regex": r" \[[a-z]+\] (\d+#\d+: \*\d+) "}, "work"),
    KeyIdea("an audited action", {"regex": r"\baudit\((\d+\.\d+:\d+)\)"}, "work"),
    KeyIdea("a thread (klog)", {"regex": r"^[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +(\d+) "}, "thread"),
    KeyIdea("the address of a client", {"regex": r'^(\S+) \S+ (?:"[^"]*"|\S+) \[\d\d/'}, "client"),
    KeyIdea("the address of a client", {"regex": r"\[client ([^\]\s]+?)(?::\d+)?\]"}, "client"),
    KeyIdea("a thread", {"regex": r"(?:TRACE|DEBUG|INFO|WARN|WARNING|ERROR|FATAL) +(?:- +)?\[([^\[\]]+)\] "}, "thread"),
    KeyIdea("a thread", {"regex": r"\d\d:\d\d[.,]\d+ +\[([^\[\]]+)\] +(?:TRACE|DEBUG|INFO|WARN|ERROR)"}, "thread"),
)
_PROGRAM = r"(?:^|\s)([^\s\[\]]+\[\d+\]):"


def ideas_of(sample: SampleStream, texts: Sequence[str], documents: Sequence[object]) -> list[KeyIdea]:
    """What could be the session key.

    Args:
        sample: for the keys and headers of its records.
        texts: lines, or the messages of documents, in which patterns look for a key.
        documents: those of JSON; empty for lines.
    """
    texts, documents = texts[:_LOOKED_AT], documents[:_LOOKED_AT]
    found = [
        *_of_records(sample),
        *_of_documents(documents),
        *_words_with_ids(texts),
        *_named_ids(texts),
        *_IN_TEXT,
        *_other_ids(texts),
    ]
    if not documents:
        found += [*_AT_LINE_START, *_programs(texts, columns := list(_columns(texts))), *columns]
    return list({repr(idea.key): idea for idea in reversed(found)}.values())[::-1]


def preset_idea(preset: Preset, documents: Sequence[object]) -> list[KeyIdea]:
    """The key that a preset brings, if any; it is of the kind of that part of it which most documents have."""
    if preset.key is None:
        return []
    if not isinstance(preset.key, dict) or "any_of" not in preset.key:
        return [KeyIdea("what the format itself says whose a line is", preset.key, "process")]
    pointers = [JsonPointer(part["pointer"]) for part in preset.key["any_of"]]
    first: Counter[str] = Counter()
    for document in documents[:_LOOKED_AT]:
        first.update(next(([each.pointer] for each in pointers if _can_be_key(each.resolve(document))), []))
    if not first:
        return []
    pointer = first.most_common(1)[0][0]
    kind = _kind_of_name("_".join(pointer.split("/")[-2:])) or "host"
    return [KeyIdea(f"what the format itself says whose an event is, mostly {pointer}", preset.key, kind)]


def _kind_of_name(name: str) -> Kind | None:
    """Of a name such as `requestId`, `trace.id`, `kubernetes/pod_name`."""
    words = _WORDS_OF_NAME.findall(name)
    endings = ("".join(words[start:]).lower() for start in range(len(words)))
    unknown: Kind | None = "number" if words and words[-1].lower() in ("id", "uuid") else None
    return next((_KIND_OF[ending] for ending in endings if ending in _KIND_OF), unknown)


def _of_records(sample: SampleStream) -> Iterator[KeyIdea]:
    keys = sample.record_keys
    if keys:
        yield KeyIdea("the record's key", _of_bytes({"record_key": "utf-8"}, "record_key", keys), "records")
    by_name: dict[str, list[bytes]] = {}
    for name, content in sample.headers:
        by_name.setdefault(name, []).append(content)
    for name, contents in by_name.items():
        kind = _kind_of_name(name)
        if name.lower() == "traceparent":
            key: object = {"header": name, "pattern": "^..-([0-9a-f]{32})-"}
            yield KeyIdea("a trace (of the header traceparent)", key, "work")
        elif kind is not None:
            yield KeyIdea(f"the header {name}", _of_bytes({"header": name}, "as", contents), kind)


def _of_bytes(key: dict[str, object], member: str, contents: Sequence[bytes]) -> object:
    """A key of bytes with how they are read: text, a number of eight bytes, a UUID of sixteen, or base64."""
    if all(map(_is_text, contents)):
        return "record_key" if member == "record_key" else key
    sizes = {len(each) for each in contents}
    return {**key, member: "int64" if sizes == {8} else "uuid" if sizes == {16} else "base64"}


def _is_text(content: bytes) -> bool:
    try:
        return content.decode().isprintable()
    except UnicodeDecodeError:
        return False


def _of_documents(documents: Sequence[object]) -> Iterator[KeyIdea]:
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(pointer for pointer, value in _scalars(document) if _can_be_key(value))
    hosts: list[str] = []
    processes: list[str] = []
    for pointer, count in counts.items():
        names = pointer.split("/")
        kind = _kind_of_name("_".join(names[-2:]))
        if kind is None or count < _LEAST_SHARE * len(documents):
            continue
        (hosts if kind == "host" else processes if kind == "process" else []).append(pointer)
        yield KeyIdea(f"the member {pointer}", {"pointer": pointer}, kind)
    if hosts and processes:
        pair = hosts[0], processes[0]
        yield KeyIdea(
            f"a process: the members {pair[0]} and {pair[1]} together", [{"pointer": each} for each in pair], "process"
        )


def _scalars(document: object) -> Iterator[tuple[str, object]]:
    """The members of a document, OpenTelemetry's attributes by their names."""
    for pointer, value in members(document, depth=_DEPTH):
        if isinstance(value, list):
            for each in value:
                if isinstance(each, dict) and each.keys() >= {"key", "value"}:
                    yield pointer + written_path((str(each["key"]),)), plain(each["value"])
        elif not pointer.endswith(("/stringValue", "/intValue")):
            yield pointer, plain(value) if isinstance(value, dict) else value


def _can_be_key(value: object) -> bool:
    return (isinstance(value, str) and value != "") or (isinstance(value, int) and not isinstance(value, bool))


def _words_with_ids(texts: Sequence[str]) -> Iterator[KeyIdea]:
    values: dict[tuple[str, str], list[str]] = {}
    for text in texts:
        for word, between, value in set(_WORD_ID.findall(text)):
            values.setdefault((word, between), []).append(value)
    for (word, between), found in values.items():
        if len(found) < _LEAST_SHARE * len(texts) or len(set(found)) < _LEAST_VALUES:
            continue
        negative = "-?" if any(value.startswith("-") for value in found) else ""
        hexadecimal = any(not value.lstrip("-")[0].isdigit() for value in found)
        digits = all(value.lstrip("-").isdigit() for value in found)
        value = r"[0-9a-f][\w-]*" if hexadecimal else rf"{negative}\d+" if digits else rf"{negative}\d[\w-]*"
        key = {"regex": rf"\b({word}{between}{value})\b"}
        yield KeyIdea(f"what follows {word!r} in the line", key, _WORDS[word.lower()])


def _other_ids(texts: Sequence[str]) -> Iterator[KeyIdea]:
    """Words before an id that nobody has thought of: C-0000f3, INC-4711."""
    values: dict[str, list[str]] = {}
    for text in texts:
        for before, value in set(_OTHER_ID.findall(text)):
            values.setdefault(before, []).append(value)
    for before, found in values.items():
        if before[:-1].lower() not in _WORDS and len(found) > len(texts) / 2 and len(set(found)) >= _LEAST_VALUES:
            yield KeyIdea(
                f"what follows {before!r} in the line", {"regex": rf"\b({before}[0-9a-f]*\d[0-9a-f]*)\b"}, "number"
            )


def _named_ids(texts: Sequence[str]) -> Iterator[KeyIdea]:
    values: dict[tuple[str, str], list[str]] = {}
    for text in texts:
        for name, between, value in set(_NAMED.findall(text)):
            values.setdefault((name, between), []).append(value)
    for (name, between), found in values.items():
        kind = _kind_of_name(name)
        if kind is None or len(found) < _LEAST_SHARE * len(texts) or len(set(found)) < _LEAST_VALUES:
            continue
        written = name.replace(".", r"\.") + between.replace("\t", r"\t")
        yield KeyIdea(f"what follows {name!r} in the line", {"regex": rf"\b{written}([\w.:@/-]+)"}, kind)


def _programs(texts: Sequence[str], columns: Sequence[KeyIdea]) -> Iterator[KeyIdea]:
    """A program with its process id, wherever it stands; process ids of several machines are told apart by machine."""
    if _is_syslog(texts):
        return  # whose process has the machine too
    hosts = [idea.key for idea in columns if idea.kind == "name"]
    if hosts:
        yield KeyIdea("a process: machine, program and process id", [hosts[0], {"regex": _PROGRAM}], "process")
    else:
        yield KeyIdea("a process: program and process id", {"regex": _PROGRAM}, "process")


def _is_syslog(texts: Sequence[str]) -> bool:
    return sum(bool(_SYSLOG.search(text)) for text in texts) > len(texts) / 2


def _columns(texts: Sequence[str]) -> Iterator[KeyIdea]:
    """Places at which words stand that look like the names of machines, or numbers that come again."""
    syslog = _is_syslog(texts)
    bars = sum(text.count("|") >= 2 for text in texts) > len(texts) / 2
    rows = [re.split(r"\|" if bars else r"\s+", text) for text in texts]
    separator, word = (r"\|", r"[^|]+") if bars else (r"\s+", r"\S+")
    seen: set[tuple[str, ...]] = set()
    for column in range(_COLUMNS):
        values = [row[column] for row in rows if len(row) > column]
        distinct = set(values)
        if len(values) < len(rows) / 2 or len(distinct) < _LEAST_VALUES or tuple(values) in seen:
            continue
        seen.add(tuple(values))
        times = sum(bool(_TIMELIKE.search(value)) for value in values)
        names = sum(bool(_ADDRESS.match(value)) for value in values)
        wholes = sum(bool(_WHOLE.match(value)) for value in values)
        before = f"(?:{word}{separator}){{{column}}}" if column else ""
        key = {"regex": rf"^{before}({word})"}
        if times > len(values) / 2:
            continue
        if names > 0.7 * len(values):
            if syslog and column == _SYSLOG_HOST:
                yield KeyIdea("the host (syslog)", key, "host")
            else:
                yield KeyIdea(f"what stands in column {column + 1}: a machine's or place's name", key, "name")
        elif wholes > 0.7 * len(values) and len(distinct) < len(values) / 4 and not _ascends(values):
            yield KeyIdea(f"the number in column {column + 1}", key, "number")


def _ascends(values: Sequence[str]) -> bool:
    """Whether numbers hardly ever fall: they are dates, times of day or counts."""
    numbers = [int(value) for value in values if _WHOLE.match(value)]
    return sum(b < a for a, b in pairwise(numbers)) < len(numbers) / 20
