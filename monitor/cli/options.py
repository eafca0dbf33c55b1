"""Options that several commands share."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Final

import typer

ConfigFile = Annotated[Path, typer.Option("-c", "--config", help="The configuration file.")]
DEFAULT: Final = Path("lanner.yaml")


def owner(part: str) -> str:
    """Who holds leases: unique per process, readable in the store."""
    return f"{part}@{socket.gethostname()}:{os.getpid()}"
