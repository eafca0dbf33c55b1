"""Events by HTTP POST: answered 202 once they are stored, with a result for each item. At least once.

Requests that wait together are stored in one transaction. A sender that repeats a request after a lost answer sends
the same `Idempotency-Key`, which is remembered for 24 hours; without one, a repeat is stored again.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import os
import queue
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from collectors.base import Advance, DeadLetter, Decoder, EventLog, IngestBatch, IngestSettings, Part, Placed, Record
from collectors.bodies import BodyRefused, items_of
from collectors.pairing import pair
from collectors.parts import admit
from collectors.poison import dead_letter
from monitor import telemetry
from monitor.config import Source
from monitor.errors import (
    ConfigError,
    DecodeError,
    DependencyUnreachable,
    FencedOut,
    LannerError,
    Mistake,
    SchemaUnavailable,
    StoreError,
)
from monitor.model import SECOND_US

PARTITION: Final = ("http", 0)
BODY_FACTOR: Final = 16  # a body may hold this many times the largest message
WAITING_REQUESTS: Final = 256  # beyond it senders hear 503 and try again
ANSWER_S: Final = 30.0
REPORT_S: Final = 5.0
_ATTEMPTS: Final = 5  # claims of one batch when several receivers take turns

log = structlog.get_logger("lanner.http")


@dataclass(slots=True)
class _Job:
    """One request's items, decoded; offsets are given when it is stored. `done` tells whether it was a repeat."""

    items: list[tuple[Record, Sequence[Part]]]
    failed: list[tuple[Record, DecodeError]]
    newest_us: int
    key: str | None
    done: Future[bool] = field(default_factory=Future)


class HttpReceiver:
    """Decodes requests and stores them through one writer thread; `app` is its ASGI application."""

    def __init__(
        self,
        name: str,
        decoder: Decoder,
        event_log: EventLog,
        settings: IngestSettings,
        pseudonym: Callable[[str], str],
        clock: Callable[[], int],
        token: str | None = None,
    ) -> None:
        self.name, self.settings = name, settings
        self._decode, self._log, self._pseudonym, self._clock = decoder, event_log, pseudonym, clock
        self._token = None if token is None else token.encode()
        self._owner = f"{socket.gethostname()}:{os.getpid()}/{name}"
        self._jobs: queue.Queue[_Job | None] = queue.Queue(WAITING_REQUESTS)
        self._epoch: int | None = None
        self._next: int | None = None
        self._report_at_us = 0
        self._writer = threading.Thread(target=self._write, name=f"store-{name}", daemon=True)
        routes = [Route(path, self._post, methods=["POST"]) for path in ("/v1/events", "/")]
        self.app = Starlette(routes=[*routes, Route("/livez", _alive), Route("/readyz", self._ready)])

    def start(self) -> None:
        """Begins to store."""
        self._writer.start()

    def close(self) -> None:
        """Stores what waits and ends."""
        self._jobs.put(None)
        self._writer.join()

    # -- a request

    async def _post(self, request: Request) -> Response:
        if self._token is not None and not _authorised(request, self._token):
            return _problem(401, "A bearer token is required.", {"WWW-Authenticate": "Bearer"})
        key = request.headers.get("idempotency-key")
        if key is not None and not (0 < len(key) <= 255 and key.isascii() and key.isprintable()):
            return _problem(400, "Idempotency-Key must be 1 to 255 printable ASCII characters.")
        try:
            limit = BODY_FACTOR * self.settings.max_message_bytes
            body = await _body(request, limit)
            records = items_of(self.name, body, request.headers.items(), self._clock() // 1000, limit)
        except BodyRefused as refused:
            return _problem(refused.status, str(refused))
        except ClientDisconnect:
            return Response(status_code=400)
        try:
            job = await asyncio.to_thread(self._decode_all, records, key)
        except SchemaUnavailable as error:
            return _problem(503, str(error), {"Retry-After": "5"})
        try:
            self._jobs.put_nowait(job)
            repeated = await asyncio.wait_for(asyncio.wrap_future(job.done), ANSWER_S)
        except (queue.Full, TimeoutError):
            return _problem(503, "The store does not keep up; send this again later.", {"Retry-After": "1"})
        except LannerError:
            return _problem(503, "The store did not confirm; send this again.", {"Retry-After": "1"})
        return JSONResponse(_answer(records, job, repeated), status_code=202)

    def _decode_all(self, records: Sequence[Record], key: str | None) -> _Job:
        job = _Job([], [], -1, key)
        future_us = self._clock() + self.settings.future_skew_s * SECOND_US
        for record in records:
            try:
                if len(record.value or b"") > self.settings.max_message_bytes:
                    raise DecodeError("oversize", f"{len(record.value or b'')} bytes")
                parts = self._decode(record)
                job.newest_us = max(job.newest_us, admit(parts, self.name, future_us, self._pseudonym))
                job.items.append((record, parts))
            except DecodeError as error:
                job.failed.append((record, error))
            except SchemaUnavailable:
                raise
            except Exception as error:
                log.exception("decoder_failed", source=self.name)
                job.failed.append((record, DecodeError("decoder_failed", type(error).__name__)))
        return job

    async def _ready(self, request: Request) -> Response:
        del request
        ready = self._epoch is not None and self._writer.is_alive()
        return JSONResponse({"store": "ok" if ready else "unavailable"}, status_code=200 if ready else 503)

    # -- the writer

    def _write(self) -> None:
        """Stores jobs as they come; those that came during the last transaction share the next one."""
        self._report(force=True)
        is_open = True
        while is_open:
            jobs, is_open = self._waiting()
            loose = [job for job in jobs if job.key is None]
            for group in ([loose] if loose else []) + [[job] for job in jobs if job.key is not None]:
                self._finish(group)
            self._report(force=False)

    def _waiting(self) -> tuple[list[_Job], bool]:
        """Everything that waits now, () after a quiet while; False once `close` was called."""
        jobs: list[_Job] = []
        try:
            job = self._jobs.get(timeout=REPORT_S)
            while job is not None:
                jobs.append(job)
                job = self._jobs.get_nowait()
        except queue.Empty:
            return jobs, True
        return jobs, False

    def _finish(self, jobs: list[_Job]) -> None:
        jobs = [job for job in jobs if job.done.set_running_or_notify_cancel()]  # a sender who left is not served
        try:
            repeated = bool(jobs) and self._store(jobs)
        except Exception as error:
            if not isinstance(error, LannerError):
                log.exception("store_failed", source=self.name)
            self._epoch = None  # the outcome is unknown: claim anew
            failure = error if isinstance(error, LannerError) else StoreError()
            for job in jobs:
                job.done.set_exception(failure)
            return
        for job in jobs:
            job.done.set_result(repeated)

    def _store(self, jobs: Sequence[_Job]) -> bool:
        for _ in range(_ATTEMPTS):
            epoch = self._epoch if self._epoch is not None else self._claim()
            start = self._next or 0
            batch, end = self._batch(jobs, epoch, start)
            try:
                result = self._log.append(batch)
            except FencedOut:  # another receiver of this source stored something: take turns
                self._epoch = None
                continue
            if result.repeated:
                return True
            self._next = end
            for outcome, n in result.stored():
                telemetry.count("collector_records_total", n, source=self.name, outcome=outcome)
            for letter in batch.dead_letters:
                telemetry.count("decode_failures_total", source=self.name, reason=letter.reason)
            return False
        raise StoreError(f"Source {self.name}: other receivers of this source took every turn.")

    def _batch(self, jobs: Sequence[_Job], epoch: int, start: int) -> tuple[IngestBatch, int]:
        """One transaction's worth; items get their offsets here, in the order they are stored."""
        topic, partition = PARTITION
        offset = start
        placed: list[Placed] = []
        dead: list[DeadLetter] = []
        for job in jobs:
            for _, parts in job.items:
                placed += [Placed(topic, partition, offset, part) for part in parts]
                offset += 1
            for record, error in job.failed:
                letter = dead_letter(record, error.reason, error.detail, self.settings.dead_letter_bytes)
                dead.append(replace(letter, offset=offset))
                offset += 1
        newest = max(job.newest_us for job in jobs)
        advance = Advance(topic, partition, epoch, self._next, offset, None if newest < 0 else newest)
        return IngestBatch(self.name, self._clock(), pair(placed), dead, [advance], jobs[0].key), offset

    def _claim(self) -> int:
        claim = self._log.claim(self.name, self._owner, [PARTITION])[PARTITION]
        self._epoch, self._next = claim.epoch, claim.next_offset
        return claim.epoch

    def _report(self, *, force: bool) -> None:
        """A receiver is always read to its end; saying so lets a silent one not hold the watermark."""
        now_us = self._clock()
        if not force and now_us < self._report_at_us:
            return
        self._report_at_us = now_us + round(REPORT_S * SECOND_US)
        try:
            if self._epoch is None:
                self._claim()
            self._log.report(self.name, self._owner, {PARTITION: True}, now_us)
        except LannerError as error:
            log.warning("store_unavailable", source=self.name, reason=str(error))


def serve_http(
    name: str,
    source: Source,
    decoder: Decoder,
    event_log: EventLog,
    settings: IngestSettings,
    pseudonym: Callable[[str], str],
    clock: Callable[[], int],
    stop: threading.Event,
    *,
    folder: Path = Path(),
    on_ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Receives on `source.bind` until `stop` is set; `on_ready` hears the address.

    Raises ConfigError when an address beyond loopback has no token, DependencyUnreachable when it is taken.
    """
    del folder
    host, _, port = source.bind.rpartition(":")
    host = host.strip("[]")
    token = source.token.get_secret_value() if source.token is not None else None
    if token is None and not _loopback(host):
        raise ConfigError([Mistake(f"source {name}", None, f"bind {source.bind} needs a token or token_file")])
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, int(port)), family=family)
    except OSError as error:
        raise DependencyUnreachable(f"source {name}: cannot listen on {source.bind}: {error}") from error
    receiver = HttpReceiver(name, decoder, event_log, settings, pseudonym, clock, token)
    receiver.start()
    config = uvicorn.Config(
        receiver.app, log_config=None, access_log=False, server_header=False, limit_concurrency=WAITING_REQUESTS * 2,
        timeout_graceful_shutdown=10, lifespan="off",
    )  # fmt: skip
    server = uvicorn.Server(config)

    async def serve() -> None:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not stop.is_set() and not serving.done():  # noqa: ASYNC110 -- `stop` belongs to threads
            await asyncio.sleep(0.1)
        server.should_exit = True
        await serving

    on_ready(f"http://{source.bind if int(port) else f'{host}:{listener.getsockname()[1]}'}")
    try:
        asyncio.run(serve())
    finally:
        receiver.close()
        listener.close()


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _authorised(request: Request, token: bytes) -> bool:
    kind, _, given = request.headers.get("authorization", "").partition(" ")
    return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), token)


async def _body(request: Request, limit: int) -> bytes:
    """The body, refused as soon as it is too large; what the sender announces is not trusted."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise BodyRefused(413, f"A body may have at most {limit} bytes; send fewer events at once.")
        chunks.append(chunk)
    return b"".join(chunks)


def _answer(records: Sequence[Record], job: _Job, repeated: bool) -> dict[str, Any]:
    """What became of each item, by its place in the body."""
    reasons = {id(record): error for record, error in job.failed}
    items: list[dict[str, Any]] = []
    for index, record in enumerate(records):
        error = reasons.get(id(record))
        if error is None:
            items.append({"index": index, "status": "accepted"})
        else:
            detail = telemetry.escaped(error.detail)[:200]
            items.append({"index": index, "status": "rejected", "reason": error.reason, "detail": detail})
    return {"accepted": len(job.items), "rejected": len(job.failed), "repeated": repeated, "items": items}


def _problem(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """RFC 9457 problem details."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(body, status_code=status, headers=headers, media_type="application/problem+json")


async def _alive(request: Request) -> Response:
    del request
    return JSONResponse({"status": "ok"})
