"""What happened to each actor, and the table of issue numbers with exact intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alerts.policy import Policy
from benchmarks.attacks.actors import Stream
from benchmarks.attacks.judge import Judged, Log
from benchmarks.attacks.traffic import principals
from monitor.model import Decision, Event, Severity

LATER = 100  # queries after onset at which the family is read again


@dataclass(frozen=True)
class Outcome:
    """One actor. `queries`: from the first attack query to the opening decision, over all its principals; None: never.

    queries counts what the attacker sent since onset, padding included; `hostile` only those of the attack. `before`:
    alarmed on the honest history. pages: an incident of it became major or worse, which somebody is paged for. distinct: different rows sent. family, family_later: at opening, and LATER queries after onset. peaks: largest running
    log evidence per signal (best bet), flags: share of flagged events.
    """

    data: str
    name: str
    group: str
    kind: str
    attack: bool
    n: int
    distinct: int
    alarmed: bool
    pages: bool = False
    queries: int | None = None
    hostile: int | None = None
    before: bool = False
    principals: int = 1
    suspects: int = 0
    family: str = ""
    family_later: str = ""
    right: bool | None = None
    right_later: bool | None = None
    peaks: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, int | None] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        return asdict(self)


def outcomes(data: str, log: Log, of: NDArray[np.int64], streams: Sequence[Stream], judged: Judged) -> list[Outcome]:
    """One outcome per stream. `of`: index of the stream of every event of the log."""
    subjects = _by_subject(judged.decisions)
    peaks = _peaks(judged, log)
    out = []
    for i, s in enumerate(streams):
        ids = principals(s.actor)
        found = sorted((d for p in ids for d in subjects.get(p, ())), key=lambda d: d.time_us)
        times = np.sort(log.time_us[of == i])
        out.append(_outcome(data, s, ids, found, times, peaks))
    return out


def _outcome(
    data: str,
    s: Stream,
    ids: Sequence[str],
    found: Sequence[Decision],
    times: NDArray[np.int64],
    peaks: Mapping[str, Mapping[str, float]],
) -> Outcome:
    a, first = s.actor, int(np.argmax(s.attack)) if s.attack.any() else 0
    opened = [d for d in found if d.firing]
    own: dict[str, float] = {}
    for p in ids:
        for signal, value in peaks.get(p, {}).items():
            own[signal] = max(own.get(signal, -np.inf), round(value, 2))
    base = Outcome(
        data, a.name, a.group, a.kind, a.hostile, len(s.rows), len({r.tobytes() for r in s.rows}), bool(opened), principals=a.principals,
        suspects=len({d.subject.id for d in opened}), peaks=own, pages=paging(opened),
    )  # fmt: skip
    if not a.hostile or not opened:
        return replace(base, family=str(opened[0].family) if opened else "")
    places = [int(np.searchsorted(times, d.time_us)) for d in opened]
    after = [(p, d) for p, d in zip(places, opened, strict=True) if p >= first]
    before = any(p < first for p in places)
    if not after:
        return replace(base, before=before, alarmed=False, pages=False)
    place, opening = after[0]
    later = [d for p, d in after if p <= max(first + LATER, place)]
    family, family_later = opening.family, later[-1].family
    right = a.families
    return replace(
        base, before=before, queries=place - first + 1, hostile=int(s.attack[first : place + 1].sum()),
        family=str(family), family_later=str(family_later), right=family in right, right_later=family_later in right,
    )  # fmt: skip


def paging(decisions: Sequence[Decision]) -> bool:
    """Whether the default policy makes an incident of a model of tier 2 major or worse, by these decisions in time order."""
    policy, opened = Policy(), dict[str, Decision]()
    for d in decisions:
        first = opened.setdefault(d.subject.id, d)
        lasted_us = 0 if d.evidence.get("quiet") else d.time_us - first.time_us
        if policy.severity(d, policy.raises(d, first.threshold, lasted_us)).rank >= Severity.MAJOR.rank:
            return True
    return False


def _by_subject(decisions: Iterable[Decision]) -> dict[str, list[Decision]]:
    """Decisions about attacks by principal; those about a cluster count for every principal they name."""
    out: dict[str, list[Decision]] = {}
    for d in decisions:
        if d.event is Event.ATTACK_SUSPECTED:
            for p in {d.subject.id, *d.evidence.get("principals", ())}:
                out.setdefault(str(p), []).append(d)
    return out


def _peaks(judged: Judged, log: Log) -> dict[str, dict[str, float]]:
    """Per principal and signal the largest running log evidence of its best bet, and `flags/...`: share flagged."""
    out: dict[str, dict[str, float]] = {}
    for name, e in judged.evidence.items():
        if not len(e.row):
            continue
        order = np.argsort(e.code, kind="stable")
        code, x = e.code[order], e.log_e[order]
        edges = np.r_[np.flatnonzero(np.r_[True, code[1:] != code[:-1]]), len(code)]
        signals = [f"{name}/{c.rsplit('/', 1)[0]}" for c in e.columns] or [name] * x.shape[1]
        for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            path = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x[a:b], axis=0, dtype=np.float64)])
            best = (path - np.minimum.accumulate(path, axis=0)).max(axis=0)
            mine = out.setdefault(e.principals[code[a]], {})
            for signal, value in zip(signals, best.tolist(), strict=True):
                mine[signal] = max(mine.get(signal, 0.0), value)
            mine[f"flags/{name}"] = round(float(e.flag[order[a:b]].mean()), 4)
    return out


def exact(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of k successes in n independent actors.

    >>> low, high = exact(0, 300); round(low, 3), round(high, 4)
    (0.0, 0.0122)
    """
    from scipy.stats import beta

    if n == 0:
        return 0.0, 1.0
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else float(beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k == n else float(beta.ppf(1 - tail, k + 1, n - k))
    return low, high
