"""Leases, fencing and the one transaction of a tick, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from monitor.errors import FencedOut
from monitor.model import Mark
from monitor.store import counts, leases, ledger, people, registry
from monitor.store.counts import ProfileRow
from monitor.store.engine import migrate, open_state
from monitor.store.features import FeatureSchema
from monitor.store.schema import audit, marks, profiles, states

TTL = 30_000_000


@pytest.fixture
def engine(state_url: str) -> Any:
    opened = open_state(state_url)
    migrate(opened)
    yield opened
    opened.dispose()


@pytest.fixture
def model_id(engine: sa.Engine) -> str:
    return registry.register(engine, "Test", {"m": FeatureSchema(("a",), ("c",))})["m"].model_id


def tick(model_id: str, epoch: int, **changes: Any) -> ledger.TickCommit:
    """A commit that judges one window."""
    row = ledger.LedgerRow("marginals", 0, 10, "judged", 5)
    base = ledger.TickCommit(
        model_id=model_id, epoch=epoch, position=0, to_position=3, watermark_us=12, last_event_us=12, now_us=99,
        ledger=[row], profiles=[ProfileRow("r", 0, 10, 5, b"counts")], states={"budget": b"one"},
    )  # fmt: skip
    return replace(base, **changes)


def commit(engine: sa.Engine, made: ledger.TickCommit) -> None:
    ledger.commit(engine, made, lambda t: ())


def test_one_holder_at_a_time(engine: sa.Engine, model_id: str) -> None:
    """A lease is renewed by its holder, refused to others, and taken with a new epoch once it has run out."""
    assert leases.acquire(engine, "x", "a", 0, TTL, model_id=model_id) == 1
    assert leases.acquire(engine, "x", "b", 1, TTL, model_id=model_id) is None
    assert leases.acquire(engine, "x", "a", 2, TTL, model_id=model_id) == 1
    assert leases.acquire(engine, "x", "b", 2 + TTL, TTL, model_id=model_id) == 2
    assert leases.acquire(engine, "x", "a", 3 + TTL, TTL, model_id=model_id) is None
    assert ledger.standing(engine, model_id, "m", 0).epoch == 2
    leases.release(engine, "x", "b")
    assert leases.acquire(engine, "x", "a", 4 + TTL, TTL, model_id=model_id) == 3


def test_a_busy_holder_keeps_its_lease(engine: sa.Engine, model_id: str) -> None:
    """Work that takes longer than the lease renews it on the way; whoever stood still for longer than it lasts has lost it."""
    assert leases.acquire(engine, "x", "a", 0, TTL, model_id=model_id) == 1
    worked_s = 20.0  # of the 30 of the lease
    then = time.monotonic() - worked_s
    hold = leases.Hold(engine, "x", "a", 1, 0, TTL, began=then, renewed=then)
    hold.keep()
    assert leases.acquire(engine, "x", "b", TTL + 1, TTL, model_id=model_id) is None
    hold.keep()  # just renewed: nothing is written
    assert leases.acquire(engine, "x", "b", 2 * TTL, TTL, model_id=model_id) == 2
    hold.keep()
    hold.renewed = then
    hold.keep()
    assert hold.lost
    assert leases.acquire(engine, "x", "a", 2 * TTL + 1, TTL, model_id=model_id) is None


def test_a_tick_is_all_or_nothing(engine: sa.Engine, model_id: str) -> None:
    """A commit moves the position and leaves ledger, counts, state and an audit entry; one under an old epoch leaves nothing."""
    leases.acquire(engine, "x", "a", 0, TTL, model_id=model_id)
    commit(engine, tick(model_id, 1))
    leases.acquire(engine, "x", "b", TTL + 1, TTL, model_id=model_id)
    late = tick(
        model_id,
        1,
        position=3,
        to_position=4,
        states={"budget": b"two"},
        ledger=[ledger.LedgerRow("marginals", 10, 20, "judged", 5)],
    )
    with pytest.raises(FencedOut):
        commit(engine, late)
    assert [r.end_us for r in ledger.ledger_rows(engine, model_id, 0, 100)] == [10]
    assert ledger.load_states(engine, model_id) == {"budget": b"one"}
    assert counts.load(engine, model_id, "r", 0, 10) == {(0, 10): b"counts"}
    standing = ledger.standing(engine, model_id, "m", 3)
    assert (standing.position, standing.last_end_us, standing.watermark_us) == (3, {"marginals": 10}, 12)
    with engine.connect() as conn:
        assert conn.scalar(sa.select(sa.func.count()).select_from(audit)) == 1


def test_no_window_twice(engine: sa.Engine, model_id: str) -> None:
    """A window that stands in the ledger cannot be written again: the whole tick is rolled back."""
    leases.acquire(engine, "x", "a", 0, TTL, model_id=model_id)
    commit(engine, tick(model_id, 1))
    with pytest.raises(sa.exc.IntegrityError):
        commit(engine, tick(model_id, 1, position=3, to_position=4, states={"budget": b"two"}))
    assert ledger.load_states(engine, model_id) == {"budget": b"one"}
    assert ledger.standing(engine, model_id, "m", 3).position == 3


def test_counts_are_amended_and_state_is_removed(engine: sa.Engine, model_id: str) -> None:
    """The newest counts of a bucket win, and a state set to None is gone."""
    leases.acquire(engine, "x", "a", 0, TTL, model_id=model_id)
    commit(engine, tick(model_id, 1))
    more = ProfileRow("r", 0, 10, 6, b"amended")
    commit(engine, tick(model_id, 1, position=3, to_position=3, ledger=[], profiles=[more], states={"budget": None}))
    with engine.connect() as conn:
        assert [bytes(r.body) for r in conn.execute(sa.select(profiles.c.body)).all()] == [b"amended"]
        assert conn.scalar(sa.select(sa.func.count()).select_from(states)) == 0


def test_gaps_are_filled_and_judgements_stay(engine: sa.Engine, model_id: str) -> None:
    """Backfill replaces a gap by a judged window; it cannot replace a judged one."""
    leases.acquire(engine, "x", "a", 0, TTL, model_id=model_id)
    commit(
        engine,
        tick(model_id, 1, ledger=[ledger.LedgerRow("m", 0, 10, "gap", 0), ledger.LedgerRow("m", 10, 20, "judged", 1)]),
    )
    ledger.fill(engine, model_id, [ledger.LedgerRow("m", 0, 10, "judged", 7, "backfilled")], [], [], 5)
    assert [(r.end_us, r.outcome, r.n) for r in ledger.ledger_rows(engine, model_id, 0, 50)] == [
        (10, "judged", 7),
        (20, "judged", 1),
    ]
    with pytest.raises(sa.exc.IntegrityError):
        ledger.fill(engine, model_id, [ledger.LedgerRow("m", 10, 20, "judged", 9)], [], [], 6)


def test_columns_are_only_added(engine: sa.Engine, model_id: str) -> None:
    """A feature keeps the type it was first stored with; new ones are added; the model keeps its id."""
    again = registry.register(engine, "Test", {"m": FeatureSchema(("c", "b"), ("a",))})["m"]
    assert again.model_id == model_id
    assert (again.schema.numeric, again.schema.categorical) == (("a", "b"), ("c",))


def test_marks_and_beats(engine: sa.Engine) -> None:
    """What people and components tell is kept; of a component's beats only the newest."""
    people.mark(engine, Mark("m", "deploy", 1, None, "v2", "ci"), 2)
    ledger.beat(engine, "source:s", 1, {"problems": {"s": "x"}})
    ledger.beat(engine, "source:s", 2)
    assert ledger.beats(engine) == {"source:s": (2, {})}
    with engine.connect() as conn:
        assert conn.execute(sa.select(marks.c.text)).scalar() == "v2"
