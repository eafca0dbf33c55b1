"""Monitors that cannot be believed are listed with the reason and the fix."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from detectors.base import Calibration
from detectors.drift.marginals import Marginals
from detectors.profile import Bins, Profile
from monitor.model import HOUR_US, SECOND_US, stable_id
from monitor.reports.diagnosis import Diagnosis, diagnose
from monitor.store import ledger, queries
from monitor.store.engine import migrate, open_state, write
from monitor.store.schema import alerts, detections, models, profiles
from monitor.store.schema import calibrations as learnt
from monitor.store.schema import ledger as judged
from tests import scenes
from tests.judging import Rows

MINUTE_US = 60 * SECOND_US


@pytest.fixture
def store(tmp_path: Path) -> Iterator[sa.Engine]:
    """A store with two days of windows of healthy models."""
    engine = open_state(f"sqlite:///{tmp_path / 'state.db'}")
    migrate(engine)
    scenes.seed(engine, windows=48)
    yield engine
    engine.dispose()


def of(engine: sa.Engine, model: str = "churn", clock: str = "wall") -> list[Diagnosis]:
    """What is found about a model."""
    row = queries.one_model(engine, model, scenes.NOW_US, clock=clock, grace_us=0)
    assert row is not None
    return diagnose(engine, row, clock=clock, lateness_us=6 * MINUTE_US)


def codes(engine: sa.Engine, **how: Any) -> set[tuple[str, str]]:
    """(monitor, code) of what is found."""
    return {(d.monitor, d.code) for d in of(engine, **how)}


KEY = stable_id("model", "Production", "churn")


def changed(engine: sa.Engine, table: sa.Table, monitor: str, **values: Any) -> None:
    """Rows of one monitor of the model, changed."""
    with write(engine) as conn:
        conn.execute(table.update().where(table.c.model_id == KEY, table.c.monitor == monitor).values(**values))


def known(engine: sa.Engine, reference: Profile, now: Profile, bins: Bins) -> None:
    """Counts of a reference of the model, and of its newest hour."""
    cal = Calibration("profile", 1, "r", {"bins": bins.to_bytes(), "reference": reference.to_bytes()})
    start = scenes.END_US - HOUR_US
    with write(engine) as conn:
        conn.execute(models.update().where(models.c.model_id == KEY).values(reference_hash="r"))
        conn.execute(learnt.insert().values(
            calibration_hash=cal.hash, model_id=KEY, detector="profile", params={}, reference_hash="r", body=cal.to_bytes(), created_us=1,
        ))  # fmt: skip
        conn.execute(profiles.insert().values(
            model_id=KEY, reference_hash="r", start_us=start, end_us=scenes.END_US, n=now.n, body=now.to_bytes()
        ))  # fmt: skip


def test_a_healthy_model_has_none(store: sa.Engine) -> None:
    """Nothing is said about monitors that do what they should, nor before anything was judged."""
    assert of(store) == []
    with write(store) as conn:
        conn.execute(judged.delete())
    assert of(store) == []


def test_too_little_late_and_missed(store: sa.Engine) -> None:
    """Windows without enough rows, learning, judged late, failed or missed are told apart, each with its fix."""
    changed(store, judged, "marginals", outcome="insufficient")
    changed(
        store, detections, "marginals", verdict="insufficient", evidence={"reason": "fewer than 20 rows in the window"}
    )
    (found,) = [d for d in of(store) if d.monitor == "marginals"]
    assert found.code == "too_little_data"
    assert "fewer than 20 rows" in found.text
    assert "window: 24h" in found.fix
    changed(store, detections, "marginals", evidence={"reason": "learning: 12 of 50 windows"})
    assert ("marginals", "learning") in codes(store)
    with write(store) as conn:
        conn.execute(detections.delete().where(detections.c.monitor == "volume"))
    changed(store, judged, "volume", outcome="insufficient")  # it never said anything: nothing is sent that it reads
    assert "volume" not in {m for m, _ in codes(store)}
    changed(store, judged, "volume", outcome="judged")
    changed(store, judged, "volume", judged_us=judged.c.end_us + 60 * MINUTE_US)
    assert ("volume", "late_data") in codes(store)
    assert ("volume", "late_data") not in codes(store, clock="log")
    changed(store, judged, "volume", outcome="failed")
    assert ("volume", "fails") in codes(store)
    changed(store, judged, "volume", outcome="gap")
    assert ("volume", "gaps") in codes(store)


def test_loud_and_mute_ones(store: sa.Engine) -> None:
    """A rule that alarms in half its windows, an incident that stands half the time, and a monitor that was refused."""
    changed(store, detections, "marginals", verdict="alarm")
    assert ("marginals", "alarms_always") in codes(store)
    with write(store) as conn:
        conn.execute(
            alerts.update().where(alerts.c.event == "FeatureDrift").values(opened_us=scenes.END_US - 40 * HOUR_US)
        )
    assert ("FeatureDrift", "alarms_half") in codes(store, model="card-fraud")
    refused = {"exposure": "150 distinct rows are needed", "canaries": "the configuration names no canaries"}
    void = {"kappa": "the answers have no labels"}
    ledger.put_state(store, KEY, "service", json.dumps({"refused": refused, "void": void}).encode(), 1)
    assert {m for m, code in codes(store) if code == "refused"} == {"exposure"}
    (found,) = [d for d in of(store) if d.code == "budget_void"]
    assert found.text == "a declared kappa budget cannot alarm: the answers have no labels"
    assert "declare distinct_rows" in found.fix


def test_dead_and_blind_features(store: sa.Engine) -> None:
    """Constant and absent features, and those in which only a huge shift shows, are named."""
    n, rng = 300, np.random.default_rng(1)
    base = pa.table(
        {"feature:a": rng.normal(size=n), "feature:b": ["x", "y"] * (n // 2), "feature:c": rng.normal(size=n)}
    )
    bins = Bins.fit(base, ["a", "c"], ["b"])
    now = pa.table({"feature:a": [1.0] * n, "feature:b": ["x"] * n, "feature:c": pa.nulls(n, pa.float64())})
    known(store, bins.count(base), bins.count(now), bins)
    assert {(d.feature, d.code) for d in of(store)} == {("a", "constant"), ("b", "constant"), ("c", "always_missing")}
    with write(store) as conn:
        conn.execute(profiles.update().values(body=bins.count(base).to_bytes()).where(profiles.c.reference_hash == "r"))
    rows = [{"name": "a", "smallest": 9.0}, {"name": "b", "smallest": 0.7}, {"name": "c", "smallest": 0.4}]
    changed(store, detections, "marginals", evidence={"features": rows})
    assert {(d.feature, d.code) for d in of(store)} == {("a", "blind"), ("b", "blind")}


def test_a_baseline_that_left_the_reference_is_listed(store: sa.Engine) -> None:
    """A number in its unit and a category in shares that were learnt at another level than the approved one."""
    n, rng = 300, np.random.default_rng(2)
    base = pa.table({"feature:a": rng.normal(size=n), "feature:b": ["x", "y"] * (n // 2)})
    bins = Bins.fit(base, ["a"], ["b"])
    known(store, bins.count(base), bins.count(base), bins)
    left = {"a": {"size": 1.25, "spreads": 3.2}, "b": {"size": -0.04, "spreads": -1.5}}
    changed(
        store,
        detections,
        "marginals",
        evidence={"features": [{"name": k, "smallest": 0.1, "since_reference": v} for k, v in left.items()]},
    )
    one, two = of(store)
    assert {one.code, two.code} == {"baseline_left"}
    assert (one.feature, "+1.25, 3.2 times" in one.text) == ("a", True)
    assert (two.feature, "-4.0% of events for one value, 1.5 times" in two.text) == ("b", True)
    assert "lanner reference build" in one.fix


def test_a_feature_that_can_never_alarm_is_listed(store: sa.Engine) -> None:
    """What the detector says of a feature that wanders for days, and of one that does not, is what is listed."""
    rng = np.random.default_rng(5)
    level = 2 * np.sin(np.arange(90) * 2 * np.pi / 50)
    tables = [
        pa.table({"feature:steady": rng.normal(size=200), "feature:wanders": rng.normal(x, 1, 200)}) for x in level
    ]
    bins = Bins.fit(pa.concat_tables(tables), ["steady", "wanders"], [])
    windows = [Rows("m", i * HOUR_US, (i + 1) * HOUR_US, t, bins) for i, t in enumerate(tables)]
    cal = Marginals().calibrate(windows[:-1], "r")
    (told,) = Marginals().measure(cal, None, windows[-1]).detections
    rows = {r["name"]: r.get("smallest", "untold") for r in told.evidence["features"]}
    assert rows["wanders"] is None
    assert 0 < rows["steady"] < 1
    known(store, bins.count(pa.concat_tables(tables)), bins.count(tables[-1]), bins)
    changed(store, detections, "marginals", evidence=json.loads(json.dumps(told.evidence)))
    (found,) = of(store)
    assert (found.monitor, found.code, found.feature) == ("marginals", "never", "wanders")
    assert "no lasting shift of it can raise an alarm" in found.text
    assert "window: 24h" in found.fix


def test_a_segment_that_is_always_in_alarm_is_listed(store: sa.Engine) -> None:
    """As the model itself is, by its name made harmless."""
    with write(store) as conn:
        conn.execute(
            alerts.update()
            .where(alerts.c.event == "FeatureDrift")
            .values(opened_us=scenes.END_US - 40 * HOUR_US, subject_kind="segment", subject_id="country:<b>")
        )
    (found,) = [d for d in of(store, model="card-fraud") if d.code == "alarms_half"]
    assert found.text.startswith("FeatureDrift of segment country:\\x3cb\\x3e was open 8")


def test_page_twin_and_report_show_it(store: sa.Engine, browse: Callable[..., TestClient]) -> None:
    """The model's page, its JSON twin and the owner's report tell the same, escaped."""
    ledger.put_state(store, KEY, "service", json.dumps({"refused": {"<b>": "no rows <i>"}}).encode(), 1)
    client = browse(store)
    (item,) = client.get("/api/v1/models/churn/diagnosis").json()["items"]
    assert (item["monitor"], item["code"]) == ("<b>", "refused")
    for address in ("/models/churn", "/models/churn/report"):
        body = client.get(address).text
        assert "Monitors that need attention" in body
        assert "&lt;b&gt;" in body
        assert "<b>:" not in body
    assert client.get("/api/v1/models/none/diagnosis").status_code == 404
    (version,) = client.get("/api/v1/models/churn/references").json()["items"]
    assert (version["version"], version["current"], version["state"]) == (2, True, "approved")
