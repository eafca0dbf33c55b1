"""The composition root: configuration in, a service of wired parts out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from alerts import quiet
from alerts.routes import routing
from monitor.config import Config, Source
from monitor.model import Transition
from monitor.service.callers import finder
from monitor.service.frozen import reference_schema
from monitor.service.live import LiveModel
from monitor.service.references import NO_REFERENCE, settle
from monitor.service.watch import Watched, watch
from monitor.store import references, registry
from monitor.store.engine import check_migrated, is_new, migrate, open_state
from monitor.store.eventlog import EventLog, ModelTable
from monitor.store.publish import Publisher
from monitor.store.queries import Engine


def state_url(config: Config) -> str:
    """SQLAlchemy URL of the state store: configured, from a secret file, or SQLite under the store's path."""
    if config.store.database is not None:
        return config.store.database.get_secret_value()
    if config.store.database_file is not None:
        return config.path(config.store.database_file).read_text().strip()
    return f"sqlite:///{config.path(config.store.path) / 'state.db'}"


@dataclass
class Service:
    """The wired parts of one process."""

    config: Config
    engine: Engine
    root: Path
    tables: dict[str, ModelTable]
    log: EventLog
    owner: str
    sinks_for: Callable[[Transition], Sequence[str]]  # names of the sinks that a transition goes to
    live: dict[str, LiveModel] = field(default_factory=dict)

    def close(self) -> None:
        """Give leases and connections back."""
        for live in self.live.values():
            live.release(self.owner)
        self.engine.dispose()

    @property
    def sources(self) -> Mapping[str, Source]:
        """What is collected from; without any configured, HTTP ingest opens on loopback."""
        return self.config.sources or {"http": Source(type="http")}

    def publisher(self) -> Publisher:
        return Publisher(self.engine, self.root / "events", self.owner)

    @property
    def references(self) -> Path:
        """Where frozen references lie."""
        return self.root / "references"

    def watched(self, name: str, now_us: int) -> Watched:
        """The model with its reference, which may bring features that had no column so far."""
        held = settle(self.config, self.engine, self.log, self.tables[name], self.references, now_us)
        self.tables = {**self.tables, name: registry.grow(self.engine, name, held.schema)}
        self.log = EventLog(self.engine, self.root / "events", self.tables)
        return watch(self.config, self.engine, self.tables[name], held, self.references, now_us)

    def stale(self, name: str) -> bool:
        """Whether people have given the model another reference than the one that it is judged by in this process."""
        live = self.live.get(name)
        if live is None:
            return False
        current = references.standing(self.engine, live.watched.model_id).current or NO_REFERENCE
        return current != live.watched.reference_hash

    def model(self, name: str, now_us: int) -> LiveModel:
        """The live model of this process; it keeps its state between ticks."""
        if name not in self.live or self.stale(name):
            find = finder(self.config, self.engine, name)
            watched = self.watched(name, now_us)
            self.live[name] = LiveModel(watched, self.engine, self.log, self.config, self.sinks_for, find)
        return self.live[name]


def open_service(config: Config, owner: str) -> Service:
    """Open the stores and register the configured models. Raises MigrationNeeded, StoreError, ConfigError."""
    root = config.path(config.store.path)
    root.mkdir(parents=True, exist_ok=True)
    engine = open_state(state_url(config))
    try:
        if engine.dialect.name == "sqlite" and is_new(engine):
            migrate(engine)  # a new embedded store needs no separate step; PostgreSQL is migrated on purpose
        check_migrated(engine)
        schemas = {n: reference_schema(config, n, m, references.schemas(engine, n)) for n, m in config.models.items()}
        tables = registry.register(engine, config.environment, schemas)
        grown = {n: s for n, s in references.current_schemas(engine).items() if n in tables}
        tables |= {name: registry.grow(engine, name, schema) for name, schema in grown.items()}
    except BaseException:
        engine.dispose()
        raise
    log = EventLog(engine, root / "events", tables)
    route = routing(config)
    return Service(config, engine, root, tables, log, owner, lambda t: route(t) if quiet.told(t) else ())
