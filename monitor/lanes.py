"""What leaves a delivery lane next. Pure: both outboxes, in memory and in SQL, apply this one rule.

A lane is one sink and one alert key. Sinks such as Alerta have no sequence check: an older state that arrives late
reopens or closes the alert. So a lane has one sender at a time, and only its newest state (the head) is ever sent:

- older waiting states become superseded; when one of them may still arrive (its outcome is unknown, or its sender
  died), the head is marked UNKNOWN, so that it is asserted again after such a late write can have happened;
- a clear whose opening the sink was never told is dropped with it: some sinks would create a closed alert;
- rows already sent come up again as refreshes as long as they are the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from monitor.model import Action, OutboxState, Severity, Transition

NEVER_US: Final = 2**62  # `next_try_us` of a row that nothing but a person or a newer state brings up again
NEVER_TOLD: Final = "cleared before the sink was told of it"
OVERTAKEN: Final = "an earlier send of this key may still arrive"

WAITING: Final = frozenset({OutboxState.PENDING, OutboxState.UNKNOWN})


@dataclass(frozen=True, slots=True)
class LaneRow:
    """What the rule needs to know of one row. `leased_until_us` is None when nobody holds it."""

    row_id: str
    ordinal: int
    state: OutboxState
    clears: bool
    attempts: int
    next_try_us: int
    leased_until_us: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with one lane: the row to send (or none), its state and attempts, and the rows that fall away."""

    send: str | None
    state: OutboxState
    attempts: int
    superseded: Sequence[str]
    note: str | None = None  # why, for `last_error` of what is superseded or sent


def urgency(transition: Transition) -> int:
    """The order of lanes: severity of what opens or changes; a clear waits with the warnings."""
    return Severity.WARNING.rank if transition.action is Action.CLEAR else transition.alert.severity.rank


def plan(rows: Sequence[LaneRow], now_us: int) -> Plan | None:
    """Decide one lane. `rows`: all of its rows that are not superseded (of the settled ones, the newest are enough).

    None: another sender is at it. The rows named in `superseded` fall away even when nothing is sent now.

    >>> opened = LaneRow("a", 1, OutboxState.PENDING, False, 0, 0, None)
    >>> cleared = LaneRow("b", 2, OutboxState.PENDING, True, 0, 0, None)
    >>> plan([opened], 5).send
    'a'
    >>> gone = plan([opened, cleared], 5); gone.send, gone.superseded
    (None, ('a', 'b'))
    """
    if any(row.leased_until_us is not None and row.leased_until_us > now_us for row in rows):
        return None
    head = max(rows, key=lambda row: row.ordinal)
    older = [row for row in rows if row is not head and row.state in WAITING]
    superseded = tuple(row.row_id for row in older)
    # A lease that ran out means that a sender died or hangs: what it sent may arrive at any time.
    late = any(row.state is OutboxState.UNKNOWN or row.leased_until_us is not None for row in older)
    late = late or head.leased_until_us is not None
    if head.state is OutboxState.DEAD:
        return Plan(None, head.state, head.attempts, superseded)
    attempts = max([head.attempts, *(row.attempts for row in older)])
    if head.clears and head.state is OutboxState.PENDING and not late and not _told(rows, head):
        return Plan(None, head.state, attempts, (*superseded, head.row_id), NEVER_TOLD)
    if late:
        return Plan(head.row_id, OutboxState.UNKNOWN, max(attempts, 1), superseded, OVERTAKEN)
    return Plan(head.row_id if head.next_try_us <= now_us else None, head.state, attempts, superseded)


def _told(rows: Sequence[LaneRow], head: LaneRow) -> bool:
    """Whether the sink may be showing an open alert of this key: the last row that reached it did not clear."""
    reached = [
        row
        for row in rows
        if row is not head and (row.state is OutboxState.SENT or (row.state is OutboxState.DEAD and row.attempts > 1))
    ]
    return bool(reached) and not max(reached, key=lambda row: row.ordinal).clears
