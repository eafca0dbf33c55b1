"""Canary rows asked again and again: the same question, the same version, another answer."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detectors.base import PROBES, Calibration, Detection, Feedback, Measured, State, Window
from detectors.binned import floats
from detectors.stats import Floats
from monitor.errors import CalibrationRefused
from monitor.model import Event, Family, Subject, Verdict, finite, rfc3339

VERSION: Final = 1
AGAIN: Final = 2  # answers in a row that must be other ones
CANARIES: Final = 2  # that must have moved, where there are so many
FROZEN: Final = 20  # answers after which nothing more is learnt about a canary under one version
CLASSES: Final = 12  # scores of an answer that are followed
ERAS: Final = 6  # versions or told changes that are remembered
MOST: Final = 1_000  # canaries of a file that are followed
SHOWN: Final = 10
COLUMNS: Final = ("event_time", "principal", "canary", "model_version", "prediction_label", "prediction_value", "scores", "class_names")  # fmt: skip
Key = tuple[int, int]  # line of the canary's file, kind of answer


@dataclass(frozen=True)
class CanaryScores:
    """The model's answers to canary rows (`models.NAME.canaries`) that declared probes send: PoisoningSuspected when they move.

    Idea: a probe (declared `health_probe` or `batch`) asks the same made-up rows for ever. While the version is the same
    the answers must be the same, up to what the model itself varies. When they move and nobody told of a change, the
    model was changed behind everybody's back: poisoned online learning, a swapped file, a feature store that lies. A new
    `model_version` on the events, or a mark of kind `deploy` or `version`, is a change that was told: answers are learnt
    anew, and how far they moved from those before is a gauge that names the change.

    Math: per version and canary the first `settled` answers give a band from lowest to highest, per class score, value
    or label. A later answer is another one when it is outside by more than `tolerance` + 5/n of 4 times the band's
    width, n being the answers behind it. Answers within widen the band until n is 20, then it is frozen. A canary has
    moved after two other answers in a row; two moved canaries alarm (one, where only one is asked), dated to the answer
    that made it so. Over when none has moved any more, or when a told change has settled and the old version is silent.

    Assumptions: a canary's features are all that the model's answer depends on. The first answers under a version are
    right: a version that was poisoned before its first probe shows only in the gauge against the version before.

    False alarms: none for a model that answers the same within `tolerance`. With noise on the answers of 20 canaries, 500
    rounds of probing alarmed in none of 300 simulated models (docs/detectors.md).

    Parameters: settled: answers per canary and version before it is judged; tolerance: change of a score (or of a
    value, in standard deviations of the reference's values) that is none.

    Reference: canary sets; Pang et al. 2021 (accumulative poisoning keeps the accuracy flat).

    >>> CanaryScores().settled
    5
    """

    name: ClassVar[str] = "canary_scores"
    family: ClassVar[Family] = Family.POISONING
    reads: ClassVar[str] = "log"
    version: ClassVar[int] = VERSION

    settled: int = 5
    tolerance: float = 0.01

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """The spread of answered values. Raises CalibrationRefused where no canaries are configured."""
        held, n, mean, squares = False, 0, 0.0, 0.0
        for window in reference:
            rows = window.rows(["canary", "prediction_value"])
            held |= "canary" in rows.column_names
            x = floats(rows, "prediction_value")
            if len(x := x[np.isfinite(x)]):  # merged as in Chan, Golub and LeVeque 1979
                step, m = float(x.mean()) - mean, n + len(x)
                squares += float(((x - x.mean()) ** 2).sum()) + step**2 * n * len(x) / m
                n, mean = m, mean + step * len(x) / m
        if not held:
            raise CalibrationRefused("the configuration names no canaries of this model (models.NAME.canaries)")
        scale = math.sqrt(squares / n) if squares else 1.0
        return Calibration(self.name, VERSION, reference_hash, {"scale": scale})

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """A detection when canaries begin to move, when twice as many have, when none has, and when a change has settled."""
        own = state if state is not None and (state.calibration_hash, state.version) == (cal.hash, VERSION) else None
        eras = Eras.load(own, self.settled, self.tolerance)
        rows = window.rows(COLUMNS)
        found: list[Detection] = []
        if {"canary", "principal"} <= set(rows.column_names):
            probes = [p for p, caller in window.callers().items() if caller.profile in PROBES]
            sent = pc.and_(
                pc.greater_equal(rows["canary"], 0), pc.is_in(rows["principal"], pa.array(probes, pa.string()))
            )
            asked = rows.filter(pc.and_(sent, pc.less(rows["canary"], MOST)))
            changes = sorted(feedback.changes_us)
            for told in _answers(asked, float(cal.meta["scale"])):
                since_us = max((c for c in changes if c <= told.time_us), default=0)
                found += [_detection(window.model, said) for said in eras.hear(told, since_us)]
        return Measured(eras.save(self.name, cal.hash), found)


@dataclass(frozen=True)
class Answer:
    """One answer to a canary. values: its numbers, of a meaning that the key's second part stands for."""

    time_us: int
    version: str
    key: Key
    values: Floats


@dataclass(frozen=True)
class Said:
    """Something worth a detection."""

    verdict: Verdict
    moved: int
    of: int
    needed: int
    since_us: int
    time_us: int
    evidence: dict[str, Any]


@dataclass
class Band:
    """What one canary was answered under one version: lowest and highest numbers of n answers, other ones in a row."""

    low: Floats
    high: Floats
    n: int = 1
    other: int = 0
    since_us: int = 0  # of the first of them
    now: float = 0.0  # the number that is farthest out
    was: tuple[float, float] = (0.0, 0.0)

    def outside(self, values: Floats, tolerance: float, settled: int) -> Floats:
        """How far each number is outside of the band and its margin; 0 or less is inside."""
        margin = tolerance + 4 * settled / self.n * (self.high - self.low)
        return np.maximum(self.low - margin - values, values - self.high - margin)


@dataclass
class Era:
    """A time in which answers must stay as they are: one version, since the last change that was told."""

    version: str
    since_us: int
    first_us: int
    last_us: int
    alarmed: bool = False
    compared: bool = False  # with the era before
    told: int = 0  # moved canaries at the last detection
    bands: dict[Key, Band] = field(default_factory=dict)

    @property
    def moved(self) -> list[Key]:
        return [k for k, b in self.bands.items() if b.other >= AGAIN]

    @property
    def needed(self) -> int:
        return min(CANARIES, len({line for line, _ in self.bands}))


@dataclass
class Eras:
    """All that is remembered, by version and told change, in order of their first answers."""

    settled: int
    tolerance: float
    known: list[Era] = field(default_factory=list)

    def hear(self, a: Answer, since_us: int) -> Iterator[Said]:
        """Take in one answer; what there is to say after it. since_us: the newest change told of before it, 0: none."""
        told = (e.since_us for e in self.known if e.version == a.version and e.since_us <= a.time_us)
        era = self._era(a, max(since_us, *told, 0))  # marks are forgotten in time; what began with one goes on
        era.last_us = max(era.last_us, a.time_us)
        band = era.bands.get(a.key)
        if band is None:
            era.bands[a.key] = Band(a.values, a.values)
        else:
            self._learn(band, a)
        n = len(era.moved)
        if not era.alarmed and n >= max(era.needed, 1):
            era.alarmed, era.told = True, n
            yield self._says(era, a, Verdict.ALARM, _moved(era))
        elif era.alarmed and not n:
            era.alarmed, era.told = False, 0
            yield self._says(era, a, Verdict.OK, {"reason": "canaries are answered as before"})
        elif n >= max(1, 2 * era.told):
            era.told = n
            yield self._says(era, a, Verdict.ALARM if era.alarmed else Verdict.OK, _moved(era))
        if not era.compared and all(b.n >= self.settled for b in era.bands.values()):
            era.compared = True
            yield from self._compare(era, a)

    def _era(self, a: Answer, since_us: int) -> Era:
        for era in self.known:
            if (era.version, era.since_us) == (a.version, since_us):
                return era
        era = Era(a.version, since_us, a.time_us, a.time_us, compared=not self.known)
        self.known.append(era)
        if len(self.known) > ERAS:
            self.known.remove(min(self.known[:-1], key=lambda e: e.last_us))
        return era

    def _learn(self, band: Band, a: Answer) -> None:
        if band.n >= self.settled:
            far = band.outside(a.values, self.tolerance, self.settled)
            if far.max() > 0:
                i = int(far.argmax())
                band.since_us = band.since_us if band.other else a.time_us
                band.other += 1
                band.now, band.was = float(a.values[i]), (float(band.low[i]), float(band.high[i]))
                return
        band.other = 0
        if band.n < FROZEN:
            band.low, band.high = np.minimum(band.low, a.values), np.maximum(band.high, a.values)
            band.n += 1

    def _compare(self, era: Era, a: Answer) -> Iterator[Said]:
        """What a told change did to the answers; and the end of an alarm of a version that is no longer asked."""
        before = max((e for e in self.known if e is not era), key=lambda e: e.last_us)
        both = [k for k, b in before.bands.items() if k in era.bands and b.n >= self.settled]
        middle = {k: (era.bands[k].low + era.bands[k].high) / 2 for k in both}
        n = sum(bool(before.bands[k].outside(middle[k], self.tolerance, self.settled).max() > 0) for k in both)
        change = {"version": era.version, "before": before.version, "told": rfc3339(max(era.since_us, era.first_us))}
        text = f"{n} of {len(both)} canaries are answered otherwise since version {era.version} or a deploy"
        gone = [e for e in self.known if e.alarmed and e is not era and e.last_us < era.first_us]
        for e in gone:
            e.alarmed, e.told = False, 0
        end = {"reason": f"version {era.version} or a deploy replaced it"} if gone else {}
        yield Said(Verdict.OK, n, len(both), 0, era.first_us, a.time_us, {"change": change, "detail": text, **end})

    def _says(self, era: Era, a: Answer, verdict: Verdict, evidence: dict[str, Any]) -> Said:
        moved = [era.bands[k] for k in era.moved]
        since_us = min((b.since_us for b in moved), default=a.time_us)
        told = {"version": era.version} | ({"told": rfc3339(era.since_us)} if era.since_us else {})
        return Said(
            verdict, len(moved), len(era.bands), era.needed, min(since_us, a.time_us), a.time_us, told | evidence
        )

    @classmethod
    def load(cls, state: State | None, settled: int, tolerance: float) -> Eras:
        out = cls(settled, tolerance)
        if state is None:
            return out
        out.known = [Era(**e) for e in state.meta["eras"]]
        a = state.arrays
        for i, (era, line, kind, n, other, since_us) in enumerate(a["whole"].tolist()):
            low, high = (a[k][i][: a["width"][i]] for k in ("low", "high"))
            now, *was = a["moved"][i].tolist()
            out.known[era].bands[line, kind] = Band(low, high, n, other, since_us, now, (was[0], was[1]))
        return out

    def save(self, name: str, calibration: str) -> State:
        """Plain arrays, one row per version and canary."""
        held = [(i, k, b) for i, e in enumerate(self.known) for k, b in e.bands.items()]
        whole = [[i, *k, b.n, b.other, b.since_us] for i, k, b in held]
        arrays = {
            "whole": np.array(whole, np.int64).reshape(-1, 6), "width": np.array([len(b.low) for _, _, b in held], np.int64),
            "low": _padded([b.low for _, _, b in held]), "high": _padded([b.high for _, _, b in held]),
            "moved": np.array([[b.now, *b.was] for _, _, b in held], np.float64).reshape(-1, 3),
        }  # fmt: skip
        eras = [{k: v for k, v in vars(e).items() if k != "bands"} for e in self.known]
        return State(name, VERSION, calibration, {"eras": eras}, arrays)


def _padded(parts: Sequence[Floats]) -> Floats:
    out = np.zeros((len(parts), CLASSES))
    for row, part in zip(out, parts, strict=True):
        row[: len(part)] = part
    return out


def _moved(era: Era) -> dict[str, Any]:
    """Which canaries, by their lines in the file, and what they were answered before and are now."""
    moved = {k: era.bands[k] for k in era.moved}
    told = "since the last change that was told" if era.since_us else "and no change was told"
    shown = [
        {"canary": line + 1, "before": [finite(round(x, 4)) for x in b.was], "now": finite(round(b.now, 4))}
        for (line, _), b in list(moved.items())[:SHOWN]
    ]
    return {"detail": f"{len(moved)} of {len(era.bands)} canaries are answered otherwise, {told}", "canaries": shown}


def _detection(model: str, said: Said) -> Detection:
    of = max(said.of, 1)
    return Detection(
        CanaryScores.name, Family.POISONING, Event.POISONING_SUSPECTED, Subject("component", "canaries"),
        (said.since_us, said.time_us), said.moved / of, said.verdict, said.of,
        threshold=said.needed / of if said.needed else None, evidence=said.evidence,
    )  # fmt: skip


def _answers(rows: pa.Table, scale: float) -> Iterator[Answer]:
    """The answers that say something, in log order: scores by class name, else the value, else the label."""
    columns = {c: rows[c].to_pylist() if c in rows.column_names else [None] * rows.num_rows for c in COLUMNS}
    for time_us, line, version, label, value, scores, names in zip(
        *(columns[c] for c in COLUMNS if c != "principal"), strict=True
    ):
        if scores:
            classes = (
                [str(n) for n in names] if names and len(names) == len(scores) else [str(i) for i in range(len(scores))]
            )
            by = sorted(zip(classes, scores, strict=True), key=lambda x: x[0])[:CLASSES]
            kind, values = _word("\x1f".join(n for n, _ in by)), [0.0 if x is None else float(x) for _, x in by]
        elif value is not None:
            kind, values = -1, [float(value) / scale]
        elif label is not None:
            kind, values = -2, [float(_word(str(label)))]
        else:
            continue
        numbers = np.array(values)
        if np.isfinite(numbers).all():
            yield Answer(int(time_us), str(version or "")[:100], (int(line), kind), numbers)


def _word(text: str) -> int:
    return zlib.crc32(text.encode(errors="surrogatepass")) & 0x7FFFFFFF
