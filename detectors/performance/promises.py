"""What calibrated scores promise about answers before labels come, and whether earlier promises were kept.

An event's scores say how probable each class is; what the model answered is right with the probability of that class. Sums
of such probabilities are the expected numbers of right answers, true and false positives, missed positives, and of pairs
that scores put in the right order: accuracy, precision, recall, F1 and AUC are ratios of them (confidence-based
performance estimation, Guerin et al. 2022). Every metric is checked by itself against labelled windows: scores that keep
their word about accuracy may break it about a rare class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detectors.base import Window
from detectors.binned import class_names, floats, scores, stands_for
from detectors.labels import values
from detectors.stats import Floats
from monitor.model import rfc3339

METRICS: Final = ("accuracy", "precision", "recall", "f1", "auc")
SUMS: Final = 7  # events, right, true positives, false positives, missed positives, ordered pairs, pairs
GAP: Final = 0.02  # difference of promised and measured beyond its own error that scores may have
COARSE: Final = 0.1  # a check that would let so large a difference pass is none
CASES: Final = 30  # labelled events of the class, and answers of it, that a check of its rates needs
CHECKED: Final = 10  # windows that must have kept the promise before it is told
REMEMBERED: Final = 336  # windows by which promises are checked
NEWEST: Final = 12  # and so do the newest ones by themselves: scores may have lost it lately
COLUMNS: Final = ("prediction_label", "prediction_value", "scores", "class_names", "sampling_fraction")
ASSUMES: Final = "scores mean for these events what they meant for those whose labels are known"
NUMBERS_ONLY: Final = "a predicted number has no scores: nothing is estimated without labels"


@dataclass(frozen=True)
class Scored:
    """Events with scores. right: probability that the answer is right; p: of the positive class, its score in the order
    of pairs; said: whether it was answered; both None unless there are two classes. weight: events each row stands for.
    """

    right: Floats
    weight: Floats
    p: Floats | None = None
    said: NDArray[np.bool_] | None = None
    positive: str = ""

    def sums(self, truth: NDArray[Any] | None = None, correct: NDArray[np.bool_] | None = None) -> Floats:
        """(SUMS,) as promised, or as measured with the true classes of all events and whether answers were right."""
        w, out = self.weight, np.zeros(SUMS)
        out[0], out[1] = w.sum(), w @ (self.right if correct is None else correct)
        if self.p is None or self.said is None:
            return out
        y = self.p if truth is None else (truth == self.positive).astype(np.float64)
        out[2:5] = (w * y) @ self.said, (w * (1 - y)) @ self.said, (w * y) @ ~self.said
        out[5:] = pairs(self.p, w * y, w * (1 - y))
        return out


def pairs(order: Floats, positive: Floats, negative: Floats) -> tuple[float, float]:
    """Pairs of a positive and another event: those put in the right order (half of the equal ones), and all.

    No event is paired with itself. `positive`, `negative`: how much of each event is of either kind.

    >>> pairs(np.array([0.1, 0.9]), np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    (1.0, 1.0)
    """
    _, place = np.unique(order, return_inverse=True)
    each = np.bincount(place, weights=negative)
    below = np.cumsum(each) - each
    itself = float(positive @ negative)
    right = float(positive @ (below[place] + 0.5 * each[place])) - 0.5 * itself
    return right, float(positive.sum() * negative.sum()) - itself


def metrics(sums: Floats) -> Floats:
    """METRICS of sums (..., SUMS); NaN where nothing is divided."""
    n, right, tp, fp, fn, ordered, every = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [(right, n), (tp, tp + fp), (tp, tp + fn), (2 * tp, 2 * tp + fp + fn), (ordered, every)]
        return np.stack([np.where(b > 0, a / b, np.nan) for a, b in ratios], axis=-1)


def scored(rows: pa.Table, positive: str) -> tuple[Scored, NDArray[np.int64]] | None:
    """Events with complete scores and their places; None without classes. `positive`: the class that rates are about."""
    classes = class_names(rows)
    if len(classes) < 2:
        return None
    by = np.array(list(scores(rows, classes).values()))
    label = rows["prediction_label"] if "prediction_label" in rows.column_names else None
    said = values(label) if label is not None and label.null_count < rows.num_rows else None
    at = np.flatnonzero(np.isfinite(by).all(axis=0))
    by, top = by[:, at], by[:, at].argmax(axis=0) if len(at) else np.zeros(0, np.int64)
    if said is not None:
        known = {c: i for i, c in enumerate(classes)}
        top = np.array([known.get(s, t) for s, t in zip(said[at], top.tolist(), strict=True)], np.int64)
    weight, right = stands_for(rows)[at], by[top, np.arange(len(at))] if len(at) else np.zeros(0)
    if len(classes) != 2:
        return Scored(right, weight), at
    k = classes.index(positive) if positive in classes else 1
    return Scored(right, weight, by[k], top == k, classes[k]), at


def kept(rows: pa.Table, truth: NDArray[Any], positive: str) -> Floats:
    """What was promised about labelled rows and what came of it: (2, SUMS); NaN without scores."""
    found = scored(rows, positive)
    if found is None or not len(found[1]):
        return np.full((2, SUMS), np.nan)
    own, at = found
    if own.said is not None:
        correct = (truth[at] == own.positive) == own.said
    else:
        said = values(rows["prediction_label"])[at] if "prediction_label" in rows.column_names else None
        if said is None:
            return np.full((2, SUMS), np.nan)
        correct = said == truth[at]
    return np.stack([own.sums(), own.sums(truth[at], correct.astype(bool))])


def estimate(window: Window, history: Floats, positive: str) -> dict[str, Any]:
    """What scores promise for the newest window, or why that is not told. history (windows, 2, SUMS): of labelled ones.

    `told`, `accuracy` and `band` of the whole; under `metrics` the same for each metric of the positive class, each
    checked by itself; `confusion`: expected events, where precision and recall are told.
    """
    rows = window.rows(COLUMNS)
    if not len(history):
        numbers = len(class_names(rows)) < 2 and np.isfinite(floats(rows, "prediction_value")).any()
        return {"told": False, "reason": NUMBERS_ONLY if numbers else "no scores with labels to check them by"}
    found = scored(rows, positive)
    now = found[0] if found is not None and len(found[1]) else None
    told = {m: _metric(i, now, history) for i, m in enumerate(METRICS)}
    out = {**told.pop("accuracy"), "events_of": [rfc3339(window.start_us), rfc3339(window.end_us)], "assumes": ASSUMES}
    if out["told"]:
        out["accuracy"] = out.pop("value")
    if now is None or now.p is None:
        return out
    out |= {"positive": now.positive, "metrics": told}
    if told["precision"]["told"] and told["recall"]["told"]:
        n, _, tp, fp, fn, _, _ = now.sums().tolist()
        cells = {"true positive": tp, "false positive": fp, "missed": fn, "true negative": n - tp - fp - fn}
        out["confusion"] = {k: round(v, 1) for k, v in cells.items()}
    return out


def _metric(i: int, now: Scored | None, history: Floats) -> dict[str, Any]:
    """One metric's estimate with its band and the check that it rests on, or why it is off."""
    whole, newest = _gap(history, i), _gap(history[-NEWEST:], i)
    windows = int(np.isfinite(metrics(history)[:, :, i]).all(axis=1).sum())
    check = {
        "windows": windows, "gap": round(whole[0], 4), "allowed": round(whole[1], 4), "newest_gap": round(newest[0], 4),
        "newest_allowed": round(newest[1], 4),
    }  # fmt: skip
    check = {k: v for k, v in check.items() if np.isfinite(v)}
    if windows < CHECKED:
        return {"told": False, "reason": f"checked in {windows} of {CHECKED} windows", "check": check}
    if not abs(whole[0]) <= whole[1] or abs(newest[0]) > newest[1]:
        return {"told": False, "reason": "scores did not keep what they promised", "check": check}
    cases = history[np.isfinite(history).all(axis=(1, 2)), 1].sum(axis=0)
    if whole[1] > COARSE or (i and min(cases[2] + cases[4], cases[2] + cases[3]) < CASES):
        return {"told": False, "reason": "too few labels of the class to check the promise by", "check": check}
    value = np.nan if now is None else float(metrics(now.sums())[i])
    if now is None or not np.isfinite(value):
        return {"told": False, "reason": "no scores in the newest window", "check": check}
    half = max(whole[1], newest[1] if np.isfinite(newest[1]) else 0.0) + 1.96 * _spread(i, now, value)
    band = [round(max(0.0, value - half), 4), round(min(1.0, value + half), 4)]
    return {"told": True, "value": round(value, 4), "band": band, "check": check}


def _gap(history: Floats, i: int) -> tuple[float, float]:
    """Promised less measured over windows together, and how large it may be: GAP and two standard errors (jackknife)."""
    known = history[np.isfinite(history).all(axis=(1, 2))]
    k = len(known)
    if k < 2:
        return np.nan, np.nan
    total = known.sum(axis=0)
    promised, measured = metrics(total)[:, i]
    left = metrics(total - known)[:, :, i]
    each = left[:, 0] - left[:, 1]
    each = each[np.isfinite(each)]
    error = float(np.sqrt((k - 1) * np.var(each))) if len(each) else np.nan
    return float(promised - measured), GAP + 2 * error


def _spread(i: int, now: Scored, value: float) -> float:
    """Standard deviation of what would be measured in this window if scores were right."""
    w = now.weight
    if METRICS[i] == "accuracy":
        return float(np.sqrt(value * (1 - value) * (w @ w))) / float(w.sum())
    assert now.p is not None
    assert now.said is not None
    noise, said = w * w * now.p * (1 - now.p), now.said.astype(np.float64)
    n, _, tp, fp, fn, _, _ = now.sums()
    if METRICS[i] == "auc":  # Hanley and McNeil 1982
        shrink = float(w.sum()) / float(w @ w)  # rows drawn alike per event that they stand for
        a, b = max((tp + fn) * shrink, 1.0), max((n - tp - fn) * shrink, 1.0)
        q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
        spread = value * (1 - value) + (a - 1) * (q1 - value**2) + (b - 1) * (q2 - value**2)
        return float(np.sqrt(max(0.0, spread) / (a * b)))
    adds, per = {
        "precision": (said, tp + fp), "recall": (said - value, tp + fn), "f1": (2 * said - value, 2 * tp + fp + fn),
    }[METRICS[i]]  # fmt: skip
    return float(np.sqrt(noise @ adds**2)) / float(per)
