"""How good a copy of the model each caller could train on the answers it was given, and budgets on that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors import stats
from detectors.allowed import SEP, Budget, allowed, encoded
from detectors.base import Calibration, Detection, Evidence, Feedback, Measured, State, Window, own_state
from detectors.binned import given
from detectors.cells import Cells
from detectors.copies import Copies, ahead, onward
from detectors.fine import Fine
from detectors.hashing import mix
from detectors.signals import Codes, Frame, framed
from detectors.sketch import KEPT, PER_DOUBLING, SAVED, SHOWN_ROWS, Distinct, Reading, Sample
from detectors.streamed import evenly
from monitor.errors import CalibrationRefused
from monitor.model import Event, Family, Subject, Verdict, finite

VERSION: Final = 3
REFERENCE_ROWS: Final = 6_000  # a longer reference is thinned evenly
CERTAIN: Final = 50.0  # nats of an event that is a fact and no inference
MAX_CLASSES: Final = 200
PRICE: Final = 16  # rows of the log for each row that a copy is trained on
RESERVE: Final = SAVED // 2  # what small samples must leave of the rows saved up,
PLENTY: Final = SAVED * 7 // 8  # and several copies of one sample: of few rows they differ much,
TOGETHER: Final = 512  # so as many as have so many rows together,
MOST: Final = 4  # but not more
NEAR: Final = 0.15  # of kappa below a budget, from where on copies are trained at every reading
EVERY: Final = 1 << 14  # rows of the log after which whoever is too many is forgotten
ROWS_TOLD, KAPPA_TOLD = 1, 2  # bits of Distinct.told
COVERAGE: Final = ("coverage", "coverage_usual", "coverage_usual_from", "coverage_usual_to")
ANSWERS: Final = ("prediction_label", "prediction_value", "scores")
TOLD: Final = ("kappa", "distinct_rows", *COVERAGE)  # of a gauge, to incidents


@dataclass(frozen=True)
class Exposure:
    """Per caller and model version: how many different rows were answered, and how good a copy that allows.

    Idea: who asks about real rows like everybody else cannot be told from an honest client, but what its answers are
    worth can. A gauge, shown from 64 distinct rows on; it alarms only against a budget that the directory of principals
    declares (`budget: {kappa, distinct_rows}`). Callers of one group with the same budget share it as well, so a budget
    cannot be stretched over many names. A new model version starts anew: a copy of version 3 says little about 4.

    Math: the KEPT smallest keyed hashes of a caller's distinct rows are a fair sample of them and tell their number
    (detectors.sketch). Whenever the distinct rows double, kappa is read from the learning curve of a random forest on the
    reference, if the sample is like the reference: it covers as many cells, and its answers come in the same shares; how
    even they are moves it a little. If not, such a forest is trained on the sample and its answers, and asked about rows of
    the reference that the caller has not sent: Cohen's kappa with the model (of few rows the mean of up to four forests). How
    far it is ahead of a copy from as many reference rows, or behind, shifts the curve until the next one is trained
    (detectors.copies); the curve also says what rows beyond the sample add. With a declared kappa a copy is always trained,
    near the budget four times per doubling. The others are paid for with rows of the log, so that no crowd of callers can
    make training dear; who goes without is read from its last curve (`estimated`).

    Coverage: of the cells of two fields each (detectors.cells) the share that the sample reaches, beside the median and
    the middle 90 % of as many rows of the reference. More than usual: rows are drawn to spread out; less: they vary few
    cases. It alarms nobody.

    Without kappa: where the answers are numbers or scores, or the reference has too few labels, no copy can be compared. Then
    kappa and coverage are refused (`refused` in the calibration says why), rows are counted all the same, and a budget on them
    holds: it needs to know that a row was answered, not what.

    Assumptions: the reference holds the model's answers (prediction labels) on rows like those that matter. Beyond the
    reference's size the curve is continued as a power law. Thieves with far better learners than a forest, or with data
    of their own, do better than the gauge says. Only answered rows count.

    False alarms: none without a declared budget; with one, an alarm is a fact within the error of the gauge (mostly below
    .1 of kappa; distinct rows exact to 512, then within 4 %). Measured: docs/detectors.md.

    Parameters: min_rows: distinct reference rows with labels that kappa needs; max_mb: memory for all callers of a
    model, for each up to 512 rows of a byte per field (64 at most) and 9 more; the least exposed are forgotten first.

    Reference: Kesarwani, Mukhoty, Arya and Mehta 2018 (extraction status; coverage); Bar-Yossef et al. 2002 (k minimum
    values); Breiman 2001 (random forests).

    >>> Exposure().min_rows
    150
    """

    name: ClassVar[str] = "exposure"
    family: ClassVar[Family] = Family.EXTRACTION
    reads: ClassVar[str] = "log"
    version: ClassVar[int] = VERSION

    min_rows: int = 150
    max_mb: float = 64.0

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """Learning curves and cells from the reference's answers, where it has enough. Raises CalibrationRefused without
        features.
        """
        windows = [w for w in reference if w.n]
        profile = windows[0].profile() if windows else None
        if profile is None:
            raise CalibrationRefused("the reference has no rows to learn from")
        own = [(f.name, f.kind) for f in profile.bins.features if f.column == f"feature:{f.name}"]
        if not own:
            raise CalibrationRefused("the reference has no features to tell rows apart by")
        numeric = [n for n, kind in own if kind == "number"]
        categorical = [n for n, kind in own if kind == "category"]
        columns = [*(f"feature:{n}" for n in (*numeric, *categorical)), *ANSWERS]
        rows = evenly((w.rows(columns) for w in windows), sum(w.n for w in windows), REFERENCE_ROWS)
        label, classes = _labels(rows)
        frame = Frame.of(rows, numeric, categorical)
        distinct = np.sort(np.unique(frame.whole(), return_index=True)[1])
        distinct = distinct[label[distinct] >= 0]
        rng = stats.seeded(windows[0].model, self.name, reference_hash)
        salt = int(rng.integers(1 << 62))
        meta = {"numeric": numeric, "categorical": categorical, "salt": str(salt), "max_mb": self.max_mb}
        if why := self._no_kappa(len(distinct), len(classes)):
            meta |= {"refused": {"kappa": why}, "answers": any(given(rows, c) is not None for c in ANSWERS)}
            return Calibration(self.name, VERSION, reference_hash, meta)
        fine, chosen = Fine.fit(frame), frame.take(distinct)
        codes = fine.codes(chosen)
        copies = Copies.learn(codes, len(numeric), label[distinct], _salted(chosen.whole(), salt), rng)
        cells = Cells.learn(copies.rows(codes), fine.points[copies.kept[copies.kept < len(numeric)]], rng)
        meta |= {"classes": list(classes), "rows": len(distinct), "codes": [list(w) for w in fine.words]}
        arrays: dict[str, NDArray[Any]] = {
            "points": fine.points,
            "middle": fine.middle,
            **copies.pack(),
            **cells.pack(),
        }
        return Calibration(self.name, VERSION, reference_hash, meta, arrays)

    def _no_kappa(self, rows: int, classes: int) -> str:
        """Why no copy can be compared with a model of so many labels, on so many labelled rows; empty: one can."""
        if rows < self.min_rows:
            return f"the reference has {rows} distinct rows with a predicted label and {self.min_rows} are needed"
        if not 2 <= classes <= MAX_CLASSES:
            return f"the reference's answers have {classes} labels; 2 to {MAX_CLASSES} can be copied"
        return ""

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """Readings of the gauge as detections that never alarm; evidence where a declared budget is passed."""
        own, learnt = own_state(state, cal, VERSION), _learnt(cal)
        known = Distinct.load(own.meta if own else None, own.arrays if own else {}, learnt.fields)
        rows = window.rows(["event_time", "principal", "model_version", *ANSWERS])
        label = _answered(rows, learnt)
        who, names = encoded(rows, "principal")
        at, times = np.flatnonzero((who >= 0) & (label >= 0)), np.asarray(rows["event_time"], dtype=np.int64)
        keys, budgets, code, row = allowed(rows, who, names, at, window.callers())
        frame = framed(window, learnt.numeric, learnt.categorical)
        hashes = _salted(frame.whole(), int(cal.meta["salt"]))
        gauges: list[tuple[int, Detection]] = []
        passed: dict[int, dict[str, Any]] = {}
        for first, end in _pieces(known.rows, rows.num_rows):
            some = np.flatnonzero((row >= first) & (row < end))
            if len(some):
                mine, which = np.unique(code[some], return_inverse=True)
                asking = [keys[k] for k in mine.tolist()]
                readings = _take_in(known, learnt, frame, hashes, label, asking, which, row[some], budgets)
                gauges += self._judge(known, learnt, readings, budgets, times, passed)
            if (known.rows + end) % EVERY == 0:
                known.forget(round(self.max_mb * 1e6))
        said = {r: {"exposure": {k: d.evidence[k] for k in TOLD if k in d.evidence}} for r, d in gauges}
        evidence = replace(self._evidence(names, who, at, times, passed), readings=said) if len(at) else None
        known.rows += rows.num_rows
        known.settle()
        stored = {(d.subject.id, d.window_us): d for _, d in gauges}
        return Measured(_state(known, cal), list(stored.values()), evidence)

    def _judge(
        self, known: Distinct, learnt: _Learnt, readings: Sequence[Reading], budgets: Mapping[str, Budget],
        times: NDArray[np.int64], passed: dict[int, dict[str, Any]],
    ) -> list[tuple[int, Detection]]:  # fmt: skip
        """What each reading says: per row a detection for the gauge; what was passed goes into `passed`, by row.

        An alarm is repeated whenever rows double.
        """
        place = {k: i for i, k in enumerate(known.ids)} if readings else {}
        gauges: list[tuple[int, Detection]] = []
        for r in readings:
            version, kind, name, *_ = r.key.split(SEP)
            i, budget = place[r.key], budgets.get(r.key, Budget(None, None))
            before = int(known.told[i])
            doubled = r.step >= 0 and r.step % PER_DOUBLING == 0
            says = _says(known, i, learnt, r, None if before & KAPPA_TOLD else budget.kappa)
            kappa = says.get("kappa")
            says |= {"model_version": version or None} | ({"group": name} if kind == "group" else {})
            says |= {f"budget_{k}": v for k, v in (("kappa", budget.kappa), ("rows", budget.rows)) if v is not None}
            over = budget.kappa is not None and kappa is not None and kappa >= budget.kappa and not before & KAPPA_TOLD
            known.told[i] |= (KAPPA_TOLD if over else 0) | (ROWS_TOLD if r.step < 0 else 0)
            if over or r.step < 0 or (doubled and before and r.key in budgets):
                passed[r.row] = {"exposure": says}
            if kind == "caller" and doubled and r.distinct >= SHOWN_ROWS:
                time = int(times[r.row])
                found = Detection(
                    self.name, self.family, Event.ATTACK_SUSPECTED, Subject("principal", name), (time, time), kappa,
                    Verdict.OK, r.distinct, threshold=None if kappa is None else budget.kappa, evidence=says,
                )  # fmt: skip
                gauges.append((r.row, found))
        return gauges

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


class _Gauge(NamedTuple):
    """What kappa and coverage are read from."""

    fine: Fine
    classes: tuple[str, ...]
    copies: Copies
    cells: Cells


class _Learnt(NamedTuple):
    """A calibration unpacked. gauge: or why there is none; answers: whether the reference shows any."""

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    gauge: _Gauge | str
    answers: bool

    @property
    def fields(self) -> int:
        """How many fields of a row are kept, beside its hash."""
        return 0 if isinstance(self.gauge, str) else len(self.gauge.copies.kept)

    def codes(self, frame: Frame) -> Codes:
        """What is kept of rows."""
        if isinstance(self.gauge, str):
            return np.zeros((frame.n, 0), np.uint8)
        return self.gauge.copies.rows(self.gauge.fine.codes(frame))


_KEPT: dict[str, _Learnt] = {}


def _learnt(cal: Calibration) -> _Learnt:
    """Unpacked once per calibration and process: what it holds never changes."""
    if cal.hash not in _KEPT:
        if len(_KEPT) >= 64:
            _KEPT.pop(next(iter(_KEPT)))
        _KEPT[cal.hash] = _unpacked(cal)
    return _KEPT[cal.hash]


def _unpacked(cal: Calibration) -> _Learnt:
    numeric, categorical = (tuple(cal.meta[k]) for k in ("numeric", "categorical"))
    if refused := cal.meta.get("refused"):
        return _Learnt(numeric, categorical, refused["kappa"], cal.meta["answers"])
    points, middle = (np.asarray(cal.arrays[k]) for k in ("points", "middle"))
    fine = Fine(points, middle, tuple(tuple(w) for w in cal.meta["codes"]))
    gauge = _Gauge(fine, tuple(cal.meta["classes"]), Copies.unpack(cal.arrays), Cells.unpack(cal.arrays))
    return _Learnt(numeric, categorical, gauge, answers=True)


def _answered(rows: pa.Table, learnt: _Learnt) -> NDArray[np.int64]:
    """Each row's label as a number, 0 where labels say nothing; -1: not answered, where answers are logged at all. A row that was
    answered by scores alone counts too, with an unknown label: asking for those must not get round a budget.
    """
    found = np.full(rows.num_rows, not learnt.answers)
    for column in ANSWERS:
        if (held := given(rows, column)) is not None:
            found |= np.asarray(pc.is_valid(held))
    if isinstance(learnt.gauge, str):
        return np.where(found, 0, -1)
    label, classes = _labels(rows, learnt.gauge.classes)
    return np.where((label < 0) & found, len(classes), label)


def _pieces(before: int, n: int) -> list[tuple[int, int]]:
    """The rows of a stretch from border to border of EVERY rows of the log, so many of which came before it.

    >>> _pieces(EVERY - 2, 5)
    [(0, 2), (2, 5)]
    """
    cuts = [0, *range(EVERY - before % EVERY, n, EVERY), n]
    return list(pairwise(cuts))


def _take_in(
    known: Distinct, learnt: _Learnt, frame: Frame, hashes: NDArray[np.uint64], label: NDArray[np.int64],
    keys: Sequence[str], code: NDArray[np.int64], row: NDArray[np.int64], budgets: Mapping[str, Budget],
) -> list[Reading]:  # fmt: skip
    """Add rows to the samples of those who sent them (`code` indexes `keys`)."""
    known.recall(keys)
    last = np.zeros(len(keys), np.int64)
    np.maximum.at(last, code, row)
    fits = np.flatnonzero(hashes[row] < known.limits(keys)[code])
    code, row = code[fits], row[fits]
    asked, back = np.unique(row, return_inverse=True)
    new = Sample(hashes[asked], label[asked].astype(np.uint8), learnt.codes(frame.take(asked))).take(back)
    limits = {k: b.rows for k, b in budgets.items() if b.rows is not None}
    return known.add(keys, last, code, row, new, limits, frozenset(budgets))


def _says(known: Distinct, caller: int, learnt: _Learnt, r: Reading, budget: float | None) -> dict[str, Any]:
    """What a reading tells: kappa, distinct rows and coverage, or why rows are all it tells."""
    if isinstance(learnt.gauge, str):
        return {"distinct_rows": r.distinct, "no_kappa": learnt.gauge}
    return _kappa(known, caller, learnt.gauge, r, budget)


def _kappa(known: Distinct, caller: int, gauge: _Gauge, r: Reading, budget: float | None) -> dict[str, Any]:
    """The expected kappa, and at doublings coverage. budget: kappa that is not passed as yet. Answers without a known label
    teach no copy here; they are taken to be worth what answers usually are, and all are where most are such.
    """
    n, copies, says = len(r.sample.hash), gauge.copies, {}
    answers = r.sample.take(np.flatnonzero(r.sample.label < len(gauge.classes)))
    told = 2 * len(answers.hash) >= n
    usual = copies.usual(r.distinct)
    due = r.step % PER_DOUBLING == 0 and n >= SHOWN_ROWS
    ask = told and budget is not None and onward(known.ahead[caller], usual) >= budget - NEAR
    if due:
        reached = gauge.cells.reached(r.sample.codes)
        says = _coverage(gauge.cells, reached, n)
        if gauge.cells.odd(reached, r.sample.codes) or copies.unlike(answers.label) or budget is not None:
            ask = told
        else:
            known.ahead[caller] = ahead(copies.likely(r.distinct, answers.label), usual)
    if not told:
        says["estimated"], known.ahead[caller] = True, max(known.ahead[caller], 0.0)
    if ask:
        trained = _trained(known, copies, r._replace(sample=answers), always=budget is not None)
        if trained is None:
            says["estimated"] = True
        else:
            known.ahead[caller] = ahead(trained, copies.usual(len(answers.hash)))
    kappa = float(np.clip(onward(known.ahead[caller], usual), 0.0, 1.0))
    return {"kappa": finite(round(kappa, 3)), "distinct_rows": r.distinct, **says}


def _trained(known: Distinct, copies: Copies, r: Reading, *, always: bool) -> float | None:
    """Kappa of copies of the sample, as many as can be paid for; None: none can. Half of a copy's price is for asking it."""
    n = len(r.sample.hash)
    for several in (int(np.clip(TOGETHER // n, 1, MOST)), 1):
        leaves = PLENTY if several > 1 else RESERVE if n < KEPT else 0
        if known.pays(r.row, PRICE * n * (several + 1) // 2, leaves=leaves, always=always and several == 1):
            return copies.trained(r.sample.codes, r.sample.label, r.sample.hash, several)
    return None


def _coverage(cells: Cells, reached: float | None, n: int) -> dict[str, Any]:
    """Share of the cells that the sample reaches, and what is usual."""
    usual = cells.usual(n)
    if reached is None or usual is None:
        return {}
    low, middle, high = usual
    return {k: round(v, 3) for k, v in zip(COVERAGE, (reached, middle, low, high), strict=True)}


def _state(known: Distinct, cal: Calibration) -> State:
    return State(Exposure.name, VERSION, cal.hash, *known.save())


def _labels(rows: pa.Table, classes: Sequence[str] | None = None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Each row's predicted label as a place in `classes` (sorted when learnt here); an unknown one is the place after."""
    index, words = encoded(rows, "prediction_label")
    known = sorted(words) if classes is None else list(classes)
    place = np.array([*(known.index(w) if w in known else len(known) for w in words), -1], np.int64)
    return place[index], tuple(known)


def _salted(hashes: NDArray[np.uint64], salt: int) -> NDArray[np.uint64]:
    """Hashes that a caller cannot foresee, so that none can keep its rows out of the sample."""
    return np.asarray(mix(hashes ^ np.uint64(salt)), dtype=np.uint64)
