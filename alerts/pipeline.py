"""Delivery: from the outbox to the sinks, at least once, in order per key, and back again by reading what they show.

Retry lives here and nowhere else. What a sink raises decides what happens to a row:

- accepted: SENT; sinks that keep state get open alerts again every 15 minutes and a clear once more;
- SinkUnavailable: again, after a fully jittered exponential wait, from one second up to five minutes;
- SinkUnknown: again soon, and once more 90 s after it was accepted, when a late write of the lost call has passed;
- SinkSuppressed: kept and shown as suppressed, tried again with the refreshes;
- SinkRejected: a dead letter, until a person re-drives it.

An alert that fails time after time while its sink takes others is at fault itself, whatever the sink answers: after
twenty such failures it is a dead letter too. Failures while nothing gets through count for nothing.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Final

import structlog

from alerts.base import (
    Deed,
    Outbox,
    ReadableSink,
    Sink,
    SinkRejected,
    SinkState,
    SinkSuppressed,
    SinkUnavailable,
    SinkUnknown,
)
from monitor import telemetry
from monitor.errors import LannerError
from monitor.model import SECOND_US, Action, Alert, OutboxRow, OutboxState, Severity

log = structlog.get_logger("lanner.alerts")

_ALONE: Final = re.compile(r"failed (\d+) times while others were taken: ")
CLOSED_THERE: Final = "closed by a person in the sink; sent again only if it becomes more severe"
DAY_US: Final = 86_400 * SECOND_US


@dataclass(frozen=True, slots=True)
class Delivery:
    """How delivery behaves; all times in seconds.

    `give_up` failures of one alert while others are taken are enough. `stop_after` failures in a row end a pass for the sink, so that a dead sink costs seconds and not its whole backlog
    of time-outs. `lease_s` must be longer than `pass_s` plus one call.
    """

    threads: int = 4
    batch: int = 64
    timeout_s: float = 5.0
    first_retry_s: float = 1.0
    longest_retry_s: float = 300.0
    reassert_s: float = 90.0
    refresh_s: float = 900.0
    stop_after: int = 3
    give_up: int = 20
    lease_s: float = 60.0
    pass_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Delivered:
    """What one pass did: rows by sink and outcome. `lost_leases` counts outcomes that another sender has overtaken."""

    outcomes: Mapping[str, Mapping[OutboxState, int]] = field(default_factory=dict)
    lost_leases: int = 0

    @property
    def rows(self) -> int:
        """How many rows were tried."""
        return sum(n for by_state in self.outcomes.values() for n in by_state.values())


class Pace:
    """At most `per_minute` deliveries to a sink in any minute, in this process; None is no limit."""

    def __init__(self, per_minute: int | None) -> None:
        self.per_minute = per_minute
        self._sent: deque[int] = deque()

    def room(self, now_us: int) -> int:
        """How many more may go now.

        >>> pace = Pace(2); pace.take(2, 0); pace.room(1), pace.room(61 * SECOND_US)
        (0, 2)
        """
        if self.per_minute is None:
            return 1_000_000
        while self._sent and self._sent[0] <= now_us - 60 * SECOND_US:
            self._sent.popleft()
        return self.per_minute - len(self._sent)

    def take(self, n: int, now_us: int) -> None:
        """So many go now."""
        if self.per_minute is not None:
            self._sent.extend([now_us] * n)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one row. `wait_s` None: never again by itself. `failed`: the sink, not the row, is at fault."""

    state: OutboxState
    wait_s: float | None
    error: str | None = None
    failed: bool = False
    answered: bool = True


def deliver(
    outbox: Outbox,
    sinks: Mapping[str, Sink],
    owner: str,
    now_us: int,
    rng: random.Random,
    settings: Delivery = Delivery(),
    clock: Callable[[], float] = time.monotonic,
    paces: Mapping[str, Pace] = {},
) -> Delivered:
    """One pass over everything that is due, one sink after the other: whoever has several calls this for each alone.

    `now_us` is the time at the call; `clock` only measures how long the pass has been running. `paces` by sink.
    """
    done = [
        _deliver_to(outbox, sink, owner, now_us, rng, settings, clock, paces.get(name, Pace(None)))
        for name, sink in sinks.items()
    ]
    _show_backlog(outbox, sinks, now_us)
    return Delivered({name: d for name, d, _ in done if d}, sum(lost for _, _, lost in done))


def _deliver_to(
    outbox: Outbox,
    sink: Sink,
    owner: str,
    now_us: int,
    rng: random.Random,
    settings: Delivery,
    clock: Callable[[], float],
    pace: Pace,
) -> tuple[str, Mapping[OutboxState, int], int]:
    started = clock()
    sent = _Pass(outbox, sink, owner, rng, settings, lambda: now_us + round((clock() - started) * SECOND_US))
    until_us = now_us + round(settings.pass_s * SECOND_US)
    lease_us = round(settings.lease_s * SECOND_US)
    with ThreadPoolExecutor(settings.threads, thread_name_prefix=f"deliver-{sink.name}") as pool:
        while not sent.broken and (at := sent.now_us()) < until_us:
            room = min(settings.batch, pace.room(at))
            rows = outbox.lease(owner, at, lease_us, room, sinks=(sink.name,)) if room > 0 else ()
            if not rows:
                break
            pace.take(len(rows), at)
            sent.batch(rows, pool, until_us)
    return sink.name, sent.outcomes, sent.lost


class _Pass:
    """One pass to one sink: its outcomes so far, and whether the sink still answers."""

    def __init__(
        self, outbox: Outbox, sink: Sink, owner: str, rng: random.Random, settings: Delivery, now_us: Callable[[], int]
    ) -> None:
        self.outbox = outbox
        self.sink = sink
        self.owner = owner
        self.rng = rng
        self.settings = settings
        self.now_us = now_us
        self.outcomes: Counter[OutboxState] = Counter()
        self.lost = 0
        self.failures = 0
        self.taken = 0
        self.woken = False

    @property
    def broken(self) -> bool:
        """Too many failures in a row: leave the rest for the next pass."""
        return self.failures >= self.settings.stop_after

    def batch(self, rows: Sequence[OutboxRow], pool: ThreadPoolExecutor, until_us: int) -> None:
        """Try each row once, most urgent first; what is not tried goes back."""
        tries = {pool.submit(self._try, row, until_us): row for row in rows}
        untried = []
        for done in as_completed(tries):
            row, outcome = tries[done], done.result()
            if outcome is None:
                untried.append(row.row_id)
            else:
                self._settle(row, outcome)
        self.outbox.release(untried, self.owner)

    def _try(self, row: OutboxRow, until_us: int) -> _Outcome | None:
        if self.broken or self.now_us() >= until_us:
            return None
        outcome = attempt(self.sink, row, self.settings)
        self.failures = self.failures + 1 if outcome.failed else 0
        return outcome

    def _settle(self, row: OutboxRow, outcome: _Outcome) -> None:
        at = self.now_us()
        self.taken += not outcome.failed
        if outcome.failed:
            outcome = blamed(row.last_error, outcome, self.settings.give_up, others=self.taken > 0)
        wait_s = outcome.wait_s
        if outcome.failed:
            wait_s = backoff_s(row.attempts, self.rng, self.settings)
        next_us = None if wait_s is None else at + round(wait_s * SECOND_US)
        stands = self.outbox.settle(
            row.row_id, self.owner, outcome.state, now_us=at, next_try_us=next_us, error=outcome.error
        )
        self.lost += not stands
        self.outcomes[outcome.state] += 1
        telemetry.count("alerts_sent_total", sink=self.sink.name, outcome=outcome.state.value)
        if outcome.state is OutboxState.DEAD:
            log.error("alert_rejected", sink=self.sink.name, row=row.row_id, alert_id=row.transition.alert.alert_id,
                      reason=outcome.error)  # fmt: skip
        elif outcome.failed:
            log.warning("sink_failed", sink=self.sink.name, outcome=outcome.state.value, attempts=row.attempts + 1,
                        reason=outcome.error)  # fmt: skip
        elif outcome.answered:
            if row.state is OutboxState.PENDING:
                telemetry.observe("alert_delivery_seconds", (at - row.created_us) / SECOND_US, sink=self.sink.name)
            if row.attempts and not self.woken:
                self.woken = True
                self.outbox.wake(self.sink.name, at)  # it is back: the others need not wait out their turn


def attempt(sink: Sink, row: OutboxRow, settings: Delivery) -> _Outcome:
    """Bring one row to its sink and say what happened. Never raises."""
    try:
        readable = isinstance(sink, ReadableSink)
        if readable and (row.state is not OutboxState.PENDING or row.transition.action is Action.UPDATE):
            settled = _already(sink.current(row.transition.alert), row, settings)  # type: ignore[attr-defined]
            if settled is not None:
                return settled
        sink.send(row.transition, timeout_s=settings.timeout_s)
        return _accepted(row, settings, readable=readable)
    except SinkSuppressed as e:
        # What the sink shows, or may show, stays so: a later clear must still be sent.
        state = OutboxState.SUPPRESSED if row.state is OutboxState.PENDING else row.state
        return _Outcome(state, settings.refresh_s, str(e))
    except SinkRejected as e:
        if row.state is OutboxState.SENT:  # the sink shows it; only the refresh was refused
            return _Outcome(OutboxState.SENT, settings.refresh_s, str(e))
        return _Outcome(OutboxState.DEAD, None, str(e))
    except SinkUnavailable as e:
        return _Outcome(row.state, None, str(e), failed=True)
    except SinkUnknown as e:
        return _Outcome(OutboxState.UNKNOWN, None, str(e), failed=True)
    except Exception as e:  # a mistake in a sink must not stop the others; whether it sent is not known
        log.exception("sink_mistake", sink=sink.name)
        return _Outcome(OutboxState.UNKNOWN, None, f"{type(e).__name__} in the sink", failed=True)


def blamed(before: str | None, outcome: _Outcome, give_up: int, *, others: bool) -> _Outcome:
    """A failure with its count of failures while others were taken, kept in the words of its error; at last a dead letter."""
    found = _ALONE.match(before or "")
    n = (int(found[1]) if found else 0) + others
    if not n:
        return outcome
    said = f"failed {n} times while others were taken: {outcome.error}"
    return _Outcome(OutboxState.DEAD, None, said) if n >= give_up else replace(outcome, error=said)


def backoff_s(attempts: int, rng: random.Random, settings: Delivery) -> float:
    """Full jitter: anything up to a limit that doubles with each attempt.

    >>> 0 <= backoff_s(3, random.Random(1), Delivery()) <= 8
    True
    """
    limit = settings.first_retry_s * 2.0 ** min(attempts, 32)
    return rng.uniform(0, min(limit, settings.longest_retry_s))


def _accepted(row: OutboxRow, settings: Delivery, *, readable: bool) -> _Outcome:
    if row.state is OutboxState.UNKNOWN and row.last_error is not None:
        # Accepted now, but the write of the lost call may still be on its way: assert once more after it.
        return _Outcome(OutboxState.UNKNOWN, settings.reassert_s)
    if not readable:
        return _Outcome(OutboxState.SENT, None)
    if row.transition.action is Action.CLEAR:
        again = row.state is OutboxState.PENDING
        return _Outcome(OutboxState.SENT, settings.reassert_s if again else None)
    return _Outcome(OutboxState.SENT, settings.refresh_s)


def _already(shows: SinkState | None, row: OutboxRow, settings: Delivery) -> _Outcome | None:
    """Whether what the sink shows makes sending wrong: a person closed it there, or nothing is left to clear."""
    waits = row.state is OutboxState.UNKNOWN and row.last_error is not None
    if row.transition.action is Action.CLEAR:
        if shows is not None:
            return None
        return _Outcome(OutboxState.UNKNOWN, settings.reassert_s) if waits else _Outcome(OutboxState.SENT, None)
    if shows is None or not closed_by_person(shows):
        return None
    if row.transition.alert.severity.rank > _rank(shows.severity):
        return None
    return _Outcome(OutboxState.SENT, None, CLOSED_THERE)


def closed_by_person(shows: SinkState) -> bool:
    """Closed, though not by a clear of ours."""
    return shows.status == "closed" and shows.severity != "normal"


def _rank(severity: str) -> int:
    return {s.value: s.rank for s in Severity}.get(severity, -1)


def reconcile(
    outbox: Outbox,
    sinks: Mapping[str, Sink],
    now_us: int,
    heard: Callable[[str, Alert, Deed], None] = lambda sink, alert, deed: None,
    limit: int = 500,
) -> Mapping[str, int]:
    """Read back what the sinks show for open and for recently cleared alerts; what differs is sent again at once.

    `heard` is told of what people did there about alerts that are open here: (sink, alert, deed), again in every pass.
    Returns the number of differences by sink. A sink that does not answer is left for the next pass.
    """
    found: Counter[str] = Counter()
    for sink in sinks.values():
        if not isinstance(sink, ReadableSink):
            continue
        for row in outbox.heads(sink.name, now_us - DAY_US, limit):
            try:
                shows = sink.current(row.transition.alert)
            except LannerError as e:
                log.warning("reconcile_failed", sink=sink.name, reason=str(e))
                break
            if shows is not None and shows.deed is not None and row.transition.action is not Action.CLEAR:
                heard(sink.name, row.transition.alert, shows.deed)
            what = difference(row, shows)
            if what is not None and outbox.touch(row.row_id, now_us):
                found[sink.name] += 1
                telemetry.count("reconciled_total", sink=sink.name, what=what)
                log.warning("sink_differs", sink=sink.name, alert_id=row.transition.alert.alert_id, what=what)
    return dict(found)


def difference(row: OutboxRow, shows: SinkState | None) -> str | None:
    """How a sink differs from the newest state that it accepted: missing, cleared, still_open, severity; or None."""
    if row.transition.action is Action.CLEAR:
        return None if shows is None or shows.severity == "normal" or shows.status == "closed" else "still_open"
    if shows is None:
        return "missing"
    if closed_by_person(shows):
        return None
    if shows.status == "expired":
        return "expired"
    if shows.severity == "normal":
        return "cleared"
    return None if shows.severity == row.transition.alert.severity.value else "severity"


def _show_backlog(outbox: Outbox, sinks: Mapping[str, Sink], now_us: int) -> None:
    waiting = outbox.backlog(now_us)
    for name in sinks:
        rows, oldest_us = waiting.get(name, (0, 0))
        telemetry.gauge("outbox_pending", rows, sink=name)
        telemetry.gauge("outbox_oldest_seconds", oldest_us / SECOND_US, sink=name)
