"""Delivery on simulated time: what a sink raises, and what becomes of the row."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from alerts import pipeline
from alerts.base import Sink, SinkRejected, SinkState, SinkSuppressed, SinkUnavailable, SinkUnknown
from alerts.console import Console
from alerts.memory import MemoryOutbox, MemorySink
from alerts.pipeline import CLOSED_THERE, Delivery
from alerts.registry import sinks
from alerts.routes import routing
from monitor.config import Config
from monitor.model import SECOND_US, Action, Alert, Event, Family, OutboxState, Severity, Subject, Transition
from tests.alerting import at, cleared, opened, updated

ONE_THREAD = Delivery(threads=1)


@dataclass
class Channel:
    """An outbox, one sink and simulated time."""

    sink: Sink = field(default_factory=MemorySink)
    settings: Delivery = ONE_THREAD
    outbox: MemoryOutbox = field(default_factory=MemoryOutbox)
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    now_us: int = field(default_factory=lambda: at(0))

    def put(self, *transitions: Transition) -> None:
        self.outbox.enqueue(transitions, lambda _: [self.sink.name], self.now_us)

    def after(self, seconds: float) -> pipeline.Delivered:
        self.now_us += round(seconds * SECOND_US)
        return pipeline.deliver(
            self.outbox, {self.sink.name: self.sink}, "me", self.now_us, self.rng, self.settings, clock=lambda: 0.0
        )

    def state(self) -> list[str]:
        return [row.state.value for row in self.outbox.rows()]


def failing(*errors: Exception | None) -> Callable[[Transition], None]:
    """Raise these one after the other, then nothing."""
    left = list(errors)

    def fail(_: Transition) -> None:
        error = left.pop(0) if left else None
        if error is not None:
            raise error

    return fail


def test_an_accepted_alert_is_refreshed_every_fifteen_minutes() -> None:
    """A sink that keeps state is told again of what is open, and only then."""
    sink = MemorySink()
    line = Channel(sink)
    line.put(opened())
    line.after(0)
    line.after(899)
    assert len(sink.sent) == 1
    line.after(1)
    assert len(sink.sent) == 2
    assert line.state() == ["sent"]


def test_a_clear_is_sent_twice() -> None:
    """The second clear follows after the time in which a late write can happen; then there is silence."""
    sink = MemorySink()
    line = Channel(sink)
    first = opened()
    line.put(first)
    line.after(0)
    line.put(cleared(first))
    for _ in range(200):
        line.after(60)
    assert [t.action for t in sink.sent] == [Action.OPEN, Action.CLEAR, Action.CLEAR]


def test_a_stream_is_told_once() -> None:
    """A console keeps no state, so nothing is repeated to it."""
    out = io.StringIO()
    line = Channel(Console(stream=out))
    first = opened()
    line.put(first)
    line.after(0)
    line.put(cleared(first))
    for _ in range(50):
        line.after(600)
    assert out.getvalue().count("OPEN") == 1
    assert out.getvalue().count("CLEAR") == 1


def test_a_closed_stream_is_a_sink_that_waits() -> None:
    """A broken pipe loses no alert."""
    out = io.StringIO()
    out.close()
    line = Channel(Console(stream=out))
    line.put(opened())
    line.after(0)
    assert line.state() == ["pending"]


def test_an_unavailable_sink_is_tried_again_with_growing_jittered_waits() -> None:
    """Waits are anywhere up to a limit that doubles from one second to five minutes."""
    waits = [[pipeline.backoff_s(n, random.Random(seed), Delivery()) for seed in range(200)] for n in range(12)]
    assert [max(w) <= min(300.0, 2.0**n) for n, w in enumerate(waits)] == [True] * 12
    assert max(waits[11]) > 200
    assert min(waits[11]) < 30
    sink = MemorySink(fail=failing(*[SinkUnavailable("refused")] * 3))
    line = Channel(sink)
    line.put(opened())
    for _ in range(12):
        line.after(1)
    assert len(sink.sent) == 1


def test_after_an_unknown_outcome_the_state_is_asserted_twice() -> None:
    """Once soon, because the alert may be lost, and once 90 s later, when a late write has passed."""
    sink = MemorySink(fail=failing(SinkUnknown("timeout")))
    line = Channel(sink)
    line.put(opened())
    line.after(0)
    assert line.state() == ["unknown"]
    line.after(1)
    assert len(sink.sent) == 1
    assert line.state() == ["unknown"]
    assert line.outbox.backlog(line.now_us) == {}
    line.after(89)
    assert len(sink.sent) == 1
    line.after(1)
    assert len(sink.sent) == 2
    assert line.state() == ["sent"]


def test_a_rejected_alert_is_a_dead_letter_and_holds_nobody_up() -> None:
    """400 and its kind are kept with their reason, and the next alerts go out."""
    sink = MemorySink(fail=failing(SinkRejected("403: bad environment")))
    line = Channel(sink)
    line.put(opened("p1"), opened("p2"))
    done = line.after(0)
    assert done.outcomes == {"memory": {OutboxState.DEAD: 1, OutboxState.SENT: 1}}
    assert line.outbox.rows()[0].last_error == "403: bad environment"


@pytest.mark.parametrize("error", [SinkUnknown("500: boom"), SinkUnavailable("429: slow down")])
def test_a_poison_alert_is_not_tried_for_ever(error: Exception) -> None:
    """Twenty failures while others are taken make a dead letter; when nothing gets through, all of it waits for ever."""

    def fail(t: Transition) -> None:
        if t.alert.subject.id == "poison" or down:
            raise error

    down = True
    sink = MemorySink(fail=fail)
    line = Channel(sink, settings=replace(ONE_THREAD, stop_after=1000))
    line.put(opened("poison"), opened("good"))
    for _ in range(200):
        line.after(300)
    assert {r.state for r in line.outbox.rows()} <= {OutboxState.PENDING, OutboxState.UNKNOWN}
    down = False

    def states() -> dict[str, OutboxState]:
        return {r.transition.alert.subject.id: r.state for r in line.outbox.rows()}

    passes = 0
    while states()["poison"] is not OutboxState.DEAD:
        passes += 1
        assert passes < 200
        line.put(opened(f"other {passes}"))
        line.after(300)
    assert passes >= 20
    assert states()["good"] is OutboxState.SENT
    (reason,) = (r.last_error for r in line.outbox.rows() if r.state is OutboxState.DEAD)
    assert reason == f"failed 20 times while others were taken: {error}"


def test_a_suppressed_alert_comes_up_with_the_refreshes() -> None:
    """A blackout of the sink ends some time; what is still open is then shown."""
    sink = MemorySink(fail=failing(SinkSuppressed("blackout"), SinkSuppressed("blackout")))
    line = Channel(sink)
    line.put(opened())
    line.after(0)
    line.after(900)
    assert line.state() == ["suppressed"]
    line.after(900)
    assert line.state() == ["sent"]


@pytest.mark.parametrize("error", [SinkSuppressed("blackout"), SinkRejected("401")])
def test_a_clear_is_sent_although_the_refresh_was_refused(error: Exception) -> None:
    """What the sink was told stays told, whatever it says to a refresh."""
    sink = MemorySink(fail=failing(None, error))
    line = Channel(sink)
    first = opened()
    line.put(first)
    line.after(0)
    line.after(900)
    assert line.state() == ["sent"]
    line.put(cleared(first))
    line.after(1)
    assert sink.shows[first.alert.key].severity == "normal"


def test_a_dead_sink_costs_a_few_tries_and_not_its_backlog() -> None:
    """Three failures in a row end the pass; the rest is given back untried, and goes out when the sink is back."""
    calls: list[str] = []

    def fail(t: Transition) -> None:
        calls.append(t.alert.subject.id)
        if down:
            raise SinkUnavailable("refused")

    down = True
    sink = MemorySink(fail=fail)
    line = Channel(sink)
    line.put(*(opened(f"p{i}") for i in range(500)))
    for _ in range(20):
        line.after(1)
    assert len(calls) <= 60
    down = False
    for _ in range(10):
        line.after(1)
    assert len(sink.shows) == 500


def test_urgent_alerts_leave_first() -> None:
    """After an outage the critical ones are shown before a thousand warnings."""
    sink = MemorySink()
    line = Channel(sink)
    line.put(*(opened(f"w{i}", severity=Severity.WARNING) for i in range(100)))
    line.put(*(opened(f"c{i}", severity=Severity.CRITICAL) for i in range(5)))
    line.after(0)
    assert [t.alert.severity for t in sink.sent[:5]] == [Severity.CRITICAL] * 5


def test_what_a_person_closed_stays_closed_until_it_is_worse() -> None:
    """Refreshes and mild updates do not reopen it; a higher severity and the next incident do."""
    sink = MemorySink()
    line = Channel(sink)
    first = opened(severity=Severity.MINOR)
    key = first.alert.key
    line.put(first)
    line.after(0)
    sink.shows[key] = SinkState("minor", "closed", "x")
    line.after(900)
    assert line.outbox.rows()[0].last_error == CLOSED_THERE
    second = updated(first, evidence={"principals": ["p1"], "queries": 9999})
    line.put(second)
    line.after(1)
    assert sink.shows[key].status == "closed"
    assert len(sink.sent) == 1
    line.put(updated(second, severity=Severity.MAJOR))
    line.after(1)
    assert sink.shows[key] == SinkState("major", "open", first.alert.alert_id)


def test_reconciliation_mends_what_differs() -> None:
    """What the sink lost, cleared by a late write, or left open, is asserted again within one pass."""
    sink = MemorySink()
    line = Channel(sink)
    lost, reopened, same = opened("lost"), opened("reopened"), opened("same")
    line.put(lost, reopened, same)
    line.after(0)
    line.put(cleared(reopened))
    line.after(1)
    line.after(100)
    del sink.shows[lost.alert.key]
    sink.shows[reopened.alert.key] = SinkState("major", "open", "x")
    assert pipeline.reconcile(line.outbox, {"memory": sink}, line.now_us) == {"memory": 2}
    line.after(1)
    assert sink.shows[lost.alert.key].status == "open"
    assert sink.shows[reopened.alert.key].severity == "normal"
    assert pipeline.reconcile(line.outbox, {"memory": sink}, line.now_us) == {}


def test_a_mistake_in_a_sink_is_an_unknown_outcome() -> None:
    """A sink that raises what it must not does not stop the pass and loses nothing."""
    sink = MemorySink(fail=failing(ZeroDivisionError()))
    line = Channel(sink)
    line.put(opened("p1"), opened("p2"))
    line.after(0)
    assert sorted(line.state()) == ["sent", "unknown"]


@dataclass
class LateSink:
    """A sink over a bad network: lost calls, lost answers, and writes that arrive up to 62 s late. Keeps no sequence."""

    rng: random.Random
    name: str = "late"
    now_us: int = 0
    shows: dict[tuple[str, ...], SinkState] = field(default_factory=dict)
    late: list[tuple[int, Transition]] = field(default_factory=list)
    born_cleared: int = 0
    quiet: bool = False

    def arrive(self, now_us: int) -> None:
        self.now_us = now_us
        for due in [x for x in self.late if x[0] <= now_us]:
            self.late.remove(due)
            self.store(due[1])

    def store(self, t: Transition) -> None:
        cleared_now = t.action is Action.CLEAR
        if cleared_now and t.alert.key not in self.shows:
            self.born_cleared += 1
        severity = "normal" if cleared_now else t.alert.severity.value
        self.shows[t.alert.key] = SinkState(severity, "closed" if cleared_now else "open", t.alert.alert_id)

    def send(self, transition: Transition, *, timeout_s: float) -> SinkState:
        dice = 1.0 if self.quiet else self.rng.random()
        if dice < 0.2:
            raise SinkUnavailable("refused")
        if dice < 0.3:
            raise SinkUnknown("lost on the way there")
        if dice < 0.4:
            self.late.append((self.now_us + round(self.rng.uniform(0, 62) * SECOND_US), transition))
            raise SinkUnknown("on its way")
        self.store(transition)
        if dice < 0.5:
            raise SinkUnknown("answer lost")
        return self.shows[transition.alert.key]

    def current(self, alert: Alert) -> SinkState | None:
        return self.shows.get(alert.key)


@pytest.mark.parametrize("seed", range(8))
def test_the_sink_ends_where_we_are_whatever_the_network_does(seed: int) -> None:
    """Lost calls, lost answers, late writes and dying senders: in the end every key shows its newest state."""
    rng = random.Random(seed)
    sink = LateSink(rng)
    line = Channel(sink, settings=replace(ONE_THREAD, stop_after=1000))
    newest: dict[str, Transition] = {}
    for _ in range(400):
        name = f"p{rng.randrange(12)}"
        last = newest.get(name)
        if last is None or last.action is Action.CLEAR:
            following = opened(name, opened_us=line.now_us, updated_us=line.now_us)
        else:
            following = cleared(last) if rng.random() < 0.5 else updated(last, severity=rng.choice(list(Severity)))
        newest[name] = following
        line.put(following)
        sink.arrive(line.now_us)
        if rng.random() < 0.1:  # a sender takes rows and dies; some of them it had sent
            for row in line.outbox.lease("dead", line.now_us, 60 * SECOND_US, 5):
                if rng.random() < 0.5:
                    sink.late.append((line.now_us + round(rng.uniform(0, 62) * SECOND_US), row.transition))
        line.after(rng.expovariate(0.2))
    sink.quiet = True
    for _ in range(60):
        sink.arrive(line.now_us)
        line.after(5)
    for name, last in newest.items():
        shown = sink.shows.get(last.alert.key)
        expected = None if last.action is Action.CLEAR else last.alert.severity.value
        assert (None if shown is None or shown.severity == "normal" else shown.severity) == expected, name
    assert sink.born_cleared == 0


def config(**parts: object) -> Config:
    return Config.model_validate({"models": {"m": {}, "n": {}}, **parts})


def test_routes_choose_sinks_and_clears_go_everywhere() -> None:
    """Models, families and severities choose; a clear goes to all, and the outbox drops it where nothing was told."""
    sinks_for = routing(
        config(
            sinks={"soc": {"type": "memory"}, "owner": {"type": "memory", "min_severity": "major"}},
            routes=[{"sinks": ["soc"], "families": ["extraction"]}, {"sinks": ["owner"], "models": ["n"]}],
        )
    )
    first = opened()
    assert sinks_for(first) == ["soc"]
    assert sinks_for(opened(model="n")) == ["owner", "soc"]
    assert sinks_for(opened(model="n", severity=Severity.MINOR)) == ["soc"]
    assert sinks_for(cleared(first)) == ["owner", "soc"]


def test_without_routes_every_sink_gets_every_alert() -> None:
    """The smallest configuration of a sink is enough."""
    plain = config(sinks={"soc": {"type": "memory"}, "out": {"type": "console"}})
    assert routing(plain)(opened()) == ["out", "soc"]
    assert sorted(sinks(plain)) == ["out", "soc"]
    assert routing(config())(opened()) == []


def test_what_is_wrong_with_a_sink_is_told_to_the_others() -> None:
    """To those its routes name, else to all others; to itself only when it is alone; the clear goes everywhere."""
    about = replace(
        opened().alert, event=Event.DELIVERY_DEGRADED, family=Family.MONITOR, subject=Subject("sink", "soc")
    )
    stuck = Transition(Action.OPEN, at(0), about)
    names = {name: {"type": "memory"} for name in ("chat", "log", "soc")}
    sinks_for = routing(config(sinks=names, routes=[{"sinks": ["soc"]}]))
    assert sinks_for(stuck) == ["chat", "log"]
    assert sinks_for(cleared(stuck)) == ["chat", "log", "soc"]
    assert routing(config(sinks=names, routes=[{"sinks": ["soc", "log"]}]))(stuck) == ["log"]
    assert routing(config(sinks={"soc": {"type": "memory"}}))(stuck) == ["soc"]


def test_routes_choose_by_customer() -> None:
    """A route for customers leaves out alerts of others and of none."""
    sinks_for = routing(config(sinks={"soc": {"type": "memory"}}, routes=[{"sinks": ["soc"], "customers": ["cards"]}]))
    assert sinks_for(opened(customer="cards")) == ["soc"]
    assert sinks_for(opened(customer="loans")) == []
    assert sinks_for(opened()) == []


def test_a_rate_cap_holds_back_and_the_most_urgent_go_first() -> None:
    """Two in a minute; the third a minute later."""
    sink, outbox, paces = MemorySink(), MemoryOutbox(), {"memory": pipeline.Pace(2)}
    transitions = [
        opened(f"p{i}", severity=s) for i, s in enumerate((Severity.WARNING, Severity.CRITICAL, Severity.MAJOR))
    ]
    outbox.enqueue(transitions, lambda _: [sink.name], at(0))
    told = []
    for second in (0, 30, 61):
        pipeline.deliver(
            outbox,
            {sink.name: sink},
            "me",
            at(second),
            random.Random(1),
            ONE_THREAD,
            lambda: 0.0,
            {sink.name: paces["memory"]},
        )
        told.append(sorted(shown.severity for shown in sink.shows.values()))
    assert told == [["critical", "major"], ["critical", "major"], ["critical", "major", "warning"]]
