"""Opening the state store and its one way of writing: SQLite (WAL, synchronous=FULL) or PostgreSQL, the same code.

Every write goes through `write`: one transaction, begun at once (never upgraded from a read, which is how SQLite
deadlocks), never nested (a nested "commit" would be a savepoint and promise what it does not keep). Reads that need
more than one statement go through `read`, which sees one snapshot.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from monitor import telemetry
from monitor.errors import MigrationNeeded, StoreError
from monitor.store import migrations

BUSY_TIMEOUT_S: Final = 10.0  # how long a writer waits for the other writers of SQLite
CONNECT_TIMEOUT_S: Final = 3  # PostgreSQL
STATEMENT_TIMEOUT_MS: Final = 60_000
IDLE_TIMEOUT_MS: Final = 60_000  # a transaction that a paused process holds open is ended by the server
TOLERATED_SKEW_US: Final = 500_000
MIGRATION_LOCK: Final = 0x6C616E6E  # advisory lock of PostgreSQL: one migration at a time

_held = threading.local()


def open_state(url: str) -> sa.Engine:
    """An engine for a SQLAlchemy URL: `sqlite:////var/lib/lanner/state.db` or `postgresql+psycopg://user@host/db`.

    A SQLite file is made with mode 0600 (its folder with 0700) when it does not exist. Nothing is migrated; see `migrate` and
    `check_migrated`. Engines do not survive a fork: open one in every process.
    """
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(parsed)
    if parsed.get_backend_name() == "postgresql":
        return _open_postgres(parsed.set(drivername="postgresql+psycopg"))
    raise StoreError(f"the state store can be sqlite or postgresql, not {parsed.get_backend_name()}")


def _open_sqlite(url: sa.URL) -> sa.Engine:
    if url.database and url.database != ":memory:":
        path = Path(url.database)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as e:
            raise StoreError(f"cannot open the state store {path}: {e.strerror}") from e
    engine = sa.create_engine(
        url,
        connect_args={"timeout": BUSY_TIMEOUT_S},
        hide_parameters=True,  # parameters come from logs and from people; they belong in no error text
        json_serializer=_to_json,
        json_deserializer=msgspec.json.decode,
    )
    sa.event.listen(engine, "connect", _pragmas)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _pragmas(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver must not begin or commit behind our back
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(conn: sa.Connection) -> None:
    conn.exec_driver_sql("BEGIN IMMEDIATE" if conn.get_execution_options().get("lanner_write") else "BEGIN")


def _open_postgres(url: sa.URL) -> sa.Engine:
    return sa.create_engine(
        url,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "lanner",
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={int(BUSY_TIMEOUT_S * 1000)}"
            f" -c idle_in_transaction_session_timeout={IDLE_TIMEOUT_MS} -c timezone=UTC"
            " -c synchronous_commit=on",  # whatever the server's default: a commit that we were told of must stand
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
        },
        pool_pre_ping=True,
        hide_parameters=True,
        json_serializer=_to_json,
        json_deserializer=msgspec.json.decode,
    )


def _to_json(value: object) -> str:
    """Strict JSON: what is not a number becomes null, which PostgreSQL insists on; numpy scalars become plain numbers."""
    return msgspec.json.encode(value, enc_hook=_plain).decode()


def _plain(value: Any) -> object:
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a {type(value).__name__} cannot be stored as JSON")


@contextmanager
def write(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One write transaction: commits at the end, rolls back on any error. RuntimeError when this thread has one open.

    Raises StoreError when the store refuses or its answer is lost. Then nobody knows whether the transaction stands:
    read the store again, never repeat the write blindly. Broken constraints stay sqlalchemy.exc.IntegrityError.
    """
    held: set[int] = _held.__dict__.setdefault("engines", set())
    if id(engine) in held:
        raise RuntimeError("this thread already has a write transaction open: hand its connection on instead")
    held.add(id(engine))
    began_s = time.perf_counter()
    try:
        with _refusals(), engine.connect().execution_options(lanner_write=True) as conn, conn.begin():
            yield conn
    finally:
        held.discard(id(engine))
        telemetry.observe("store_write_duration_seconds", time.perf_counter() - began_s)


@contextmanager
def read(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One snapshot to read from. Raises StoreError when the store refuses."""
    options: dict[str, Any] = {}
    if engine.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with _refusals(), engine.connect().execution_options(**options) as conn, conn.begin():
        yield conn


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except sa.exc.IntegrityError:
        raise
    except sa.exc.OperationalError as e:
        raise StoreError(f"the state store refused: {str(e.orig).splitlines()[0][:200] if e.orig else e}") from e
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as e:
        raise StoreError(f"the state store failed ({type(e).__name__})") from e


class StoreClock:
    """Wall time by the clock of the state store, so that machines whose clocks differ agree on leases and retries.

    Called, it gives microseconds UTC. The difference to the clock of this machine is measured again every `every_s`.
    """

    def __init__(self, engine: sa.Engine, local_us: Callable[[], int], every_s: float = 30.0) -> None:
        self._engine = engine
        self._local_us = local_us
        self._every_s = every_s
        self._measured_s = -math.inf
        self.skew_us = 0  # how far this machine is behind the store

    def __call__(self) -> int:
        if time.monotonic() - self._measured_s > self._every_s:
            self._measure()
        return self._local_us() + self.skew_us

    def _measure(self) -> None:
        query = (
            "SELECT CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
            if self._engine.dialect.name == "sqlite"
            else "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"
        )
        before_us = self._local_us()
        with read(self._engine) as conn:
            there_us = int(conn.execute(sa.text(query)).scalar_one())
        here_us = (before_us + self._local_us()) // 2
        # A SQLite file is on this machine: what differs is rounding. Small differences elsewhere harm nothing.
        self.skew_us = there_us - here_us if abs(there_us - here_us) > TOLERATED_SKEW_US else 0
        self._measured_s = time.monotonic()


def insert(conn: sa.Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that can say what to do on conflict, in the words of the connection's database."""
    return sqlite.insert(table) if conn.dialect.name == "sqlite" else postgresql.insert(table)


def migrate(engine: sa.Engine) -> None:
    """Bring the tables to this program's version, in one transaction; harmless when they already are, or on a rerun."""
    with write(engine) as conn:
        if conn.dialect.name == "postgresql":
            conn.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        migrations.upgrade(conn)


def is_new(engine: sa.Engine) -> bool:
    """Whether the store has never been migrated: it holds nothing of ours."""
    with read(engine) as conn:
        return migrations.current(conn) is None


def check_migrated(engine: sa.Engine) -> None:
    """Raise MigrationNeeded unless the tables are exactly those of this program."""
    with read(engine) as conn:
        found = migrations.current(conn)
    if found != migrations.HEAD:
        raise MigrationNeeded(
            f"the state store stands at version {found or 'none'}, this program needs {migrations.HEAD}: run `lanner migrate`"
        )
