"""Reading a configuration: YAML whose keys remember their lines, over it secret files, over them the environment.

YAML is read by monitor.config.reader. A variable `LANNER_MODELS__CARD_FRAUD__TIER` sets `models.card-fraud.tier`; lists
and mappings are written as JSON. With LANNER_SECRETS_DIR every file of that folder counts as the variable it is named
after.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsError

from monitor.config.checks import cross_check
from monitor.config.messages import unknown_key, worded
from monitor.config.principals import Directory, directory_mistakes, read_directory
from monitor.config.reader import Key, Reader
from monitor.config.tree import Config
from monitor.errors import ConfigError, Mistake

PREFIX: Final = "LANNER_"
SECRETS_DIR: Final = "LANNER_SECRETS_DIR"
TOLERATED: Final = ("LANNER_TEST_", SECRETS_DIR)
SECRETS: Final = ("password", "token", "key", "target", "database")  # each has a twin that ends in _file


class _Settings(Config, BaseSettings):  # type: ignore[misc]  # both declare model_config
    """The tree as pydantic-settings wants it, to find out what a variable sets."""


class _Variables(EnvSettingsSource):
    """pydantic-settings' reading of one given variable instead of the process environment."""

    def __init__(self, name: str, value: str) -> None:
        self._given = {name.lower(): value}
        super().__init__(_Settings, case_sensitive=False, env_prefix=PREFIX, env_nested_delimiter="__")

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return self._given


@dataclass
class Loaded:
    """A configuration and where each of its keys came from, for checks that know more than this package."""

    config: Config
    file: Path
    lines: dict[Key, int] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)  # keys set by a variable or a secret file

    def mistake(self, key: Key, message: str) -> Mistake:
        """A mistake at this key: the variable that set it, or the line of the nearest key that stands in the file."""
        for length in range(len(key), 0, -1):
            origin = self.origins.get(key[:length])
            if origin:
                return Mistake(origin, None, message)
            if key[:length] in self.lines:
                return Mistake(str(self.file), self.lines[key[:length]], message)
        return Mistake(str(self.file), self.lines.get((), 1), message)


def read(file: Path, overrides: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None) -> Loaded:
    """Read, merge and check a configuration; raises ConfigError naming every mistake.

    `overrides` come from command line flags and win over all else. `env` is os.environ unless given.
    """
    env = os.environ if env is None else env
    reader = Reader(file, env)
    data = reader.document(empty="is empty; name at least one model under `models`")
    if not isinstance(data, dict):
        raise ConfigError([Mistake(str(file), 1, "must be a mapping with the key `models`"), *reader.mistakes])
    loaded = Loaded(Config.model_construct(), file, reader.lines)
    mistakes = reader.mistakes
    _fill_empty(data)
    if "folder" in data:
        mistakes.append(loaded.mistake(("folder",), unknown_key(Config, (), "folder")))
        del data["folder"]
    for origin, name, value in _variables(env, mistakes):
        _set_variable(data, loaded, origin, name, value, mistakes)
    folder = file.parent.resolve()
    _secret_files(data, loaded, reader, folder)
    _merge(data, dict(overrides or {}))
    config, found = _validated(data, folder)
    if config is not None:
        found += cross_check(config, data)
        mistakes += directory_mistakes(config, env)
    said = (f for f in found if not any(f[0][:n] in reader.broken for n in range(len(f[0]) + 1)))
    mistakes += [loaded.mistake(key, text) for key, text in said]
    if mistakes:
        raise ConfigError(sorted(set(mistakes), key=lambda m: (m.line is None, m.line or 0, m.file, m.message)))
    assert config is not None
    loaded.config = config
    return loaded


def load(file: Path, overrides: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None) -> Config:
    r"""Read, merge and check a configuration; raises ConfigError naming every mistake.

    >>> import tempfile
    >>> example = Path(tempfile.mkdtemp()) / "lanner.yaml"
    >>> _ = example.write_text("models: {fraud: {tier: 9}}\nbudgets: {drift: 1/30d}")
    >>> load(example, env={})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    monitor.errors.ConfigError: ...lanner.yaml:1: models.fraud.tier: must be at most 3
    """
    return read(file, overrides, env).config


def directories(config: Config, env: Mapping[str, str] | None = None) -> dict[str, Directory]:
    """The directory of principals of every model that has one. Raises ConfigError naming every mistake in a file."""
    env = os.environ if env is None else env
    files = {name: model.principals for name, model in config.models.items()}
    return {name: read_directory(config.path(file), env) for name, file in files.items() if file is not None}


def _fill_empty(data: dict[str, Any]) -> None:
    """A section that was left empty is a section of defaults."""
    for name, value in list(data.items()):
        if value is None and name in Config.model_fields and name != "environment":
            del data[name]
        elif isinstance(value, dict) and name in ("models", "monitors", "calendars"):
            data[name] = {k: {} if v is None else v for k, v in value.items()}


def _variables(env: Mapping[str, str], mistakes: list[Mistake]) -> Iterator[tuple[str, str, str]]:
    """(origin, name, value) of secret files and then of LANNER_ variables, so that the environment wins."""
    folder = env.get(SECRETS_DIR)
    if folder:
        if not Path(folder).is_dir():
            mistakes.append(Mistake(SECRETS_DIR, None, f"{folder} is not a folder"))
        else:
            for secret in sorted(Path(folder).iterdir()):
                name = secret.name.upper()
                if secret.is_file() and not secret.name.startswith("."):
                    yield str(secret), name if name.startswith(PREFIX) else PREFIX + name, secret.read_text().strip()
    for name, value in sorted(env.items()):
        if name.startswith(PREFIX) and not name.startswith(TOLERATED):
            yield name, name, value


def _set_variable(
    data: dict[str, Any], loaded: Loaded, origin: str, name: str, value: str, mistakes: list[Mistake]
) -> None:
    """Put what one variable sets into the data, under the names that already stand there."""
    first = name.removeprefix(PREFIX).split("__")[0].lower()
    if first not in Config.model_fields or first == "folder":
        near = get_close_matches(first, Config.model_fields, 1)
        hint = f"; did you mean {PREFIX}{near[0].upper()}?" if near else ""
        mistakes.append(Mistake(origin, None, f"unknown variable: there is no setting `{first}`{hint}"))
        return
    try:
        found = _Variables(name, value)()
    except (SettingsError, ValueError):
        mistakes.append(Mistake(origin, None, "must be JSON, because it sets more than one value"))
        return
    renamed = _named_like(found, data)
    for key in _leaves(renamed):
        loaded.origins[key] = origin
    _merge(data, renamed)


def _named_like(found: Any, data: Any) -> Any:
    """The same tree with keys spelt as in `data`: CARD_FRAUD of a variable is card-fraud of the file."""
    if not isinstance(found, dict) or not isinstance(data, dict):
        return found
    spelt = {re.sub(r"\W", "_", name).lower(): name for name in data}
    names = {k: spelt.get(re.sub(r"\W", "_", k).lower(), k) for k in found}
    return {names[k]: _named_like(v, data.get(names[k])) for k, v in found.items()}


def _leaves(tree: Any, key: Key = ()) -> Iterator[Key]:
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from _leaves(value, (*key, name))
    else:
        yield key


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for name, value in above.items():
        if isinstance(value, Mapping) and isinstance(below.get(name), dict):
            _merge(below[name], value)
        else:
            below[name] = value


def _secret_files(data: dict[str, Any], loaded: Loaded, reader: Reader, folder: Path) -> None:
    """Read each secret that is given as a file into its twin."""
    sections: list[tuple[Key, Any]] = [(("store",), data.get("store"))]
    for group in ("sources", "sinks"):
        entries = data.get(group)
        sections += [((group, n), v) for n, v in entries.items()] if isinstance(entries, dict) else []
    for key, section in sections:
        for name in SECRETS if isinstance(section, dict) else ():
            given = section.get(f"{name}_file")
            if not isinstance(given, str):
                continue
            at, wrong = (*key, f"{name}_file"), ""
            if (*key, name) in loaded.origins:
                continue  # the environment wins over the file
            if section.get(name) is not None:
                wrong = f"give {name} or {name}_file, not both"
            else:
                try:
                    section[name] = (folder / given).read_text(encoding="utf-8").strip()
                    wrong = "" if section[name] else f"{given} is empty"
                except (OSError, UnicodeDecodeError) as error:
                    wrong = f"{given} cannot be read: {getattr(error, 'strerror', None) or 'it is not text'}"
            if wrong:
                section[name] = "unread"  # nothing more is said about it
                reader.broken.add((*key, name))
                reader.mistakes.append(loaded.mistake(at, f"{'.'.join(map(str, at))}: {wrong}"))


def _validated(data: dict[str, Any], folder: Path) -> tuple[Config | None, list[tuple[Key, str]]]:
    """The tree of the data and what is wrong with it; that is cut out, so that the rest can still be checked."""
    left = _copy(data)
    found: list[tuple[Key, str]] = []
    for _ in range(4):  # what is cut may be missed by its section, and that by the whole
        try:
            return Config.model_validate({**left, "folder": folder}), found
        except ValidationError as errors:
            found = found or list(worded(errors, left))
            _cut(left, [problem["loc"] for problem in errors.errors()])
    return None, found


def _copy(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _copy(v) for k, v in tree.items()}
    return [_copy(v) for v in tree] if isinstance(tree, list) else tree


def _cut(tree: Any, locs: Iterable[tuple[str | int, ...]]) -> None:
    """Remove the value at each place: the entry that lacks something, the whole list that holds it."""
    cuts: list[tuple[dict[str, Any], str]] = []
    for loc in locs:
        at, cut = tree, None
        for part in loc:
            if not isinstance(at, dict) or part not in at:
                break
            cut, at = (at, str(part)), at[part]
        cuts += [cut] if cut else []
    for parent, name in cuts:
        parent.pop(name, None)
