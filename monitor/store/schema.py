"""Tables of the state store; the same on SQLite and PostgreSQL. Times are microseconds UTC, JSON columns hold plain JSON.

What each table promises is in docs/state-store.md; migrations in monitor/store/migrations create and change them.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

metadata: Final = sa.MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
Big = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # autoincrement needs INTEGER there
Json = sa.JSON(none_as_null=True)


def _id() -> sa.Column[int]:
    return sa.Column("id", Big, primary_key=True, autoincrement=True)


models = sa.Table(  # one row per configured model, plus `_unregistered`
    "models",
    metadata,
    sa.Column("model_id", sa.String(36), primary_key=True),  # stable_id("model", environment, name); names folders
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"),  # fencing token of ticks
    sa.Column("position", sa.BigInteger, nullable=False, server_default="0"),  # last batch that a tick has read
    sa.Column(
        "schema", Json, nullable=False
    ),  # typed feature columns of the event log: {"numeric": [...], "categorical": [...]}
    sa.Column("watermark_us", sa.BigInteger),
    sa.Column("last_event_us", sa.BigInteger),
    sa.Column("last_tick_us", sa.BigInteger),
    sa.Column("reference_hash", sa.String(64)),  # the one it is judged by
    sa.Column("reference_named", sa.String(64)),  # what its configuration named last
)
partitions = sa.Table(  # the only truth about what was ingested
    "partitions",
    metadata,
    sa.Column("source", sa.Text, primary_key=True),
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("next_offset", sa.BigInteger),
    sa.Column("max_event_us", sa.BigInteger),  # newest event time that may move the watermark
    sa.Column(
        "caught_up_since_us", sa.BigInteger
    ),  # wall time since which it is at its end and silent; null when behind
    sa.Column("updated_us", sa.BigInteger, nullable=False),
)
segments = sa.Table(  # one Parquet file written by a collector or the pairer
    "segments",
    metadata,
    sa.Column("segment", sa.String(32), primary_key=True),
    sa.Column("model_id", sa.String(36), nullable=False),
    sa.Column("path", sa.Text, nullable=False),  # relative to the model's table folder
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("min_event_us", sa.BigInteger, nullable=False),
    sa.Column("max_event_us", sa.BigInteger, nullable=False),
    sa.Column("offsets", Json, nullable=False),  # [[topic, partition, first, last], ...]
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("ordinal", Big),  # order inside its batch, given with the batch number
    sa.Column("batch", sa.BigInteger),  # given by the publisher; null = recorded, not yet in a batch
    sa.Column("published", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("compacted", sa.Text),  # path of the larger file that holds its rows now; null = its own file does
    sa.Index(None, "model_id", "batch"),
    sa.Index(None, "model_id", "max_event_us"),
)
halves = sa.Table(  # one side of an exchange, waiting for the other
    "halves",
    metadata,
    _id(),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("pair_key", sa.Text, nullable=False),
    sa.Column("row_index", sa.Integer, nullable=False),
    sa.Column("side", sa.String(8), nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("event_us", sa.BigInteger, nullable=False),
    sa.Column("received_us", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),  # msgpack of the InferenceEvent
    sa.Index(None, "source", "pair_key", "row_index"),
    sa.Index(None, "received_us"),
)
feedback = sa.Table(
    "feedback",
    metadata,
    sa.Column("feedback_id", sa.String(36), primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("target", Json, nullable=False),
    sa.Column("target_key", sa.Text, nullable=False),  # "request_id=r-1", for joins
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("value", Json),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("labeler", sa.Text),
    sa.Column("label_us", sa.BigInteger, nullable=False),
    sa.Column("received_us", sa.BigInteger, nullable=False),
    sa.Index(None, "model", "label_us"),
    sa.Index(None, "model", "received_us"),
    sa.Index(None, "model", "target_key"),
)
dead_letters = sa.Table(
    "dead_letters",
    metadata,
    _id(),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.String(32), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("key", sa.LargeBinary),
    sa.Column("value", sa.LargeBinary),
    sa.Column("headers", sa.LargeBinary, nullable=False),  # msgpack of [(name, bytes)]
    sa.Column("timestamp_ms", sa.BigInteger),
    sa.Column("truncated", sa.Boolean, nullable=False),
    sa.Column("received_us", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(10), nullable=False, server_default="new"),  # new, redriven or discarded
    sa.UniqueConstraint("source", "topic", "partition", "offset"),
)
unregistered = sa.Table(  # names that logs use and the configuration does not know
    "unregistered",
    metadata,
    sa.Column("source", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),  # at most 100 a source, the rest counts under "…"
    sa.Column("events", sa.BigInteger, nullable=False),
    sa.Column("first_us", sa.BigInteger, nullable=False),
    sa.Column("last_us", sa.BigInteger, nullable=False),
)
idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("source", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("received_us", sa.BigInteger, nullable=False),
)
callers = sa.Table(  # which patterns of the directories fit a stored principal; never its plain name
    "callers",
    metadata,
    sa.Column("principal", sa.Text, primary_key=True),  # the stored id
    sa.Column("pattern", sa.Text, primary_key=True),  # its pseudonym: a pattern may give a name away
)
identity = sa.Table(  # who this state store is; the event log carries the same id, so neither is used with a stranger
    "identity",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("expires_us", sa.BigInteger, nullable=False),
)
references = sa.Table(
    "references",
    metadata,
    sa.Column("reference_hash", sa.String(64), primary_key=True),
    sa.Column("model_id", sa.String(36), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),  # built, proposed or approved
    sa.Column("path", sa.Text, nullable=False),  # Parquet copy under the store, frozen
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("body", Json, nullable=False),  # schema, span, findings, approvals
    sa.Column("created_us", sa.BigInteger, nullable=False),
)
calibrations = sa.Table(
    "calibrations",
    metadata,
    sa.Column("calibration_hash", sa.String(32), primary_key=True),
    sa.Column("model_id", sa.String(36), primary_key=True),
    sa.Column("detector", sa.Text, nullable=False),
    sa.Column("params", Json, nullable=False),
    sa.Column("reference_hash", sa.String(64), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Index(None, "model_id", "detector", "reference_hash"),
)
ledger = sa.Table(  # every window is judged once or recorded as a gap; inserted, never upserted
    "ledger",
    metadata,
    sa.Column("model_id", sa.String(36), primary_key=True),
    sa.Column("monitor", sa.Text, primary_key=True),
    sa.Column("end_us", sa.BigInteger, primary_key=True),
    sa.Column("start_us", sa.BigInteger, nullable=False),
    sa.Column("outcome", sa.String(12), nullable=False),  # judged, insufficient, failed or gap
    sa.Column("n", sa.BigInteger, nullable=False),
    sa.Column("judged_us", sa.BigInteger, nullable=False),
    sa.Column("detail", sa.Text),
)
profiles = sa.Table(
    "profiles",
    metadata,
    sa.Column("model_id", sa.String(36), primary_key=True),
    sa.Column("reference_hash", sa.String(64), primary_key=True),
    sa.Column("start_us", sa.BigInteger, primary_key=True),
    sa.Column("end_us", sa.BigInteger, nullable=False),
    sa.Column("n", sa.BigInteger, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("groups", sa.LargeBinary),  # counts by model version and busy caller; null until the bucket has ended
)
states = (
    sa.Table(  # state of detectors ("detector:NAME"), deciders ("budget", "fuse") and the alert pipeline ("alerts")
        "states",
        metadata,
        sa.Column("model_id", sa.String(36), primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("updated_us", sa.BigInteger, nullable=False),
    )
)
detections = sa.Table(
    "detections",
    metadata,
    sa.Column("detection_id", sa.String(36), primary_key=True),
    sa.Column("model_id", sa.String(36), nullable=False),
    sa.Column("monitor", sa.Text, nullable=False),
    sa.Column("detector", sa.Text, nullable=False),
    sa.Column("family", sa.String(16), nullable=False),
    sa.Column("event", sa.String(32), nullable=False),
    sa.Column("subject_kind", sa.String(16), nullable=False),
    sa.Column("subject_id", sa.Text, nullable=False),
    sa.Column("start_us", sa.BigInteger, nullable=False),
    sa.Column("end_us", sa.BigInteger, nullable=False),
    sa.Column("statistic", sa.Float),
    sa.Column("threshold", sa.Float),
    sa.Column("p_value", sa.Float),
    sa.Column("log_e", sa.Float),
    sa.Column("n", sa.BigInteger, nullable=False),
    sa.Column("verdict", sa.String(12), nullable=False),
    sa.Column("evidence", Json, nullable=False),
    sa.Column("calibration_hash", sa.String(32)),
    sa.Index(None, "model_id", "monitor", "end_us"),
)
alerts = sa.Table(
    "alerts",
    metadata,
    sa.Column("alert_id", sa.String(36), primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("event", sa.String(32), nullable=False),
    sa.Column("subject_kind", sa.String(16), nullable=False),
    sa.Column("subject_id", sa.Text, nullable=False),
    sa.Column("family", sa.String(16), nullable=False),
    sa.Column("severity", sa.String(8), nullable=False),
    sa.Column("open", sa.Boolean, nullable=False),
    sa.Column("opened_us", sa.BigInteger, nullable=False),
    sa.Column("updated_us", sa.BigInteger, nullable=False),
    sa.Column("cleared_us", sa.BigInteger),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("body", Json, nullable=False),  # the whole Alert
    sa.Index(None, "model", "open"),
)
transitions = sa.Table(
    "transitions",
    metadata,
    sa.Column("alert_id", sa.String(36), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("action", sa.String(6), nullable=False),
    sa.Column("time_us", sa.BigInteger, nullable=False),
    sa.Column("recorded_us", sa.BigInteger, nullable=False),
    sa.Column("body", Json, nullable=False),  # Transition.to_json()
    sa.Index(None, "time_us"),
)
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("row_id", sa.String(36), primary_key=True),  # stable_id("outbox", sink, alert_id, seq)
    sa.Column("sink", sa.Text, nullable=False),
    sa.Column("lane", sa.Text, nullable=False),
    sa.Column("alert_id", sa.String(36), nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("severity_rank", sa.Integer, nullable=False),  # urgent ones leave first
    sa.Column("ordinal", sa.BigInteger, nullable=False),  # order within the lane over several alerts of one key
    sa.Column("body", Json, nullable=False),  # the whole Transition
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("next_try_us", sa.BigInteger, nullable=False),
    sa.Column("lease_owner", sa.Text),
    sa.Column("lease_until_us", sa.BigInteger),
    sa.Column("last_error", sa.Text),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("settled_us", sa.BigInteger),
    sa.Index(None, "sink", "state", "next_try_us"),
    sa.Index(None, "lane", "ordinal"),
)
marks = sa.Table(
    "marks",
    metadata,
    _id(),
    sa.Column("model", sa.Text),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("start_us", sa.BigInteger, nullable=False),
    sa.Column("end_us", sa.BigInteger),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("recorded_us", sa.BigInteger, nullable=False),
)
acts = sa.Table(  # what people did about incidents; the next tick of the model applies what closes one
    "acts",
    metadata,
    _id(),
    sa.Column("alert_id", sa.String(36), nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("kind", sa.String(10), nullable=False),  # ack, shelve or verdict
    sa.Column("said", sa.String(14)),  # the verdict
    sa.Column("closes", sa.Boolean, nullable=False),
    sa.Column("detector", sa.Text, nullable=False),  # of the incident then
    sa.Column("severity", sa.String(8), nullable=False),  # of the incident then: an acknowledgement falls when it rises
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("ref", sa.Text, nullable=False),
    sa.Column("time_us", sa.BigInteger, nullable=False),
    sa.Column("applied_us", sa.BigInteger),  # null: the tick has not seen it yet
    sa.Column("told_us", sa.BigInteger),  # null: the sinks have not been told yet
    sa.UniqueConstraint("alert_id", "kind", "source", "ref"),
    sa.Index(None, "model", "applied_us"),
)
exemptions = sa.Table(
    "exemptions",
    metadata,
    sa.Column("exemption_id", sa.String(36), primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("body", Json, nullable=False),  # the whole Exemption
    sa.Column("expires_us", sa.BigInteger, nullable=False),
    sa.Column("revoked_us", sa.BigInteger),
    sa.Column("revoked_by", sa.Text),
    sa.Column("hits", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("last_hit_us", sa.BigInteger),
    sa.Index(None, "model", "expires_us"),
)
audit = sa.Table(  # written in the same transaction as the act it records
    "audit",
    metadata,
    sa.Column("seq", Big, primary_key=True, autoincrement=True),
    sa.Column("recorded_us", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("object", sa.Text, nullable=False),
    sa.Column("detail", Json, nullable=False),
)
comparisons = sa.Table(  # a new model version's windows against the old one's
    "comparisons",
    metadata,
    sa.Column("model_id", sa.String(36), primary_key=True),
    sa.Column("new", sa.Text, primary_key=True),
    sa.Column("old", sa.Text, primary_key=True),
    sa.Column("made_us", sa.BigInteger, nullable=False),
    sa.Column("body", Json, nullable=False),
)
reports = sa.Table(  # finished reports, compressed; as many per model and kind as its configuration keeps
    "reports",
    metadata,
    sa.Column("report_id", sa.String(36), primary_key=True),  # stable_id("report", model_id, kind, end_us)
    sa.Column("model_id", sa.String(36), nullable=False),
    sa.Column("kind", sa.String(10), nullable=False),  # owner or evidently
    sa.Column("start_us", sa.BigInteger, nullable=False),
    sa.Column("end_us", sa.BigInteger, nullable=False),
    sa.Column("made_us", sa.BigInteger, nullable=False),
    sa.Column("meta", Json, nullable=False),  # bytes, sha256, headline, content security policy
    sa.Column("body", sa.LargeBinary, nullable=False),  # zlib of the HTML
    sa.Index(None, "model_id", "end_us"),
)
heartbeats = sa.Table(  # last completed run of every component
    "heartbeats",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("beat_us", sa.BigInteger, nullable=False),
    sa.Column("detail", Json, nullable=False),
)
