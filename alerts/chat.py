"""Chat and mail through Apprise: one sink is one Apprise address.

Delivery: at least once. It keeps nothing, so there is nothing to read back; open, update and clear are messages of their
own. Apprise tells only that it failed; the HTTP status is taken from what it logs meanwhile.
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
_STATUS: Final = re.compile(r"error=(\d{3})\b")
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
        log = logging.getLogger("apprise")
        log.addHandler(said)
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
            log.removeHandler(said)
        if not sent:
            _judge(said.status)


def _judge(status: int | None) -> None:
    if status is None:
        raise SinkUnavailable("the channel does not answer or does not take the message")
    what = f"the channel answered {status}"
    if status < 400 or status in LATER:
        raise SinkUnavailable(what)
    if status >= 500:
        raise SinkUnknown(what)
    raise SinkRejected(what)


def harmless(text: str) -> str:
    """Nobody is called by name and nothing can be clicked, whoever chose the names in a text.

    >>> harmless("client @everyone on https://evil.example")
    'client ＠everyone on https[:]//evil.example'
    """
    return text.replace("@", "＠").replace("://", "[:]//")


class _Said(logging.Handler):
    """The HTTP status that Apprise logs in this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.status: int | None = None
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> Any:
        found = _STATUS.search(record.getMessage()) if record.thread == self._thread else None
        if found:
            self.status = int(found[1])
