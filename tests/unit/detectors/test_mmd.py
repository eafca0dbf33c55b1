"""The gauge that compares callers with their own past, and what an incident tells of gauges."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import takeovers
from detectors.anomaly.mmd import ADOPTED, WindowMMD
from detectors.base import Calibration, Detection, Feedback
from monitor.model import HOUR_US
from tests.judging import Rng, Rows, as_log, bins_of, cut, events, mixed, own_rows

FIRST = 1000
NOW = FIRST + 24 * 16


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    table = events(2000, np.random.default_rng(1))
    return WindowMMD(rows=30).calibrate([Rows("m", 0, HOUR_US, table, bins_of(table))], "ref")


@pytest.fixture
def rng() -> Rng:
    return np.random.default_rng(2)


CLIENTS = 12


def asking(
    span: range, rng: Rng, other: tuple[int, ...] = (1,), clients: int = CLIENTS, by: float = 1.5
) -> list[pa.Table]:
    """Hours of clients, of whom some ask about other customers than the rest."""
    return [own_rows(span, rng, f"client-{i}", moved=float(i in other), by=by) for i in range(clients)]


def past(rng: Rng) -> list[pa.Table]:
    """Sixteen days; the second client asks about customers of its own kind."""
    return asking(range(FIRST, NOW), rng)


def read(calibration: Calibration, *tables: pa.Table) -> list[Detection]:
    return list(WindowMMD(rows=30).measure(calibration, None, as_log(mixed(*tables))).detections)


def of(found: list[Detection], client: str) -> list[int]:
    """Strange windows in a row by each reading of a client since the change."""
    now = [d for d in found if d.subject.id == client and d.window_us[1] >= NOW * HOUR_US]
    return [d.evidence["strange_windows"] for d in now]


def test_other_customers_than_ever_are_told(calibration: Calibration, rng: Rng) -> None:
    """An account that asks about others reads as strange every hour; one that always did, and the rest, stay as they are."""
    found = read(calibration, *past(rng), *asking(range(NOW, NOW + 24), rng, (0, 1)))
    assert of(found, "client-0")[:20] == list(range(1, 21))
    assert max(max(of(found, f"client-{i}"), default=0) for i in range(1, CLIENTS)) <= 3
    last = [d for d in found if d.subject.id == "client-0"][-1]
    assert set(last.evidence["moved"]) == {"x0", "x1", "x2"}
    assert last.statistic is not None
    assert last.threshold is not None
    assert last.statistic > 3 * last.threshold


def test_what_changes_for_everybody_is_nobodys_change(calibration: Calibration, rng: Rng) -> None:
    """When all clients ask about other customers from one hour on, hardly any window is strange."""
    everybody = tuple(i for i in range(CLIENTS) if i != 1)
    now = [t for t in asking(range(NOW, NOW + 24), rng, everybody) if t["principal"][0].as_py() != "client-1"]
    found = read(calibration, *past(rng), *now)
    assert max(max(of(found, f"client-{i}"), default=0) for i in everybody) <= 3


def test_a_new_life_is_adopted(calibration: Calibration, rng: Rng) -> None:
    """After two days of nothing else the new rows are the usual ones."""
    found = read(calibration, *past(rng), *asking(range(NOW, NOW + ADOPTED + 72), rng, (0, 1)))
    assert ADOPTED - 2 <= len(of(found, "client-0")) <= ADOPTED + 8


def test_the_life_of_a_suspect_is_not_adopted(calibration: Calibration, rng: Rng) -> None:
    """Under suspicion strange windows are told for as long as they come; when it is over, the new life takes two days more."""
    detector, suspected = WindowMMD(rows=30), Feedback(suspects=frozenset({"client-0"}))
    days = ADOPTED + 24
    first, second = ((NOW, NOW + days), (NOW + days, NOW + 2 * days))
    old = detector.measure(calibration, None, as_log(mixed(*past(rng)))).state
    held = detector.measure(calibration, old, as_log(mixed(*asking(range(*first), rng, (0, 1)))), suspected)
    assert max(of(list(held.detections), "client-0")) >= days - 8
    me = list(old.meta["ids"]).index("client-0")
    for name in ("base", "usual", "past", "windows", "days"):
        assert np.array_equal(held.state.arrays[name][me], old.arrays[name][me])
    over = detector.measure(calibration, held.state, as_log(mixed(*asking(range(*second), rng, (0, 1)))))
    assert ADOPTED - 2 <= len(of(list(over.detections), "client-0")) <= ADOPTED + 8
    assert over.state.arrays["windows"][me] >= ADOPTED


def test_usual_windows_of_a_suspect_are_not_learnt(calibration: Calibration, rng: Rng) -> None:
    """The window in which suspicion arises, and every later one until it is over, leaves the baseline alone."""
    detector, suspected = WindowMMD(rows=30), Feedback(suspects=frozenset({"client-0"}))
    now = mixed(*asking(range(NOW, NOW + 24), rng))
    before = mixed(*past(rng))
    kept = []
    for rows in (100, 400):  # both within the first hour
        state = detector.measure(calibration, None, as_log(pa.concat_tables([before, now.slice(0, rows)]))).state
        state = detector.measure(calibration, state, as_log(now.slice(rows)), suspected).state
        kept.append({k: state.arrays[k][list(state.meta["ids"]).index("client-0")] for k in ("base", "usual", "past")})
    assert all(np.array_equal(kept[0][k], kept[1][k]) for k in kept[0])
    last = detector.measure(calibration, None, as_log(pa.concat_tables([before, now.slice(0, 400)]))).state
    assert np.array_equal(kept[0]["base"], last.arrays["base"][list(last.meta["ids"]).index("client-0")])


def test_a_client_alone_and_a_young_one_are_not_judged(calibration: Calibration, rng: Rng) -> None:
    """Who sends most of the rows has nobody to be compared with, and a newcomer has no past."""
    alone = own_rows(range(FIRST, NOW), rng, "alone"), own_rows(range(NOW, NOW + 24), rng, "alone", moved=1.0)
    assert read(calibration, *alone) == []
    young = own_rows(range(NOW - 48, NOW), rng, "young"), own_rows(range(NOW, NOW + 24), rng, "young", moved=1.0)
    assert of(read(calibration, *past(rng), *young), "young") == []


def test_readings_do_not_depend_on_cuts(calibration: Calibration, rng: Rng) -> None:
    """The same readings, wherever the log is cut."""
    log = mixed(*asking(range(FIRST, NOW), rng, clients=3), *asking(range(NOW, NOW + 24), rng, (0, 1), clients=3))
    whole = read(calibration, log)
    state, parts = None, list[Detection]()
    for piece in cut(log, rng, 30):
        measured = WindowMMD(rows=30).measure(calibration, state, as_log(piece))
        state, parts = measured.state, parts + list(measured.detections)
    assert parts == whole
    assert whole


def test_the_page_tells_what_was_measured() -> None:
    """Stored: an account in other hands reads as strange more often than honest ones; the page has the same numbers."""
    root = Path(takeovers.__file__).parents[1]
    found = json.loads((root / "benchmarks" / "takeovers.json").read_text(encoding="utf-8"))
    page = (root / "docs" / "detectors.md").read_text(encoding="utf-8").splitlines()
    assert set(takeovers.lines(found)) <= set(page)
    share = {key: found[key]["3"]["within_30_days"] / found[key]["3"]["of"] for key in ("honest", "taken over, 100%")}
    assert share["taken over, 100%"] > 1.5 * share["honest"]
