"""How a model stands, from what the store holds of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from monitor.model import HOUR_US, stable_id
from monitor.store import queries
from monitor.store.engine import migrate, open_state, write
from monitor.store.queries import Status
from monitor.store.schema import detections, ledger, models
from tests.scenes import END_US

LATE_US = END_US + 5 * HOUR_US


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    """A store with one model and nothing else."""
    engine = open_state(f"sqlite:///{tmp_path / 's.db'}")
    migrate(engine)
    with write(engine) as conn:
        conn.execute(models.insert().values(model_id="m", name="churn", schema={}, last_event_us=END_US))
    yield engine
    engine.dispose()


def judged(engine: sa.Engine, outcome: str, reason: str | None = None, windows: int = 3) -> None:
    """Some windows with this outcome, the newest ending at END_US."""
    with write(engine) as conn:
        for i in range(windows):
            span: dict[str, Any] = {
                "model_id": "m",
                "start_us": END_US - (i + 1) * HOUR_US,
                "end_us": END_US - i * HOUR_US,
            }
            conn.execute(ledger.insert().values(**span, monitor="marginals", outcome=outcome, n=9, judged_us=END_US))
            if outcome != "gap":
                conn.execute(
                    detections.insert().values(
                        **span, detection_id=stable_id(i), monitor="marginals", detector="marginals", family="drift",
                        event="FeatureDrift", subject_kind="model", subject_id="churn", n=9, log_e=0.1,
                        verdict="insufficient" if reason else "ok", evidence={"reason": reason} if reason else {},
                    )
                )  # fmt: skip


def status(engine: sa.Engine, now_us: int = END_US, clock: str = "wall") -> Status:
    """The model's status at a time."""
    row = queries.one_model(engine, "m", now_us, clock=clock, grace_us=0)
    assert row is not None
    return row.status


def test_a_model_without_windows_waits(engine: sa.Engine) -> None:
    """Before the first window nothing is said about a model."""
    assert status(engine) is Status.WAITING


def test_too_little_history_is_learning_and_too_few_events_are_not(engine: sa.Engine) -> None:
    """Learning is about history; one thin window of a known model is not learning."""
    judged(engine, "judged", "learning: 12 of 50 windows")
    assert status(engine) is Status.LEARNING
    with write(engine) as conn:
        conn.execute(detections.update().values(evidence={"reason": "fewer than 20 rows in the window"}))
    assert status(engine) is Status.HEALTHY


def test_windows_that_failed_are_said(engine: sa.Engine) -> None:
    """When the newest windows failed, the model is not called healthy."""
    judged(engine, "failed")
    assert status(engine) is Status.FAILED


def test_judging_behind_the_clock_is_late(engine: sa.Engine) -> None:
    """On the wall clock silence makes a model late; on the log's clock only events do."""
    judged(engine, "judged")
    assert status(engine) is Status.HEALTHY
    assert status(engine, LATE_US) is Status.LATE
    assert status(engine, LATE_US, clock="log") is Status.HEALTHY


def test_a_gap_counts_no_events(engine: sa.Engine) -> None:
    """A gap is not a window with zero events."""
    judged(engine, "gap")
    row = queries.one_model(engine, "churn", END_US, clock="wall", grace_us=0)
    assert row is not None
    assert row.volume == []
