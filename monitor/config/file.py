"""Reading a configuration: YAML with lines, environment, secret files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from monitor.config.tree import Config


@dataclass(frozen=True)
class Loaded:
    """A configuration and where each of its keys stands."""

    config: Config


def read(file: Path, overrides: dict[str, Any] | None = None) -> Loaded:
    """Read a configuration."""
    data = yaml.safe_load(file.read_text()) | (overrides or {})
    return Loaded(Config(**data, folder=file.parent.resolve()))


def load(file: Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read, merge and check a configuration; raises ConfigError naming every mistake."""
    return read(file, overrides).config
