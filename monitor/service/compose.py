"""The composition root: configuration in, a service of wired parts out."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from monitor.config import Config
from monitor.model import Severity, Transition
from monitor.service.live import LiveModel
from monitor.service.watch import Watched, reference_schema, watch
from monitor.store import registry
from monitor.store.engine import check_migrated, migrate, open_state
from monitor.store.eventlog import EventLog, ModelTable
from monitor.store.publish import Publisher


def state_url(config: Config) -> str:
    """SQLAlchemy URL of the state store: configured, from a secret file, or SQLite under the store's path."""
    if config.store.database is not None:
        return config.store.database.get_secret_value()
    if config.store.database_file is not None:
        return config.path(config.store.database_file).read_text().strip()
    return f"sqlite:///{config.path(config.store.path) / 'state.db'}"


def pseudonym(config: Config) -> Callable[[str], str]:
    """What is stored of a caller's name: itself, or 128 bits of HMAC-SHA-256 under the deployment's one key.

    The key file is made on first use with mode 0600. Whoever loses it can no longer link new events to old callers.
    """
    if config.privacy.principals == "plain":
        return lambda name: name
    file = config.path(config.privacy.key_file or config.store.path / "pseudonym.key")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        # Exclusive and private from the start: two processes that begin at once must not make two keys.
        try:
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
                stream.write(secrets.token_hex(32))
        except FileExistsError:
            pass
    key = bytes.fromhex(file.read_text().strip())
    known: dict[str, str] = {}

    def keyed(name: str) -> str:
        found = known.get(name)
        if found is None:
            if len(known) > 1_000_000:  # a flood of new names must not grow the process
                known.clear()
            found = known[name] = "h1-" + hmac.new(key, name.encode(), hashlib.sha256).hexdigest()[:32]
        return found

    return keyed


@dataclass
class Service:
    """The wired parts of one process."""

    config: Config
    engine: sa.Engine
    root: Path
    tables: dict[str, ModelTable]
    log: EventLog
    owner: str
    live: dict[str, LiveModel] = field(default_factory=dict)

    def publisher(self) -> Publisher:
        return Publisher(self.engine, self.root / "events", self.owner)

    def watched(self, name: str, now_us: int) -> Watched:
        return watch(self.config, self.engine, self.tables[name], self.root / "references", now_us)

    def model(self, name: str, now_us: int) -> LiveModel:
        """The live model of this process; it keeps its state between ticks."""
        if name not in self.live:
            self.live[name] = LiveModel(self.watched(name, now_us), self.engine, self.log, self.config, self.sinks_for)
        return self.live[name]

    def sinks_for(self, transition: Transition) -> Sequence[str]:
        """Names of the sinks that a transition goes to, by routes and each sink's own floor."""
        a = transition.alert
        if self.config.routes:
            chosen = {
                s
                for r in self.config.routes
                if (not r.models or a.model in r.models)
                and (not r.families or a.family.value in r.families)
                and a.severity.rank >= Severity(r.min_severity).rank
                for s in r.sinks
            }
        else:
            chosen = set(self.config.sinks)
        return sorted(s for s in chosen if a.severity.rank >= Severity(self.config.sinks[s].min_severity).rank)


def open_service(config: Config, owner: str) -> Service:
    """Open the stores and register the configured models. Raises MigrationNeeded, StoreError, ConfigError."""
    root = config.path(config.store.path)
    root.mkdir(parents=True, exist_ok=True)
    engine = open_state(state_url(config))
    if engine.dialect.name == "sqlite" and not sa.inspect(engine).has_table("models"):
        migrate(engine)  # a new embedded store needs no separate step; PostgreSQL is migrated on purpose
    check_migrated(engine)
    tables = registry.register(engine, config.environment, {n: reference_schema(config, n, m) for n, m in config.models.items()})
    log = EventLog(engine, root / "events", tables)
    return Service(config, engine, root, tables, log, owner)
