"""Which collector serves which type of source. HTTP pushes instead of being polled: see collectors.http."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from collectors.base import Collector
from monitor.config import Config, Source
from monitor.errors import UsageError


def _kafka(name: str, source: Source, config: Config) -> Collector:
    from collectors.kafka import KafkaCollector  # noqa: PLC0415 -- the client is heavy; file sources need none

    return KafkaCollector(name, source, config.folder)


def _files(name: str, source: Source, config: Config) -> Collector:
    from collectors.files import FileCollector  # noqa: PLC0415

    return FileCollector(name, [str(config.folder / pattern) for pattern in source.paths], follow=source.follow)


COLLECTORS: Final[dict[str, Callable[[str, Source, Config], Collector]]] = {"kafka": _kafka, "files": _files}


def collector_for(name: str, source: Source, config: Config) -> Collector:
    """The collector of a configured source, not yet reading."""
    make = COLLECTORS.get(source.type)
    if make is None:
        raise UsageError(f"source {name}: type {source.type} is not read by polling")
    return make(name, source, config)
