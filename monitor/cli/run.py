"""`lanner run` and the processes it supervises: collect, schedule, web; and `lanner migrate`."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvicorn

from monitor import scheduler, telemetry
from monitor.cli.config import checked
from monitor.cli.options import DEFAULT, ConfigFile, owner
from monitor.config import Config
from monitor.errors import DependencyUnreachable, LannerError
from monitor.service import collect as collecting
from monitor.service.compose import open_service, state_url
from monitor.store.engine import migrate as upgrade
from monitor.store.engine import open_state
from monitor.web import create_app

PARTS = ("collect", "schedule", "web")
STOP_S = 20.0  # how long a part may take to end before it is killed
SETTLED_S = 60.0  # a part that ran so long had no fault of its own at its start

log = structlog.get_logger("lanner.run")


def stopper() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def prepared(file: Path) -> Config:
    """The configuration, with logging set up as it says."""
    config = checked(file)
    telemetry.configure(config.server.log_format)
    return config


@contextmanager
def measured(config: Config, part: str) -> Iterator[None]:
    """/metrics of this process, without login, on a port of its own while the block runs, where the configuration says so.

    The parts take the port of `server.metrics_bind` and those after it, in the order of PARTS.
    """
    if config.server.metrics_bind is None:
        yield
        return
    host, _, port = config.server.metrics_bind.rpartition(":")
    try:
        server, thread = telemetry.serve(host.strip("[]"), int(port) and int(port) + PARTS.index(part))
    except OSError as error:
        raise DependencyUnreachable(f"server.metrics_bind: {part} cannot listen there: {error}") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def collect(
    config: ConfigFile = DEFAULT,
    once: Annotated[bool, typer.Option(help="Read every source to its end, then exit.")] = False,
) -> None:
    """Read the configured sources into the event log."""
    loaded = prepared(config)
    # Events are plain trees that reference counting frees; looking for cycles among millions of them cost a third of
    # all CPU. Rarer looks keep memory flat.
    gc.freeze()
    gc.set_threshold(500_000, 50, 50)
    with measured(loaded, "collect"):
        collecting.run(open_service(loaded, owner("collect")), stopper(), once=once)


def schedule(config: ConfigFile = DEFAULT) -> None:
    """Publish, judge what is due, deliver alerts."""
    loaded = prepared(config)
    with measured(loaded, "schedule"):
        scheduler.run(open_service(loaded, owner("schedule")), stopper(), config.resolve())


def web(config: ConfigFile = DEFAULT) -> None:
    """Serve the page and the API."""
    loaded = prepared(config)
    host, _, port = loaded.server.bind.rpartition(":")
    service = open_service(loaded, owner("web"))
    with closing(service), measured(loaded, "web"):
        app = create_app(loaded, service.engine, log=service.log)
        uvicorn.run(app, host=host, port=int(port), log_level="warning", server_header=False)


def migrate(config: ConfigFile = DEFAULT) -> None:
    """Bring the state store to this program's version."""
    loaded = prepared(config)
    loaded.path(loaded.store.path).mkdir(parents=True, exist_ok=True)
    engine = open_state(state_url(loaded))
    upgrade(engine)
    engine.dispose()
    typer.echo("The state store is up to date.")


def run(config: ConfigFile = DEFAULT) -> None:
    """Run the whole service: collect, schedule and web as child processes.

    A changed configuration file, or SIGHUP, starts the parts anew one after the other; a file with mistakes changes nothing.
    """
    loaded = prepared(config)
    open_service(loaded, owner("run")).close()  # first start: make the embedded store before the parts race for it
    stop = stopper()
    parts = {name: Part(name, config) for name in PARTS}
    page = f"http://{loaded.server.bind}/"
    typer.echo(f"Lanner watches {len(loaded.models)} model(s). Page: {page}  Stop with Ctrl-C.", err=True)
    if not loaded.sources:
        typer.echo("No sources are configured: send events to http://127.0.0.1:8081/v1/events", err=True)
    asked, seen, running = threading.Event(), _stamp(config), _stamp(config)
    signal.signal(signal.SIGHUP, lambda *_: asked.set())
    try:
        while not stop.wait(0.5):
            for part in parts.values():
                part.keep_alive()
            found = _stamp(config)
            if asked.is_set() or (found == seen != running):  # the same as at the last look: nobody is writing
                asked.clear()
                running = found
                _reload(config, parts)
            seen = found
    finally:
        for part in parts.values():
            part.stop()
        deadline = time.monotonic() + STOP_S
        for part in parts.values():
            part.wait(max(0.1, deadline - time.monotonic()))


def _stamp(file: Path) -> tuple[int, ...]:
    """Differs when a file was written or replaced; empty while there is none."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _reload(file: Path, parts: dict[str, Part]) -> None:
    """Start the parts anew, each as the one before it has ended; nothing is lost, for all of them go on where they stood."""
    try:
        open_service(checked(file), owner("run")).close()
    except LannerError as error:
        log.error("configuration_refused", reason=str(error))
        return
    for part in parts.values():
        part.stop()
        part.wait(STOP_S)
        part.start()
    log.info("configuration_reloaded")


class Part:
    """One supervised child process; it is started again with growing pauses when it ends by itself."""

    def __init__(self, name: str, config: Path) -> None:
        self.name = name
        self.command = [sys.executable, "-m", "monitor.cli", name, "-c", str(config)]
        self.failures = 0
        self.settled = False
        self.start()

    def start(self) -> None:
        """Begin to run."""
        self.started, self.not_before = time.monotonic(), 0.0
        # Own session: Ctrl-C reaches the supervisor alone, which then ends the parts in order.
        self.process = subprocess.Popen(self.command, start_new_session=True)

    def keep_alive(self) -> None:
        """Start the process again when it has ended; a configuration that it never ran with ends the whole service."""
        code, now = self.process.poll(), time.monotonic()
        if code is None:
            if now - self.started > SETTLED_S:
                self.failures, self.settled = 0, True
            return
        if code == 78 and not self.settled:
            raise DependencyUnreachable(f"lanner {self.name} refuses its configuration; see the message above")
        if self.not_before == 0.0:
            self.failures += 1
            pause_s = min(2.0**self.failures, 60.0)
            self.not_before = now + pause_s
            log.error("part_ended", part=self.name, exit_code=code, restart_in_s=pause_s)
        if now >= self.not_before:
            self.start()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()

    def wait(self, timeout_s: float) -> None:
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.error("part_killed", part=self.name)
            self.process.kill()
            self.process.wait()
