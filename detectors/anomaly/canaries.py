"""Canary rows: inputs that the bank made up and no honest caller sends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from detectors.anomaly.learnt import callers
from detectors.base import PROBES, Calibration, Evidence, Feedback, Measured, State, Window
from monitor.errors import CalibrationRefused
from monitor.model import Family

VERSION: Final = 1
CERTAIN: Final = 50.0  # nats of an event that is a fact and no inference


@dataclass(frozen=True)
class Canaries:
    """Per principal: canary rows (`models.NAME.canaries`), which nobody can send but who has seen the bank's own files.

    Idea: a canary lies where the bank keeps its data and is a case of nobody. Who asks about one has read what it should
    not have. Callers that the directory declares as `health_probe` or `batch` send canaries on purpose and are left out.

    Math: none; an event that repeats a canary is 50 nats against its sender, and every other event says nothing.

    Assumptions: no real case equals a canary in every field (numbers to a millionth of their range).

    False alarms: none but for a canary badly chosen or a probe that is not declared.

    Parameters: none.

    Reference: Spitzner 2003 (honeytokens).

    >>> Canaries().name
    'canaries'
    """

    name: ClassVar[str] = "canaries"
    family: ClassVar[Family] = Family.ANOMALY
    reads: ClassVar[str] = "log"
    version: ClassVar[int] = VERSION

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """Nothing to learn. Raises CalibrationRefused where no canaries are configured."""
        if not any("canary" in w.rows(["canary"]).column_names for w in reference):
            raise CalibrationRefused("the configuration names no canaries of this model (models.NAME.canaries)")
        return Calibration(self.name, VERSION, reference_hash, {})

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """Evidence per event that has a principal."""
        rows = window.rows(["event_time", "principal", "canary"])
        who, names = callers(rows)
        at, now = np.flatnonzero(who >= 0), State(self.name, VERSION, cal.hash)
        if not len(at) or "canary" not in rows.column_names:
            return Measured(now)
        declared = window.callers()
        meant = np.array([n in declared and declared[n].profile in PROBES for n in names], dtype=bool)
        flag = (np.asarray(rows["canary"])[at] >= 0) & ~meant[who[at]]
        return Measured(
            now,
            (),
            Evidence(
                detector=self.name, family=self.family, principals=names, code=who[at].astype(np.int32), row=at,
                time_us=np.asarray(rows["event_time"], dtype=np.int64)[at], log_e=np.where(flag, CERTAIN, 0.0)[:, None],
                flag=flag, details={int(r): {"canary": True} for r in at[flag]}, columns=("canary/sent",),
            ),
        )  # fmt: skip
