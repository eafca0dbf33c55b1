"""The configuration: `load` reads a file, the environment and secret files into one frozen, checked `Config`."""

from __future__ import annotations

from monitor.config.file import Loaded, directories, load, read
from monitor.config.principals import Directory, KnownPrincipal
from monitor.config.tree import (
    Budgets,
    Calendar,
    Config,
    Decoders,
    Feature,
    FieldMap,
    ModelConfig,
    Monitor,
    Privacy,
    Reference,
    Route,
    Schedule,
    Server,
    SeverityName,
    SinkConfig,
    Source,
    StoreConfig,
    rate,
    seconds,
    size_bytes,
)

__all__ = [
    "Budgets",
    "Calendar",
    "Config",
    "Decoders",
    "Directory",
    "Feature",
    "FieldMap",
    "KnownPrincipal",
    "Loaded",
    "ModelConfig",
    "Monitor",
    "Privacy",
    "Reference",
    "Route",
    "Schedule",
    "Server",
    "SeverityName",
    "SinkConfig",
    "Source",
    "StoreConfig",
    "directories",
    "load",
    "rate",
    "read",
    "seconds",
    "size_bytes",
]
