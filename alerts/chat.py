"""Chat and mail through Apprise: one sink is one Apprise address.

Delivery: at least once. It keeps nothing, so there is nothing to read back; open, update and clear are messages of their
own. Apprise tells only that it failed; the status of HTTP or SMTP is taken from what it logs meanwhile.
"""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass, field
from typing import Any, Final

import apprise

from alerts.base import SinkRejected, SinkUnavailable, SinkUnknown
from alerts.text import title
from monitor.errors import ConfigError, Mistake
from monitor.model import Action, Severity, Transition

KINDS: Final = {
    Severity.WARNING: apprise.NotifyType.INFO, Severity.MINOR: apprise.NotifyType.WARNING,
    Severity.MAJOR: apprise.NotifyType.WARNING, Severity.CRITICAL: apprise.NotifyType.FAILURE,
}  # fmt: skip
LATER: Final = frozenset({408, 425, 429})
_HTTP: Final = re.compile(r"error=(\d{3})\b")
_SMTP: Final = re.compile(r"\((\d{3}), b['\"]|was refused: (\d{3})\b")  # as smtplib's errors and Apprise write it
_PASSING: Final = re.compile(r"rate_?limit|timeout|timed out|unavailable|internal_error|fatal_error", re.IGNORECASE)
_LOG: Final = logging.getLogger("apprise")
_LOG.setLevel(logging.DEBUG)  # what a mail server answered is told there only
_LOG.propagate = False  # addresses and payloads hold tokens: nobody else may read along
_LOG.addHandler(logging.NullHandler())
_NEAR: Final = frozenset({"dbus", "gnome", "glib", "kde", "macosx", "qt", "windows", "syslog"})  # desktops


@dataclass(frozen=True)
class Chat:
    """Where `target` points: an Apprise URL such as slack://..., msteams://..., mailtos://..., json://...; a secret."""

    name: str
    target: str = field(repr=False)
    timeout_s: float = 5.0

    def __post_init__(self) -> None:
        made = None if self.target.split(":", 1)[0] in _NEAR else apprise.Apprise.instantiate(self.target)
        if made is None:
            raise ConfigError([Mistake(f"sinks.{self.name}", None, "its target is no address that Apprise knows")])

    def send(self, transition: Transition, *, timeout_s: float) -> None:
        """Send one message; raises what alerts.base declares, never with the address, which is a secret."""
        channel: Any = apprise.Apprise.instantiate(self.target)
        limit_s = min(timeout_s, self.timeout_s)
        channel.socket_connect_timeout = channel.socket_read_timeout = limit_s
        channel.redirects = False
        alert = transition.alert
        cleared = transition.action is Action.CLEAR
        said = _Said()
        _LOG.addHandler(said)
        try:
            sent = channel.notify(
                title=harmless(("CLEARED " if cleared else "") + title(alert)),
                body=harmless(alert.text),
                notify_type=apprise.NotifyType.SUCCESS if cleared else KINDS[alert.severity],
                body_format=apprise.NotifyFormat.TEXT,
            )
        except Exception as error:  # plug-ins raise what their libraries raise; the message may hold the address
            raise SinkUnknown(f"{type(error).__name__} in the channel") from None
        finally:
            _LOG.removeHandler(said)
        if not sent:
            raise verdict(said.http, said.smtp, passing=said.passing)


def verdict(http: int | None, smtp: int | None, *, passing: bool) -> Exception:
    """What a channel that did not take a message meant. `passing`: it spoke of limits, time-outs or trouble of its own.

    Mail servers say 4xx for later and 5xx for never, web servers the other way round. Some chats answer 200 with a
    refusal in their own words (no such channel, an invalid token), which no retry mends.

    >>> [type(verdict(h, s, passing=False)).__name__ for h, s in ((403, None), (503, None), (None, 550), (None, 451), (200, None))]
    ['SinkRejected', 'SinkUnknown', 'SinkRejected', 'SinkUnavailable', 'SinkRejected']
    """
    if smtp is not None:
        said = f"the mail server answered {smtp}"
        return SinkRejected(said) if smtp >= 500 else SinkUnavailable(said)
    if http is None:
        return SinkUnavailable("the channel does not answer or does not take the message")
    said = f"the channel answered {http}"
    if http >= 500:
        return SinkUnknown(said)
    later = 300 <= http < 400 or http in LATER or (http < 300 and passing)
    return SinkUnavailable(said) if later else SinkRejected(said)


def harmless(text: str) -> str:
    """Nobody is called by name and nothing can be clicked, whoever chose the names in a text.

    >>> harmless("client @everyone on https://evil.example")
    'client ＠everyone on https[:]//evil.example'
    """
    return text.replace("@", "＠").replace("://", "[:]//")


class _Said(logging.Handler):
    """The statuses that Apprise logs in this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.http: int | None = None
        self.smtp: int | None = None
        self.passing = False
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> Any:
        if record.thread != self._thread:
            return
        text = record.getMessage()
        if found := _HTTP.search(text):
            self.http = int(found[1])
        if text.startswith(("Socket Exception", "SMTP recipient")) and (found := _SMTP.search(text)):
            self.smtp = int(found[1] or found[2])
        self.passing = self.passing or (text.startswith("Response Details") and bool(_PASSING.search(text)))
