"""Servers as fixtures, groups by folder, and a closing report of what was really used."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests import servers
from tests.servers import alerta as alerta_server
from tests.servers import chromium as chromium_browser
from tests.servers import kafka as kafka_broker
from tests.servers import postgres as postgres_cluster

# Tracebacks as the service writes them: the default renderer would draw every local variable, tables of rows too.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.dev.set_exc_info,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

BUDGET_MIN = {
    "unit": 4,
    "contract": 4,
    "integration": 12,
    "browser": 4,
    "faults": 6,
    "docs": 3,
}  # unit and contract share
_spent_s: dict[str, float] = {}
_used: set[tuple[str, str]] = set()  # by the other test processes


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kafka_broker.Kafka]:
    """Our own Apache Kafka broker, for tests that kill or restart it; always leave it running."""
    broker = kafka_broker.start(tmp_path_factory.mktemp("kafka"))
    yield broker
    broker.stop()


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> str:
    """The bootstrap address of a real Kafka: LANNER_TEST_KAFKA, else our own broker. Use topic names of your own."""
    address = os.environ.get("LANNER_TEST_KAFKA")
    if address:
        servers.USED["Kafka"] = f"{address} (LANNER_TEST_KAFKA)"
        return address
    broker: kafka_broker.Kafka = request.getfixturevalue("kafka_server")
    return broker.bootstrap


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres_cluster.Postgres]:
    """A real PostgreSQL; `database()` makes a fresh database and returns its SQLAlchemy URL."""
    cluster = postgres_cluster.start()
    yield cluster
    cluster.close()


@pytest.fixture
def postgres(postgres_server: postgres_cluster.Postgres) -> str:
    """The SQLAlchemy URL of a fresh PostgreSQL database."""
    return postgres_server.database()


@pytest.fixture(params=["sqlite", "postgres"])
def state_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The SQLAlchemy URL of a fresh database, once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    cluster: postgres_cluster.Postgres = request.getfixturevalue("postgres_server")
    return cluster.database()


@pytest.fixture(scope="session")
def alerta(
    tmp_path_factory: pytest.TempPathFactory, postgres_server: postgres_cluster.Postgres
) -> Iterator[alerta_server.Alerta]:
    """A real Alerta server (`url`, `key`) on our PostgreSQL, shared by the session. Use resource names of your own."""
    server = alerta_server.start(tmp_path_factory.mktemp("alerta"), postgres_server)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a real Chromium."""
    return chromium_browser.find()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its group: the folder under tests/, unless it bears the mark of another group."""
    for item in items:
        folder = item.path.relative_to(servers.ROOT).parts
        own = next((m.name for m in item.iter_markers() if m.name in BUDGET_MIN or m.name == "acceptance"), None)
        group = own or (folder[1] if folder[0] == "tests" and len(folder) > 2 else "unit")
        if own is None:
            item.add_marker(group)
        item.user_properties.append(("group", group))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up what each group takes."""
    group = str(dict(report.user_properties).get("group", "unit"))  # a process that died told none
    _spent_s[group] = _spent_s.get(group, 0.0) + report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several test processes tells the first which servers it used."""
    told = getattr(session.config, "workeroutput", None)
    if told is not None:
        told["used"] = list(servers.USED.items())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What such a process told; nothing if it was killed."""
    _used.update(map(tuple, getattr(node, "workeroutput", {}).get("used", ())))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the real servers that were used and compare each group's time, added up over processes, with its budget."""
    write = terminalreporter.write_line
    terminalreporter.section("real parts and time")
    write(f"SQLite: {sqlite3.sqlite_version}")
    for name, what in sorted(_used.union(servers.USED.items())):
        write(f"{name}: {what}")
    for group, spent in sorted(_spent_s.items()):
        budget = f" of {BUDGET_MIN[group]} min" if group in BUDGET_MIN else ""
        write(f"{group}: {spent / 60:.1f}{budget}")
