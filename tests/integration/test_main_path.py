"""The main job on real parts: Kafka to event log to detectors to incidents in Alerta, run as `lanner run` runs it."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic

from monitor.config import load
from monitor.service.compose import open_service
from monitor.store import ledger
from monitor.store.engine import migrate, open_state
from monitor.store.schema import dead_letters, models
from tests.running import eventually, running
from tests.servers import free_port
from tests.servers.alerta import Alerta
from tests.stories import DAY_US, MODEL, START_US, story, write_config


def topic(bootstrap: str, name: str, partitions: int = 1) -> str:
    """A new topic."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics([NewTopic(name=name, num_partitions=partitions, replication_factor=1)])
    admin.close()
    return name


def produce(bootstrap: str, name: str, messages: list[bytes]) -> None:
    """All messages in order, acknowledged."""
    producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=20, compression_type="lz4")
    for m in messages:
        producer.send(name, m, partition=0)
    producer.flush()
    producer.close()


def alerts_of(alerta: Alerta, environment: str) -> list[dict[str, Any]]:
    """What Alerta shows of an environment."""
    request = urllib.request.Request(
        f"{alerta.url}/alerts?environment={environment}&page-size=200", headers={"Authorization": f"Key {alerta.key}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return list(json.load(answer)["alerts"])


def test_from_kafka_to_alerta(kafka: str, alerta: Alerta, state_url: str, tmp_path: Path) -> None:
    """A drift opens, is updated and clears in Alerta; the attacker's incident stands open; every event is stored once."""
    name = topic(kafka, f"scores-{tmp_path.name}-{abs(hash(state_url)) % 10**6}")
    environment = "Test" if state_url.startswith("sqlite") else "Staging"
    file = write_config(
        tmp_path,
        environment=environment,
        clock="log",
        privacy={"principals": "plain"},
        schedule={"tick": "500ms", "publish": "500ms"},
        sources={
            "scores": {
                "type": "kafka",
                "bootstrap": kafka,
                "topic": name,
                "group": name,
                "flush": "500ms",
                "session_timeout": "6s",
            }
        },
        store={"path": "data", "database": state_url},
        sinks={"soc": {"type": "alerta", "url": alerta.url, "key": alerta.key}},
        server={"bind": f"127.0.0.1:{free_port()}"},
    )
    engine = open_state(state_url)
    migrate(engine)
    engine.dispose()
    events = [json.dumps(e).encode() for e in story().log]
    half = next(i for i, e in enumerate(story().log) if e["event_time"] > "2026-03-06T12")
    with running(file, tmp_path / "lanner.log"):
        produce(kafka, name, [*events[:half], b"{poison"])

        def shown(event: str) -> list[dict[str, Any]]:
            return [a for a in alerts_of(alerta, environment) if a["event"] == event]

        (drift,) = eventually(lambda: shown("FeatureDrift"))
        assert drift["status"] == "open"
        assert drift["resource"] == f"model:{MODEL}"
        produce(kafka, name, events[half:])
        eventually(lambda: shown("AttackSuspected"))
        (drift,) = eventually(lambda: [a for a in shown("FeatureDrift") if a["status"] == "closed"])
        assert drift["severity"] == "normal"
        (attack,) = shown("AttackSuspected")
        assert attack["status"] == "open"
        assert attack["resource"].endswith("principal:mallory")
    service = open_service(load(file), "test")
    table = service.tables[MODEL]
    service.publisher().publish(table.model_id, time.time_ns() // 1000)
    seen: list[tuple[int, str]] = []
    for rows in service.log.read_window(table.model_id, 0, START_US + 365 * DAY_US, ["offset", "request_id"]):
        seen += zip(rows.column("offset").to_pylist(), rows.column("request_id").to_pylist(), strict=True)
    assert len(seen) == len(events)
    assert sorted(r for _, r in seen) == sorted(e["request_id"] for e in story().log)
    with service.engine.connect() as conn:
        assert [(r.reason, r.offset) for r in conn.execute(sa.select(dead_letters)).all()] == [("bad_json", half)]
        assert conn.execute(sa.select(models.c.position).where(models.c.name == MODEL)).scalar()
    assert ledger.beats(service.engine)
    service.close()


def test_silence_on_the_wall_clock(kafka: str, alerta: Alerta, tmp_path: Path) -> None:
    """On real time: a client's schema probing is an incident within seconds, and silence opens and ends DataMissing."""
    name = topic(kafka, f"live-{tmp_path.name}")
    file = write_config(
        tmp_path,
        environment="Development",
        sources={"live": {"type": "kafka", "bootstrap": kafka, "topic": name, "assign": [0], "flush": "500ms"}},
        monitors={"silence": {"model": MODEL, "detector": "missing", "params": {"limit_s": 6.0}}},
        sinks={"soc": {"type": "alerta", "url": alerta.url, "key": alerta.key}},
        server={"bind": f"127.0.0.1:{free_port()}"},
    )
    hostile = [e for e in story().log if e["principal"] == story().attacker]

    def now(e: dict[str, Any]) -> bytes:
        return json.dumps({**e, "event_time": time.time_ns() // 1_000_000}).encode()

    def shown(event: str, status: str) -> list[dict[str, Any]]:
        return [a for a in alerts_of(alerta, "Development") if a["event"] == event and a["status"] == status]

    with running(file, tmp_path / "lanner.log"):
        produce(kafka, name, [now(e) for e in hostile])
        (attack,) = eventually(lambda: shown("AttackSuspected", "open"))
        assert "mallory" not in json.dumps(attack)  # callers are pseudonyms in service
        eventually(lambda: shown("DataMissing", "open"))
        produce(kafka, name, [now(e) for e in story().log[:50]])
        eventually(lambda: shown("DataMissing", "closed"))
