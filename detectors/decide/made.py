"""What both deciders hand back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectors.base import Feedback, State
from monitor.model import Decision


@dataclass(frozen=True)
class Decided:
    """`state` goes into the next call, `decisions` to the alert lifecycle, `feedback` to the next measure()."""

    state: State
    decisions: Sequence[Decision]
    feedback: Feedback
