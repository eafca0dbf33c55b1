"""The kinds of sinks. Adding one is one file, one line here and one of its keys in monitor.config.

Each kind is imported when a configuration names it: most bring a client library of their own.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from alerts.base import Sink
from monitor.config import Config, SinkConfig
from monitor.errors import ConfigError, Mistake


def _alerta(name: str, sink: SinkConfig, config: Config) -> Sink:
    from alerts.alerta import Alerta

    url, key = _text(name, "url", sink.url), _secret(name, "key", sink, config)
    return Alerta(name, url, key, timeout_s=sink.timeout, allow_insecure=sink.allow_insecure)


def _apprise(name: str, sink: SinkConfig, config: Config) -> Sink:
    from alerts.chat import Chat

    return Chat(name, _secret(name, "target", sink, config), timeout_s=sink.timeout)


def _console(name: str, sink: SinkConfig, config: Config) -> Sink:
    from alerts.console import Console

    return Console(name)


def _kafka(name: str, sink: SinkConfig, config: Config) -> Sink:
    from alerts.kafka import KafkaTopic

    options: dict[str, Any] = dict(sink.options)
    for key in ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile"):
        if key in options:
            options[key] = str(config.folder / str(options[key]))
    if sink.password is not None or sink.password_file is not None:
        of = "sasl_plain_password" if options.get("sasl_mechanism") else "ssl_password"
        options[of] = _secret(name, "password", sink, config)
    topic, bootstrap = _text(name, "topic", sink.topic), _text(name, "bootstrap", sink.bootstrap)
    return KafkaTopic(name, topic, bootstrap, options, timeout_s=sink.timeout)


def _memory(name: str, sink: SinkConfig, config: Config) -> Sink:
    from alerts.memory import MemorySink

    return MemorySink(name)


def _ocsf(name: str, sink: SinkConfig, config: Config) -> Sink:
    from alerts.ocsf import Webhook

    verify = True if sink.ca_file is None else str(config.path(sink.ca_file))
    url, key = _text(name, "url", sink.url), _secret(name, "key", sink, config)
    return Webhook(name, url, key, sink.hosts, timeout_s=sink.timeout, verify=verify)


def _syslog(name: str, sink: SinkConfig, config: Config) -> Sink:
    from alerts.syslog import Syslog, tls

    host, _, port = _text(name, "address", sink.address).rpartition(":")
    files = [None if f is None else config.path(f) for f in (sink.ca_file, sink.cert_file)]
    try:
        context = tls(files[0], files[1]) if sink.transport == "tls" else None
    except OSError as error:
        raise ConfigError([Mistake(f"sinks.{name}", None, f"ca_file or cert_file: {error}")]) from error
    own = socket.gethostname()
    sender = own if own.isascii() and own.isprintable() and " " not in own else "-"
    return Syslog(name, host.strip("[]"), int(port), context, sink.timeout, sender or "-")


SINKS: Final[Mapping[str, Callable[[str, SinkConfig, Config], Sink]]] = {
    "alerta": _alerta,
    "apprise": _apprise,
    "console": _console,
    "kafka": _kafka,
    "memory": _memory,
    "ocsf": _ocsf,
    "syslog": _syslog,
}


def sinks(config: Config) -> dict[str, Sink]:
    """The sinks that a configuration names, ready to send. ConfigError when one lacks what it needs."""
    return {name: SINKS[sink.type](name, sink, config) for name, sink in config.sinks.items()}


def _text(name: str, field: str, value: str | None) -> str:
    if not value:
        raise ConfigError([Mistake(f"sinks.{name}", None, f"`{field}` is missing")])
    return value


def _secret(name: str, field: str, sink: SinkConfig, config: Config) -> str:
    """A secret that stands in the configuration or in its file."""
    given, file = getattr(sink, field), getattr(sink, f"{field}_file")
    value = given.get_secret_value() if given is not None else ""
    if not value and file is not None:
        value = config.path(file).read_text(encoding="utf-8").strip()
    return _text(name, f"{field}` or `{field}_file", value)
