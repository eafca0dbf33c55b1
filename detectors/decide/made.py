"""What both deciders hand back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectors.base import Detection, Feedback, State
from monitor.model import Decision, Verdict


@dataclass(frozen=True)
class Decided:
    """`state` goes into the next call, `decisions` to the alert lifecycle, `feedback` to the next measure()."""

    state: State
    decisions: Sequence[Decision]
    feedback: Feedback


def fixed(model: str, d: Detection, *, window_us: tuple[int, int], time_us: int) -> Decision:
    """The decision that a fixed-rule detection is by itself: firing while its verdict is an alarm."""
    return Decision(
        model=model, event=d.event, family=d.family, subject=d.subject, firing=d.verdict is Verdict.ALARM, time_us=time_us,
        window_us=window_us, detector=d.detector, statistic=d.statistic, threshold=d.threshold, p_value=d.p_value, n=d.n,
        fixed_rule=True, evidence=d.evidence,
    )  # fmt: skip
