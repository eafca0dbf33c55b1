"""Labelers whose labels contradict what others say of like cases: poisoned feedback."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from detectors.base import Calibration, Detection, Evidence, Feedback, Measured, State, Window, own_state
from detectors.signals import Codes, Encoder, Frame
from monitor.errors import CalibrationRefused
from monitor.model import Event, Family, Subject, Verdict, finite

VERSION: Final = 2
TRUSTED: Final = 2_000  # newest labelled rows that others are compared with
NEAREST: Final = 5
AGREE: Final = 4  # of the nearest: otherwise the case is a matter of opinion
COARSE: Final = 8  # fine bins to a coarse one
FLOOR: Final = 0.1  # share of contradictions that every labeler may have
RATES: Final = (0.25, 0.5, 0.9)
PIECE: Final = 500  # labels that are judged before they are trusted: a night's labels come in one window
OWN: Final = 200  # contradictable labels after which a labeler's own first ones count as its habit
LABELERS: Final = 5_000
REFERENCE_ROWS: Final = 20_000


@dataclass(frozen=True)
class LabelFlips:
    """Per labeler: labels that contradict those which others gave to the most similar cases.

    Idea: labels come back to train the next model, so whoever flips them steers it. Labelers see different cases (one
    only the fraud queue), so neither the rate of a label nor disagreement with the model says anything. What others called
    similar cases with the same answer of the model does. A label is a trial when at least four of the five nearest trusted rows of other
    labelers carry one label; it contradicts when it is another one.

    Math: e-values r/rho and (1-r)/(1-rho) for r of .25, .5 and .9, with rho the largest of 10 %, twice the share of
    contradictions of all other labelers, and half more than the labeler's own share in its first 200 trials; fuse()
    runs a CUSUM of each per labeler (detectors.decide). Nearness: fields in the same of eight quantile bins or with the
    same category. Trusted are the newest 2,000 labels that did not contradict, of labelers without an incident, at
    most half of them by one labeler. The newest label per event counts, labels are taken in order of label time, PIECE at a
    time. A label that came late counts in the window in which it was received, and is dated to it.

    Assumptions: two labelers or more meet similar cases. A single labeler, or most of them together, cannot be seen so.

    False alarms: at most one per `FuseSettings.level` labels over all labelers while contradictions keep below rho.
    The gauge beside it (share of the busiest labeler) never alarms.

    Parameters: min_labels: labels of a window below which it is `insufficient`, though they still count; name: of the
    feedback that holds labels.

    Reference: Paudice, Munoz-Gonzalez and Lupu 2018 (nearest neighbours against label flipping).

    >>> LabelFlips().min_labels
    20
    """

    name: ClassVar[str] = "feedback"
    family: ClassVar[Family] = Family.POISONING
    reads: ClassVar[str] = "windows"
    version: ClassVar[int] = VERSION

    min_labels: int = 20

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """Bins of the features. Raises CalibrationRefused without rows."""
        windows = [w for w in reference if w.n]
        profile = windows[0].profile() if windows else None
        own = [] if profile is None else [f for f in profile.bins.features if f.column == f"feature:{f.name}"]
        if not own:
            raise CalibrationRefused("the reference has no rows with features to compare labelled cases by")
        numeric = [f.name for f in own if f.kind == "number"]
        categorical = [f.name for f in own if f.kind == "category"]
        columns = [f"feature:{n}" for n in (*numeric, *categorical)]
        before = np.cumsum([0, *(w.n for w in windows)])[:-1]
        parts = [w.rows(columns) for w, n in zip(windows, before, strict=True) if n < REFERENCE_ROWS]
        rows = pa.concat_tables(parts, promote_options="default").slice(0, REFERENCE_ROWS)
        encoder = Encoder.fit(Frame.of(rows, numeric, categorical))
        meta = {"numeric": numeric, "categorical": categorical, "codes": [list(w) for w in encoder.words]}
        return Calibration(self.name, VERSION, reference_hash, meta, {"edges": encoder.edges})

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """One detection that gauges the window, and evidence per label that can be compared."""
        own = own_state(state, cal, VERSION)
        known = _Known.load(own, len(_features(cal)))
        rows = _usable(window.feedback(["prediction_label", *_features(cal)]))
        gauge, evidence = self._gauge(window, rows), None
        if rows.num_rows:
            frame = Frame.of(rows, cal.meta["numeric"], cal.meta["categorical"])
            encoder = Encoder(np.asarray(cal.arrays["edges"]), tuple(tuple(w) for w in cal.meta["codes"]))
            codes = encoder.codes(frame)
            codes[:, : len(frame.numeric)] //= COARSE
            evidence = self._judge(known, codes, rows, feedback.suspects)
            evidence = replace(evidence, time_us=np.clip(evidence.time_us, window.start_us, window.end_us - 1))
        return Measured(known.save(cal), [gauge], evidence)

    def _gauge(self, window: Window, rows: pa.Table) -> Detection:
        n = rows.num_rows
        top = pc.value_counts(rows["labeler"]).to_pylist() if n else []
        busiest = max(top, key=lambda v: (v["counts"], v["values"]), default={"values": None, "counts": 0})
        share = busiest["counts"] / n if n else 0.0
        return Detection(
            self.name, self.family, Event.POISONING_SUSPECTED, Subject("model", window.model),
            (window.start_us, window.end_us), finite(share) if n >= self.min_labels else None,
            Verdict.OK if n >= self.min_labels else Verdict.INSUFFICIENT, n,
            evidence={"labelers": len(top), "busiest": busiest["values"], "busiest_share": finite(round(share, 4))},
        )  # fmt: skip

    def _judge(self, known: _Known, codes: Codes, rows: pa.Table, suspects: frozenset[str]) -> Evidence:
        """Trials in order of label time; what a piece says is trusted from the next one on."""
        given = pc.dictionary_encode(rows["labeler"].combine_chunks())
        names = tuple(given.dictionary.to_pylist())
        who = known.place(names)[given.indices.to_numpy()]
        label = known.words(rows["value"].to_pylist())
        answer = known.words(
            rows["prediction_label"].to_pylist() if "prediction_label" in rows.column_names else [None] * len(who)
        )
        honest = ~np.isin(rows["labeler"].to_pylist(), list(suspects))
        said, flip, log_e = np.full(len(who), -1), np.zeros(len(who), dtype=bool), np.zeros((len(who), len(RATES)))
        for first in range(0, len(who), PIECE):
            piece = slice(first, first + PIECE)
            said[piece], trial = known.nearest(codes[piece], who[piece], answer[piece])
            flip[piece] = trial & (said[piece] != label[piece])
            for i in (first + np.flatnonzero(trial)).tolist():
                rho = known.tolerated(int(who[i]))
                r = np.maximum(np.array(RATES), min(2 * rho, 0.95))
                log_e[i] = np.log(r / rho) if flip[i] else np.log((1 - r) / (1 - rho))
                known.count(int(who[i]), flip=bool(flip[i]))
            trusted = first + np.flatnonzero(honest[piece] & ~flip[piece])
            known.trust(codes[trusted], label[trusted], who[trusted], answer[trusted])
        details = {
            int(i): {"contradicts": {"label": str(rows["value"][i].as_py())[:40], "others": known.word(int(said[i]))}}
            for i in np.flatnonzero(flip).tolist()
        }
        return Evidence(
            detector=self.name, family=self.family, principals=names, code=given.indices.to_numpy().astype(np.int32),
            row=np.arange(len(who)), time_us=np.asarray(rows["label_time_us"], dtype=np.int64), log_e=log_e, flag=flip,
            details=details, columns=tuple(f"flips/{r}" for r in RATES),
        )  # fmt: skip


@dataclass
class _Known:
    """Trusted rows, newest last, and per labeler: trials, contradictions, and those of its first OWN trials."""

    ids: list[str]
    vocabulary: list[str]
    counts: NDArray[np.int64]  # (labelers, 3): trials, flips, flips among the first OWN
    codes: Codes
    label: NDArray[np.int64]
    who: NDArray[np.int64]
    answer: NDArray[np.int64]  # what the model said

    @classmethod
    def load(cls, state: State | None, features: int) -> _Known:
        if state is None:
            none = np.zeros(0, np.int64)
            return cls([], [], np.zeros((0, 3), np.int64), np.zeros((0, features), np.uint8), none, none, none)
        a = state.arrays
        counts = np.array(a["counts"])
        return cls(
            list(state.meta["ids"]), list(state.meta["words"]), counts, a["codes"], a["label"], a["who"], a["answer"]
        )

    def save(self, cal: Calibration) -> State:
        arrays: dict[str, NDArray[Any]] = {
            "counts": self.counts,
            "codes": self.codes,
            "label": self.label,
            "who": self.who,
            "answer": self.answer,
        }
        return State(LabelFlips.name, VERSION, cal.hash, {"ids": self.ids, "words": self.vocabulary}, arrays)

    def place(self, names: tuple[str, ...]) -> NDArray[np.int64]:
        """Places of labelers; a flood of new ones shares the last place."""
        for name in names:
            if name not in self.ids and len(self.ids) < LABELERS:
                self.ids.append(name)
        self.counts = np.pad(self.counts, ((0, len(self.ids) - len(self.counts)), (0, 0)))
        known = {p: i for i, p in enumerate(self.ids)}
        return np.array([known.get(n, len(self.ids) - 1) for n in names], np.int64)

    def words(self, values: list[Any]) -> NDArray[np.int64]:
        """Labels as numbers; beyond 200 different ones all further are one."""
        out = []
        for text in (str(v) for v in values):
            if text not in self.vocabulary and len(self.vocabulary) < LABELERS // 25:
                self.vocabulary.append(text)
            out.append(self.vocabulary.index(text) if text in self.vocabulary else len(self.vocabulary))
        return np.array(out, np.int64)

    def word(self, label: int) -> str:
        return self.vocabulary[label][:40] if 0 <= label < len(self.vocabulary) else "?"

    def nearest(
        self, codes: Codes, who: NDArray[np.int64], answer: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """What others said of the most similar cases with the same answer of the model, and whether they nearly agree."""
        said, trial = np.full(len(codes), -1, np.int64), np.zeros(len(codes), dtype=bool)
        for i in range(len(codes)):
            other = np.flatnonzero((self.who != who[i]) & (self.answer == answer[i]))
            if len(other) < 10 * NEAREST:
                continue
            same = (self.codes[other] == codes[i]).sum(axis=1)
            best = other[np.argsort(-same, kind="stable")[:NEAREST]]
            values, n = np.unique(self.label[best], return_counts=True)
            said[i], trial[i] = values[n.argmax()], n.max() >= AGREE
        return said, trial

    def tolerated(self, who: int) -> float:
        trials, flips, early = self.counts[who].tolist()
        others, wrong = self.counts[:, 0].sum() - trials, self.counts[:, 1].sum() - flips
        own = 1.5 * early / OWN if trials >= OWN else 0.0
        return float(min(max(FLOOR, 2 * wrong / others if others >= OWN else 0.0, own), 0.45))

    def count(self, who: int, *, flip: bool) -> None:
        self.counts[who] += (1, flip, flip and self.counts[who, 0] < OWN)

    def trust(self, codes: Codes, label: NDArray[np.int64], who: NDArray[np.int64], answer: NDArray[np.int64]) -> None:
        """The newest rows, at most half of the room for one labeler."""
        all_codes = np.concatenate([self.codes, codes])
        all_label, all_who = np.concatenate([self.label, label]), np.concatenate([self.who, who])
        back = all_who[::-1]
        order = np.argsort(back, kind="stable")
        begin = np.searchsorted(back[order], back[order], side="left")
        rank = np.empty(len(back), np.int64)
        rank[order] = np.arange(len(back)) - begin
        keep = np.flatnonzero(rank[::-1] < TRUSTED // 2)[-TRUSTED:]
        self.codes, self.label, self.who = all_codes[keep], all_label[keep], all_who[keep]
        self.answer = np.concatenate([self.answer, answer])[keep]


def _features(cal: Calibration) -> list[str]:
    return [f"feature:{n}" for n in (*cal.meta["numeric"], *cal.meta["categorical"])]


def _usable(rows: pa.Table) -> pa.Table:
    """Labels with a labeler, in order of label time."""
    if not rows.num_rows or not {"labeler", "value", "label_time_us"} <= set(rows.column_names):
        return rows.slice(0, 0)
    rows = rows.filter(pc.and_(pc.is_valid(rows["labeler"]), pc.is_valid(rows["value"])))
    return rows.sort_by([("label_time_us", "ascending"), ("labeler", "ascending")])
