"""A fault-injecting HTTP proxy on loopback: it stands before a real server and, when told, behaves as broken networks do.

It understands just enough HTTP to hold one request, so that a fault hits a request and not a random byte.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Exchange:
    """One request on its way: what the client sent, and how to answer it."""

    method: str
    path: str
    head: bytes
    body: bytes
    writer: asyncio.StreamWriter
    upstream: tuple[str, int]

    async def forward(self) -> bytes:
        """The whole answer of the real server."""
        reader, writer = await asyncio.open_connection(*self.upstream)
        lines = [line for line in self.head.split(b"\r\n") if line and not line.lower().startswith(b"connection:")]
        try:
            writer.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + self.body)
            return await reader.read(-1)
        finally:
            writer.close()

    async def answer(self, raw: bytes) -> None:
        """Give the client these bytes."""
        self.writer.write(raw)
        await self.writer.drain()

    def reset(self) -> None:
        """Break the client's connection with an RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    @property
    def sent(self) -> Any:
        """The JSON that the client sent."""
        return json.loads(self.body) if self.body else None


Fault = Callable[[Exchange], Awaitable[None]]


async def passed(x: Exchange) -> None:
    """No fault."""
    await x.answer(await x.forward())


def answers(status: int, body: bytes | str = b"", *, kind: str = "application/json", head: str = "") -> Fault:
    """Answer so without asking the real server."""
    raw = body.encode() if isinstance(body, str) else body

    async def fault(x: Exchange) -> None:
        text = f"HTTP/1.1 {status} Told\r\nContent-Type: {kind}\r\nContent-Length: {len(raw)}\r\n{head}Connection: close\r\n\r\n"
        await x.answer(text.encode() + raw)

    return fault


def answers_after(status: int, body: str) -> Fault:
    """Let the real server do its work, then answer so."""

    async def fault(x: Exchange) -> None:
        await x.forward()
        await answers(status, body)(x)

    return fault


def silent(seconds: float) -> Fault:
    """Never ask the real server and keep the client waiting."""

    async def fault(_: Exchange) -> None:
        await asyncio.sleep(seconds)

    return fault


def zombie(gate: threading.Event, seconds: float = 30.0) -> Fault:
    """Keep the client waiting; when the gate opens, long after the client gave up, the real server gets the request."""

    async def fault(x: Exchange) -> None:
        for _ in range(round(seconds * 50)):
            if gate.is_set():
                break
            await asyncio.sleep(0.02)
        await x.forward()

    return fault


async def reset(x: Exchange) -> None:
    """Break the connection; the real server never hears of it."""
    x.reset()


async def reset_after(x: Exchange) -> None:
    """The real server does its work, and its answer is lost."""
    await x.forward()
    x.reset()


def drips(pause_s: float, *, headers: bool = False) -> Fault:
    """The real server does its work; its answer comes one byte at a time."""

    async def fault(x: Exchange) -> None:
        answer = await x.forward()
        start = 0 if headers else answer.index(b"\r\n\r\n") + 4
        await x.answer(answer[:start])
        for i in range(start, len(answer)):
            await x.answer(answer[i : i + 1])
            await asyncio.sleep(pause_s)

    return fault


async def endless(x: Exchange) -> None:
    """An answer that never ends."""
    await x.answer(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    for _ in range(64):
        await x.answer(b"[" * (1 << 16))


async def echoes_key(x: Exchange) -> None:
    """401 with the key in its message, as Alerta does."""
    key = next(line for line in x.head.split(b"\r\n") if line.lower().startswith(b"authorization:"))
    await answers(401, json.dumps({"status": "error", "message": f"API key parameter '{key.decode()}' is invalid"}))(x)


@dataclass
class Proxy:
    """A running proxy. `plan` lists the faults of the next requests that write; everything else passes."""

    port: int
    upstream: tuple[str, int]
    seen: list[Exchange] = field(default_factory=list)
    always: Fault | None = None  # the fault of all writing requests without a plan
    reads: Fault | None = None  # the fault of all reading requests
    _plan: deque[Fault] = field(default_factory=deque)

    @property
    def url(self) -> str:
        """The address to give to the client."""
        return f"http://127.0.0.1:{self.port}"

    def plan(self, *faults: Fault) -> None:
        """The next writing requests meet these, one each."""
        self._plan.extend(faults)

    def posts(self) -> list[Any]:
        """What was posted to /alert, in the order it came."""
        return [x.sent for x in self.seen if x.method == "POST" and x.path.endswith("/alert")]

    def pick(self, x: Exchange) -> Fault:
        """The fault of a request."""
        if x.method == "GET":
            return self.reads or passed
        return self._plan.popleft() if self._plan else self.always or passed

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection carries one request."""
        try:
            await self.exchange(reader, writer)
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass  # the client went away
        finally:
            writer.close()

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read a request and let its fault have it."""
        head = await reader.readuntil(b"\r\n\r\n")
        method, path = head.split(b" ", 2)[:2]
        length = next((int(h[15:]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:")), 0)
        body = await reader.readexactly(length)
        x = Exchange(method.decode(), path.decode().split("?")[0], head, body, writer, self.upstream)
        self.seen.append(x)
        await self.pick(x)(x)


@contextmanager
def running(upstream_port: int) -> Iterator[Proxy]:
    """A proxy before 127.0.0.1:upstream_port, in a thread of its own."""
    loop = asyncio.new_event_loop()
    proxy = Proxy(0, ("127.0.0.1", upstream_port))
    # The loop runs in its thread only: the test's own thread may have one running (the browser driver's).
    thread = threading.Thread(target=loop.run_forever, name="proxy", daemon=True)
    thread.start()
    starting = asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    server = asyncio.run_coroutine_threadsafe(starting, loop).result(10)
    proxy.port = server.sockets[0].getsockname()[1]

    async def close() -> None:
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # closed transports let go of their sockets in the next turn

    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
