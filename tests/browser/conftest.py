"""The page, served on loopback over a seeded store, and a real Chromium that notes everything unusual."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import uvicorn
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, Request, sync_playwright

from monitor.store.engine import migrate, open_state
from monitor.store.eventlog import EventLog
from monitor.web import create_app
from tests import evidence, scenes
from tests.servers.chromium import ARGS


@dataclass(frozen=True)
class Served:
    """A running page: its address and its store."""

    url: str
    engine: sa.Engine


@contextmanager
def serving(engine: sa.Engine, log: EventLog | None = None, *, hostile: bool = False) -> Iterator[Served]:
    """The page over a store and its event log, on a free port."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    config = scenes.configured(hostile=hostile, server={"bind": f"127.0.0.1:{port}"})
    app = create_app(config, engine, log=log, now_us=lambda: scenes.NOW_US)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    yield Served(f"http://127.0.0.1:{port}", engine)
    server.should_exit = True
    thread.join(10)


def _store(folder: Path, **how: Any) -> sa.Engine:
    engine = open_state(f"sqlite:///{folder / 'state.db'}")
    migrate(engine)
    scenes.seed(engine, **how)
    return engine


@pytest.fixture(scope="session")
def page_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The scene as a service would have left it."""
    folder = tmp_path_factory.mktemp("served")
    engine = _store(folder, windows=72)
    with serving(engine, evidence.seed(engine, folder)) as served:
        yield served


@pytest.fixture(scope="session")
def hostile_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The scene with markup wherever a log or the configuration could put text."""
    folder = tmp_path_factory.mktemp("hostile")
    engine = _store(folder, windows=40, hostile=True)
    with serving(engine, evidence.seed(engine, folder, hostile=True), hostile=True) as served:
        yield served


@pytest.fixture
def fresh_served(tmp_path: Path) -> Iterator[Served]:
    """A scene of its own, for tests that change it."""
    with serving(_store(tmp_path, windows=24)) as served:
        yield served


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    """One real Chromium for the session."""
    with sync_playwright() as p:
        started = p.chromium.launch(executable_path=chromium, args=list(ARGS))
        yield started
        started.close()


@dataclass
class Watch:
    """What a page did that it should not have done."""

    console: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)

    def said(self, message: ConsoleMessage) -> None:
        """Anything on the console above a note."""
        if message.type in ("error", "warning"):
            self.console.append(message.text)

    def asked(self, dialog: Dialog) -> None:
        """A dialog: some script of a log has run."""
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def requested(self, request: Request) -> None:
        """A request that leaves this machine."""
        if not request.url.startswith(("http://127.0.0.1:", "file://", "data:")):
            self.elsewhere.append(request.url)

    @property
    def all(self) -> list[str]:
        return self.console + self.dialogs + self.elsewhere


Open = Callable[..., tuple[Page, Watch]]


@pytest.fixture
def look(browser: Browser) -> Iterator[Open]:
    """Open an address in a fresh context; the second value collects errors, dialogs and requests to other hosts."""
    contexts: list[BrowserContext] = []

    def opened(url: str, *, width: int = 1280, **options: Any) -> tuple[Page, Watch]:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page, watch = context.new_page(), Watch()
        page.on("console", watch.said)
        page.on("pageerror", lambda e: watch.console.append(str(e)))
        page.on("dialog", watch.asked)
        page.on("request", watch.requested)
        page.goto(url)
        return page, watch

    yield opened
    for context in contexts:
        context.close()
