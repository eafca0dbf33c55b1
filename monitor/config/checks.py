"""Checks between the parts of a configuration that no single field can make."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from monitor.config.tree import Config, ModelConfig, Reference, SinkConfig, Source
from monitor.model import Family, parse_time_us

Key = tuple[str | int, ...]
Found = Iterator[tuple[Key, str]]

METRICS_PORTS: Final = 3  # collect, schedule and web: `server.metrics_bind` and the two ports after it
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
# Which keys of a source belong to which type; the others belong to all.
_ONLY: Final = {
    "kafka": (
        "topic",
        "bootstrap",
        "group",
        "assign",
        "start",
        "session_timeout",
        "options",
        "password",
        "password_file",
    ),
    "files": ("paths", "follow"),
    "http": ("bind", "token", "token_file"),
}
_NEEDED: Final = {"kafka": ("bootstrap", "topic"), "files": ("paths",), "http": ()}
# Keys of sinks beside those of every sink: which belong to a type, and which it needs.
_EVERY_SINK: Final = frozenset({"type", "min_severity", "timeout", "per_minute"})
_SINK_KEYS: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "alerta": (("url", "key", "allow_insecure"), ("url", "key")),
    "apprise": (("target",), ("target",)),
    "console": ((), ()),
    "kafka": (("topic", "bootstrap", "options", "password"), ("topic", "bootstrap")),
    "memory": ((), ()),
    "ocsf": (("url", "key", "hosts", "ca_file"), ("url", "key", "hosts")),
    "syslog": (("address", "transport", "ca_file", "cert_file"), ("address",)),
}
ADDRESS: Final = r"https?://[\w.:\[\]-]+(/[\w./~-]*)?"  # what may stand in alerts as it is
_LOOPBACK: Final = re.compile(r"127(\.\d+){3}|localhost|\[::1\]")


def cross_check(config: Config, data: Mapping[str, Any]) -> Iterator[tuple[Key, str]]:
    """(key, sentence) for every mistake. `data` is what was written: names in it count as known even when broken."""
    yield from _names(data)
    yield from _references(config, data)
    for name, source in config.sources.items():
        yield from _source(name, source, data)
    for name, sink in config.sinks.items():
        yield from _sink(config, name, sink, data["sinks"][name])
    for name, model in config.models.items():
        if model.reference is not None:
            yield from _reference(config, name, model.reference)
        for i, group in enumerate(model.fairness.groups if model.fairness else ()):
            if "," in group:
                key: Key = ("models", name, "fairness", "groups", i)
                yield key, f"{_dotted(key)}: a feature whose name holds a comma cannot make groups"
        for what in ("training", "canaries", "principals"):
            yield from _file(config, ("models", name, what), getattr(model, what))
        yield from _segments(name, model)
    for key, url in ((("server", "url"), config.server.url), (("alerting", "runbooks"), config.alerting.runbooks)):
        if url is not None and not re.fullmatch(ADDRESS if key[0] == "server" else f"{ADDRESS}|[\\w./-]+", url):
            yield key, f"{_dotted(key)}: must be an address such as https://lanner.example.org"
    yield from _calendars(config)
    yield from _addresses(config)
    if config.store.database is not None:
        url = config.store.database.get_secret_value()
        if not re.match(r"(sqlite|postgresql\+psycopg)://", url):
            yield ("store", "database"), "store.database: must begin with sqlite:// or postgresql+psycopg://"


def unknown(key: Key, name: str, what: str, known: Iterable[str]) -> tuple[Key, str]:
    """The sentence for a name that nothing in the configuration bears."""
    known = sorted(known)
    near = get_close_matches(name, known, 1)
    hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(known)}" if known else "there are none"
    return key, f"{_dotted(key)}: there is no {what} `{name}`; {hint}"


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))


def nameable(name: str) -> bool:
    """Whether something in a configuration may be called so.

    >>> nameable("card-fraud"), nameable(" x"), nameable("a" + chr(10) + "b")
    (True, False, False)
    """
    return 0 < len(name) <= 200 and name.isprintable() and name == name.strip()


def _names(data: Mapping[str, Any]) -> Found:
    for group in ("models", "sources", "monitors", "sinks", "calendars"):
        entries = data.get(group)
        for name in entries if isinstance(entries, dict) else ():
            if not nameable(name):
                yield (group, name), f"{group}: a name has 1 to 200 printable characters and no space around it"


def _known(data: Mapping[str, Any], group: str) -> list[str]:
    entries = data.get(group)
    return list(entries) if isinstance(entries, dict) else []


def _references(config: Config, data: Mapping[str, Any]) -> Found:
    """What one section names must stand in the other."""
    models, sinks = _known(data, "models"), _known(data, "sinks")
    for name, monitor in config.monitors.items():
        if monitor.model not in models:
            yield unknown(("monitors", name, "model"), monitor.model, "model", models)
        if monitor.window <= 0:
            yield ("monitors", name, "window"), f"monitors.{name}.window: must be more than 0"
    yield from _same(config)
    for name, model in config.models.items():
        if model.calendar is not None and model.calendar not in config.calendars:
            yield unknown(("models", name, "calendar"), model.calendar, "calendar", config.calendars)
    for i, route in enumerate(config.routes):
        for what, names, known in (
            ("sink", route.sinks, sinks),
            ("model", route.models, models),
            ("family", route.families, [f.value for f in Family]),
            ("customer", route.customers, sorted({m.customer for m in config.models.values() if m.customer})),
        ):
            field = {"sink": "sinks", "model": "models", "family": "families", "customer": "customers"}[what]
            for j, name in enumerate(names):
                if name not in known:
                    yield unknown(("routes", i, field, j), name, what, known)
    for field, names in (("escalate_to", config.alerting.escalate_to), ("remind_to", config.alerting.remind_to)):
        for j, name in enumerate(names):
            if name not in sinks:
                yield unknown(("alerting", field, j), name, "sink", sinks)
    decoders = data.get("decoders")
    maps = decoders.get("field_map") if isinstance(decoders, dict) else None
    for name, source in config.sources.items():
        if source.decoder == "field_map" and name not in (maps or {}):
            key = ("sources", name, "decoder")
            yield key, f"{_dotted(key)}: decoders.field_map has no entry `{name}` that says where the fields stand"
        if source.model is not None and source.model not in models:
            yield unknown(("sources", name, "model"), source.model, "model", models)


def _same(config: Config) -> Found:
    """Two monitors that judge the same windows by the same detector would spend its part of the budget twice."""
    first: dict[tuple[str, str, float], str] = {}
    for name, m in config.monitors.items():
        other = first.setdefault((m.model, m.detector, m.window), name) if m.enabled else name
        if other != name:
            text = f"{m.detector} judges these windows already in monitors.{other}: give one another window, or leave it out"
            yield ("monitors", name, "detector"), f"monitors.{name}: {text}"


def _source(name: str, source: Source, data: Mapping[str, Any]) -> Found:
    key: Key = ("sources", name)
    written = data["sources"][name]
    for kind, fields in _ONLY.items():
        for field in fields:
            if kind != source.type and field in written and f"{field}_file" not in written:
                yield (*key, field), f"sources.{name}.{field}: is for sources of type {kind}"
    for field in _NEEDED[source.type]:
        if not written.get(field):
            yield key, f"sources.{name}: `{field}` is missing; a source of type {source.type} needs it"
    for option in source.options:
        if re.search(r"password|secret|token", option):
            yield (*key, "options", option), f"sources.{name}.options.{option}: give it as password or password_file"
    if source.timezone is not None:
        yield from _zone((*key, "timezone"), source.timezone)
    if source.type == "http" and not written.get("token") and not _LOOPBACK.fullmatch(source.bind.rpartition(":")[0]):
        yield key, f"sources.{name}: `token` or `token_file` is missing; without one only loopback may be bound"


def _sink(config: Config, name: str, sink: SinkConfig, written: Mapping[str, Any]) -> Found:
    key: Key = ("sinks", name)
    mine, needed = _SINK_KEYS[sink.type]
    for field in sorted(set(written) - _EVERY_SINK - set(mine)):
        if (
            getattr(sink, field)
            and f"{field}_file" not in written
            and not (field.endswith("_file") and field.removesuffix("_file") in mine)
        ):
            kinds = ", ".join(kind for kind, (fields, _) in _SINK_KEYS.items() if field.removesuffix("_file") in fields
                              or field in fields)  # fmt: skip
            yield (*key, field), f"sinks.{name}.{field}: is for sinks of type {kinds}"
    for field in needed:
        if not written.get(field):
            twin = f" or `{field}_file`" if f"{field}_file" in type(sink).model_fields else ""
            yield key, f"sinks.{name}: `{field}`{twin} is missing; a sink of type {sink.type} needs it"
    url = sink.url or ""
    if sink.type == "alerta" and url and not re.match(r"https?://[^/\s]+", url):
        yield (*key, "url"), f"sinks.{name}.url: write the http(s) address of Alerta's API"
    if sink.type == "ocsf" and url:
        host = urlsplit(url).hostname or ""
        if not url.startswith("https://") and not _LOOPBACK.fullmatch(host):
            yield (*key, "url"), f"sinks.{name}.url: must begin with https://"
        if sink.hosts and host not in sink.hosts:
            yield (*key, "url"), f"sinks.{name}.url: its host is not among `hosts`"
    if sink.address is not None and not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}", sink.address):
        yield (*key, "address"), f"sinks.{name}.address: write host:port, for example siem.example.org:6514"
    if (
        sink.type == "syslog"
        and sink.transport == "tcp"
        and not _LOOPBACK.fullmatch((sink.address or "").rpartition(":")[0])
    ):
        yield (*key, "transport"), f"sinks.{name}.transport: tcp is for loopback only; use tls"
    for option in sink.options:
        if re.search(r"password|secret|token", option):
            yield (*key, "options", option), f"sinks.{name}.options.{option}: give it as password or password_file"
    for field in ("ca_file", "cert_file"):
        yield from _file(config, (*key, field), getattr(sink, field))


def _reference(config: Config, model: str, reference: Reference) -> Found:
    key: Key = ("models", model, "reference")
    if (reference.file, reference.table, reference.since, reference.learn).count(None) != 3:
        yield key, f"{_dotted(key)}: give one of file, table, since (with until) and learn"
    if reference.until is not None and reference.since is None:
        yield (*key, "until"), f"{_dotted(key)}.until: needs since"
    times = {}
    for field in ("since", "until"):
        text = getattr(reference, field)
        if text is not None:
            try:
                times[field] = parse_time_us(text)
            except ValueError:
                yield (*key, field), f"{_dotted(key)}.{field}: write a time with its zone, as 2026-11-22T00:00:00Z"
    if len(times) == 2 and times["since"] >= times["until"]:
        yield (*key, "until"), f"{_dotted(key)}.until: must be later than since"
    if reference.learn is not None and reference.learn <= 0:
        yield (*key, "learn"), f"{_dotted(key)}.learn: must be more than 0"
    yield from _file(config, (*key, "file"), reference.file)
    yield from _file(config, (*key, "table"), reference.table)


def _file(config: Config, key: Key, path: Path | None) -> Found:
    if path is not None and not config.path(path).exists():
        yield key, f"{_dotted(key)}: there is no file {path}"


def _zone(key: Key, name: str) -> Found:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        yield key, f"{_dotted(key)}: {name!r} is not a time zone; write for example Asia/Qatar or UTC"


def _segments(model: str, known: ModelConfig) -> Found:
    """A condition has a name, names differ, and a feature is cut by values or by numbers."""
    names: set[str] = set()
    for i, s in enumerate(known.named_segments):
        key: Key = ("models", model, "segments", i)
        ranged = s.at_least is not None or s.below is not None
        if s.name is None and (s.values or ranged):
            yield key, f"{_dotted(key)}: give the condition a `name`; incidents call it by that"
        if s.name is not None and not (s.values or ranged):
            yield key, f"{_dotted(key)}: needs `values`, `at_least` or `below`, or no name"
        if s.values and ranged:
            yield key, f"{_dotted(key)}: has both values and numbers; make it two segments"
        if s.at_least is not None and s.below is not None and s.at_least >= s.below:
            yield key, f"{_dotted(key)}: `at_least` must be less than `below`"
        if (called := s.name or s.feature) in names:
            yield key, f"{_dotted(key)}: there is another segment `{called}`"
        names.add(called)


def _calendars(config: Config) -> Found:
    for name, calendar in config.calendars.items():
        yield from _zone(("calendars", name, "timezone"), calendar.timezone)
        for i, day in enumerate(calendar.weekend):
            if day not in DAYS:
                yield (
                    ("calendars", name, "weekend", i),
                    f"calendars.{name}.weekend: {day!r} is none of {', '.join(DAYS)}",
                )
        for i, day in enumerate(calendar.holidays):
            try:
                date.fromisoformat(day)
            except ValueError:
                key = ("calendars", name, "holidays", i)
                yield key, f"calendars.{name}.holidays: {day!r} is not a day; write for example 2026-12-18"


def _addresses(config: Config) -> Found:
    """host:port, and no two servers of ours on one of them."""
    bound: dict[str, str] = {}
    wanted: list[tuple[Key, str | None]] = [
        (("server", f), getattr(config.server, f)) for f in ("bind", "metrics_bind")
    ]
    wanted += [(("sources", n, "bind"), s.bind) for n, s in config.sources.items() if s.type == "http"]
    for key, address in wanted:
        if address is None:
            continue
        match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^:\s]+):(\d{1,5})", address)
        more = METRICS_PORTS - 1 if key[-1] == "metrics_bind" else 0
        if not match or int(match[2]) + more > 65535:
            yield key, f"{_dotted(key)}: {address!r} is not an address; write host:port, for example 127.0.0.1:8080"
        elif int(match[2]):
            taken = {f"{match[1]}:{port}" for port in range(int(match[2]), int(match[2]) + more + 1)}
            for double in sorted(taken & bound.keys()):
                yield key, f"{_dotted(key)}: {double} is already the address of {bound[double]}"
            bound |= dict.fromkeys(taken, _dotted(key))
