"""What the alert pipeline, the outbox and every sink agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from monitor.errors import LannerError
from monitor.model import Alert, Transition


class SinkUnavailable(LannerError):
    """The sink did not take the alert now (refused connection, 429, 5xx with a status). It is tried again."""


class SinkRejected(LannerError):
    """The sink will never take this alert (400, 401, 403, 404). It is kept as a dead letter to correct and re-drive."""


class SinkUnknown(LannerError):
    """Nobody knows whether the sink took the alert (timeout, reset). The newest state is asserted again later."""


class SinkSuppressed(LannerError):
    """The sink answered that it suppresses this alert (a blackout on its side). It is kept and shown as suppressed."""


class Sink(Protocol):
    """Where alerts go. Returning means accepted; the four errors above are all other outcomes. Retry is not its job.

    Optional: `current(alert) -> SinkState | None` reads back what the sink shows for the alert's key, and
    `beat(origin, timeout_s)` sends a heartbeat.
    """

    name: str

    def send(self, transition: Transition, *, timeout_s: float) -> SinkState | None: ...


@dataclass(frozen=True, slots=True)
class SinkState:
    """What a sink shows for one key: its severity ('normal' when cleared), its status, its own id."""

    severity: str
    status: str  # open, ack, closed, shelved, expired ...
    remote_id: str | None = None


class OutboxState(StrEnum):
    """Why an outbox row is where it is. Each is a metric label."""

    PENDING = "pending"
    SENT = "sent"
    SUPERSEDED = "superseded"  # a newer state of the same key went instead
    SUPPRESSED = "suppressed"
    UNKNOWN = "unknown"  # to be asserted again at `next_try_us`
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One state of one problem on its way to one sink. `lane` = sink + key: one sender at a time, in seq order."""

    row_id: str
    sink: str
    lane: str
    seq: int
    transition: Transition
    state: OutboxState
    attempts: int
    next_try_us: int
    last_error: str | None


class Outbox(Protocol):
    """Rows that still have to go out. Implemented by monitor.store.outbox.SqlOutbox and alerts.memory.MemoryOutbox."""

    def lease(self, owner: str, now_us: int, lease_us: int, limit: int) -> Sequence[OutboxRow]:
        """At most one row per lane, the newest (older pending ones become superseded), due at `now_us`, leased to `owner`."""
        ...

    def settle(self, row_id: str, owner: str, state: OutboxState, *, now_us: int, next_try_us: int | None = None, error: str | None = None) -> bool:
        """Record an outcome; False (nothing written) when the lease was lost to another sender."""
        ...

    def backlog(self, now_us: int) -> Mapping[str, tuple[int, int]]:
        """Per sink: (rows waiting, age of the oldest in microseconds)."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """Result of one pass of the alert pipeline over a tick's decisions: what changed, and the counters of what did not."""

    transitions: Sequence[Transition]
    alerts: Sequence[Alert]  # every alert that changed, newest state
    counters: Mapping[str, Any]  # m-of-n and hysteresis counts by key, plain JSON, stored and handed back
    dropped: Mapping[str, int]  # reason -> decisions that led to no transition
