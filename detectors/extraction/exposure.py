"""How good a copy of the model each caller could train on the answers it was given, and budgets on that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors import stats
from detectors.base import Calibration, Caller, Detection, Evidence, Feedback, Measured, State, Window, own_state
from detectors.copies import Copies, parts
from detectors.signals import Encoder, Frame, framed
from detectors.sketch import PER_DOUBLING, WORDS, Distinct, Reading, Sample
from monitor.errors import CalibrationRefused
from monitor.model import Event, Family, Subject, Verdict, finite

VERSION: Final = 1
REFERENCE_ROWS: Final = 6_000  # a longer reference is thinned evenly
CERTAIN: Final = 50.0  # nats of an event that is a fact and no inference
SHOWN_ROWS: Final = 64  # distinct rows from which on the gauge is shown
MAX_CLASSES: Final = 200
ROWS_TOLD, KAPPA_TOLD = 1, 2  # bits of Distinct.told
SEP: Final = "\x1f"


class Budget(NamedTuple):
    """What a caller, or a group, may learn; None: no limit."""

    kappa: float | None
    rows: int | None


@dataclass(frozen=True)
class Exposure:
    """Per caller and model version: how many different rows were answered, and how good a copy that allows.

    Idea: who asks about real rows like everybody else cannot be told from an honest client, but what its answers are
    worth can. A gauge, shown from 64 distinct rows on; it alarms only against a budget that the directory of principals
    declares (`budget: {kappa, distinct_rows}`). Callers of one group with the same budget share it as well, so a budget
    cannot be stretched over many names. A new model version starts anew: a copy of version 3 says little about 4.

    Math: the KEPT smallest keyed hashes of a caller's distinct rows are a fair sample of them and tell their number
    (detectors.sketch). From the sample: rows per leaf of a small tree and what was answered there; learning curves per
    leaf, measured on the reference with random forests, give the share of answers that a copy would miss, and with it
    Cohen's kappa (detectors.copies). Rows that are small changes of each other count as far as they are new.

    Assumptions: the reference holds the model's answers (prediction labels) on rows like those that matter. Beyond the
    reference's size the curve is continued as a power law. Copies by far better learners, or with data of their own, do
    better than the gauge says. Only answered rows count.

    False alarms: none without a declared budget; with one, an alarm is a fact within the error of the gauge (about .1 of
    kappa; distinct rows exact to 512, then within 4 %). Measured: docs/detectors.md.

    Parameters: min_rows: distinct reference rows with labels that calibration needs; max_mb: memory for all callers of a
    model, 10 kB for each with 512 rows or more; the least exposed are forgotten first.

    Reference: Kesarwani, Mukhoty, Arya and Mehta 2018 (extraction status); Bar-Yossef et al. 2002 (k minimum values).

    >>> Exposure().min_rows
    150
    """

    name: ClassVar[str] = "exposure"
    family: ClassVar[Family] = Family.EXTRACTION
    reads: ClassVar[str] = "log"

    min_rows: int = 150
    max_mb: float = 64.0

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """Learning curves from the reference's answers. Raises CalibrationRefused where it has too few."""
        windows = [w for w in reference if w.n]
        profile = windows[0].profile() if windows else None
        if profile is None:
            raise CalibrationRefused("the reference has no rows to learn from")
        own = [(f.name, f.kind) for f in profile.bins.features if f.column == f"feature:{f.name}"]
        numeric = [n for n, kind in own if kind == "number"]
        categorical = [n for n, kind in own if kind == "category"]
        columns = [*(f"feature:{n}" for n in (*numeric, *categorical)), "prediction_label"]
        rows = pa.concat_tables([w.rows(columns) for w in windows], promote_options="default")
        if rows.num_rows > REFERENCE_ROWS:
            rows = rows.take(pa.array(np.linspace(0, rows.num_rows - 1, REFERENCE_ROWS).astype(np.int64)))
        label, classes = _labels(rows)
        frame = Frame.of(rows, numeric, categorical)
        distinct = np.sort(np.unique(frame.whole(), return_index=True)[1])
        distinct = distinct[label[distinct] >= 0]
        if not own or len(distinct) < self.min_rows:
            have = f"{len(distinct)} distinct rows with a predicted label"
            raise CalibrationRefused(f"the reference has {have} and {self.min_rows} are needed")
        if not 2 <= len(classes) <= MAX_CLASSES:
            raise CalibrationRefused(
                f"the reference's answers have {len(classes)} labels; 2 to {MAX_CLASSES} can be copied"
            )
        encoder = Encoder.fit(frame)
        rng = stats.seeded(windows[0].model, self.name, reference_hash)
        codes = encoder.codes(frame.take(distinct))
        copies = Copies.learn(codes, label[distinct], len(classes), rng)
        meta = {
            "numeric": numeric, "categorical": categorical, "classes": list(classes), "rows": len(distinct),
            "codes": [list(w) for w in encoder.words], "salt": str(int(rng.integers(1 << 62))), "max_mb": self.max_mb,
        }  # fmt: skip
        return Calibration(self.name, VERSION, reference_hash, meta, {"edges": encoder.edges, **copies.pack()})

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """Readings of the gauge as detections that never alarm; evidence where a declared budget is passed."""
        own = own_state(state, cal, VERSION)
        known = Distinct.load(own.meta, own.arrays) if own is not None else Distinct.load(None, {})
        learnt = _learnt(cal)
        rows = window.rows(["event_time", "principal", "model_version", "prediction_label"])
        label, _ = _labels(rows, learnt.classes)
        who, names = _encoded(rows, "principal")
        at = np.flatnonzero((who >= 0) & (label >= 0))
        if not len(at):
            return Measured(_state(known, cal))
        keys, budgets, code, row = _callers(rows, who, names, at, window.callers())
        frame = framed(window, learnt.encoder_numeric, learnt.encoder_categorical)
        known.recall(keys)
        hashes = _salted(frame.whole(), int(cal.meta["salt"]))
        fits = np.flatnonzero(hashes[row] < known.limits(keys)[code])
        code, row = code[fits], row[fits]
        asked, back = np.unique(row, return_inverse=True)
        codes = learnt.encoder.codes(frame.take(asked))
        marks = np.zeros((len(asked), WORDS), np.uint16)
        found = parts(codes, learnt.copies.block)
        marks[:, : found.shape[1]] = found
        new = Sample(hashes[asked], learnt.copies.leaves(codes), label[asked].astype(np.uint8), marks).take(back)
        limits = {k: b.rows for k, b in budgets.items() if b.rows is not None}
        told = dict(zip(known.ids, known.told.tolist(), strict=True))
        readings = known.add(keys, code, row, new, limits, frozenset(budgets)) if len(row) else []
        times = np.asarray(rows["event_time"], dtype=np.int64)
        gauges, passed = self._judge(known, told, learnt.copies, readings, budgets, times)
        said = {row: {"exposure": {"kappa": d.statistic, "distinct_rows": d.n}} for row, d in gauges.items()}
        evidence = replace(self._evidence(names, who, at, times, passed), readings=said)
        known.rows += rows.num_rows
        known.forget(round(self.max_mb * 1e6))
        return Measured(_state(known, cal), list(gauges.values()), evidence)

    def _judge(
        self,
        known: Distinct,
        told: dict[str, int],
        copies: Copies,
        readings: Sequence[Reading],
        budgets: Mapping[str, Budget],
        times: NDArray[np.int64],
    ) -> tuple[dict[int, Detection], dict[int, dict[str, Any]]]:
        """What each reading says, by row: a detection for the gauge, and what was passed.

        told: per caller the budgets known to be passed before this stretch; an alarm is repeated whenever rows double.
        """
        place = {k: i for i, k in enumerate(known.ids)}
        gauges: dict[tuple[str, int], tuple[int, Detection]] = {}
        passed: dict[int, dict[str, Any]] = {}
        for r in readings:
            version, kind, name, *_ = r.key.split(SEP)
            budget = budgets.get(r.key, Budget(None, None))
            novel = copies.novel(r.sample.marks[:, : int(copies.block.max()) + 1])
            kappa = round(copies.kappa(r.sample.leaf, r.sample.label, max(1.0, r.distinct * novel)), 3)
            says: dict[str, Any] = {
                "kappa": finite(kappa),
                "distinct_rows": r.distinct,
                "novel": finite(round(novel, 2)),
            }
            says |= {"model_version": version or None} | ({"group": name} if kind == "group" else {})
            says |= {f"budget_{k}": v for k, v in (("kappa", budget.kappa), ("rows", budget.rows)) if v is not None}
            before, doubled = told.get(r.key, 0), r.step >= 0 and r.step % PER_DOUBLING == 0
            over = budget.kappa is not None and kappa >= budget.kappa and not before & KAPPA_TOLD
            told[r.key] = before | (KAPPA_TOLD if over else 0) | (ROWS_TOLD if r.step < 0 else 0)
            known.told[place[r.key]] |= told[r.key]
            if over or r.step < 0 or (doubled and before and r.key in budgets):
                passed[r.row] = {"exposure": says}
            if kind == "caller" and doubled and r.distinct >= SHOWN_ROWS:
                time = int(times[r.row])
                found = Detection(
                    self.name, self.family, Event.ATTACK_SUSPECTED, Subject("principal", name), (time, time), kappa,
                    Verdict.OK, r.distinct, threshold=budget.kappa, evidence=says,
                )  # fmt: skip
                gauges[name, time] = (r.row, found)
        return dict(gauges.values()), passed

    def _evidence(
        self,
        names: tuple[str, ...],
        who: NDArray[np.int64],
        at: NDArray[np.int64],
        times: NDArray[np.int64],
        passed: Mapping[int, Mapping[str, Any]],
    ) -> Evidence:
        flag = np.isin(at, list(passed))
        return Evidence(
            detector=self.name, family=self.family, principals=names, code=who[at].astype(np.int32), row=at,
            time_us=times[at], log_e=np.where(flag, CERTAIN, 0.0)[:, None], flag=flag, details=dict(passed),
            columns=("budget/passed",),
        )  # fmt: skip


class _Learnt(NamedTuple):
    """A calibration unpacked."""

    encoder: Encoder
    encoder_numeric: tuple[str, ...]
    encoder_categorical: tuple[str, ...]
    classes: tuple[str, ...]
    copies: Copies


_KEPT: dict[str, _Learnt] = {}


def _learnt(cal: Calibration) -> _Learnt:
    """Unpacked once per calibration and process: what it holds never changes."""
    if cal.hash not in _KEPT:
        if len(_KEPT) >= 64:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[cal.hash] = _unpacked(cal)
    return _KEPT[cal.hash]


def _unpacked(cal: Calibration) -> _Learnt:
    encoder = Encoder(np.asarray(cal.arrays["edges"]), tuple(tuple(w) for w in cal.meta["codes"]))
    numeric, categorical, classes = (tuple(cal.meta[k]) for k in ("numeric", "categorical", "classes"))
    return _Learnt(encoder, numeric, categorical, classes, Copies.unpack(cal.arrays))


def _state(known: Distinct, cal: Calibration) -> State:
    return State(Exposure.name, VERSION, cal.hash, *known.save())


def _encoded(rows: pa.Table, column: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """A text column as numbers, -1 for missing, and its values in order of appearance."""
    if column not in rows.column_names or pa.types.is_null(rows.schema.field(column).type):
        return np.full(rows.num_rows, -1, np.int64), ()
    encoded = pc.dictionary_encode(rows[column].cast(pa.string()).combine_chunks())
    index = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return index, tuple(encoded.dictionary.to_pylist())


def _labels(rows: pa.Table, classes: Sequence[str] | None = None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Each row's predicted label as a place in `classes` (sorted when learnt here); an unknown one is the place after."""
    index, words = _encoded(rows, "prediction_label")
    known = sorted(words) if classes is None else list(classes)
    place = np.array([*(known.index(w) if w in known else len(known) for w in words), -1], np.int64)
    return place[index], tuple(known)


def _callers(
    rows: pa.Table,
    who: NDArray[np.int64],
    names: tuple[str, ...],
    at: NDArray[np.int64],
    declared: Mapping[str, Caller],
) -> tuple[list[str], dict[str, Budget], NDArray[np.int64], NDArray[np.int64]]:
    """Keys of all callers and groups by model version, declared budgets, and per answered row its keys: (key, row)."""
    version, versions = _encoded(rows, "model_version")
    pair = who[at] * (len(versions) + 1) + version[at] + 1
    present, code = np.unique(pair, return_inverse=True)
    keys, budgets, shared = [], {}, {}
    for k in present.tolist():
        name = names[k // (len(versions) + 1)]
        text = versions[v - 1] if (v := k % (len(versions) + 1)) else ""
        key = SEP.join((text, "caller", name))
        keys.append(key)
        caller = declared.get(name)
        if caller is None or (caller.kappa is None and caller.distinct_rows is None):
            continue
        budgets[key] = Budget(caller.kappa, caller.distinct_rows)
        if caller.group:
            shared[len(keys) - 1] = SEP.join(
                (text, "group", caller.group, str(caller.kappa), str(caller.distinct_rows))
            )
            budgets[shared[len(keys) - 1]] = budgets[key]
    if not shared:
        return keys, budgets, code, at
    groups = sorted(set(shared.values()))
    member = np.full(len(keys), -1, np.int64)
    for i, group in shared.items():
        member[i] = len(keys) + groups.index(group)
    of = member[code]
    return [*keys, *groups], budgets, np.concatenate([code, of[of >= 0]]), np.concatenate([at, at[of >= 0]])


def _salted(hashes: NDArray[np.uint64], salt: int) -> NDArray[np.uint64]:
    """Hashes that a caller cannot foresee, so that none can keep its rows out of the sample."""
    x = hashes ^ np.uint64(salt)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)
