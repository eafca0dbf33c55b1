"""What both deciders hand back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectors.base import Detection, Feedback, State
from monitor.model import Decision, Verdict


@dataclass(frozen=True)
class Decided:
    """`state` goes into the next call, `decisions` to the alert lifecycle, `feedback` to the next measure(). held: what
    nobody is told, kept for whoever looks.
    """

    state: State
    decisions: Sequence[Decision]
    feedback: Feedback
    held: Sequence[Detection] = ()


def fixed(model: str, d: Detection, *, window_us: tuple[int, int], time_us: int) -> Decision:
    """The decision that a fixed-rule detection is by itself: firing while its verdict is an alarm."""
    return Decision(
        model=model, event=d.event, family=d.family, subject=d.subject, firing=d.verdict is Verdict.ALARM, time_us=time_us,
        window_us=window_us, detector=d.detector, statistic=d.statistic, threshold=d.threshold, p_value=d.p_value, n=d.n,
        severity=d.severity, fixed_rule=True, evidence=d.evidence,
    )  # fmt: skip


def unsaid(d: Decision) -> Detection:
    """A decision that nobody is told, as a detection that never alarms."""
    return Detection(
        d.detector, d.family, d.event, d.subject, d.window_us, d.statistic, Verdict.OK, d.n or 0, log_e=d.log_e,
        threshold=d.threshold, evidence=d.evidence,
    )  # fmt: skip
