"""What happens between ticks: a reference that waited is taken in, one that was observed is proposed, history is counted
anew, model versions are compared.

Any process may do it at any time; a lease per model lets one do it at once. Nothing here approves anything.
"""

from __future__ import annotations

import json
from typing import Final

import structlog

from detectors.profile import key_of
from monitor.errors import UsageError
from monitor.model import HOUR_US, SECOND_US
from monitor.service import groups, references, versions
from monitor.service.compose import Service
from monitor.service.watch import Watched
from monitor.store import counts, leases, ledger
from monitor.store import references as store
from monitor.store.counts import ProfileRow
from monitor.store.queries import Engine

HISTORY_US: Final = 90 * 24 * HOUR_US  # counts of so much time are rebuilt on new bins; what `lanner tune` looks back
LEASE_US: Final = 3600 * SECOND_US  # longer than the longest pass
REBUILT: Final = "rebuilt"  # state: the reference and bins that history was counted on last, and since when
LANNER: Final = "lanner"

log = structlog.get_logger("lanner.references")


def attend(service: Service, name: str, now_us: int) -> None:
    """See to one model's references and versions; nothing while another process does."""
    table = service.tables[name]
    lease = f"reference:{table.model_id}"
    if leases.acquire(service.engine, lease, service.owner, now_us, LEASE_US) is None:
        return
    try:
        stands = store.standing(service.engine, table.model_id)
        given = service.config.models[name].reference
        waits = references.named(service.config, service.config.models[name]) != stands.named
        if given is not None and given.since is not None and waits:
            references.settle(service.config, service.engine, service.log, table, service.references, now_us)
        _propose(service, name, now_us)
        if (live := service.live.get(name)) is not None and not service.stale(name):
            rebuild(service, live.watched, now_us)
            versions.attend(service, live.watched, now_us)
    finally:
        leases.release(service.engine, lease, service.owner)


def _propose(service: Service, name: str, now_us: int) -> None:
    """Propose what `learn` has observed, once."""
    table, config, engine = service.tables[name], service.config, service.engine
    given = references.due(config, engine, service.log, table)
    if given is None:
        return
    try:
        row = references.build(config, engine, service.log, table, service.references, given, now_us, LANNER)
    except UsageError as error:  # all of it is under suspicion: observe further
        log.warning("reference_not_proposed", model=name, reason=str(error))
        return
    store.propose(engine, table.model_id, row.reference_hash, LANNER, f"observed as configured ({row.origin})", now_us)
    log.info("reference_proposed", model=name, version=row.version, rows=row.rows)


def rebuild(service: Service, watched: Watched, now_us: int) -> int:
    """Count the history of the event log on the model's bins, once for each reference and division into parts; the
    buckets counted.

    Ticks have counted what they need themselves; this is for reports, longer windows and back-tests.
    """
    digest, model_id = watched.reference_hash, watched.model_id
    if digest == references.NO_REFERENCE or rebuilt_since(service.engine, watched) is not None:
        return 0
    _, newest_us = store.progress(service.engine, model_id)
    if newest_us is None:
        return 0
    longest_us, size = watched.longest_us, watched.bucket_us
    since_us = (newest_us - HISTORY_US) // longest_us * longest_us - longest_us  # whole windows of every monitor
    position = ledger.standing(service.engine, model_id, watched.name, 0).position
    found = references.recount(
        service.log, model_id, watched.bins, watched.columns, size, (since_us, newest_us + 1), upto=position
    )
    divided = groups.of_buckets(service.log, watched, sorted(found), position)
    rows = [ProfileRow(digest, b, b + size, p.n, p.to_bytes(), divided.get(b)) for b, p in sorted(found.items())]
    counts.put_history(service.engine, model_id, rows, lambda body: key_of(body) == watched.bins.key)
    body = json.dumps({**_on(watched), "since_us": since_us}).encode()
    ledger.put_state(service.engine, model_id, REBUILT, body, now_us)
    return len(rows)


def rebuilt_since(engine: Engine, watched: Watched) -> int | None:
    """From when on stored counts on the model's bins are complete; None before history was counted on them."""
    body = ledger.load_state(engine, watched.model_id, REBUILT)
    if body is None or not body.startswith(b"{"):  # earlier releases wrote the reference's hash alone
        return None
    known = json.loads(body)
    since_us = int(known.pop("since_us"))
    return since_us if known == _on(watched) else None


def _on(watched: Watched) -> dict[str, str]:
    """What counts rest on: the same reference counts anew once the model's segments or context change or its
    shortest window, and where an earlier release counted without versions and callers.
    """
    return {
        "reference": watched.reference_hash,
        "bins": watched.bins.key,
        "bucket": str(watched.bucket_us),
        "groups": "1",
    }
