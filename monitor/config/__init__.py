"""The configuration: `load` reads a file, the environment and secret files into one frozen, checked `Config`."""

from __future__ import annotations

from monitor.config.fields import SeverityName, rate, seconds, size_bytes
from monitor.config.file import Loaded, directories, load, read
from monitor.config.principals import Directory, KnownPrincipal
from monitor.config.severity import Severities
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
    SinkConfig,
    Source,
    StoreConfig,
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
    "Severities",
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
