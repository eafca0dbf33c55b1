"""What an analyst is shown of one caller: its chain of queries, its answers, where its rows lie, and its peers.

Pure: rows of the log and a stored calibration in, numbers, words and charts out. The rows are judged anew, alone and
from nothing, by the detector that watches live; so the first rows have no past here, and flags may differ a little
from what the incident counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detectors.anomaly import queries
from detectors.anomaly.learnt import Learnt, callers
from detectors.anomaly.queries import Queries
from detectors.answers import Answers
from detectors.base import Calibration, Caller, Window
from detectors.constraints import Constraints
from detectors.search import what_if_fields
from detectors.signals import MISSING, Frame
from monitor.model import HOUR_US
from monitor.reports import charts
from monitor.reports.charts import Chart, Span
from monitor.reports.climb import STEPS, Climb, climb
from monitor.reports.scatter import Cloud, scatter
from monitor.reports.words import moment, number

LOOKED_BACK: Final = 50  # earlier rows among which the nearest is looked for
DRAWN: Final = 600  # points of one kind in a picture
FIELDS: Final = 16  # changed fields that are named of one row
BINS: Final = 10
WORDS: Final = 8  # categories of one feature that get a direction of their own in the picture
FEW: Final = 3  # peers that a comparison needs
LEAST_ROWS: Final = 5  # of a peer
LEARNT_COLUMNS: Final = ("principal", "prediction_label", "scores", "quality", "extra")

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Change:
    """One field of a row against an earlier row; None: missing."""

    field: str
    old: str | None
    new: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """One query. back: how many rows earlier the row stands that it is compared with (0: there is none before it)."""

    number: int
    time_us: int
    back: int
    changed: Sequence[Change]
    more: int  # changed fields that are not in `changed`
    label: str | None
    score: float | None
    margin: float | None
    flagged: bool
    signals: Sequence[str]
    broken: Sequence[str]


@dataclass(frozen=True, slots=True)
class Peer:
    """One measure of the caller beside the median and the 90 % quantile of its peers; None: cannot be told."""

    name: str
    own: float | None
    median: float | None
    high: float | None
    share: bool = False


@dataclass(frozen=True)
class Rows:
    """Rows by time, as features, answers and, where a calibration is at hand, judged: flag and why by row."""

    table: pa.Table
    frame: Frame
    given: Answers
    flag: NDArray[np.bool_]
    why: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return int(self.table.num_rows)

    @property
    def time_us(self) -> NDArray[np.int64]:
        return np.asarray(self.table["event_time"], dtype=np.int64)

    @classmethod
    def of(cls, table: pa.Table, numeric: Sequence[str], categorical: Sequence[str]) -> Rows:
        """Rows that nobody has judged."""
        frame = Frame.of(table, numeric, categorical)
        return cls(table, frame, Answers.of(table), np.zeros(table.num_rows, dtype=bool))

    def take(self, at: NDArray[np.int64]) -> Rows:
        """Some of the rows, in the order given."""
        place = {int(old): new for new, old in enumerate(at.tolist())}
        why = {place[k]: v for k, v in self.why.items() if k in place}
        return Rows(self.table.take(pa.array(at)), self.frame.take(at), self.given.take(at), self.flag[at], why)


def fitting(body: bytes | None) -> Calibration | None:
    """The stored calibration of the query detector; None where there is none or another version made it."""
    cal = None if body is None else Calibration.from_bytes(body)
    return cal if cal is not None and cal.version == queries.VERSION else None


def judge(cal: Calibration, window: Window) -> tuple[NDArray[np.bool_], dict[int, Mapping[str, Any]]]:
    """Which rows of a stretch the query detector flags when it sees nothing but them, and why."""
    detector = Queries(**{f.name: cal.meta[f.name] for f in fields(Queries) if f.name in cal.meta})
    flag = np.zeros(window.n, dtype=bool)
    found = detector.measure(cal, None, window).evidence
    if found is None:
        return flag, {}
    flag[found.row] = found.flag
    return flag, dict(found.details)


def busiest(flag: NDArray[np.bool_], size: int) -> int:
    """Where the `size` consecutive rows begin that hold most flagged ones, the latest of equals.

    >>> busiest(np.array([0, 1, 0, 0, 1, 1, 0], dtype=bool), 2)
    4
    """
    if len(flag) <= size:
        return 0
    sums = np.convolve(flag.astype(np.int64), np.ones(size, np.int64), "valid")
    return int(len(sums) - 1 - np.argmax(sums[::-1]))


def chain(rows: Rows, start: int, size: int, rules: Constraints | None) -> list[Step]:
    """Rows [start, start + size): each with the fields in which it differs from the nearest of the LOOKED_BACK before it.

    The nearest row is the one that differs in the fewest fields, the latest of equals.
    """
    stop = min(rows.n, start + size)
    broken = breaches(rules, rows.frame, start, stop) if rules is not None else {}
    hashes, made = rows.frame.hashes, []
    labels = _column(rows.table, "prediction_label")
    score = shown_scores(rows.table)
    for i in range(max(0, start), stop):
        first = max(0, i - LOOKED_BACK)
        differs = (hashes[first:i] != hashes[i]).sum(axis=1)
        near = first + int(len(differs) - 1 - np.argmin(differs[::-1])) if i > first else i
        changed = np.flatnonzero(hashes[near] != hashes[i]).tolist()
        why = rows.why.get(i, {})
        made.append(
            Step(
                i, int(rows.time_us[i]), i - near, [_change(rows.frame, j, near, i) for j in changed[:FIELDS]],
                max(0, len(changed) - FIELDS), labels[i], _known(score[i]), _known(rows.given.margin[i]), bool(rows.flag[i]),
                [str(s) for s in why.get("signals", ())], broken.get(i, []),
            )
        )  # fmt: skip
    return made


def small_steps(rows: Rows) -> NDArray[np.bool_]:
    """Rows that the query detector calls small steps, and those that change a few fields of one of the LOOKED_BACK before."""
    hashes, few = rows.frame.hashes, what_if_fields(rows.frame.hashes.shape[1])
    out = np.array(
        [bool(STEPS.intersection(rows.why.get(i, {}).get("signals", ()))) for i in range(rows.n)], dtype=bool
    )
    for back in range(1, min(LOOKED_BACK, rows.n - 1) + 1):
        differs = (hashes[back:] != hashes[:-back]).sum(axis=1)
        out[back:] |= (differs > 0) & (differs <= few)
    return out


def climbing(rows: Rows) -> Climb | None:
    """Whether the scores of its small steps climb."""
    return climb(_column(rows.table, "scores"), small_steps(rows))


def breaches(rules: Constraints, frame: Frame, start: int, stop: int) -> dict[int, list[str]]:
    """Per row of [start, stop) the learnt rules that it breaks, in words; rows that break none are left out."""
    part = frame.take(np.arange(start, stop, dtype=np.int64))
    found: dict[int, list[str]] = {}
    for b in rules.breaches(part):
        for i in np.flatnonzero(b.rows).tolist():
            found.setdefault(start + i, []).append(rules.say(b, part, i))
    return found


def _change(frame: Frame, j: int, old: int, new: int) -> Change:
    name = (*frame.numeric, *frame.categorical)[j]
    return Change(name, _text(frame, j, old), _text(frame, j, new))


def _text(frame: Frame, j: int, i: int) -> str | None:
    if j < len(frame.numeric):
        x = float(frame.numbers[i, j])
        return None if np.isnan(x) else f"{x:.10g}"
    word = int(frame.words[i, j - len(frame.numeric)])
    return None if word < 0 else frame.vocabulary[j - len(frame.numeric)][word][:80]


def shown_scores(table: pa.Table) -> Floats:
    """The score of the last class where there are one or two, else of the best class; NaN where none was logged."""
    lists = _column(table, "scores")
    return np.array([np.nan if not s else _score([v for v in s if v is not None]) for s in lists], dtype=np.float64)


def _score(values: Sequence[float]) -> float:
    return float("nan") if not values else float(values[-1] if len(values) <= 2 else max(values))


def _column(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist() if name in table.column_names else [None] * table.num_rows


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def scores_chart(rows: Rows) -> Chart | None:
    """Scores over time, flagged queries ringed; None without scores."""
    score = shown_scores(rows.table)
    at = np.flatnonzero(np.isfinite(score))
    if not len(at):
        return None
    span = Span(int(rows.time_us[at[0]]), int(rows.time_us[at[-1]]) + 1)
    drawn = _some(at, rows.flag)
    x = [span.x(t) / 100 for t in rows.time_us.tolist()]
    clouds = [
        Cloud(
            look, [x[i] for i in part], [float(score[i]) for i in part],
            [f"{moment(int(rows.time_us[i]))}: {number(float(score[i]))}" for i in part],
        )
        for look, part in (("c-dot", [i for i in drawn if not rows.flag[i]]), ("c-dot c-raised", [i for i in drawn if rows.flag[i]]))
    ]  # fmt: skip
    known = score[at]
    summary = (
        f"Scores of {len(at):,} queries from {moment(span.start_us)} to {moment(span.end_us)} UTC: between {number(float(known.min()))} "
        f"and {number(float(known.max()))}, median {number(float(np.median(known)))}. {int(rows.flag[at].sum()):,} are flagged."
    )
    told = [
        (f"{moment(int(rows.time_us[i]))}", number(float(score[i])), "flagged" if rows.flag[i] else "") for i in drawn
    ]
    return scatter(
        clouds, summary=summary, columns=("Time", "Score", "Note"), rows=told[::-1][:200], span=span, top=_top(known)
    )


def _top(known: Floats) -> float | None:
    return 1.0 if known.min() >= 0 and known.max() <= 1 else None


def margin_chart(own: NDArray[np.float32], base: NDArray[np.float32]) -> Chart | None:
    """How sure the model was: shares of the caller's queries by margin beside those of the base; None without scores."""
    own, base = own[np.isfinite(own)], base[np.isfinite(base)]
    if not len(own) or not len(base):
        return None
    edges = np.linspace(0, max(1.0, float(own.max()), float(base.max())), BINS + 1)
    shares = [np.histogram(m, edges)[0] / len(m) for m in (base, own)]
    labels = [f"{a:.2g}–{b:.2g}" for a, b in pairwise(edges.tolist())]
    return charts.histogram(labels, shares[0].tolist(), shares[1].tolist(), title="Margin between the two best classes")


def directions(learnt: Learnt, frame: Frame) -> Floats:
    """Rows as numbers (n, k): normal scores of the numbers, and one column per frequent category."""
    codes, numeric = learnt.encoder.codes(frame), frame.numbers.shape[1]
    parts = [learnt.joint.scores(codes, frame.numbers)[:, :numeric].astype(np.float64)]
    for j in range(numeric, codes.shape[1]):
        known = np.minimum(codes[:, j], MISSING)[:, None] == np.arange(WORDS)[None, :]
        parts.append(known.astype(np.float64))
    return np.concatenate(parts, axis=1)


def plane(base: Floats, rows: Floats) -> tuple[Floats, Floats, Floats]:
    """(base in two dimensions, rows in two dimensions, share of the base's variance per dimension): principal components.

    The components are those of the base. Their sign is fixed by their largest loading, which is positive, so the same
    rows always make the same picture.

    >>> b, r, s = plane(np.array([[0., 0.], [2., 0.], [4., 0.]]), np.array([[6., 1.]]))
    >>> r.round(3).tolist(), s.round(3).tolist()
    ([[4.0, 1.0]], [1.0, 0.0])
    """
    middle = base.mean(axis=0)
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(base - middle, rowvar=False)))
    axes = vectors[:, ::-1][:, :2]
    if axes.shape[1] < 2:
        axes = np.pad(axes, ((0, 0), (0, 2 - axes.shape[1])))
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(2)] < 0, -1.0, 1.0)
    total = float(values.sum())
    shares = np.pad(values[::-1][:2], (0, 2))[:2] / total if total > 0 else np.zeros(2)
    return (base - middle) @ axes, (rows - middle) @ axes, np.clip(shares, 0, 1)


def picture(learnt: Learnt, own: Rows, base: Frame, words: str) -> Chart | None:
    """Where the caller's rows lie among rows of the base (`words` says which those are); None with too few of them."""
    if own.n == 0 or base.n < 20:
        return None
    there, here, share = plane(directions(learnt, base), directions(learnt, own.frame))
    both = np.concatenate([there, here])
    low, size = both.min(axis=0), np.maximum(both.max(axis=0) - both.min(axis=0), 1e-9)
    there, here = 0.02 + 0.96 * (there - low) / size, 0.02 + 0.96 * (here - low) / size
    thin = np.linspace(0, len(there) - 1, min(DRAWN, len(there))).astype(np.int64)
    drawn = _some(np.arange(own.n), own.flag)
    parts = {look: [i for i in drawn if own.flag[i] == on] for look, on in (("c-dot", False), ("c-dot c-raised", True))}
    clouds = [Cloud("c-ref", there[thin, 0].tolist(), there[thin, 1].tolist())]
    clouds += [Cloud(look, here[p, 0].tolist(), here[p, 1].tolist()) for look, p in parts.items() if p]
    inside = np.all((here >= np.quantile(there, 0.01, axis=0)) & (here <= np.quantile(there, 0.99, axis=0)), axis=1)
    summary = (
        f"{own.n:,} queries of this caller among {base.n:,} {words}, by the two directions in which those vary most "
        f"({share[0]:.0%} and {share[1]:.0%} of their variance): {inside.mean():.0%} of the queries lie among them, the rest at or beyond their edges."
    )
    rows = [
        (name, f"{np.median(a, axis=0)[0]:.2f} / {np.median(a, axis=0)[1]:.2f}", f"{np.ptp(a, axis=0)[0]:.2f} / {np.ptp(a, axis=0)[1]:.2f}")
        for name, a in (("Caller", here), (words.capitalize(), there))
    ]  # fmt: skip
    return scatter(
        clouds, summary=summary, columns=("Rows", "Middle, x / y", "Width, x / y"), rows=rows, top=1.0, height=320
    )


def _some(at: NDArray[np.int64], flag: NDArray[np.bool_]) -> list[int]:
    """At most DRAWN of these rows, flagged ones first, evenly thinned, in order."""
    kept: list[int] = []
    for part in (at[flag[at]], at[~flag[at]]):
        room = min(DRAWN - len(kept), len(part))
        kept += part[np.linspace(0, len(part) - 1, room).astype(np.int64)].tolist() if room else []
    return sorted(kept)


def peers(
    own: Rows, own_us: int, others: Rows, others_us: int, edge: float | None, like: Sequence[bool]
) -> tuple[list[Peer], int]:
    """Measures of the caller beside those of other callers, and how many these are.

    own_us, others_us: the time that the rows cover. edge: margin below which a row is near the boundary. like: per
    caller of `others`, in order of appearance, whether it counts as a peer. Callers with fewer than LEAST_ROWS rows
    are no peers; below FEW peers nothing is compared.
    """
    who, names = callers(others.table)
    mine = _measures(own, own_us, edge)
    found = []
    for k in range(len(names)):
        at = np.flatnonzero(who == k)
        if like[k] and len(at) >= LEAST_ROWS:
            found.append(_measures(others.take(at), others_us, edge))
    words = ("Queries per hour", "Distinct rows, share", "Flagged, share", "Near the boundary, share")
    made = []
    for j, name in enumerate(words):
        known = [float(v) for m in found if (v := m[j]) is not None]
        told = (float(np.median(known)), float(np.quantile(known, 0.9))) if len(known) >= FEW else (None, None)
        made.append(Peer(name, mine[j], told[0], told[1], share=j > 0))
    return made, len(found)


def _measures(rows: Rows, covered_us: int, edge: float | None) -> tuple[float | None, ...]:
    if not rows.n:
        return (0.0, None, None, None)
    margin = rows.given.margin[np.isfinite(rows.given.margin)]
    near = None if edge is None or not len(margin) else float((margin <= edge).mean())
    distinct = len(np.unique(rows.frame.whole())) / rows.n
    return rows.n * HOUR_US / max(1, covered_us), distinct, float(rows.flag.mean()), near


def alike(caller: Caller | None, others: Sequence[Caller | None]) -> tuple[list[bool], str]:
    """Who counts as a peer, and in words: the same declared group, else kind, else everybody; never fewer than FEW."""
    for attribute in ("group", "kind"):
        value = "" if caller is None else str(getattr(caller, attribute))
        same = [bool(value) and o is not None and getattr(o, attribute) == value for o in others]
        if sum(same) >= FEW:
            return same, f"callers of the {attribute} {value}"
    return [True] * len(others), "all other callers"
