"""Syslog: RFC 5424 messages that carry CEF, over TLS (RFC 5425), or over plain TCP on the same machine.

Delivery: at least once. Syslog has no answer, so each message travels on a connection of its own that is closed in
order: when the receiver has closed its side too, it has read everything. A connection that breaks before that is unknown
and the message goes again; `externalId` and `seq` tell a repeat from news.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from alerts.base import SinkRejected, SinkUnavailable, SinkUnknown
from alerts.text import shown, title
from alerts.wire import loopback
from monitor.errors import ConfigError, Mistake
from monitor.model import Action, Severity, Transition, finite, rfc3339

MESSAGE_BYTES: Final = 8192  # what RFC 5425 asks every receiver to take
FACILITY: Final = 14  # log alert
LEVELS: Final = {Severity.CRITICAL: 2, Severity.MAJOR: 3, Severity.MINOR: 4, Severity.WARNING: 5}
CEF_LEVELS: Final = {Severity.CRITICAL: 10, Severity.MAJOR: 8, Severity.MINOR: 5, Severity.WARNING: 3}


@dataclass(frozen=True)
class Syslog:
    """A syslog server at `host`:`port`. `context` None is plain TCP, which is refused beyond this machine."""

    name: str
    host: str
    port: int
    context: ssl.SSLContext | None = None
    timeout_s: float = 5.0
    sender: str = "-"  # the HOSTNAME of the header

    def __post_init__(self) -> None:
        if self.context is None and not loopback(self.host):
            raise ConfigError([Mistake(f"sinks.{self.name}", None, "plain TCP is for loopback only; use tls")])

    def send(self, transition: Transition, *, timeout_s: float) -> None:
        """Write one message and wait until the receiver has read it; raises what alerts.base declares."""
        raw = message(transition, self.sender)
        if len(raw) > MESSAGE_BYTES:
            raise SinkRejected(f"the message has {len(raw)} bytes; syslog receivers take {MESSAGE_BYTES}")
        until = time.monotonic() + min(timeout_s, self.timeout_s)
        try:
            plain = socket.create_connection((self.host, self.port), timeout=_left(until))
        except OSError as error:
            raise SinkUnavailable(f"cannot connect: {_words(error)}") from None
        with plain:
            try:
                plain.settimeout(_left(until))
                wire = plain if self.context is None else self.context.wrap_socket(plain, server_hostname=self.host)
            except OSError as error:
                raise SinkUnavailable(f"no TLS connection: {_words(error)}") from None
            with wire:
                _write(wire, frame(raw), until)


def _write(wire: socket.socket, raw: bytes, until: float) -> None:
    try:
        wire.settimeout(_left(until))
        wire.sendall(raw)
        if isinstance(wire, ssl.SSLSocket):
            try:
                wire.settimeout(_left(until))
                wire.unwrap()
            except ssl.SSLEOFError:
                pass  # closed without TLS's own good-bye, but in order
            return
        wire.shutdown(socket.SHUT_WR)
        while wire.recv(4096):
            wire.settimeout(_left(until))
    except OSError as error:
        raise SinkUnknown(f"the connection broke before the receiver had closed it: {_words(error)}") from None


def _left(until: float) -> float:
    return max(0.001, until - time.monotonic())


def _words(error: OSError) -> str:
    return shown(error.strerror or error.__class__.__name__, 120)


def tls(ca_file: Path | None, own_file: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or newer with verified names, trusting the system's authorities or only those of `ca_file`.

    `own_file` holds this client's certificate and key, for receivers that ask for one. OSError when a file is unfit.
    """
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if own_file is not None:
        context.load_cert_chain(own_file)
    return context


def frame(raw: bytes) -> bytes:
    """Octet counting (RFC 5425, RFC 6587): the length, a space, the message.

    >>> frame(b"abc")
    b'3 abc'
    """
    return b"%d %s" % (len(raw), raw)


def message(transition: Transition, sender: str) -> bytes:
    """The RFC 5424 message of a transition: header, no structured data, CEF."""
    alert = transition.alert
    level = 6 if transition.action is Action.CLEAR else LEVELS[alert.severity]
    at = rfc3339(transition.time_us)
    head = f"<{FACILITY * 8 + level}>1 {at} {sender} lanner - {alert.event.value} - "
    return (head + cef(transition)).encode("utf-8", "backslashreplace")


def cef(transition: Transition) -> str:
    """The alert in ArcSight's Common Event Format, version 0; ids from logs are made harmless first."""
    alert = transition.alert
    level = 1 if transition.action is Action.CLEAR else CEF_LEVELS[alert.severity]
    head = ("CEF:0", "Lanner", "lanner", version("lanner"), alert.event.value, title(alert), str(level))
    pairs: list[tuple[str, object]] = [
        ("rt", transition.time_us // 1000), ("externalId", alert.alert_id), ("act", transition.action.value),
        ("cat", alert.family.value), ("start", alert.opened_us // 1000), ("end", alert.updated_us // 1000), ("cnt", 1),
    ]  # fmt: skip
    if alert.subject.kind == "principal":
        pairs.append(("suser", shown(alert.subject.id)))
    labelled = (
        ("cs1", "model", shown(alert.model)),
        ("cs2", "subject", f"{alert.subject.kind}:{shown(alert.subject.id)}"),
        ("cs3", "techniques", " ".join(alert.techniques)),
        ("cs4", "environment", shown(alert.environment)),
        ("cs5", "detector", shown(alert.detector)),
        ("cs6", "customer", shown(alert.customer or "")),
        ("cn1", "n", alert.n),
        ("cn2", "seq", alert.seq),
        ("cfp1", "statistic", finite(alert.statistic)),
        ("cfp2", "threshold", finite(alert.threshold)),
    )
    for key, label, value in labelled:
        if value not in (None, ""):
            pairs += [(f"{key}Label", label), (key, value)]
    if alert.page is not None:
        pairs.append(("request", alert.page))
    pairs.append(("msg", alert.text))
    return "|".join(_header(word) for word in head) + "|" + _extension(pairs)


def _header(word: str) -> str:
    r"""A word of the header: pipe and backslash escaped, one line.

    >>> _header("a|b\\c\nd")
    'a\\|b\\\\c d'
    """
    return re.sub(r"\s", " ", word.replace("\\", "\\\\").replace("|", "\\|"))


def _extension(pairs: Iterable[tuple[str, object]]) -> str:
    r"""Keys and values: equals sign and backslash escaped, line ends written as \n.

    >>> _extension([("msg", "a=b\\c\nd|e"), ("cn1", 3)])
    'msg=a\\=b\\\\c\\nd|e cn1=3'
    """
    said = []
    for key, value in pairs:
        text = str(value).replace("\\", "\\\\").replace("=", "\\=")
        said.append(f"{key}=" + "\\n".join(text.splitlines()))
    return " ".join(said)
