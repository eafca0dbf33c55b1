"""Small steps around training records: is this person's record in the training data?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from detectors import honest, signals, stats
from detectors.anomaly.learnt import as_rows, callers, reference_rows, scale_of
from detectors.answers import Answers
from detectors.base import (
    TECHNIQUES,
    Calibration,
    Caller,
    Detection,
    Evidence,
    Feedback,
    Measured,
    State,
    Window,
    own_state,
)
from detectors.membership.records import Records, Tried
from detectors.search import Scale
from detectors.signals import Encoder, Frame
from monitor.errors import CalibrationRefused
from monitor.model import Event, Family, Subject, Verdict

VERSION: Final = 1
VOTE: Final = 4.0  # nats for a row near a record: what tells it from searches that start at rows of nobody's record
HINT: Final = 0.5  # nats for one that resembles a record somewhat; it counts where another detector flags the row
ELSE: Final = 0.5  # nats against membership for a row that resembles no record its sender sent; counts like a hint
RESEMBLES: Final = 0.5  # of the bits of a repeat
DECLARED: Final = frozenset({"what_if", "explainer", "load_test"})  # uses that vary rows on purpose


@dataclass(frozen=True)
class Membership:
    """Per principal: rows that are small steps around a training record that the same principal sent.

    Idea: who tests whether a record trained the model sends the record and then many slightly changed copies of it: noise,
    or a walk to the boundary (label-only membership). The same walk around a row of nobody's record is evasion; the
    training record tells them apart. The service marks rows that equal one in every field by keyed hashes of
    `models.NAME.training`. Sending training records is no crime (the bank scores them again itself): their number is a
    gauge. A trial is a new row of a principal that has sent training records; it is flagged when it lies near one of
    them, differs in more fields than a what-if changes, and the moved fields are nearer than redrawn ones.

    Math: as in `queries`: e-values (r/rho)^F ((1-r)/(1-rho))^(1-F) per trial, added up by fuse(). Each flag speaks with 4
    nats for the technique `record_variation`, so that the incident is named membership; a row that resembles no record that
    its sender sent speaks against `noisy_copies`: noise around rows of nobody's record is a search for the boundary.

    Assumptions: the record itself is sent, to a millionth of each number's range. Steps of one or two fields, records
    that only copies of are sent, and single-shot membership (one query per record) are not seen here.

    False alarms: at most one per `FuseSettings.level` events while flags keep to rho. The threshold in bits is the
    smallest that keeps simulated honest clients calm (detectors.honest) with every row taken for a training record; where
    none exists (few or coarse fields) the detector is refused. Declared what-if, explainer and load-test callers are
    never flagged.

    Parameters: rho: tolerated share of flagged trials; memory: training records and trials remembered per principal;
    min_rows: reference rows that calibration needs; max_mb: memory for all principals of a model.

    Reference: Choquette-Choo, Tramer, Carlini and Papernot 2021; Li and Zhang 2021 (label-only membership).

    >>> Membership().memory
    50
    """

    name: ClassVar[str] = "membership"
    family: ClassVar[Family] = Family.MEMBERSHIP
    reads: ClassVar[str] = "log"
    version: ClassVar[int] = VERSION

    rho: float = 0.02
    memory: int = 50
    min_rows: int = 200
    max_mb: float = 32.0

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """How near honest rows come to each other. Raises CalibrationRefused without training rows or threshold."""
        windows = [w for w in reference if w.n]
        if not any("training" in w.rows(["training"]).column_names for w in windows):
            raise CalibrationRefused("the configuration names no training rows of this model (models.NAME.training)")
        rows, numeric, categorical = reference_rows(windows, self.min_rows)
        frame = Frame.of(rows, numeric, categorical)
        rng = stats.seeded(windows[0].model, self.name, reference_hash)
        encoder = Encoder.fit(frame)
        codes, given = encoder.codes(frame), Answers.of(rows)
        scale = scale_of(frame, codes, rng)
        clients = honest.sequences(codes, len(numeric), callers(rows)[0], rng)
        samples = [
            as_rows(f, encoder.codes(f), given.take(np.zeros(f.n, np.int64))) for f in honest.explained(frame, rng)
        ]
        rho = dict.fromkeys(("near", "crowd", "cross"), self.rho)
        found = honest.near_thresholds(as_rows(frame, codes, given), clients, samples, scale, self.memory, rho)
        if found.bits is None:
            raise CalibrationRefused(found.refused["near"])
        meta = asdict(self) | {
            "numeric": numeric, "categorical": categorical, "codes": [list(w) for w in encoder.words],
            "bits": found.bits, "sampled_bits": found.sampled, "benign_bits": found.benign, "self_bits": found.reach,
        }  # fmt: skip
        arrays = {"surprise": scale.table, "mean": scale.mean, "variance": scale.variance, "weight": scale.weight}
        return Calibration(self.name, VERSION, reference_hash, meta, {"edges": encoder.edges, **arrays})

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """Evidence per event that has a principal, and the gauge of training records as detections that never alarm."""
        own = own_state(state, cal, VERSION)
        numeric, categorical = list(cal.meta["numeric"]), list(cal.meta["categorical"])
        known = Records.load(own, len(numeric) + len(categorical), len(numeric), self.memory)
        rows = window.rows(["event_time", "principal", "training"])
        who, names = callers(rows)
        at = np.flatnonzero(who >= 0)
        if not len(at) or "training" not in rows.column_names:
            return Measured(known.save(self.name, VERSION, cal.hash))
        training, times = (
            np.asarray(rows["training"], dtype=bool)[at],
            np.asarray(rows["event_time"], dtype=np.int64)[at],
        )
        frame = signals.framed(window, numeric, categorical).take(at)
        silent = _silent(names, window.callers())[who[at]]
        flag, trial, like = (np.zeros(len(at), dtype=bool) for _ in range(3))
        details: dict[int, dict[str, Any]] = {}
        gauges: list[Detection] = []
        readings: dict[int, dict[str, Any]] = {}
        for some, ends in known.next(who[at], names, training):
            if len(some):
                tried = self._try(cal, known, frame.take(some), training[some], who[at[some]], names, some)
                trial[some], flag[some] = tried.trial, tried.near & ~silent[some]
                like[some] = tried.like >= RESEMBLES * cal.meta["self_bits"]
                for i in np.flatnonzero(flag[some]).tolist():
                    says = {"bits": round(float(tried.bits[i]), 1), "fields_differ": int(tried.differs[i])}
                    details[int(at[some[i]])] = {"record_variation": says | {"training_rows": int(tried.records[i])}}
                for i in tried.told():
                    count, row = int(tried.records[i]), some[i]
                    gauges.append(self._gauge(names[who[at[row]]], int(times[row]), count))
                    readings[int(at[row])] = {"training_overlap": {"training_rows": count}}
            if ends:
                known.forget(round(self.max_mb * 1e6))
        known.rows += len(at)
        votes, places = np.zeros((len(at), len(TECHNIQUES))), list(TECHNIQUES)
        for technique, family in TECHNIQUES.items():
            if family is Family.MEMBERSHIP:
                votes[:, places.index(technique)] = np.where(flag, VOTE, HINT * like)
        votes[~(flag | like | training), places.index("noisy_copies")] = -ELSE
        evidence = Evidence(
            detector=self.name, family=self.family, principals=names, code=who[at].astype(np.int32), row=at,
            time_us=times, log_e=signals.bernoulli_bets(flag, self.rho) * trial[:, None], flag=flag, details=details,
            columns=tuple(f"record/{r}" for r in signals.tolerated(self.rho)), votes=votes, readings=readings,
        )  # fmt: skip
        return Measured(known.save(self.name, VERSION, cal.hash), gauges, evidence)

    def _try(
        self, cal: Calibration, known: Records, frame: Frame, training: NDArray[np.bool_], who: NDArray[np.int64],
        names: tuple[str, ...], row: NDArray[np.int64],
    ) -> Tried:  # fmt: skip
        a, m = cal.arrays, cal.meta
        codes = Encoder(np.asarray(a["edges"]), tuple(tuple(w) for w in m["codes"])).codes(frame)
        table, mean, variance, weight = (
            np.asarray(a[k], np.float32) for k in ("surprise", "mean", "variance", "weight")
        )
        tails = np.zeros((2, len(weight)), np.float32)  # explainers are not looked for here
        usual = np.zeros((len(weight), 4), np.float32)
        bits = float(m["bits"])
        scale = Scale(table, mean, variance, weight, bits, np.inf, np.inf, np.inf, tails[0], tails[1], usual)
        return known.meet([names[k] for k in who.tolist()], training, codes, frame, scale, row)

    def _gauge(self, principal: str, time_us: int, count: int) -> Detection:
        return Detection(
            self.name, self.family, Event.ATTACK_SUSPECTED, Subject("principal", principal), (time_us, time_us),
            float(count), Verdict.OK, count, evidence={"training_rows": count},
        )  # fmt: skip


def _silent(names: tuple[str, ...], declared: Mapping[str, Caller]) -> NDArray[np.bool_]:
    return np.array([n in declared and declared[n].profile in DECLARED for n in names], dtype=bool)
