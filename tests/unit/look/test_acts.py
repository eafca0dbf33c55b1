"""What people do by page and API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from monitor.config import Config
from monitor.model import Alert
from monitor.store import alertlog, people
from monitor.store.engine import migrate, open_state, write
from monitor.web import create_app
from monitor.web.acts import DAY_US
from tests.alerting import at, opened

PAGE = {"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    """A store with one open incident."""
    made = open_state(f"sqlite:///{tmp_path / 'state.db'}")
    migrate(made)
    t = opened("p1")
    with write(made) as conn:
        alertlog.write(conn, [t.alert], [t], at(1))
    yield made
    made.dispose()


def browse(engine: sa.Engine, **settings: Any) -> TestClient:
    """A client of the page."""
    config = Config.model_validate({"models": {"m": {}}, **settings})
    return TestClient(
        create_app(config, engine, now_us=lambda: at(100)), base_url="http://127.0.0.1", follow_redirects=False
    )


def incident(engine: sa.Engine) -> Alert:
    """The incident of the store."""
    (found,) = alertlog.find(engine)
    return found


def acts(engine: sa.Engine) -> list[tuple[str, str | None, str, str]]:
    """What has been recorded about it."""
    found = people.acts_of(engine, [incident(engine).alert_id]).get(incident(engine).alert_id, [])
    return [(a.act.kind, a.act.said and a.act.said.value, a.act.actor, a.act.source) for a in found]


def test_the_page_takes_a_verdict_and_shows_it(engine: sa.Engine) -> None:
    """A plain form, without JavaScript; words of people are escaped."""
    client, address = browse(engine), f"/incidents/{incident(engine).alert_id}"
    assert "Nobody has acknowledged it" in client.get(address).text
    answer = client.post(f"{address}/acts", data={"what": "ack", "by": "ann"}, headers=PAGE)
    assert (answer.status_code, answer.headers["location"]) == (303, address)
    assert "ann is on it" in client.get(address).text
    assert '<td data-label="People"><span>ann</span></td>' in client.get("/incidents").text
    sent = {"what": "benign-true", "by": "<b>ann</b>", "reason": "<script>x</script>"}
    assert client.post(f"{address}/acts", data=sent, headers=PAGE).status_code == 303
    assert acts(engine) == [("ack", None, "ann", "page"), ("verdict", "benign-true", "<b>ann</b>", "page")]
    shown = client.get(address).text
    assert "Verdict benign-true" in shown
    assert "<script>x" not in shown
    assert "<b>ann" not in shown


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:9999", "sec-fetch-site": "same-site"},
        {"origin": "null"},
    ],
)
def test_a_strange_page_cannot_act(engine: sa.Engine, headers: dict[str, str]) -> None:
    """What a browser sends for another page is refused, and nothing is recorded."""
    client, address = browse(engine), f"/incidents/{incident(engine).alert_id}/acts"
    assert client.post(address, data={"what": "false", "by": "x"}, headers=headers).status_code == 403
    assert acts(engine) == []


def test_the_api_takes_programs_and_no_strangers(engine: sa.Engine) -> None:
    """A program sends no origin; a browser of another page does; plain text is no JSON."""
    client, address = browse(engine), f"/api/v1/incidents/{incident(engine).alert_id}"
    assert client.post(f"{address}/ack", json={"by": "bot"}).status_code == 201
    body = {"verdict": "false", "by": "bot", "reason": "x"}
    assert client.post(f"{address}/verdict", json=body, headers={"origin": "http://evil.example"}).status_code == 403
    plain = client.post(
        f"{address}/verdict", content='{"verdict": "false", "by": "x"}', headers={"content-type": "text/plain"}
    )
    assert plain.status_code == 422
    assert client.post(f"{address}/verdict", json={**body, "verdict": "maybe"}).status_code == 422
    assert client.post(f"{address}/verdict", json=body).status_code == 201
    assert client.post("/api/v1/incidents/nowhere/verdict", json=body).status_code == 404
    assert acts(engine) == [("ack", None, "bot", "api"), ("verdict", "false", "bot", "api")]


def test_beyond_loopback_nobody_acts(engine: sa.Engine) -> None:
    """Without a login, whoever reaches the page must not close incidents."""
    client = browse(engine, server={"bind": "0.0.0.0:8080"})
    address = f"/incidents/{incident(engine).alert_id}"
    assert client.post(f"/api/v1{address}/ack", json={"by": "x"}).status_code == 403
    assert client.post(f"{address}/acts", data={"what": "ack", "by": "x"}, headers=PAGE).status_code == 403
    assert client.post("/api/v1/marks", json={"by": "x", "text": "x"}).status_code == 403
    assert '<form class="filter" action="/incidents/' not in client.get(address).text


def test_exceptions_and_marks_by_api(engine: sa.Engine) -> None:
    """What the commands do, for pipelines."""
    client = browse(engine)
    body = {"by": "ann", "reason": "batch", "days": 7, "at_most": {"queries": 500}}
    made = client.post(f"/api/v1/incidents/{incident(engine).alert_id}/exception", json=body)
    assert made.status_code == 201
    (held,) = people.all_exemptions(engine)
    assert (held.exemption.detectors, held.exemption.bounds) == (("queries",), {"queries": 500.0})
    assert client.post("/api/v1/marks", json={"by": "ci", "text": "version 4", "model": "m"}).json() == {"number": 1}
    for bad in (
        {"model": "x"}, {"kind": "maintenance"}, {"end": "2000-01-01T00:00:00Z"}, {"start": "now"}, {"more": 1}
    ):  # fmt: skip
        assert client.post("/api/v1/marks", json={"by": "ci", "text": "x", **bad}).status_code == 422
    (mark,) = client.get("/api/v1/marks").json()["items"]
    assert (mark["text"], mark["by"], mark["model"]) == ("version 4", "ci", "m")


def test_an_exception_by_form(engine: sa.Engine) -> None:
    """As narrow as by command: the detectors of the incident, up to so many queries, for so many days, with a reason."""
    client, address = browse(engine), f"/incidents/{incident(engine).alert_id}"
    assert 'name="queries" type="number" min="1" value="1000"' in client.get(address).text
    sent = {"by": "ann", "reason": "monthly batch", "days": "7", "queries": "5000"}
    for bad in ({"days": "400"}, {"days": "x"}, {"queries": "inf"}, {"by": ""}, {"reason": ""}):
        assert client.post(f"{address}/exception", data={**sent, **bad}, headers=PAGE).status_code == 422
    assert client.post(f"{address}/exception", data=sent, headers={"origin": "http://evil.example"}).status_code == 403
    assert people.all_exemptions(engine) == []
    assert client.post(f"{address}/exception", data=sent, headers=PAGE).status_code == 303
    (held,) = people.all_exemptions(engine)
    e = held.exemption
    assert (e.detectors, e.bounds, e.actor, e.reason) == (("queries",), {"queries": 5000.0}, "ann", "monthly batch")
    assert e.expires_us - e.created_us == 7 * DAY_US


def test_quality_by_api(engine: sa.Engine) -> None:
    """Precision and rates per detector."""
    client = browse(engine)
    client.post(f"/api/v1/incidents/{incident(engine).alert_id}/verdict", json={"verdict": "true", "by": "x"})
    (q,) = client.get("/api/v1/detectors").json()["items"]
    assert (q["detector"], q["incidents"], q["precision"]) == ("queries", 1, 1.0)
    shown = client.get("/detectors").text
    assert "queries" in shown
    assert "100%" in shown
