"""Ticks on real stores: what is found depends on the log alone; two schedulers never judge one window twice."""

from __future__ import annotations

import json
import os
import signal
import time
from multiprocessing import get_context, synchronize
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from collectors.base import Advance, IngestBatch, Placed, Record
from collectors.decode import decoder_for
from monitor.config import Config, load
from monitor.model import SECOND_US, Action, Event, Transition
from monitor.service.compose import Service, open_service
from monitor.service.replay import replay
from monitor.store import ledger
from monitor.store.engine import migrate, open_state
from monitor.store.schema import detections, leases, segments, transitions
from tests.stories import DAY_US, MODEL, Story, story, write_config, write_jsonl


def parts_of(config: Config, events: Any) -> list[Any]:
    """Decoded events."""
    decode = decoder_for("native", config)
    return [p for i, e in enumerate(events) for p in decode(Record("s", "t", 0, i, None, json.dumps(e).encode()))]


def feed(service: Service, parts: list[Any], cuts: list[int], rng: np.random.Generator) -> list[Transition]:
    """Append in batches that end at `cuts`, publishing and ticking now and then, as chance will have it."""
    claim = service.log.claim("s", "test", [("t", 0)])["t", 0]
    found: list[Transition] = []
    at, high = 0, 0
    for cut in [*cuts, len(parts)]:
        placed = [Placed("t", 0, at + i, p) for i, p in enumerate(parts[at:cut])]
        if placed:
            high = max(high, *(p.event_time_us for p in parts[at:cut]))
            step = Advance("t", 0, claim.epoch, at or None, cut, high)
            service.log.append(IngestBatch(source="s", received_us=high, parts=placed, advances=[step]))
        at = cut
        if rng.random() < 0.6 or at == len(parts):
            for table in service.tables.values():
                service.publisher().publish(table.model_id, high)
        if rng.random() < 0.6 or at == len(parts):
            live = service.model(MODEL, high)
            live.tick("test", high, clock="log", close=at == len(parts))
            found += live.committed
            if rng.random() < 0.2:
                service.live.clear()  # as after a crash: the next tick starts from the store
    return found


def service_at(folder: Path, url: str) -> Service:
    """A service of the story's model on the given state store."""
    folder.mkdir(parents=True, exist_ok=True)
    file = write_config(folder, clock="log", privacy={"principals": "plain"}, store={"path": "data", "database": url})
    prepared(url)
    return open_service(load(file), "test")


def prepared(url: str) -> None:
    """A state store with its tables."""
    engine = open_state(url)
    migrate(engine)
    engine.dispose()


def lines(found: list[Transition]) -> list[str]:
    """Transitions as replay prints them, in time order."""
    ordered = sorted(found, key=lambda t: (t.time_us, t.alert.opened_us, t.alert.alert_id, t.alert.seq))
    return [json.dumps(t.to_json(), sort_keys=True) for t in ordered]


@pytest.fixture(scope="module")
def told() -> Story:
    return story()


def test_results_do_not_depend_on_ticks_or_batches(told: Story, tmp_path: Path, state_url: str) -> None:
    """The log split at random places, published and ticked at random, with restarts: always the transitions of one replay."""
    file = write_config(tmp_path, privacy={"principals": "plain"})
    expected = lines(replay(load(file), [write_jsonl(tmp_path / "log.jsonl", told.log)]).transitions)
    events = [json.loads(x)["event"] for x in expected]
    assert "FeatureDrift" in events and "AttackSuspected" in events
    rng = np.random.default_rng(3)
    service = service_at(tmp_path / "split", state_url)
    parts = parts_of(service.config, told.log)
    cuts = sorted(int(c) for c in rng.choice(len(parts), 60, replace=False))
    found = lines(feed(service, parts, cuts, rng))
    service.close()
    assert found == expected


def test_the_story_is_told(told: Story, tmp_path: Path) -> None:
    """The shift opens one drift incident that ends by itself; the attacker is named; nobody else is."""
    file = write_config(tmp_path)
    found = replay(load(file), [write_jsonl(tmp_path / "log.jsonl", told.log)]).transitions
    drift = [t for t in found if t.alert.event is Event.FEATURE_DRIFT]
    assert [t.action for t in drift if t.action is not Action.UPDATE] == [Action.OPEN, Action.CLEAR]
    assert told.drift_us[0] <= drift[0].time_us <= told.drift_us[1]
    assert told.drift_us[1] <= drift[-1].time_us
    attacks = [t for t in found if t.alert.event is Event.ATTACK_SUSPECTED]
    assert {t.alert.subject.id for t in attacks} == {told.attacker}
    assert told.attack_us <= attacks[0].time_us <= told.attack_us + DAY_US // 24


def test_the_ledger_is_gapless(told: Story, tmp_path: Path) -> None:
    """Every window between the first and the last event is judged once, and state reads back after every tick."""
    service = service_at(tmp_path, f"sqlite:///{tmp_path / 'state.db'}")
    feed(service, parts_of(service.config, told.log), list(range(0, 4000, 500)), np.random.default_rng(0))
    rows = ledger.ledger_rows(service.engine, service.tables[MODEL].model_id, 0, 1 << 62)
    for monitor in {r.monitor for r in rows}:
        ends = [r.end_us for r in rows if r.monitor == monitor]
        assert ends == list(range(ends[0], ends[-1] + 1, ends[1] - ends[0]))
    service.close()


def test_a_long_tick_renews_its_lease(told: Story, tmp_path: Path, state_url: str) -> None:
    """After one tick over many windows the lease runs out later than when it was taken for its whole length."""
    write_config(
        tmp_path, clock="log", privacy={"principals": "plain"}, schedule={"lease": "1s"},
        store={"path": "data", "database": state_url},
    )  # fmt: skip
    prepared(state_url)
    service = open_service(load(tmp_path / "lanner.yaml"), "test")
    live = service.model(MODEL, 0)
    parts = parts_of(service.config, told.log)
    claim = service.log.claim("s", "test", [("t", 0)])["t", 0]
    placed, high = [Placed("t", 0, i, p) for i, p in enumerate(parts)], max(p.event_time_us for p in parts)
    step = Advance("t", 0, claim.epoch, None, len(parts), high)
    service.log.append(IngestBatch(source="s", received_us=high, parts=placed, advances=[step]))
    service.publisher().publish(service.tables[MODEL].model_id, high)
    assert live.tick("test", high, clock="log", close=True)
    with service.engine.connect() as conn:
        held = sa.select(leases.c.expires_us).where(leases.c.name == f"model:{live.watched.model_id}")
        assert conn.scalar(held) > high + SECOND_US
    service.close()


def schedule(folder: str, url: str, stop: synchronize.Event, seed: int) -> None:
    """A scheduler in a process of its own: publishes and ticks on wall time with a short lease, until it is told to stop."""
    service = open_service(load(Path(folder) / "lanner.yaml"), f"scheduler-{seed}")
    while not stop.is_set():
        at = time.time_ns() // 1000
        try:
            for table in service.tables.values():
                service.publisher().publish(table.model_id, at)
            service.model(MODEL, at).tick(service.owner, at, clock="log")
        except Exception as error:  # fenced out, or refused by a lock of whoever is paused: the next pass starts afresh
            print(type(error).__name__, error)
        time.sleep(0.05)
    service.close()


def behind(service: Service) -> bool:
    """Whether any event that was stored is not published or not judged yet."""
    model_id = service.tables[MODEL].model_id
    with service.engine.connect() as conn:
        waiting = conn.scalar(sa.select(sa.func.count()).select_from(segments).where(~segments.c.published))
    return bool(waiting) or ledger.standing(service.engine, model_id, MODEL, 0).position < service.log.latest_batch(
        model_id
    )


@pytest.mark.faults
def test_two_schedulers_one_paused_past_its_lease(told: Story, tmp_path: Path, state_url: str) -> None:
    """A scheduler that wakes up after its lease was taken writes nothing; each window is judged once, state never goes back."""
    file = write_config(
        tmp_path,
        clock="log",
        privacy={"principals": "plain"},
        schedule={"lease": "12s"},
        store={"path": "data", "database": state_url},
    )
    prepared(state_url)
    service = open_service(load(file), "feeder")
    service.model(MODEL, 0)  # calibrate once, so that the processes start at once
    parts = parts_of(service.config, told.log)
    claim = service.log.claim("s", "test", [("t", 0)])["t", 0]
    fork = get_context("spawn")
    stop = fork.Event()
    running = [fork.Process(target=schedule, args=(str(tmp_path), state_url, stop, n)) for n in (1, 2)]
    for p in running:
        p.start()
    positions: list[int] = []
    size = -(-len(parts) // 60)
    for i in range(60):
        chunk = parts[i * size : (i + 1) * size]
        placed = [Placed("t", 0, i * size + k, p) for k, p in enumerate(chunk)]
        high = max(p.event_time_us for p in parts[: (i + 1) * size])
        step = Advance("t", 0, claim.epoch, i * size or None, i * size + len(chunk), high)
        service.log.append(IngestBatch(source="s", received_us=high, parts=placed, advances=[step]))
        positions.append(ledger.standing(service.engine, service.tables[MODEL].model_id, MODEL, 0).position)
        if i in (20, 35):  # stop whoever holds the lease for longer than it lasts
            holder = running[0] if i == 20 else running[1]
            os.kill(holder.pid or 0, signal.SIGSTOP)
            time.sleep(12.5)
            os.kill(holder.pid or 0, signal.SIGCONT)
        time.sleep(0.03)
    deadline = time.monotonic() + 240  # a slow machine learns for ten seconds before each first tick
    while behind(service) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not behind(service)
    stop.set()
    for p in running:
        p.join(60)
        assert p.exitcode == 0
    at = time.time_ns() // 1000
    assert service.model(MODEL, at).tick("feeder", at, clock="log", close=True)  # who stops gives the lease back
    rows = ledger.ledger_rows(service.engine, service.tables[MODEL].model_id, 0, 1 << 62)
    assert len({(r.monitor, r.end_us) for r in rows}) == len(rows) > 300
    assert positions == sorted(positions)
    with service.engine.connect() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(detections)).scalar()
        stored = [r.body for r in conn.execute(sa.select(transitions.c.body)).all()]
    service.close()
    (tmp_path / "alone").mkdir()
    alone = load(write_config(tmp_path / "alone", privacy={"principals": "plain"}))
    expected = replay(alone, [write_jsonl(tmp_path / "log.jsonl", told.log)]).transitions
    assert sorted(json.dumps(b, sort_keys=True) for b in stored) == sorted(lines(expected))
