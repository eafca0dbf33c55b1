"""The transactional outbox: alert states wait here, in the transaction that made them, until a sink has accepted them.

Rows of one sink and one alert key form a lane. What may leave a lane, and when, is the rule of monitor.lanes; this
module brings the rows to it under a lock, so that two senders never hold one lane, and writes down what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from monitor.lanes import NEVER_US, LaneRow, Plan, plan, urgency
from monitor.model import (
    Action,
    OutboxRow,
    OutboxState,
    Transition,
    stable_id,
    transition_from_json,
    transition_to_json,
)
from monitor.store.alertlog import insert_of
from monitor.store.engine import read, write
from monitor.store.schema import outbox

LEASE_LOCK: Final = 0x6C616E65  # advisory lock of PostgreSQL: one sender chooses at a time, for some milliseconds
ERROR_CHARS: Final = 500
_DUE: Final = (OutboxState.PENDING, OutboxState.UNKNOWN, OutboxState.SENT, OutboxState.SUPPRESSED)
_LOOKED_AT: Final = tuple(s.value for s in OutboxState if s is not OutboxState.SUPERSEDED)
_WAITING: Final = sa.or_(
    outbox.c.state == OutboxState.PENDING.value,
    sa.and_(outbox.c.state == OutboxState.UNKNOWN.value, outbox.c.last_error.is_not(None)),
)


def lane_of(sink: str, transition: Transition) -> str:
    """The lane of an alert at a sink: all alerts of one key, one after the other."""
    return stable_id("lane", sink, *transition.alert.key)


def enqueue(
    conn: sa.Connection,
    transitions: Sequence[Transition],
    sinks_for: Callable[[Transition], Sequence[str]],
    now_us: int,
) -> int:
    """Put transitions on their way inside the caller's transaction; a row that exists is left as it is.

    `sinks_for` names the sinks of a transition. Returns how many rows were given in.
    """
    routed = [(sink, t) for t in transitions for sink in sinks_for(t)]
    if not routed:
        return 0
    lanes = {lane_of(sink, t) for sink, t in routed}
    newest = (
        sa.select(outbox.c.lane, sa.func.max(outbox.c.ordinal)).where(outbox.c.lane.in_(lanes)).group_by(outbox.c.lane)
    )
    last: dict[str, int] = {r[0]: r[1] for r in conn.execute(newest)}
    rows = []
    for sink, t in routed:
        lane = lane_of(sink, t)
        last[lane] = last.get(lane, 0) + 1
        rows.append(
            {
                "row_id": stable_id("outbox", sink, t.alert.alert_id, t.alert.seq), "sink": sink, "lane": lane,
                "alert_id": t.alert.alert_id, "seq": t.alert.seq, "severity_rank": urgency(t), "ordinal": last[lane],
                "body": transition_to_json(t), "state": OutboxState.PENDING.value, "attempts": 0,
                "next_try_us": now_us, "created_us": now_us,
            }
        )  # fmt: skip
    conn.execute(insert_of(conn)(outbox).on_conflict_do_nothing(index_elements=["row_id"]), rows)
    return len(rows)


class SqlOutbox:
    """The outbox of a state store; fits alerts.base.Outbox."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def lease(
        self, owner: str, now_us: int, lease_us: int, limit: int, *, sinks: Sequence[str] | None = None
    ) -> Sequence[OutboxRow]:
        """See alerts.base.Outbox.lease."""
        if not self._anything_due(now_us, sinks):
            return []
        with write(self.engine) as conn:
            if conn.dialect.name == "postgresql":
                conn.execute(sa.select(sa.func.pg_advisory_xact_lock(LEASE_LOCK)))
            taken: dict[str, Plan] = {}
            for lane, rows in _lanes(conn, _due_lanes(conn, now_us, sinks, limit)).items():
                decided = plan(rows, now_us)
                if decided is None:
                    continue
                _fall_away(conn, lane, rows, decided, now_us)
                if decided.send is not None:
                    taken[decided.send] = decided
            for row_id, decided in taken.items():
                values: dict[str, Any] = {"lease_owner": owner, "lease_until_us": now_us + lease_us,
                                          "state": decided.state.value, "attempts": decided.attempts}  # fmt: skip
                if decided.note is not None:
                    values["last_error"] = decided.note
                conn.execute(outbox.update().where(outbox.c.row_id == row_id).values(values))
            found = conn.execute(
                sa.select(outbox)
                .where(outbox.c.row_id.in_(taken))
                .order_by(outbox.c.severity_rank.desc(), outbox.c.created_us, outbox.c.row_id)
            )
            return [_outbox_row(r) for r in found]

    def _anything_due(self, now_us: int, sinks: Sequence[str] | None) -> bool:
        """A read before the write lock is asked for: an idle sender must not disturb those who write."""
        with read(self.engine) as conn:
            return conn.scalar(sa.select(sa.exists().where(*_due(now_us, sinks)))) or False

    def settle(
        self,
        row_id: str,
        owner: str,
        state: OutboxState,
        *,
        now_us: int,
        next_try_us: int | None = None,
        error: str | None = None,
    ) -> bool:
        """See alerts.base.Outbox.settle."""
        with write(self.engine) as conn:
            done = conn.execute(
                outbox.update()
                .where(outbox.c.row_id == row_id, outbox.c.lease_owner == owner)
                .values(
                    state=state.value,
                    attempts=0 if state is OutboxState.SENT else outbox.c.attempts + 1,
                    next_try_us=NEVER_US if next_try_us is None else next_try_us,
                    last_error=None if error is None else error[:ERROR_CHARS],
                    lease_owner=None,
                    lease_until_us=None,
                    settled_us=now_us,
                )
            )
            return done.rowcount == 1

    def release(self, row_ids: Sequence[str], owner: str) -> None:
        """See alerts.base.Outbox.release."""
        if row_ids:
            with write(self.engine) as conn:
                held = (outbox.c.row_id.in_(row_ids), outbox.c.lease_owner == owner)
                conn.execute(outbox.update().where(*held).values(lease_owner=None, lease_until_us=None))

    def wake(self, sink: str, now_us: int) -> int:
        """See alerts.base.Outbox.wake."""
        with write(self.engine) as conn:
            late = (outbox.c.sink == sink, _WAITING, outbox.c.next_try_us > now_us, outbox.c.next_try_us < NEVER_US)
            return conn.execute(outbox.update().where(*late).values(next_try_us=now_us)).rowcount

    def touch(self, row_id: str, now_us: int) -> bool:
        """See alerts.base.Outbox.touch."""
        states = [s.value for s in _DUE]
        with write(self.engine) as conn:
            wanted = (outbox.c.row_id == row_id, outbox.c.state.in_(states), outbox.c.lease_owner.is_(None))
            return conn.execute(outbox.update().where(*wanted).values(next_try_us=now_us)).rowcount == 1

    def heads(self, sink: str, since_us: int, limit: int) -> Sequence[OutboxRow]:
        """See alerts.base.Outbox.heads."""
        newer = outbox.alias("newer")
        alone = ~sa.exists().where(
            newer.c.lane == outbox.c.lane,
            newer.c.ordinal > outbox.c.ordinal,
            newer.c.state != OutboxState.SUPERSEDED.value,
        )
        sent = sa.and_(outbox.c.sink == sink, outbox.c.state == OutboxState.SENT.value, alone)
        # Heads of open alerts have a next refresh; those of cleared ones count while they are recent.
        recent = sa.or_(outbox.c.next_try_us < NEVER_US, outbox.c.settled_us >= since_us)
        with read(self.engine) as conn:
            found = conn.execute(
                sa.select(outbox).where(sent, recent).order_by(outbox.c.settled_us.desc()).limit(limit)
            )
            return [_outbox_row(r) for r in found]

    def remind(self, sink: str, alert_ids: Sequence[str], before_us: int, now_us: int) -> int:
        """Make what a sink was last told of these alerts due again, where that was before `before_us`; how many."""
        newer = outbox.alias("newer")
        alone = ~sa.exists().where(newer.c.lane == outbox.c.lane, newer.c.ordinal > outbox.c.ordinal)
        sent = (outbox.c.sink == sink, outbox.c.state == OutboxState.SENT.value, outbox.c.settled_us <= before_us)
        with write(self.engine) as conn:
            told = (*sent, outbox.c.alert_id.in_(alert_ids), outbox.c.lease_owner.is_(None), alone)
            return conn.execute(outbox.update().where(*told).values(next_try_us=now_us)).rowcount

    def told(self, alert_ids: Sequence[str]) -> Mapping[tuple[str, str], int]:
        """(alert, sink) of what has been put on its way, with the rank of the worst severity that was told."""
        o = outbox.c
        query = sa.select(o.alert_id, o.sink, sa.func.max(o.severity_rank)).where(o.alert_id.in_(alert_ids))
        with read(self.engine) as conn:
            return {(alert_id, sink): int(n) for alert_id, sink, n in conn.execute(query.group_by(o.alert_id, o.sink))}

    def refused(self, since_us: int) -> Mapping[str, int]:
        """Per sink, how many rows it has refused for good since then and nobody has sent again."""
        dead = (outbox.c.state == OutboxState.DEAD.value, outbox.c.settled_us >= since_us)
        query = sa.select(outbox.c.sink, sa.func.count()).where(*dead).group_by(outbox.c.sink)
        with read(self.engine) as conn:
            return {sink: int(n) for sink, n in conn.execute(query)}

    def backlog(self, now_us: int) -> Mapping[str, tuple[int, int]]:
        """See alerts.base.Outbox.backlog."""
        count = sa.select(outbox.c.sink, sa.func.count(), sa.func.min(outbox.c.created_us)).where(_WAITING)
        with read(self.engine) as conn:
            return {
                sink: (n, max(0, now_us - oldest)) for sink, n, oldest in conn.execute(count.group_by(outbox.c.sink))
            }


def rows(
    engine: sa.Engine, *, state: OutboxState | None = None, sink: str | None = None, limit: int = 100
) -> list[OutboxRow]:
    """What is in the outbox, newest first, for people to look at."""
    query = sa.select(outbox)
    if state is not None:
        query = query.where(outbox.c.state == state.value)
    if sink is not None:
        query = query.where(outbox.c.sink == sink)
    with read(engine) as conn:
        return [
            _outbox_row(r)
            for r in conn.execute(query.order_by(outbox.c.created_us.desc(), outbox.c.row_id).limit(limit))
        ]


def redrive(engine: sa.Engine, now_us: int, *, row_ids: Sequence[str] = (), sink: str | None = None) -> int:
    """Dead rows go out again: those named, or all of a sink, or all. Those a newer state has replaced fall away on the way."""
    wanted = [outbox.c.state == OutboxState.DEAD.value]
    if row_ids:
        wanted.append(outbox.c.row_id.in_(row_ids))
    if sink is not None:
        wanted.append(outbox.c.sink == sink)
    with write(engine) as conn:
        values = {"state": OutboxState.PENDING.value, "next_try_us": now_us, "settled_us": None}
        return conn.execute(outbox.update().where(*wanted).values(values)).rowcount


def _due(now_us: int, sinks: Sequence[str] | None) -> list[sa.ColumnElement[bool]]:
    wanted: list[sa.ColumnElement[bool]] = [outbox.c.state.in_([s.value for s in _DUE]), outbox.c.next_try_us <= now_us]
    if sinks is not None:
        wanted.append(outbox.c.sink.in_(sinks))
    return wanted


def _due_lanes(conn: sa.Connection, now_us: int, sinks: Sequence[str] | None, limit: int) -> list[str]:
    held = outbox.alias("held")
    free = ~sa.exists().where(held.c.lane == outbox.c.lane, held.c.lease_until_us > now_us)
    query = (
        sa.select(outbox.c.lane)
        .where(*_due(now_us, sinks), free)
        .group_by(outbox.c.lane)
        .order_by(sa.func.max(outbox.c.severity_rank).desc(), sa.func.min(outbox.c.created_us), outbox.c.lane)
        .limit(limit)
    )
    return list(conn.scalars(query))


def _lanes(conn: sa.Connection, lanes: Iterable[str]) -> dict[str, list[LaneRow]]:
    """The rows of some lanes as the rule sees them."""
    # The whole body, not a path into it: PostgreSQL fails on a path when a name from a log holds NUL.
    columns = (outbox.c.lane, outbox.c.row_id, outbox.c.ordinal, outbox.c.state, outbox.c.body,
               outbox.c.attempts, outbox.c.next_try_us, outbox.c.lease_until_us)  # fmt: skip
    query = sa.select(*columns).where(outbox.c.lane.in_(list(lanes)), outbox.c.state.in_(_LOOKED_AT))
    found: dict[str, list[LaneRow]] = {}
    for r in conn.execute(query):
        clears = r.body["action"] == Action.CLEAR.value
        row = LaneRow(r.row_id, r.ordinal, OutboxState(r.state), clears, r.attempts, r.next_try_us, r.lease_until_us)
        found.setdefault(r.lane, []).append(row)
    return found


def _fall_away(conn: sa.Connection, lane: str, rows: Sequence[LaneRow], decided: Plan, now_us: int) -> None:
    """Write down what the newest state replaces; what was sent before it is not refreshed any more."""
    if decided.superseded:
        values: dict[str, Any] = {"state": OutboxState.SUPERSEDED.value, "next_try_us": NEVER_US, "settled_us": now_us,
                                  "lease_owner": None, "lease_until_us": None}  # fmt: skip
        if decided.send is None and decided.note is not None:
            values["last_error"] = decided.note
        conn.execute(outbox.update().where(outbox.c.row_id.in_(decided.superseded)).values(values))
    head = max(row.ordinal for row in rows)
    if any(row.ordinal < head and row.next_try_us < NEVER_US for row in rows):
        older = (outbox.c.lane == lane, outbox.c.ordinal < head, outbox.c.next_try_us < NEVER_US)
        conn.execute(outbox.update().where(*older).values(next_try_us=NEVER_US))


def _outbox_row(r: Any) -> OutboxRow:
    return OutboxRow(
        row_id=r.row_id, sink=r.sink, lane=r.lane, seq=r.seq, transition=transition_from_json(r.body),
        state=OutboxState(r.state), attempts=r.attempts, next_try_us=r.next_try_us, last_error=r.last_error,
        created_us=r.created_us,
    )  # fmt: skip
