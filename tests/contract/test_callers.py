"""From a caller's plain name at ingest to what detectors are told of it, on both state stores."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa

from detectors.base import Caller
from monitor.config import directories, load
from monitor.service import callers, collect
from monitor.service.compose import Service, open_service
from monitor.service.live import LiveModel
from monitor.service.privacy import pseudonym
from monitor.store.callers import patterns
from monitor.store.engine import migrate, open_state
from monitor.store.schema import callers as table

NAMES = ["svc-batch-1", "svc-batch-2", "ann.smith@bank", "bob", None]
DIRECTORY = """
- {id: 'svc-batch-*', kind: service, group: batch, owner: ops, profile: batch}
- {id: '*@bank', kind: user, budget: {kappa: 0.8, distinct_rows: 500}}
"""
OPENED: list[Service] = []
START_US = 1_795_334_400_000_000


def event(i: int, name: str | None) -> str:
    """A line of a log."""
    fields = {"event_time": START_US // 1000 + i, "model": "m", "features": {"x": 1.0}, "source_ip": "203.0.113.7"}
    return json.dumps(fields | ({"principal": name} if name else {}))


def service(folder: Path, url: str, directory: str, principals: str = "hmac") -> Service:
    """A service with this directory, over whatever the stores hold already."""
    (folder / "who.yaml").write_text(directory)
    config = {
        "models": {"m": {"principals": "who.yaml"}}, "store": {"path": "data", "database": url}, "clock": "log",
        "privacy": {"principals": principals}, "sources": {"f": {"type": "files", "paths": ["*.jsonl"], "follow": False}},
    }  # fmt: skip
    (folder / "lanner.yaml").write_text(json.dumps(config))
    OPENED.append(open_service(load(folder / "lanner.yaml", env={}), "test"))
    return OPENED[-1]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Whatever a test opened is closed."""
    yield
    while OPENED:
        OPENED.pop().close()


def collected(folder: Path, url: str, directory: str, principals: str = "hmac") -> Service:
    """The service after it has collected and published the log."""
    opened = open_state(url)
    migrate(opened)
    opened.dispose()
    (folder / "log.jsonl").write_text("\n".join(event(i, n) for i, n in enumerate(NAMES)) + "\n")
    made = service(folder, url, directory, principals)
    collect.run(made, threading.Event(), once=True)
    made.publisher().publish(made.tables["m"].model_id, START_US)
    return made


def seen(made: Service) -> tuple[pa.Table, dict[str, Caller]]:
    """The rows of the log and what detectors are told of their callers."""
    live: LiveModel = made.model("m", START_US)
    model_id = made.tables["m"].model_id
    rows = pa.concat_tables(made.log.read_log(model_id, 0, made.log.latest_batch(model_id), live.watched.columns))
    judge = live.judge(live.fresh())
    told = judge.stretch(rows, START_US, START_US).callers()
    assert judge.window(live.fresh(), START_US, START_US + 10**6).callers() == told
    return rows, dict(told)


def test_a_name_is_matched_before_it_becomes_a_pseudonym(tmp_path: Path, state_url: str) -> None:
    """Detectors hear of pseudonyms; the state store holds neither a name nor a pattern in clear."""
    made = collected(tmp_path, state_url, DIRECTORY)
    keyed = pseudonym(made.config)
    rows, told = seen(made)
    assert rows["principal"].to_pylist() == [None if n is None else keyed(n) for n in NAMES]
    batch = Caller(kind="service", group="batch", owner="ops", profile="batch")
    user = Caller(kind="user", kappa=0.8, distinct_rows=500)
    assert told == {
        keyed("svc-batch-1"): batch, keyed("svc-batch-2"): batch, keyed("ann.smith@bank"): user,
    }  # fmt: skip
    with made.engine.connect() as conn:
        stored = [tuple(r) for r in conn.execute(sa.select(table))]
    assert len(stored) == 3
    assert all(value.startswith("h1-") for row in stored for value in row)
    assert set(rows["source_ip"].to_pylist()) == {f"{keyed('203.0.113.7')}@{keyed('203.0.113.0/24')}"}


def test_a_changed_file_counts_at_once(tmp_path: Path, state_url: str) -> None:
    """Entries change, go, change places, and single names come without reading any event again."""
    collected(tmp_path, state_url, DIRECTORY).close()
    changed = "- {id: bob, owner: desk}\n- {id: 'svc-batch-*', owner: new}\n- {id: 'svc-*', owner: later}\n"
    made = service(tmp_path, state_url, changed)
    keyed = pseudonym(made.config)
    _, told = seen(made)
    # '*@bank' is gone; 'svc-*' was no entry when these events came, and only new ones will fit it
    assert told == {keyed("bob"): Caller(owner="desk")} | dict.fromkeys(
        [keyed("svc-batch-1"), keyed("svc-batch-2")], Caller(owner="new")
    )


def test_plain_names_need_no_notes(tmp_path: Path, state_url: str) -> None:
    """Where names are stored in clear the file alone decides, for old events too."""
    made = collected(tmp_path, state_url, DIRECTORY, "plain")
    rows, told = seen(made)
    assert rows["principal"].to_pylist() == NAMES
    assert set(told) == {"svc-batch-1", "svc-batch-2", "ann.smith@bank"}
    assert patterns(made.engine, [n for n in NAMES if n]) == {}
    assert set(rows["source_ip"].to_pylist()) == {"203.0.113.7"}


def test_a_flood_of_names_is_noted_up_to_a_limit(
    tmp_path: Path, state_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit of a pattern names are stored as ever and are simply not declared."""
    monkeypatch.setattr(callers, "PER_PATTERN", 10)
    noted: list[Any] = []
    made = service(tmp_path, f"sqlite:///{tmp_path / 's.db'}", DIRECTORY)
    directory = directories(made.config)["m"]
    log = callers.Noting(made.log, lambda n: f"p-{n}", [directory.matching], noted.extend)
    given = [log.name(f"svc-batch-{i}") for i in range(1000)]
    assert given == [f"p-svc-batch-{i}" for i in range(1000)]
    assert len(log._waiting) == 10
