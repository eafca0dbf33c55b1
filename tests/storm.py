"""A storm on the way to a real Alerta: faults, kills, skewed clocks, a database that stops; then everything must be right.

`Storm` feeds transitions into a real outbox while sender processes deliver them through the fault proxy. A sender is this
module run as a program: `python -m tests.storm STORE ALERTA KEY SKEW_S SEED REASSERT_S LEASE_S`.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from alerts import pipeline
from alerts.alerta import Alerta
from alerts.base import SinkState
from alerts.pipeline import Delivery
from monitor.errors import LannerError
from monitor.model import Action, Severity, Transition
from monitor.store.engine import StoreClock, open_state, write
from monitor.store.outbox import SqlOutbox, enqueue
from tests.alerting import alert
from tests.servers import ROOT
from tests.servers import proxy as proxies

RECONCILE_S = 10.0
BOOM = '{"status": "error", "message": "boom"}'


def late(seconds: float) -> proxies.Fault:
    """The client gives up; the real server hears of it afterwards."""

    async def fault(x: proxies.Exchange) -> None:
        await asyncio.sleep(seconds)
        await x.forward()

    return fault


FAULTS: Sequence[proxies.Fault] = (
    proxies.answers(500, BOOM),
    proxies.answers_after(500, BOOM),
    proxies.answers(503, '{"message": "maintenance"}'),
    proxies.answers(302, head="Location: /\r\n"),
    proxies.answers(502, "<html>Bad Gateway</html>", kind="text/html"),
    proxies.silent(4),
    late(3),
    proxies.reset,
    proxies.reset_after,
)


@dataclass
class Sender:
    """A sender process. Its life begins when it says that it is ready, however long a busy machine takes to start it."""

    process: subprocess.Popen[bytes]
    lives_s: float
    until: float | None = None

    @classmethod
    def start(cls, words: Sequence[str], lives_s: float) -> Sender:
        """Start the program of this module."""
        command = [sys.executable, "-m", "tests.storm", *words]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, bufsize=0)
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        return cls(process, lives_s)

    def due(self) -> bool:
        """Whether it has lived long enough. AssertionError when it has died by itself: only SIGKILL ends a sender."""
        assert self.process.poll() is None, f"a sender ended by itself, with {self.process.returncode}"
        if self.until is None and self.process.stdout is not None and self.process.stdout.read(1):
            self.until = time.monotonic() + self.lives_s
        return self.until is not None and time.monotonic() >= self.until

    def kill(self) -> None:
        """End it with SIGKILL, in the middle of whatever it does."""
        self.process.kill()
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()


@dataclass
class Storm:
    """One run. `share`: of writing requests that meet a fault. `kill_s`: how long a sender that is ready lives.

    It lasts until all transitions are in and `least_kills` senders have been killed.
    """

    url: str  # of the state store
    upstream: Any  # the real Alerta: url, key
    proxy: proxies.Proxy
    keys: int
    transitions: int
    seconds: float
    seed: int
    share: float = 0.3
    kill_s: tuple[float, float] = (2.0, 10.0)
    least_kills: int = 0
    senders: int = 2
    skews_s: tuple[float, ...] = (-120.0, 0.0, 120.0)
    settings: Delivery = field(default_factory=Delivery)
    newest: dict[str, Transition] = field(default_factory=dict)
    kills: int = 0
    faults: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.engine = open_state(self.url)
        self.outbox = SqlOutbox(self.engine)
        self.sink = Alerta("soc", self.upstream.url, self.upstream.key)
        self.running: list[Sender] = []
        self.tag = f"storm{self.seed}"

    def close(self) -> None:
        """End the senders."""
        for sender in self.running:
            sender.kill()
        self.engine.dispose()

    async def _fault(self, x: proxies.Exchange) -> None:
        if self.rng.random() < self.share:
            self.faults += 1
            await self.rng.choice(FAULTS)(x)
        else:
            await proxies.passed(x)

    def feed(self, moments: Sequence[tuple[float, Any]] = ()) -> None:
        """Put transitions in at an even pace, killing senders all the while; `moments`: (share of the time, what to do)."""
        self.proxy.always = self._fault
        started, todo = time.monotonic(), sorted(moments, key=lambda m: m[0])
        done = 0
        while done < self.transitions or self.kills < self.least_kills:
            passed = time.monotonic() - started
            if todo and passed >= todo[0][0] * self.seconds:
                todo.pop(0)[1]()
            due = min(self.transitions, int(passed / self.seconds * self.transitions) + 1)
            if due > done:
                self.put(due - done)
                done = due
            self.tend()
            time.sleep(0.02)
        for _, act in todo:
            act()

    def put(self, n: int) -> None:
        """The next transitions, in the transaction of a tick."""
        now_us = time.time_ns() // 1000
        made = [self._next(now_us + i) for i in range(n)]
        with write(self.engine) as conn:
            enqueue(conn, made, lambda _: ["soc"], now_us)

    def _next(self, at_us: int) -> Transition:
        key = f"{self.tag}-{self.rng.randrange(self.keys)}"
        last = self.newest.get(key)
        if last is None or not last.alert.open:
            severity = self.rng.choice(list(Severity))
            made = Transition(Action.OPEN, at_us, alert(key, severity, opened_us=at_us, updated_us=at_us))
        else:
            now = replace(last.alert, seq=last.alert.seq + 1, updated_us=at_us)
            if self.rng.random() < 0.5:
                over = replace(now, open=False, cleared_us=at_us)
                made = Transition(Action.CLEAR, at_us, over)
            else:
                worse = self.rng.choice([s for s in Severity if s.rank >= now.severity.rank])
                made = Transition(Action.UPDATE, at_us, replace(now, severity=worse))
        self.newest[key] = made
        return made

    def tend(self, *, kill: bool = True) -> None:
        """Kill the senders whose time has come and start others, each with a clock of its own."""
        for sender in list(self.running):
            if sender.due() and kill:
                sender.kill()
                self.kills += 1
                self.running.remove(sender)
        while len(self.running) < self.senders:
            skew = self.rng.choice(self.skews_s) if kill else 0.0
            seed = self.rng.randrange(1 << 30)
            settings = (skew, seed, self.settings.reassert_s, self.settings.lease_s)
            words = [self.url, self.proxy.url, self.upstream.key, *map(str, settings)]
            self.running.append(Sender.start(words, self.rng.uniform(*self.kill_s)))

    def calm(self) -> None:
        """The storm is over: no faults, one sender, and its clock is right."""
        self.share = 0.0
        for sender in self.running:
            sender.kill()
        self.running.clear()
        self.senders = 1

    def wrong(self) -> dict[str, tuple[str, SinkState | None]]:
        """Keys whose row in Alerta is not what we say: (what we say, what it shows)."""
        found = {}
        for key, t in self.newest.items():
            shows = self.sink.current(t.alert)
            if t.action is Action.CLEAR:
                right = shows is None or (shows.status == "closed" and shows.severity == "normal")
            else:
                wanted = t.alert.severity.value
                right = shows is not None and (shows.status, shows.severity) == ("open", wanted)
            if not right:
                found[key] = (f"{t.action.value} {t.alert.severity.value}", shows)
        return found

    def settle(self, seconds: float) -> float:
        """Wait until Alerta shows what we say for every key; after how many seconds. AssertionError with what differs."""
        started = time.monotonic()
        while self.wrong():
            assert time.monotonic() - started < seconds, self.wrong()
            self.tend(kill=False)
            time.sleep(0.5)
        return time.monotonic() - started

    def waiting(self) -> int:
        """Rows that still have to go out or to be asserted again."""
        with self.engine.connect() as conn:
            query = "SELECT count(*) FROM outbox WHERE state IN ('pending', 'unknown', 'dead')"
            return int(conn.execute(sa.text(query)).scalar_one())


def send(url: str, address: str, key: str, skew_s: float, seed: int, reassert_s: float, lease_s: float) -> None:
    """Deliver until killed."""
    engine = open_state(url)
    outbox, sink = SqlOutbox(engine), Alerta("soc", address, key, timeout_s=2.0)
    clock = StoreClock(engine, lambda: time.time_ns() // 1000 + round(skew_s * 1e6))  # of a machine that is wrong
    settings = Delivery(
        timeout_s=2.0, longest_retry_s=10.0, reassert_s=reassert_s, stop_after=20, lease_s=lease_s, pass_s=lease_s / 2
    )
    rng, reconciled = random.Random(seed), time.monotonic()
    print("ready", flush=True)
    os.dup2(2, 1)  # nobody reads what comes after it: logs go where errors go
    while True:
        try:
            now_us = clock()
            pipeline.deliver(outbox, {"soc": sink}, f"sender {seed}", now_us, rng, settings)
            if time.monotonic() - reconciled > RECONCILE_S:
                pipeline.reconcile(outbox, {"soc": sink}, now_us)
                reconciled = time.monotonic()
        except LannerError as error:
            print(f"sender {seed}: {error}", file=sys.stderr)
        time.sleep(0.1)


if __name__ == "__main__":
    send(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), int(sys.argv[5]), *map(float, sys.argv[6:8]))
