"""Queries that look like a search: rows no honest client sends, steps around a row, steps towards the boundary."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors import signals
from detectors.anomaly import lately, own
from detectors.anomaly.learnt import SIGNALS, Learnt, as_rows, callers, learn
from detectors.anomaly.peers import Peers
from detectors.anomaly.traits import traits
from detectors.anomaly.ways import WAYS, Ways, ties
from detectors.answers import Answers
from detectors.base import LOOKS, Calibration, Caller, Evidence, Feedback, Measured, State, Window
from detectors.chains import Chains
from detectors.constraints import Breach, Constraints
from detectors.pool import Pool
from detectors.search import NOT, WHAT_IF, Met, Rows
from detectors.signals import Frame
from monitor.model import Family

VERSION: Final = 8
SHOWN: Final = 4  # broken rules named per event
ALIKE: Final = np.array([0, 1, 2, 2], np.uint8)  # search.Met.excused as what Evidence.alike says
DRAWN, SLOPES = np.uint8(3), np.uint8(4)  # and search.Met.drawn and slope
DECLARED: Final[Mapping[str, frozenset[str]]] = {  # signals that a declared use of the model explains
    "what_if": frozenset(SIGNALS),
    "explainer": frozenset(SIGNALS),
    "load_test": frozenset({"near", "crowd", "cross", "joint", "edge", "shared"}),
    "health_probe": frozenset({"near", "crowd", "cross", "shared"}),
    "batch": frozenset({"near", "crowd", "cross", "shared"}),
    "retries": frozenset({"near", "crowd", "cross", "shared"}),
    "segment": frozenset({"joint", "edge"}),
}


@dataclass(frozen=True)
class Queries:
    """Per principal: made-up rows, small steps from its own or other callers' rows, and answers near the boundary.

    Idea: who searches a model's boundary, inverts it or copies it by queries moves in small steps around a few rows, and
    mostly sends values, or combinations of values, that nobody sends. Seven flags per event. *schema*: the row breaks two
    or more learnt rules, or rules across fields (detectors.constraints). *near*: it is a small step from one of the principal's last `memory`
    distinct rows (detectors.search). *crowd*: three of them resemble it more than honest clients' rows ever do.
    *cross*: one that got another answer does. *joint*: its values do not go together (detectors.plausibility). *edge*: the model
    was as unsure as it seldom is. *shared*: it is a small step from a recent row of another caller (detectors.pool),
    which ties the two; so does a flagged row with a credential or from an address by which another caller was flagged. What ties callers otherwise is
    handed to fuse(), which adds up what is too little of each (detectors.decide.pools). Exact repeats are no evidence; what-ifs and samples of explainers are excused (detectors.search).
    What flagged rows are like tells the technique (detectors.anomaly.traits).

    Math: per flag F with tolerated rate rho, e-values (r/rho)^F ((1-r)/(1-rho))^(1-F) for r in {2 rho + .05, .3, .6,
    .95}; fuse() runs a CUSUM of each per principal and averages them (detectors.decide). A principal whose own past is
    clean is tolerated down to a quarter of rho (detectors.anomaly.own): who turns from long honest use to a tenth of
    attack queries is found in half the queries. One that is new is tolerated no more than its settled peers.

    Assumptions: honest principals of every kind stay under the tolerated rates. Each threshold is the lowest for which
    simulated honest clients stay well below an alarm (detectors.honest); a signal for which there is none is refused
    and the others go on.

    False alarms: at most one per `FuseSettings.level` events over all principals while flags keep to the tolerated
    rates. Measured on real data sets, with what is never seen: docs/attacks.md.

    Parameters: rho_schema, rho_near, rho_crowd, rho_cross, rho_joint, rho_edge, rho_shared: tolerated shares of flagged events; memory:
    distinct rows remembered per principal; min_rows: reference rows that calibration needs; max_mb: memory for recent
    rows of all principals; where it is short each keeps fewer (detectors.chains).

    Reference: Chen, Carlini and Wagner 2020 (stateful detection); Li et al. 2022 (Blacklight); Shin, Ramdas and
    Rinaldo 2023 (e-detectors); catalogue and measurements: docs/attacks.md.

    >>> Queries().memory
    100
    """

    name: ClassVar[str] = "queries"
    family: ClassVar[Family] = Family.ANOMALY
    reads: ClassVar[str] = "log"
    version: ClassVar[int] = VERSION

    rho_schema: float = 0.01
    rho_near: float = 0.02
    rho_crowd: float = 0.02
    rho_cross: float = 0.02
    rho_joint: float = 0.05
    rho_edge: float = 0.15
    rho_shared: float = 0.03
    memory: int = 100
    min_rows: int = 200
    max_mb: float = 128.0

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """Rules, codes and thresholds. Raises CalibrationRefused when no signal can be had."""
        meta, arrays = learn(reference, reference_hash, self.name, self.min_rows, self.memory, self._rho())
        return Calibration(self.name, VERSION, reference_hash, meta | asdict(self), arrays)

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """Evidence per event of the stretch that has a principal; no detections of its own."""
        learnt = Learnt.of(cal)
        known = state if state is not None and state.calibration_hash == cal.hash and state.version == VERSION else None
        counts = own.width(len(SIGNALS))
        chains = Chains.load(known, len(learnt.features), len(learnt.rules.numeric), self.memory, counts, lately.WIDTH)
        pool = Pool.load(
            known.meta if known else None,
            known.arrays if known else {},
            len(learnt.features),
            len(learnt.rules.numeric),
        )
        ways, peers = Ways.load(known.meta if known else None), Peers.load(known.meta if known else None)
        peers.drop(feedback.suspects)
        rows = window.rows([*learnt.columns, *WAYS])
        who, names = callers(rows)
        at = np.flatnonzero(who >= 0)
        if not len(at):
            return Measured(known if known is not None else self._state(cal, chains, pool, ways, peers))
        frame = signals.framed(window, learnt.rules.numeric, learnt.rules.categorical).take(at)
        given, codes = Answers.of(rows).take(at), learnt.encoder.codes(frame)
        broken = learnt.rules.broken(frame)
        odd = np.asarray((learnt.joint.strangeness(codes, frame.numbers) > learnt.strange).any(axis=1))
        misfits = _strange(rows, at)
        broken = broken._replace(single=broken.single + misfits)
        sent = as_rows(frame, codes, given, broken, odd, given.margin <= learnt.edge)
        sent = sent._replace(who=who[at])
        declared = window.callers()
        judging = _Judging(peers, declared, feedback.suspects, misfits, _silent(cal, names, sent.who, declared))
        followed = self._follow(chains, pool, learnt, judging, names, sent, float(cal.meta["what_ifs"]))
        evidence, on = self._evidence(cal, rows, at, names, sent, judging.silent, followed)
        known_by, tied = ties(rows, at, sent.who, names, declared)
        flagged = np.flatnonzero(evidence.flag)
        shared = 1 + next(k for k, c in enumerate(evidence.columns) if c.startswith("shared/"))
        linked = [(int(at[i]), o, shared) for i in flagged.tolist() if (o := followed.others[i]) is not None]
        linked += [(r, o, 0) for r, o in ways.meet(rows, at[flagged], [names[k] for k in sent.who[flagged].tolist()])]
        table = tuple(dict.fromkeys([*names, *(o for _, o, _ in linked)]))
        place = {n: k for k, n in enumerate(table)}
        links = np.array([(r, place[o], bet) for r, o, bet in linked], dtype=np.int64).reshape(-1, 3)
        details = _Why(learnt.rules, frame, on, followed.met, flagged, at[flagged])
        found = replace(evidence, principals=table, links=links, details=details, ties=known_by, tied=tied)
        return Measured(self._state(cal, chains, pool, ways, peers), (), found)

    def _follow(
        self, chains: Chains, pool: Pool, learnt: Learnt, judging: _Judging, names: tuple[str, ...], sent: Rows,
        what_ifs: float,
    ) -> _Followed:  # fmt: skip
        """Move chains and pool on by all rows."""
        limit, rates = round(self.max_mb * 1e6), np.array([*self._rho().values()])
        done: list[_Followed] = []
        for piece in chains.pieces(len(sent.who), len(names), limit):
            part = Rows._make(a[piece] for a in sent)
            met = chains.meet(names, part, learnt.scale)
            unexcused = met.fresh & (met.excused == NOT)
            others = pool.meet(names, part, unexcused, learnt.groups, learnt.joint.place, learnt.scale, learnt.shared)
            on = {
                "schema": met.schema | (met.fresh & (judging.misfits[piece] >= 2)),  # what fits no schema has no honest reading
                "near": met.near, "crowd": met.crowd, "cross": met.cross, "joint": met.odd, "edge": met.edge,
                "shared": np.array([o is not None for o in others], dtype=bool),
            }  # fmt: skip
            fired = np.stack([on[s] for s in SIGNALS], axis=1)
            present, mine = np.unique(part.who, return_inverse=True)
            homes = chains.places_of([names[k] for k in present.tolist()])
            past, kept = chains.past[homes], chains.lately[homes]
            shares = own.shares(past, mine, met.fresh, fired, rates)
            share = judging.peers.limit(names, part.who, shares, judging.declared, judging.suspects)
            flags = fired & ~judging.silent[piece]
            alike = _alike(met, np.asarray(flags.any(axis=1)), part.broken)
            before = lately.count(kept, mine, met.fresh, alike, what_ifs)
            chains.past[homes], chains.lately[homes] = past, kept
            done.append(_Followed(met, flags, share, np.array(others, dtype=object), alike, before))
            chains.forget(limit, lambda past: own.against(past, rates))
        mets, *each = zip(*done, strict=True)
        return _Followed(Met._make(map(np.concatenate, zip(*mets, strict=True))), *map(np.concatenate, each))

    def _evidence(
        self, cal: Calibration, rows: pa.Table, at: NDArray[np.int64], names: tuple[str, ...], sent: Rows,
        silent: NDArray[np.bool_], followed: _Followed,
    ) -> tuple[Evidence, dict[str, NDArray[np.bool_]]]:  # fmt: skip
        """The evidence, and by signal the rows that it flags."""
        met, flags, rates = followed.met, followed.flags, self._rho()
        says = met.fresh[:, None] & ~silent
        bets = [
            own.bets(flags[:, j], rho, followed.share[:, j]) * says[:, j, None] for j, rho in enumerate(rates.values())
        ]
        on = {s: flags[:, j] for j, s in enumerate(SIGNALS)}
        flag = np.asarray(flags.any(axis=1))
        features = len(cal.meta["numeric"]) + len(cal.meta["categorical"])
        like = traits(met, sent.broken, on["edge"], flag, cal.meta["self_bits"], features)
        return Evidence(
            detector=self.name, family=self.family, principals=names, code=sent.who.astype(np.int32), row=at,
            time_us=np.asarray(rows.column("event_time"), dtype=np.int64)[at], log_e=np.concatenate(bets, axis=1),
            flag=flag, columns=tuple(f"{s}/{r}" for s, rho in rates.items() for r in signals.tolerated(rho)),
            traits=like, alike=followed.alike, before=followed.before, looks=_looks(met, on, flag, sent.broken),
        ), on  # fmt: skip

    def _rho(self) -> dict[str, float]:
        return {s: float(getattr(self, f"rho_{s}")) for s in SIGNALS}

    def _state(self, cal: Calibration, chains: Chains, pool: Pool, ways: Ways, peers: Peers) -> State:
        kept = chains.save(self.name, VERSION, cal.hash)
        meta, arrays = pool.save()
        return replace(
            kept, meta={**kept.meta, **meta, **ways.save(), **peers.save()}, arrays={**kept.arrays, **arrays}
        )


@dataclass(frozen=True)
class _Judging:
    """Whom the callers of a stretch are compared with besides themselves; per row the fields that fit no schema, and per
    signal where it says nothing.
    """

    peers: Peers
    declared: Mapping[str, Caller]
    suspects: frozenset[str]
    misfits: NDArray[np.int64]
    silent: NDArray[np.bool_]


class _Followed(NamedTuple):
    """Per row: what was met, the signals that flag it, the tolerated shares, the other caller that it belongs with, what it
    has in common with a tool's rows, and how many such came just before it (detectors.anomaly.lately).
    """

    met: Met
    flags: NDArray[np.bool_]
    share: NDArray[np.uint8]
    others: NDArray[np.object_]
    alike: NDArray[np.uint8]
    before: NDArray[np.uint8]


def _silent(
    cal: Calibration, names: Sequence[str], who: NDArray[np.int64], declared: Mapping[str, Caller]
) -> NDArray[np.bool_]:
    """Per row the signals that say nothing about it: refused by calibration, or explained by a declared use."""
    uses = [DECLARED.get(declared[n].profile, frozenset[str]()) if n in declared else frozenset[str]() for n in names]
    excused = np.array([[s in use or s in cal.meta["silent"] for s in SIGNALS] for use in uses], dtype=bool)
    return excused.reshape(-1, len(SIGNALS))[who]


def _alike(met: Met, flag: NDArray[np.bool_], broken: NDArray[np.int64]) -> NDArray[np.uint8]:
    """What queries have in common with a tool's: excused ones, what-ifs where they go on with the case before them, and
    flagged ones that draw each column by itself.
    """
    alike = ALIKE[met.excused] * (met.fresh & ~flag & ((met.excused != WHAT_IF) | met.again))
    alike[met.drawn & flag] = DRAWN
    alike[met.slope & (broken == 0)] = SLOPES
    return np.asarray(alike, np.uint8)


def _looks(
    met: Met, on: Mapping[str, NDArray[np.bool_]], flag: NDArray[np.bool_], broken: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """What each query looks like, a bit per entry of LOOKS."""
    stepping = on["near"] | on["crowd"] | on["cross"] | on["shared"]
    seen = {
        "varied": met.excused == WHAT_IF, "sampled": (met.excused > WHAT_IF) | met.drawn, "repeated": ~met.fresh,
        "one_rule": (broken == 1) & met.fresh & ~flag, "invalid": on["schema"], "implausible": on["joint"],
        "stepping": stepping, "boundary": on["edge"] | on["cross"],
    }  # fmt: skip
    return np.asarray(np.packbits(np.stack([seen[k] for k in LOOKS]), axis=0, bitorder="little")[0], np.uint8)


def _strange(rows: pa.Table, at: NDArray[np.int64]) -> NDArray[np.int64]:
    """Fields that do not fit or are not known: each ill-typed field counts, all unknown ones together count once."""
    out = np.zeros(len(at), dtype=np.int64)
    if "extra" not in rows.column_names or rows["extra"].null_count == rows.num_rows:
        return out
    text = rows["extra"].combine_chunks().take(pa.array(at))
    odd = pc.fill_null(pc.match_substring(text.cast(pa.string()), '"features"'), False).to_numpy(zero_copy_only=False)
    for i in np.flatnonzero(odd).tolist():
        try:
            extra = json.loads(text[i].as_py())
        except ValueError:
            continue
        misfits = extra.get("mismatch") or ()
        features = extra.get("features") or {}
        out[i] = len(misfits) + any(f not in misfits for f in features)
    return out


@dataclass(frozen=True)
class _Why(Mapping[int, Mapping[str, Any]]):
    """What an analyst reads of each flagged row: the broken rules with the values, how near to which chain.

    By row of the stretch. Found out when asked: of an attack's flagged rows few are ever shown.
    """

    rules: Constraints
    frame: Frame
    on: Mapping[str, NDArray[np.bool_]]
    met: Met
    flagged: NDArray[np.int64]  # places of the flagged rows in frame
    rows: NDArray[np.int64]  # and in the stretch, in order

    @cached_property
    def _place(self) -> Mapping[int, int]:
        return dict(zip(self.rows.tolist(), self.flagged.tolist(), strict=True))

    @cached_property
    def _broken(self) -> Mapping[int, Sequence[Breach]]:
        """The first rules that each row breaks: all rows at once cost little more than one."""
        at = np.flatnonzero(self.on["schema"])
        found: dict[int, list[Breach]] = {k: [] for k in at.tolist()}
        for b in self.rules.breaches(self.frame.take(at)):
            for k in at[b.rows].tolist():
                if len(found[k]) < SHOWN:
                    found[k].append(b)
        return found

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows.tolist())

    def __contains__(self, row: object) -> bool:
        return row in self._place

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        k = self._place[row]
        why: dict[str, Any] = {"signals": [s for s in SIGNALS if self.on[s][k]]}
        if self.on["schema"][k]:
            why["broken"] = [self.rules.say(b, self.frame, k) for b in self._broken[k]]
        if self.on["near"][k]:
            why["near"] = {"bits": round(float(self.met.bits[k]), 1), "fields_differ": int(self.met.differs[k])}
        elif self.on["crowd"][k] or self.on["cross"][k]:
            why["near"] = {"bits": round(float(self.met.step[k]), 1), "fields_differ": int(self.met.moved[k])}
        return why
