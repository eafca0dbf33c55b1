"""The nouns of Lanner, shared by every package. Plain data: no I/O, no clock, nothing that knows a store.

Times are integer microseconds since 1970-01-01 UTC and end in `_us`; only the edges (wire, page, CLI) know text.
"""

from __future__ import annotations

import ipaddress
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, cast

import msgspec

SECOND_US: Final = 1_000_000
HOUR_US: Final = 3600 * SECOND_US
UNREGISTERED: Final = (
    "_unregistered"  # stands for a model where there is none: events of unknown ones, and Lanner itself
)
NAMESPACE: Final = uuid.UUID("6c616e6e-6572-5000-8000-000000000001")  # root of every uuid5 that Lanner derives


def stable_id(*parts: object) -> str:
    """A uuid5 over the parts: the same problem, row or detection gets the same id wherever it is derived.

    >>> stable_id("alert", "prod", 1) == stable_id("alert", "prod", 1)
    True
    """
    text = "\x1f".join(str(p) for p in parts)
    return str(uuid.uuid5(NAMESPACE, text.encode("utf-8", "backslashreplace").decode()))  # logs hold lone surrogates


def rfc3339(time_us: int) -> str:
    """Microseconds as RFC 3339 UTC with milliseconds, rounded down.

    >>> rfc3339(1_700_000_000_123_999)
    '2023-11-14T22:13:20.123Z'
    """
    t = datetime.fromtimestamp(time_us // SECOND_US, UTC)
    return f"{t:%Y-%m-%dT%H:%M:%S}.{time_us % SECOND_US // 1000:03d}Z"


def parse_time_us(text: str) -> int:
    """RFC 3339 text with a zone as microseconds UTC; ValueError otherwise.

    >>> parse_time_us("2023-11-14T22:13:20.123Z")
    1700000000123000
    """
    t = datetime.fromisoformat(text)
    if t.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone: append Z or an offset such as +03:00")
    return round(t.timestamp() * 1e6)


def network(address: str) -> str:
    """The network that an address stands for: /24 of IPv4, /48 of IPv6, the part after @ of a pseudonym; else itself.

    >>> network("203.0.113.7"), network("2001:db8:1:2::9"), network("::ffff:203.0.113.7"), network("h1-a@h1-b"), network("vpn")
    ('203.0.113.0/24', '2001:db8:1::/48', '203.0.113.0/24', 'h1-b', 'vpn')
    """
    if "@" in address:
        return address.rpartition("@")[2]
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return str(ipaddress.ip_network(f"{ip}/{24 if ip.version == 4 else 48}", strict=False))


class Severity(StrEnum):
    """How urgent an alert is; compare with `rank`."""

    WARNING = "warning"
    MINOR = "minor"
    MAJOR = "major"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        return list(Severity).index(self)


class Family(StrEnum):
    """What kind of thing a detector looks for."""

    DRIFT = "drift"
    QUALITY = "quality"
    PERFORMANCE = "performance"
    ANOMALY = "anomaly"
    EXTRACTION = "extraction"
    EVASION = "evasion"
    MEMBERSHIP = "membership"
    INVERSION = "inversion"
    POISONING = "poisoning"
    INJECTION = "injection"
    LEAKAGE = "leakage"
    ABUSE = "abuse"
    ACCESS = "access"
    MONITOR = "monitor"


class Event(StrEnum):
    """The closed set of problems an alert can be about."""

    FEATURE_DRIFT = "FeatureDrift"
    PREDICTION_DRIFT = "PredictionDrift"
    PERFORMANCE_DECAY = "PerformanceDecay"
    DISTRIBUTION_BREAK = "DistributionBreak"
    DATA_QUALITY = "DataQuality"
    TRAFFIC_ANOMALY = "TrafficAnomaly"
    ATTACK_SUSPECTED = "AttackSuspected"
    POISONING_SUSPECTED = "PoisoningSuspected"
    PROMPT_INJECTION_SUSPECTED = "PromptInjectionSuspected"
    DATA_LEAK_SUSPECTED = "DataLeakSuspected"
    ABUSE_SUSPECTED = "AbuseSuspected"
    ACCESS_ANOMALY = "AccessAnomaly"
    UNREGISTERED_MODEL = "UnregisteredModel"
    DATA_MISSING = "DataMissing"
    DETECTOR_FAILED = "DetectorFailed"
    DETECTOR_SILENT = "DetectorSilent"
    DELIVERY_DEGRADED = "DeliveryDegraded"
    MONITOR_DEGRADED = "MonitorDegraded"


class Verdict(StrEnum):
    """What one measurement says by itself. Only fixed-rule detectors may say ALARM."""

    OK = "ok"
    ALARM = "alarm"
    INSUFFICIENT = "insufficient"


class Action(StrEnum):
    """What happened to an alert."""

    OPEN = "open"
    UPDATE = "update"
    CLEAR = "clear"


@dataclass(frozen=True, slots=True)
class Subject:
    """Who or what a detection, decision or alert is about.

    kind: model, feature, segment, principal, cluster, labeler, source, sink, detector, component; or many (segments,
    principals ...), which a flood of incidents of one event is told as.
    """

    kind: str
    id: str


Scalar = float | str | bool | None  # a feature value or a prediction


class InferenceEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One answered (or unanswered) question to a model: one row of the event log.

    `features` values: number, string, bool or None (missing). `scores` are in the order of `class_names`.
    `quality` holds flags such as "nonfinite" or "clock_skew". What a decoder finds beyond these fields goes to `extra`.
    """

    event_time_us: int
    model: str
    event_time_source: str = "request"  # request, response, logged, broker or ingest
    model_version: str | None = None
    request_id: str | None = None
    client_request_id: str | None = None  # caller-chosen: labels join on it, nothing deduplicates on it
    principal: str | None = None
    principal_kind: str | None = None
    credential_id: str | None = None
    source_ip: str | None = None
    user_agent: str | None = None
    session_id: str | None = None
    tenant: str | None = None
    features: dict[str, Scalar] | None = None
    embedding: list[float] | None = None
    messages_in: list[dict[str, Any]] | None = None
    messages_out: list[dict[str, Any]] | None = None
    prediction: Scalar = None
    scores: list[float] | None = None
    class_names: list[str] | None = None
    returned: str | None = None  # what the caller saw: label, topk, scores, logprobs or text
    latency_ms: float | None = None
    status: str = "ok"  # ok, error, rejected, timeout, unanswered or unknown
    http_status: int | None = None
    error_type: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    params: dict[str, Any] | None = None
    finish_reason: str | None = None
    row_index: int = 0  # place of the row in its message's batch
    batch_size: int | None = None
    sampling_fraction: float = 1.0
    quality: list[str] = msgspec.field(default_factory=list)
    extra: dict[str, Any] = msgspec.field(default_factory=dict)


class FeedbackEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A late label or verdict on an earlier event. Every revision is kept; the newest `label_time_us` counts."""

    model: str
    target: dict[str, str]  # one of request_id, event_id, client_request_id; optional row_index
    name: str
    value: Scalar
    label_time_us: int
    labeler: str | None = None
    kind: str = "truth"  # truth, user, judge or outlier
    extra: dict[str, Any] = msgspec.field(default_factory=dict)


class Half(msgspec.Struct, kw_only=True):
    """One side of an event whose request and response travel as separate messages.

    `event` holds the fields that this side knows. Rows of one batch are separate halves with their own `row_index`.
    """

    side: str  # request or response
    pair_key: str  # unique per exchange as far as the source allows; halves of one key and row_index belong together
    event: InferenceEvent


def joined(request: Half, response: Half) -> InferenceEvent:
    """The request's event completed with what only the response knows; latency is the difference of their times.

    >>> q = Half(side="request", pair_key="k", event=InferenceEvent(event_time_us=1000, model="m", principal="c"))
    >>> a = Half(side="response", pair_key="k", event=InferenceEvent(event_time_us=3500, model="m", prediction="ok"))
    >>> e = joined(q, a); e.prediction, e.latency_ms, e.principal
    ('ok', 2.5, 'c')
    """
    q, a = request.event, response.event
    known = {
        name: value
        for name, value in msgspec.structs.asdict(a).items()
        if value not in (None, [], {}) and getattr(q, name) in (None, [], {})
    }
    known.setdefault("latency_ms", max(0.0, (a.event_time_us - q.event_time_us) / 1000))
    quality = sorted({*q.quality, *a.quality})
    status = a.status if a.status != "ok" else q.status
    return msgspec.structs.replace(
        q, **{**known, "quality": quality, "status": status, "extra": {**a.extra, **q.extra}}
    )


def alone(half: Half) -> InferenceEvent:
    """The event of a half whose other side never came: an unanswered request, or a response to an unseen request.

    >>> e = alone(Half(side="request", pair_key="k", event=InferenceEvent(event_time_us=1000, model="m")))
    >>> e.status, e.quality
    ('unanswered', ['missing_response'])
    """
    if half.side == "request":
        quality = sorted({*half.event.quality, "missing_response"})
        return msgspec.structs.replace(half.event, quality=quality, status="unanswered")
    return msgspec.structs.replace(half.event, quality=sorted({*half.event.quality, "missing_request"}))


MAINTENANCE: Final = "maintenance"  # the kind of mark that silences


@dataclass(frozen=True, slots=True)
class Mark:
    """Something a person or pipeline told us that explains changes: deploy, version, maintenance, batch."""

    model: str | None
    kind: str
    start_us: int
    end_us: int | None
    text: str
    actor: str


class Said(StrEnum):
    """What a person says that an incident was. Benign-true: the detector was right, and there was a good reason."""

    TRUE = "true"
    BENIGN_TRUE = "benign-true"
    FALSE = "false"
    UNDETERMINED = "undetermined"


@dataclass(frozen=True, slots=True)
class Act:
    """What a person did about an incident: `ack`, `shelve` or a `verdict`, which settles it unless `closes` is False.

    `source` says where: cli, api, page or sink:NAME. `ref` makes an act that is read twice the same act.
    """

    alert_id: str
    kind: str
    actor: str
    reason: str
    source: str
    time_us: int
    said: Said | None = None
    closes: bool = True
    ref: str = ""


@dataclass(frozen=True, slots=True)
class Exemption:
    """A narrow, expiring exception: what it covers opens no incident. Everything named must fit.

    `detectors`: all that contribute must be among them. `bounds`: numbers of the decision (statistic, n) or of its
    evidence (queries ...) that must be known and not larger.
    """

    exemption_id: str
    model: str
    event: Event
    subject: Subject
    detectors: tuple[str, ...]
    bounds: Mapping[str, float]
    reason: str
    actor: str
    created_us: int
    expires_us: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What budget(), fuse() or a fixed rule concluded about one subject. Alert lifecycle turns it into transitions.

    `firing` False means: the problem is over. `time_us` is the moment the decision is dated to (never the tick's):
    the event that crossed the level for sequential detectors, window end + lateness for windows.
    `evidence` is JSON-ready. `fixed_rule` decisions pass m-of-n and hysteresis before they open.
    """

    model: str
    event: Event
    family: Family
    subject: Subject
    firing: bool
    time_us: int
    window_us: tuple[int, int]
    detector: str
    statistic: float | None = None
    threshold: float | None = None
    p_value: float | None = None
    log_e: float | None = None
    n: int | None = None
    severity: Severity | None = None  # a proposal, of attacks an upper bound; policy in configuration has the last word
    fixed_rule: bool = False
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Alert:
    """The incident a person acts on: the current state of one problem."""

    alert_id: str
    environment: str
    customer: str | None
    model: str
    event: Event
    subject: Subject
    family: Family
    severity: Severity
    open: bool
    seq: int  # number of transitions so far; grows by one with each
    opened_us: int
    updated_us: int
    cleared_us: int | None
    detector: str
    statistic: float | None
    threshold: float | None
    p_value: float | None
    log_e: float | None
    n: int | None
    window_us: tuple[int, int]
    techniques: tuple[str, ...]
    text: str
    evidence: Mapping[str, Any]
    quiet: bool = False  # an attack incident without new evidence for 24 h
    owner: str | None = None  # of the model
    runbook: str = ""  # address or path
    page: str | None = None  # where its evidence is shown

    @property
    def key(self) -> tuple[str, str, str, str, str, str]:
        """What makes it one problem: environment, customer, model, subject kind and id, event."""
        return (self.environment, self.customer or "", self.model, self.subject.kind, self.subject.id, self.event)

    @property
    def resource(self) -> str:
        """What is in trouble, as sinks name it: `model:M`, or `model:M/KIND:ID` for a narrower subject."""
        whole = self.subject.kind == "model" and self.subject.id == self.model
        return f"model:{self.model}" if whole else f"model:{self.model}/{self.subject.kind}:{self.subject.id}"


def alert_id(key: Sequence[str], opened_us: int) -> str:
    """A reopened problem is a new alert: the id is derived from the key and the opening time."""
    return stable_id("alert", *key, opened_us)


@dataclass(frozen=True, slots=True)
class Transition:
    """One step in the life of an alert; what sinks, replay and the audit trail see. `alert` is the state after it."""

    action: Action
    time_us: int
    alert: Alert

    def to_json(self) -> dict[str, Any]:
        """The object that `lanner replay --json` prints, one a line; absent values are null, numbers are finite."""
        a = self.alert
        return {
            "time": rfc3339(self.time_us),
            "action": self.action.value,
            "alert_id": a.alert_id,
            "event": a.event.value,
            "family": a.family.value,
            "severity": a.severity.value,
            "model": a.model,
            "subject": {"kind": a.subject.kind, "id": a.subject.id},
            "detector": a.detector,
            "statistic": finite(a.statistic),
            "threshold": finite(a.threshold),
            "p_value": finite(a.p_value),
            "log_e": finite(a.log_e),
            "n": a.n,
            "window": [rfc3339(a.window_us[0]), rfc3339(a.window_us[1])],
            "techniques": list(a.techniques),
            "text": a.text,
            "evidence": dict(a.evidence),
        }


class OutboxState(StrEnum):
    """Why an outbox row is where it is. Each is a metric label."""

    PENDING = "pending"
    SENT = "sent"
    SUPERSEDED = "superseded"  # a newer state of the same key went instead
    SUPPRESSED = "suppressed"
    UNKNOWN = "unknown"  # to be asserted again at `next_try_us`
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One state of one problem on its way to one sink. `lane` = sink + key: one sender at a time, newest state wins."""

    row_id: str
    sink: str
    lane: str
    seq: int
    transition: Transition
    state: OutboxState
    attempts: int
    next_try_us: int
    last_error: str | None
    created_us: int = 0


def alert_to_json(alert: Alert) -> dict[str, Any]:
    """The whole alert as plain JSON values; `alert_from_json` gives it back unchanged."""
    return cast(dict[str, Any], msgspec.to_builtins(alert))


def alert_from_json(raw: Mapping[str, Any]) -> Alert:
    """The inverse of `alert_to_json`."""
    return msgspec.convert(raw, Alert)


def transition_to_json(transition: Transition) -> dict[str, Any]:
    """The whole transition as plain JSON values, for stores; `Transition.to_json` is what people see."""
    return cast(dict[str, Any], msgspec.to_builtins(transition))


def transition_from_json(raw: Mapping[str, Any]) -> Transition:
    """The inverse of `transition_to_json`."""
    return msgspec.convert(raw, Transition)


def finite(value: float | None) -> float | None:
    """A number JSON can carry, rounded to 6 significant digits so that output is the same on every machine.

    >>> finite(float("inf")) is None, finite(1 / 3)
    (True, 0.333333)
    """
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
