"""A state store with three watched models in it, as a service would have left it: what page and report are tested on.

card-fraud drifts (two features, incident open), credit-limit is being copied by one caller (incident open, one cleared),
churn is as usual. Counts, distances and shapes are computed by the product's own code from seeded rows; only the
verdicts are put in by hand, so that pages can be looked at without running a service for days.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa

from alerts.text import render
from detectors.base import Calibration
from detectors.profile import Bins, compare
from monitor.config import Config
from monitor.model import (
    HOUR_US,
    SECOND_US,
    Action,
    Alert,
    Event,
    Family,
    Severity,
    Subject,
    Transition,
    alert_id,
    parse_time_us,
    rfc3339,
    stable_id,
    transition_to_json,
)
from monitor.store import alertlog
from monitor.store.engine import write
from monitor.store.schema import (
    calibrations,
    dead_letters,
    detections,
    heartbeats,
    ledger,
    marks,
    models,
    outbox,
    partitions,
    profiles,
    references,
    unregistered,
)

NOW_US = parse_time_us("2026-11-22T14:05:20Z")
END_US = parse_time_us("2026-11-22T13:00:00Z")
WINDOWS = 9 * 24  # hours of history
HOSTILE = "<img src=x onerror=alert(1)>\"'&{{7*7}}\u202e</script><script>alert(2)</script>\x1b[2J\x07\r\nCLEARED"


@dataclass(frozen=True)
class Watched:
    """One model of the scene: its features as (mean, spread) or categories, and what happens to it."""

    name: str
    numeric: Mapping[str, tuple[float, float]]
    categorical: Mapping[str, tuple[str, ...]]
    per_hour: int
    drifting: tuple[str, ...] = ()
    segments: tuple[str, ...] = ()  # countries


MODELS = (
    Watched(
        "card-fraud",
        {
            "amount": (120, 60), "merchant_age_days": (900, 300), "hour": (13, 5), "velocity_1h": (2, 1.2),
            "distance_km": (18, 9), "card_age_days": (700, 250), "device_score": (0.6, 0.2), "ip_risk": (0.2, 0.1),
        },
        {"country": ("QA", "AE", "SA", "GB", "IN"), "channel": ("pos", "web", "app"), "mcc": ("5411", "5812", "4111", "6011")},
        420,
        ("amount", "merchant_age_days", "country"),
        ("QA", "AE", "SA"),
    ),
    Watched(
        "credit-limit",
        {"income": (5200, 1800), "age": (38, 11), "utilisation": (0.4, 0.2), "tenure_months": (60, 30), "inquiries": (1.4, 1.0)},
        {"segment": ("retail", "private", "sme"), "region": ("north", "south", "west")},
        260,
    ),
    Watched("churn", {"logins_30d": (14, 6), "balance": (2400, 900), "complaints": (0.4, 0.6)}, {"plan": ("basic", "plus", "gold")}, 150),
)  # fmt: skip


def rows(w: Watched, n: int, rng: np.random.Generator, shift: float = 0.0) -> pa.Table:
    """Events of a model as its detectors read them; `shift` moves the drifting features by so many spreads."""
    columns: dict[str, Any] = {}
    for name, (mean, sd) in w.numeric.items():
        moved = shift * sd if name in w.drifting else 0.0
        values = rng.normal(mean + moved, sd, n)
        columns[f"feature:{name}"] = np.where(rng.random(n) < 0.01, np.nan, values)
    for name, words in w.categorical.items():
        share = np.arange(len(words), 0, -1.0) ** (1.0 if name not in w.drifting else max(0.2, 1 - shift / 2))
        columns[f"feature:{name}"] = rng.choice(words, n, p=share / share.sum())
    p = 1 / (1 + np.exp(-rng.normal(-1.2 + 0.4 * shift, 1, n)))
    columns["prediction_label"] = np.where(p > 0.5, "yes", "no")
    table = pa.table(columns)
    return table.append_column("scores", pa.array(np.stack([1 - p, p], axis=1).tolist()))


def configured(*, hostile: bool = False, **settings: Any) -> Config:
    """The configuration of the scene; `hostile` puts markup and controls wherever it can name something."""
    bad = HOSTILE if hostile else None
    told = {"owner": bad or "cards-ml", "customer": bad, "runbook": bad or "RB-12"}
    more = settings.pop("models", {})
    models = {m.name: told | more.get(m.name, {}) for m in MODELS}
    return Config.model_validate({"environment": bad or "Production", "models": models, **settings})


def seed(engine: sa.Engine, *, hostile: bool = False, windows: int = WINDOWS) -> None:
    """Fill an empty, migrated store with the scene; `hostile` puts markup wherever a log or a configuration could put text."""
    rng = np.random.default_rng(7)
    bad = HOSTILE if hostile else None
    for w in MODELS:
        _model(engine, w if bad is None else spoiled(w, bad), rng, windows)
    _incidents(engine, bad)
    _held_back(engine, bad)
    _sources(engine, bad)


def spoiled(w: Watched, bad: str) -> Watched:
    """A model with markup for a feature and for a category."""
    numeric = {(bad if k in ("amount", "income", "balance") else k): v for k, v in w.numeric.items()}
    categorical = {k: (bad, *v[1:]) for k, v in w.categorical.items()}
    drifting = tuple(bad if d == "amount" else d for d in w.drifting)
    segments = (bad, *w.segments[1:]) if w.segments else ()
    return replace(w, numeric=numeric, categorical=categorical, drifting=drifting, segments=segments)


def _model(engine: sa.Engine, w: Watched, rng: np.random.Generator, windows: int) -> None:
    key, digest = stable_id("model", "Production", w.name), stable_id("reference", w.name).replace("-", "")
    base = rows(w, 12_000, rng)
    bins = Bins.fit(base, list(w.numeric), list(w.categorical))
    reference = bins.count(base)
    profile = Calibration("profile", 1, digest, {"bins": bins.to_bytes(), "reference": reference.to_bytes()})
    judged: list[dict[str, Any]] = []
    counted: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for i in range(windows):
        start = END_US - (windows - i) * HOUR_US
        end = start + HOUR_US
        hour = start // HOUR_US % 24
        n = int(rng.poisson(w.per_hour * (0.35 + 0.65 * np.exp(-(((hour - 14) / 6) ** 2)))))
        shift = min(1.0, max(0.0, (i - windows + 30) / 14)) if w.drifting else 0.0
        gap = i in (windows - 156, windows - 155)
        outcome, detail = ("gap", "missed for longer than catch_up") if gap else ("judged", None)
        shared = {"model_id": key, "end_us": end, "start_us": start}
        both = shared | {"outcome": outcome, "n": 0 if gap else n, "judged_us": end + 330 * SECOND_US, "detail": detail}
        judged += [both | {"monitor": monitor} for monitor in ("marginals", "volume")]
        if gap:
            continue
        p = bins.count(rows(w, n, rng, shift))
        counted.append(shared | {"reference_hash": digest, "n": n, "body": p.to_bytes()})
        told = _features(w, compare(bins, reference, p), shift, rng)
        found.append(_detection(w, key, shared, n, told))
        found += [_of_segment(found[-1], f"country:{c}", n // (3 + k)) for k, c in enumerate(w.segments)]
        if i == windows - 2:
            found += _concentrated(found[-1 - len(w.segments)], f"svc-{next(iter(w.categorical.values()))[0]}")
    with write(engine) as conn:
        conn.execute(
            models.insert().values(
                model_id=key, name=w.name, schema={"numeric": list(w.numeric), "categorical": list(w.categorical)},
                watermark_us=END_US + 3550 * SECOND_US, last_event_us=NOW_US - 12 * SECOND_US,
                last_tick_us=NOW_US - 2 * SECOND_US, reference_hash=digest,
            )
        )  # fmt: skip
        conn.execute(
            references.insert().values(
                reference_hash=digest, model_id=key, version=2, state="approved", path="reference.parquet", rows=12_000,
                origin="file reference.jsonl", body={"compared": _moved(next(iter(w.numeric)))}, created_us=END_US - 20 * 24 * HOUR_US,
            )
        )  # fmt: skip
        conn.execute(
            calibrations.insert().values(
                calibration_hash=profile.hash, model_id=key, detector="profile", params={}, reference_hash=digest,
                body=profile.to_bytes(), created_us=END_US,
            )
        )  # fmt: skip
        conn.execute(ledger.insert(), judged)
        conn.execute(profiles.insert(), counted)
        conn.execute(detections.insert(), found)


def _concentrated(like: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """One caller sent most of a window, one labeler gave most labels."""
    sources = {
        "callers": 12, "busiest_caller": name, "busiest_caller_share": 0.8125, "networks": 3, "busiest_network": "10.4.0.0/24",
        "busiest_network_share": 0.9, "crowded_network": "10.4.0.0/24", "callers_of_one_network": 9,
    }  # fmt: skip
    volume = {"detector": "volume", "monitor": "traffic", "family": "anomaly", "event": "TrafficAnomaly", "log_e": 0.0}
    labels = {"detector": "feedback", "monitor": "feedback", "family": "poisoning", "event": "PoisoningSuspected"}
    key = like["detection_id"]
    volume["detection_id"], labels["detection_id"] = stable_id("sources", key), stable_id("labelers", key)
    return [
        {**like, **volume, "evidence": {"events": 90, "sources": sources}},
        {**like, **labels, "evidence": {"labelers": 4, "busiest": name, "busiest_share": 0.62}},
    ]


def _moved(name: str) -> dict[str, Any]:
    """What a reference says of the version before it."""
    one = {"name": name, "js": 0.21, "psi": 0.3, "mean": [20.5, 27.25]}
    two = {"name": "country", "js": 0.1, "psi": 0.1, "came": [name], "went": []}
    return {"old": 1, "rows": [9_000, 12_000], "features": [one, two], "added": [name], "removed": []}


def _features(
    w: Watched, distances: Mapping[str, Mapping[str, Any]], shift: float, rng: np.random.Generator
) -> list[dict[str, Any]]:
    made = []
    for name, row in distances.items():
        moved = shift if name in w.drifting or name.startswith("score:") else 0.0
        log_e = float(rng.normal(-0.35, 0.45) + 1.5 * moved)
        made.append(
            {
                "name": name,
                **row,
                "p_value": float(min(1.0, 10 ** -max(0.0, rng.normal(0.3 + 2 * moved, 0.3)))),
                "log_e": log_e,
                "smallest": None if name == "hour" else 0.25 if row["wasserstein"] is not None else 0.03,
            }
        )
    return made


def _detection(
    w: Watched, key: str, shared: Mapping[str, Any], n: int, features: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        **shared, "detection_id": stable_id("detection", key, shared["end_us"]), "monitor": "marginals", "detector": "marginals",
        "family": "drift", "event": "FeatureDrift", "subject_kind": "model", "subject_id": w.name,
        "statistic": max(f["psi"] or 0.0 for f in features), "threshold": None, "p_value": min(f["p_value"] for f in features),
        "log_e": float(np.log(np.mean(np.exp([f["log_e"] for f in features])))), "n": n, "verdict": "ok",
        "evidence": {"history": 400, "features": features, "mix": [{"value": "channel:web", "reference": 0.5, "share": 0.375}]},
        "calibration_hash": None,
    }  # fmt: skip


def _of_segment(whole: Mapping[str, Any], name: str, n: int) -> dict[str, Any]:
    """The same window of a segment; the smallest has too few rows to be judged."""
    few = n < 40
    told = [f | {"smallest": 40.0 if f["wasserstein"] is not None else 0.045} for f in whole["evidence"]["features"]]
    evidence = (
        {"history": 400, "reason": "fewer than 40 rows in the window"}
        if few
        else {"history": 400, "features": told[:8]}
    )
    return {
        **whole, "detection_id": stable_id("detection", whole["detection_id"], name), "subject_kind": "segment",
        "subject_id": name, "n": n, "verdict": "insufficient" if few else "ok", "log_e": None if few else whole["log_e"],
        "evidence": evidence,
    }  # fmt: skip


def _alert(
    event: Event, family: Family, model: str, subject: Subject, severity: Severity, opened: int, **known: Any
) -> Alert:
    key = ("Production", "", model, subject.kind, subject.id, event.value)
    fields = {
        "open": True, "seq": 1, "updated_us": opened, "cleared_us": None, "detector": "marginals", "statistic": 0.31,
        "threshold": 6.58, "p_value": None, "log_e": 9.2, "n": 412, "window_us": (opened - HOUR_US, opened), "techniques": (),
        "text": "", "evidence": {}, **known,
    }  # fmt: skip
    return Alert(
        alert_id=alert_id(key, opened), environment="Production", customer=None, model=model, event=event, subject=subject,
        family=family, severity=severity, opened_us=opened, **fields,
    )  # fmt: skip


def reopened(alert: Alert) -> Alert:
    """A second incident on the same model: its prediction drifts as well."""
    later = replace(alert, event=Event.PREDICTION_DRIFT, seq=1, opened_us=END_US, updated_us=END_US)
    return replace(later, alert_id=alert_id(later.key, END_US))


def _behind(amount: str, caller: str) -> dict[str, Any]:
    """Who and why of the drift, as detectors.why tells it."""
    who = {"kind": "principal", "feature": "principal", "value": caller, "explains": 0.93, "share": 0.18, "share_before": 0.04}  # fmt: skip
    return {
        "bets": {amount: f"{amount}/location/+"},
        "changes": [{"name": amount, "measure": "mean", "before": 82.4, "after": 131.0, "unit": "QAR" if amount == "amount" else amount, "in_sd": 0.61}],
        "pictures": [{"name": amount, "labels": ["below 50", "from 50", amount], "before": [0.4, 0.5, 0.1], "after": [0.1, 0.6, 0.3]}],
        "explained_by": who,
        "concentrates": [who, {**who, "kind": "segment", "feature": amount, "value": amount, "explains": 0.41}],
        "causes": [{"name": amount, "cause": "unit", "factor": 100.0, "share": 0.17}],
        "versions": [{"version": amount, "before": 0.0, "after": 1.0, "first_seen": "2026-11-21T08:00:00.000Z"}],
        "score": [{"name": "score:fraud", "measure": "mean", "before": 0.031, "after": 0.048, "unit": None, "in_sd": 0.2}],
        "compared": {"before": 20000, "after": 1400, "since": "2026-11-21T08:00:00.000Z"},
        "mix": [{"value": amount, "reference": 0.5, "share": 0.3}, {"value": "all else", "reference": 0.5, "share": 0.7}],
    }  # fmt: skip


def _incidents(engine: sa.Engine, bad: str | None) -> None:
    amount, caller = bad or "amount", bad or "c-7f3a91"
    told = {"owner": bad or "cards-ml", "runbook": bad or "RB-12"}  # by the configuration, when they opened
    shares = [
        {"name": amount, "share": 0.58},
        {"name": "merchant_age_days", "share": 0.27},
        {"name": "country", "share": 0.15},
    ]
    one = {
        "features": shares[:1],
        "detectors": [{"name": "marginals", "log_e": 9.2}],
        "model_version": bad or "3.2",
        "detector_version": 4,
        "onset": "2026-11-21T08:00:00.000Z",
        **_behind(amount, caller),
    }
    drift = _alert(
        Event.FEATURE_DRIFT,
        Family.DRIFT,
        "card-fraud",
        Subject("model", "card-fraud"),
        Severity.MAJOR,
        END_US - 22 * HOUR_US,
        evidence=one,
        **told,
    )
    drift2 = replace(drift, seq=2, updated_us=END_US - 18 * HOUR_US, log_e=14.1, evidence={**one, "features": shares})
    asked = {
        "principals": [caller],
        "detectors": [{"name": "queries", "log_e": 12.4}],
        "queries": 512,
        "flagged": 488,
        "distinct_rows": 507,
    }
    subject = Subject("principal", caller)
    known = {
        "detector": "queries",
        "statistic": 12.4,
        "threshold": 11.1,
        "log_e": 12.4,
        "n": 512,
        "techniques": ("AML.T0024.002", "AML.T0040", "ML05:2023"),
    }
    attack = _alert(
        Event.ATTACK_SUSPECTED,
        Family.ANOMALY,
        "credit-limit",
        subject,
        Severity.MAJOR,
        END_US - 2 * HOUR_US,
        evidence=asked,
        **known,
        **told,
    )
    attack2 = replace(
        attack,
        seq=2,
        family=Family.EXTRACTION,
        severity=Severity.CRITICAL,
        updated_us=END_US - HOUR_US,
        log_e=41.7,
        evidence={**asked, "queries": 4096},
    )
    traffic = _alert(
        Event.TRAFFIC_ANOMALY, Family.ANOMALY, "churn", Subject("model", "churn"), Severity.WARNING, END_US - 80 * HOUR_US,
        detector="volume", statistic=4.1, threshold=3.2, log_e=None, **told,
    )  # fmt: skip
    cleared = replace(traffic, open=False, seq=2, updated_us=END_US - 70 * HOUR_US, cleared_us=END_US - 70 * HOUR_US)
    steps = [
        Transition(action, alert.updated_us, replace(alert, text=render(alert, action, tier=1)))
        for action, alert in (
            (Action.OPEN, drift), (Action.UPDATE, drift2), (Action.OPEN, attack), (Action.UPDATE, attack2),
            (Action.OPEN, traffic), (Action.CLEAR, cleared),
        )
    ]  # fmt: skip
    with write(engine) as conn:
        alertlog.write(conn, [s.alert for s in steps], steps, NOW_US)
        for s in steps:
            for sink, state, error in (
                ("soc", "sent", None),
                ("console", "sent", None),
                ("chat", "dead", bad or "401 unauthorised"),
            ):
                conn.execute(
                    outbox.insert().values(
                        row_id=stable_id("outbox", sink, s.alert.alert_id, s.alert.seq), sink=sink, lane=f"{sink}:{s.alert.alert_id}",
                        alert_id=s.alert.alert_id, seq=s.alert.seq, severity_rank=s.alert.severity.rank, ordinal=s.alert.seq, body=transition_to_json(s),
                        state=state, attempts=1, next_try_us=s.time_us, last_error=error, created_us=s.time_us, settled_us=s.time_us,
                    )
                )  # fmt: skip
        conn.execute(
            marks.insert().values(
                model="card-fraud", kind="deploy", start_us=END_US - 75 * HOUR_US, text=bad or "version 3.2 of the feature pipeline",
                actor=bad or "ci", recorded_us=NOW_US,
            )
        )  # fmt: skip


def _held_back(engine: sa.Engine, bad: str | None) -> None:
    """On credit-limit: an explainer, twice; two callers that are one; and who is an attacker an hour later."""
    lime = {
        "profile": "explainer",
        "why": bad or "84 of 97 strange queries are samples around rows that it sent as they are",
    }
    other = {"profile": "what_if", "why_not": bad or "12% of its 900 queries change a few fields of an earlier row"}
    svc, one, two = (f"{bad or 'svc'}-{c}" for c in ("lime", "a", "b"))
    told: tuple[tuple[str, str, int, int, Mapping[str, Any], list[str]], ...] = (
        ("principal", svc, 64, 5, lime, []),
        ("principal", svc, 1024, 4, lime, []),
        ("principal", one, 32, 5, lime, []),
        ("cluster", stable_id("cluster", one), 900, 3, other, [one, two]),
        ("principal", bad or "c-7f3a91", 32, 3, lime, []),
    )
    with write(engine) as conn:
        for kind, name, n, hours, like, members in told:
            end_us = END_US - hours * HOUR_US
            evidence = {
                "principals": members or [name], "queries": n, "flagged": n // 8, "look_alike": like,
                "onset": rfc3339(END_US - 6 * HOUR_US),
            }  # fmt: skip
            conn.execute(
                detections.insert().values(
                    detection_id=stable_id("held", name, n), model_id=stable_id("model", "Production", "credit-limit"),
                    monitor="queries", detector="queries", family="anomaly", event="AttackSuspected", subject_kind=kind,
                    subject_id=name, start_us=END_US - 6 * HOUR_US, end_us=end_us, statistic=12.1, threshold=11.1, p_value=None,
                    log_e=12.1, n=n, verdict="ok", evidence=evidence, calibration_hash=None,
                )
            )  # fmt: skip


def _sources(engine: sa.Engine, bad: str | None) -> None:
    with write(engine) as conn:
        for source, topic, count in (("gateway", "fraud.scores", 3), ("batch-files", bad or "9f2b7c41d0aa", 1)):
            for p in range(count):
                conn.execute(
                    partitions.insert().values(
                        source=source, topic=topic, partition=p, epoch=4, owner="collect@host:412", next_offset=48_201 + 977 * p,
                        max_event_us=NOW_US - (12 + p) * SECOND_US, caught_up_since_us=None if p == 1 else NOW_US - 8 * SECOND_US,
                        updated_us=NOW_US - (2 + p) * SECOND_US,
                    )
                )  # fmt: skip
        for i, reason in enumerate(("bad_json", "bad_json", "missing_field", "bad_time")):
            conn.execute(
                dead_letters.insert().values(
                    source="gateway", topic="fraud.scores", partition=0, offset=100 + i, reason=reason, detail=bad or "no object at /meta",
                    key=None, value=(bad or '{"meta": 7').encode(), headers=b"", timestamp_ms=None, truncated=False, received_us=NOW_US - i * HOUR_US,
                )
            )  # fmt: skip
        conn.execute(
            unregistered.insert().values(
                source="gateway",
                name=bad or "card-fraud-canary",
                events=1204,
                first_us=NOW_US - 30 * HOUR_US,
                last_us=NOW_US - 60 * SECOND_US,
            )
        )
        for name, age_s in (("publisher", 1), ("scheduler", 2), ("tick:card-fraud", 2)):
            conn.execute(heartbeats.insert().values(name=name, beat_us=NOW_US - age_s * SECOND_US, detail={}))
