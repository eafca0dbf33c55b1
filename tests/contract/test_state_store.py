"""The state store itself, on SQLite and PostgreSQL: migrations, transactions, errors without secrets."""

from __future__ import annotations

import stat
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.command import downgrade
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from monitor.errors import MigrationNeeded, StoreError
from monitor.store import migrations
from monitor.store.engine import StoreClock, check_migrated, migrate, open_state, read, write
from monitor.store.schema import metadata, models


def test_migrations_make_exactly_the_declared_tables(state_url: str) -> None:
    """After `migrate` the database has what schema.py declares, and a second run changes nothing."""
    engine = open_state(state_url)
    with pytest.raises(MigrationNeeded, match="lanner migrate"):
        check_migrated(engine)
    migrate(engine)
    migrate(engine)
    check_migrated(engine)
    with read(engine) as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_migrations_can_be_undone(state_url: str) -> None:
    """Going down leaves no table, and going up again works."""
    engine = open_state(state_url)
    migrate(engine)
    with write(engine) as conn:
        downgrade(migrations.alembic_config(conn), "base")
    with read(engine) as conn:
        assert set(sa.inspect(conn).get_table_names()) <= {"alembic_version"}
    migrate(engine)
    check_migrated(engine)
    engine.dispose()


def test_head_is_the_newest_migration() -> None:
    """The version that a start checks for, without loading Alembic's scripts, is the newest one."""
    assert ScriptDirectory.from_config(migrations.alembic_config()).get_current_head() == migrations.HEAD


def test_a_failed_migration_changes_nothing(state_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are made in one transaction: an error at the end leaves an empty database, and a rerun succeeds."""
    engine = open_state(state_url)
    upgrade = migrations.upgrade

    def broken(conn: sa.Connection) -> None:
        upgrade(conn)
        raise KeyboardInterrupt

    monkeypatch.setattr(migrations, "upgrade", broken)
    with pytest.raises(KeyboardInterrupt):
        migrate(engine)
    with read(engine) as conn:
        assert sa.inspect(conn).get_table_names() == []
    monkeypatch.undo()
    migrate(engine)
    check_migrated(engine)
    engine.dispose()


def test_migrating_at_once_from_two_threads_works(state_url: str) -> None:
    """Two processes that start together migrate one after the other."""
    engines = [open_state(state_url) for _ in range(2)]
    threads = [threading.Thread(target=migrate, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_migrated(engines[0])
    for engine in engines:
        engine.dispose()


def test_an_error_rolls_back_everything(state_url: str) -> None:
    """What a failing transaction wrote before is gone."""
    engine = open_state(state_url)
    migrate(engine)
    row = {"model_id": "1", "name": "m", "schema": {}}
    with pytest.raises(KeyError), write(engine) as conn:
        conn.execute(models.insert().values(row))
        raise KeyError
    with read(engine) as conn:
        assert conn.execute(sa.select(models)).all() == []
    engine.dispose()


def test_broken_constraints_stay_what_they_are_and_refusals_hide_values(state_url: str) -> None:
    """Callers tell a duplicate from a refusal; no value of a row stands in an error text."""
    engine = open_state(state_url)
    migrate(engine)
    row = {"model_id": "1", "name": "secret-name", "schema": {}}
    with write(engine) as conn:
        conn.execute(models.insert().values(row))
    with pytest.raises(sa.exc.IntegrityError), write(engine) as conn:
        conn.execute(models.insert().values(row))
    with pytest.raises(StoreError) as caught, write(engine) as conn:
        conn.execute(sa.text("SELECT * FROM nowhere WHERE x = :x"), {"x": "secret-value"})
    assert "secret" not in str(caught.value)
    engine.dispose()


def test_writers_wait_for_each_other(state_url: str) -> None:
    """Many threads that read and then write one row lose no update."""
    engine = open_state(state_url)
    migrate(engine)
    with write(engine) as conn:
        conn.execute(models.insert().values(model_id="1", name="m", schema={}, position=0))

    def add() -> None:
        for _ in range(10):
            with write(engine) as conn:
                seen = conn.scalar(sa.select(models.c.position).with_for_update())
                conn.execute(models.update().values(position=(seen or 0) + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with read(engine) as conn:
        assert conn.scalar(sa.select(models.c.position)) == 40
    engine.dispose()


def test_sqlite_is_durable_and_private(tmp_path: Path) -> None:
    """WAL, synchronous=FULL, foreign keys on; the file belongs to its owner only."""
    engine = open_state(f"sqlite:///{tmp_path / 'new' / 'state.db'}")
    with read(engine) as conn:
        settings = {
            p: conn.exec_driver_sql(f"PRAGMA {p}").scalar() for p in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    assert stat.S_IMODE((tmp_path / "new" / "state.db").stat().st_mode) == 0o600
    engine.dispose()


def test_unusable_places_are_named() -> None:
    """A folder that cannot be made and a database that Lanner does not speak are errors that say so."""
    with pytest.raises(StoreError, match="cannot open the state store"):
        open_state("sqlite:////proc/none/state.db")
    with pytest.raises(StoreError, match="not mysql"):
        open_state("mysql://h/db")
    engine = open_state("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(StoreError, match="refused"), read(engine):
        pass  # pragma: no cover
    engine.dispose()


@pytest.mark.parametrize("skew_s", [-120, 0, 120])
def test_machines_agree_on_the_time_by_the_stores_clock(state_url: str, skew_s: int) -> None:
    """A machine whose clock is two minutes off reads the same time as the others."""
    engine = open_state(state_url)
    clock = StoreClock(engine, lambda: time.time_ns() // 1000 + skew_s * 1_000_000)
    assert abs(clock() - time.time_ns() // 1000) < 2_000_000
    assert round(clock.skew_us / 1e6) == -skew_s
    engine.dispose()
