"""The owner's report: one small file that loads nothing and runs nothing."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from monitor.reports import evidently, owner
from monitor.store import queries
from tests import scenes


def made(
    engine: sa.Engine,
    model: str = "card-fraud",
    *,
    owned: str = "cards-ml",
    environment: str = "Production",
    **more: Any,
) -> owner.Report:
    """A report over everything the scene holds."""
    row = queries.one_model(engine, model, scenes.NOW_US, clock="wall", grace_us=0)
    assert row is not None
    return owner.report(
        engine, row, 0, scenes.END_US, environment=environment, owner=owned, made_us=scenes.NOW_US, version="1", **more
    )


def test_the_report_is_small_and_self_contained(scene: sa.Engine) -> None:
    """Under 300 kB, and no address in it that a browser would load."""
    html = made(scene).html
    assert len(html.encode()) < 300_000
    assert not re.search(r"""(src|href)\s*=|url\(|@import|<script|<link|<iframe""", html)


def test_the_report_tells_incidents_and_every_feature(scene: sa.Engine) -> None:
    """It names the open incident and gives every feature's distances over all counted events."""
    report = made(scene)
    assert "1 incident in this time, 1 still open." in report.html
    assert "amount 58% (mean 82 to 130 QAR)" in report.html
    assert "principal c-7f3a91 explains it 93%" in report.html
    assert {"amount", "country", "prediction"} <= set(report.summary["features"])
    features = report.summary["features"]
    assert features["merchant_age_days"]["js"] > features["hour"]["js"]
    assert report.summary["events"] > 10_000


def test_the_report_tells_the_smallest_shift_of_every_feature(scene: sa.Engine) -> None:
    """In the feature's unit where the configuration tells it, beside the sizes of change."""
    report = made(scene, units={"amount": "QAR"})
    told = {name: f["smallest"] for name, f in report.summary["features"].items()}
    assert (told["amount"], told["country"], told["hour"]) == ("0.25 QAR", "3.0% of rows", "none shows")
    assert "Smallest shift it can show" in report.html
    assert '<td class="num">0.25 QAR</td></tr>' in report.html


def test_the_report_tells_whose_traffic_it_was(scene: sa.Engine) -> None:
    """How many callers, networks and labelers there were, and the busiest of each."""
    report = made(scene)
    told = {s["of"]: (s["count"], s["share"]) for s in report.summary["sources"]}
    assert told == {"callers": (12, 0.8125), "networks": (3, 0.9), "labelers": (4, 0.62)}
    assert "Where the newest windows came from" in report.html


def test_the_report_tells_every_segment(scene: sa.Engine) -> None:
    """As the model's page does; a model without segments has no such part."""
    report = made(scene)
    assert {s["name"] for s in report.summary["segments"]} == {"country:QA", "country:AE", "country:SA"}
    assert "<h2>Segments</h2>" in report.html
    assert "country:SA" in report.html
    assert "<h2>Segments</h2>" not in made(scene, "churn").html


def test_a_model_without_incidents_is_said_to_be_as_usual(scene: sa.Engine) -> None:
    """The first sentence of a quiet model's report is good news."""
    row = queries.one_model(scene, "churn", scenes.NOW_US, clock="wall", grace_us=0)
    assert row is not None
    end = scenes.END_US
    report = owner.report(
        scene, row, end - 24 * 3_600_000_000, end, environment="p", owner=None, made_us=end, version="1"
    )
    assert "Nothing unusual: 24 windows were judged and no incident was open." in report.html


def test_names_from_logs_are_text_in_the_report(hostile_scene: sa.Engine) -> None:
    """Hostile feature names, categories, principals, owners and environments do not become markup or controls."""
    html = made(hostile_scene, owned=scenes.HOSTILE, environment=scenes.HOSTILE).html
    assert "<img" not in html
    assert "<script" not in html
    assert not set("\u202e\x1b\x07\r") & set(html)


def test_what_evidently_gets_is_harmless_and_bounded() -> None:
    """Names and words are spelled out, rows are sampled evenly, and only features and answers are handed over."""
    table = pa.table({f"feature:{scenes.HOSTILE}": [scenes.HOSTILE] * 20, "principal": ["p"] * 20})
    sample = evidently.sampled([table.slice(0, 7), table.slice(7)], 20, most=5)
    assert sample is not None
    assert sample.num_rows == 5
    plain = evidently.harmless(sample)
    assert plain.num_columns == 1
    assert not set("<>\"'&") & set(plain.column_names[0] + "".join(plain.column(0).to_pylist()))
