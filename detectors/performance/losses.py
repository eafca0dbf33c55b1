"""What a window's labelled events say about a model: losses, reliability of its scores, how often each class comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detectors import stats
from detectors.base import Window
from detectors.binned import class_names, scores, stands_for
from detectors.labels import joined, known, values
from detectors.performance.promises import SUMS, kept
from detectors.stats import Floats
from monitor.model import rfc3339

LOSSES: Final = ("error", "brier", "absolute error")  # only rising counts
TRUST: Final = ("scores too high", "scores too steep")  # calibration; both signs count
RATES: Final = 3  # classes whose share among labels is followed, the rarest
COLUMNS: Final = (
    "request_id", "row_index", "prediction_label", "prediction_value", "scores", "class_names", "sampling_fraction",
)  # fmt: skip
BINS: Final = 10  # of the reliability table


@dataclass(frozen=True)
class Found:
    """n: labelled rows, effective: how many rows drawn alike would be as sure. mean, variance, inverse: per number its mean over events, the variance of one event, and one
    over the events (NaN: none); LOSSES, TRUST, then the rates of classes. promises: what scores promised about them and
    what came of it. told: for people.
    """

    n: int
    effective: float
    mean: Floats
    variance: Floats
    inverse: Floats
    promises: Floats
    told: dict[str, Any]


def found(window: Window, labels: pa.Table, name: str, rates: tuple[str, ...]) -> Found:
    """Everything about the events of one window whose labels are known; `rates`: classes whose share is followed."""
    size = len(LOSSES) + len(TRUST) + len(rates)
    told: dict[str, Any] = {
        "by": "event time", "events_of": [rfc3339(window.start_us), rfc3339(window.end_us)], "events": window.n,
    }  # fmt: skip
    rows = window.rows(COLUMNS) if labels.num_rows else pa.table({})
    place, truth, number = joined(rows, labels, name)
    told["labelled"] = len(place)
    events, weight = stands_for(rows), stands_for(rows)[place]
    if labels.num_rows:
        told["events"] = round(float(events.sum()))
    if told["events"]:
        told["coverage"] = round(float(weight.sum()) / told["events"], 4)
    each = np.full((size, len(place)), np.nan)
    if not len(place):
        nothing = np.full(size, np.nan)
        return Found(0, 0.0, nothing, nothing, nothing, np.full((2, SUMS), np.nan), told)
    rows = rows.take(pa.array(place))
    if "prediction_label" in rows.column_names and rows["prediction_label"].null_count < len(place):
        said = values(rows["prediction_label"])
        each[0] = np.where(said == None, np.nan, said != truth)  # noqa: E711 - elementwise
        told |= by_class(truth, each[0], weight)
    classes = class_names(rows)
    by_score = scores(rows, classes)
    best = np.array([by_score[c] for c in classes]) if classes else np.empty((0, len(place)))
    if len(best) > 1:
        hit = truth[None, :] == np.array(classes, dtype=object)[:, None]
        each[1] = ((best - hit) ** 2).sum(axis=0)
        # Two scores that sum to one are one number: follow the second. Of more classes, the answer's own.
        top = np.argmax(np.nan_to_num(best, nan=-1.0), axis=0) if len(best) > 2 else np.ones(len(place), np.int64)
        p, y = best[top, np.arange(len(place))], hit[top, np.arange(len(place))].astype(np.float64)
        each[3] = p - y
        each[4] = (p - y) * (p - 0.5)
        told |= reliability(p, y, weight)
    if "prediction_value" in rows.column_names:
        each[2] = np.abs(np.array(rows["prediction_value"].to_pylist(), dtype=np.float64) - number)
    for j, c in enumerate(rates, start=len(LOSSES) + len(TRUST)):
        each[j] = truth == c
    if rates:
        told["rates"] = {c: shared(truth == c, weight) for c in rates}
    promises = kept(rows, truth, rates[0] if rates else "")
    return Found(len(place), effective(weight), *_moments(each, weight), promises, told)


def _moments(each: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """Means, variances of one event, and one over the effective rows; weighted where rows stand for several events."""
    w = np.where(np.isfinite(each), weight, 0.0)
    ok, n = w > 0, w.sum(axis=1)
    mean = np.where(ok, each * w, 0).sum(axis=1) / np.maximum(n, 1)
    variance = np.where(ok, w * (each - mean[:, None]) ** 2, 0).sum(axis=1) / np.maximum(n, 1)
    inverse = (w**2).sum(axis=1) / np.maximum(n, 1) ** 2
    inverse = np.where((w == ok).all(axis=1), 1 / np.maximum(n, 1), inverse)
    none = n == 0
    return tuple(np.where(none, np.nan, v) for v in (mean, variance, inverse))  # type: ignore[return-value]


def effective(weight: Floats) -> float:
    """How many rows drawn alike would be as sure as these (Kish 1965).

    >>> effective(np.ones(8)), effective(np.array([9.0, 1.0]))
    (8.0, 1.2195121951219512)
    """
    return float(weight.sum() ** 2 / (weight @ weight)) if len(weight) else 0.0


def shared(hit: NDArray[Any], weight: Floats) -> dict[str, Any]:
    """A share of events with its 95 % band, which goes by the effective rows; n: rows."""
    n = effective(weight)
    share = float(weight @ hit.astype(np.float64)) / max(float(weight.sum()), 1.0)
    low, high = stats.wilson(share * n, n)
    return {"share": round(share, 6), "band": [round(low, 6), round(high, 6)], "n": len(weight)}


def by_class(truth: NDArray[Any], wrong: Floats, weight: Floats) -> dict[str, Any]:
    """Accuracy with its 95 % band, and recall of the ten most frequent true classes with theirs."""
    ok = np.isfinite(wrong)
    right, words, weight = wrong[ok] == 0, truth[ok].astype(str), weight[ok]
    whole = shared(right, weight)
    classes, place = np.unique(words, return_inverse=True)
    most = [str(classes[i]) for i in np.argsort(-np.bincount(place, weights=weight), kind="stable")[:10]]
    per = {c: shared(right[words == c], weight[words == c]) for c in most}
    return {
        "accuracy": round(whole["share"], 4), "band": [round(b, 4) for b in whole["band"]],
        "recall": {c: round(r["share"], 4) for c, r in per.items()}, "recall_bands": {c: r["band"] for c, r in per.items()},
    }  # fmt: skip


def reliability(p: Floats, y: Floats, weight: Floats) -> dict[str, Any]:
    """Scores against outcomes: a table with 95 % bands, the expected calibration error, and what chance alone gives.

    `ece`: mean gap between score and outcome over ten equal groups of scores, weighted by events (Naeini 2015). It is
    never 0 for finite windows: `ece_by_chance` is its expectation for scores that are right.

    >>> r = reliability(np.full(100, 0.9), np.r_[np.ones(90), np.zeros(10)], np.ones(100)); r["ece"], r["ece_by_chance"]
    (0.0, 0.0239)
    """
    ok = np.isfinite(p)
    p, y, weight = p[ok], y[ok], weight[ok]
    if not len(p):
        return {}
    group = np.searchsorted(np.unique(np.quantile(p, np.linspace(0, 1, BINS + 1)[1:-1])), p, side="left")
    used = np.unique(group)
    n = np.bincount(group, weights=weight)[used]
    sure = n**2 / np.bincount(group, weights=weight**2)[used]
    said = np.bincount(group, weights=p * weight)[used] / n
    hits = np.bincount(group, weights=y * weight)[used]
    chance = np.sqrt(2 / np.pi * np.clip(said * (1 - said), 0, None) / sure)
    table = [
        {"score": round(float(s), 4), **shared(y[group == g], weight[group == g])} for s, g in zip(said, used, strict=True)
    ]  # fmt: skip
    return {
        "ece": round(float(np.abs(said - hits / n) @ n / n.sum()), 4),
        "ece_by_chance": round(float(chance @ n / n.sum()), 4), "reliability": table,
    }  # fmt: skip


def by_label_time(window: Window, name: str) -> dict[str, Any]:
    """The same accuracy over labels that were given in the window, whatever their events' time: never mixed with the other."""
    given = known(window.feedback(["prediction_label", "prediction_value", "sampling_fraction"]), name)
    told: dict[str, Any] = {
        "labels_given_in": [rfc3339(window.start_us), rfc3339(window.end_us)], "labelled": given.num_rows,
    }  # fmt: skip
    if given.num_rows and {"prediction_label", "value"} <= set(given.column_names):
        said, truth = values(given["prediction_label"]), values(given["value"])
        ok = said != None  # noqa: E711 - elementwise
        if ok.any():
            told |= {
                k: v
                for k, v in by_class(truth, np.where(ok, said != truth, np.nan), stands_for(given)).items()
                if k != "recall_bands"
            }
    return told
