"""In-memory twins for tests, replay and trying things out: an outbox and a sink that behave as the real ones do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from alerts.base import SinkState
from monitor.lanes import NEVER_US, LaneRow, plan, urgency
from monitor.model import Action, Alert, OutboxRow, OutboxState, Transition, stable_id


@dataclass(slots=True)
class _Row:
    row: OutboxRow
    ordinal: int
    created_us: int
    settled_us: int = 0
    owner: str | None = None
    until_us: int | None = None


class MemoryOutbox:
    """Fits alerts.base.Outbox; nothing survives the process. The contract tests run on this and on the real one."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._lock = threading.Lock()

    def enqueue(
        self, transitions: Iterable[Transition], sinks_for: Callable[[Transition], Sequence[str]], now_us: int
    ) -> None:
        """Put transitions on their way; a row that exists is left as it is."""
        with self._lock:
            for t in transitions:
                for sink in sinks_for(t):
                    row_id = stable_id("outbox", sink, t.alert.alert_id, t.alert.seq)
                    lane = stable_id("lane", sink, *t.alert.key)
                    row = OutboxRow(row_id, sink, lane, t.alert.seq, t, OutboxState.PENDING, 0, now_us, None, now_us)
                    self._rows.setdefault(row_id, _Row(row, len(self._rows), now_us))

    def lease(
        self, owner: str, now_us: int, lease_us: int, limit: int, *, sinks: Sequence[str] | None = None
    ) -> Sequence[OutboxRow]:
        """See alerts.base.Outbox.lease."""
        with self._lock:
            lanes: dict[str, list[_Row]] = {}
            for r in self._rows.values():
                if r.row.state is not OutboxState.SUPERSEDED and (sinks is None or r.row.sink in sinks):
                    lanes.setdefault(r.row.lane, []).append(r)
            taken: list[_Row] = []
            for rows in sorted(lanes.values(), key=lambda rows: min((*_order(r),) for r in rows)):
                if len(taken) < limit and any(r.row.next_try_us <= now_us for r in rows):
                    taken += self._take(rows, owner, now_us, lease_us)
            return [r.row for r in sorted(taken, key=_order)]

    def _take(self, rows: Sequence[_Row], owner: str, now_us: int, lease_us: int) -> list[_Row]:
        decided = plan([_lane_row(r) for r in rows], now_us)
        if decided is None:
            return []
        head = max(rows, key=lambda r: r.ordinal)
        for r in rows:
            if r.row.row_id in decided.superseded:
                note = decided.note if decided.send is None else None
                r.row = replace(r.row, state=OutboxState.SUPERSEDED, last_error=note or r.row.last_error)
                r.owner = r.until_us = None
            if r is not head or r.row.state is OutboxState.SUPERSEDED:
                r.row = replace(r.row, next_try_us=NEVER_US)
        if decided.send is None:
            return []
        error = decided.note if decided.note is not None else head.row.last_error
        head.row = replace(head.row, state=decided.state, attempts=decided.attempts, last_error=error)
        head.owner, head.until_us = owner, now_us + lease_us
        return [head]

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
        with self._lock:
            r = self._rows[row_id]
            if r.owner != owner:
                return False
            attempts = 0 if state is OutboxState.SENT else r.row.attempts + 1
            r.row = replace(
                r.row, state=state, attempts=attempts, last_error=error,
                next_try_us=NEVER_US if next_try_us is None else next_try_us,
            )  # fmt: skip
            r.owner, r.until_us, r.settled_us = None, None, now_us
            return True

    def release(self, row_ids: Sequence[str], owner: str) -> None:
        """See alerts.base.Outbox.release."""
        with self._lock:
            for r in (self._rows[i] for i in row_ids):
                if r.owner == owner:
                    r.owner = r.until_us = None

    def wake(self, sink: str, now_us: int) -> int:
        """See alerts.base.Outbox.wake."""
        with self._lock:
            late = [
                r
                for r in self._rows.values()
                if r.row.sink == sink and _waiting(r) and now_us < r.row.next_try_us < NEVER_US
            ]
            for r in late:
                r.row = replace(r.row, next_try_us=now_us)
            return len(late)

    def touch(self, row_id: str, now_us: int) -> bool:
        """See alerts.base.Outbox.touch."""
        with self._lock:
            r = self._rows.get(row_id)
            if r is None or r.owner is not None or r.row.state in {OutboxState.SUPERSEDED, OutboxState.DEAD}:
                return False
            r.row = replace(r.row, next_try_us=now_us)
            return True

    def heads(self, sink: str, since_us: int, limit: int) -> Sequence[OutboxRow]:
        """See alerts.base.Outbox.heads."""
        with self._lock:
            newest: dict[str, _Row] = {}
            for r in self._rows.values():
                known = newest.get(r.row.lane)
                if (
                    r.row.sink == sink
                    and r.row.state is not OutboxState.SUPERSEDED
                    and (known is None or known.ordinal < r.ordinal)
                ):
                    newest[r.row.lane] = r
            sent = [
                r for r in newest.values()
                if r.row.state is OutboxState.SENT and (r.row.next_try_us < NEVER_US or r.settled_us >= since_us)
            ]  # fmt: skip
            return [r.row for r in sorted(sent, key=lambda r: -r.settled_us)[:limit]]

    def backlog(self, now_us: int) -> Mapping[str, tuple[int, int]]:
        """See alerts.base.Outbox.backlog."""
        with self._lock:
            found: dict[str, tuple[int, int]] = {}
            for r in self._rows.values():
                if _waiting(r):
                    n, age = found.get(r.row.sink, (0, 0))
                    found[r.row.sink] = (n + 1, max(age, now_us - r.created_us))
            return found

    def rows(self) -> Sequence[OutboxRow]:
        """Everything in it, in the order it came."""
        with self._lock:
            return [r.row for r in self._rows.values()]


@dataclass
class MemorySink:
    """Keeps what it was sent. `shows` is what a console would show by key; `fail` raises for a transition if it wants."""

    name: str = "memory"
    sent: list[Transition] = field(default_factory=list)
    shows: dict[tuple[str, ...], SinkState] = field(default_factory=dict)
    fail: Callable[[Transition], None] = field(default=lambda _: None)

    def send(self, transition: Transition, *, timeout_s: float) -> SinkState:
        """Accept, or raise what `fail` raises. A repeat changes nothing that is shown; newer states replace older ones."""
        del timeout_s
        self.fail(transition)
        self.sent.append(transition)
        alert = transition.alert
        cleared = transition.action is Action.CLEAR
        state = SinkState(
            "normal" if cleared else alert.severity.value, "closed" if cleared else "open", alert.alert_id
        )
        self.shows[alert.key] = state
        return state

    def current(self, alert: Alert) -> SinkState | None:
        """What is shown for the alert's key."""
        return self.shows.get(alert.key)


def _order(r: _Row) -> tuple[int, int, str]:
    return (-urgency(r.row.transition), r.created_us, r.row.row_id)


def _waiting(r: _Row) -> bool:
    return r.row.state is OutboxState.PENDING or (r.row.state is OutboxState.UNKNOWN and r.row.last_error is not None)


def _lane_row(r: _Row) -> LaneRow:
    return LaneRow(
        r.row.row_id, r.ordinal, r.row.state, r.row.transition.action is Action.CLEAR, r.row.attempts,
        r.row.next_try_us, r.until_us,
    )  # fmt: skip
