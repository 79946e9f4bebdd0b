"""Reads a settings file: YAML without repeated keys, `${NAME}` from the environment, secrets from files.

The tree as written is kept beside the tree of values, so that an error shows what the file says and not what
the environment holds, and the tree of YAML's own nodes, so that it names the place.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

import yaml

from worker.settings.alerts import header_secret, receiver_secret
from worker.settings.kafka_properties import REDACTED, is_secret
from worker.settings.schema_registry import registry_secret

_REFERENCE = re.compile(r"(\$?)\$\{([^}]*)(\}?)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEEPEST = 16
_LARGEST_NUMBER = 2**64
# What PyYAML quotes of a file in its reasons: single characters and kinds of tokens tell no secret, names could.
_QUOTED = re.compile(r"('[^']'|'<[^>']*>')|['\"].*", re.DOTALL)
_FROM_FILE = "_file"
_RECEIVER_FILES = {f"{name}{_FROM_FILE}": name for name in ("url", "routing_key")}
_ABSENT = object()

Steps: TypeAlias = tuple[str | int, ...]


@dataclass
class SettingsTree:
    """A settings file before its values are checked.

    Attributes:
        written: the mapping of the file with the overrides in it.
        values: the same with references and secrets filled in, less what could not be filled in.
        errors: each error's path within the tree (empty: the sentence says where) and its sentence.
        file: the file; None without one.
        node: its content as YAML has read it.
        overridden: the paths of the overrides.
    """

    written: dict[str, object] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    errors: list[tuple[Steps, str]] = field(default_factory=list)
    file: Path | None = None
    node: yaml.Node | None = None
    overridden: list[Steps] = field(default_factory=list)

    def text_at(self, path: Sequence[str | int]) -> str | None:
        """What the file says at a path, on one short line; None when it says nothing there."""
        node: object = self.written
        for step in path:
            below = dict(enumerate(node)) if isinstance(node, list) else node
            if not isinstance(below, dict) or step not in below:
                return None
            node = below[step]
        return _one_line(node)

    def place_of(self, *paths: Steps) -> str:
        """Where the first of these settings that is written stands, as the beginning of a line about it.

        `worker.yaml:3:5: ` is the key's line and column, or those of what holds it where only that is written; `--set `
        stands for an override. Where nothing is written it is the file alone, if there is one.
        """
        return max((self._place(path) for path in paths), key=lambda place: place[0])[1]

    def _place(self, path: Steps) -> tuple[float, str]:
        """The share of a path's steps that are written, and where the last of these stands."""
        if any(path[: len(steps)] == steps for steps in self.overridden):
            return 1.0, "--set "
        depth, mark = _descend(self.node, path)
        if depth < len(path) and any(steps[: len(path)] == path for steps in self.overridden):
            return 1.0, "--set "
        if self.file is None:
            return 0.0, "--set " if self.overridden else ""
        place = str(self.file) if mark is None else f"{self.file}:{mark.line + 1}:{mark.column + 1}"
        return depth / len(path), f"{place}: "


def _descend(node: yaml.Node | None, path: Steps) -> tuple[int, yaml.Mark | None]:
    """How many steps of a path lead somewhere, and where the last of these stands."""
    mark = None
    for depth, step in enumerate(path):
        found = None
        if isinstance(node, yaml.MappingNode):
            names = (step, f"{step}{_FROM_FILE}")
            # Of a key that is repeated, and of those that `<<` brings in, the last one counts.
            found = next((pair for pair in reversed(node.value) if _key_text(pair[0]) in names), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            found = node.value[step], node.value[step]
        if found is None:
            return depth, mark
        mark, node = found[0].start_mark, found[1]
    return len(path), mark


def _key_text(key: yaml.Node) -> str:
    return str(yaml.constructor.SafeConstructor().construct_object(key))


def read_settings_tree(path: Path | None, overrides: Sequence[str], environment: Mapping[str, str]) -> SettingsTree:
    """The tree of a file (None: an empty one) and of overrides such as `sessions.gap=5m`."""
    tree = SettingsTree()
    if path is not None:
        _read(path, tree)
    for override in overrides:
        _override(override, tree)
    _resolve_all(tree, environment)
    return tree


class _Loader(yaml.SafeLoader):
    """Safe YAML that remembers keys which one mapping holds twice, and refuses every value that it cannot read."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.repeated: list[tuple[str, yaml.Mark, yaml.Mark]] = []

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            value: object = super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):  # as of 2020-99-99, !!bool maybe, !!timestamp soon
            raise yaml.constructor.ConstructorError(
                None, None, "the value is not what it looks like", node.start_mark
            ) from None
        if isinstance(value, int) and abs(value) >= _LARGEST_NUMBER:
            raise yaml.constructor.ConstructorError(None, None, "the number is too large", node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        first: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in first:
                    self.repeated.append((key.value, first[key.value], key.start_mark))
                first.setdefault(key.value, key.start_mark)
        return super().construct_mapping(node, deep)


def _read(path: Path, tree: SettingsTree) -> None:
    tree.file = path
    try:
        tree.node, content, repeated = _parsed(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        tree.errors.append(((), f"{path}: cannot be read: {error.strerror}"))
        return
    except UnicodeDecodeError as error:
        tree.errors.append(((), f"{path}: is not UTF-8 text (byte {error.start})"))
        return
    except yaml.YAMLError as error:
        mark = error.problem_mark or error.context_mark if isinstance(error, yaml.MarkedYAMLError) else None
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        tree.errors.append(((), f"{place}: is not valid YAML: {_reason(error)}"))
        return
    for key, first, again in repeated:
        place = f"{path}:{again.line + 1}:{again.column + 1}"
        tree.errors.append(((), f"{place}: key {key!r} repeats that of line {first.line + 1}"))
    if content is None:
        return
    if not isinstance(content, dict):
        tree.errors.append(((), f"{path}: is not a mapping of settings but {_kind(content)}"))
        return
    tree.written = _with_text_keys(content)


def _parsed(text: str) -> tuple[yaml.Node | None, object, list[tuple[str, yaml.Mark, yaml.Mark]]]:
    """YAML text as nodes and as values, and the keys that it repeats with both places.

    Raises:
        yaml.YAMLError: it is none.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return node, None if node is None else loader.construct_document(node), loader.repeated
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def _reason(error: yaml.YAMLError) -> str:
    """What is wrong with YAML text, without the names in it: of a secret in the wrong place they could be a part."""
    if isinstance(error, yaml.MarkedYAMLError):
        reason = str(error.problem or error.context)
    else:
        reason = " ".join(str(error).split())
    return _QUOTED.sub(lambda quoted: quoted[1] or "…", reason)


def steps_of(path: str) -> list[str]:
    """The steps of a setting's path as people write it."""
    # Names of librdkafka's properties hold dots, every other dot leads one level down.
    return path.split(".", 1) if path.startswith("kafka.") else path.split(".")


def _override(override: str, tree: SettingsTree) -> None:
    path, equals, text = override.partition("=")
    steps = steps_of(path)
    if not equals or not all(steps):
        tree.errors.append(((), f"--set {path[:80]!r} is not an override; allowed: section.key=value"))
        return
    try:
        _, value, _ = _parsed(text)
    except yaml.YAMLError as error:
        tree.errors.append(((), f"--set {path}: the value is not valid YAML: {_reason(error)}"))
        return
    node = tree.written
    for step in steps[:-1]:
        below = node.get(step)
        if not isinstance(below, dict):
            below = node[step] = {}
        node = below
    node[steps[-1]] = _with_text_keys(value) if isinstance(value, dict) else value
    tree.overridden.append(tuple(steps))


def _resolve_all(tree: SettingsTree, environment: Mapping[str, str]) -> None:
    for section, content in tree.written.items():
        if content is None:
            continue  # a section whose keys are all commented out
        if section == "kafka" and isinstance(content, dict):
            tree.values[section] = _properties(content, (section,), is_secret, tree, environment)
        elif section == "output" and isinstance(content, dict):
            tree.values[section] = dict(_output(content, tree, environment))
        elif section == "alert" and isinstance(content, dict):
            tree.values[section] = dict(_alert(content, tree, environment))
        else:
            found = _resolve(content, (section,), tree, environment)
            if found is not _ABSENT:
                tree.values[section] = found


def _output(
    content: dict[str, object], tree: SettingsTree, environment: Mapping[str, str]
) -> Iterator[tuple[str, object]]:
    for key, written in content.items():
        path, errors = ("output", key), len(tree.errors)
        if key == "schema_registry" and isinstance(written, dict):
            value: object = _properties(written, path, registry_secret, tree, environment)
        else:
            value = _resolve(written, path, tree, environment)
        if len(tree.errors) == errors:  # it is not judged without the part that is missing
            yield key, value


def _properties(
    content: dict[str, object],
    path: Steps,
    secret: Callable[[str], bool],
    tree: SettingsTree,
    environment: Mapping[str, str],
) -> dict[str, object]:
    """Properties of a client library, each of which a file may hold whose name `…_file` gives."""
    named = {name: name.removesuffix(_FROM_FILE) for name in content}
    return dict(_with_secrets(content, path, named, secret, tree, environment))


def _resolve(node: object, path: Steps, tree: SettingsTree, environment: Mapping[str, str]) -> object:
    """The node with its references filled in, or _ABSENT after an error."""
    if len(path) > _DEEPEST:
        tree.errors.append((path[:2], "is nested too deeply"))
        return _ABSENT
    if isinstance(node, str):
        return _filled_in(node, path, tree, environment)
    if isinstance(node, dict):
        pairs = [(key, _resolve(below, (*path, key), tree, environment)) for key, below in node.items()]
        # A variant such as {regex: …} is not judged without the part that is missing.
        whole = len(path) == 1 or all(below is not _ABSENT for _, below in pairs)
        return {key: below for key, below in pairs if below is not _ABSENT} if whole else _ABSENT
    if isinstance(node, list):
        items = [_resolve(below, (*path, i), tree, environment) for i, below in enumerate(node)]
        return _ABSENT if any(item is _ABSENT for item in items) else items
    return node


def _filled_in(text: str, path: Steps, tree: SettingsTree, environment: Mapping[str, str]) -> object:
    problems = []

    def fill_in(match: re.Match[str]) -> str:
        escape, name, closed = match.groups()
        if escape:
            return match[0][1:]
        if not closed or not _NAME.fullmatch(name):
            problems.append("holds ${ without a name; allowed: ${NAME}, or $${ for these characters")
        elif name not in environment:
            problems.append(f"refers to the environment variable {name}, which is not set")
        return environment.get(name, "")

    filled = _REFERENCE.sub(fill_in, text)
    if not _is_unicode(filled):
        problems.append("holds a character that Unicode does not know")
    tree.errors.extend((path, problem) for problem in dict.fromkeys(problems))
    return _ABSENT if problems else filled


def _with_secrets(
    content: dict[str, object],
    above: Steps,
    named: Mapping[str, str],
    secret: Callable[[str], bool],
    tree: SettingsTree,
    environment: Mapping[str, str],
) -> Iterator[tuple[str, object]]:
    """The settings of a mapping with its secrets filled in, less what could not be.

    Args:
        content: the mapping.
        above: its path.
        named: for each key the setting that it gives: another one where it names the file that holds a secret.
        secret: whether a setting is one.
        tree: gets the errors.
        environment: where `${NAME}` is looked up.
    """
    for name, written in content.items():
        path, target = (*above, name), named[name]
        if name == target and secret(target) and not _is_reference(written):
            how = f"${{NAME}} from the environment, or {name}{_FROM_FILE}: PATH"
            tree.errors.append((path, f"is a secret, which does not belong in this file; allowed: {how}"))
            continue
        value = _resolve(written, path, tree, environment)
        if value is _ABSENT:
            continue
        if name == target:
            yield name, value
        elif target in content:
            tree.errors.append((path, f"is given beside {target}; allowed: one of the two"))
        elif (found := _read_secret(value, path, tree)) is not None:
            yield target, found


def _alert(
    content: dict[str, object], tree: SettingsTree, environment: Mapping[str, str]
) -> Iterator[tuple[str, object]]:
    for key, written in content.items():
        if key != "receivers" or not isinstance(written, dict):
            value = _resolve(written, ("alert", key), tree, environment)
            if value is not _ABSENT:
                yield key, value
            continue
        receivers = {}
        for name, receiver in written.items():
            errors, path = len(tree.errors), ("alert", key, name)
            if isinstance(receiver, dict):
                named: dict[str, str] = {each: str(_RECEIVER_FILES.get(each, each)) for each in receiver}
                headers = receiver.get("headers")
                for header, text in headers.items() if isinstance(headers, dict) else ():
                    if header_secret(header) and not _is_reference(text):
                        sentence = "is a secret, which does not belong in this file; allowed: ${NAME} for a part of it"
                        tree.errors.append(((*path, "headers", header), sentence))
                secret = partial(receiver_secret, receiver)
                found: object = dict(_with_secrets(receiver, path, named, secret, tree, environment))
            else:
                found = receiver
            if len(tree.errors) == errors:  # a receiver is not judged without the part that is missing
                receivers[name] = found
        yield key, receivers


def _read_secret(value: object, path: Steps, tree: SettingsTree) -> str | None:
    if not isinstance(value, str) or not value:
        tree.errors.append((path, "is not the path of a file"))
        return None
    try:
        secret = Path(value).read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        tree.errors.append((path, f"names a file that cannot be read: {error.strerror}"))
    except ValueError:
        tree.errors.append((path, "names a file that is not UTF-8 text"))
    else:
        if secret:
            return secret
        tree.errors.append((path, "names an empty file"))
    return None


def _is_reference(written: object) -> bool:
    return isinstance(written, str) and any(not match[1] for match in _REFERENCE.finditer(written))


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _with_text_keys(node: dict[object, object]) -> dict[str, object]:
    return {
        str(key).encode("utf-8", "backslashreplace").decode(): _with_text_keys(value)
        if isinstance(value, dict) and value is not node
        else value
        for key, value in node.items()
    }


def _kind(content: object) -> str:
    return "a list" if isinstance(content, list) else "a single value"


def _one_line(value: object, levels: int = 3) -> str:
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, dict | list) and not levels:
        text = "…"
    elif isinstance(value, dict):
        shown = {
            key: REDACTED if is_secret(str(key)) or registry_secret(str(key)) else _one_line(below, levels - 1)
            for key, below in value.items()
        }
        text = "{" + ", ".join(f"{key}: {below}" for key, below in shown.items()) + "}"
    elif isinstance(value, list):
        text = "[" + ", ".join(_one_line(below, levels - 1) for below in value) + "]"
    else:
        text = repr(value) if isinstance(value, str | int | float) else f"'{value}'"
    return text if len(text) <= 80 else f"{text[:77]}…"
