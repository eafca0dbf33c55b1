"""The evidence about one caller: what is computed, what the page shows, and who may take the rows away."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from detectors.base import Caller
from detectors.constraints import Constraints
from monitor.config import Config
from monitor.model import HOUR_US
from monitor.reports import principal
from monitor.reports.principal import Rows, alike, busiest, chain, climbing, plane
from monitor.store import lookups
from monitor.store.eventlog import EventLog
from monitor.store.recent import recent
from monitor.store.schema import audit
from monitor.web import create_app
from tests import evidence, scenes
from tests.unit.look.conftest import store

PAGE = {"origin": "http://127.0.0.1", "sec-fetch-site": "same-origin"}
PATH = "/models/credit-limit/principal"


def rows(**columns: Any) -> Rows:
    """Rows with one number and one category."""
    table = pa.table({"event_time": list(range(len(columns["x"]))), **{f"feature:{k}": v for k, v in columns.items()}})
    return Rows.of(table, ["x"], ["c"])


def test_a_query_is_compared_with_the_nearest_before_it() -> None:
    """Not with the one just before; the latest of equals; a repeat changes nothing; the first has nothing before it."""
    seen = rows(x=[1.0, 50.0, 1.5, 1.5], c=["a", "b", "a", "a"])
    first, far, near, again = chain(seen, 0, 10, None)
    assert (first.back, list(first.changed)) == (0, [])
    assert (far.back, len(far.changed)) == (1, 2)
    assert (near.back, [(c.field, c.old, c.new) for c in near.changed]) == (2, [("x", "1", "1.5")])
    assert (again.back, list(again.changed)) == (1, [])


def test_broken_rules_are_told_with_their_values() -> None:
    """A value outside the learnt range and one that nobody sends are named in the row that has them, in no other."""
    rules = Constraints.fit(rows(x=[1.0, 2.0, 3.0], c=["a", "b", "a"]).frame, 0.0)
    fine, odd = chain(rows(x=[2.0, 900.0], c=["a", "new"]), 0, 10, rules)
    assert list(fine.broken) == []
    assert list(odd.broken) == ["x = 900: outside 1 to 3", "c = new: not among the values of the reference"]


def test_the_flagged_stretch_comes_first() -> None:
    """The page begins where most queries were flagged, and with everything when all fits."""
    flag = np.zeros(100, dtype=bool)
    flag[60:75] = True
    assert busiest(flag, 20) in range(55, 61)
    assert busiest(flag[:15], 20) == 0


def test_the_picture_does_not_depend_on_the_sign_of_a_component() -> None:
    """Components point where their largest loading is positive; rows keep their distances in the plane."""
    rng = np.random.default_rng(3)
    base = rng.normal(size=(200, 2)) * np.array([5.0, 1.0])
    there, here, share = plane(base, base[:3] + 1.0)
    turned, _, _ = plane(base[::-1].copy(), base[:3])
    assert np.allclose(there, turned[::-1])
    assert share[0] > share[1]
    assert np.allclose(np.linalg.norm(there[:3] - here, axis=1), np.sqrt(2))


def test_peers_are_of_the_group_if_there_are_enough() -> None:
    """Three of the same group, else of the same kind, else everybody; nobody is nobody's peer by an empty name."""
    a, b = Caller(kind="app", group="cards"), Caller(kind="app", group="loans")
    assert alike(a, [a, b, a, a, None]) == ([True, False, True, True, False], "callers of the group cards")
    assert alike(a, [a, b, b, None]) == ([True, True, True, False], "callers of the kind app")
    assert alike(Caller(), [Caller(), Caller(), Caller()])[1] == "all other callers"


def test_peers_are_compared_by_quantiles() -> None:
    """Queries per hour by the time that rows cover; too few peers give no comparison."""
    hour = 3_600_000_000
    own = rows(x=[1.0, 1.0, 2.0, 3.0], c=["a"] * 4)
    names = [f"p{i % 4}" for i in range(40)]
    table = pa.table(
        {"event_time": list(range(40)), "principal": names, "feature:x": [float(i) for i in range(40)], "feature:c": ["a"] * 40}
    )  # fmt: skip
    others = Rows.of(table, ["x"], ["c"])
    found, count = principal.peers(own, hour, others, 2 * hour, None, [True] * 4)
    assert count == 4
    assert [(p.own, p.median) for p in found[:2]] == [(4.0, 5.0), (0.75, 1.0)]
    assert found[3].own is None
    assert principal.peers(own, hour, others, hour, None, [True, True, False, False])[0][0].median is None


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "hostile"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, ...]]:
    """(client factory, store, log, the suspect's name, its incident)."""
    folder: Path = tmp_path_factory.mktemp("evidence")
    engine = store(folder, windows=24, hostile=request.param)
    log = evidence.seed(engine, folder, hostile=request.param)
    (attack,) = [i for i in lookups.incidents(engine)[0] if i.event == "AttackSuspected"]

    def browse(**server: Any) -> TestClient:
        raw = {"models": {m.name: {} for m in scenes.MODELS}, "store": {"path": str(folder)}, "server": server}
        app = create_app(Config.model_validate(raw), engine, log=log, now_us=lambda: scenes.NOW_US)
        return TestClient(app, base_url="http://127.0.0.1")

    yield browse, engine, log, attack.subject_id, attack.alert_id
    engine.dispose()


def test_the_page_tells_the_attacker_from_its_peers(site: tuple[Any, ...]) -> None:
    """Linked from the incident; chain with rules, charts, peers; nothing of a log becomes markup."""
    browse, _, _, name, incident = site
    client = browse()
    assert "/principal?" in client.get(f"/incidents/{incident}").text
    text = client.get(PATH, params={"name": name, "incident": incident}).text
    assert "<img src=x" not in text
    assert f"{evidence.QUERIES} queries" in text
    assert "outside" in text
    assert text.count("<figure>") == 3
    assert "rows of the reference" in text
    told = client.get(f"/api/v1{PATH}", params={"name": name, "incident": incident}).json()
    assert told["rows"] == evidence.QUERIES
    assert told["climb"]["steps"] > 0.4 * evidence.QUERIES
    assert told["climb"]["climbs"] is False
    assert "the score does not climb" in text
    assert told["flagged"] > 0.4 * evidence.QUERIES
    by = {p["name"]: p for p in told["peers"]}
    assert by["Flagged, share"]["own"] > 0.4
    assert by["Flagged, share"]["high"] < 0.1
    assert by["Near the boundary, share"]["own"] > by["Near the boundary, share"]["high"]
    assert len(told["chain"]) == 40
    assert any("outside" in b for b in told["chain"][-1]["broken"])


def test_an_incident_shows_only_its_own_callers(site: tuple[Any, ...]) -> None:
    """Another caller is not shown under it; without an incident every caller can be looked at; no model, no page."""
    browse, _, _, _, incident = site
    client = browse()
    assert client.get(PATH, params={"name": "peer-1", "incident": incident}).status_code == 404
    assert client.get(PATH, params={"name": "peer-1"}).status_code == 200
    assert "holds no query" in client.get(PATH, params={"name": "nobody"}).text
    assert client.get("/models/nothing/principal", params={"name": "peer-1"}).status_code == 404


def test_exports_are_safe_and_leave_a_trail(site: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows, also more than the page reads, no cell that a spreadsheet would run, and who took them and why in the trail."""
    browse, engine, _, name, incident = site
    monkeypatch.setattr("monitor.store.recent.MINE", 20)
    client = browse()
    asked = {"name": name, "incident": incident, "by": "ann", "reason": "case 7", "format": "csv"}
    answer = client.post(f"{PATH}/rows", data=asked, headers=PAGE)
    assert answer.headers["content-disposition"] == 'attachment; filename="rows.csv"'
    head, *found = csv.reader(io.StringIO(answer.text))
    assert len(found) == evidence.QUERIES
    assert found[0][head.index("request_id")].startswith("'=")
    assert all(c[:1] not in "=@" for row in (head, *found) for c in row if c)
    lines = client.post(f"{PATH}/rows", data={**asked, "format": "jsonl"}, headers=PAGE).text.splitlines()
    assert [json.loads(line)["principal"] for line in lines] == [name] * evidence.QUERIES
    with engine.connect() as conn:
        trail = conn.execute(sa.select(audit).where(audit.c.action == "export").order_by(audit.c.seq)).all()
    assert [(r.actor, r.detail["reason"], r.detail["rows"], r.detail["format"]) for r in trail] == [
        ("ann", "case 7", evidence.QUERIES, "csv"), ("ann", "case 7", evidence.QUERIES, "jsonl"),
    ]  # fmt: skip


def test_rows_leave_only_from_this_machine_and_page(site: tuple[Any, ...]) -> None:
    """Not for a page elsewhere, not for nobody, not where the page is bound to the network; then the form is gone too."""
    browse, _, _, name, incident = site
    client, asked = browse(), {"name": name, "incident": incident, "by": "ann", "format": "csv"}
    assert client.post(f"{PATH}/rows", data=asked, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post(f"{PATH}/rows", data=asked, headers={"origin": "null"}).status_code == 403
    strange = {"origin": "null", "sec-fetch-site": "cross-site"}
    assert client.post(f"{PATH}/rows", data=asked, headers=strange).status_code == 403
    assert client.post(f"{PATH}/rows", data=asked).status_code == 403
    assert client.post(f"{PATH}/rows", data={**asked, "by": ""}, headers=PAGE).status_code == 422
    assert client.get(f"{PATH}/rows", params=asked).status_code == 405
    bound = browse(bind="0.0.0.0:8080")
    assert bound.post(f"{PATH}/rows", data=asked, headers=PAGE).status_code == 403
    assert "Export the raw rows" not in bound.get(PATH, params={"name": name}).text


def test_only_the_newest_rows_are_read(site: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many rows of the caller, the newest, and no earlier part of the log than they need."""
    _, _, log, name, _ = site
    assert isinstance(log, EventLog)
    monkeypatch.setattr("monitor.store.recent.MINE", 20)
    found = recent(log, evidence.KEY, name, 0, scenes.NOW_US, [])
    times = found.mine["event_time"].to_pylist()
    assert times == [scenes.END_US - HOUR_US + i * 1_000_000 for i in range(130, 150)]
    assert (found.whole, found.mine_since_us) == (False, times[0])
    assert found.others_since_us > scenes.END_US - 12 * HOUR_US


def test_a_climbing_score_is_told_of_small_steps_alone() -> None:
    """Each step of one row that raises the score is kept; rows that are no steps do not count, however their scores go."""
    rng = np.random.default_rng(5)
    n = 60
    up = np.cumsum(rng.normal(0.01, 0.01, n))
    for x, expected in ((np.arange(n) * 1.0, None), (np.zeros(n), True)):
        columns = {f"feature:x{j}": x * (j + 1) for j in range(12)} | {"feature:step": np.arange(n) * 1.0}
        scores = [[1 - v, v] for v in (0.2 + up).tolist()]
        table = pa.table({"event_time": np.arange(n), **columns, "scores": scores})
        found = climbing(Rows.of(table, [*(f"x{j}" for j in range(12)), "step"], []))
        assert (found and found.climbs) is expected
    assert found is not None
    assert (found.of, found.steps) == (1, n - 1)
