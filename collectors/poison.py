"""Messages that cannot be decoded: what is kept of each, and when there are too many to go on."""

from __future__ import annotations

from collections import deque

from collectors.base import DeadLetter, Record
from monitor import telemetry


class Poison:
    """The share of a source's last `window` records that failed; `failed` tells when it passes the limit."""

    def __init__(self, limit: float, window: int) -> None:
        self._allowed = limit * window
        self._window = window
        self._seen = 0
        self._failures: deque[int] = deque()

    def passed(self, records: int) -> None:
        self._seen += records

    def failed(self, place: int) -> bool:
        """Counts the failure of the record `place` records after those that passed; True when there are too many."""
        now = self._seen + place
        self._failures.append(now)
        while self._failures[0] <= now - self._window:
            self._failures.popleft()
        return len(self._failures) > self._allowed


def dead_letter(record: Record, reason: str, detail: str, max_bytes: int) -> DeadLetter:
    """A record that could not be decoded, its value capped; the detail is one line of plain characters."""
    value = record.value
    truncated = value is not None and len(value) > max_bytes
    return DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        reason=reason,
        detail=telemetry.escaped(detail)[:500],
        key=None if record.key is None else record.key[:max_bytes],
        value=value[:max_bytes] if value is not None and truncated else value,
        headers=[(name.replace("\0", ""), body[:max_bytes]) for name, body in record.headers[:100]],
        timestamp_ms=record.timestamp_ms,
        truncated=truncated,
    )
