"""Callers whose queries are no longer like their own: each window of a caller against its own past."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from detectors import signals, stats
from detectors.anomaly import embedding
from detectors.anomaly.learnt import reference_rows
from detectors.base import Calibration, Detection, Evidence, Feedback, Measured, State, Window, own_state
from detectors.habits import NEVER, Habits, Ints, Settled, Stretch
from detectors.signals import Encoder, Frame
from monitor.model import Event, Family, Subject, Verdict, finite

VERSION: Final = 3
DAYS: Final = 14  # with windows, of which the largest discrepancy is kept, so that weekends are known
LEAST_DAYS: Final = 7  # of them, before anything is compared
WINDOWS: Final = 24  # that a principal needs beside
SLOW: Final = 256  # windows over which a baseline follows its caller
ADOPTED: Final = 48  # windows in a row that are all unlike the past: a new life, and from then on the baseline
SHOWN: Final = 3  # features named
HOURS: Final = 24 * DAYS  # of everybody that are kept


@dataclass(frozen=True)
class WindowMMD:
    """Per principal: windows whose rows differ from its own past more than its windows ever do. A gauge, never an alarm.

    Idea: a stolen key, a job that was turned to another purpose, or a thief who asks with real rows shows as an account
    whose queries are no longer like its own, though each row is ordinary. A window is an hour of a principal, or as many
    as it takes for `rows` distinct rows; it is judged when the first event of a later hour comes. Compared with its own past,
    a client with one segment only is as quiet as any; compared with the reference it would alarm all the time. What
    changes for everybody (season, weather, a new form) is no change of a principal's: how it differs from all others of
    the same hours is compared with how it used to. So whoever sends more than half of the rows is not judged: its change
    is drift of the model.

    Math: unbiased squared MMD between the window and the others' rows of its hours, moved by the principal's usual
    difference from them, by random Fourier features (detectors.anomaly.embedding). A window is strange when that is more than
    in any usual window of its last 14 days with windows. Strange windows stay out of the baseline; after 48 in a row
    the new life is adopted. Windows that a caller fills while it is suspected of an attack are read and not learnt.

    Assumptions: none that an alarm hangs on. A reading is made by every strange window, and by the first usual one after.
    It stands in the caller's evidence, beside what the detectors of attacks say, and says since how many windows it is so.

    False alarms: none, since it never alarms: honest clients change too. How often they read as strange, and how soon
    accounts in other hands do, is measured in docs/detectors.md.

    Parameters: rows: distinct rows of a window; min_days: past that a principal needs; min_rows: reference rows that
    calibration needs; max_principals: remembered at once, 1 kB each.

    Reference: Gretton et al. 2012 (MMD); Rahimi and Recht 2007 (random features); Liu, Guo and Dong 2026 (MMD against
    model extraction).

    >>> WindowMMD().rows
    100
    """

    name: ClassVar[str] = "mmd"
    family: ClassVar[Family] = Family.ANOMALY
    reads: ClassVar[str] = "log"
    version: ClassVar[int] = VERSION

    rows: int = 100
    min_days: int = 14
    min_rows: int = 200
    max_principals: int = 50_000

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """Codes and projections, from the reference. Raises CalibrationRefused when it is too small or has no features."""
        windows = [w for w in reference if w.n]
        rows, numeric, categorical = reference_rows(windows, self.min_rows)
        frame = Frame.of(rows, numeric, categorical)
        encoder = Encoder.fit(frame)
        rng = stats.seeded(windows[0].model, self.name, reference_hash)
        table = embedding.projections(encoder.codes(frame), len(numeric), rng)
        meta = {
            "rows": self.rows, "min_days": self.min_days, "numeric": numeric, "categorical": categorical,
            "codes": [list(w) for w in encoder.words],
        }  # fmt: skip
        return Calibration(self.name, VERSION, reference_hash, meta, {"edges": encoder.edges, "table": table})

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """Readings of the gauge, as detections that never alarm and as what an incident of the caller may tell."""
        numeric, categorical = cal.meta["numeric"], cal.meta["categorical"]
        known = own_state(state, cal, VERSION)
        habits, crowd = self._known(known, len(numeric)), _Crowd.load(known)
        stretch = Stretch.of(window.rows(["event_time", "principal", "quality"]), habits.clock)
        if not len(stretch.at):
            return Measured(self._state(habits, crowd, cal))
        frame = signals.framed(window, numeric, categorical).take(stretch.at)
        encoder = Encoder(np.asarray(cal.arrays["edges"]), tuple(tuple(w) for w in cal.meta["codes"]))
        codes, hashes, table = encoder.codes(frame), frame.whole(), np.asarray(cal.arrays["table"])
        read: dict[int, dict[str, Any]] = {}
        suspects = stretch.among(feedback.suspects)
        for hour, span, places in habits.follow(stretch, self.max_principals):
            more = habits.more
            who, first = np.unique(stretch.who[span], return_index=True)
            crowd.reach(hour)
            new = (
                more["heard"][places[who]] != hour
            )  # windows close at the first event of an hour, wherever the log is cut
            more["heard"][places[who]] = hour
            read |= self._close(
                habits, crowd, hour, places[who[new]], span.start + first[new], numeric, suspects[who[new]]
            )
            habits.suspected[places[who[suspects[who]]]] = hour
            where = places[stretch.who[span]]
            more["opened"][where] = np.where(more["count"][where] == 0, hour, more["opened"][where])
            embedding.add(
                codes[span], hashes[span], where, table, more["seen_rows"], more["sums"], more["levels"], more["count"],
                crowd.now,
            )  # fmt: skip
        return self._measured(self._state(habits, crowd, cal), stretch, read)

    def _measured(self, state: State, stretch: Stretch, read: dict[int, dict[str, Any]]) -> Measured:
        """read: what is said at which place of the stretch."""
        at = np.array(sorted(read), dtype=np.int64)
        gauges = [
            Detection(
                self.name, self.family, Event.ACCESS_ANOMALY, Subject("principal", stretch.names[stretch.who[i]]),
                (int(stretch.time_us[i]),) * 2, says["mmd2"], Verdict.OK, says["rows"], threshold=says["own_largest"],
                evidence=says,
            )
            for i, says in sorted(read.items())
        ]  # fmt: skip
        evidence = Evidence(
            detector=self.name, family=self.family, principals=stretch.names, code=stretch.who[at].astype(np.int32),
            row=stretch.at[at], time_us=stretch.time_us[at], log_e=np.zeros((len(at), 0)),
            flag=np.zeros(len(at), dtype=bool), readings={int(stretch.at[i]): {"unlike_itself": s} for i, s in read.items()},
        )  # fmt: skip
        return Measured(state, gauges, evidence)

    def _state(self, habits: Habits, crowd: _Crowd, cal: Calibration) -> State:
        kept = habits.save(self.name, VERSION, cal.hash)
        return replace(kept, arrays={**kept.arrays, **crowd.save()})

    def _known(self, state: State | None, numbers: int) -> Habits:
        wide = (np.float32, (embedding.DIMENSIONS,))
        return Habits.load(
            state, ("rows",), (1,), Settled(WINDOWS, (self.min_days,)),
            {
                "sums": wide, "base": wide, "fresh": wide, "levels": (np.float32, (numbers,)),
                "usual": (np.float32, (numbers,)), "count": (np.int32, ()), "opened": (np.int64, ()),
                "heard": (np.int64, ()),
                "windows": (np.int32, ()), "strange": (np.int32, ()), "gathered": (np.int32, ()), "past": (np.float32, (DAYS,)),
                "days": (np.int32, ()), "day": (np.int32, ()), "seen_rows": (np.uint64, (embedding.SEEN_WORDS,)),
            },
        )  # fmt: skip

    def _close(
        self, habits: Habits, crowd: _Crowd, hour: int, rows: Ints, at: Ints, numeric: list[str],
        suspect: NDArray[np.bool_],
    ) -> dict[int, dict[str, Any]]:  # fmt: skip
        """Judge the windows that an event of this hour closes. rows: principals; at: their first events of the hour."""
        more = habits.more
        over = (more["count"][rows] >= self.rows) & (more["opened"][rows] < hour)
        rows, at, suspect = rows[over], at[over], suspect[over]
        trusted = ~suspect & (habits.suspected[rows] < more["opened"][rows])
        n = more["count"][rows].astype(np.float64)
        mean, level = more["sums"][rows] / n[:, None], more["levels"][rows] / n[:, None]
        others, rest = crowd.since(more["opened"][rows], more["sums"][rows], n)
        for name in ("sums", "levels", "count", "seen_rows"):
            more[name][rows] = 0
        some = rest >= n
        rows, at, n, rest, suspect, trusted = rows[some], at[some], n[some], rest[some], suspect[some], trusted[some]
        mean, level, others = mean[some], level[some], others[some]
        if not len(rows):
            return {}
        chance = embedding.by_chance(mean, n) + embedding.by_chance(others, rest)
        mean = mean - others
        apart = ((mean - more["base"][rows]) ** 2).sum(axis=1) - chance
        known = np.arange(DAYS) < more["days"][rows, None]
        largest = np.where(known, more["past"][rows], -np.inf).max(axis=1)
        odd = habits.arrive(hour, rows, suspect).settled[:, 0] & (more["days"][rows] >= LEAST_DAYS) & (apart > largest)
        told = odd | (more["strange"][rows] > 0)
        away = np.abs(level - more["usual"][rows])
        more["strange"][rows] = np.where(odd, more["strange"][rows] + 1, 0)
        more["gathered"][rows] *= odd & trusted
        self._learn(habits, hour, rows[trusted], mean[trusted], level[trusted], apart[trusted], odd[trusted])
        return {
            int(at[i]): {
                "rows": int(n[i]), "mmd2": finite(round(float(apart[i]), 4)), "own_largest": finite(round(float(largest[i]), 4)),
                "strange_windows": int(more["strange"][rows[i]]),
                "moved": [numeric[j] for j in np.argsort(-away[i], kind="stable")[:SHOWN].tolist()] if odd[i] else [],
            }
            for i in np.flatnonzero(told).tolist()
        }  # fmt: skip

    def _learn(
        self, habits: Habits, hour: int, rows: Ints, mean: NDArray[Any], level: NDArray[Any], apart: NDArray[Any],
        odd: NDArray[np.bool_],
    ) -> None:  # fmt: skip
        """Usual windows move the baseline; strange ones in a row make another, which is adopted when there are enough."""
        more, usual, strange = habits.more, rows[~odd], rows[odd]
        share = 1 / np.minimum(more["windows"][usual] + 1, SLOW)[:, None]
        more["base"][usual] += share * (mean[~odd] - more["base"][usual])
        more["usual"][usual] += share * (level[~odd] - more["usual"][usual])
        more["windows"][usual] += 1
        new = more["day"][usual] != hour // 24
        more["days"][usual] += new
        more["day"][usual] = hour // 24
        slot = (more["days"][usual] - 1) % DAYS
        more["past"][usual, slot] = np.maximum(np.where(new, -np.inf, more["past"][usual, slot]), apart[~odd])
        more["fresh"][strange] = np.where(more["gathered"][strange, None] == 0, 0, more["fresh"][strange]) + mean[odd]
        more["gathered"][strange] += 1
        full = more["gathered"][strange] >= ADOPTED
        adopted = strange[full]
        more["base"][adopted] = more["fresh"][adopted] / more["gathered"][adopted, None]
        more["usual"][adopted] = level[odd][full]
        for name, value in {"windows": ADOPTED, "strange": 0, "gathered": 0, "days": 0}.items():
            more[name][adopted] = value  # days are learnt anew


@dataclass
class _Crowd:
    """Rows of everybody: sums and numbers of the last HOURS hours, and of the present one, which count when it is over."""

    hours: NDArray[np.float64]  # (HOURS, DIMENSIONS + 1)
    which: Ints
    now: NDArray[np.float64]
    hour: int

    @classmethod
    def load(cls, state: State | None) -> _Crowd:
        if state is None:
            width = embedding.DIMENSIONS + 1
            return cls(np.zeros((HOURS, width)), np.full(HOURS, NEVER), np.zeros(width), NEVER)
        a = {k: np.array(state.arrays[f"crowd_{k}"]) for k in ("hours", "which", "now", "hour")}
        return cls(a["hours"], a["which"], a["now"], int(a["hour"][0]))

    def save(self) -> dict[str, NDArray[Any]]:
        """As arrays."""
        held = {"hours": self.hours, "which": self.which, "now": self.now, "hour": np.array([self.hour])}
        return {f"crowd_{k}": a for k, a in held.items()}

    def reach(self, hour: int) -> None:
        """The rows of an hour that is over are kept as its own."""
        if hour != self.hour:
            self.hours[self.hour % HOURS], self.which[self.hour % HOURS] = self.now, self.hour
            self.now[:], self.hour = 0, hour

    def since(
        self, opened: Ints, own: NDArray[Any], n: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean of the others' rows since the hour in which a window was opened, (windows, DIMENSIONS), and their number."""
        within = self.which[None, :] >= np.maximum(opened, self.hour - HOURS)[:, None]
        total = within @ self.hours
        rest = np.maximum(total[:, -1] - n, 0)
        return (total[:, :-1] - own) / np.maximum(rest, 1)[:, None], rest
