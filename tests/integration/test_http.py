"""The HTTP receiver over a real socket: bodies, results, repeats, refusals, and several receivers at once."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from pydantic import SecretStr

from collectors.base import IngestBatch, IngestResult, IngestSettings
from collectors.decode.kserve import kserve
from collectors.decode.native import native
from collectors.http import serve_http
from collectors.memory import MemoryEventLog
from monitor.config import Source
from monitor.errors import ConfigError, DependencyUnreachable, StoreError

DATA = Path(__file__).parent.parent / "data"
TOKEN = "sesame"


def event(n: float) -> dict[str, Any]:
    """An event of its own."""
    return {"event_time": "2026-01-01T00:00:00Z", "model": "m", "principal": "ann", "features": {"n": n}}


class Receiver:
    """A running receiver and a client of it."""

    def __init__(self, log: Any, *, decoder: Any = None, token: str | None = TOKEN, **settings: Any) -> None:
        self.stop = threading.Event()
        ready = threading.Event()
        addresses: list[str] = []

        def on_ready(address: str) -> None:
            addresses.append(address)
            ready.set()

        source = Source(type="http", bind="127.0.0.1:0", token=SecretStr(token) if token else None)
        self.thread = threading.Thread(
            target=serve_http,
            args=("web", source, decoder or native(), log, IngestSettings(**settings), lambda name: f"p-{name}"),
            kwargs={"clock": lambda: time.time_ns() // 1000, "stop": self.stop, "on_ready": on_ready},
        )
        self.thread.start()
        assert ready.wait(10)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.client = httpx.Client(base_url=addresses[0], headers=headers, timeout=20)

    def post(self, body: Any, headers: Mapping[str, str] | None = None, path: str = "/v1/events") -> httpx.Response:
        """Sends JSON, or bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(path, content=content, headers={"Content-Type": "application/json", **(headers or {})})

    def close(self) -> None:
        self.client.close()
        self.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def log() -> MemoryEventLog:
    """An empty event log."""
    return MemoryEventLog()


@pytest.fixture
def receiver(log: MemoryEventLog) -> Iterator[Receiver]:
    """A receiver of native events with a token."""
    made = Receiver(log)
    yield made
    made.close()


def numbers(log: MemoryEventLog) -> list[Any]:
    """What was stored, sorted."""
    return sorted((e.features or {})["n"] for e in log.events)


NDJSON = {"Content-Type": "application/x-ndjson"}


@pytest.mark.parametrize(
    ("body", "headers", "stored"),
    [
        (event(0), {}, [0]),
        ([event(0), event(1)], {}, [0, 1]),
        (json.dumps(event(0)).encode() + b"\n\r\n" + json.dumps(event(1)).encode(), NDJSON, [0, 1]),
        (gzip.compress(json.dumps([event(3)]).encode()), {"Content-Encoding": "gzip"}, [3]),
    ],
    ids=["one", "array", "lines", "gzip"],
)
def test_events_are_stored_when_the_answer_comes(
    receiver: Receiver, log: MemoryEventLog, body: Any, headers: dict[str, str], stored: list[int]
) -> None:
    """One event, an array, lines, compressed: 202 means stored, callers as pseudonyms."""
    answer = receiver.post(body, headers)
    assert answer.status_code == 202
    assert (answer.json()["accepted"], answer.json()["rejected"]) == (len(stored), 0)
    assert numbers(log) == stored
    assert {e.principal for e in log.events} == {"p-ann"}


def test_each_item_has_its_result(receiver: Receiver, log: MemoryEventLog) -> None:
    """A poison item is named by its place and reason, kept as a dead letter, and its neighbours are stored."""
    answer = receiver.post([event(0), {"model": "m"}, 7, event(3)])
    assert [(i["index"], i["status"], i.get("reason")) for i in answer.json()["items"]] == [
        (0, "accepted", None), (1, "rejected", "missing_field"), (2, "rejected", "bad_shape"), (3, "accepted", None),
    ]  # fmt: skip
    assert numbers(log) == [0, 3]
    assert sorted(d.reason for d in log.dead_letters) == ["bad_shape", "missing_field"]
    kept: list[Any] = [*log.parts, *log.dead_letters]
    places = [(p.topic, p.partition, p.offset) for p in kept]
    assert sorted(places) == [("http", 0, n) for n in range(4)], "every item has an offset of its own"


def test_not_a_number_in_an_array_spoils_one_value_only(receiver: Receiver, log: MemoryEventLog) -> None:
    """A body that strict JSON refuses is read leniently, item by item."""
    body = json.dumps([event(0), {**event(1), "features": {"n": 1, "x": float("nan")}}]).encode()
    assert receiver.post(body).json()["accepted"] == 2
    assert sorted(e.quality for e in log.events) == [[], ["nonfinite"]]


def test_a_repeated_key_stores_nothing_again(receiver: Receiver, log: MemoryEventLog) -> None:
    """A sender that lost the answer sends the same key; another key is another request."""
    first = receiver.post([event(0)], {"Idempotency-Key": "a"}).json()
    again = receiver.post([event(0)], {"Idempotency-Key": "a"}).json()
    other = receiver.post([event(1)], {"Idempotency-Key": "b"}).json()
    assert (first["repeated"], again["repeated"], other["repeated"]) == (False, True, False)
    assert numbers(log) == [0, 1]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (event(0), {"Authorization": "Bearer wrong"}, 401),
        (event(0), {"Authorization": ""}, 401),
        (event(0), {"Authorization": "Basic c2VzYW1l"}, 401),
        (event(0), {"Content-Type": "text/plain"}, 415),
        (event(0), {"Content-Type": "application/x-www-form-urlencoded"}, 415),
        (event(0), {"Content-Encoding": "br"}, 415),
        (b"not gzip", {"Content-Encoding": "gzip"}, 400),
        (gzip.compress(b" " * 30_000_000), {"Content-Encoding": "gzip"}, 413),
        (b"[" * 100_000, {}, 400),
        (b'[{"a": ', {}, 400),
        (b"  ", {}, 400),
        (event(0), {"Idempotency-Key": "x" * 300}, 400),
    ],
)
def test_what_is_refused_is_said_and_not_stored(
    receiver: Receiver, log: MemoryEventLog, body: Any, headers: dict[str, str], status: int
) -> None:
    """Problem JSON with the status; a web page's simple form post is not taken."""
    answer = receiver.post(body, headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert (log.parts, log.dead_letters) == ([], [])


def test_a_body_has_a_limit_whatever_it_announces(log: MemoryEventLog) -> None:
    """Sixteen times the largest message, counted while it comes; a single too large item is a dead letter."""
    receiver = Receiver(log, max_message_bytes=1000)

    def stream() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    answer = receiver.client.post("/v1/events", content=stream(), headers={"Content-Type": "application/json"})
    large = receiver.post([event(0), {**event(1), "note": "x" * 2000}]).json()
    receiver.close()
    assert answer.status_code == 413
    assert [i.get("reason") for i in large["items"]] == [None, "oversize"]


def test_secrets_in_headers_are_never_kept(receiver: Receiver, log: MemoryEventLog) -> None:
    """A dead letter keeps the request's headers, but no credentials."""
    receiver.post({"model": "m"}, {"Cookie": "session=1", "X-Api-Key": "k", "X-Client": "web"})
    (letter,) = log.dead_letters
    names = {name for name, _ in letter.headers}
    assert "x-client" in names
    assert not names & {"authorization", "cookie", "x-api-key"}


def test_kserve_posts_its_events_as_they_are(log: MemoryEventLog) -> None:
    """Binary CloudEvents on the root path: halves are stored, and those that share a transaction are joined."""
    receiver = Receiver(log, decoder=kserve({}, principal_header="X-Client-Id"), token=None)
    lines = [json.loads(x) for x in (DATA / "kserve_cloudevents_http.jsonl").read_text().splitlines()]
    answers = [receiver.post(m["body"], {**m["headers"], "Host": "x"}, path=m["path"]).json() for m in lines]
    batch = [
        {"specversion": "1.0", "id": "9", "type": f"org.kubeflow.serving.inference.{side}", "source": "u",
         "time": "2021-04-10T01:22:16Z", "inferenceservicename": "iris", "component": "predictor", "data": data}
        for side, data in (("request", {"instances": [[1, 2]]}), ("response", {"predictions": [1]}))
    ]  # fmt: skip
    answers.append(receiver.post(batch, {"Content-Type": "application/cloudevents-batch+json"}).json())
    receiver.close()
    assert [a["rejected"] for a in answers] == [0] * 6
    assert [e.prediction for e in log.events] == [1.0]
    assert len(log.parts) == 8


def test_requests_that_wait_share_a_transaction_and_none_is_lost(log: MemoryEventLog) -> None:
    """Fifty senders at once: every event once, in fewer transactions than requests."""

    class Slow(MemoryEventLog):
        batches = 0

        def append(self, batch: IngestBatch) -> IngestResult:
            time.sleep(0.05)  # a store that takes its time
            self.batches += 1
            return super().append(batch)

    slow = Slow()
    receiver = Receiver(slow)
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(receiver.post([event(n)]).status_code)) for n in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    receiver.close()
    assert answers == [202] * 50
    assert numbers(slow) == list(range(50))
    assert slow.batches < 50
    assert slow.next_offsets == {("web", ("http", 0)): 50}


def test_two_receivers_of_one_source_take_turns(log: MemoryEventLog) -> None:
    """Replicas share one partition: each claim fences the other, which claims again, and nothing is lost."""
    first, second = Receiver(log), Receiver(log)
    for n in range(10):
        assert (first if n % 2 else second).post([event(n)]).status_code == 202
    first.close()
    second.close()
    assert numbers(log) == list(range(10))
    assert sorted(p.offset for p in log.parts) == list(range(10))


def test_a_store_that_does_not_confirm_is_a_503() -> None:
    """The sender is told to send again, and the next request works."""

    class Failing(MemoryEventLog):
        fail = True

        def append(self, batch: IngestBatch) -> IngestResult:
            if self.fail:
                self.fail = False
                raise StoreError
            return super().append(batch)

    failing = Failing()
    receiver = Receiver(failing)
    refused, taken = receiver.post([event(0)]), receiver.post([event(0)])
    receiver.close()
    assert (refused.status_code, refused.headers["retry-after"], taken.status_code) == (503, "1", 202)
    assert numbers(failing) == [0]


def test_health_tells_the_process_from_the_store(receiver: Receiver) -> None:
    """/livez answers always, /readyz once the store has been reached."""
    assert receiver.client.get("/livez").status_code == 200
    deadline = time.monotonic() + 5
    while receiver.client.get("/readyz").status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert receiver.client.get("/readyz").json() == {"store": "ok"}


def test_the_idle_receiver_holds_no_watermark(receiver: Receiver, log: MemoryEventLog) -> None:
    """It reports itself read to its end from the start."""
    deadline = time.monotonic() + 5
    while not log.caught_up and time.monotonic() < deadline:
        time.sleep(0.02)
    assert log.caught_up == {("web", ("http", 0)): True}


def test_beyond_loopback_a_token_is_required(log: MemoryEventLog) -> None:
    """Without one the receiver does not start; a taken address is said."""
    args: Sequence[Any] = (native(), log, IngestSettings(), str, lambda: 0, threading.Event())
    with pytest.raises(ConfigError, match="token"):
        serve_http("web", Source(type="http", bind="0.0.0.0:0"), *args)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(DependencyUnreachable, match="cannot listen"):
        serve_http("web", Source(type="http", bind=f"127.0.0.1:{other.getsockname()[1]}"), *args)
