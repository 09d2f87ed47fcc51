"""Read a YAML file as plain values, with the line number of every key."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from biofound.errors import SettingsError

Key = tuple[str | int, ...]

TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


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
        SettingsError: when the file cannot be read, is not YAML, or is no mapping. Keys that come twice are
            collected in `problems` instead, so that they are reported with the other errors.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
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
    except RecursionError as problem:
        raise SettingsError(
            f"{path}: expected plain settings, got mappings that hold themselves"
        ) from problem
    return YamlSource(path=path, values=values, lines=lines, problems=problems)


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
