"""Queries that look like a search: rows no honest client sends, and chains of near-duplicates of one row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors import constraints, signals, stats
from detectors.base import Calibration, Evidence, Feedback, Measured, State, Window
from detectors.chains import Chains, near_threshold
from detectors.constraints import Constraints
from detectors.signals import Encoder, Frame
from detectors.stats import Floats
from monitor.errors import CalibrationRefused
from monitor.model import Family

VERSION: Final = 1
REFERENCE_ROWS: Final = 20_000  # a longer reference is thinned evenly
SHOWN: Final = 4  # broken rules named per event


@dataclass(frozen=True)
class Queries:
    """Per principal: rows that break what every reference row keeps to, and near-duplicates of its own recent rows.

    Idea: who searches a model's boundary, inverts it or copies it by queries moves in small steps around a few rows, and
    mostly sends values that nobody sends. Two flags per event. *schema*: the row breaks two or more learnt rules
    (range, known code, precision, unknown or ill-typed fields; detectors.constraints). *near*: the row resembles one of
    the principal's last `memory` distinct rows by at least a calibrated number of bits (detectors.signals.surprise)
    while three or more fields differ. Exact repeats (retries, probes) are no evidence at all; a row that differs from
    an earlier one in one or two fields is a what-if and not flagged, unless its chain has wandered in five fields.

    Math: per flag F with tolerated rate rho, e-values (r/rho)^F ((1-r)/(1-rho))^(1-F) for r in {2 rho + .05, .3, .6,
    .95}; fuse() runs a CUSUM of each per principal and averages them (detectors.decide).

    Assumptions: honest principals of every kind stay under the tolerated rates. The threshold in bits is the smallest
    for which reference traffic does: in its own order, by its own principals, shuffled, sorted by one or three
    features, and cut to segments. Where no threshold below what an attacker can reach does, the near signal is refused
    (few or coarse features) and the schema signal goes on alone; the other way round too.

    False alarms: at most one per `FuseSettings.level` events over all principals while flags keep to the tolerated
    rates. What-if sweeps over one or two fields do not flag by construction; explainers that perturb many fields do.
    In-distribution extraction is invisible here. Measured rates: docs/detectors.md.

    Parameters: rho_schema, rho_near: tolerated shares of flagged events; memory: distinct rows remembered per
    principal; min_rows: reference rows that calibration needs; max_mb: memory for recent rows of all principals.

    Reference: Chen, Carlini and Wagner 2020 (stateful detection); Li et al. 2022 (Blacklight); Shin, Ramdas and
    Rinaldo 2023 (e-detectors).

    >>> Queries().memory
    100
    """

    name: ClassVar[str] = "queries"
    family: ClassVar[Family] = Family.ANOMALY
    reads: ClassVar[str] = "log"

    rho_schema: float = 0.01
    rho_near: float = 0.02
    memory: int = 100
    min_rows: int = 200
    max_mb: float = 128.0

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """Rules, codes and the bit threshold. Raises CalibrationRefused when neither signal can be had."""
        windows = [w for w in reference if w.n]
        profile = windows[0].profile() if windows else None
        bins = profile.bins if profile is not None else None
        if bins is None:
            raise CalibrationRefused("the reference has no rows to learn from")
        own = [(f.name, f.kind) for f in bins.features if f.column == f"feature:{f.name}"]
        numeric = [n for n, kind in own if kind == "number"]
        categorical = [n for n, kind in own if kind == "category"]
        if not own:
            raise CalibrationRefused("the reference has no features")
        rows = pa.concat_tables([w.rows([*_columns(numeric, categorical)]) for w in windows], promote_options="default")
        if rows.num_rows < self.min_rows:
            raise CalibrationRefused(f"the reference has {rows.num_rows} rows and {self.min_rows} are needed")
        if rows.num_rows > REFERENCE_ROWS:
            rows = rows.take(pa.array(np.linspace(0, rows.num_rows - 1, REFERENCE_ROWS).astype(np.int64)))
        frame = Frame.of(rows, numeric, categorical)
        rng = stats.seeded(windows[0].model, self.name, reference_hash)
        rules = constraints.learn(frame, self.rho_schema, rng)
        encoder = Encoder.fit(frame)
        codes = encoder.codes(frame)
        table = signals.surprise(codes, len(numeric))
        found = near_threshold(frame, codes, table, _callers(rows), self.memory, self.rho_near, rng)
        refused = {"near": found.refused} if found.refused else {}
        if rules is None:
            refused["schema"] = "fresh reference rows break the rules that the reference teaches too often"
        if len(refused) == 2:
            raise CalibrationRefused("; ".join(f"{k}: {v}" for k, v in sorted(refused.items())))
        rules = rules if rules is not None else Constraints.fit(frame, np.inf)
        meta, arrays = rules.pack()
        meta |= {
            "rho_schema": self.rho_schema, "rho_near": self.rho_near, "memory": self.memory, "max_mb": self.max_mb,
            "rows": rows.num_rows, "refused": refused, "bits": found.bits, "benign_bits": found.benign, "self_bits": found.reach,
            "codes": [list(w) for w in encoder.words],
        }  # fmt: skip
        return Calibration(
            self.name, VERSION, reference_hash, meta, {**arrays, "edges": encoder.edges, "surprise": table}
        )

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """Evidence per event of the stretch that has a principal; no detections of its own."""
        learnt = _learnt(cal)
        known = state if state is not None and state.calibration_hash == cal.hash and state.version == VERSION else None
        chains = Chains.load(known, len(learnt.features), self.memory)
        rows = window.rows([*_columns(learnt.rules.numeric, learnt.rules.categorical), "quality", "extra"])
        who, names = _principals(rows)
        at = np.flatnonzero(who >= 0)
        if not len(at):
            return Measured(
                state if known is not None and state is not None else chains.save(self.name, VERSION, cal.hash)
            )
        frame = Frame.of(rows, learnt.rules.numeric, learnt.rules.categorical).take(at)
        broken = learnt.rules.broken(frame) + _strange(rows, at)
        codes, who = learnt.encoder.codes(frame), who[at]
        met = chains.meet(names, who, codes, frame.marks(), frame.whole(), learnt.table, learnt.bits, broken >= 2)
        schema = (broken >= 2) & ~met.what_if & met.fresh
        if "schema" in cal.meta["refused"]:
            schema[:] = False
        log_e = np.concatenate(
            [signals.bernoulli_bets(schema, self.rho_schema), signals.bernoulli_bets(met.near, self.rho_near)], axis=1
        )
        half = log_e.shape[1] // 2
        log_e[~met.fresh] = 0.0
        log_e[:, :half] *= "schema" not in cal.meta["refused"]
        log_e[:, half:] *= "near" not in cal.meta["refused"]
        flag = schema | met.near
        evidence = Evidence(
            detector=self.name, family=self.family, principals=names, code=who.astype(np.int32), row=at,
            time_us=np.asarray(rows.column("event_time"), dtype=np.int64)[at], log_e=log_e, flag=flag,
            details=_why(learnt.rules, frame, at, schema, met.near, met.bits, met.differs),
            columns=tuple(f"{s}/{r}" for s, rho in (("schema", self.rho_schema), ("near", self.rho_near)) for r in signals.tolerated(rho)),
        )  # fmt: skip
        chains.forget(round(self.max_mb * 1e6))
        return Measured(chains.save(self.name, VERSION, cal.hash), (), evidence)


@dataclass(frozen=True)
class _Learnt:
    """A calibration unpacked. bits: inf when the near signal was refused."""

    rules: Constraints
    encoder: Encoder
    table: NDArray[np.float32]
    bits: float

    @property
    def features(self) -> tuple[str, ...]:
        return (*self.rules.numeric, *self.rules.categorical)


def _learnt(cal: Calibration) -> _Learnt:
    """Unpacked once per calibration and process: what it holds never changes."""
    if cal.hash not in _KEPT:
        if len(_KEPT) >= 64:
            _KEPT.pop(next(iter(_KEPT)))
        encoder = Encoder(np.asarray(cal.arrays["edges"]), tuple(tuple(w) for w in cal.meta["codes"]))
        bits = float("inf") if cal.meta["bits"] is None else float(cal.meta["bits"])
        _KEPT[cal.hash] = _Learnt(
            Constraints.unpack(dict(cal.meta), dict(cal.arrays)), encoder, np.asarray(cal.arrays["surprise"]), bits
        )
    return _KEPT[cal.hash]


_KEPT: dict[str, _Learnt] = {}


def _columns(numeric: Sequence[str], categorical: Sequence[str]) -> tuple[str, ...]:
    return ("event_time", "principal", *(f"feature:{n}" for n in (*numeric, *categorical)))


def _principals(rows: pa.Table) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Each row's principal as an index into the names, -1 for none; names in order of appearance."""
    if "principal" not in rows.column_names or pa.types.is_null(rows.schema.field("principal").type):
        return np.full(rows.num_rows, -1, dtype=np.int64), ()
    encoded = pc.dictionary_encode(rows["principal"].cast(pa.string()).combine_chunks())
    index = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return index, tuple(encoded.dictionary.to_pylist())


def _callers(rows: pa.Table) -> NDArray[np.int64]:
    return _principals(rows)[0]


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


def _why(
    rules: Constraints,
    frame: Frame,
    at: NDArray[np.int64],
    schema: NDArray[np.bool_],
    near: NDArray[np.bool_],
    bits: Floats,
    differs: NDArray[np.int64],
) -> Mapping[int, Mapping[str, Any]]:
    """What an analyst reads of each flagged row: the broken rules with the values, how near to which chain."""
    flagged = np.flatnonzero(schema | near)
    if not len(flagged):
        return {}
    part = frame.take(flagged)
    broken: dict[int, list[str]] = {}
    for rule, name, mask in rules.breaches(part):
        for i in np.flatnonzero(mask).tolist():
            if len(broken.setdefault(i, [])) < SHOWN:
                broken[i].append(f"{rule}: {name} = {_value(part, name, i)}")
    out: dict[int, dict[str, Any]] = {}
    for i, k in enumerate(flagged.tolist()):
        why: dict[str, Any] = {"signals": [s for s, on in (("schema", schema[k]), ("near", near[k])) if on]}
        if schema[k]:
            why["broken"] = broken.get(i, [])
        if near[k]:
            why["near"] = {"bits": round(float(bits[k]), 1), "fields_differ": int(differs[k])}
        out[int(at[k])] = why
    return out


def _value(frame: Frame, name: str, i: int) -> str:
    if name in frame.numeric:
        return f"{frame.numbers[i, frame.numeric.index(name)]:.6g}"
    j = frame.categorical.index(name)
    return repr(frame.vocabulary[j][int(frame.words[i, j])][:40])
