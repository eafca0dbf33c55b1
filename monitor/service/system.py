"""What Lanner says about itself and about logs that no configured model claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from alerts import lifecycle, quiet
from alerts.policy import policy
from monitor.model import SECOND_US, UNREGISTERED, Decision, Event, Family, Subject, Transition
from monitor.service import health
from monitor.service.compose import Service
from monitor.service.told import told
from monitor.service.work import Work
from monitor.store import leases, ledger, people
from monitor.store.engine import read

QUIET_US: Final = 86_400 * SECOND_US  # an unregistered model that is not seen for so long is no problem any more


def system_tick(service: Service, now_us: int, *, clock: str | None = None) -> Sequence[Transition]:
    """One pass over sources and components; transitions that were committed. () while another process holds the lease."""
    clock = clock or service.config.clock
    table = service.tables[UNREGISTERED]
    ttl_us = round(service.config.schedule.lease * SECOND_US)
    epoch = leases.acquire(service.engine, "system", service.owner, now_us, ttl_us, model_id=table.model_id)
    if epoch is None:
        return ()
    settle_gone(service, now_us)
    standing = ledger.standing(service.engine, table.model_id, UNREGISTERED, 0)
    stored = ledger.load_states(service.engine, table.model_id).get("service")
    counters = msgspec.json.decode(stored) if stored else {}
    decisions = [*unregistered(service, now_us, clock), *health.decisions(service, now_us, clock)]
    said = {(d.event, d.subject) for d in decisions}
    opened = {(a.event, a.subject) for a in standing.open}
    decisions = [d for d in decisions if d.firing or (d.event, d.subject) in opened or quiet.watched(counters)]
    known, acts = told(service.engine, UNREGISTERED, now_us, service.config)
    rules = policy(service.config)
    work = Work.fresh(standing.open, counters)
    work.take(lifecycle.settle([a.act for a in acts], work.standing, work.counters, rules, now_us))
    if clock == "wall":  # then all that is configured has had its say
        gone = [a for a in work.standing if (a.event, a.subject) not in said]
        work.take(lifecycle.end(gone, work.standing, work.counters, rules, now_us, "no longer configured"))
    work.take(lifecycle.step(decisions, work.standing, work.counters, rules, known))
    if clock == "wall":
        work.take(lifecycle.lasting(work.standing, work.counters, rules, now_us))
    if not work.transitions and not acts and not work.excepted and work.counters == counters:
        return ()
    ledger.commit(
        service.engine,
        ledger.TickCommit(
            model_id=table.model_id,
            epoch=epoch,
            position=standing.position,
            to_position=standing.position,
            watermark_us=standing.watermark_us,
            last_event_us=standing.last_event_us,
            now_us=now_us,
            states={"service": msgspec.json.encode(dict(work.counters))},
            alerts=list(work.alerts.values()),
            transitions=work.transitions,
            applied=[a.id for a in acts],
            excepted=work.excepted,
        ),
        service.sinks_for,
    )
    return work.transitions


def settle_gone(service: Service, now_us: int) -> None:
    """Apply what people said about incidents of models that are no longer configured: no tick of theirs would."""
    engine, rules = service.engine, policy(service.config)
    with read(engine) as conn:
        gone = {name: model_id for name, model_id in people.waiting(conn).items() if name not in service.tables}
    for name, model_id in gone.items():
        lease, ttl_us = f"model:{model_id}", round(service.config.schedule.lease * SECOND_US)
        epoch = leases.acquire(engine, lease, service.owner, now_us, ttl_us, model_id=model_id)
        if epoch is None:  # a process that knows the model has it
            continue
        at = ledger.standing(engine, model_id, name, 0)
        _, acts = told(engine, name, now_us, service.config)
        step = lifecycle.settle([a.act for a in acts], at.open, {}, rules, now_us)
        tick = ledger.TickCommit(
            model_id=model_id, epoch=epoch, position=at.position, to_position=at.position, watermark_us=at.watermark_us,
            last_event_us=at.last_event_us, now_us=now_us, alerts=step.alerts, transitions=step.transitions,
            applied=[a.id for a in acts],
        )  # fmt: skip
        ledger.commit(engine, tick, service.sinks_for)
        leases.release(engine, lease, service.owner)


def unregistered(service: Service, now_us: int, clock: str) -> list[Decision]:
    """One incident per source that names models the configuration does not know."""
    found = []
    for source, names in ledger.unregistered_names(service.engine).items():
        first_us, last_us = min(n[2] for n in names), max(n[3] for n in names)
        firing = clock == "log" or now_us - last_us < QUIET_US
        found.append(
            Decision(
                model=UNREGISTERED,
                event=Event.UNREGISTERED_MODEL,
                family=Family.ACCESS,
                subject=Subject("source", source),
                firing=firing,
                time_us=first_us if firing else last_us + QUIET_US,
                window_us=(first_us, last_us),
                detector="registry",
                statistic=float(len(names)),
                threshold=0.0,
                n=sum(n[1] for n in names),
                fixed_rule=True,
                evidence={"models": [{"name": n[0], "events": n[1]} for n in names[:100]]},
            )
        )
    return found
