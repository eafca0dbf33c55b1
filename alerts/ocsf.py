"""A signed webhook that carries OCSF Detection Findings (class 2004) as JSON.

Delivery: at least once; `Idempotency-Key` (alert id and number of the state) tells a repeat from news. Any 2xx accepts.
The signature is HMAC-SHA256 over the time of sending, a dot, and the body; docs/sinks.md shows how to check it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final
from urllib.parse import urlsplit

import requests

from alerts.base import SinkRejected, SinkUnavailable, SinkUnknown
from alerts.techniques import table
from alerts.text import STEPS, shown, title
from alerts.wire import Bounded, loopback, never_connected
from monitor.errors import ConfigError, Mistake
from monitor.model import Action, Alert, Severity, Transition, finite

SCHEMA: Final = "1.5.0"
ACTIVITY: Final = {Action.OPEN: 1, Action.UPDATE: 2, Action.CLEAR: 3}
LEVEL: Final = {Severity.WARNING: 2, Severity.MINOR: 3, Severity.MAJOR: 4, Severity.CRITICAL: 5}
STATUS: Final = {True: 1, False: 4}  # new, resolved
LATER: Final = frozenset({408, 425, 429})
BODY_BYTES: Final = 256 * 1024


@dataclass(frozen=True)
class Webhook:
    """An https address on one of `hosts` and the secret both sides know. Plain http is for loopback only.

    No redirect is followed, nothing of the environment is used (no proxy, no .netrc). `verify` may name a CA file.
    """

    name: str
    url: str
    key: str = field(repr=False)
    hosts: tuple[str, ...] = ()
    timeout_s: float = 5.0
    verify: bool | str = True
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        wrong = None
        if parts.scheme != "https" and not (parts.scheme == "http" and loopback(host)):
            wrong = "`url` must begin with https:// (http:// for loopback only)"
        elif parts.username or parts.password:
            wrong = "`url` must not hold a user"
        elif host not in self.hosts:
            wrong = f"the host {shown(host)} is not among its `hosts`"
        elif len(self.key) < 16:
            wrong = "the key has less than 16 characters"
        if wrong is not None:
            raise ConfigError([Mistake(f"sinks.{self.name}", None, wrong)])

    def send(self, transition: Transition, *, timeout_s: float) -> None:
        """POST the finding; raises what alerts.base declares, never with the key."""
        try:
            body = json.dumps(finding(transition), allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError) as error:
            raise SinkRejected(f"the alert cannot be written as JSON: {error}") from None
        if len(body) > BODY_BYTES:
            raise SinkRejected(f"the finding has {len(body)} bytes, more than {BODY_BYTES}")
        at = str(int(self.clock()))
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": f"{transition.alert.alert_id}:{transition.alert.seq}",
            "X-Lanner-Timestamp": at,
            "X-Lanner-Signature": signature(self.key, at, body),
        }
        limit_s = min(timeout_s, self.timeout_s)
        adapter = Bounded()
        adapter.limit_s = limit_s
        with requests.Session() as session:
            session.trust_env = False
            session.mount(self.url.split("://", 1)[0] + "://", adapter)
            try:
                answer = session.post(
                    self.url, data=body, headers=headers, timeout=limit_s, verify=self.verify, allow_redirects=False
                )
            except requests.RequestException as error:
                never = isinstance(error, requests.ConnectTimeout | requests.exceptions.SSLError)
                if never or never_connected(error):
                    raise SinkUnavailable(f"cannot connect: {type(error).__name__}") from None
                raise SinkUnknown(f"no answer: {type(error).__name__}") from None
        _judge(answer.status_code)


def _judge(code: int) -> None:
    what = f"the webhook answered {code}"
    if code < 200 or 300 <= code < 400 or code in LATER:
        raise SinkUnavailable(what)
    if code >= 500:
        raise SinkUnknown(what)
    if code >= 400:
        raise SinkRejected(what)


def signature(key: str, at: str, body: bytes) -> str:
    """What `X-Lanner-Signature` holds.

    >>> signature("0123456789abcdef", "1700000000", b"{}")[:14]
    'v1=e4f8e2ecae2'
    """
    return "v1=" + hmac.new(key.encode(), at.encode() + b"." + body, hashlib.sha256).hexdigest()


def finding(transition: Transition) -> dict[str, Any]:
    """The Detection Finding of a transition, valid against the schema of OCSF 1.5.0; plain JSON values."""
    alert = transition.alert
    activity = ACTIVITY[transition.action]
    return {
        "activity_id": activity,
        "category_uid": 2,
        "class_uid": 2004,
        "type_uid": 200400 + activity,
        "time": transition.time_us // 1000,
        "start_time": alert.window_us[0] // 1000,
        "end_time": alert.window_us[1] // 1000,
        "severity_id": LEVEL[alert.severity],
        "status_id": STATUS[alert.open],
        "is_alert": True,
        "message": alert.text,
        "metadata": {
            "version": SCHEMA,
            "uid": f"{alert.alert_id}:{alert.seq}",
            "correlation_uid": alert.alert_id,
            "sequence": alert.seq,
            "product": {"vendor_name": "Lanner", "name": "lanner", "version": version("lanner")},
        },
        "finding_info": _info(alert),
        "resources": [
            _known(
                uid=shown(alert.model),
                name=shown(alert.model),
                type="AI model",
                version=alert.evidence.get("model_version"),
            )
        ],
        "remediation": {"desc": STEPS[alert.event], "references": [shown(alert.runbook, 200)]},
        "unmapped": _unmapped(alert),
    }


def _info(alert: Alert) -> dict[str, Any]:
    names = table().names
    atlas = [uid for uid in alert.techniques if uid.startswith("AML.T")]
    found: dict[str, Any] = {
        "uid": alert.alert_id,
        "title": title(alert),
        "desc": alert.text,
        "types": [alert.event.value],
        "created_time": alert.opened_us // 1000,
        "modified_time": alert.updated_us // 1000,
        "first_seen_time": alert.opened_us // 1000,
        "last_seen_time": alert.window_us[1] // 1000,
        "analytic": _known(
            uid=shown(alert.detector),
            name=shown(alert.detector),
            type_id=3,
            version=alert.evidence.get("detector_version"),
        ),
    }
    if alert.page is not None:
        found["src_url"] = alert.page
    if atlas:
        version_ = table().versions["atlas"]
        found["attacks"] = [
            {"technique": {"uid": uid, "name": names.get(uid, uid)}, "version": f"ATLAS {version_}"} for uid in atlas
        ]
    return found


def _known(*, version: object, **named: Any) -> dict[str, Any]:
    """An object of the schema, with its version when that is known."""
    return named if version is None else {**named, "version": shown(version)}


def _unmapped(alert: Alert) -> Mapping[str, Any]:
    """What OCSF has no place for: numbers, our own words, and ids made harmless."""
    return {
        "environment": shown(alert.environment),
        "owner": None if alert.owner is None else shown(alert.owner),
        "customer": None if alert.customer is None else shown(alert.customer),
        "family": alert.family.value,
        "subject": {"kind": alert.subject.kind, "id": shown(alert.subject.id)},
        "statistic": finite(alert.statistic),
        "threshold": finite(alert.threshold),
        "p_value": finite(alert.p_value),
        "log_evidence": finite(alert.log_e),
        "n": alert.n,
        "techniques": list(alert.techniques),
        "quiet": alert.quiet,
    }
