"""A Kafka topic of alert transitions: key = the incident's key, value = the line that `lanner replay --json` prints.

Delivery: at least once and in order per key; acks from all replicas, an idempotent producer. A compacted topic keeps the
last state of each incident's key. Names in the value are exact, for machines: whoever shows them must escape them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kafka import KafkaProducer
from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient

from alerts.base import SinkRejected, SinkUnavailable, SinkUnknown
from alerts.text import shown
from monitor.errors import ConfigError, Mistake
from monitor.model import Alert, Transition

BYTES: Final = 1_000_000  # a broker's default limit is 1 MiB
OURS: Final = frozenset({"bootstrap_servers", "acks", "enable_idempotence", "key_serializer", "value_serializer"})
NEVER: Final = (
    kafka_errors.MessageSizeTooLargeError, kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.InvalidTopicError, kafka_errors.RecordListTooLargeError, kafka_errors.ClusterAuthorizationFailedError,
)  # fmt: skip
BEFORE: Final = (
    kafka_errors.UnknownTopicOrPartitionError, kafka_errors.KafkaConnectionError,
    kafka_errors.SaslAuthenticationFailedError,
)  # fmt: skip


@dataclass(frozen=True)
class KafkaTopic:
    """`topic` on the brokers at `bootstrap`; `options` go to the client as they are (security_protocol, ssl_cafile ...)."""

    name: str
    topic: str
    bootstrap: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    timeout_s: float = 5.0
    _made: list[Any] = field(default_factory=list, repr=False, compare=False)  # the producer, once it has connected
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __post_init__(self) -> None:
        wrong = sorted(OURS & self.options.keys()) + sorted(self.options.keys() - KafkaProducer.DEFAULT_CONFIG.keys())
        if wrong:
            raise ConfigError([Mistake(f"sinks.{self.name}", None, f"options.{w} cannot be set") for w in wrong])

    def send(self, transition: Transition, *, timeout_s: float) -> None:
        """Produce one record and wait for all replicas; raises what alerts.base declares."""
        raw_key, value = key(transition.alert), record(transition)
        if len(value) + len(raw_key) > BYTES:
            raise SinkRejected(f"the record has {len(value)} bytes, more than {BYTES}")
        producer = self._producer()
        try:
            sent = producer.send(self.topic, key=raw_key, value=value)
        except NEVER as error:
            raise SinkRejected(_words(error)) from None
        except (kafka_errors.KafkaError, OSError, AssertionError) as error:
            raise SinkUnavailable(f"not sent: {_words(error)}") from None  # no room, no metadata: nothing left
        try:
            sent.get(timeout=min(timeout_s, self.timeout_s))
        except NEVER as error:
            raise SinkRejected(_words(error)) from None
        except BEFORE as error:
            raise SinkUnavailable(_words(error)) from None
        except (kafka_errors.KafkaError, OSError) as error:
            raise SinkUnknown(f"no answer of all replicas: {_words(error)}") from None

    def _producer(self) -> Any:
        with self._lock:
            if not self._made:
                self._made.append(self._connect())
            return self._made[0]

    def _connect(self) -> Any:
        limit_ms = max(1000, round(self.timeout_s * 1000))
        clients: list[KafkaNetClient] = []

        def client(**given: Any) -> KafkaNetClient:
            clients.append(KafkaNetClient(**given))
            return clients[-1]

        settings = {
            "client_id": "lanner", "max_block_ms": limit_ms, "request_timeout_ms": limit_ms,
            "delivery_timeout_ms": limit_ms, "bootstrap_timeout_ms": limit_ms, "metrics_enabled": False, **self.options,
            "bootstrap_servers": [b.strip() for b in self.bootstrap.split(",")], "acks": "all", "enable_idempotence": True,
        }  # fmt: skip
        try:
            return KafkaProducer(**settings, kafka_client=client)
        except (kafka_errors.KafkaError, OSError, ValueError) as error:
            for made in clients:  # a producer that could not start leaves its thread and sockets to nobody
                made.close()
            raise SinkUnavailable(f"cannot connect: {_words(error)}") from None

    def close(self) -> None:
        """Let the connections go."""
        with self._lock:
            while self._made:
                self._made.pop().close(timeout=1)


def key(alert: Alert) -> bytes:
    """The incident's key as a JSON list: environment, customer, model, subject kind, subject id, event."""
    return json.dumps(alert.key, separators=(",", ":")).encode()


def record(transition: Transition) -> bytes:
    """The replay line of a transition. SinkRejected when it is not plain JSON."""
    try:
        return json.dumps(transition.to_json(), separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise SinkRejected(f"the alert cannot be written as JSON: {error}") from None


def _words(error: Exception) -> str:
    return shown(f"{type(error).__name__}: {error}", 200)
