"""One suite over every outbox: in memory, on SQLite, on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, cast

import pytest

from alerts.base import Outbox
from alerts.memory import MemoryOutbox
from monitor.lanes import NEVER_TOLD
from monitor.model import OutboxRow, OutboxState, Severity, Transition
from monitor.store import outbox as store
from monitor.store.engine import migrate, open_state, write
from monitor.store.outbox import SqlOutbox
from tests.alerting import at, cleared, opened, updated
from tests.servers.postgres import Postgres

LEASE_US = 60_000_000
NOW = at(0)


class Box(Protocol):
    """An outbox with what the tests need to fill it and to look into it."""

    @property
    def outbox(self) -> Outbox: ...

    def put(self, *transitions: Transition, now_us: int = NOW, sinks: Sequence[str] = ("soc",)) -> None: ...

    def states(self) -> dict[str, list[str]]: ...


class InMemory:
    def __init__(self) -> None:
        self.outbox = MemoryOutbox()

    def put(self, *transitions: Transition, now_us: int = NOW, sinks: Sequence[str] = ("soc",)) -> None:
        self.outbox.enqueue(transitions, lambda _: sinks, now_us)

    def states(self) -> dict[str, list[str]]:
        return by_subject(self.outbox.rows())


class InStore:
    def __init__(self, url: str) -> None:
        self.engine = open_state(url)
        migrate(self.engine)
        self.outbox = SqlOutbox(self.engine)

    def put(self, *transitions: Transition, now_us: int = NOW, sinks: Sequence[str] = ("soc",)) -> None:
        with write(self.engine) as conn:
            store.enqueue(conn, transitions, lambda _: sinks, now_us)

    def states(self) -> dict[str, list[str]]:
        return by_subject(store.rows(self.engine, limit=1000))


def by_subject(rows: Sequence[OutboxRow]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda r: (r.transition.alert.opened_us, r.seq)):
        found.setdefault(row.transition.alert.subject.id, []).append(row.state.value)
    return found


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def box(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Box]:
    if request.param == "memory":
        yield InMemory()
        return
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'state.db'}"
    else:
        url = cast(Postgres, request.getfixturevalue("postgres_server")).database()
    stored = InStore(url)
    yield stored
    stored.engine.dispose()


def lease(box: Box, now_us: int = NOW, owner: str = "me", limit: int = 100) -> Sequence[OutboxRow]:
    return box.outbox.lease(owner, now_us, LEASE_US, limit)


def settle(box: Box, row: OutboxRow, state: OutboxState, now_us: int = NOW, **more: object) -> bool:
    return box.outbox.settle(row.row_id, "me", state, now_us=now_us, **more)  # type: ignore[arg-type]


def test_a_row_goes_out_once(box: Box) -> None:
    """What was sent and needs no refresh never comes up again; the same transition put in twice is one row."""
    first = opened()
    box.put(first)
    box.put(first)
    (row,) = lease(box)
    assert row.transition == first
    assert settle(box, row, OutboxState.SENT)
    assert lease(box, at(10_000)) == []
    assert box.states() == {"p1": ["sent"]}


def test_a_hostile_name_passes_like_any_other(box: Box) -> None:
    """NUL, markup and escapes in a name from a log neither stop the lane nor change the name."""
    first = opened("p<b>\x00\x1b'\"")
    box.put(first, updated(first))
    (row,) = lease(box)
    assert row.transition.alert.subject == first.alert.subject
    assert settle(box, row, OutboxState.SENT)


def test_one_sender_at_a_time(box: Box) -> None:
    """A leased lane is closed to others, also for newer states, until it is settled, given back or its lease ends."""
    first = opened()
    box.put(first)
    (row,) = lease(box)
    box.put(updated(first))
    assert lease(box, owner="other") == []
    box.outbox.release([row.row_id], "me")
    (newer,) = lease(box, owner="other")
    assert newer.seq == 2
    assert not settle(box, row, OutboxState.SENT)


def test_newest_state_wins(box: Box) -> None:
    """Older waiting states are superseded by the newest."""
    first = opened()
    second = updated(first, severity=Severity.CRITICAL)
    box.put(first, second, updated(second))
    (row,) = lease(box)
    assert row.seq == 3
    assert box.states() == {"p1": ["superseded", "superseded", "pending"]}


def test_opened_and_cleared_before_anyone_was_told(box: Box) -> None:
    """A sink that never heard of an alert does not hear of its end either."""
    first = opened()
    box.put(first, cleared(first))
    assert lease(box) == []
    assert box.states() == {"p1": ["superseded", "superseded"]}
    assert box.outbox.backlog(NOW) == {}


def test_a_clear_goes_out_when_the_opening_did(box: Box) -> None:
    """What the sink was told, it is told the end of."""
    first = opened()
    box.put(first)
    settle(box, lease(box)[0], OutboxState.SENT)
    box.put(cleared(first))
    (row,) = lease(box)
    assert row.seq == 2
    settle(box, row, OutboxState.SENT)
    assert box.states() == {"p1": ["sent", "sent"]}


def test_an_earlier_alert_of_the_key_still_has_to_be_cleared(box: Box) -> None:
    """Opened and told, cleared, reopened and cleared again before delivery: one clear goes out."""
    first = opened()
    box.put(first)
    settle(box, lease(box)[0], OutboxState.SENT)
    again = opened(opened_us=at(100))
    box.put(cleared(first), again, cleared(again))
    (row,) = lease(box)
    assert row.transition.alert.alert_id == again.alert.alert_id
    assert not row.transition.alert.open
    assert box.states() == {"p1": ["sent", "superseded", "superseded", "pending"]}


@pytest.mark.parametrize("outcome", [OutboxState.DEAD, OutboxState.SUPPRESSED])
def test_what_was_refused_is_not_cleared(box: Box, outcome: OutboxState) -> None:
    """A rejected or suppressed opening was not told, so its clear falls away with the reason."""
    first = opened()
    box.put(first)
    settle(box, lease(box)[0], outcome)
    box.put(cleared(first))
    assert lease(box) == []
    assert box.states() == {"p1": [outcome.value, "superseded"]}


def test_unknown_outcomes_count_as_told(box: Box) -> None:
    """When nobody knows whether the opening arrived, its clear is sent, as a state to be asserted again."""
    first = opened()
    box.put(first)
    settle(box, lease(box)[0], OutboxState.UNKNOWN, next_try_us=at(5), error="timeout")
    box.put(cleared(first))
    (row,) = lease(box)
    assert (row.seq, row.state) == (2, OutboxState.UNKNOWN)
    assert row.last_error is not None


def test_a_sender_that_died_leaves_an_unknown_outcome(box: Box) -> None:
    """After a lease ran out the lane is taken over, and its newest state counts as one to be asserted again."""
    first = opened()
    box.put(first)
    assert lease(box)
    assert lease(box, at(59), owner="other") == []
    (row,) = lease(box, at(61), owner="other")
    assert row.state is OutboxState.UNKNOWN
    assert not box.outbox.settle(row.row_id, "me", OutboxState.SENT, now_us=at(61))
    assert box.outbox.settle(row.row_id, "other", OutboxState.SENT, now_us=at(61))


def test_refreshes_come_up_while_they_are_the_newest(box: Box) -> None:
    """A sent row is due again at its refresh, and no more once a newer state was leased."""
    first = opened()
    box.put(first)
    settle(box, lease(box)[0], OutboxState.SENT, next_try_us=at(900))
    assert lease(box, at(899)) == []
    (row,) = lease(box, at(900))
    assert row.state is OutboxState.SENT
    settle(box, row, OutboxState.SENT, next_try_us=at(1800))
    box.put(cleared(first), now_us=at(901))
    (end,) = lease(box, at(2000))
    assert end.seq == 2
    settle(box, end, OutboxState.SENT)
    assert lease(box, at(9999)) == []


def test_retries_wait_and_keep_their_count(box: Box) -> None:
    """A row comes up at its next try; the attempts of superseded states are not forgotten."""
    first = opened()
    box.put(first)
    settle(box, lease(box)[0], OutboxState.PENDING, next_try_us=at(30), error="refused")
    assert lease(box, at(29)) == []
    box.put(updated(first), now_us=at(10))
    (row,) = lease(box, at(10))
    assert (row.seq, row.attempts) == (2, 1)


def test_urgent_alerts_leave_first(box: Box) -> None:
    """Critical before major before warning, the longest waiting first among equals."""
    for i, severity in enumerate([Severity.WARNING, Severity.CRITICAL, Severity.MAJOR, Severity.CRITICAL]):
        box.put(opened(f"p{i}", severity=severity), now_us=NOW + i)
    rows = lease(box, at(1), limit=3)
    assert [r.transition.alert.subject.id for r in rows] == ["p1", "p3", "p2"]


def test_sinks_do_not_disturb_each_other(box: Box) -> None:
    """Each sink has lanes of its own, and a search can be limited to one."""
    box.put(opened(), sinks=("soc", "chat"))
    rows = box.outbox.lease("me", NOW, LEASE_US, 10, sinks=("chat",))
    assert [r.sink for r in rows] == ["chat"]
    assert [r.sink for r in lease(box)] == ["soc"]


def test_a_sink_that_is_back_gets_everything_at_once(box: Box) -> None:
    """wake() makes the waiting rows of a sink due and leaves the others."""
    for i in range(3):
        box.put(opened(f"p{i}"))
    for row in lease(box):
        settle(box, row, OutboxState.PENDING, next_try_us=at(300), error="refused")
    assert lease(box, at(10)) == []
    assert box.outbox.wake("chat", at(10)) == 0
    assert box.outbox.wake("soc", at(10)) == 3
    assert len(lease(box, at(10))) == 3


def test_the_backlog_is_counted_by_sink(box: Box) -> None:
    """Waiting rows and the age of the oldest; what is only to be asserted again is not waiting."""
    box.put(opened("p1"), opened("p2"))
    box.put(opened("p3"), sinks=("chat",), now_us=at(5))
    row, other = lease(box, limit=2)
    settle(box, row, OutboxState.UNKNOWN, next_try_us=at(90))
    settle(box, other, OutboxState.UNKNOWN, next_try_us=at(90), error="timeout")
    assert box.outbox.backlog(at(10)) == {"soc": (1, 10_000_000), "chat": (1, 5_000_000)}


def test_heads_are_what_a_sink_should_show(box: Box) -> None:
    """The newest sent state per lane: open ones, and recently cleared ones; touch() brings one up again."""
    one, two = opened("p1"), opened("p2")
    box.put(one, two)
    for row in lease(box):
        settle(box, row, OutboxState.SENT, next_try_us=at(900))
    box.put(cleared(two))
    (end,) = lease(box)
    settle(box, end, OutboxState.SENT, now_us=at(100))
    assert {(r.transition.alert.subject.id, r.seq) for r in box.outbox.heads("soc", at(50), 10)} == {
        ("p1", 1),
        ("p2", 2),
    }
    assert [r.transition.alert.subject.id for r in box.outbox.heads("soc", at(101), 10)] == ["p1"]
    assert box.outbox.touch(end.row_id, at(200))
    assert [r.row_id for r in lease(box, at(200))] == [end.row_id]
    assert not box.outbox.touch("no such row", at(200))


def test_the_reason_for_falling_away_is_kept(state_url: str) -> None:
    """`lanner outbox list` can say why a clear was never sent."""
    stored = InStore(state_url)
    first = opened()
    stored.put(first, cleared(first))
    assert not lease(stored)
    assert [r.last_error for r in store.rows(stored.engine)] == [NEVER_TOLD, NEVER_TOLD]
    stored.engine.dispose()


def test_dead_letters_go_out_again_when_redriven(state_url: str) -> None:
    """Re-driven rows are due at once, unless a newer state has gone instead."""
    stored = InStore(state_url)
    one, two = opened("p1"), opened("p2")
    stored.put(one, two)
    for row in lease(stored):
        settle(stored, row, OutboxState.DEAD, error="403")
    stored.put(updated(two))
    (newer,) = lease(stored)
    settle(stored, newer, OutboxState.SENT)
    assert store.redrive(stored.engine, at(10)) == 2
    (again,) = lease(stored, at(10))
    assert again.transition.alert.subject.id == "p1"
    assert stored.states()["p2"] == ["superseded", "sent"]
    stored.engine.dispose()


def test_many_senders_never_hold_one_lane_twice(state_url: str) -> None:
    """Four senders that lease and settle side by side send each row exactly once."""
    stored = InStore(state_url)
    stored.put(*(opened(f"p{i}") for i in range(40)))
    taken: list[str] = []

    def sender(name: str) -> None:
        while rows := stored.outbox.lease(name, NOW, LEASE_US, 3):
            for row in rows:
                taken.append(row.row_id)
                assert stored.outbox.settle(row.row_id, name, OutboxState.SENT, now_us=NOW)

    threads = [threading.Thread(target=sender, args=(f"s{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(taken) == len(set(taken)) == 40
    stored.engine.dispose()
