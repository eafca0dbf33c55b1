"""What the alert pipeline, the outbox and every sink agree on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from monitor.errors import LannerError
from monitor.model import Alert, Event, OutboxRow, OutboxState, Subject, Transition


class SinkUnavailable(LannerError):
    """The sink did not take the alert now (refused connection, 429, a redirect). It is tried again."""


class SinkRejected(LannerError):
    """The sink will never take this alert (400, 401, 403, 404). It is kept as a dead letter to correct and re-drive."""


class SinkUnknown(LannerError):
    """Nobody knows whether the sink took the alert (timeout, reset, 5xx). The newest state is asserted again later."""


class SinkSuppressed(LannerError):
    """The sink answered that it suppresses this alert (a blackout on its side). It is kept and shown as suppressed."""


class Sink(Protocol):
    """Where alerts go. Returning means accepted; the four errors above are all other outcomes. Retry is not its job.

    Optional: what `ReadableSink`, `TellableSink` and `BeatingSink` add.
    """

    @property
    def name(self) -> str: ...

    def send(self, transition: Transition, *, timeout_s: float) -> SinkState | None: ...


@runtime_checkable
class ReadableSink(Protocol):
    """A sink that keeps state and shows it: open alerts are refreshed there, and what it shows is compared with ours."""

    @property
    def name(self) -> str: ...

    def send(self, transition: Transition, *, timeout_s: float) -> SinkState | None: ...

    def current(self, alert: Alert) -> SinkState | None:
        """What the sink shows for the alert's key; None when it knows nothing of it.

        Severity "normal" means that our clear stands; status "closed" with another severity that a person closed it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Deed:
    """What a person did in a sink: ack, unack, shelve, unshelve or close; or timeout, when the sink ended an ack or a shelve.

    `ref` tells one from the next of its kind.
    """

    kind: str
    who: str
    note: str
    ref: str


@dataclass(frozen=True, slots=True)
class SinkState:
    """What a sink shows for one key: its severity ('normal' when cleared), its status, its own id."""

    severity: str
    status: str  # open, ack, closed, shelved, expired ...
    remote_id: str | None = None
    deed: Deed | None = None  # of a person, when that is why it is so


@runtime_checkable
class TellableSink(Protocol):
    """A sink in which people read what others did about an incident elsewhere."""

    @property
    def name(self) -> str: ...

    def tell(self, alert: Alert, kind: str, text: str) -> None:
        """Acknowledge (`kind` ack) or leave a note, where the sink still shows this alert. Twice is as good as once."""
        ...


@runtime_checkable
class BeatingSink(Protocol):
    """A sink that notices when heartbeats stop."""

    @property
    def name(self) -> str: ...

    def beat(self, origin: str, timeout_s: float, environment: str) -> None:
        """Ask the sink to complain when no further heartbeat of this origin comes within `timeout_s`."""
        ...


class Outbox(Protocol):
    """Rows that still have to go out. Implemented by monitor.store.outbox.SqlOutbox and alerts.memory.MemoryOutbox.

    What leaves a lane next is the rule of monitor.lanes: newest state only, one sender at a time, no clear of what the
    sink was never told, nothing newer overtaken by something older.
    """

    def lease(
        self, owner: str, now_us: int, lease_us: int, limit: int, *, sinks: Sequence[str] | None = None
    ) -> Sequence[OutboxRow]:
        """At most one row per lane, the newest (older pending ones become superseded), due at `now_us`, leased to `owner`.

        Urgent severities first, then the longest waiting. `sinks` limits the search. The row's state says why it goes:
        PENDING never accepted, UNKNOWN to be asserted again, SENT or SUPPRESSED a periodic refresh.
        """
        ...

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
        """Record an outcome; False (nothing written) when the lease was lost to another sender.

        `attempts` counts those since the row was last accepted. `next_try_us` None means never again (until a newer state of the same key comes, or a person re-drives it).
        """
        ...

    def release(self, row_ids: Sequence[str], owner: str) -> None:
        """Give rows back that were leased and not tried."""
        ...

    def wake(self, sink: str, now_us: int) -> int:
        """The sink answers again: make its waiting rows due at once; returns how many."""
        ...

    def touch(self, row_id: str, now_us: int) -> bool:
        """The sink shows something else than this row, the newest of its lane, says: make it due at once."""
        ...

    def heads(self, sink: str, since_us: int, limit: int) -> Sequence[OutboxRow]:
        """What the sink should be showing: the newest row of each lane if it was sent, is open or settled since then."""
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
    excepted: Mapping[str, int]  # exception -> decisions that it covered


COMPONENT: Final = "component"  # a subject that no log names
MANY: Final = "many "  # how the id of the one that tells of a flood begins


def tells_of_many(subject: Subject) -> bool:
    """Whether it is what the one incident that tells of a flood is about.

    >>> tells_of_many(Subject("component", "many principals")), tells_of_many(Subject("principal", "many principals"))
    (True, False)
    """
    return subject.kind == COMPONENT and subject.id.startswith(MANY)


def subject_key(model: str, subject: Subject) -> str:
    """Whom counters of the lifecycle are about."""
    return json.dumps([model, subject.kind, subject.id], ensure_ascii=False)


def slot_key(model: str, event: Event, subject: Subject) -> str:
    """Which kind of problem of whom."""
    return json.dumps([model, event.value, subject.kind, subject.id], ensure_ascii=False)
