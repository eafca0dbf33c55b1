"""The Alerta sink: our own adapter over the `alerta` client, because the stock client calls some lost alerts delivered.

Delivery: at least once. One alert of ours is one row there (environment + customer + resource + event); severity
carries the state and `normal` clears. An answer counts only when it is 200 or 201, says `ok` and brings the alert back.
Ids, tags, correlation, blackouts and timeouts of Alerta are never used for our logic; see docs/alerts.md.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import requests
import structlog
from alertaclient.api import HTTPClient

from alerts.alertarows import TEXT_CHARS, label, payload, risen_since_shelving, row_key, state, turns
from alerts.base import SinkRejected, SinkState, SinkSuppressed, SinkUnavailable, SinkUnknown
from alerts.text import shown
from alerts.wire import Bounded, loopback, never_connected
from monitor import telemetry
from monitor.model import Action, Alert, Transition

log = structlog.get_logger("lanner.alerts.alerta")

CONNECT_S: Final = 3.0
ERROR_CHARS: Final = 200
LATER: Final = frozenset({408, 425, 429})
DEFAULT_SECRET: Final = "changeme"  # noqa: S105  Alerta's; who knows it can sign tokens of any user


@dataclass(frozen=True)
class Alerta:
    """An Alerta server at `url` (with its API path, without a user) and a key with write:alerts, read:alerts scopes.

    Refused, unless `allow_insecure`: plain http to another machine, a server without login, with open sign-up or with the
    default secret.
    Nothing of the environment is used: no ALERTA_* variable, no proxy, no .netrc. `verify` may name a CA bundle.
    """

    name: str
    url: str
    key: str = field(repr=False)
    timeout_s: float = 5.0  # of a whole call, however slowly the answer drips
    allow_insecure: bool = False
    verify: bool | str = True
    _idle: deque[Any] = field(default_factory=deque, repr=False, compare=False)  # one client per sender, kept warm
    _trusted: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def send(self, transition: Transition, *, timeout_s: float) -> SinkState:
        """Assert the state of an alert; raises what alerts.base declares. The answer is the read-back."""
        body = payload(transition)
        self._trust(timeout_s)
        answer = self._call("post", "/alert", body, timeout_s=timeout_s)
        shows = answer.get("alert")
        if not isinstance(shows, Mapping) or shows.get("resource") != body["resource"] or "severity" not in shows:
            raise SinkUnknown("Alerta said ok but did not bring the alert back")
        if shows.get("severity") != body["severity"]:
            raise SinkUnknown(f"Alerta shows {shown(shows.get('severity'))} after we sent {body['severity']}")
        if shows.get("status") == "shelved" and transition.action is not Action.CLEAR:
            return self._escalate(str(shows.get("id")), transition.alert, timeout_s)
        return state(shows)

    def current(self, alert: Alert) -> SinkState | None:
        """What Alerta shows for the alert's key, None when it knows nothing of it.

        Severity `normal` means that a clear of ours stands; `closed` with another severity means that a person closed it.
        """
        row = self._row(alert)
        return None if row is None else state(row)

    def tell(self, alert: Alert, kind: str, text: str) -> None:
        """Acknowledge the alert's row, or leave a note on it; nothing when the row is gone or tells of another incident."""
        row = self._row(alert)
        shows = row.get("attributes") if row is not None else None
        if row is None or not isinstance(shows, Mapping) or shows.get("finding_id") != alert.alert_id:
            return
        path, words = f"/alert/{row.get('id')}", shown(text, TEXT_CHARS)
        if kind == "ack":
            if row.get("status") == "open":
                self._call("put", f"{path}/action", {"action": "ack", "text": words}, timeout_s=self.timeout_s)
        elif all(h.get("type") != "note" or h.get("text") != words for h in turns(row)):
            self._call("put", f"{path}/note", {"text": words}, timeout_s=self.timeout_s)

    def _row(self, alert: Alert) -> Mapping[str, Any] | None:
        self._trust(self.timeout_s)
        query = [*row_key(alert).items(), ("show-history", "true"), ("page-size", "20")]
        owner = None if alert.customer is None else label(alert.customer)
        rows = self._read("/alerts", query, self.timeout_s).get("alerts")
        for row in rows if isinstance(rows, Sequence) else ():
            if isinstance(row, Mapping) and (row.get("customer") or None) == owner:
                return row
        return None

    def beat(self, origin: str, timeout_s: float, environment: str) -> None:
        """Send a heartbeat that Alerta shows as expired when the next does not come within `timeout_s`."""
        attributes = {
            "environment": label(environment),
            "severity": "major",
            "service": ["lanner"],
            "group": "MonitorDegraded",
        }
        body = {
            "origin": f"lanner/{shown(origin)}",
            "tags": [],
            "attributes": attributes,
            "timeout": max(1, int(timeout_s)),
        }
        self._trust(self.timeout_s)
        self._call("post", "/heartbeat", body, timeout_s=self.timeout_s)

    def admits(self, timeout_s: float = 5.0) -> None:
        """Raise what alerts.base declares unless the server is safe and lets this key read alerts."""
        self._trust(timeout_s)
        self._read("/alerts/count", [], timeout_s)

    def unsafe(self, timeout_s: float = 5.0) -> Sequence[str]:
        """What is unsafe about this server, as far as it can be seen from here."""
        found = []
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
            raise SinkRejected("the address of Alerta must be http(s)://HOST[:PORT][/api], without a user in it")
        if parts.scheme == "http" and not loopback(parts.hostname):
            return [
                "its address is plain http to another machine, so that the key and all alerts can be read on the way"
            ]
        if not self.verify:
            found.append("its certificate is not checked")
        with _Client(self, timeout_s) as http, _plain_errors(self.key, wrote=False):
            url = f"{http.endpoint}/config"
            answer = http.session.get(url, headers={"Accept": "application/json"}, timeout=http.timeout)
        try:
            settings = answer.json() if answer.status_code == 200 else {}
        except ValueError:
            settings = {}
        if isinstance(settings, Mapping):
            if settings.get("auth_required") is False:
                found.append("it needs no login (AUTH_REQUIRED is off)")
            if settings.get("signup_enabled") is True:
                found.append("anybody can sign up (SIGNUP_ENABLED is on)")
        if self._knows_default_secret(timeout_s):
            found.append("its SECRET_KEY is the default, so that anybody can sign in as anybody")
        return found

    def _knows_default_secret(self, timeout_s: float) -> bool:
        """Whether the server believes a token that is signed with Alerta's default secret.

        The token ran out in 2001, so it opens nothing; only a server that has checked its signature says that it is old.
        """
        with _Client(self, timeout_s) as http, _plain_errors(self.key, wrote=False):
            headers = {"Authorization": f"Bearer {_old_token(DEFAULT_SECRET)}", "Accept": "application/json"}
            answer = http.session.get(f"{http.endpoint}/alerts/count", headers=headers, timeout=http.timeout)
        return answer.status_code == 401 and "expired" in answer.text.lower()

    def _trust(self, timeout_s: float) -> None:
        """Look once whether the server is safe to talk to; alerts wait while it is not."""
        if self._trusted.is_set() or self.allow_insecure:
            return
        found = self.unsafe(timeout_s)
        if found:
            raise SinkUnavailable(
                f"refused: {'; '.join(found)}. Mend it, or set allow_insecure on the sink {self.name}"
            )
        self._trusted.set()

    def _escalate(self, remote_id: str, alert: Alert, timeout_s: float) -> SinkState:
        """An operator shelved this row. What was not known then must be seen: a higher severity, or a new incident."""
        row = self._read(f"/alert/{remote_id}", [], timeout_s).get("alert")
        if not risen_since_shelving(row if isinstance(row, Mapping) else {}, alert.severity):
            return SinkState(alert.severity.value, "shelved", remote_id)
        text = "Lanner: this is worse than, or later than, what was shelved"
        self._call("put", f"/alert/{remote_id}/action", {"action": "open", "text": text}, timeout_s=timeout_s)
        telemetry.count("reconciled_total", sink=self.name, what="unshelved")
        log.warning("shelved_alert_reopened", sink=self.name, alert_id=alert.alert_id, severity=alert.severity.value)
        return SinkState(alert.severity.value, "open", remote_id)

    def _read(self, path: str, query: Sequence[tuple[str, str]], timeout_s: float) -> Mapping[str, Any]:
        with _Client(self, timeout_s) as http, _plain_errors(self.key, wrote=False):
            return _object(http.get(path, list(query)))

    def _call(self, verb: str, path: str, body: Mapping[str, Any], *, timeout_s: float) -> Mapping[str, Any]:
        try:
            json.dumps(body, allow_nan=False)
        except (TypeError, ValueError) as e:
            raise SinkRejected(f"the alert cannot be written as JSON: {e}") from e
        with _Client(self, timeout_s) as http, _plain_errors(self.key, wrote=True):
            return _object(http.post(path, body) if verb == "post" else http.put(path, body))


def _old_token(secret: str) -> str:
    """A JSON Web Token of nobody that expired long ago."""
    parts = ({"alg": "HS256", "typ": "JWT"}, {"iss": "lanner", "sub": "check", "aud": "", "exp": 1_000_000_000})
    head = b".".join(base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=") for p in parts)
    signed = hmac.new(secret.encode(), head, hashlib.sha256).digest()
    return (head + b"." + base64.urlsafe_b64encode(signed).rstrip(b"=")).decode()


def _object(answer: Any) -> Mapping[str, Any]:
    if not isinstance(answer, Mapping):
        raise SinkUnknown("Alerta answered something that is no JSON object")
    return answer


# --- the wire -------------------------------------------------------------------------------------------------------


def classified(response: requests.Response) -> Any:
    """The JSON of an answer that says ok; else the error of alerts.base that fits what happened."""
    code = response.status_code
    try:
        body = response.json()
    except ValueError:
        body = None
    said = body.get("message") if isinstance(body, Mapping) else None
    what = f"Alerta answered {code}" + (f": {said}" if said else "")
    if code in {200, 201}:
        if isinstance(body, Mapping) and body.get("status") == "ok":
            return body
        raise SinkUnknown(f"{what} without saying that it is ok")
    if code == 202:
        raise SinkSuppressed(what)
    if code < 400 or code in LATER:
        raise SinkUnavailable(what)
    if code < 500:
        raise SinkRejected(what)
    raise SinkUnknown(what)  # it may have stored the alert before it failed


class _plain_errors:  # noqa: N801  a context manager that reads like a statement
    """Turn what the client raises into our errors, without the key: Alerta's 401 echoes it."""

    def __init__(self, key: str, *, wrote: bool) -> None:
        self._key = key
        self._wrote = wrote

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, Exception):
            return
        said = self._clean(str(error))
        if isinstance(error, SinkRejected | SinkSuppressed | SinkUnavailable):
            raise type(error)(said) from None
        if isinstance(error, requests.TooManyRedirects):
            raise SinkUnavailable("Alerta's address answers with a redirect, which is not followed") from None
        if isinstance(error, requests.ConnectTimeout | requests.exceptions.SSLError) or never_connected(error):
            raise SinkUnavailable(f"cannot connect: {said}") from None
        unknown = SinkUnknown if self._wrote else SinkUnavailable  # a read that failed has changed nothing
        raise unknown(said if isinstance(error, SinkUnknown) else f"{type(error).__name__}: {said}") from None

    def _clean(self, text: str) -> str:
        hidden = text.replace(self._key, "[key]") if self._key else text
        return shown(re.sub(r"(?i)\bkey\s+[\w+/=-]{8,}", "Key [key]", hidden), ERROR_CHARS)


class _Client:
    """A client for one call: an idle one or a new one; it is kept only when the call went well."""

    def __init__(self, sink: Alerta, timeout_s: float) -> None:
        self._sink = sink
        self._limit_s = min(timeout_s, sink.timeout_s)

    def __enter__(self) -> Any:
        try:
            self._http = self._sink._idle.pop()  # noqa: SLF001  the sink's own pool
        except IndexError:
            self._http = self._new()
        self._http.timeout = (min(CONNECT_S, self._limit_s), self._limit_s)
        self._http.session.get_adapter(self._sink.url).limit_s = self._limit_s
        return self._http

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None or issubclass(kind, SinkRejected | SinkSuppressed):
            self._sink._idle.append(self._http)  # noqa: SLF001
        else:
            self._http.session.close()

    def _new(self) -> Any:
        http = HTTPClient(self._sink.url.rstrip("/"), key=self._sink.key, ssl_verify=self._sink.verify)
        http._handle_error = classified  # noqa: SLF001  the stock one ignores the HTTP status
        http.session.trust_env = False
        http.session.max_redirects = 0
        for scheme in ("http://", "https://"):
            http.session.mount(scheme, Bounded())
        return http
