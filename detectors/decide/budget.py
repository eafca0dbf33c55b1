"""One false-alarm budget per model over everything that is judged by windows.

Each detection brings e-values of many bets (Streams). Per bet runs M_t = (M_{t-1} + 1) e_t; a weighted sum of such
e-detectors is one again, so an alarm at level L comes at most once in L windows on average when nothing is wrong,
however many features and bets share it (Shin, Ramdas and Rinaldo 2023). Events that answer different questions have
lanes of their own (drift, traffic); the detectors of all lanes split the budget by SHARES, window lengths equally. The whole model and its segments
split it by the weights of their bets, so that whichever reaches the level first costs the same budget. What the model's
own incident names is not told again by its segments.

While an incident is open, a second e-detector per named feature tests "the shift is still at least three fifths of its size
at the alarm": bet exp(-h z + h h / 2) with h three fifths of that size, level 100, at least three windows on the way to it.
A feature that came back leaves by update; when none is left the incident clears and the lane starts afresh.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from detectors import stats
from detectors.base import Detection, Feedback, State, Streams
from detectors.decide.made import Decided
from monitor.model import SECOND_US, Alert, Decision, Event, Family, Subject, finite, rfc3339

VERSION: Final = 2
MIN_BLAME: Final = 0.05  # features with this share of the evidence are named
RETURN_LEVEL: Final = 100.0
RETURN_PART: Final = 0.6  # of the shift at the alarm; more ends incidents sooner, but also under shifts that go on
RETURN_WINDOWS: Final = 3
MIN_SHIFT: Final = 0.6  # in sd between windows: a smaller one the return test could hardly tell from none
SUSPECT_SHARE: Final = 0.1  # from this part of the level on nothing is learnt from the windows
LANES: Final[Mapping[Event, str]] = {  # event of a detection -> its lane
    Event.FEATURE_DRIFT: "drift",
    Event.PREDICTION_DRIFT: "drift",
    Event.TRAFFIC_ANOMALY: "traffic",
    Event.DATA_QUALITY: "quality",
    Event.PERFORMANCE_DECAY: "performance",
}
SHARES: Final[Mapping[tuple[str, str], float]] = {  # (lane, detector) -> its part of the model's budget; the sum is 1
    ("drift", "marginals"): 0.9,
    ("traffic", "volume"): 0.04,
    ("quality", "rules"): 0.024,
    ("quality", "freshness"): 0.006,
    ("performance", "performance"): 0.018,
    ("performance", "fairness"): 0.012,
}
SIGN: Final = 0.5  # part of the level, in nats, from which on inputs show a drift too: their answers follow them
OUTPUTS: Final = ("prediction", "score:")  # blame that speaks of the model's answers


@dataclass(frozen=True)
class BudgetSettings:
    """rate_per_s: false alarms that one model may cost, over all lanes. lengths: how many window lengths share it."""

    rate_per_s: float
    lengths: int = 1

    @classmethod
    def derive(cls, rate_per_s: float, windows_us: Sequence[int]) -> BudgetSettings:
        """Settings from the configured budget and the window lengths of the model's monitors.

        >>> BudgetSettings.derive(1 / (30 * 86400), [3_600_000_000, 3_600_000_000]).lengths
        1
        """
        return cls(rate_per_s, max(1, len(set(windows_us))))

    def log_level(self, share: float, length_us: int) -> float:
        """Natural log of the windows between false alarms that a detector with this share of the budget may have.

        >>> round(math.exp(BudgetSettings(1 / (30 * 86400)).log_level(1.0, 3600 * 1_000_000)))
        720
        """
        return math.log(max(1.0, self.lengths / (self.rate_per_s * length_us / SECOND_US * share)))


@dataclass
class _Lane:
    """Running evidence of one event lane at one window length about one subject. `bets`: digest of the bets' names, whose
    order is that of the arrays.
    """

    key: str
    bets: str
    log_m: np.ndarray[Any, np.dtype[np.float64]]
    climb: np.ndarray[Any, np.dtype[np.float64]]  # CUSUM of log e, for the onset
    z_sum: np.ndarray[Any, np.dtype[np.float64]]
    z_n: np.ndarray[Any, np.dtype[np.int64]]
    onset_us: np.ndarray[Any, np.dtype[np.int64]]
    named: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # event -> features of its open incident

    @classmethod
    def fresh(cls, key: str, streams: Streams) -> _Lane:
        k = len(streams.names)
        none, zero = np.full(k, -np.inf), np.zeros(k)
        return cls(key, streams.key, none, zero, zero.copy(), np.zeros(k, np.int64), np.zeros(k, np.int64))

    @classmethod
    def load(cls, key: str, meta: Mapping[str, Any], state: State) -> _Lane:
        a = {part: np.array(state.arrays[f"{key}/{part}"]) for part in ("log_m", "climb", "z_sum", "z_n", "onset_us")}
        named = {e: [dict(f) for f in features] for e, features in meta["named"].items()}
        return cls(key, meta["bets"], **a, named=named)

    @property
    def about(self) -> tuple[str, str, int, str]:
        """Name of the lane, detector, window length, and the segment ("" for the whole model)."""
        name, detector, length_us, segment = self.key.split(":", 3)
        return name, detector, int(length_us), segment

    @property
    def taken(self) -> set[str]:
        """Features that its open incidents name."""
        return {f["name"] for features in self.named.values() for f in features}

    def step(self, streams: Streams, start_us: int, told: Collection[str]) -> None:
        """One window's bets on every bet that is not about a feature named here or `told` elsewhere."""
        taken = self.taken.union(told)
        free = np.array([b not in taken for b in streams.blame]) if taken else np.ones(len(streams.blame), dtype=bool)
        log_e = np.where(free, streams.log_e, 0.0)
        grown = np.logaddexp(self.log_m, 0.0) + log_e
        bets = streams.log_e != 0.0  # a bet without score stands still
        self.log_m = np.where(free & bets, grown, np.where(free, self.log_m, -np.inf))
        begins = (self.climb <= 0) & bets
        self.onset_us = np.where(begins, start_us, self.onset_us)
        z = np.nan_to_num(streams.z)
        self.z_sum = np.where(begins, z, self.z_sum + np.where(bets, z, 0.0))
        self.z_n = np.where(begins, 1, self.z_n + bets)
        self.climb = np.maximum(self.climb, 0.0) + streams.log_e

    def restart(self) -> None:
        self.log_m[:] = -np.inf
        self.climb[:] = 0.0


def budget(
    state: State | None,
    detections: Sequence[Detection],
    open: Sequence[Alert],
    settings: BudgetSettings,
    model: str,
    judge_us: int,
) -> Decided:
    """Decide over all window detections of one window end.

    `open` are the alerts open just before, including those that earlier calls opened; an incident that is gone from it
    was closed by a person, and its lane starts afresh. Decisions are dated `judge_us` and only made when something
    changes: an incident opens, its features change, it ends. Feedback: frozen while anything is open or nearly so,
    restart when an incident ended in this call.
    """
    lanes = (
        {}
        if state is None or state.version != VERSION
        else {k: _Lane.load(k, m, state) for k, m in state.meta["lanes"].items() if tuple(k.split(":")[:2]) in SHARES}
    )
    alive = {(a.event.value, a.subject) for a in open}
    decisions: list[Decision] = []
    restart = False
    for lane in lanes.values():  # closed elsewhere
        gone = [e for e in lane.named if (e, _subject(model, lane.about[3])) not in alive]
        for e in gone:
            del lane.named[e]
        if gone:
            lane.restart()
            restart = True
    for d in detections:
        if d.streams is None or d.event not in LANES:
            continue
        name = LANES[d.event]
        length_us = d.window_us[1] - d.window_us[0]
        key = f"{name}:{d.detector}:{length_us}:{d.subject.id if d.subject.kind == 'segment' else ''}"
        if key not in lanes or lanes[key].bets != d.streams.key:
            lanes[key] = _Lane.fresh(key, d.streams)
        lane = lanes[key]
        log_level = settings.log_level(SHARES[name, d.detector], length_us)
        for event, left in _returned(lane, d.streams).items():
            decisions.append(_decision(lanes, event, d, model, judge_us, left=left))
            if event.value not in lane.named:
                lane.restart()
                restart = True
        lane.step(d.streams, d.window_us[0], _told(lanes, lane))
        crossed, log_e = _crossed(lane, d, log_level)
        if crossed is not None:
            decisions.append(_decision(lanes, crossed, d, model, judge_us, log_e=log_e, log_level=log_level))
    _forget(lanes, detections)
    held = {(e, _subject(model, lane.about[3])) for lane in lanes.values() for e in lane.named}
    decided = {(x.event.value, x.subject) for x in decisions}
    decisions += _orphans(open, held | decided, detections, model, judge_us)
    return Decided(_save(lanes), decisions, Feedback(frozen=_frozen(lanes, settings), restart=restart))


def kept(state: State, judging: Collection[tuple[str, int]]) -> State:
    """The running evidence of these detectors and window lengths; what others found ends with the next window."""
    if state.version != VERSION:
        return state
    lanes = {key: _Lane.load(key, meta, state) for key, meta in state.meta["lanes"].items()}
    return _save({key: lane for key, lane in lanes.items() if lane.about[1:3] in judging})


def _subject(model: str, segment: str) -> Subject:
    return Subject("segment", segment) if segment else Subject("model", model)


def _told(lanes: Mapping[str, _Lane], lane: _Lane) -> set[str]:
    """What the whole model's incidents name already, for a lane of a segment."""
    name, _, _, segment = lane.about
    whole = [x for x in lanes.values() if segment and x.about[0] == name and not x.about[3]]
    return {f for x in whole for f in x.taken}


def _forget(lanes: dict[str, _Lane], detections: Sequence[Detection]) -> None:
    """Drop segments that the detector no longer judges."""
    judged = {(d.detector, d.window_us[1] - d.window_us[0]) for d in detections if d.subject.kind == "model"}
    known = {d.subject.id for d in detections if d.subject.kind == "segment"}
    for key, (_, detector, length_us, segment) in [(k, lane.about) for k, lane in lanes.items()]:
        if segment and segment not in known and (detector, length_us) in judged:
            del lanes[key]


def _crossed(lane: _Lane, d: Detection, log_level: float) -> tuple[Event | None, float]:
    """Name the features that carry the evidence once it reaches the level: the event they make, and the evidence."""
    assert d.streams is not None
    parts = lane.log_m + np.log(np.maximum(d.streams.weight, 1e-300))
    total = stats.log_sum_exp(parts)
    if total < log_level:
        return None, total
    shares = stats.blame(d.streams.blame, parts)
    event = d.event
    alone = Event.FEATURE_DRIFT.value not in lane.named  # answers that follow named features join their incident
    inputs = [p for b, p in zip(d.streams.blame, parts.tolist(), strict=True) if not b.startswith(OUTPUTS)]
    if event is Event.FEATURE_DRIFT and alone and stats.log_sum_exp(np.array(inputs)) < SIGN * log_level:
        event = Event.PREDICTION_DRIFT
    features = lane.named.setdefault(event.value, [])
    for feature, share in shares.items():
        if share < MIN_BLAME:
            continue
        own = [i for i, b in enumerate(d.streams.blame) if b == feature]
        lead = own[int(np.argmax(parts[own]))]
        shift = max(MIN_SHIFT, lane.z_sum[lead] / max(1, lane.z_n[lead]))
        features.append(
            {
                "name": feature, "share": float(share), "bet": d.streams.names[lead], "h": float(RETURN_PART * shift), "log_m": -math.inf,
                "windows": 0, "onset_us": int(lane.onset_us[lead]), "log_e": float(stats.log_sum_exp(parts[own])),
            }
        )  # fmt: skip
        lane.log_m[own] = -np.inf
    return event, total


def _returned(lane: _Lane, streams: Streams) -> dict[Event, list[dict[str, Any]]]:
    """Test each named feature for return and take those that did from the lane: by event, those that left."""
    place = {n: i for i, n in enumerate(streams.names)} if lane.named else {}
    gone: dict[Event, list[dict[str, Any]]] = {}
    for event, features in list(lane.named.items()):
        for f in features:
            z, h = float(streams.z[place[f["bet"]]]), f["h"]
            if math.isfinite(z):
                f["log_m"] = float(np.logaddexp(f["log_m"], 0.0)) - h * z + h * h / 2
                f["windows"] = f["windows"] + 1 if f["log_m"] > 0 else 0
        left = [f for f in features if f["log_m"] >= math.log(RETURN_LEVEL) and f["windows"] >= RETURN_WINDOWS]
        if left:
            gone[Event(event)] = left
            lane.named[event] = [f for f in features if f not in left]
            if not lane.named[event]:
                del lane.named[event]
    return gone


def _decision(
    lanes: Mapping[str, _Lane],
    event: Event,
    d: Detection,
    model: str,
    judge_us: int,
    *,
    left: Sequence[Mapping[str, Any]] = (),
    log_e: float | None = None,
    log_level: float | None = None,
) -> Decision:
    """The incident as all lanes see it now; over when none names a feature any more (then it tells what it was about)."""
    segment = d.subject.id if d.subject.kind == "segment" else ""
    own = [lane for lane in lanes.values() if lane.about[3] == segment]
    held = [f for lane in own for f in lane.named.get(event.value, ())]
    features = sorted(held or left, key=lambda f: (-f["share"], f["name"]))
    total = sum(f["share"] for f in features) or 1.0
    evidence: dict[str, Any] = {
        "detectors": [
            {"name": d.detector, "log_e": finite(stats.log_sum_exp(np.array([f["log_e"] for f in features])))}
        ],
        "onset": rfc3339(min(f["onset_us"] for f in features)),
        "bets": {f["name"]: f["bet"].rsplit("/", 1)[0] for f in features},
    }
    if event is not Event.TRAFFIC_ANOMALY:
        evidence["features"] = [{"name": f["name"], "share": finite(f["share"] / total)} for f in features]
    # The mix of the context, which the drift is beyond; who sent the traffic.
    evidence |= {k: d.evidence[k] for k in ("mix", "sources") if k in d.evidence}
    if left:
        evidence["returned"] = sorted(f["name"] for f in left)
    if not held:
        evidence["reason"] = "returned"
    return Decision(
        model=model, event=event, family=d.family, subject=_subject(model, segment), firing=bool(held), time_us=judge_us,
        window_us=d.window_us, detector=d.detector, statistic=finite(d.statistic), threshold=finite(log_level),
        p_value=finite(d.p_value), log_e=finite(log_e), n=d.n, evidence=evidence,
    )  # fmt: skip


def _orphans(
    open: Sequence[Alert], known: set[tuple[str, Subject]], detections: Sequence[Detection], model: str, judge_us: int
) -> list[Decision]:
    """End incidents that the amended state knows nothing of (late rows took their evidence away, a segment is gone)."""
    ends = []
    for a in open:
        own = a.subject == Subject("model", model) or a.subject.kind == "segment"
        if a.event in LANES and own and (a.event.value, a.subject) not in known:
            window = detections[0].window_us if detections else a.window_us
            ends.append(
                Decision(
                    model=model, event=a.event, family=Family(a.family), subject=a.subject, firing=False, time_us=judge_us,
                    window_us=window, detector=a.detector, evidence={**a.evidence, "reason": "amended"},
                )
            )  # fmt: skip
    return ends


def _frozen(lanes: Mapping[str, _Lane], settings: BudgetSettings) -> bool:
    """Whether the baseline must not move: an incident is open, or evidence has come near the level."""
    for lane in lanes.values():
        name, _, length_us, _ = lane.about
        share = sum(part for (other, _), part in SHARES.items() if other == name)  # sooner than a detector's own level
        near = settings.log_level(share, length_us) + math.log(SUSPECT_SHARE)
        if lane.named or (len(lane.log_m) and float(lane.log_m.max()) - math.log(len(lane.log_m)) >= near):
            return True
    return False


def _save(lanes: Mapping[str, _Lane]) -> State:
    arrays, meta = {}, {}
    for key, lane in sorted(lanes.items()):
        meta[key] = {"bets": lane.bets, "named": lane.named}
        for part in ("log_m", "climb", "z_sum", "z_n", "onset_us"):
            arrays[f"{key}/{part}"] = getattr(lane, part)
    return State("budget", VERSION, "", {"lanes": meta}, arrays)
