"""What Lanner says about itself: every metric declared once, and logs that a hostile log line cannot forge.

Metrics carry the prefix `lanner_` and base units; a label is never a principal, a request id or a feature value.
Logs go to stderr through structlog, as lines for people or as JSON.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import prometheus_client as prometheus
import structlog

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One self-metric. `name` is without the prefix; its ending tells the unit (`_total` counts)."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_SECONDS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)
_DELAY: Final = (1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 86400.0)

METRICS: Final = (
    Metric("build_info", "gauge", "always 1; the version that runs", ("version",)),
    # collect
    Metric("collector_records_total", "counter", "messages read, by what became of them", ("source", "outcome")),
    Metric("collector_bytes_total", "counter", "bytes of messages read", ("source",)),
    Metric(
        "collector_lag_records", "gauge", "messages in the partition not yet read", ("source", "topic", "partition")
    ),
    Metric("collector_paused", "gauge", "partitions that wait for a schema", ("source",)),
    Metric("collector_fenced_total", "counter", "times another process took over a partition", ("source",)),
    Metric("collector_flush_duration_seconds", "histogram", "from a full buffer to its commit", ("source",), _SECONDS),
    Metric("decode_failures_total", "counter", "messages that became dead letters, by reason", ("source", "reason")),
    Metric("events_flagged_total", "counter", "events with a quality flag", ("source", "flag")),
    Metric("events_total", "counter", "events recorded in the event log", ("source", "model")),
    Metric("event_delay_seconds", "histogram", "from event time to recording", ("source",), _DELAY),
    Metric("offsets_lost_total", "counter", "messages removed from the topic before they were read", ("source",)),
    Metric("pairs_pending", "gauge", "requests or responses that wait for their other half"),
    Metric("pairs_expired_total", "counter", "halves whose other half never came"),
    Metric("unregistered_events_total", "counter", "events of models the configuration does not name", ("source",)),
    # store
    Metric("store_write_duration_seconds", "histogram", "one write transaction of the state store", (), _SECONDS),
    Metric(
        "publish_duration_seconds", "histogram", "one publishing of segments to the event log", ("model",), _SECONDS
    ),
    Metric("publish_rows_total", "counter", "rows published to the event log", ("model",)),
    Metric("publish_delay_seconds", "gauge", "age of the oldest unpublished segment", ("model",)),
    # judge
    Metric("tick_duration_seconds", "histogram", "one tick of a model", ("model",), _SECONDS),
    Metric("watermark_timestamp_seconds", "gauge", "event time up to which a model is complete", ("model",)),
    Metric("late_rows_total", "counter", "rows that came after their window was judged", ("model",)),
    Metric("windows_judged_total", "counter", "windows judged, by verdict", ("model", "detector", "verdict")),
    Metric("windows_missed_total", "counter", "windows recorded as gaps", ("model",)),
    Metric("detector_runs_total", "counter", "runs of a detector, by outcome", ("model", "detector", "outcome")),
    Metric("detector_run_duration_seconds", "histogram", "one run of a detector", ("model", "detector"), _SECONDS),
    Metric("detector_last_success_timestamp_seconds", "gauge", "when a detector last finished", ("model", "detector")),
    Metric("detector_statistic", "gauge", "the latest statistic of the model as a whole", ("model", "detector")),
    Metric("detector_threshold", "gauge", "the level the statistic is held against", ("model", "detector")),
    Metric("job_failures_total", "counter", "scheduled jobs that ended in an error", ("job",)),
    Metric("leases_lost_total", "counter", "times another process took over a model", ("model",)),
    # alert
    Metric("alerts_open", "gauge", "incidents open now", ("model", "severity")),
    Metric("alert_transitions_total", "counter", "incidents opened, updated and cleared", ("event", "action")),
    Metric("alerts_sent_total", "counter", "deliveries to a sink, by outcome", ("sink", "outcome")),
    Metric(
        "alert_delivery_seconds", "histogram", "from the decision to its acceptance by the sink", ("sink",), _SECONDS
    ),
    Metric("outbox_pending", "gauge", "deliveries that wait", ("sink",)),
    Metric("outbox_oldest_seconds", "gauge", "age of the oldest waiting delivery", ("sink",)),
    Metric("reconciled_total", "counter", "differences between the sink and us that were mended", ("sink", "what")),
    Metric(
        "escalations_total", "counter", "incidents told to further sinks because nobody acknowledged", ("severity",)
    ),
    Metric("reminders_total", "counter", "incidents told again because nobody acknowledged", ("sink",)),
    Metric(
        "deadman_timestamp_seconds",
        "gauge",
        "when ticks last completed and alerts got out, by the store; served by `lanner web`",
    ),
    # look
    Metric("http_requests_total", "counter", "requests to the page and the API", ("route", "status")),
    Metric("http_request_duration_seconds", "histogram", "time to answer a request", ("route",), _SECONDS),
)

prometheus.disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY: Final = prometheus.CollectorRegistry(auto_describe=True)
_forced_level: list[str] = []


@cache
def _metric(name: str) -> Any:
    """The Prometheus object of a declared metric, made on first use so that a process shows only what it does."""
    metric = next((m for m in METRICS if m.name == name), None)
    if metric is None:
        raise KeyError(f"{name} is not declared in monitor.telemetry.METRICS")
    if metric.kind == "histogram":
        made = prometheus.Histogram
        return made(f"lanner_{name}", metric.meaning, metric.labels, registry=REGISTRY, buckets=metric.buckets)
    plain = prometheus.Counter if metric.kind == "counter" else prometheus.Gauge
    return plain(f"lanner_{name}", metric.meaning, metric.labels, registry=REGISTRY)


def _child(name: str, labels: dict[str, str]) -> Any:
    metric = _metric(name)
    return metric.labels(**labels) if labels else metric


def count(name: str, n: float = 1, **labels: str) -> None:
    """Add to a counter.

    >>> count("late_rows_total", 3, model="card-fraud")
    """
    _child(name, labels).inc(n)


def gauge(name: str, value: float, **labels: str) -> None:
    """Set a gauge."""
    _child(name, labels).set(value)


def observe(name: str, value: float, **labels: str) -> None:
    """Add one observation to a histogram."""
    _child(name, labels).observe(value)


def exposition() -> bytes:
    """All metrics of this process in Prometheus' text format."""
    return prometheus.generate_latest(REGISTRY)


def serve(host: str, port: int) -> tuple[Any, threading.Thread]:
    """Serve /metrics without login in a thread of its own; the caller shuts the returned server down."""
    return prometheus.start_http_server(port, host, REGISTRY)


# C0 and C1 controls, line and paragraph separators, and the marks that reorder or hide text on a terminal.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")
_CREDENTIALS: Final = re.compile(r"(?<=://)([^/\s:@]*):([^/\s@]+)@")
_SECRET_KEYS: Final = re.compile(r"password|passwd|secret|token|api_?key|authorization|^key$", re.IGNORECASE)


def escaped(text: str) -> str:
    r"""Text that stays on its line and reads as it is written.

    >>> escaped("ok\n2026 forged \x1b[2J")
    'ok\\n2026 forged \\x1b[2J'
    """
    return _UNSAFE.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


def _safe(value: Any, depth: int = 0) -> Any:
    """The same value with its texts escaped and passwords in URLs hidden."""
    if isinstance(value, str):
        return escaped(_CREDENTIALS.sub(r"\1:***@", value))
    if depth < 6 and isinstance(value, dict):
        return {_safe(str(k)): "***" if _is_secret(k, v) else _safe(v, depth + 1) for k, v in value.items()}
    if depth < 6 and isinstance(value, list | tuple | set | frozenset):
        return [_safe(v, depth + 1) for v in value]
    if isinstance(value, int | float | None):
        return value
    return escaped(_CREDENTIALS.sub(r"\1:***@", str(value)))


def _is_secret(key: object, value: object) -> bool:
    return isinstance(value, str | bytes) and bool(_SECRET_KEYS.search(str(key)))


def _sanitise(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if key == "exception":  # a traceback keeps its lines; what it quotes does not get to start one
            event[key] = "\n".join(_safe(line) for line in str(value).splitlines())
        elif not key.startswith("_"):
            event[key] = "***" if _is_secret(key, value) else _safe(value)
    return event


def configure(log_format: Literal["console", "json"] = "console", level: str = "info", *, force: bool = False) -> None:
    """Send the logs of Lanner and of its libraries to stderr; a forced level wins over later calls."""
    if force:
        _forced_level[:] = [level]
    number = logging.getLevelNamesMapping()[(_forced_level[0] if _forced_level else level).upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _sanitise,
    ]
    last: Any = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler()  # sys.stderr of now
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for noisy in ("kafka", "apscheduler", "alembic", "urllib3", "py4j"):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))
