"""The directory of principals: what the bank declares about those who call a model, by patterns of their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fnmatch import translate
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from monitor.config.fields import Section
from monitor.config.messages import worded
from monitor.config.reader import Key, Reader
from monitor.config.tree import Config
from monitor.errors import ConfigError, Mistake

TOP: Final = "principals"  # the file is a list; inside it stands under this name


class Exposure(Section):
    """How much of a model a caller may learn from its answers."""

    kappa: float | None = Field(default=None, gt=0, le=1)
    """How good a copy of the model the answers may allow: agreement beyond chance, 0 to 1."""
    distinct_rows: int | None = Field(default=None, ge=1)
    """How many different rows the caller may ask about."""


class KnownPrincipal(Section):
    """One entry of the directory."""

    id: str = Field(min_length=1, max_length=400)
    """The caller's name, or a pattern of names: * any text, ? one character, [ab] one of these. Upper case counts."""
    kind: str = ""
    """What it is: service, user, partner, tool ..."""
    group: str = ""
    """Callers of one group are each other's peers."""
    owner: str = ""
    """Who answers for it; shown with the caller."""
    profile: Literal["batch", "what_if", "explainer", "load_test", "health_probe", "retries", "segment"] | None = None
    """What it is for, where that looks unusual."""
    budget: Exposure = Exposure()
    """Exposure allowed; beyond it the owner of the model hears of it."""

    @property
    def exact(self) -> bool:
        """Whether `id` is one name and no pattern."""
        return not re.search(r"[*?\[]", self.id)


class Directory(Section):
    """The entries in the order of the file; the first that fits a name counts."""

    principals: tuple[KnownPrincipal, ...]

    @cached_property
    def exact(self) -> Mapping[str, int]:
        """Place of each entry that is one name."""
        return {e.id: i for i, e in enumerate(self.principals) if e.exact}

    @cached_property
    def patterns(self) -> tuple[tuple[int, str, re.Pattern[str]], ...]:
        """Place, id and compiled form of each entry that is a pattern."""
        return tuple((i, e.id, re.compile(translate(e.id))) for i, e in enumerate(self.principals) if not e.exact)

    def matching(self, name: str) -> tuple[str, ...]:
        """Ids of the patterns that fit a name, in file order; entries that are plain names are not among them."""
        return tuple(text for _, text, pattern in self.patterns if pattern.match(name))

    def entry(self, name: str) -> KnownPrincipal | None:
        """The first entry that fits a name.

        >>> d = Directory(principals=(KnownPrincipal(id="svc-a"), KnownPrincipal(id="svc-*", group="services")))
        >>> d.entry("svc-a").group, d.entry("svc-b").group, d.entry("ann")
        ('', 'services', None)
        """
        places = [i for i, _, pattern in self.patterns if pattern.match(name)]
        places += [self.exact[name]] if name in self.exact else []
        return self.principals[min(places)] if places else None


def read_directory(file: Path, env: Mapping[str, str]) -> Directory:
    """Read and check a directory of principals; raises ConfigError naming every mistake with file and line."""
    reader = Reader(file, env)
    data = reader.document((TOP,), empty="is empty; write a list of entries that begin with `- id:`")
    if not isinstance(data, list):
        raise ConfigError([Mistake(str(file), 1, "must be a list of entries that begin with `- id:`")])
    found: list[tuple[Key, str]] = []
    directory: Directory | None = None
    try:
        directory = Directory.model_validate({TOP: data})
    except ValidationError as errors:
        found = list(worded(errors, {TOP: data}, Directory))
    found += _shadowed(data, reader)
    mistakes = [*reader.mistakes]
    for key, text in found:
        if not any(key[:n] in reader.broken for n in range(len(key) + 1)):
            mistakes.append(Mistake(str(file), _line(reader, key), text))
    if mistakes or directory is None:
        raise ConfigError(sorted(set(mistakes), key=lambda m: (m.line or 0, m.message)))
    return directory


def directory_mistakes(config: Config, env: Mapping[str, str]) -> list[Mistake]:
    """What is wrong in the directories that a configuration names. A file that is not there is said elsewhere."""
    files = {config.path(m.principals) for m in config.models.values() if m.principals is not None}
    found: list[Mistake] = []
    for file in sorted(f for f in files if f.exists()):
        try:
            read_directory(file, env)
        except ConfigError as error:
            found += error.mistakes
    return found


def _shadowed(data: list[Any], reader: Reader) -> Iterator[tuple[Key, str]]:
    """Entries that can never count because an earlier one fits whatever they fit."""
    earlier: list[tuple[str, int]] = []
    for i, entry in enumerate(data):
        text = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not text:
            continue
        for other, line in earlier:
            if text == other or (not re.search(r"[*?\[]", text) and re.match(translate(other), text)):
                yield (TOP, i, "id"), f"{TOP}.{i}.id: is never reached; `{other}` in line {line} fits it first"
                break
        earlier.append((text, _line(reader, (TOP, i, "id"))))


def _line(reader: Reader, key: Key) -> int:
    return next((reader.lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in reader.lines), 1)
