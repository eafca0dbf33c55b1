"""What `lanner doctor` looks at: facts about this machine and about what a configuration needs of it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import resource
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from monitor.config import Config, SinkConfig
from monitor.errors import LannerError

PACKAGES: Final = ("monitor", "collectors", "detectors", "alerts")
FILES_MIN: Final = 1024  # open files: one consumer, some segments, a pool of connections, and room
DISK_MIN_BYTES: Final = 1 << 30
CONNECT_S: Final = 3.0
_CLOCK_UNSYNCHRONISED: Final = 5  # TIME_ERROR of adjtimex(2)


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact; `unreachable` tells a server that does not answer from everything else."""

    what: str
    state: Literal["ok", "warn", "fail"]
    says: str
    unreachable: bool = False


def machine() -> Iterator[Finding]:
    """What holds whatever the configuration says."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok" if sys.version_info >= (3, 11) else "fail", version)
    foreign = foreign_packages()
    yield Finding("packages", "fail" if foreign else "ok", foreign or f"lanner {importlib.metadata.version('lanner')}")
    missing = [name for name in _required() if not _installed(name)]
    yield Finding(
        "dependencies", "fail" if missing else "ok", f"missing: {', '.join(missing)}" if missing else "all there"
    )
    crc = importlib.util.find_spec("crc32c") is not None
    yield Finding(
        "crc32c", "ok" if crc else "fail", "there" if crc else "missing: reading Kafka takes 10 times the CPU"
    )
    yield _clock()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft >= FILES_MIN or soft == resource.RLIM_INFINITY
    yield Finding("open files", "ok" if enough else "warn", f"{soft} (at most {hard}); {FILES_MIN} or more are advised")
    yield from _names()


def service(config: Config) -> Iterator[Finding]:
    """What this configuration needs: a writable store, private secrets, servers that answer."""
    yield from _store(config)
    yield from _secrets(config)
    for name, source in config.sources.items():
        for address in (source.bootstrap or "").split(","):
            if address:
                yield _answers(f"sources.{name}", address)
    yield _routed(config)
    for name, sink in config.sinks.items():
        if sink.url:
            url = urlsplit(sink.url)
            port = url.port or (443 if url.scheme == "https" else 80)
            answers = _answers(f"sinks.{name}", f"{url.hostname}:{port}")
            yield answers
            if sink.type == "alerta" and answers.state == "ok":
                yield _admitted(name, sink, config)
        for address in (*(sink.bootstrap or "").split(","), sink.address or ""):
            if address:
                yield _answers(f"sinks.{name}", address.strip())


def foreign_packages() -> str | None:
    """The package that would be imported from elsewhere than the installed lanner, as a sentence; None when all is well.

    `monitor` and `alerts` are common names: a folder or a distribution that shadows one of them would run in its place.
    """
    distribution = importlib.metadata.distribution("lanner")
    direct = json.loads(distribution.read_text("direct_url.json") or "{}")
    editable = direct.get("dir_info", {}).get("editable")
    home = Path(unquote(urlsplit(direct["url"]).path)) if editable else Path(str(distribution.locate_file("")))
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            return f"the package {name} is missing; install lanner again"
        if Path(spec.origin).resolve().parent.parent != home.resolve():
            return f"{name} comes from {Path(spec.origin).parent}, not from lanner in {home}; remove or rename that one"
    return None


def _required() -> list[str]:
    """Names of the distributions that lanner requires itself."""
    found = []
    for line in importlib.metadata.requires("lanner") or ():
        if "extra ==" not in line:
            end = next((i for i, c in enumerate(line) if not (c.isalnum() or c in "-_.")), len(line))
            found.append(line[:end])
    return found


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _clock() -> Finding:
    """Whether the kernel holds its clock synchronised; incidents and windows are dated by it."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))  # modes = 0: only asks
    except (OSError, AttributeError):
        return Finding("clock", "warn", "this system does not tell whether it is synchronised")
    if state in (-1, _CLOCK_UNSYNCHRONISED):
        return Finding("clock", "warn", "not synchronised, as far as the kernel knows; run an NTP client")
    return Finding("clock", "ok", "synchronised")


def _names() -> Iterator[Finding]:
    from collectors.decode import DECODERS
    from detectors.registry import REGISTRY

    yield Finding("detectors", "ok", ", ".join(REGISTRY))
    yield Finding("decoders", "ok", ", ".join(DECODERS))


def _store(config: Config) -> Iterator[Finding]:
    from monitor.service.compose import state_url
    from monitor.store.engine import check_migrated, open_state

    path = config.path(config.store.path)
    above = next(p for p in (path, *path.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=above) as probe:
            probe.write(b"x")
            probe.flush()
            os.fsync(probe.fileno())
        free = shutil.disk_usage(above).free
        state: Literal["ok", "warn"] = "ok" if free >= DISK_MIN_BYTES else "warn"
        yield Finding("store.path", state, f"{path} can be written, {free / (1 << 30):.1f} GiB free")
    except OSError as error:
        yield Finding("store.path", "fail", f"{path} cannot be written: {error.strerror}")
        return
    url = state_url(config)
    if url.startswith("sqlite") and not (path / "state.db").exists():
        yield Finding("store.database", "ok", "SQLite, made on first start")
        return
    try:
        engine = open_state(url)
        try:
            check_migrated(engine)
        finally:
            engine.dispose()
    except LannerError as error:
        yield Finding("store.database", "fail", str(error), unreachable=error.exit_code == 4)
    else:
        yield Finding("store.database", "ok", "migrated")
        yield from _monitors(config, url)


def _monitors(config: Config, url: str) -> Iterator[Finding]:
    """Monitors that cannot be believed, of every model that has been judged."""
    from monitor.model import SECOND_US
    from monitor.reports.diagnosis import diagnose
    from monitor.store.engine import open_state
    from monitor.store.queries import all_models

    lateness_us = round((config.schedule.lateness + config.schedule.idle) * SECOND_US)
    engine = open_state(url)
    try:
        for model in all_models(engine, 0, clock="log", grace_us=lateness_us):
            for d in diagnose(engine, model, clock=config.clock, lateness_us=lateness_us):
                about = d.monitor if d.feature is None else f"{d.monitor} on {d.feature}"
                yield Finding(f"models.{model.name}: {about}", "warn", f"{d.text}; {d.fix}")
    finally:
        engine.dispose()


def _secrets(config: Config) -> Iterator[Finding]:
    """Files of secrets that others on this machine can read."""
    files = [config.store.database_file, config.privacy.key_file]
    files += [f for s in config.sources.values() for f in (s.password_file, s.token_file)]
    files += [f for s in config.sinks.values() for f in (s.key_file, s.target_file, s.password_file, s.cert_file)]
    for file in filter(None, files):
        path = config.path(file)
        if path.exists() and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            yield Finding("secrets", "warn", f"{path} can be read by others; chmod 600")


def _routed(config: Config) -> Finding:
    """Kinds of alerts that no sink would get: routes made for attacks easily forget Lanner's own silence."""
    from alerts.routes import choices
    from monitor.cli.routes import alerts

    if not config.sinks:
        return Finding("routes", "warn", "there are no sinks: alerts are shown on the page only")
    asked = alerts(config, None, None, None, None, None, None)
    lost = sorted({a.event.value for a in asked if not any(c.told for c in choices(config, a))})
    says = f"no sink gets {', '.join(lost)}: lanner routes test --all" if lost else "every kind of alert has a sink"
    return Finding("routes", "warn" if lost else "ok", says)


def _admitted(name: str, sink: SinkConfig, config: Config) -> Finding:
    """Whether alerts would be sent to this Alerta: unsafe servers and refused keys show before the first alert does."""
    from alerts.alerta import Alerta
    from alerts.registry import SINKS

    try:
        made = SINKS[sink.type](name, sink, config)
        if isinstance(made, Alerta):
            made.admits(CONNECT_S)
    except LannerError as error:
        return Finding(f"sinks.{name}", "fail", str(error))
    if sink.allow_insecure:
        return Finding(f"sinks.{name}", "warn", "takes the key; whether it is safe is not asked (allow_insecure)")
    return Finding(f"sinks.{name}", "ok", "a safe Alerta that takes the key")


def _answers(what: str, address: str) -> Finding:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
            return Finding(what, "ok", f"{address} answers")
    except (OSError, ValueError) as error:
        return Finding(what, "fail", f"{address} does not answer: {error}", unreachable=True)
