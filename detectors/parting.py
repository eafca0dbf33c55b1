"""Segments that nobody named: parts of the reference's traffic in which the model behaves differently."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from detectors.binned import (
    MAX_SCORES,
    NUMBER,
    Binned,
    bin_labels,
    category_codes,
    class_names,
    floats,
    number_codes,
    quantile_edges,
    scores,
)
from detectors.stats import Floats
from detectors.strata import MAX_SEGMENTS, MIN_PART_ROWS, Segment, frequent
from detectors.streamed import Streamed

SAMPLE_ROWS: Final = 100_000  # of a longer reference so many evenly spaced rows are looked at
MAX_SHARE: Final = 0.5  # of the rows: a larger part is nearly the whole
TENTH: Final = (
    0.1  # share of rows where a segment adds most: the whole shows drift of large parts, small ones have few rows
)
SPARE: Final = 1.2  # of the rows that the end of a number needs: values that repeat move its edge
SAME: Final = 0.9  # rows that two parts share, of all rows of either (Jaccard): from here on they are one part
ANSWERS: Final = ("prediction_label", "prediction_value", "scores", "class_names")
MAX_NAME: Final = 100  # characters of a value: longer ones are texts, not kinds of traffic


@dataclass(frozen=True)
class Part:
    """A segment that was chosen. share: of the reference's rows; tells: how much its column's parts tell of the model's
    answers, 0 to 1; None where the reference has no answers, or always the same.
    """

    segment: Segment
    share: float
    tells: float | None


def choose(
    rows: pa.Table,
    numeric: Sequence[str],
    categorical: Sequence[str],
    *,
    room: int = MAX_SEGMENTS,
    least: float = 0.0,
) -> tuple[Part, ...]:
    """Parts worth judging by themselves, at most `room`, those of the most telling columns first; () when there are none.

    Idea: drift that matters sits in parts where the model behaves differently, so columns are ranked by how much their
    parts tell of its answers. Of a category these are the values with MIN_PART_ROWS rows and a share of at least `least`
    and at most MAX_SHARE, those nearest to a tenth of the rows first: a drift inside a fifth of the rows shows in the
    whole about as soon, inside a tenth late or never. Of a number they are its lowest and its highest tenth, or as many
    rows as a part needs: the middle is like the whole.

    Math: eta^2, the variation between a column's parts over all variation, of the scores' ranks (several scores are added
    up), of the ranks of a predicted number, or of the predicted classes' indicators (Goodman and Kruskal's tau); less
    what as many parts explain by chance, 1 - (1 - eta^2) (n - 1) / (n - k). Without answers the column whose parts cover
    most rows comes first. A first round gives no column more than a third of the room, nor numbers together, so that what
    is told twice does not push out all else; a second fills what is left. A part that overlaps one already taken (SAME)
    is left out.

    Assumes columns `feature:NAME`, `prediction_label`, `prediction_value`, `scores`, `class_names`; what is absent is
    missing, and nothing raises. The same rows give the same parts.

    Source: Kelley 1935 (an unbiased correlation ratio); Goodman and Kruskal 1954 (measures of association).

    >>> n = np.arange(4000)
    >>> t = pa.table({"feature:c": np.array(["a", "b", "d"])[n % 3], "prediction_value": (n % 3 == 2) + 0.0})
    >>> [(p.segment.name, round(p.share, 2), p.tells) for p in choose(t, [], ["c"])]
    [('c:b', 0.33, 1.0), ('c:d', 0.33, 1.0), ('c:a', 0.33, 1.0)]
    """
    wanted = {*ANSWERS, *(f"feature:{name}" for name in (*numeric, *categorical))}
    rows = rows.select([c for c in rows.column_names if c in wanted])
    if rows.num_rows > SAMPLE_ROWS:
        rows = rows.take(pa.array(np.linspace(0, rows.num_rows - 1, SAMPLE_ROWS).astype(np.int64)))
    answers, need = _answers(rows), max(MIN_PART_ROWS, math.ceil(least * rows.num_rows))
    columns = [(_number(rows, name, need, answers), True) for name in numeric]
    columns += [(_category(rows, name, need, answers), False) for name in categorical]
    ranked = sorted((c for c in columns if c[0]), key=lambda c: _rank(c[0]))
    return tuple(_apart(rows, _rounds(ranked, room // 3), room))


def _rank(parts: Sequence[Part]) -> tuple[float, float, str]:
    return -(parts[0].tells or 0.0), -sum(p.share for p in parts), parts[0].segment.column


def _rounds(ranked: Sequence[tuple[Sequence[Part], bool]], most: int) -> Iterator[Part]:
    """First at most so many parts of each column, and of all numbers together; then the rest."""
    left, later = most, list[Part]()
    for parts, number in ranked:
        taken = most if not number else len(parts) if len(parts) <= left else 0
        left -= taken if number else 0
        yield from parts[:taken]
        later += parts[taken:]
    yield from later


def _apart(rows: pa.Table, parts: Iterator[Part], room: int) -> Iterator[Part]:
    """Parts in this order without those that say what an earlier one says."""
    names, members = set[str](), list[NDArray[np.bool_]]()
    for part in parts:
        if len(members) == room:
            return
        mine = part.segment.of(rows)
        if part.segment.name in names or any((mine & m).sum() >= SAME * (mine | m).sum() for m in members):
            continue
        names.add(part.segment.name)
        members.append(mine)
        yield part


def _number(rows: pa.Table, name: str, need: int, answers: Floats) -> list[Part]:
    """The lowest and the highest tenth, or more where they had too few rows; values that repeat often stand alone."""
    column = f"feature:{name}"
    x = floats(rows, column)
    finite = x[np.isfinite(x)]
    slices = min(round(1 / TENTH), int(len(finite) / (SPARE * need)))
    if slices < 2:
        return []
    edges = quantile_edges(finite, slices).tolist()
    code = number_codes(x, edges)
    n = np.bincount(code, minlength=len(edges) + 2)[:-1]
    ends = np.intersect1d(np.flatnonzero(n)[[0, -1]], _fitting(n, rows.num_rows, need)).tolist()
    words = bin_labels(Binned(name, column, NUMBER, edges=tuple(edges)))
    if len(edges) > 1 and edges[-1] <= math.nextafter(edges[-2], math.inf):
        words[len(edges)] = f"above {edges[-2]:.4g}"  # beyond a value that repeats often
    bounds = [None, *edges, None]
    found = [Segment(f"{name} {words[i]}", column, low=bounds[i], high=bounds[i + 1]) for i in ends]
    place = np.full(len(edges) + 2, len(ends))
    place[ends] = np.arange(len(ends))
    return _parts(found, place[code], answers)


def _category(rows: pa.Table, name: str, need: int, answers: Floats) -> list[Part]:
    """The frequent values that are not too frequent, those nearest to a tenth of the rows first."""
    column = f"feature:{name}"
    counted = [
        (v, n) for v, n in frequent(Streamed.of(rows), column) if n >= need and len(v) <= MAX_NAME and v.isprintable()
    ]
    fit = _fitting(np.array([n for _, n in counted], dtype=np.int64), rows.num_rows, need).tolist()
    fit.sort(key=lambda i: abs(math.log(counted[i][1] / rows.num_rows / TENTH)))  # equals stay by frequency and name
    values = [counted[i][0] for i in fit[:MAX_SEGMENTS]]
    found = [Segment(f"{name}:{v}", column, (v,)) for v in values]
    return _parts(found, np.minimum(category_codes(rows, column, values), len(values)), answers) if found else []


def _fitting(counts: NDArray[np.int64], n: int, need: int) -> NDArray[np.int64]:
    return np.flatnonzero((counts >= need) & (counts <= MAX_SHARE * n))


def _parts(found: Sequence[Segment], place: NDArray[np.int64], answers: Floats) -> list[Part]:
    """`place`: the segment of each row, len(found) for all others."""
    n = np.bincount(place, minlength=len(found) + 1)
    tells = _tells(place, n, answers)
    return [Part(s, float(k / len(place)), tells) for s, k in zip(found, n.tolist(), strict=False)]


def _tells(place: NDArray[np.int64], n: NDArray[np.int64], answers: Floats) -> float | None:
    """The corrected eta squared of the answers (answers, rows; centred) between places."""
    total, groups = float((answers**2).sum()), int((n > 0).sum())
    if not total or groups >= len(place):
        return None
    sums = np.array([np.bincount(place, weights=y, minlength=len(n)) for y in answers])
    between = float((sums**2 / np.maximum(n, 1)).sum())
    corrected = 1 - (1 - between / total) * (len(place) - 1) / (len(place) - groups)
    return round(max(0.0, corrected), 4)  # so that what differs by rounding errors counts as equal


def _answers(rows: pa.Table) -> Floats:
    """What the model answered, as centred numbers that can be added up: (answers, rows); none counts as the middle."""
    classes = class_names(rows)
    values = floats(rows, "prediction_value")
    if classes:
        by_class = scores(rows, classes)
        # Two scores that sum to one are one number.
        return np.array([_ranks(by_class[c]) for c in (classes[1:] if len(classes) == 2 else classes[:MAX_SCORES])])
    if np.isfinite(values).sum() * 2 > rows.num_rows:
        return _ranks(values)[None]
    labels = [v for v, _ in frequent(Streamed.of(rows), "prediction_label")[:MAX_SCORES]]
    code = category_codes(rows, "prediction_label", labels)
    return np.array([(code == i) - float((code == i).mean()) for i in range(len(labels))]).reshape(
        len(labels), rows.num_rows
    )


def _ranks(x: Floats) -> Floats:
    """Mean ranks of equals around 0, over n; 0 where there is no value."""
    out, known = np.zeros(len(x)), np.isfinite(x)
    _, place, n = np.unique(x[known], return_inverse=True, return_counts=True)
    middle = np.cumsum(n) - n / 2 - len(place) / 2
    out[known] = middle[place] / max(1, len(place))
    return out
