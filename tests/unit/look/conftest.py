"""A seeded state store, and clients of the page over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from monitor.store.engine import migrate, open_state
from monitor.web import create_app
from tests import scenes


def store(folder: Path, **how: bool | int) -> sa.Engine:
    """A migrated SQLite store with the scene in it."""
    engine = open_state(f"sqlite:///{folder / 'state.db'}")
    migrate(engine)
    scenes.seed(engine, **how)  # type: ignore[arg-type]
    return engine


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    """The scene with three days of windows."""
    engine = store(tmp_path_factory.mktemp("scene"), windows=72)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def hostile_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.Engine]:
    """The scene with markup wherever a log or the configuration could put text."""
    engine = store(tmp_path_factory.mktemp("hostile"), windows=40, hostile=True)
    yield engine
    engine.dispose()


@pytest.fixture
def browse() -> Callable[..., TestClient]:
    """A client of the page over a store, at the scene's time."""

    def make(engine: sa.Engine, *, hostile: bool = False, **settings: object) -> TestClient:
        config = scenes.configured(hostile=hostile, **settings)
        return TestClient(create_app(config, engine, now_us=lambda: scenes.NOW_US), base_url="http://127.0.0.1")

    return make
