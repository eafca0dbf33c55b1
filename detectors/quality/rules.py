"""Data that breaks what the reference kept to: ranges, types, movement, distinct rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors.base import Calibration, Detection, Feedback, Measured, State, Streams, Window, few_rows
from detectors.binned import NUMBER, floats
from detectors.profile import Profile
from detectors.stats import Floats
from monitor.errors import CalibrationRefused
from monitor.model import Event, Family, Subject, Verdict

VERSION: Final = 1
ROWS: Final = "all fields"  # blame of rules about whole rows
MAX_ROWS: Final = 200_000  # rows of a window that are looked at, the first ones
UNTIMED_ROWS: Final = 200  # rows of a stretch where the reference has no times
BAD, CLEAN = 2.0, -1.0  # scores of a window that breaks a rule and of one that keeps it, for the return test
UNITS: Final = (1000.0, 100.0, 60.0, 10.0)  # factors that a change of unit is known by


@dataclass(frozen=True)
class Rules:
    """Shares of rows that break a rule, compared with what every window of the reference kept to.

    Idea: per window and rule one share: values outside a number's widened range, a field that stands still although it
    varied in every reference window, rows whose values have the wrong type, rows that repeat an earlier one in every
    feature. A window is bad when a share is above twice the largest of the reference, plus what the reference's size
    leaves open. Bad windows win, good ones lose, and budget() adds up.

    Math: with K reference windows a share that is exchangeable exceeds the largest with probability at most
    rho = 1 / (K + 1); e = 1 / (2 rho) for a bad window, 1 / (2 (1 - rho)) for a good one.

    Assumptions: windows are exchangeable up to twice the largest share; a burst of bad rows is one trial. A value that is
    wrong but within the usual range is not seen here (detector marginals sees it when many are).

    False alarms: 3 % of the model's drift budget (one in 1000 days by default); numbers in docs/detectors.md. A reference
    with fewer than 20 windows or stretches of 200 rows is refused.

    Parameters: widening: how far beyond the reference's ends a number may go, in widths from median to end;
    min_rows: rows a window needs.

    Reference: Vovk and Wang 2021 (e-values); order statistics of exchangeable shares.

    >>> Rules().widening
    1.0
    """

    name: ClassVar[str] = "rules"
    family: ClassVar[Family] = Family.QUALITY
    reads: ClassVar[str] = "windows"

    widening: float = 1.0
    min_rows: int = 20

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """Ranges of numbers and the largest share of every rule. Raises CalibrationRefused for too little reference."""
        windows = [(w, p) for w in reference if w.n and (p := w.profile()) is not None]
        total: Profile | None = None
        for _, p in windows:
            total = p if total is None else total.merge(p)
        if total is None or total.bins is None or not any(not f.is_output for f in total.bins.features):
            raise CalibrationRefused("the reference has no features to learn rules from")
        used = [f for f in total.bins.features if not f.is_output and (f.edges or f.categories)]
        features = {f.name: f.kind == NUMBER for f in used}
        parts = [w.rows(_columns(features)) for w, _ in windows]
        if len(parts) == 1:  # no times: stretches of it stand for windows
            parts = [parts[0].slice(a, UNTIMED_ROWS) for a in range(0, parts[0].num_rows, UNTIMED_ROWS)]
        parts = [p for p in parts if p.num_rows >= self.min_rows]
        if len(parts) < 20:
            raise CalibrationRefused(f"the reference shows {len(parts)} windows or stretches of rows; 20 are needed")
        low, high = _ranges(pa.concat_tables(parts, promote_options="default"), features, self.widening)
        shares = np.array([_shares(p, features, low, high) for p in parts])
        meta = {
            "features": [[f, number] for f, number in features.items()],
            "windows": len(parts),
            "rows": int(sum(p.num_rows for p in parts)),
        }
        arrays: dict[str, NDArray[Any]] = {"low": low, "high": high, "most": shares.max(axis=0)}
        return Calibration(self.name, VERSION, reference_hash, meta, arrays)

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """One detection: the largest share over its limit as statistic, and a bet per rule."""
        features, k = {str(f): bool(n) for f, n in cal.meta["features"]}, int(cal.meta["windows"])
        names = _rules(features)
        streams, statistic = None, None
        evidence: dict[str, Any] = {}
        if window.n >= self.min_rows:
            rows = window.rows(_columns(features)).slice(0, MAX_ROWS)
            share = _shares(rows, features, np.asarray(cal.arrays["low"]), np.asarray(cal.arrays["high"]))
            limit = 2 * np.asarray(cal.arrays["most"]) + 3 / int(cal.meta["rows"])
            allowed = limit + (3 * np.sqrt(limit * rows.num_rows) + 2) / rows.num_rows
            bad = share > np.minimum(allowed, 0.99)
            bad &= np.asarray(cal.arrays["most"]) < 0.5  # what half of a usual window does breaks nothing
            rho = 1 / (k + 1)
            log_e = np.asarray(np.where(bad, np.log(0.5 / rho), np.log(0.5 / (1 - rho))), dtype=np.float64)
            blame = tuple(n.rsplit("/", 2)[0] for n in names)
            weight = np.full(len(names), 1 / len(names))
            streams = Streams(names, blame, weight, log_e, np.asarray(np.where(bad, BAD, CLEAN), dtype=np.float64))
            statistic = float(np.max(share / np.maximum(allowed, 1e-9)))
            evidence["broken"] = [
                {"rule": names[i].rsplit("/", 1)[0], "share": round(float(share[i]), 6), "allowed": round(float(allowed[i]), 6)}
                for i in np.flatnonzero(bad)[:20]
            ]  # fmt: skip
            if units := _units(window.profile(), [r["rule"] for r in evidence["broken"]]):
                evidence["units"] = units
        else:
            evidence["reason"] = few_rows(window, self.min_rows)
        detection = Detection(
            detector=self.name, family=self.family, event=Event.DATA_QUALITY, subject=Subject("model", window.model),
            window_us=(window.start_us, window.end_us), statistic=statistic, n=window.n, evidence=evidence, streams=streams,
            verdict=Verdict.INSUFFICIENT if streams is None else Verdict.OK,
        )  # fmt: skip
        return Measured(State(self.name, VERSION, cal.hash), [detection])


def _columns(features: dict[str, bool]) -> list[str]:
    return [*(f"feature:{f}" for f in features), "mismatched"]


def _rules(features: dict[str, bool]) -> tuple[str, ...]:
    """Names of the rules, in the order of their shares."""
    ranges = [f"{f}/range/1" for f, number in features.items() if number]
    return (*ranges, *(f"{f}/constant/1" for f in features), f"{ROWS}/type/1", f"{ROWS}/duplicates/1")


def _ranges(rows: pa.Table, features: dict[str, bool], widening: float) -> tuple[Floats, Floats]:
    low, high = [], []
    for f in (f for f, number in features.items() if number):
        x = floats(rows, f"feature:{f}")
        x = x[np.isfinite(x)]
        middle = float(np.median(x)) if len(x) else np.nan
        low.append(float(x.min()) - widening * (middle - float(x.min())) if len(x) else -np.inf)
        high.append(float(x.max()) + widening * (float(x.max()) - middle) if len(x) else np.inf)
    return np.array(low), np.array(high)


def _shares(rows: pa.Table, features: dict[str, bool], low: Floats, high: Floats) -> Floats:
    """The share of rows that break each rule; a constant is all or nothing."""
    n = max(1, rows.num_rows)
    outside, constant = [], []
    for i, f in enumerate(f for f, number in features.items() if number):
        x = floats(rows, f"feature:{f}")
        outside.append(float(((x < low[i]) | (x > high[i])).sum()) / n)
    for f in features:
        held = f"feature:{f}" in rows.column_names
        known = rows[f"feature:{f}"].drop_null() if held else pa.chunked_array([pa.array([], pa.null())])
        constant.append(float(len(known) >= n / 2 and len(known) > 1 and len(pc.unique(known)) == 1))
    typed = _share_true(rows, "mismatched")
    keys = [f"feature:{f}" for f in features if f"feature:{f}" in rows.column_names]
    distinct = _plain(rows.select(keys)).group_by(keys).aggregate([([], "count_all")]).num_rows if keys else n
    return np.array([*outside, *constant, typed, 1 - distinct / n])


def _plain(rows: pa.Table) -> pa.Table:
    """Words instead of dictionaries, which rows cannot be grouped by across chunks."""
    return pa.table({
        c: rows[c].cast(rows[c].type.value_type) if pa.types.is_dictionary(rows[c].type) else rows[c]
        for c in rows.column_names
    })  # fmt: skip


def _share_true(rows: pa.Table, column: str) -> float:
    if column not in rows.column_names or not pa.types.is_boolean(rows[column].type) or not rows.num_rows:
        return 0.0
    return float(pc.sum(rows[column]).as_py() or 0) / float(rows.num_rows)


def _units(profile: Profile | None, broken: Sequence[str]) -> dict[str, float]:
    """Numbers out of range whose ends are a known factor times the reference's: 100 for cents instead of riyals."""
    if profile is None or profile.bins is None:
        return {}
    found: dict[str, float] = {}
    for i, f in enumerate(profile.bins.features):
        top = max(abs(f.centers[0]), abs(f.centers[-1])) if f.centers else 0.0
        now = max(abs(float(profile.low[i])), abs(float(profile.high[i])))
        if f"{f.name}/range" in broken and top > 0 and np.isfinite(now):
            near = [u for u in UNITS if 0.5 < now / top / u < 2]
            found |= {f.name: near[0]} if near else {}
    return found
