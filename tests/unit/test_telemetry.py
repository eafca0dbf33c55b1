"""Self-metrics and logs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from monitor import telemetry
from tests.servers import ROOT


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    """What `configure` sets is global; it is put back after each test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()
    telemetry._forced_level.clear()


def test_metric_names_tell_their_unit() -> None:
    """Names are unique; counters, and only they, end in _total; histograms have buckets."""
    names = [m.name for m in telemetry.METRICS]
    assert len(names) == len(set(names))
    assert [m.name for m in telemetry.METRICS if (m.kind == "counter") != m.name.endswith("_total")] == []
    assert [m.name for m in telemetry.METRICS if (m.kind == "histogram") != bool(m.buckets)] == []


def test_labels_never_carry_what_callers_choose() -> None:
    """No metric has a label for principals, requests or feature values."""
    labels = {label for m in telemetry.METRICS for label in m.labels}
    assert not labels & {"principal", "request_id", "feature", "value", "client"}


def test_docs_list_every_metric() -> None:
    """The table of docs/metrics.md is the table of the code."""
    rows = [
        f"| `lanner_{m.name}` | {m.kind} | {m.meaning} | {', '.join(m.labels)} |".replace("|  |", "| |")
        for m in telemetry.METRICS
    ]
    text = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("| `lanner_")] == rows


def test_undeclared_metric_is_refused() -> None:
    """A metric that the table does not know cannot be counted."""
    with pytest.raises(KeyError, match="not declared"):
        telemetry.count("surprises_total")


def test_counts_are_shown() -> None:
    """What was counted, set and observed is in the exposition, under the prefix."""
    telemetry.count("collector_bytes_total", 7, source="test-telemetry")
    telemetry.gauge("outbox_pending", 3, sink="test-telemetry")
    telemetry.observe("tick_duration_seconds", 0.2, model="test-telemetry")
    text = telemetry.exposition().decode()
    assert 'lanner_collector_bytes_total{source="test-telemetry"} 7.0' in text
    assert 'lanner_outbox_pending{sink="test-telemetry"} 3.0' in text
    assert 'lanner_tick_duration_seconds_count{model="test-telemetry"} 1.0' in text


@pytest.mark.parametrize("hostile", ["a\nb", "a\r\nb", "a\x1b[2Jb", "a\u202eb", "a\u2028b", "a\x00b", "a\x9bb"])
def test_hostile_text_stays_on_its_line(capsys: pytest.CaptureFixture[str], hostile: str) -> None:
    """Control, separator and direction characters of a logged value are shown escaped."""
    telemetry.configure("console")
    structlog.get_logger().warning("seen", client=hostile, nested={"x": [hostile]})
    logging.getLogger("library").warning("also %s", hostile)
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 2
    assert hostile[1] not in err.replace("\n", "")


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_secrets_are_not_logged(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    """Values under names of secrets and passwords in URLs are hidden, whoever logs them."""
    telemetry.configure(log_format)  # type: ignore[arg-type]
    structlog.get_logger().info("open", password="s3cret", url="postgresql://u:s3cret@db/x", d={"api_key": "s3cret"})
    logging.getLogger("library").info("open", extra={"token": "s3cret"})
    try:
        raise ValueError("cannot open https://u:s3cret@host/")
    except ValueError:
        structlog.get_logger().exception("failed")
    assert "s3cret" not in capsys.readouterr().err


def test_json_lines_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    """With log_format json every line on stderr is one object, and stdout stays empty."""
    telemetry.configure("json")
    structlog.get_logger().info("hello", n=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["event"] == "hello"


def test_forced_level_wins(capsys: pytest.CaptureFixture[str]) -> None:
    """--log-level beats the level that a command chooses for itself."""
    telemetry.configure(level="debug", force=True)
    telemetry.configure(level="error")
    # A name of our own: the attack toolbox, once imported, quietens every logger called "tests".
    structlog.get_logger("lanner.test").debug("still here")
    assert "still here" in capsys.readouterr().err
