"""A sink that writes alerts to a stream, for the terminal of `make demo` and for a container's log."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from typing import TextIO

from alerts.base import SinkUnavailable
from monitor.model import Transition, rfc3339

_LOCK = threading.Lock()


@dataclass(frozen=True)
class Console:
    """Writes each transition as a few lines: time and action, then the alert's text, which is safe to show.

    Delivery: at least once, in order per alert. It keeps nothing, so there is nothing to read back.
    """

    name: str = "console"
    stream: TextIO = field(default_factory=lambda: sys.stdout)

    def send(self, transition: Transition, *, timeout_s: float) -> None:
        """Write and flush; SinkUnavailable when the stream refuses (a closed pipe, a full disk)."""
        del timeout_s
        head = f"{rfc3339(transition.time_us)} {transition.action.value.upper()}"
        body = transition.alert.text.replace("\n", "\n  ")
        try:
            with _LOCK:
                self.stream.write(f"{head} {body}\n")
                self.stream.flush()
        except (OSError, ValueError) as e:
            raise SinkUnavailable(f"the console refuses: {e}") from e
