"""Collectors of one process: one thread per source, each with its own ingester."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import structlog

from collectors.base import Collector, EventLog, IngestSettings
from collectors.decode import decoder_for
from collectors.http import serve_http
from collectors.ingest import Ingester
from collectors.registry import collector_for
from monitor.config import Source
from monitor.errors import LannerError, OffsetsLost, PoisonLimit
from monitor.service.callers import intake
from monitor.service.compose import Service
from monitor.store import ledger

log = structlog.get_logger("lanner.collect")


def now_us() -> int:
    """Wall time in microseconds UTC."""
    return time.time_ns() // 1000


def settings(source: Source, clock: str) -> IngestSettings:
    """A source's buffering and limits; on a log clock no event lies in the future."""
    return IngestSettings(
        flush_rows=source.flush_rows,
        flush_s=source.flush,
        max_message_bytes=source.max_message,
        max_poison=source.max_poison,
        pairing_timeout_s=source.pairing_timeout,
        future_skew_s=float("inf") if clock == "log" else 300.0,
    )


def run(
    service: Service, stop: threading.Event, *, once: bool = False, on_ready: Callable[[str], None] = lambda name: None
) -> None:
    """Collect from every source until `stop` is set, or with `once` until each has been read to its end.

    A source that stops (poison, lost offsets) is reported as MonitorDegraded and tried again; the others go on.
    """
    sources = service.sources
    keyed, events = intake(service.config, service.engine, service.log)
    threads = []
    for name, source in sources.items():
        target = _http if source.type == "http" else _pull
        if once and source.type == "http":
            continue
        thread = threading.Thread(
            target=target, args=(service, name, source, keyed, events, stop, once), name=f"collect-{name}", daemon=True
        )
        thread.start()
        threads.append(thread)
        on_ready(name)
    while any(t.is_alive() for t in threads):
        for t in threads:
            t.join(timeout=0.2)
    if not once:
        stop.wait()


def _http(
    service: Service, name: str, source: Source, keyed: Callable[[str], str], events: EventLog,
    stop: threading.Event, once: bool,
) -> None:  # fmt: skip
    decode = decoder_for(name if name in service.config.sources else source.decoder, service.config)
    serve_http(
        name,
        source,
        decode,
        events,
        settings(source, service.config.clock),
        keyed,
        now_us,
        stop,
        folder=service.config.folder,
    )


def _pull(
    service: Service, name: str, source: Source, keyed: Callable[[str], str], events: EventLog,
    stop: threading.Event, once: bool,
) -> None:  # fmt: skip
    wait_s = 1.0
    while not stop.is_set():
        collector: Collector | None = None
        try:
            collector = collector_for(name, source, service.config)
            ingester = Ingester(
                collector, decoder_for(name, service.config), events, settings(source, service.config.clock),
                f"{service.owner}/{name}", now_us, keyed, on_problems=lambda found: _problems(service, name, found),
            )  # fmt: skip
            _problems(service, name, {})
            if once:
                ingester.drain(stop)
            else:
                ingester.run(stop)
            ingester.close()
            return
        except (PoisonLimit, OffsetsLost) as error:
            # These need a person: say so, keep the position, look again now and then.
            log.error("source_stopped", source=name, error=type(error).__name__, reason=str(error))
            _problems(service, name, {"source": str(error)[:500]})
            wait_s = 60.0
        except LannerError as error:
            log.error("source_failed", source=name, error=type(error).__name__, reason=str(error))
            wait_s = min(wait_s * 2, 30.0)
        finally:
            if collector is not None:
                collector.close()
        if once:
            return
        stop.wait(wait_s)


def _problems(service: Service, name: str, found: Mapping[str, str]) -> None:
    """Tell the schedulers, by way of the store, what in a source needs a person; {} when nothing does."""
    ledger.beat(service.engine, f"source:{name}", now_us(), {"problems": dict(found)})
