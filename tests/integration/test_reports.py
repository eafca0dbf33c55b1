"""Reports that are made by themselves: due once a period, made in a child process under a lease, stored, listed, linked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from monitor.config import load
from monitor.model import HOUR_US
from monitor.scheduler import Jobs
from monitor.service.compose import Service, open_service
from monitor.store import leases, reports
from monitor.store.engine import migrate, open_state
from monitor.web import create_app
from tests import scenes, smalllogs

DAY_US = 24 * HOUR_US
NAME = "card-fraud"


@pytest.fixture
def service(state_url: str, tmp_path: Path) -> Iterator[Service]:
    """A service over the scene, whose reports are daily."""
    engine = open_state(state_url)
    migrate(engine)
    scenes.seed(engine, windows=60)
    engine.dispose()
    (tmp_path / "lanner.yaml").write_text(
        f"store: {{database: '{state_url}'}}\n"
        f"models:\n  {NAME}: {{owner: cards-ml, reports: {{every: 1d, keep: 2}}}}\n  churn: {{reports: {{every: 0}}}}\n"
    )
    found = open_service(load(tmp_path / "lanner.yaml"), "test")
    yield found
    found.close()


def jobs(service: Service) -> Jobs:
    """The scheduler's jobs, which know where the configuration stands."""
    return Jobs(service, {}, service.config.folder / "lanner.yaml")


def test_a_report_is_made_once_a_period_and_shown(service: Service) -> None:
    """The last whole day gets one report however often it is asked; page, twin and incident link it; it can do nothing."""
    made = jobs(service)
    key = service.tables[NAME].model_id
    for _ in range(2):
        made.report()
    (row,) = reports.listed(service.engine, key)
    end_us = scenes.END_US // DAY_US * DAY_US
    assert (row.kind, row.start_us, row.end_us) == ("owner", end_us - DAY_US, end_us)
    assert row.meta["bytes"] < 300_000
    assert reports.listed(service.engine, service.tables["churn"].model_id) == []

    client = TestClient(
        create_app(service.config, service.engine, now_us=lambda: scenes.NOW_US), base_url="http://127.0.0.1"
    )
    (item,) = client.get(f"/api/v1/models/{NAME}/reports").json()["items"]
    page = client.get(item["url"])
    policy = page.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'")
    assert "unsafe" not in policy
    assert "cards-ml" in page.text
    assert "<script" not in page.text
    assert item["url"] in client.get(f"/models/{NAME}/reports").text
    for model, there in ((NAME, item["url"]), ("churn", "/models/churn/report")):  # what alerts link
        newest = client.get(f"/models/{model}/reports/newest", follow_redirects=False)
        assert (newest.status_code, newest.headers["location"]) == (303, there)
    alert = next(i for i in client.get("/api/v1/incidents").json()["items"] if i["model"] == NAME)
    assert client.get(f"/api/v1/incidents/{alert['alert_id']}").json()["reports"] == [item["url"]]
    assert item["url"] in client.get(f"/incidents/{alert['alert_id']}").text
    assert client.get(f"/models/churn/reports/{item['report_id']}").status_code == 404
    made.closing.set()


def test_old_reports_go_and_evidently_is_a_download(service: Service) -> None:
    """As many of each kind as the model keeps; Evidently's page is only ever handed out as a file, under sandbox."""
    key = service.tables[NAME].model_id
    first = scenes.END_US // DAY_US * DAY_US
    for i in range(4):
        span = (first - (5 - i) * DAY_US, first - (4 - i) * DAY_US)
        for kind in (reports.OWNER, reports.EVIDENTLY):
            reports.put(
                service.engine, key, kind, span, f"<script>{i}</script>", {"policy": "default-src 'none'"}, 2, i
            )
    rows = reports.listed(service.engine, key)
    assert [(r.kind, r.made_us) for r in rows] == [("owner", 3), ("evidently", 3), ("owner", 2), ("evidently", 2)]
    client = TestClient(create_app(service.config, service.engine), base_url="http://127.0.0.1")
    got = client.get(f"/models/{NAME}/reports/{rows[1].report_id}")
    assert got.headers["content-disposition"].startswith("attachment;")
    assert got.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert got.text == "<script>3</script>"


def test_a_report_that_fails_waits_and_one_under_way_is_left_alone(service: Service, tmp_path: Path) -> None:
    """A failed try keeps its lease for an hour, and so does another process's; closing ends a child at once."""
    made, key = jobs(service), service.tables[NAME].model_id
    made.file = tmp_path / "nowhere.yaml"
    made.report()
    assert reports.listed(service.engine, key) == []
    assert leases.acquire(service.engine, f"report:{key}", "another", made.now_us(), 1) is None
    made.file = service.config.folder / "lanner.yaml"
    made.report()
    assert reports.listed(service.engine, key) == []
    with service.engine.begin() as conn:
        conn.execute(sa.text("UPDATE leases SET expires_us = 0"))
    made.closing = threading.Event()
    made.closing.set()
    made.report()
    assert reports.listed(service.engine, key) == []


def test_the_scheduled_report_of_evidently_is_made_from_the_log(tmp_path: Path) -> None:
    """One child makes both reports of the last whole day from stored rows, once, and names of features are in both."""
    smalllogs.jsonl(tmp_path / "reference.jsonl", smalllogs.made(range(60), seed=2))
    told = {"reference": {"file": "reference.jsonl"}, "reports": {"every": "1d", "evidently": True}}
    found = smalllogs.service(tmp_path, told)
    smalllogs.feed(found, smalllogs.made(range(50), shift=1.0))
    key = found.tables[smalllogs.MODEL].model_id
    made = jobs(found)
    made.report()
    rows = reports.listed(found.engine, key)
    end_us = smalllogs.START_US + 2 * DAY_US
    assert {(r.kind, r.start_us, r.end_us) for r in rows} == {
        (k, end_us - DAY_US, end_us) for k in ("owner", "evidently")
    }
    pages = {r.kind: reports.html(found.engine, key, r.report_id) or "" for r in rows}
    assert "<script" in pages["evidently"]
    assert "prediction_label" in pages["evidently"]
    assert "<script" not in pages["owner"]
    made.report()
    assert [r.report_id for r in reports.listed(found.engine, key)] == [r.report_id for r in rows]
    made.closing.set()
    found.close()
