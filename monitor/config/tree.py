"""The configuration tree: frozen, every unknown key an error, every default safe. Durations are seconds, sizes bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr

from monitor.config.fields import Duration, Rate, Section, SeverityName, Size
from monitor.config.segments import Listed, Segments
from monitor.config.severity import Severities


class Budgets(Section):
    """False alarms that each model may cost its readers."""

    drift: Rate = Field(default="1/30d", validate_default=True)
    """Over all features and all drift, quality and performance detectors of a model."""
    attacks: Rate = Field(default="1/30d", validate_default=True)
    """Over all callers of a model."""


class FieldMap(Section):
    """A decoder for house formats: where each field stands in the message.

    A JSON Pointer such as /payload/user, header:NAME, key, topic:REGEX or const:VALUE.
    """

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
    sampling_fraction: str | dict[str, Any] | None = None
    """The part of the traffic that was logged, above 0 and at most 1, where the log is a sample."""
    status: str | dict[str, Any] | None = None
    feedback: dict[str, Any] | None = None


class Decoders(Section):
    """Named decoders that need configuration."""

    field_map: dict[str, FieldMap] = {}
    kserve: dict[str, dict[str, Any]] = {}


class Source(Section):
    """One place logs come from."""

    type: Literal["kafka", "files", "http"]
    decoder: str = "native"
    """native, kserve, marks, or field_map (the entry of decoders.field_map with this source's name)."""
    framing: Literal["none", "auto"] = "auto"
    """auto strips the Confluent schema prefix and unwraps CloudEvents; none leaves messages as they are."""
    topic: str | None = None
    """kafka: the topic."""
    bootstrap: str | None = None
    """kafka: host:port, or several with commas."""
    group: str = "lanner"
    """kafka: the consumer group."""
    assign: tuple[int, ...] | None = None
    """kafka: fixed partitions instead of a consumer group."""
    start: Literal["earliest", "latest"] = "earliest"
    """kafka: where to begin when the store knows no offset."""
    session_timeout: Duration = 45.0
    """kafka: a silent member of the group loses its partitions after this time."""
    options: dict[str, Any] = {}
    """kafka: passed to the client: security_protocol, ssl_cafile, sasl_mechanism, sasl_plain_username ..."""
    password: SecretStr | None = None
    """kafka: the SASL password."""
    password_file: Path | None = None
    """A file that holds the password."""
    paths: tuple[str, ...] = ()
    """files: glob patterns."""
    follow: bool = True
    """files: go on reading what is appended."""
    bind: str = "127.0.0.1:8081"
    """http: the address to listen on."""
    token: SecretStr | None = None
    """http: the bearer token that senders must show; without one only loopback may be bound."""
    token_file: Path | None = None
    """A file that holds the token."""
    timezone: str | None = None
    """The zone of times that name none, such as Asia/Qatar; without it they are dead letters."""
    model: str | None = None
    """The model of messages that name none."""
    principal_header: str | None = None
    """The message header that names the caller."""
    flush_rows: int = Field(default=20_000, ge=1)
    """Write after this many rows ..."""
    flush: Duration = Field(default=2.0, gt=0)
    """... or when the oldest row has waited this long."""
    lateness: Duration = 300.0
    """How late events may come and still count in their window."""
    max_message: Size = 1 << 20
    """Larger messages are dead letters."""
    max_poison: float = Field(default=0.5, gt=0, le=1)
    """Stop the source when more than this share of messages cannot be decoded."""
    pairing_timeout: Duration = 900.0
    """How long a request or response waits for its other half."""


class Reference(Section):
    """What normal looks like: a file of events, a table, a time range of the event log, or `learn`."""

    file: Path | None = None
    """JSONL or Parquet of events."""
    table: Path | None = None
    """Folder of a Delta table or of Parquet files, frozen when it is first read."""
    since: str | None = None
    """Beginning of a time range of the event log, RFC 3339."""
    until: str | None = None
    """End of that range; without it the reference ends when it is first read and holds 50 hours."""
    learn: Duration | None = None
    """Observe for this long, propose a reference, wait for a person to approve it."""


class Feature(Section):
    """One input of a model; what is not said here is learnt from the reference."""

    type: Literal["number", "category"] | None = None
    """number or category."""
    unit: str | None = None
    """Shown beside values, for example EUR."""
    label: Literal["C0", "C1", "C2", "C3"] | None = None
    """Privacy class, C0 public to C3 most sensitive."""


class Reports(Section):
    """Reports that are made by themselves, kept in the state store and listed on the page."""

    every: Duration = 7 * 86400.0
    """How often, in the log's time; 0 makes none."""
    keep: int = Field(default=12, ge=1)
    """So many of each kind; older ones are deleted."""
    evidently: bool = False
    """Also Evidently's report on a sample, some megabytes and a minute of CPU each."""


class FairnessConfig(Section):
    """Groups of people between whom outcomes are compared."""

    groups: tuple[str, ...] = Field(min_length=1)
    """Features whose values are groups; a number makes three."""
    outcome: str | None = None
    """The predicted class that counts as the outcome; without it the rarer of two."""


class ModelConfig(Section):
    """One watched model."""

    reference: Reference | None = None
    """What normal looks like."""
    owner: str | None = None
    """Who answers for the model; named in alerts and reports."""
    customer: str | None = None
    """Line of business, for sinks that separate them."""
    tier: int = Field(default=2, ge=1, le=3)
    """1 matters most; tier 1 raises severities, and two persons approve its references."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the scores, for logs that do not carry them."""
    features: dict[str, Feature] = {}
    """What is known of the inputs; the rest is learnt from the reference."""
    training: Path | None = None
    """Training rows, JSONL or Parquet of events: small changes of them are membership tests. Kept as keyed hashes only."""
    canaries: Path | None = None
    """JSONL of objects with `features`, made up: one sent by anybody but a declared health probe or batch job alarms."""
    principals: Path | None = None
    """YAML list of known callers: id pattern, kind, group, owner, profile, budget."""
    segments: Segments = ()
    """Parts that are judged by themselves, at most 12: features, or {name, feature, values} or {name, feature, at_least, below};
    auto: those of the reference in which the model behaves differently.
    """
    context: Annotated[tuple[str, ...], Field(max_length=3)] = ()
    """Features whose mix may change without meaning anything: drift is what changes beyond it."""
    fairness: FairnessConfig | None = None
    """Groups between whom outcomes, and errors once labels come, are compared."""
    calendar: str | None = None
    """An entry of `calendars`; without one the only entry there is, else UTC with Saturday and Sunday off."""
    runbook: str | None = None
    """A link for whoever works on the alert."""
    reports: Reports = Reports()
    """The owner's reports."""

    @property
    def units(self) -> dict[str, str]:
        """Units of features, where they are known."""
        return {name: f.unit for name, f in self.features.items() if f.unit}

    @property
    def named_segments(self) -> Listed:
        """The segments that a person named."""
        return () if self.segments == "auto" else self.segments


class Monitor(Section):
    """One detector on one model; models get the defaults of every family without any of these."""

    model: str
    detector: str
    """A name that `lanner doctor` lists."""
    params: dict[str, Any] = {}
    """Parameters of the detector."""
    window: Duration = 3600.0
    """Length of the windows it judges."""
    severity: SeverityName | None = None
    """Severity of its alerts instead of the detector's own."""
    enabled: bool = True
    """false switches it off, also where it is a default."""


class SinkConfig(Section):
    """One place alerts go to."""

    type: Literal["alerta", "apprise", "console", "kafka", "memory", "ocsf", "syslog"]
    url: str | None = None
    """alerta: the address of its API; ocsf: the https address of the webhook."""
    key: SecretStr | None = None
    """alerta: an API key with the scopes write:alerts and write:heartbeats; ocsf: the secret that signs, 16 characters or more."""
    key_file: Path | None = None
    """A file that holds the key."""
    hosts: tuple[str, ...] = ()
    """ocsf: the only hosts that `url` may name."""
    address: str | None = None
    """syslog: host:port of the receiver."""
    transport: Literal["tls", "tcp"] = "tls"
    """syslog: tls, or tcp on loopback only."""
    ca_file: Path | None = None
    """ocsf, syslog: the only authorities that are trusted (PEM), instead of the system's."""
    cert_file: Path | None = None
    """syslog: this client's certificate and key (PEM), for receivers that ask for one."""
    topic: str | None = None
    """kafka: the topic of alert transitions; what follows is as for sources."""
    bootstrap: str | None = None
    options: dict[str, Any] = {}
    password: SecretStr | None = None
    password_file: Path | None = None
    target: SecretStr | None = None
    """apprise: one Apprise address, such as slack://... or mailtos://...; a secret, as it holds tokens."""
    target_file: Path | None = None
    """A file that holds the address."""
    per_minute: int | None = Field(default=None, ge=1)
    """At most so many deliveries a minute, the most urgent first; the rest waits, and only its newest states are sent."""
    min_severity: SeverityName = "warning"
    """Leave out what is less urgent."""
    timeout: Duration = 5.0
    """Longest wait for one delivery."""
    allow_insecure: bool = False
    """Alerta: accept a server that runs with unsafe defaults (demo only)."""


class Route(Section):
    """Which alerts go to which sinks; without routes every alert goes to every sink."""

    sinks: tuple[str, ...]
    models: tuple[str, ...] = ()
    """Only these models; empty means all."""
    families: tuple[str, ...] = ()
    """Only these families, such as drift or extraction; empty means all."""
    customers: tuple[str, ...] = ()
    """Only models of these customers; empty means all."""
    min_severity: SeverityName = "warning"


class Alerting(Section):
    """How alerts behave beyond their route."""

    severity: Severities = Severities()
    """What makes an incident more or less severe."""
    runbooks: str = "docs/runbooks"
    """Where the runbooks stand for those who read alerts: an address under which there is EVENT.md."""
    per_hour: int = Field(default=20, ge=1)
    """Incidents of one event on one model under major that are told in an hour; further ones are kept, and told as a number."""
    precision_floor: float = Field(default=0.2, ge=0, le=1)
    """A detector whose precision by verdicts is under this is put on report only; 0 switches it off."""
    precision_verdicts: int = Field(default=30, ge=1)
    """So many verdicts are needed before precision counts."""
    escalate: dict[SeverityName, Duration] = {}
    """Not acknowledged for so long, an incident is told to `escalate_to` as well: {critical: 15m, major: 1h}."""
    escalate_to: tuple[str, ...] = ()
    """Sinks that hear of what nobody acknowledged."""
    remind: Duration = Field(default=4 * 3600.0, gt=0)
    """How often `remind_to` are told again of what is open and not acknowledged."""
    remind_to: tuple[str, ...] = ()
    """Sinks that are reminded; consoles that keep state need no reminder."""


class Deadman(Section):
    """A switch elsewhere that pages when Lanner's requests stop."""

    url: SecretStr
    """Asked with GET as long as Lanner works and alerts get out."""
    every: Duration = Field(default=60.0, gt=0)
    """How often."""


class StoreConfig(Section):
    """Where state and events live."""

    path: Path = Path("lanner-data")
    """Event log, references, pseudonym key; SQLite file unless `database`."""
    database: SecretStr | None = None
    """SQLAlchemy URL, e.g. postgresql+psycopg://..."""
    database_file: Path | None = None
    """A file that holds that URL."""
    events: str | None = None
    """Object-store URL of the event log; default: the folder `events` in store.path."""


class Privacy(Section):
    """What is stored of callers."""

    principals: Literal["hmac", "plain"] = "hmac"
    """hmac: a keyed pseudonym of each caller is stored; plain: the name itself."""
    key_file: Path | None = None
    """Default: pseudonym.key in store.path, made on first use with mode 0600."""


class Schedule(Section):
    """How often things happen and how late events may come."""

    tick: Duration = Field(default=2.0, gt=0)
    """How often due windows are looked for."""
    publish: Duration = Field(default=2.0, gt=0)
    """How often recorded segments are published to the event log."""
    lateness: Duration = 300.0
    """How long after its end a window is judged."""
    idle: Duration = 60.0
    """A partition read to its end and silent this long no longer holds the watermark."""
    lease: Duration = 30.0
    """A process that is silent this long loses the models it works on."""
    catch_up: Duration = 7 * 86400.0
    """Windows missed for longer are recorded as gaps."""


class Server(Section):
    """The page and the API."""

    bind: str = "127.0.0.1:8080"
    url: str | None = None
    """Where people reach the page, for links in alerts: https://lanner.example.org."""
    metrics_bind: str | None = None
    """Where /metrics is served without login, nowhere when absent: collect at this port, schedule at the next, web after it."""
    log_format: Literal["console", "json"] = "console"
    """Lines for people or JSON."""


class Calendar(Section):
    """Which days count as what, for seasons."""

    timezone: str = "UTC"
    weekend: tuple[str, ...] = ("sat", "sun")
    """mon, tue, wed, thu, fri, sat, sun."""
    holidays: tuple[str, ...] = ()
    """Days such as 2026-12-18."""


class Config(Section):
    """The whole configuration; `folder` is where its file stands, and relative paths start there."""

    environment: str = "Production"
    """Production, Staging ...: part of every incident's key."""
    clock: Literal["wall", "log"] = "wall"
    """wall in service; log (now is the newest event) for demos and files."""
    models: dict[str, ModelConfig] = Field(min_length=1)
    budgets: Budgets = Budgets()
    sources: dict[str, Source] = {}
    decoders: Decoders = Decoders()
    monitors: dict[str, Monitor] = {}
    sinks: dict[str, SinkConfig] = {}
    routes: tuple[Route, ...] = ()
    alerting: Alerting = Alerting()
    deadman: Deadman | None = None
    store: StoreConfig = StoreConfig()
    privacy: Privacy = Privacy()
    schedule: Schedule = Schedule()
    server: Server = Server()
    calendars: dict[str, Calendar] = {}
    folder: Path = Field(default=Path(), exclude=True)

    def path(self, relative: Path) -> Path:
        """A path of the configuration, relative to its file."""
        return relative if relative.is_absolute() else self.folder / relative
