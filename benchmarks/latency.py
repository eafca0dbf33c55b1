"""From the event that completes the evidence to the alert in Alerta, default settings, wall clock.

`lanner run` watches a Kafka topic with default settings (flush, publish and tick every 2 s) and sends to a real Alerta.
Ordinary traffic flows at a steady pace; again and again a fresh attacker starts an inversion climb. Each incident names
the event that crossed its level (the end of its window); the clock starts when Kafka has acknowledged that event,
before Lanner's own buffer, and stops when Alerta's API shows the alert. One attack goes before those that are timed: the
first start on a machine compiles the detectors, some ten seconds once. `python -m benchmarks.latency --incidents 30`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.demo.children import child, free_port, wait_for_port
from benchmarks.measure import Result
from benchmarks.traffic import Victim, attack, log, natural, poisson_times, victim
from monitor.model import parse_time_us, rfc3339

TOPIC: Final = "inference"
GOAL_S: Final = 10.0
PER_S: Final = 20  # ordinary events
REFERENCE_EVENTS: Final = 20_000
QUERIES: Final = 120  # of each attacker
STEP_S: Final = 0.25


def _now_us() -> int:
    return time.time_ns() // 1000


@contextlib.contextmanager
def _service(folder: Path, v: Victim, incidents: int) -> Iterator[tuple[str, str, str]]:
    """Kafka, PostgreSQL, Alerta and `lanner run`; yields bootstrap, Alerta's URL and its key."""
    from kafka.admin import KafkaAdminClient, NewTopic

    from tests.servers import alerta, kafka, postgres

    rng = np.random.default_rng(1)
    rows, start = natural(v, REFERENCE_EVENTS, rng), _now_us() - 14 * 86_400_000_000
    times_us = poisson_times(REFERENCE_EVENTS, start, 14 * 86_400 / REFERENCE_EVENTS, rng)
    with (folder / "reference.jsonl").open("w") as out:
        out.writelines(json.dumps(e) + "\n" for e in log(v, rows, times_us, [f"desk-{i}" for i in range(20)], rng))
    with contextlib.ExitStack() as stack:
        broker = kafka.start(folder / "kafka")
        stack.callback(broker.stop)
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
        admin.create_topics([NewTopic(TOPIC, 1, 1)])
        admin.close()
        cluster = postgres.start()
        stack.callback(cluster.close)
        console = alerta.start(folder / "alerta", cluster)
        stack.callback(console.stop)
        port = free_port(0)
        (folder / "key").write_text(console.key)
        file = folder / "lanner.yaml"
        file.write_text(
            f"models:\n  {v.name}: {{reference: {{file: reference.jsonl}}}}\n"
            f"sources:\n  predictions: {{type: kafka, bootstrap: '{broker.bootstrap}', topic: {TOPIC}, assign: [0]}}\n"
            f"sinks:\n  soc: {{type: alerta, url: '{console.url}', key_file: key}}\n"
            "privacy: {principals: plain}\n"
            f"alerting: {{per_hour: {2 * incidents}}}\n"  # beyond the default of 20 one alert tells of the rest
            f"server: {{bind: '127.0.0.1:{port}'}}\n"
        )
        with (folder / "lanner.log").open("wb") as out:
            process = stack.enter_context(
                child([Path(sys.executable).with_name("lanner"), "run", "-c", file], cwd=folder, output=out)
            )
            wait_for_port(port, process, 60)
            yield broker.bootstrap, console.url, console.key


def _shown(url: str, key: str) -> list[dict[str, Any]]:
    request = urllib.request.Request(f"{url}/alerts?page-size=1000", headers={"Authorization": f"Key {key}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: list[dict[str, Any]] = json.load(answer)["alerts"]
    return found


class _Watcher(threading.Thread):
    """Polls Alerta and notes when each attack alert was first seen."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__(daemon=True)
        self._url, self._key, self._done = url, key, threading.Event()
        self.seen: dict[str, tuple[int, dict[str, Any]]] = {}  # alert id -> (first seen, alert)

    def run(self) -> None:
        while not self._done.wait(0.1):
            for alert in _shown(self._url, self._key):
                if alert["event"] == "AttackSuspected" and alert["id"] not in self.seen:
                    self.seen[alert["id"]] = (_now_us(), alert)

    def stop(self) -> None:
        self._done.set()
        self.join(10)


def measure(incidents: int) -> list[float]:
    """Seconds from the crossing event's acknowledgement to the alert in Alerta, one per incident."""
    from kafka import KafkaProducer

    v, rng = victim("flights"), np.random.default_rng(2)
    queries = [attack(v, "inversion", QUERIES, np.random.default_rng([3, i])) for i in range(incidents + 1)]
    with (
        tempfile.TemporaryDirectory(prefix="lanner-bench-") as name,
        _service(Path(name), v, incidents) as (bootstrap, url, key),
    ):
        watcher = _Watcher(url, key)
        watcher.start()
        producer = KafkaProducer(bootstrap_servers=bootstrap)
        acknowledged: dict[str, int] = {}
        left = {f"attacker-{i:02d}": list(rows) for i, rows in enumerate(queries[1:])}
        left = {"rehearsal": list(queries[0]), **left}
        begin: float | None = None  # when the rehearsal was seen
        per_step = QUERIES // 40
        deadline = time.monotonic() + incidents * 2.0 + 180
        while time.monotonic() < deadline and len(watcher.seen) <= incidents:
            if begin is None and watcher.seen:
                begin = time.monotonic()
            started = 1 if begin is None else 1 + int((time.monotonic() - begin) / 2.0)
            callers = ["desk-1"] * round(PER_S * STEP_S)
            rows = [*natural(v, len(callers), rng)]
            for who in list(left)[:started]:
                taken, left[who] = left[who][:per_step], left[who][per_step:]
                rows += taken
                callers += [who] * len(taken)
            _send(producer, v, rows, callers, rng, acknowledged)
            time.sleep(STEP_S)
        watcher.stop()
        producer.close()
    delays = [(seen - acknowledged[moment]) / 1e6 for seen, moment in _crossings(watcher) if moment in acknowledged]
    if len(delays) < incidents:
        print(f"only {len(delays)} of {incidents} incidents were timed", file=sys.stderr)
    return delays


def _send(
    producer: Any,
    v: Victim,
    rows: list[Any],
    callers: list[str],
    rng: np.random.Generator,
    acknowledged: dict[str, int],
) -> None:
    """One message after the other with distinct times of now, and when Kafka had them."""
    base = _now_us() - len(rows) * 1000
    times_us = base + np.arange(len(rows), dtype=np.int64) * 1000
    events = list(log(v, np.array(rows), times_us, callers, rng))
    futures = [producer.send(TOPIC, json.dumps(e).encode()) for e in events]
    for event, future in zip(events, futures, strict=True):
        future.get(10)
        acknowledged[event["event_time"]] = _now_us()


def _crossings(watcher: _Watcher) -> Iterator[tuple[int, str]]:
    """When an alert was seen, and the time of the event that crossed its level: the end of its window."""
    for seen, alert in watcher.seen.values():
        if "rehearsal" in alert["resource"]:
            continue
        yield seen, rfc3339(parse_time_us(alert["attributes"]["window"].split(" / ")[1]))


def results(incidents: int = 30) -> list[Result]:
    """The 95th percentile against the goal."""
    delays = np.array(measure(incidents))
    p95 = float(np.quantile(delays, 0.95)) if len(delays) else float("nan")
    ours = f"median {np.median(delays):.1f} s, p95 {p95:.1f} s, longest {delays.max():.1f} s" if len(delays) else "none"
    name = f"evidence complete in Kafka to alert in Alerta, {len(delays)} incidents"
    return [Result(name, ours, "", None, "", f"p95 < {GOAL_S:.0f} s", p95 < GOAL_S and len(delays) >= incidents * 0.9)]


def main() -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    p.add_argument("--incidents", type=int, default=30)
    args = p.parse_args()
    from benchmarks.measure import machine, table

    print(machine(), table(results(args.incidents)), sep="\n\n")


if __name__ == "__main__":
    main()
