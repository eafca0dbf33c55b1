"""YAML as plain data whose keys remember their lines, read by the 1.2 rules: only true and false are booleans, dates are text.

`${VAR}` must be set, `${VAR:-x}` has a default, `${VAR:?why}` an explanation, `$${` stands for `${`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from monitor.errors import ConfigError, Mistake

Key = tuple[str | int, ...]
MAX_NODES: Final = 100_000
_TAG: Final = "tag:yaml.org,2002:"
_VARIABLE: Final = re.compile(r"\$\$\{|\$\{([A-Za-z_]\w*)(?:(:-|:\?)((?:[^}])*))?\}")


class _Core(yaml.SafeLoader):
    """YAML 1.2 core schema: `no`, `on`, 12:30 and 2026-11-22 are text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Core.add_implicit_resolver(_TAG + _tag, re.compile(rf"^(?:{_pattern})$"), list(_first))


@dataclass
class Reader:
    """State of one reading: what was found and what is wrong with it."""

    file: Path
    env: Mapping[str, str]
    lines: dict[Key, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    broken: set[Key] = field(default_factory=set)  # nothing more is said about these
    nodes: int = 0

    def wrong(self, key: Key, line: int, message: str) -> None:
        """Note a mistake; whatever stands at `key` is not judged any further."""
        self.broken.add(key)
        self.mistakes.append(Mistake(str(self.file), line, message))

    def document(self, key: Key = (), *, empty: str) -> Any:
        """The whole file as plain data that stands at `key`; `empty` is said of a file with nothing in it."""
        try:
            text = self.file.read_text(encoding="utf-8")
            node = yaml.compose(text, Loader=_Core)
        except OSError as error:
            raise ConfigError([Mistake(str(self.file), None, f"cannot be read: {error.strerror}")]) from error
        except UnicodeDecodeError as error:
            raise ConfigError([Mistake(str(self.file), None, "is not UTF-8 text")]) from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            begun = f", {error.context} in line {error.context_mark.line + 1}" if error.context_mark else ""
            message = f"is not valid YAML: {error.problem or error.context}{begun}"
            raise ConfigError([Mistake(str(self.file), mark.line + 1 if mark else None, message)]) from error
        except yaml.YAMLError as error:
            raise ConfigError([Mistake(str(self.file), None, f"is not valid YAML: {error}")]) from error
        if node is None:
            raise ConfigError([Mistake(str(self.file), 1, empty)])
        return self.plain(node, key)

    def plain(self, node: yaml.Node, key: Key) -> Any:
        """A node as plain data, with the line of every key noted."""
        self.nodes += 1
        self.lines.setdefault(key, node.start_mark.line + 1)
        if self.nodes > MAX_NODES:
            raise ConfigError([Mistake(str(self.file), node.start_mark.line + 1, "too many nested aliases")])
        if node.tag.removeprefix(_TAG) not in ("map", "seq", "str", "int", "float", "bool", "null"):
            self.wrong(key, node.start_mark.line + 1, f"the YAML tag {node.tag} is not supported")
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, (*key, i)) for i, item in enumerate(node.value)]
        return self.scalar(node, key)

    def mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        """A mapping; keys are text and may stand only once."""
        found: dict[str, Any] = {}
        first: dict[str, int] = {}
        for name, value in node.value:
            line = name.start_mark.line + 1
            if not isinstance(name, yaml.ScalarNode):
                self.wrong(key, line, "keys must be plain text")
            elif name.value == "<<":
                self.wrong(key, line, "the merge key << is not supported; repeat the keys")
            elif name.value in first:
                self.wrong(key, line, f"`{name.value}` stands here twice; the first is in line {first[name.value]}")
            else:
                first[name.value] = self.lines[*key, name.value] = line
                found[name.value] = self.plain(value, (*key, name.value))
        return found

    def scalar(self, node: yaml.Node, key: Key) -> Any:
        """A scalar, its variables filled in; an unquoted one is a number or a boolean if it then looks like it."""
        text = str(node.value)
        line = node.start_mark.line + 1
        if "${" in text:
            text = _VARIABLE.sub(lambda m: self.variable(m, key, line), text)
            if "${" in _VARIABLE.sub("", str(node.value)):
                self.wrong(
                    key,
                    line,
                    "`${` begins a variable: write ${NAME}, ${NAME:-default}, ${NAME:?why}, or $${ for the text",
                )
        if getattr(node, "style", None) is not None:
            return text
        tag = _Core("").resolve(yaml.ScalarNode, text, (True, False)).removeprefix(_TAG)  # type: ignore[no-untyped-call]
        if tag == "null":
            return None
        if tag == "bool":
            return text.lower() == "true"
        if tag == "int":
            return int(text)
        if tag == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return text

    def variable(self, match: re.Match[str], key: Key, line: int) -> str:
        """The value of one ${...}."""
        name, operator, rest = match.groups()
        if name is None:
            return "${"
        value = self.env.get(name) or None if operator else self.env.get(name)
        if value is None and operator == ":-":
            return str(rest)
        if value is None:
            why = rest if operator == ":?" and rest else f"set it, or give a default with ${{{name}:-value}}"
            self.wrong(key, line, f"the environment variable {name} is not set: {why}")
            return ""
        if "\n" in value or "\r" in value:
            self.wrong(key, line, f"the environment variable {name} holds a line break; use a secret file instead")
            return ""
        return value
