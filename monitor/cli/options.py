"""Options that several commands share."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from monitor.errors import UsageError

ConfigFile = Annotated[Path, typer.Option("-c", "--config", help="The configuration file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout, one object a line.")]
DEFAULT: Final = Path("lanner.yaml")


def owner(part: str) -> str:
    """Who holds leases: unique per process, readable in the store."""
    return f"{part}@{socket.gethostname()}:{os.getpid()}"


@contextmanager
def store(config: Path) -> Iterator[Any]:
    """The engine of the state store that a configuration names; reading must not make one."""
    from monitor.config import load
    from monitor.service.compose import state_url
    from monitor.store.engine import check_migrated, open_state

    url = state_url(load(config))
    file = Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None
    if file is not None and not file.exists():
        raise UsageError("nothing has been stored yet: start `lanner run`, or `lanner check` for what is in the log")
    engine = open_state(url)
    try:
        check_migrated(engine)
        yield engine
    finally:
        engine.dispose()
