"""No events where there should be some."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from detectors.base import Calibration, Detection, Feedback, Measured, State, Window
from monitor.errors import CalibrationRefused
from monitor.model import SECOND_US, Event, Family, Subject, Verdict

VERSION: Final = 1


@dataclass(frozen=True)
class Missing:
    """The log has gone silent for longer than it ever was in the reference.

    Idea: the time since the last event is compared with one limit. It is a fixed rule: the verdict itself alarms.

    Math: limit = max(floor_s, factor * longest gap between successive reference events).

    Assumptions: the reference has times and the log is as busy now as then. A reference that is a sample of the log has
    longer gaps, which makes the rule slower, never louder.

    False alarms: among N exchangeable gaps the next one exceeds the longest with probability 1 / (N + 1); with gaps
    that are at most exponential, twice the longest is exceeded about once in N * N gaps, so with the 100 gaps that are
    asked for at most once in 10,000 gaps.

    Parameters: factor (unitless), floor_s: shortest silence in seconds that may alarm, min_gaps: gaps the reference
    must show, limit_s: a limit in seconds set by a person instead of the learnt one (0: learn it).

    Reference: order statistics of exchangeable gaps; no paper needed.

    >>> Missing(limit_s=900.0).calibrate([], "none").meta["limit_s"]
    900.0
    """

    name: ClassVar[str] = "missing"
    family: ClassVar[Family] = Family.QUALITY
    reads: ClassVar[str] = "clock"
    version: ClassVar[int] = VERSION

    factor: float = 2.0
    floor_s: float = 300.0
    min_gaps: int = 100
    limit_s: float = 0.0

    def calibrate(self, reference: Iterable[Window], reference_hash: str) -> Calibration:
        """The longest gap of the reference. Raises CalibrationRefused without times or with too few events."""
        if self.limit_s > 0:
            return Calibration(
                self.name, VERSION, reference_hash, {"limit_s": self.limit_s, "gaps": 0, "longest_s": None}
            )
        gaps, longest_us, last = 0, 0, np.empty(0, np.int64)
        for window in sorted((w for w in reference if w.n), key=lambda w: w.start_us):
            own = np.sort(np.asarray(window.rows(["event_time"]).column("event_time"), dtype=np.int64))
            steps = np.diff(np.concatenate([last, own]))
            gaps, longest_us, last = gaps + len(steps), int(steps.max(initial=longest_us)), own[-1:]
        if gaps < self.min_gaps or not longest_us:
            raise CalibrationRefused(
                f"the reference shows {gaps} gaps between event times and {self.min_gaps} are needed: "
                "use a reference with times, or set limit_s"
            )
        longest_s = longest_us / SECOND_US
        limit_s = max(self.floor_s, self.factor * longest_s)
        return Calibration(
            self.name, VERSION, reference_hash, {"limit_s": limit_s, "gaps": gaps, "longest_s": longest_s}
        )

    def measure(
        self, cal: Calibration, state: State | None, window: Window, feedback: Feedback = Feedback()
    ) -> Measured:
        """`window` runs from the last event to now and holds no rows; the statistic is its length in seconds."""
        silence_s = (window.end_us - window.start_us) / SECOND_US
        limit_s = float(cal.meta["limit_s"])
        detection = Detection(
            detector=self.name, family=self.family, event=Event.DATA_MISSING, subject=Subject("model", window.model),
            window_us=(window.start_us, window.end_us), statistic=silence_s, n=window.n, threshold=limit_s,
            verdict=Verdict.ALARM if silence_s > limit_s else Verdict.OK,
            evidence={"silence_s": silence_s, "limit_s": limit_s, "longest_reference_gap_s": cal.meta["longest_s"]},
        )  # fmt: skip
        return Measured(State(self.name, VERSION, cal.hash), [detection])
