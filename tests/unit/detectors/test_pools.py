"""Callers behind one credential, address, network or group are added up: a search that is spread over many names alarms."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from detectors import decide
from detectors.anomaly.queries import Queries
from detectors.base import Calibration, Evidence
from detectors.decide import pools
from monitor.model import HOUR_US, Decision, Event
from tests.fusing import Log, evidence
from tests.judging import Court, Rng, Rows, as_log, bins_of, cut, events, mixed, numbers, sent

MINUTE_S = 60.0


@functools.cache
def calibration() -> Calibration:
    """Three thousand honest events."""
    table = events(3_000, np.random.default_rng(1))
    return Queries().calibrate([Rows("m", 0, HOUR_US, table, bins_of(table))], "ref")


def behind(table: pa.Table, address: str | None) -> pa.Table:
    """The events with the address that they came from."""
    return table.append_column("source_ip", pa.array([address] * table.num_rows, pa.string()))


def honest(ids: int, rows: int, rng: Rng, address: str | None, name: str = "honest") -> list[pa.Table]:
    """Clients that send rows like the reference's, each some minutes apart."""
    made = []
    for i in range(ids):
        table = events(rows, rng)
        start = int(rng.integers(0, 60) * MINUTE_S * 1e6)
        made.append(behind(sent(numbers(table), table, f"{name}-{i}", start_us=start, every_s=MINUTE_S), address))
    return made


def sybils(ids: int, rng: Rng, address: str | None, flagged: int = 3, usual: int = 27) -> list[pa.Table]:
    """Names that each send honest rows, and here and there among them a few that break rules: below an alarm by themselves."""
    made = []
    for table in honest(ids, flagged + usual, rng, address, "sybil"):
        x = numbers(table)
        at = rng.choice(len(x), flagged, replace=False)
        columns = ("feature:x1", "feature:x2", "feature:x3", "feature:x4")
        for j, column in enumerate(columns, 1):
            x[at, j] += rng.choice([-60, 60], flagged) * rng.uniform(1, 2, flagged)
            table = table.set_column(table.column_names.index(column), column, pa.array(x[:, j]))
        made.append(table)
    return made


def judged(log: pa.Table, pieces: int = 1, seed: int = 0) -> list[Decision]:
    """The log through the detector and fuse(), cut at random places."""
    court = Court(Queries(), calibration())
    for part in cut(log, np.random.default_rng(seed), pieces - 1):
        if part.num_rows:
            court.stretch(as_log(part))
    return [d for d in court.decisions if d.event is Event.ATTACK_SUSPECTED]


@pytest.mark.parametrize("ids", [20, 100])
def test_many_names_at_one_address_are_one_incident(ids: int) -> None:
    """Three flagged rows each among thirty, alarm nobody; from one address they do, as one cluster that holds no honest
    neighbour; and wherever the log is cut.
    """
    rng = np.random.default_rng(ids)
    parts = [
        *sybils(ids, rng, "203.0.113.7"),
        *honest(10, 60, rng, "203.0.113.7"),
        *honest(10, 60, rng, "198.51.100.9", "far"),
    ]
    log = mixed(*parts)
    found = judged(log)
    assert {d.subject.kind for d in found} == {"cluster"}
    assert len({d.subject.id for d in found}) == 1
    last = found[-1].evidence
    assert last["tied_by"] in ("address", "network")
    assert all(p.startswith("sybil-") for p in last["principals"])
    assert len(last["principals"]) >= ids / 2
    again = judged(log, pieces=9)
    assert [(d.time_us, d.subject.id, d.evidence["principals"], d.log_e) for d in again] == [
        (d.time_us, d.subject.id, d.evidence["principals"], d.log_e) for d in found
    ]


def test_the_same_names_at_addresses_of_their_own_are_not_seen() -> None:
    """Nothing ties them: what each sends is below an alarm. The same where the log holds no address."""
    rng = np.random.default_rng(3)
    made = sybils(20, rng, None)
    apart = [
        t.set_column(t.num_columns - 1, "source_ip", pa.array([f"10.{i}.0.7"] * t.num_rows)) for i, t in enumerate(made)
    ]
    assert judged(mixed(*apart)) == []
    assert judged(mixed(*made)) == []


@pytest.mark.parametrize("seed", range(2))
def test_an_honest_crowd_behind_one_address_is_quiet(seed: int) -> None:
    """A hundred clients of a gateway, each flagged as seldom as honest ones are."""
    rng = np.random.default_rng(20 + seed)
    assert judged(mixed(*honest(100, 60, rng, "192.0.2.1"))) == []


def tied(found: Evidence, tie: str = "credential:k") -> Evidence:
    """The same with one tie for all."""
    return replace(
        found,
        ties=(tie,),
        tied=np.zeros((len(found.row), 1), np.int32),
        columns=tuple(map(str, range(found.log_e.shape[1]))),
    )


def test_crowds_that_flag_at_the_tolerated_rate_are_quiet() -> None:
    """Forty callers of one credential, each flagged in one event of a hundred: far fewer alarms than the level allows."""
    rng = np.random.default_rng(5)
    settings, n, alarms = decide.FuseSettings(2000.0), 20_000, 0
    for _ in range(10):
        log = Log(settings)
        log(tied(evidence([f"c{i}" for i in rng.integers(40, size=n)], (rng.random(n) < 0.01).tolist())))
        alarms += len([d for d in log.decisions if d.subject.kind == "cluster" and "tied_by" in d.evidence])
    assert alarms <= 10 * n / settings.level / 20


def test_one_caller_is_no_crowd() -> None:
    """However many of its own rows are flagged, two names are too few; the incident is the caller's own."""
    log = Log()
    log(tied(evidence(["a", "b"] * 20, [True] * 40)))
    assert all(d.evidence.get("tied_by") is None for d in log.decisions)


def test_a_person_s_word_empties_the_pool() -> None:
    """After an incident is closed by a person the same callers need new evidence."""
    names = [f"s{i}" for i in range(12) for _ in range(2)]
    log = Log()
    log(tied(evidence(names, [True] * 24)))
    assert len(log.open) == 1
    log.open.clear()
    log(tied(evidence(["s0"], [True], first_row=24)))
    assert log.open == {}


@pytest.mark.parametrize("seed", range(3))
def test_pools_do_not_depend_on_cuts(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many ties with a few flags each: the same clusters at the same times, also where more are known than are remembered."""
    rng = np.random.default_rng(seed)
    n, ends = 2_000, list[Any]()
    group = rng.integers(30, size=n)
    who = [f"g{g}-{i}" for g, i in zip(group.tolist(), rng.integers(8, size=n).tolist(), strict=True)]
    flag = (rng.random(n) < np.where(group < 4, 0.25, 0.01)).tolist()
    monkeypatch.setattr(pools, "MOST", 5)
    monkeypatch.setattr("detectors.decide.principals.MOST_POOLS", 5)
    monkeypatch.setattr("detectors.decide.principals.STEP", 64)
    for cuts in (0, 1, 25):
        log = Log(decide.FuseSettings(1e6))
        for a, b in itertools.pairwise([0, *sorted(rng.integers(1, n, cuts).tolist()), n]):
            if b > a:
                part = evidence(who[a:b], flag[a:b], first_row=a)
                table, codes = np.unique(group[a:b], return_inverse=True)
                columns = tuple(map(str, range(part.log_e.shape[1])))
                names = tuple(f"group:{g}" for g in table.tolist())
                log(replace(part, ties=names, tied=codes[:, None].astype(np.int32), columns=columns))
        assert log.state is not None
        lane = log.state.meta["lanes"]["AttackSuspected"]
        ends.append(
            (
                [(d.time_us, d.subject.id, d.log_e, d.evidence) for d in log.decisions],
                sorted((*p, sorted(callers)) for *p, callers in lane["pools"]),
            )
        )
    assert any("tied_by" in e for *_, e in ends[0][0])
    assert ends[1] == ends[0]
    assert ends[2] == ends[0]
