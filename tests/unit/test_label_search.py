"""Finding the events that labels are about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pytest

from monitor.store import labels
from monitor.store.labels import DAY_US, LOOK_BACK_US, PLACE, event_id


def test_one_wrong_id_does_not_search_the_whole_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not found among so many events is left out; what is there is found first."""
    monkeypatch.setattr(labels, "SEARCHED", 10)
    days: list[int] = []

    def events(start_us: int, end_us: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        days.append(end_us)
        place = {
            "source": ["s"] * 4,
            "topic": ["t"] * 4,
            "partition": [0] * 4,
            "offset": [*range(4)],
            "row_index": [0] * 4,
        }
        yield pa.table({name: place[name] for name in PLACE})

    there, wrong = f"event_id={event_id('s', 't', 0, 2, 0)}", "event_id=nonsense"
    end_us = LOOK_BACK_US + DAY_US
    found = [at for _, at in labels._targets({there, wrong}, end_us - LOOK_BACK_US, end_us, events, [])]
    assert found[0] == [(2, there)]
    assert days == [end_us, end_us - DAY_US, end_us - 2 * DAY_US]
    days.clear()
    list(labels._targets({there}, end_us - LOOK_BACK_US, end_us, events, []))
    assert len(days) == 1
