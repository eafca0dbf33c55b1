"""What the query-pattern detector learns from a reference, and what it needs of it at hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors import answers, constraints, honest, plausibility, pool, search, signals, stats
from detectors.answers import Answers
from detectors.base import Calibration, Window
from detectors.binned import given
from detectors.constraints import Broken, Constraints
from detectors.plausibility import Joint
from detectors.search import Rows, Scale
from detectors.signals import Encoder, Frame
from detectors.streamed import evenly
from monitor.errors import CalibrationRefused

REFERENCE_ROWS: Final = 20_000  # a longer reference is thinned evenly
TAIL: Final = 0.02  # where the tails of a number begin
POOLED_ROWS: Final = 1_000  # reference rows without which nothing can be said about rows of many callers together
POOLED_FIELDS: Final = 2 * (
    search.FEW + 1
)  # a step moves more than FEW fields, and more than half must stay as they are
SIGNALS: Final = ("schema", "near", "crowd", "cross", "joint", "edge", "shared")
REFUSALS: Final = {
    "schema": "fresh reference rows break the rules that the reference teaches too often",
    "joint": "segments of the reference look as implausible as made-up rows",
    "edge": "the log holds no scores, or segments of the reference lie at the model's boundary",
    "shared": "rows of different honest callers resemble each other too much, or are fewer than 1,000, or have fewer than seven fields",
}


@dataclass(frozen=True)
class Learnt:
    """A calibration unpacked. the thresholds in scale and shared: inf where the signal was refused; strange, edge: never passed."""

    rules: Constraints
    encoder: Encoder
    joint: Joint
    strange: NDArray[np.float32]
    scale: Scale
    groups: NDArray[np.int64]
    edge: float
    shared: float

    @property
    def features(self) -> tuple[str, ...]:
        return (*self.rules.numeric, *self.rules.categorical)

    @property
    def columns(self) -> list[str]:
        """Columns of the log that are read."""
        return [*columns(self.rules.numeric, self.rules.categorical), "quality", "extra"]

    @classmethod
    def of(cls, cal: Calibration) -> Learnt:
        """Unpacked once per calibration and process: what it holds never changes."""
        if cal.hash not in _KEPT:
            if len(_KEPT) >= 64:
                _KEPT.pop(next(iter(_KEPT)))
            _KEPT[cal.hash] = _unpacked(cal)
        return _KEPT[cal.hash]


_KEPT: dict[str, Learnt] = {}


def _unpacked(cal: Calibration) -> Learnt:
    a, m = cal.arrays, cal.meta
    scale = Scale(
        np.asarray(a["surprise"]), np.asarray(a["mean"], np.float32), np.asarray(a["variance"], np.float32),
        np.asarray(a["weight"]), _or(m["bits"], np.inf), float(m["sampled_bits"]), _or(m["crowd_bits"], np.inf),
        _or(m["cross_bits"], np.inf), np.asarray(a["tail_low"]), np.asarray(a["tail_high"]),
        np.asarray(a["usual"]),
    )  # fmt: skip
    encoder = Encoder(np.asarray(a["edges"]), tuple(tuple(w) for w in m["codes"]))
    return Learnt(
        Constraints.unpack(dict(m), dict(a)), encoder, Joint.unpack(a), np.asarray(a["strange"]), scale,
        np.asarray(a["groups"]), _or(m["edge"], -1.0), _or(m["shared_bits"], np.inf),
    )  # fmt: skip


def _or(value: float | None, other: float) -> float:
    return other if value is None else float(value)


def learn(
    reference: Iterable[Window],
    reference_hash: str,
    detector: str,
    min_rows: int,
    memory: int,
    rho: Mapping[str, float],
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Meta and arrays of a calibration. Raises CalibrationRefused when no signal at all can be had."""
    windows = [w for w in reference if w.n]
    rows, numeric, categorical = reference_rows(windows, min_rows)
    frame = Frame.of(rows, numeric, categorical)
    rng = stats.seeded(windows[0].model, detector, reference_hash)
    rules = constraints.learn(frame, rho["schema"], rng)
    encoder = Encoder.fit(frame)
    codes, given = encoder.codes(frame), Answers.of(rows)
    scale = scale_of(frame, codes, rng)
    clients = honest.sequences(codes, len(numeric), callers(rows)[0], rng)
    plain = as_rows(frame, codes, given)
    samples = [as_rows(f, encoder.codes(f), given.take(np.zeros(f.n, np.int64))) for f in honest.explained(frame, rng)]
    found = honest.near_thresholds(plain, clients, samples, scale, memory, rho)
    joint, groups = Joint.fit(codes, frame.numbers), pool.field_groups(scale.table, codes, rng)
    fresh, own = plausibility.crossed(codes, frame.numbers, joint.pairs, rng), joint.strangeness(codes, frame.numbers)
    strange = honest.tail_threshold(fresh, own, clients, rho["joint"])
    edge = honest.low_threshold(given.margin, clients, rho["edge"])
    shared = None
    if frame.n >= POOLED_ROWS and codes.shape[1] > POOLED_FIELDS:
        shared = pool.threshold(plain, groups, joint.place, scale, found.reach, rho["shared"])
    known = {"schema": rules, "joint": strange, "edge": edge, "shared": shared}
    refused = {k: REFUSALS[k] for k, v in known.items() if v is None} | dict(found.refused)
    if len(refused) == len(SIGNALS):
        raise CalibrationRefused("; ".join(f"{k}: {v}" for k, v in sorted(refused.items())))
    meta, arrays = (rules if rules is not None else Constraints.fit(frame, np.inf)).pack()
    meta |= {
        "rows": rows.num_rows, "refused": refused, "silent": _silent(refused, codes.shape[1]), "bits": found.bits, "sampled_bits": found.sampled,
        "crowd_bits": found.crowd, "cross_bits": found.cross, "benign_bits": found.benign, "self_bits": found.reach, "shared_bits": shared, "edge": edge, "what_ifs": found.what_ifs,
        "margins": given.levels(), "codes": [list(w) for w in encoder.words],
    }  # fmt: skip
    arrays |= {"edges": encoder.edges, "surprise": scale.table, "mean": scale.mean, "variance": scale.variance}
    arrays |= {
        "usual": scale.usual,
        "weight": scale.weight,
        "tail_low": scale.low,
        "tail_high": scale.high,
        "groups": groups,
        **joint.pack(),
    }
    arrays["strange"] = strange if strange is not None else np.full(2, np.inf, np.float32)
    return meta, arrays


def _silent(refused: Mapping[str, str], features: int) -> list[str]:
    """Signals of which nothing is left. What measures slopes is seen without a threshold for resemblance (detectors.search)."""
    return sorted(s for s in refused if s != "near" or features <= search.FEW + 1)


def reference_rows(windows: Sequence[Window], min_rows: int) -> tuple[pa.Table, list[str], list[str]]:
    """Reference rows, thinned evenly, and the names of their numbers and categories. Raises CalibrationRefused."""
    profile = windows[0].profile() if windows else None
    bins = profile.bins if profile is not None else None
    if bins is None:
        raise CalibrationRefused("the reference has no rows to learn from")
    own = [(f.name, f.kind) for f in bins.features if f.column == f"feature:{f.name}"]
    numeric = [n for n, kind in own if kind == "number"]
    categorical = [n for n, kind in own if kind == "category"]
    if not own:
        raise CalibrationRefused("the reference has no features")
    if (n := sum(w.n for w in windows)) < min_rows:
        raise CalibrationRefused(f"the reference has {n} rows and {min_rows} are needed")
    wanted = columns(numeric, categorical)
    return evenly((w.rows(wanted) for w in windows), n, REFERENCE_ROWS), numeric, categorical


def scale_of(frame: Frame, codes: NDArray[np.uint8], rng: np.random.Generator) -> Scale:
    """What a resemblance means on this reference; no threshold yet."""
    table = signals.surprise(codes, len(frame.numeric))
    mean, variance = signals.redrawn(table, codes, rng)
    spread = np.array([np.nanvar(x) if np.isfinite(x).any() else 0.0 for x in frame.numbers.T])
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where((spread > 0) & np.isfinite(spread), 1 / spread, 0.0)
    f32 = np.float32
    low, high = np.full((2, len(spread)), np.nan, f32)
    for j, x in enumerate(frame.numbers.T):
        if np.isfinite(x).any():
            low[j], high[j] = np.nanquantile(x, [TAIL, 1 - TAIL])
    return Scale(
        table, mean.astype(f32), variance.astype(f32), weight.astype(f32), np.inf, np.inf, np.inf, np.inf, low, high,
        levels(codes[:, : len(frame.numeric)]),
    )  # fmt: skip


def levels(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean and variance of each number's level and of its square, (numbers, 4): what explained.by_columns expects."""
    u = np.where(codes < signals.LEVELS, (codes + 0.5) / signals.LEVELS - 0.5, np.nan)
    out = np.zeros((codes.shape[1], 4), np.float32)
    for j in np.flatnonzero(np.isfinite(u).any(axis=0)):
        x = u[np.isfinite(u[:, j]), j]
        out[j] = x.mean(), x.var(), (x * x).mean(), (x * x).var()
    return out


def columns(numeric: Sequence[str], categorical: Sequence[str]) -> list[str]:
    """Columns of the log that hold what a caller sent and was told."""
    return ["event_time", "principal", *(f"feature:{n}" for n in (*numeric, *categorical)), *answers.COLUMNS]


def callers(rows: pa.Table) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Each row's principal as an index into the names, -1 for none; names in order of appearance."""
    if (values := given(rows, "principal")) is None:
        return np.full(rows.num_rows, -1, dtype=np.int64), ()
    encoded = pc.dictionary_encode(values.cast(pa.string()).combine_chunks())
    index = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return index, tuple(encoded.dictionary.to_pylist())


def as_rows(
    frame: Frame,
    codes: NDArray[np.uint8],
    given: Answers,
    broken: Broken | None = None,
    odd: NDArray[np.bool_] | None = None,
    edge: NDArray[np.bool_] | None = None,
) -> Rows:
    """Rows for detectors.search, all of one caller; those that break nothing where nothing else is said."""
    none = np.zeros(frame.n, np.int64)
    broken = broken or Broken(none.copy(), none.astype(np.uint64), none.astype(bool))
    no = none.astype(bool)
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinitely far away
        numbers = np.ascontiguousarray(frame.numbers, dtype=np.float32)
    return Rows(
        none, codes, frame.marks(), numbers, frame.whole(),
        *broken, no if odd is None else odd, no.copy() if edge is None else edge, given.label,
    )  # fmt: skip
