"""Versions of the state store's tables. docs/state-store.md says how a table is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

HEAD: Final = "0003"


def upgrade(conn: sa.Connection) -> None:
    """Run every version that the database has not seen, on the caller's transaction."""
    command.upgrade(alembic_config(conn), "head")


def current(conn: sa.Connection) -> str | None:
    """The version that the database stands at; None when it is empty."""
    if not sa.inspect(conn).has_table("alembic_version"):
        return None
    version = conn.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return None if version is None else str(version)


def alembic_config(conn: sa.Connection | None = None) -> Config:
    """Alembic's settings, made in code so that the installed package needs no file beside it."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = conn
    return config
