"""Read a YAML file as plain values, with the line number of every key.

Size, values and depth are limited far beyond what settings need: ten lines with aliases can stand for 10^9
values.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from biofound.errors import SettingsError

Key = tuple[str | int, ...]

MAX_BYTES = 1_000_000
MAX_VALUES = 10_000
"""Keys and values in a file, what an alias stands for counted each time."""
MAX_DEPTH = 20
MAX_NUMBER = 100
"""Characters of a number."""

TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


@dataclass(frozen=True, kw_only=True)
class YamlSource:
    """A mapping read from YAML: its values, the line of each key path, and keys that come twice."""

    path: Path
    values: dict[str, Any]
    lines: dict[Key, int]
    problems: list[str] = field(default_factory=list)

    def where(self, key: Key) -> str:
        """`file:line` of the value at `key`, or of the nearest mapping around it."""
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.path}:{self.lines[key]}" if key in self.lines else str(self.path)


def read_yaml(path: Path) -> YamlSource:
    """Read a YAML mapping, with line numbers.

    Raises:
        SettingsError: when the file cannot be read, is not YAML, is no mapping, or is beyond the limits. Keys
            that come twice are collected in `problems` instead, so that they are reported with the other
            errors.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise SettingsError(f"{path}: expected settings of at most {MAX_BYTES:,} bytes, got more")
        node = _BoundedLoader(content.decode(), path).get_single_node()
    except OSError as problem:
        raise SettingsError(f"{path}: cannot be read: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise SettingsError(f"{path}: expected YAML in UTF-8, got other bytes") from problem
    except yaml.YAMLError as problem:
        raise SettingsError(f"{path}{_line_of(problem)}: not valid YAML: {_text_of(problem)}") from problem
    if node is None:
        return YamlSource(path=path, values={}, lines={})
    if not isinstance(node, yaml.MappingNode):
        raise SettingsError(f"{path}:{_line(node)}: expected a mapping of settings, got {_shape(node)}")
    lines: dict[Key, int] = {}
    try:
        problems = list(_walk(path, node, (), lines))
        values = yaml.SafeLoader("").construct_document(node)
    except (yaml.YAMLError, ValueError) as problem:
        raise SettingsError(f"{path}{_line_of(problem)}: not valid YAML: {_text_of(problem)}") from problem
    return YamlSource(path=path, values=values, lines=lines, problems=problems)


class _BoundedLoader(yaml.SafeLoader):
    """A loader that stops at the limits while it composes."""

    def __init__(self, text: str, path: Path) -> None:
        super().__init__(text)
        self._path, self._values, self._depth = path, 0, 0
        self._sizes: dict[str, int] = {}  # the values that each anchor stands for

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event, before = self.peek_event(), self._values  # type: ignore[no-untyped-call]
        self._values += 1
        if isinstance(event, yaml.AliasEvent) and event.anchor in self.anchors:
            if event.anchor not in self._sizes:
                self._refuse(event, "plain settings", "a value that holds itself")
            self._values += self._sizes[event.anchor]
        if self._values > MAX_VALUES:
            self._refuse(event, f"at most {MAX_VALUES:,} keys and values, those of aliases counted", "more")
        if self._depth > MAX_DEPTH:
            self._refuse(event, f"at most {MAX_DEPTH} levels", "more")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > MAX_NUMBER:
            got = f"one of {len(node.value):,}"
            self._refuse(event, f"a number of at most {MAX_NUMBER} characters", got)
        if not isinstance(event, yaml.AliasEvent) and event.anchor is not None:
            self._sizes[event.anchor] = self._values - before
        return node

    def _refuse(self, event: Any, expected: str, got: str) -> NoReturn:
        raise SettingsError(f"{self._path}:{event.start_mark.line + 1}: expected {expected}, got {got}")


def _walk(path: Path, node: yaml.Node, key: Key, lines: dict[Key, int]) -> Iterator[str]:
    """Store the line of everything under `node`; yields a message for each key that comes twice."""
    if isinstance(node, yaml.SequenceNode):
        for row, item in enumerate(node.value):
            lines[(*key, row)] = _line(item)
            yield from _walk(path, item, (*key, row), lines)
    elif isinstance(node, yaml.MappingNode):
        for name_node, item in node.value:
            if isinstance(name_node, yaml.ScalarNode) and name_node.tag != MERGE:
                name_node.tag = TEXT  # YAML would read the key `on` as True and `5` as a number
            below = (*key, str(name_node.value))
            if below in lines:
                name, first = ".".join(map(str, below)), lines[below]
                yield f"{path}:{_line(name_node)}: {name} comes twice; it already stands in line {first}"
            lines[below] = _line(name_node)
            yield from _walk(path, item, below, lines)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _line_of(problem: Exception) -> str:
    mark = getattr(problem, "problem_mark", None)
    return f":{mark.line + 1}" if mark is not None else ""


def _text_of(problem: Exception) -> str:
    return str(getattr(problem, "problem", None) or problem)


def _shape(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else f"{node.value!r}"
