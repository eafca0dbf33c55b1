"""Publishing, compaction and sweep, on SQLite and PostgreSQL: Delta follows the state store and never leads it."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa
from deltalake import DeltaTable

from monitor.errors import FencedOut, StoreError
from monitor.store import compaction
from monitor.store.columns import FeatureSchema
from monitor.store.delta import SETTINGS
from monitor.store.engine import open_state, read, write
from monitor.store.eventlog import EventLog, ModelTable
from monitor.store.publish import LEASE_US, Publisher
from monitor.store.schema import identity, leases, segments
from tests.eventlogs import MODEL, Store, event, store

DAY_US = 24 * 3600 * 1_000_000
COLUMNS = ("request_id", "feature:amount", "batch", "ordinal", "position", "segment", "quality", "scores")


@pytest.fixture
def it(state_url: str, tmp_path: Path) -> Iterator[Store]:
    """A fresh event log."""
    with store(state_url, tmp_path) as fresh:
        yield fresh


def delta(it: Store) -> DeltaTable:
    """The table as others see it."""
    return DeltaTable(str(it.root / MODEL.model_id))


def ids(it: Store) -> list[str]:
    """Request ids of the Delta table, sorted."""
    return sorted(delta(it).to_pyarrow_table(columns=["request_id"])["request_id"].to_pylist())


def fill(it: Store, segments_: int, rows: int = 4) -> list[str]:
    """Append and publish some segments; the request ids, sorted."""
    first = it.next_offset or 0
    for _ in range(segments_):
        begin = it.next_offset or 0
        it.append([event(begin + i, scores=[0.5]) for i in range(rows)])
        it.publish()
    return sorted(f"r-{i}" for i in range(first + segments_ * rows))


class Crash(Exception):
    """Stands for the end of the process."""


def crashing(it: Store, at: str, nth: int = 1, owner: str = "me") -> Publisher:
    """A publisher that ends at the n-th time it meets a point."""
    left = nth

    def hook(point: str) -> None:
        nonlocal left
        left -= point == at
        if left == 0:
            raise Crash

    return Publisher(it.engine, it.root, owner, hook)


def test_others_see_the_same_rows_with_statistics(it: Store) -> None:
    """The Delta table holds every row, and its statistics never hide one."""
    wanted = fill(it, 3)
    assert ids(it) == wanted
    actions = pa.table(delta(it).get_add_actions(flatten=True))
    assert actions["num_records"].to_pylist() == [4, 4, 4]
    assert delta(it).transaction_version("publish") == 3
    newest = event(11).event_time_us
    filtered = delta(it).to_pyarrow_table(filters=[("event_time", ">=", pa.scalar(newest, pa.timestamp("us", "UTC")))])
    assert filtered["request_id"].to_pylist() == ["r-11"]


@pytest.mark.parametrize("at", ["before_publish", "after_publish"])
def test_a_crash_while_publishing_is_repeated_or_skipped_as_a_whole(it: Store, at: str) -> None:
    """Whether the crash came before or after the commit, the next publisher leaves every row once."""
    it.append([event(0), event(1)])
    with pytest.raises(Crash):
        crashing(it, at).publish(MODEL.model_id, it.now_us)
    it.append([event(2)])
    assert it.publish() == 3
    assert ids(it) == ["r-0", "r-1", "r-2"]
    assert it.read("request_id")["request_id"].to_pylist() == ["r-0", "r-1", "r-2"]
    assert delta(it).transaction_version("publish") == 2


def test_only_the_holder_of_the_lease_publishes(it: Store) -> None:
    """A second publisher waits until the lease has run out; then the first one's writes are refused."""
    other = Publisher(it.engine, it.root, "other")
    it.append([event(0)])
    it.publish()
    it.append([event(1)])
    assert other.publish(MODEL.model_id, it.now_us) == 0
    paused = crashing(it, "never")
    later = it.now_us + LEASE_US + 1

    def take_over(point: str) -> None:
        if point == "before_publish":
            assert other.publish(MODEL.model_id, later) == 1

    late = Publisher(it.engine, it.root, "me", take_over)
    with pytest.raises(FencedOut):
        late.publish(MODEL.model_id, it.now_us)
    assert paused.publish(MODEL.model_id, later + 1) == 0
    assert ids(it) == ["r-0", "r-1"]
    assert it.read("request_id").num_rows == 2


def test_threads_of_one_process_may_publish_and_compact_at_once(it: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One publisher that publishes in one thread and compacts in another loses and doubles nothing."""
    monkeypatch.setattr(compaction, "RUN_FILES", 3)
    done = threading.Event()
    errors: list[BaseException] = []

    def compact() -> None:
        try:
            while not done.is_set():
                it.publisher.compact(MODEL.model_id, it.now_us)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=compact)
    thread.start()
    wanted = fill(it, 20)
    done.set()
    thread.join()
    assert errors == []
    assert ids(it) == wanted
    assert sorted(it.read("request_id")["request_id"].to_pylist()) == wanted


def test_a_closed_publisher_leaves_the_work_to_the_next(it: Store) -> None:
    """After a clean end another process publishes at once."""
    fill(it, 1)
    it.append([event(9)])
    it.publisher.close()
    assert Publisher(it.engine, it.root, "other").publish(MODEL.model_id, it.now_us) == 1


def test_a_torn_delta_commit_is_named_with_what_to_do(it: Store) -> None:
    """A Delta log that cannot be read is an error that points to the repair; the repair works."""
    wanted = fill(it, 2)
    log = it.root / MODEL.model_id / "_delta_log"
    max(log.glob("*.json")).write_text('{"add": {"path"')
    it.append([event(8)])
    fresh = Publisher(it.engine, it.root, "me")
    with pytest.raises(StoreError, match="Repair"):
        fresh.publish(MODEL.model_id, it.now_us)
    shutil.rmtree(log)
    assert fresh.publish(MODEL.model_id, it.now_us) == 1
    assert ids(it) == sorted([*wanted, "r-8"])


def test_columns_are_added_before_a_commit_needs_them(it: Store) -> None:
    """A reference that comes later adds typed columns; old rows stay readable through either way."""
    fill(it, 1)
    wider = ModelTable(MODEL.model_id, "fraud", FeatureSchema(("amount", "age"), ("country",)))
    it.log = EventLog(it.engine, it.root, {"fraud": wider})
    it.append([event(4, features={"amount": 1.0, "age": 30})])
    it.publish()
    assert it.read("feature:age")["feature:age"].to_pylist() == [None] * 4 + [30.0]
    assert sorted(delta(it).to_pyarrow_table()["n_age"].to_pylist(), key=str) == [30.0] + [None] * 4


def test_compaction_keeps_rows_and_order(it: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merging files changes neither what readers see, nor its order, nor what Delta holds; twice merged likewise."""
    monkeypatch.setattr(compaction, "RUN_FILES", 4)
    monkeypatch.setattr(compaction, "ROW_GROUP", 5)
    fill(it, 5)
    before = it.read(*COLUMNS)
    assert it.publisher.compact(MODEL.model_id, it.now_us) == 5
    assert it.publisher.compact(MODEL.model_id, it.now_us) == 0
    assert it.read(*COLUMNS) == before
    assert it.read(*COLUMNS, max_rows=3) == before
    wanted = fill(it, 3)
    grown = it.read(*COLUMNS)
    assert it.publisher.compact(MODEL.model_id, it.now_us) == 0  # three are too few while the day lasts
    assert it.publisher.compact(MODEL.model_id, it.now_us + DAY_US) == 4
    assert it.read(*COLUMNS) == grown
    assert it.read("request_id", after=6)["request_id"].to_pylist() == [f"r-{i}" for i in range(24, 32)]
    assert ids(it) == wanted
    assert len(delta(it).file_uris()) == 1
    assert delta(it).to_pyarrow_table(columns=["batch"])["batch"].null_count == 0


def test_windows_read_compacted_files(it: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of merged files holds the same rows as before."""
    monkeypatch.setattr(compaction, "RUN_FILES", 2)
    fill(it, 4)
    bounds = (event(5).event_time_us, event(11).event_time_us)

    def window() -> list[str]:
        tables = it.log.read_window(MODEL.model_id, *bounds, ["request_id"])
        return [n for t in tables for n in t["request_id"].to_pylist()]

    before = window()
    assert before == [f"r-{i}" for i in range(5, 11)]
    assert it.publisher.compact(MODEL.model_id, it.now_us) == 4
    assert window() == before


@pytest.mark.parametrize("nth", [1, 2])
def test_a_crash_during_compaction_loses_and_doubles_nothing(
    it: Store, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or after the Delta commit of a merge: our readers and others go on seeing every row once."""
    monkeypatch.setattr(compaction, "RUN_FILES", 3)
    wanted = fill(it, 3)
    before = it.read(*COLUMNS)
    with pytest.raises(Crash):
        crashing(it, "compacting", nth).compact(MODEL.model_id, it.now_us)
    assert it.read(*COLUMNS) == before
    fresh = Publisher(it.engine, it.root, "me")
    fresh.publish(MODEL.model_id, it.now_us)  # a start compares Delta with the state store
    assert ids(it) == wanted
    assert fresh.compact(MODEL.model_id, it.now_us) == 3
    assert ids(it) == wanted
    assert it.read(*COLUMNS) == before


def _lose_table(it: Store) -> None:
    shutil.rmtree(it.root / MODEL.model_id / "_delta_log")


def _lose_commit(it: Store) -> None:
    log = it.root / MODEL.model_id / "_delta_log"
    max(log.glob("*.json")).unlink()


@pytest.mark.parametrize("damage", [_lose_table, _lose_commit])
def test_a_start_republishes_what_delta_lacks(it: Store, damage: Callable[[Store], None]) -> None:
    """A Delta log that was lost or set back is made complete again from the state store."""
    wanted = fill(it, 4)
    damage(it)
    fresh = Publisher(it.engine, it.root, "me")
    assert fresh.publish(MODEL.model_id, it.now_us) == 0
    assert ids(it) == wanted


def test_a_restored_state_store_wins_over_delta(it: Store) -> None:
    """Rows that the state store no longer knows leave Delta, for they will be read from the source again."""
    fill(it, 3)
    with write(it.engine) as conn:
        conn.execute(segments.delete().where(segments.c.batch == 3))
    fresh = Publisher(it.engine, it.root, "me")
    it.append([event(100)])
    assert fresh.publish(MODEL.model_id, it.now_us) == 1
    assert ids(it) == sorted([*(f"r-{i}" for i in range(8)), "r-100"])
    assert it.log.latest_batch(MODEL.model_id) == 4  # never a number that Delta has seen


def test_the_sweep_removes_only_what_nobody_names(it: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orphans older than a day go; named files stay; inputs of a merge stay a day longer than the merge is old."""
    monkeypatch.setattr(compaction, "RUN_FILES", 3)
    fill(it, 3)
    own = it.files()
    it.append([event(50)])  # recorded, not published: a vacuum would delete it
    orphan = it.root / MODEL.model_id / "day=2023-11-15" / "orphan.parquet"
    orphan.write_bytes(b"x")
    now_us = max(p.stat().st_mtime_ns for p in it.root.rglob("*.parquet")) // 1000
    assert it.publisher.sweep(now_us) == 0
    os.utime(orphan, ns=(0, 0))
    assert it.publisher.sweep(now_us) == 1
    for path in own:
        os.utime(it.root / MODEL.model_id / path, ns=(0, 0))
    assert it.publisher.sweep(now_us) == 0
    assert it.publisher.compact(MODEL.model_id, it.now_us) == 3
    assert it.publisher.sweep(now_us + 1_000_000) == 0
    assert it.publisher.sweep(now_us + 2 * DAY_US) == 3
    assert not own & it.files()
    it.publish()
    assert it.read("request_id").num_rows == 13


def test_a_long_read_survives_compaction_and_sweep(it: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that has begun goes on in the merged file when the files it had planned to read are gone."""
    monkeypatch.setattr(compaction, "RUN_FILES", 3)
    fill(it, 4)
    reading = it.log.read_log(MODEL.model_id, 0, 99, ["request_id"], max_rows=4)
    got = next(reading)["request_id"].to_pylist()
    own = it.files()
    assert it.publisher.compact(MODEL.model_id, it.now_us) == 4
    for path in own:
        (it.root / MODEL.model_id / path).unlink()
    got += [n for t in reading for n in t["request_id"].to_pylist()]
    assert got == [f"r-{i}" for i in range(16)]


def test_a_lost_file_is_an_error_and_not_a_gap(it: Store) -> None:
    """When a file that the state store names is gone, reading says so instead of going on without it."""
    fill(it, 2)
    (it.root / MODEL.model_id / min(it.files())).unlink()
    with pytest.raises(StoreError, match="restore it"):
        it.read("request_id")


def test_a_strange_event_log_is_left_alone(it: Store, tmp_path: Path) -> None:
    """A publisher refuses a folder that belongs to another state store: all its files would look like rubbish."""
    fill(it, 1)
    with write(it.engine) as conn:
        conn.execute(identity.update().values(value="another"))
    with pytest.raises(StoreError, match="belongs to state store"):
        Publisher(it.engine, it.root, "me").sweep(it.now_us)
    fresh = open_state(f"sqlite:///{tmp_path / 'fresh' / 'state.db'}")
    fresh.dispose()


def test_a_long_backlog_is_published_in_several_batches(it: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a long pause one call publishes all of it, in commits of bounded size."""
    monkeypatch.setattr("monitor.store.publish.BATCH_SEGMENTS", 3)
    for i in range(7):
        it.append([event(i)])
    assert it.publish() == 7
    assert it.log.latest_batch(MODEL.model_id) == 3
    assert it.read("request_id")["request_id"].to_pylist() == [f"r-{i}" for i in range(7)]


def test_an_idle_table_costs_no_write(it: Store) -> None:
    """Publishing nothing takes no lease and writes no commit."""
    fill(it, 1)
    with read(it.engine) as conn:
        before = conn.execute(sa.select(leases)).all()
    version = delta(it).version()
    it.now_us += 1_000_000
    assert it.publish() == 0
    with read(it.engine) as conn:
        assert conn.execute(sa.select(leases)).all() == before
    assert delta(it).version() == version


def test_checkpoints_keep_opening_cheap(it: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every so many commits Delta gets a checkpoint, so that a start need not read every commit."""
    monkeypatch.setitem(SETTINGS, "delta.checkpointInterval", "5")
    wanted = fill(it, 7, rows=1)
    assert list((it.root / MODEL.model_id / "_delta_log").glob("*.checkpoint.parquet"))
    assert ids(it) == wanted
