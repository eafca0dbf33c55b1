"""What the bank declares about callers, from their plain names at ingest to the stored ids that detectors see.

A pseudonym cannot be matched with a pattern, so collectors note which patterns fit each name before they store its
pseudonym: the pattern's own pseudonym, since `ann.smith@*` names somebody too. Entries that are one plain name need no
note. Notes are written before the events they belong to, so whoever reads an event finds them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Final

import structlog

from collectors.base import Claim, EventLog, IngestBatch, IngestResult, PartitionKey
from detectors.base import Caller
from monitor.config import Config, Directory, KnownPrincipal, directories
from monitor.service.privacy import pseudonym
from monitor.store import callers
from monitor.store.queries import Engine

REMEMBERED: Final = 100_000  # callers whose entry is kept at hand
PER_PATTERN: Final = 100_000  # callers noted of one pattern by one process: a flood of names must not fill the store
AGAIN_S: Final = 600.0  # callers without a note are asked for again: a collector may have learnt new patterns

log = structlog.get_logger("lanner.callers")
NOBODY: Final[Mapping[str, Caller]] = {}

Find = Callable[[Iterable[str | None]], Mapping[str, Caller]]  # declared callers among stored ids


def nobody(names: Iterable[str | None]) -> Mapping[str, Caller]:
    """No directory, nobody declared."""
    return NOBODY


def declared(entry: KnownPrincipal) -> Caller:
    """A directory's entry as detectors know it."""
    return Caller(
        kind=entry.kind, group=entry.group, owner=entry.owner, profile=entry.profile or "",
        kappa=entry.budget.kappa, distinct_rows=entry.budget.distinct_rows,
    )  # fmt: skip


def plain(directory: Directory) -> Find:
    """Finds callers by plain names: in references, in replay, and where `privacy.principals` is plain."""

    @lru_cache(maxsize=REMEMBERED)
    def one(name: str) -> Caller | None:
        entry = directory.entry(name)
        return None if entry is None else declared(entry)

    def find(names: Iterable[str | None]) -> Mapping[str, Caller]:
        return {n: found for n in names if n is not None and (found := one(n)) is not None}

    return find


@dataclass
class Keyed:
    """Finds callers by pseudonyms: entries of one plain name by theirs, patterns by the notes of collectors."""

    directory: Directory
    keyed: Callable[[str], str]
    engine: Engine
    _known: dict[str, Caller | None] = field(default_factory=dict)
    _asked_s: float = 0.0

    def __call__(self, names: Iterable[str | None]) -> Mapping[str, Caller]:
        wanted = {n for n in names if n is not None}
        if time.monotonic() - self._asked_s > AGAIN_S or len(self._known) > REMEMBERED:
            self._known.clear()
            self._asked_s = time.monotonic()
        missing = wanted - self._known.keys()
        if missing:
            self._known.update(self._look_up(missing))
        return {n: c for n in wanted if (c := self._known[n]) is not None}

    @cached_property
    def _exact(self) -> Mapping[str, int]:
        return {self.keyed(name): i for name, i in self.directory.exact.items()}

    @cached_property
    def _patterns(self) -> Mapping[str, int]:
        return {self.keyed(text): i for i, text, _ in self.directory.patterns}

    def _look_up(self, names: Iterable[str]) -> dict[str, Caller | None]:
        noted = callers.patterns(self.engine, names) if self._patterns else {}
        found: dict[str, Caller | None] = {}
        for name in names:
            fits = [self._patterns[p] for p in noted.get(name, ()) if p in self._patterns]
            fits += [self._exact[name]] if name in self._exact else []
            found[name] = declared(self.directory.principals[min(fits)]) if fits else None
        return found


def finder(config: Config, engine: Engine, model: str) -> Find:
    """How to find the declared callers of a model among the ids that its log holds."""
    directory = directories(config).get(model)
    if directory is None:
        return nobody
    if config.privacy.principals == "plain":
        return plain(directory)
    return Keyed(directory, pseudonym(config), engine)


@dataclass
class Noting:
    """An event log for collectors that first notes which patterns the names of a batch fitted.

    `name` gives the pseudonym of any name. It cannot tell callers from labelers or credentials; notes about those are
    never asked for.
    """

    log: EventLog
    keyed: Callable[[str], str]
    patterns: Sequence[Callable[[str], Sequence[str]]]
    note: Callable[[Iterable[tuple[str, str]]], None]
    _waiting: dict[tuple[str, str], None] = field(default_factory=dict)
    _noted: dict[str, set[str]] = field(default_factory=dict)  # pattern -> principals
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.name = lru_cache(maxsize=65_536)(self._name)  # a flood of new names must not grow the process

    def _name(self, name: str) -> str:
        given = self.keyed(name)
        for pattern in {p for fitting in self.patterns for p in fitting(name)}:
            noted = self._noted.setdefault(pattern, set())
            if given in noted or len(noted) >= PER_PATTERN:
                continue
            with self._lock:
                noted.add(given)
                self._waiting[given, self.keyed(pattern)] = None
            if len(noted) == PER_PATTERN:
                log.warning("pattern_fits_too_many", pattern=pattern, callers=PER_PATTERN)
        return given

    def claim(self, source: str, owner: str, partitions: Sequence[PartitionKey]) -> Mapping[PartitionKey, Claim]:
        return self.log.claim(source, owner, partitions)

    def append(self, batch: IngestBatch) -> IngestResult:
        """Notes first; a batch that fails after them leaves notes that say nothing wrong."""
        with self._lock:
            if self._waiting:
                self.note(self._waiting)
                self._waiting.clear()
        return self.log.append(batch)

    def report(self, source: str, owner: str, caught_up: Mapping[PartitionKey, bool], now_us: int) -> None:
        self.log.report(source, owner, caught_up, now_us)


def intake(config: Config, engine: Engine, events: EventLog) -> tuple[Callable[[str], str], EventLog]:
    """The pseudonym and the event log that collectors of this configuration use."""
    keyed = pseudonym(config)
    known = [d.matching for d in directories(config).values() if d.patterns]
    if not known or config.privacy.principals == "plain":
        return keyed, events
    noting = Noting(events, keyed, known, lambda found: callers.note(engine, found))
    return noting.name, noting
