"""The configuration tree: parsed once, frozen, every unknown key an error.

Precedence: command line flag > environment `LANNER_SECTION__KEY` > secret files > the YAML file > defaults.
`load` collects all mistakes at once, each with file and line, and raises one ConfigError.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

_UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_UNITS_B = {"b": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3, "kb": 1000, "mb": 1000**2, "gb": 1000**3}


def seconds(value: object) -> float:
    """A duration such as "15m" as seconds.

    >>> seconds("15m"), seconds("2s"), seconds(3)
    (900.0, 2.0, 3.0)
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*", str(value))
    if not match:
        raise ValueError(f"{value!r} is not a duration; write for example 30s, 15m, 24h or 30d")
    return float(match[1]) * _UNITS_S[match[2]]


def size_bytes(value: object) -> int:
    """A size such as "1MiB" as bytes.

    >>> size_bytes("1MiB")
    1048576
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"\s*(\d+)\s*([a-zA-Z]+)\s*", str(value))
    if not match or match[2].lower() not in _UNITS_B:
        raise ValueError(f"{value!r} is not a size; write for example 64KiB or 1MiB")
    return int(match[1]) * _UNITS_B[match[2].lower()]


def rate(value: object) -> float:
    """A false-alarm budget such as "1/30d" as allowed alarms per second.

    >>> round(1 / rate("1/30d"))
    2592000
    """
    if isinstance(value, float):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*/\s*(\S+)\s*", str(value))
    if not match or float(match[1]) <= 0:
        raise ValueError(f"{value!r} is not a budget; write alarms per time, for example 1/30d")
    return float(match[1]) / seconds(match[2])


Duration = Annotated[float, BeforeValidator(seconds)]  # seconds
Size = Annotated[int, BeforeValidator(size_bytes)]  # bytes
Rate = Annotated[float, BeforeValidator(rate)]  # alarms per second
SeverityName = Literal["warning", "minor", "major", "critical"]


class Section(BaseModel):
    """Base of every section: frozen, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Budgets(Section):
    """False alarms that each model may cost its readers."""

    drift: Rate = Field(default="1/30d", validate_default=True)
    attacks: Rate = Field(default="1/30d", validate_default=True)


class FieldMap(Section):
    """A decoder for house formats: where each field stands in the message (JSON Pointer, header:X, key, topic:REGEX, const:V)."""

    model: str | dict[str, Any]
    event_time: str | dict[str, Any]
    request_id: str | dict[str, Any] | None = None
    client_request_id: str | dict[str, Any] | None = None
    model_version: str | dict[str, Any] | None = None
    principal: str | dict[str, Any] | None = None
    credential_id: str | dict[str, Any] | None = None
    source_ip: str | dict[str, Any] | None = None
    session_id: str | dict[str, Any] | None = None
    features: str | dict[str, Any] | None = None
    prediction: str | dict[str, Any] | None = None
    scores: str | dict[str, Any] | None = None
    class_names: str | list[str] | dict[str, Any] | None = None
    returned: str | None = None
    latency_ms: str | dict[str, Any] | None = None
    status: str | dict[str, Any] | None = None
    feedback: dict[str, Any] | None = None


class Decoders(Section):
    """Named decoders that need configuration."""

    field_map: dict[str, FieldMap] = {}
    kserve: dict[str, dict[str, Any]] = {}


class Source(Section):
    """One place logs come from."""

    type: Literal["kafka", "files", "http"]
    decoder: str = "native"  # native, kserve, field_map (the entry of decoders with this source's name)
    framing: Literal["none", "auto"] = "auto"
    topic: str | None = None
    bootstrap: str | None = None  # kafka: host:port,host:port
    group: str = "lanner"
    assign: tuple[int, ...] | None = None  # kafka: fixed partitions instead of a consumer group
    start: Literal["earliest", "latest"] = "earliest"
    session_timeout: Duration = 45.0
    options: dict[str, Any] = {}  # kafka: passed through to the client (security_protocol, ssl_cafile, sasl_mechanism ...)
    password: SecretStr | None = None
    password_file: Path | None = None
    paths: tuple[str, ...] = ()  # files: glob patterns
    follow: bool = True  # files: go on reading what is appended
    bind: str = "127.0.0.1:8081"  # http
    token: SecretStr | None = None
    token_file: Path | None = None
    timezone: str | None = None  # for naive times
    model: str | None = None  # for formats that do not name one
    principal_header: str | None = None
    flush_rows: int = Field(default=20_000, ge=1)
    flush: Duration = Field(default=2.0, gt=0)
    lateness: Duration = 300.0
    max_message: Size = 1 << 20
    max_poison: float = Field(default=0.5, gt=0, le=1)
    pairing_timeout: Duration = 900.0


class Reference(Section):
    """What normal looks like: a file of events, a time range of the event log, or `learn`."""

    file: Path | None = None
    since: str | None = None
    until: str | None = None
    learn: Duration | None = None


class Feature(Section):
    """One input of a model; what is not said here is learnt from the reference."""

    type: Literal["number", "category"] | None = None
    unit: str | None = None
    label: Literal["C0", "C1", "C2", "C3"] | None = None


class ModelConfig(Section):
    """One watched model."""

    reference: Reference | None = None
    owner: str | None = None
    customer: str | None = None
    tier: int = Field(default=2, ge=1, le=3)
    classes: tuple[str, ...] = ()
    features: dict[str, Feature] = {}
    training: Path | None = None
    canaries: Path | None = None
    principals: Path | None = None
    runbook: str | None = None


class Monitor(Section):
    """One detector on one model; models get the defaults of every family without any of these."""

    model: str
    detector: str
    params: dict[str, Any] = {}
    window: Duration = 3600.0
    severity: SeverityName | None = None
    enabled: bool = True


class SinkConfig(Section):
    """One place alerts go to."""

    type: Literal["alerta", "console", "memory"]
    url: str | None = None
    key: SecretStr | None = None
    key_file: Path | None = None
    min_severity: SeverityName = "warning"
    timeout: Duration = 5.0
    allow_insecure: bool = False  # alerta: accept a server that runs with unsafe defaults (demo only)


class Route(Section):
    """Which alerts go to which sinks; without routes every alert goes to every sink."""

    sinks: tuple[str, ...]
    models: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    min_severity: SeverityName = "warning"


class StoreConfig(Section):
    """Where state and events live."""

    path: Path = Path("lanner-data")  # event log, references, pseudonym key; SQLite file unless `database`
    database: SecretStr | None = None  # SQLAlchemy URL, e.g. postgresql+psycopg://...
    database_file: Path | None = None  # a file that holds that URL
    events: str | None = None  # object-store URL of the event log; default <path>/events


class Privacy(Section):
    """What is stored of callers."""

    principals: Literal["hmac", "plain"] = "hmac"
    key_file: Path | None = None  # default <store.path>/pseudonym.key, made on first use with mode 0600


class Schedule(Section):
    """How often things happen and how late events may come."""

    tick: Duration = Field(default=2.0, gt=0)
    publish: Duration = Field(default=2.0, gt=0)
    lateness: Duration = 300.0
    idle: Duration = 60.0  # a partition read to its end and silent this long no longer holds the watermark
    lease: Duration = 30.0
    catch_up: Duration = 7 * 86400.0  # windows missed for longer are recorded as gaps


class Server(Section):
    """The page and the API."""

    bind: str = "127.0.0.1:8080"
    metrics_bind: str | None = None
    log_format: Literal["console", "json"] = "console"


class Calendar(Section):
    """Which days count as what, for seasons."""

    timezone: str = "UTC"
    weekend: tuple[str, ...] = ("sat", "sun")
    holidays: tuple[str, ...] = ()


class Config(Section):
    """The whole configuration; `folder` is where its file stands, and relative paths start there."""

    environment: str = "Production"
    clock: Literal["wall", "log"] = "wall"
    models: dict[str, ModelConfig] = Field(min_length=1)
    budgets: Budgets = Budgets()
    sources: dict[str, Source] = {}
    decoders: Decoders = Decoders()
    monitors: dict[str, Monitor] = {}
    sinks: dict[str, SinkConfig] = {}
    routes: tuple[Route, ...] = ()
    store: StoreConfig = StoreConfig()
    privacy: Privacy = Privacy()
    schedule: Schedule = Schedule()
    server: Server = Server()
    calendars: dict[str, Calendar] = {}
    folder: Path = Field(default=Path("."), exclude=True)

    def path(self, relative: Path) -> Path:
        """A path of the configuration, relative to its file."""
        return relative if relative.is_absolute() else self.folder / relative


