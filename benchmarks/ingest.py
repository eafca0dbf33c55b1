"""Ingest, Kafka to committed event log, against a bare poll and decode of the same topic; CPU per event.

The topic holds native JSON of about 700 bytes with 25 features (real flights). The bare side polls with kafka-python
and decodes with msgspec into typed structs, and throws everything away. Lanner's side is `lanner collect --once` with
default settings (pseudonyms, flush every 2 s, SQLite with synchronous=FULL): every event ends in a Parquet file whose
place and offsets one SQL transaction has recorded. What the first start costs, as the same command measures on an empty
topic in a process of its own, is no cost of an event (the bare side's clock starts behind its own start as well). Publishing to the Delta table happens in another process of the
service and is shown beside it. Broker: Apache Kafka. `--long` reads 2 million events and reports memory as it grows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.measure import Result, cpu, measured, median, rss_bytes

TOPIC: Final = "inference"
NOTHING: Final = "nothing"  # a topic without a message
PARTITIONS: Final = 4
EVENTS: Final = 200_000
LONG_EVENTS: Final = 2_000_000
DISTINCT: Final = 50_000  # more than one flush holds, so compression gains nothing from the repeats
GOAL: Final = 2.0
START_US: Final = 1_772_409_600_000_000  # 2026-03-02


def _lines(n: int, seed: int) -> list[bytes]:
    from benchmarks.traffic import reference, victim

    events = reference(victim("flights"), n, np.random.default_rng(seed), start_us=START_US, every_s=0.1)
    return [json.dumps(event, separators=(",", ":")).encode() for event in events]


@contextlib.contextmanager
def prepared(n: int, compression: str | None = None) -> Iterator[tuple[Path, str]]:
    """A running Kafka with n events in one topic and a folder with Lanner's configuration."""
    from kafka import KafkaProducer
    from kafka.admin import KafkaAdminClient, NewTopic

    from tests.servers import kafka

    with tempfile.TemporaryDirectory(prefix="lanner-bench-") as name:
        folder = Path(name)
        lines = _lines(DISTINCT, 1)
        (folder / "reference.jsonl").write_bytes(b"\n".join(lines[:5000]) + b"\n")
        server = kafka.start(folder / "kafka")
        try:
            admin = KafkaAdminClient(bootstrap_servers=server.bootstrap)
            admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in (TOPIC, NOTHING)])
            admin.close()
            producer = KafkaProducer(
                bootstrap_servers=server.bootstrap, compression_type=compression, linger_ms=50, batch_size=1 << 17
            )
            for i, line in enumerate(islice(cycle(lines), n)):
                producer.send(TOPIC, line, partition=i % PARTITIONS)
            producer.flush()
            producer.close()
            yield folder, server.bootstrap
        finally:
            server.stop()


def _configure(folder: Path, bootstrap: str, topic: str = TOPIC) -> Path:
    home = Path(tempfile.mkdtemp(prefix="run-", dir=folder))
    file = home / "lanner.yaml"
    file.write_text(
        f"models:\n  flight-delay: {{reference: {{file: {folder / 'reference.jsonl'}}}}}\n"
        f"sources:\n  bench: {{type: kafka, bootstrap: '{bootstrap}', topic: {topic}, assign: {list(range(PARTITIONS))}}}\n"
        "store: {path: data}\n"
    )
    return file


def _bare(bootstrap: str, n: int, *, typed_features: bool) -> dict[str, Any]:
    """The floor: what must be paid to read and understand the messages at all."""
    import msgspec
    from kafka import KafkaConsumer, TopicPartition

    first = json.loads(_first(bootstrap))
    features: Any = dict[str, float | str | bool | None]
    if typed_features:
        kinds = {k: str | None if isinstance(v, str) else float | None for k, v in first["features"].items()}
        kinds |= dict.fromkeys(("engine", "manufacturer"), str | None)  # missing in some rows
        features = msgspec.defstruct("Features", [(k, t, None) for k, t in kinds.items()])
    envelope = msgspec.defstruct(
        "Envelope",
        [
            *((k, str) for k in ("kind", "event_time", "model", "model_version", "request_id", "principal")),
            ("features", features),
            ("prediction", str),
            ("scores", list[float]),
            ("class_names", list[str]),
            ("returned", str),
            ("latency_ms", float),
            ("status", str),
        ],
    )
    decode = msgspec.json.Decoder(envelope).decode
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False, max_poll_records=10_000
    )
    consumer.assign([TopicPartition(TOPIC, p) for p in range(PARTITIONS)])
    seen = 0
    with cpu() as clock:
        while seen < n:
            for records in consumer.poll(1000).values():
                for record in records:
                    decode(record.value)
                seen += len(records)
    consumer.close()
    return {"cpu_s": clock.seconds, "events": seen}


def _first(bootstrap: str) -> bytes:
    from kafka import KafkaConsumer

    consumer = KafkaConsumer(TOPIC, bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False)
    try:
        return bytes(next(iter(consumer)).value)
    finally:
        consumer.close()


def _lanner(file: Path, n: int, *, watch: bool = False) -> dict[str, Any]:
    """Collect all n events of the topic, then publish; memory is sampled while collecting."""
    from monitor.cli.run import collect
    from monitor.config import load
    from monitor.service import collect as _  # noqa: F401 -- loading code is no part of ingest
    from monitor.service.compose import open_service
    from monitor.store.publish import Publisher

    service = open_service(load(file), "bench")
    samples: list[tuple[int, int]] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(2.0):
            samples.append((_stored(service), rss_bytes()))

    watcher = threading.Thread(target=sample, daemon=True)
    if watch:
        watcher.start()
    with cpu() as collecting:
        collect(file, once=True)
    done.set()
    stored = _stored(service)
    if stored != n:
        raise RuntimeError(f"{stored} of {n} events are stored")
    with cpu() as publishing:
        for table in service.tables.values():
            Publisher(service.engine, service.root / "events", "bench").publish(table.model_id, time.time_ns() // 1000)
    return {
        "cpu_s": collecting.seconds,
        "publish_cpu_s": publishing.seconds,
        "events": stored,
        "memory": samples,
    }


def _stored(service: Any) -> int:
    """Events that committed transactions have recorded."""
    with service.engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT coalesce(sum(rows), 0) FROM segments").scalar())


def results(n: int = EVENTS, repeats: int = 3) -> list[Result]:
    """Interleaved repeats on one topic; medians of the CPU per event."""
    ratios: dict[str, list[float]] = {"typed": [], "dict": []}
    cost: dict[str, list[float]] = {"lanner": [], "typed": [], "dict": [], "publish": []}
    with prepared(n) as (folder, bootstrap):
        for _ in range(repeats):
            for kind in ("typed", "dict"):
                answer = measured("benchmarks.ingest", "--child", kind, "--bootstrap", bootstrap, "--events", n)
                cost[kind].append(answer["cpu_s"] / answer["events"] * 1e6)
            empty = _configure(folder, bootstrap, NOTHING)
            start = measured("benchmarks.ingest", "--child", "lanner", "--config", empty, "--events", 0)
            file = _configure(folder, bootstrap)
            answer = measured("benchmarks.ingest", "--child", "lanner", "--config", file, "--events", n)
            cost["lanner"].append((answer["cpu_s"] - start["cpu_s"]) / n * 1e6)
            cost["publish"].append(answer["publish_cpu_s"] / n * 1e6)
            for kind, found in ratios.items():
                found.append(cost["lanner"][-1] / cost[kind][-1])
    ours = f"{median(cost['lanner']):.1f} us/event (publishing {median(cost['publish']):.2f} more)"
    lines = []
    for kind, what in (("typed", "features as a typed struct"), ("dict", "features as a dict")):
        ratio = median(ratios[kind])
        theirs = f"bare kafka-python poll + msgspec, {what}: {median(cost[kind]):.1f} us/event"
        goal, met = (f"<= {GOAL:.0f}", ratio <= GOAL) if kind == "typed" else ("", None)
        lines.append(
            Result(f"ingest of {n:,} events, Kafka to committed event log", ours, theirs, ratio, "x the CPU", goal, met)
        )
    return lines


def memory(n: int = LONG_EVENTS) -> Result:
    """Resident memory while n events pass: the median of the last fifth against that of the second."""
    with prepared(n, "lz4") as (folder, bootstrap):
        answer = measured(
            "benchmarks.ingest",
            "--child",
            "lanner",
            "--config",
            _configure(folder, bootstrap),
            "--events",
            n,
            "--watch",
        )
    fifths: list[list[int]] = [[] for _ in range(5)]
    for stored, size in answer["memory"]:
        fifths[min(4, stored * 5 // n)].append(size)
    second, last = (median(fifths[k]) / 1e6 for k in (1, 4))
    name = f"memory of the collector over {n:,} events"
    return Result(
        name,
        f"{last:.0f} MB in the last fifth",
        f"{second:.0f} MB in the second",
        last / second,
        "x",
        "<= 1.1",
        last / second <= 1.1,
    )


def main() -> None:
    """Measure and print, or (with --child) do one piece of work and report on it."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__)
    p.add_argument("--child", choices=("typed", "dict", "lanner"))
    p.add_argument("--bootstrap")
    p.add_argument("--config", type=Path)
    p.add_argument("--events", type=int, default=EVENTS)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--watch", action="store_true")
    p.add_argument("--long", action="store_true", help="memory over 2 million events")
    args = p.parse_args()
    if args.child == "lanner":
        print(json.dumps(_lanner(args.config, args.events, watch=args.watch)))
    elif args.child:
        print(json.dumps(_bare(args.bootstrap, args.events, typed_features=args.child == "typed")))
    else:
        from benchmarks.measure import machine, table

        lines = (
            [memory(args.events if args.events != EVENTS else LONG_EVENTS)]
            if args.long
            else results(args.events, args.repeats)
        )
        print(machine(), table(lines), sep="\n\n")


if __name__ == "__main__":
    main()
