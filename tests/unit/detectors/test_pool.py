"""Rows of all callers together: whose steps tie callers to each other, and whose records do not."""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa
import pytest

from detectors.anomaly.queries import Queries
from detectors.base import Calibration
from monitor.model import HOUR_US, SECOND_US
from tests.judging import Court, Rng, Rows, as_log, bins_of, events, mixed, numbers, sent


@functools.cache
def calibration() -> Calibration:
    table = events(3000, np.random.default_rng(1))
    return Queries().calibrate([Rows("m", 0, HOUR_US, table, bins_of(table))], "ref")


def flags(table: pa.Table) -> dict[str, int]:
    """Rows of each caller that are flagged as steps from somebody else's row."""
    e = Queries().measure(calibration(), None, as_log(table)).evidence
    assert e is not None
    shared = [row for row, why in e.details.items() if "shared" in why["signals"]]
    names = [e.principals[e.code[int(np.searchsorted(e.row, row))]] for row in shared]
    return {n: names.count(n) for n in e.principals}


def story(rng: Rng) -> pa.Table:
    """Two clients score the same records again and again, more than are remembered of a client; somebody sends small steps
    from them in between.
    """
    like = events(2 * Queries().memory, rng)
    records = numbers(like)
    steps = records + rng.normal(0, 0.03, records.shape)
    start = 1000 * SECOND_US
    rounds = [sent(records, like, f"honest-{i}", start_us=k * start + i, every_s=4.0) for i in (0, 1) for k in (2, 3)]
    before = [sent(records, like, f"honest-{i}", start_us=i, every_s=4.0) for i in (0, 1)]
    return mixed(*before, *rounds, sent(steps, like, "eve", start_us=start, every_s=4.0))


def test_whose_records_are_varied_is_no_accomplice() -> None:
    """The steps are flagged, records that were there before them are not, however often they are sent again."""
    found = flags(story(np.random.default_rng(3)))
    assert found["eve"] >= 20
    assert found["honest-0"] == found["honest-1"] == 0
    court = Court(Queries(), calibration())
    court.stretch(as_log(story(np.random.default_rng(4))))
    assert {d.subject.id for d in court.decisions} == {"eve"}


def test_who_goes_on_with_somebodys_steps_is_tied_to_him() -> None:
    """One search dealt out to two names is flagged for both: what each sends was never there before."""
    rng = np.random.default_rng(5)
    like = events(120, rng)
    base = numbers(like)[:1] + rng.normal(0, 0.03, (120, 8))
    parts = [sent(base[i::2], like, f"sybil-{i}", start_us=i * SECOND_US) for i in (0, 1)]
    found = flags(mixed(*parts, sent(numbers(like), like, "honest")))
    assert min(found["sybil-0"], found["sybil-1"]) >= 10
    assert found["honest"] <= 1


@pytest.mark.parametrize("column", ["credential_id", "source_ip"])
def test_names_that_search_with_one_credential_or_address_are_one_incident(column: str) -> None:
    """Two searches around different rows, under two names: one cluster when they share a key or an address, else two
    incidents; an honest caller behind the same address is in neither.
    """
    rng = np.random.default_rng(6)
    like = events(120, rng)
    rows = numbers(like)
    searches = [rows[i] + rng.normal(0, 0.03, (60, 8)) for i in (3, 90)]
    found = {}
    for shared in (True, False):
        parts = [sent(x, like, f"name-{i}", start_us=i * SECOND_US) for i, x in enumerate(searches)]
        parts.append(sent(rows, like, "honest"))
        parts = [
            t.append_column(column, pa.array(["one" if shared else f"own-{k}"] * t.num_rows))
            for k, t in enumerate(parts)
        ]
        court = Court(Queries(), calibration())
        court.stretch(as_log(mixed(*parts)))
        found[shared] = court.decisions
    assert {d.subject.kind for d in found[False]} == {"principal"}
    assert {d.subject.id for d in found[False]} == {"name-0", "name-1"}
    last = found[True][-1]
    assert last.subject.kind == "cluster"
    assert last.evidence["principals"] == ["name-0", "name-1"]
