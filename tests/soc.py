"""An operator at a real Alerta, and a service without a scheduler: what tests of delivery and of people share."""

from __future__ import annotations

import json
import time
import urllib.parse
from dataclasses import replace
from pathlib import Path
from typing import Any

import requests

from alerts.alertarows import resource
from monitor.config import load
from monitor.model import Action, Transition, alert_id
from monitor.service.compose import Service, open_service
from monitor.store import alertlog
from monitor.store import outbox as outboxes
from monitor.store.engine import write
from tests.alerting import alert
from tests.servers.alerta import Alerta as Server


class Api:
    """What an operator does, with plain requests."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Key {server.key}"

    def call(self, verb: str, path: str, **body: Any) -> Any:
        return self.session.request(verb, self.server.url + path, json=body or None, timeout=10).json()

    def find(self, t: Transition) -> list[Any]:
        query = urllib.parse.urlencode({"resource": resource(t.alert), "event": t.alert.event.value})
        found: list[Any] = self.call("GET", f"/alerts?{query}&show-history=true&show-raw-data=true")["alerts"]
        return found

    def one(self, t: Transition) -> Any:
        (row,) = self.find(t)
        return row

    def has_shown(self, t: Transition, severity: str) -> bool:
        return any(h["severity"] == severity for row in self.find(t) for h in row["history"])

    def act(self, t: Transition, action: str) -> None:
        self.call("PUT", f"/alert/{self.one(t)['id']}/action", action=action, text="operator")


def now_us() -> int:
    """Wall time."""
    return time.time_ns() // 1000


def service_of(folder: Path, **config: Any) -> Service:
    """A service of the model `m` on SQLite, without a scheduler."""
    file = folder / "lanner.yaml"
    sinks = {"soc": {"type": "memory"}, "pager": {"type": "memory"}}
    routes = [{"sinks": ["soc"]}]
    file.write_text(json.dumps({"models": {"m": {}}, "sinks": sinks, "routes": routes, **config}))
    return open_service(load(file), "test")


def stored(service: Service, who: str = "p1", **fields: Any) -> Transition:
    """An open incident, as a tick would have committed it a moment ago."""
    at = fields.pop("opened_us", now_us())
    made = replace(alert(who, opened_us=at, updated_us=at), **fields)
    made = replace(made, alert_id=alert_id(made.key, at))
    t = Transition(Action.OPEN, at, made)
    with write(service.engine) as conn:
        alertlog.write(conn, [made], [t], at)
        outboxes.enqueue(conn, [t], service.sinks_for, at)
    return t
