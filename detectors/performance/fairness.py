"""Whether groups of people get the same outcomes, and whether the model is as often right about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detectors import stats
from detectors.base import Calibration, Detection, Feedback, Measured, State, Window, own_state
from detectors.binned import floats, stands_for
from detectors.conformal import History
from detectors.labels import Waiting, joined, values, wait
from detectors.past import KEEP, Past, best_p, wagers
from detectors.season import Calendar
from detectors.stats import Floats
from detectors.streamed import Streamed
from monitor.errors import CalibrationRefused
from monitor.model import Event, Family, Subject, Verdict, rfc3339

VERSION: Final = 1
MAX_GROUPS: Final = 8  # values of one feature, the most frequent
CUT_ROWS: Final = 100_000  # of a longer reference that say where a number is cut
RATES: Final = ("outcome rate", "true positive rate", "false positive rate")
TOO_LITTLE: Final = "too little data"


@dataclass(frozen=True)
class Fairness:
    """Differences of outcomes between groups, and of errors once labels are known: PerformanceDecay when one moves.

    Idea: per group of each named feature the share that gets the outcome, against all others, in the newest window; and
    with labels, in the window whose labels should be there, the share of true cases that get it (true positive rate) and
    of other cases that do (false positive rate). A difference that stands is told with its band; one that moves, either
    way, is evidence: each is ranked against the same difference of all earlier windows.

    Math: d = p_group - p_rest with variance p (1 - p) (1 / n_group + 1 / n_rest), scaled as in detectors.conformal.even,
    then conformal ranks and bets; budget() adds up.

    Rows of a sampled log weigh what they stand for; n is then their effective number.

    Assumptions: the reference's groups are the groups; a number makes three, cut at its thirds. That a difference stands
    still does not make it fair.

    False alarms: 1.2 % of the model's drift budget (one in 2500 days by default) over all groups and rates when windows are
    exchangeable. Groups with fewer than `min_rows` rows in a window are "too little data"; below 50 windows it learns.

    Parameters: groups: features whose values are groups, with commas (models.NAME.fairness); outcome: the predicted class
    that counts as the outcome, the rarer of two without it; min_rows: rows of a group, and of all others, that a rate
    needs; delay_s, label: as in detector performance; kappa: tolerated shift of z; keep: windows remembered; timezone,
    weekend, holidays: the calendar of the season.

    Reference: Hardt, Price and Srebro 2016 (equalised odds); Wilson 1927; Vovk 2021.

    >>> Fairness(groups="sex,region").named
    ('sex', 'region')
    """

    name: ClassVar[str] = "fairness"
    family: ClassVar[Family] = Family.PERFORMANCE
    reads: ClassVar[str] = "windows"
    version: ClassVar[int] = VERSION

    groups: str = ""
    outcome: str = ""
    min_rows: int = 30
    delay_s: float = -1.0
    label: str = "label"
    kappa: float = 0.3
    keep: int = KEEP
    timezone: str = "UTC"
    weekend: str = "sat,sun"
    holidays: str = ""

    @property
    def named(self) -> tuple[str, ...]:
        return tuple(g.strip() for g in self.groups.split(",") if g.strip())

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """The groups and the outcome. Raises CalibrationRefused where none are named, or the reference lacks them."""
        if not self.named:
            raise CalibrationRefused("the configuration names no groups of this model (models.NAME.fairness)")
        columns = [f"feature:{g}" for g in self.named]
        windows = [w for w in reference if w.n]
        rows = Streamed(sum(w.n for w in windows), lambda wanted: (w.rows(wanted or ()) for w in windows))
        names = {c for t in rows.tables(*columns) for c in t.column_names}
        if missing := [c.removeprefix("feature:") for c in columns if c not in names]:
            raise CalibrationRefused(f"the reference has no feature {', '.join(missing)} to make groups of")
        said = rows.words("prediction_label")
        outcome = self.outcome or (min(said, key=lambda c: (said[c], c)) if len(said) == 2 else "")
        if not outcome:
            raise CalibrationRefused("say which predicted class is the outcome (models.NAME.fairness.outcome)")
        found = [[g, _groups(rows, f"feature:{g}", self.min_rows)] for g in self.named]
        if not any(len(kinds) > 1 for _, kinds in found):
            raise CalibrationRefused(
                "no feature of models.NAME.fairness has two groups with rows enough in the reference"
            )
        return Calibration(self.name, VERSION, reference_hash, {"groups": found, "outcome": outcome, "keep": self.keep})

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """One detection: the largest difference of outcome rates as statistic; rates of every group with bands."""
        compared = [(g, k) for g, kinds in cal.meta["groups"] for k in (kinds[:1] if len(kinds) == 2 else kinds)]
        names = [f"{g} {k[0]}: {rate}" for rate in RATES for g, k in compared]
        own, past = own_state(state, cal, VERSION), Past.load(state, cal, VERSION, 3 * len(names))
        waiting = wait(
            {} if own is None else own.arrays, window, self.label, self.delay_s, self.min_rows, keep=feedback.frozen
        )
        value, told = self._rates(cal, window, waiting)
        evidence: dict[str, Any] = {"outcome": cal.meta["outcome"], "groups": told, **past.told()}
        if waiting.judged is not None:
            evidence["errors_of"] = [rfc3339(waiting.judged.start_us), rfc3339(waiting.judged.end_us)]
        known: dict[str, Any] = {}
        if not np.isfinite(value[0]).any():
            evidence["reason"] = f"{TOO_LITTLE}: no group has {self.min_rows} rows beside as many others"
        else:
            newest = History.of(value.ravel(), 0.0, window.end_us)
            outcome = value[0][: len(compared)]
            known["statistic"] = float(np.nanmax(np.abs(outcome))) if np.isfinite(outcome).any() else None
            if past.learning:
                evidence["reason"] = past.learning
            else:
                known |= self._judged(cal, past, newest, window, names)
            past = past.learn(newest, suspicious=feedback.frozen, keep=self.keep)
        fields = {"statistic": None, "verdict": Verdict.INSUFFICIENT, **known}
        detection = Detection(
            detector=self.name, family=self.family, event=Event.PERFORMANCE_DECAY, subject=Subject("model", window.model),
            window_us=(window.start_us, window.end_us), n=window.n, evidence=evidence, **fields,
        )  # fmt: skip
        return Measured(past.state(self.name, VERSION, cal, waiting.state), [detection])

    def _judged(
        self, cal: Calibration, past: Past, newest: History, window: Window, names: list[str]
    ) -> dict[str, Any]:
        calendar = Calendar.parse(self.timezone, self.weekend, self.holidays)
        scored = past.score(newest, window, cal, calendar, means=True)
        z = np.concatenate([scored.z, -scored.z])
        bets = [f"{n}/{sign}" for sign in "+-" for n in names]
        streams = wagers(bets, names * 2, np.full(len(bets), 1 / len(bets)), z, self.kappa)
        return {
            "streams": streams, "verdict": Verdict.OK, "log_e": stats.log_sum_exp(streams.log_e, streams.weight),
            "p_value": best_p(np.minimum(scored.p, 1 - scored.p) * 2),
        }  # fmt: skip

    def _rates(self, cal: Calibration, window: Window, waiting: Waiting) -> tuple[Floats, list[dict[str, Any]]]:
        """Differences, variances and inverse counts (3, rates x groups), and what people see."""
        columns = [f"feature:{g}" for g, _ in cal.meta["groups"]]
        columns += ["prediction_label", "sampling_fraction"]
        rows = window.rows(columns)
        cases = [(rows, np.ones(rows.num_rows, dtype=bool))]
        empty = rows.slice(0, 0)
        if waiting.judged is not None:
            earlier = waiting.judged.rows([*columns, "request_id", "row_index"])
            place, truth, _ = joined(earlier, waiting.judged.labels(window.end_us), self.label)
            earlier = earlier.take(pa.array(place))
            positive = truth == cal.meta["outcome"]
            cases += [(earlier, positive), (earlier, ~positive)]
        else:
            cases += [(empty, np.zeros(0, dtype=bool))] * 2
        out: list[tuple[float, float, float]] = []
        told: dict[tuple[str, str], dict[str, Any]] = {}
        for rate, (table, among) in zip(RATES, cases, strict=True):
            hit, events = _words(table, "prediction_label") == cal.meta["outcome"], stands_for(table)
            for g, kinds in cal.meta["groups"]:
                inside = list(_inside(table, f"feature:{g}", kinds))
                anyone = np.logical_or.reduce([i for _, i in inside]) if inside else among
                for j, (label, own) in enumerate(inside):
                    mine, rest = own & among, anyone & among & ~own
                    entry = told.setdefault((g, label), {"feature": g, "group": label})
                    entry[rate] = _share(hit, mine, events, self.min_rows)
                    if len(kinds) > 2 or j == 0:
                        out.append(_difference(hit, mine, rest, events, self.min_rows))
        return np.array(out, dtype=np.float64).T.reshape(3, -1), list(told.values())


def _rate(hit: NDArray[np.bool_], among: NDArray[np.bool_], events: Floats) -> tuple[float, float]:
    """A group's rate over the events that its rows stand for, and how many rows drawn alike would be as sure (Kish 1965)."""
    own = events[among]
    whole = float(own.sum())
    return (float(own @ hit[among]) / whole, whole**2 / float(own @ own)) if whole else (np.nan, 0.0)


def _share(hit: NDArray[np.bool_], among: NDArray[np.bool_], events: Floats, least: int) -> dict[str, Any]:
    n, (p, effective) = int(among.sum()), _rate(hit, among, events)
    if effective < least:
        return {"n": n, "reason": TOO_LITTLE}
    low, high = stats.wilson(p * effective, effective)
    return {"n": n, "share": round(p, 4), "band": [round(low, 4), round(high, 4)]}


def _difference(
    hit: NDArray[np.bool_], mine: NDArray[np.bool_], rest: NDArray[np.bool_], events: Floats, least: int
) -> tuple[float, float, float]:
    (p, a), (q, b) = _rate(hit, mine, events), _rate(hit, rest, events)
    if a < least or b < least:
        return np.nan, np.nan, np.nan
    whole = (p * a + q * b) / (a + b)
    return p - q, whole * (1 - whole), 1 / a + 1 / b


def _words(rows: pa.Table, column: str) -> NDArray[Any]:
    return values(rows[column]) if column in rows.column_names else np.full(rows.num_rows, None, dtype=object)


def _is_number(rows: pa.Table, column: str) -> bool:
    return column in rows.column_names and pa.types.is_floating(rows[column].type)


def _groups(rows: Streamed, column: str, least: int) -> list[list[Any]]:
    """Groups of a feature as [words, low, high] (numbers) or [words, value]."""
    if _is_number(next(rows.tables(column)), column):
        x = floats(rows.sample(CUT_ROWS, [column]), column)
        cuts = np.unique(np.quantile(x[np.isfinite(x)], [1 / 3, 2 / 3])).tolist() if np.isfinite(x).any() else []
        edges = [-np.inf, *cuts, np.inf]
        return [[f"{a:g} to {b:g}", a, b] for a, b in pairwise(edges)] if cuts else []
    often = sorted(rows.words(column).items(), key=lambda found: (-found[1], found[0]))
    return [[word, word] for word, n in often[:MAX_GROUPS] if n >= least]


def _inside(rows: pa.Table, column: str, kinds: list[list[Any]]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    for name, *value in kinds:
        if len(value) == 2:
            x = floats(rows, column)
            yield str(name), (x >= value[0]) & (x < value[1])
        else:
            yield str(name), _words(rows, column) == value[0]
