"""What many of these tests need: a name of their own, and an operator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from monitor.model import stable_id
from tests.servers.alerta import Alerta as Server
from tests.soc import Api


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A subject of the test's own, as the server is shared."""
    return "t-" + stable_id(request.node.nodeid)[:12]


@pytest.fixture
def api(alerta: Server) -> Iterator[Api]:
    """An operator at the shared Alerta."""
    made = Api(alerta)
    yield made
    made.session.close()
