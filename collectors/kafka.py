"""Kafka through kafka-python 3: consumer groups or fixed partitions, positions from the event log.

Kafka's committed offsets are written for its own displays and never read. A gained partition is held still until the
ingester has claimed it and said where to start. There is no reset policy: an offset that the broker no longer has
stops its partition and names the missing range.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Final, cast

import structlog
from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.record import default_records, util
from kafka.structs import OffsetAndMetadata

from collectors.base import PartitionKey, Record
from collectors.wire import record_reader
from monitor.config import Source
from monitor.errors import ConfigError, DependencyUnreachable, LannerError, Mistake, OffsetsLost

MAX_RECORDS: Final = 10_000
END_S: Final = 5.0  # how old the known ends of partitions may be
RPC_MS: Final = 5_000
JOIN_S: Final = 1.0
STUCK_S: Final = 60.0
_OURS: Final = frozenset({
    "bootstrap_servers", "group_id", "enable_auto_commit", "auto_offset_reset", "key_deserializer",
    "value_deserializer", "consumer_timeout_ms", "kafka_client", "selector",
})  # fmt: skip
_FILES: Final = ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile")

log = structlog.get_logger("lanner.kafka")

_make: Callable[..., Record] = tuple.__new__  # NamedTuple's own constructor costs twice as much


class KafkaCollector:
    """One topic of one cluster: through a consumer group, or `source.assign`ed partitions.

    `source.options` go to the client as they are (SASL, TLS, fetch sizes); paths of TLS files are relative to
    `folder`. With `accept_lost`, a missing range is skipped and logged instead of stopping its partition. Raises
    ConfigError for options the client does not know, DependencyUnreachable when no broker answers.
    """

    def __init__(self, name: str, source: Source, folder: Path = Path(), *, accept_lost: bool = False) -> None:
        need_crc32c()
        if source.topic is None or source.bootstrap is None:
            raise ConfigError([Mistake(f"source {name}", None, "type kafka needs topic and bootstrap")])
        self.name = name
        self._source, self._folder = source, folder
        self._topic, self._start, self._accept_lost = source.topic, source.start, accept_lost
        self._group = None if source.assign is not None else source.group
        self._lock = Lock()  # the listener runs on the client's IO thread
        self._gained: list[PartitionKey] = []
        self._lost: list[PartitionKey] = []
        self._next: dict[PartitionKey, int] = {}  # where each started partition reads on
        self._ends: dict[PartitionKey, int | None] = {}
        self._ends_at_s = float("-inf")
        self._stopped: set[PartitionKey] = set()  # lost their offsets
        self._idle = False  # the last poll brought nothing
        self._joined = source.assign is not None
        self._empty_at_s: float | None = None  # when the group first gave this member nothing
        self._open()

    def _open(self) -> None:
        self._consumer = _connect(self.name, self._source, self._group, self._folder)
        self._need_topic(self._source.assign or ())
        if self._source.assign is not None:
            # An empty list means all that there are: for a look at a topic, without a group.
            wanted = self._source.assign or sorted(self._consumer.partitions_for_topic(self._topic) or ())
            self._consumer.assign([TopicPartition(self._topic, p) for p in wanted])
            self.gain(self._consumer.assignment())
        else:
            self._consumer.subscribe([self._topic], listener=_Listener(self))
        self._away_at_s = time.monotonic()  # since when the group owes us an assignment

    def _need_topic(self, wanted: Sequence[int]) -> None:
        """Asks for the partitions' ends, which loads the topic's metadata: without it a group's first assignment is
        empty. (Asking for the topic's partitions would load all topics and cost a second rebalance.)
        """
        places = [TopicPartition(self._topic, partition) for partition in wanted or (0,)]
        try:
            self._consumer.end_offsets(places, timeout_ms=RPC_MS)
        except kafka_errors.KafkaError as error:
            self.close()
            what = f"topic {self._topic}" + (f" with partitions {list(wanted)}" if wanted else "")
            raise DependencyUnreachable(
                f"source {self.name}: there is no {what}, or it may not be read ({type(error).__name__})"
            ) from error

    # -- assignment; gain and lose are also called from the IO thread: no network, no store

    def gain(self, partitions: Sequence[TopicPartition]) -> None:
        """Holds new partitions still, at a position that is never fetched from, until `seek` and `resume`."""
        for partition in partitions:
            self._consumer.pause(partition)
            self._consumer.seek(partition, 0)
        with self._lock:
            self._gained += [(p.topic, p.partition) for p in partitions]
            if partitions:
                self._joined = True
            elif self._empty_at_s is None:
                self._empty_at_s = time.monotonic()

    def lose(self, partitions: Sequence[TopicPartition]) -> None:
        """Notes what is no longer ours."""
        with self._lock:
            keys = [(p.topic, p.partition) for p in partitions]
            self._lost += keys
            if self._group is not None:
                self._joined, self._empty_at_s, self._away_at_s = False, None, time.monotonic()
                # The client forgets a rejoin that began because of new metadata when a poll ends in the middle of it,
                # and then stays out of the group for ever, in silence. Asked for once more, it is not forgotten.
                self._consumer._coordinator.request_rejoin()  # noqa: SLF001
            self._gained = [k for k in self._gained if k not in keys]

    def changes(self) -> tuple[Sequence[PartitionKey], Sequence[PartitionKey]]:
        with self._lock:
            gained, lost = self._gained, self._lost
            self._gained, self._lost = [], []
        for key in lost:
            self._next.pop(key, None)
            self._ends.pop(key, None)
            self._stopped.discard(key)
        return gained, lost

    def seek(self, partition: PartitionKey, offset: int | None) -> int:
        if offset is None:
            offset = self.edge(partition, first=self._start == "earliest")
        try:
            self._consumer.seek(TopicPartition(*partition), offset)
        except ValueError:  # taken away a moment ago; `changes` will say so
            return offset
        self._next[partition] = offset
        self._ends.pop(partition, None)
        self._ends_at_s = float("-inf")
        return offset

    def edge(self, partition: PartitionKey, *, first: bool = False) -> int:
        """Where the broker's log of a partition ends, or begins."""
        at = TopicPartition(*partition)
        edges = self._consumer.beginning_offsets if first else self._consumer.end_offsets
        try:
            return int(edges([at], timeout_ms=RPC_MS)[at])
        except kafka_errors.KafkaError as error:
            raise DependencyUnreachable(f"source {self.name}: {type(error).__name__}: {error}") from error

    def pause(self, partition: PartitionKey) -> None:
        self._hold(partition, still=True)

    def resume(self, partition: PartitionKey) -> None:
        if partition not in self._stopped:
            self._hold(partition, still=False)

    def _hold(self, partition: PartitionKey, *, still: bool) -> None:
        at = TopicPartition(*partition)
        try:
            (self._consumer.pause if still else self._consumer.resume)(at)
        except KeyError:  # taken away a moment ago
            return

    # -- reading

    def poll(self, timeout_s: float) -> Sequence[Record]:
        if not self._joined:
            self._rejoin_when_stuck()
            timeout_s = max(timeout_s, JOIN_S)  # there is nothing else to do, and short polls slow a join down
        try:
            polled = self._consumer.poll(timeout_ms=round(timeout_s * 1000), max_records=MAX_RECORDS)
        except kafka_errors.OffsetOutOfRangeError as error:
            self._stop(error.args[0] if error.args and isinstance(error.args[0], dict) else {})
            return ()
        except kafka_errors.LogTruncationError as error:
            self._stop(dict.fromkeys(error.divergent_offsets))
            return ()
        except kafka_errors.NoOffsetForPartitionError:
            return ()  # in the middle of a rebalance, before the listener has set a position
        except (kafka_errors.KafkaError, OSError) as error:
            raise DependencyUnreachable(f"source {self.name}: {type(error).__name__}: {error}") from error
        out: list[Record] = []
        name = self.name
        self._idle = not polled
        for at, batch in polled.items():
            key = (at.topic, at.partition)
            if key not in self._next:
                continue
            topic, partition = key
            out += [
                _make(Record, (
                    name, topic, partition, r.offset, r.key, r.value,
                    [(k, v or b"") for k, v in r.headers] if r.headers else (), r.timestamp, r.timestamp_type,
                ))
                for r in batch
            ]  # fmt: skip
            self._next[key] = batch[-1].offset + 1
        return out

    def _rejoin_when_stuck(self) -> None:
        """A member that the group has left without an answer for long enough starts again as a new one."""
        if time.monotonic() - self._away_at_s < max(STUCK_S, 2 * self._source.session_timeout):
            return
        log.error("group_join_stuck", source=self.name, group=self._group)
        self._away_at_s = time.monotonic()
        self.close()
        self._open()

    def _stop(self, partitions: Mapping[TopicPartition, Any]) -> None:
        """Stops what the broker no longer has, or with accept_lost goes on behind the gap. Raises OffsetsLost."""
        for at in partitions:
            key = (at.topic, at.partition)
            wanted = self._next.get(key)
            if wanted is None:
                continue
            begin, end = self.edge(key, first=True), self.edge(key)
            where = f"source {self.name}: {at.topic} partition {at.partition}"
            if wanted < begin:
                first, until = wanted, begin
                message = f"{where}: offsets {wanted} to {begin - 1} were removed before Lanner read them"
            else:
                first, until = end, wanted
                message = (
                    f"{where}: the log holds {begin} to {end - 1}, but offsets up to {wanted - 1} were read from it: "
                    "it was truncated or made anew"
                )
            if self._accept_lost:
                log.error("offsets_skipped", source=self.name, reason=message)
                self._consumer.seek(at, begin)
                self._next[key] = begin
                continue
            self._stopped.add(key)
            self._hold(key, still=True)
            raise OffsetsLost(
                f"{message}. This partition has stopped; the others go on.", at.topic, at.partition, first, until
            )

    def lag(self) -> Mapping[PartitionKey, int | None]:
        """Known from the broker's answers, at most 5 s old; None while it does not answer.

        Before a consumer group has assigned anything there is one entry, partition -1, with None.
        """
        if not self._joined:
            # A first assignment may be empty only because another rebalance follows; after a while it counts.
            if self._empty_at_s is None or time.monotonic() - self._empty_at_s < END_S:
                return {(self._topic, -1): None}
            self._joined = True
        if time.monotonic() - self._ends_at_s >= END_S:
            self._refresh_ends()
        with self._lock:
            out: dict[PartitionKey, int | None] = dict.fromkeys(self._gained)  # not even started
        for key, at in self._next.items():
            end = self._ends.get(key)
            if end is not None:
                end = max(end, self._highwater(key) or 0)
                if at < end and self._idle:
                    at = max(at, self._position(key))  # markers of transactions are passed over unseen
            out[key] = None if end is None else max(0, end - at)
        return out

    def _refresh_ends(self) -> None:
        self._ends_at_s = time.monotonic()
        wanted = [TopicPartition(*key) for key in self._next]
        if not wanted:
            return
        try:
            ends = self._consumer.end_offsets(wanted, timeout_ms=RPC_MS)
        except (kafka_errors.KafkaError, OSError):
            self._ends = dict.fromkeys(self._next)  # unknown: a partition behind a dead broker is not at its end
            return
        self._ends = {(at.topic, at.partition): int(end) for at, end in ends.items()}

    def _highwater(self, key: PartitionKey) -> int | None:
        try:
            return cast("int | None", self._consumer.highwater(TopicPartition(*key)))
        except (kafka_errors.KafkaError, KeyError):
            return None

    def _position(self, key: PartitionKey) -> int:
        try:
            return int(self._consumer.position(TopicPartition(*key), timeout_ms=0) or 0)
        except (kafka_errors.KafkaError, KeyError):
            return 0

    def commit(self, positions: Mapping[PartitionKey, int]) -> None:
        if self._group is None:
            return
        try:
            self._consumer.commit_async(
                {TopicPartition(*key): OffsetAndMetadata(offset, "", -1) for key, offset in positions.items()}
            )
        except kafka_errors.KafkaError as error:  # only displays suffer
            log.debug("commit_failed", source=self.name, reason=str(error))

    def close(self) -> None:
        """Leaves the group at once, so that its other members need not wait for the session to time out."""
        try:
            self._consumer.close(autocommit=False, timeout_ms=RPC_MS)
        except kafka_errors.KafkaError as error:
            log.debug("close_failed", source=self.name, reason=str(error))


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # the client ships no types
    """Runs on the thread that sends heartbeats: it only takes notes."""

    def __init__(self, collector: KafkaCollector) -> None:
        self._collector = collector

    def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        self._collector.lose(list(revoked))

    def on_partitions_lost(self, lost: Sequence[TopicPartition]) -> None:
        self._collector.lose(list(lost))

    def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self._collector.gain(list(assigned))


def _connect(name: str, source: Source, group: str | None, folder: Path) -> Any:
    """The client, connected. New partitions are seen within 30 s, and what transactions took back is never read."""
    options = dict(source.options)
    wrong = sorted(_OURS & options.keys())
    if wrong:
        raise ConfigError([Mistake(f"source {name}", None, f"options.{key} is set by Lanner itself") for key in wrong])
    for key in _FILES:
        if key in options:
            options[key] = str(folder / str(options[key]))
    if source.password is not None:
        options["sasl_plain_password" if options.get("sasl_mechanism") else "ssl_password"] = (
            source.password.get_secret_value()
        )
    session_ms = round(source.session_timeout * 1000)
    settings = {
        "client_id": "lanner",
        "metadata_max_age_ms": 30_000,
        "reconnect_backoff_max_ms": 5_000,
        "isolation_level": "read_committed",
        "allow_auto_create_topics": False,
        "session_timeout_ms": session_ms,
        "heartbeat_interval_ms": min(3000, session_ms // 3),
        "bootstrap_timeout_ms": 10_000,
        "metrics_enabled": False,
        **options,
        "bootstrap_servers": [b.strip() for b in (source.bootstrap or "").split(",")],
        "group_id": group,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
    }
    clients: list[KafkaNetClient] = []

    def client(**given: Any) -> KafkaNetClient:
        clients.append(KafkaNetClient(**given))
        return clients[-1]

    try:
        return KafkaConsumer(**settings, kafka_client=client)
    except BaseException as error:
        for made in clients:  # a consumer that could not start leaves its thread and sockets to nobody
            made.close()
        _refused(name, source, error)
        raise


def _refused(name: str, source: Source, error: BaseException) -> None:
    """Raises what the client's error means to an operator; returns for errors that are none of Kafka's."""
    if isinstance(error, kafka_errors.KafkaConfigurationError):
        raise ConfigError([Mistake(f"source {name}", None, f"options: {error}")]) from error
    if isinstance(error, kafka_errors.KafkaError | OSError | ValueError):
        raise DependencyUnreachable(
            f"source {name}: Kafka at {source.bootstrap} cannot be reached: {type(error).__name__}: {error}"
        ) from error


def need_crc32c() -> None:
    """Refuses to start without the fast checksum: the client's own, in Python, costs ten times the CPU."""
    if util.crc32c_c is None:
        raise LannerError(
            "The crc32c package is missing, without which reading Kafka is ten times slower. "
            "Install it: pip install 'kafka-python[crc32c]'"
        )


# The client's own iteration is slow, and at a header name that is not UTF-8 (librdkafka lets a producer send any bytes)
# it raises for ever. Control batches are read for the client alone, which needs its own records there.
_own_iteration = default_records.DefaultRecordBatch.__iter__
_read_batch = record_reader(kafka_errors.CorruptRecordError)


def _iterate(batch: Any) -> Any:
    return _own_iteration(batch) if batch.is_control_batch else _read_batch(batch)


default_records.DefaultRecordBatch.__iter__ = _iterate
