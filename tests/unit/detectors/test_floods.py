"""One hour far beyond all before: of a caller, and of a model's calls together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from alerts.policy import Policy
from detectors.abuse.surges import Abuse
from detectors.base import Caller, Detection
from monitor.model import HOUR_US, Decision, Event, Severity, Verdict
from tests.judging import Court, as_log, calls, cut, mixed
from tests.unit.detectors.test_habits import NOW, START, Known, fired, found, past


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(31)


def judged(log: pa.Table, rng: np.random.Generator, pieces: int = 0, **declared: Caller) -> list[Decision]:
    """What is decided of a log that is cut into pieces."""
    court = Court(Abuse(), Abuse().calibrate([], "none"))
    for piece in cut(log, rng, pieces) if pieces else [log]:
        part = as_log(piece)
        court.stretch(Known(part.model, part.start_us, part.end_us, part.table, None, declared))
    return sorted(court.decisions, key=lambda d: (d.time_us, d.event))


def others(rng: np.random.Generator) -> list[pa.Table]:
    """Four settled callers."""
    return [past(rng, f"c{i}") for i in range(4)]


def test_one_hour_far_above_the_largest_is_told_at_the_call_that_crosses(rng: np.random.Generator) -> None:
    """From 3 calls to 5,000 in an hour: a minor incident at the 1,201st, and one of the model's calls, wherever it is cut."""
    flood = calls([NOW], 5000, rng)
    log = mixed(*others(rng), past(rng), flood)
    made = judged(log, rng)
    mine, whole = (next(d for d in made if d.event is e) for e in (Event.ABUSE_SUSPECTED, Event.TRAFFIC_ANOMALY))
    assert {d.subject.id for d in made if d.event is Event.ABUSE_SUSPECTED} == {"client"}
    times = sorted(np.asarray(flood["event_time"]).tolist())
    assert (mine.time_us, whole.time_us) == (times[1200], times[2000])
    assert mine.evidence["examples"][-1]["flood"] == {"limit": 1200, "largest": 60, "amounts": ["calls"]}
    policy = Policy()
    assert [policy.severity(d, policy.raises(d, None, 0)) for d in (mine, whole)] == [Severity.MINOR] * 2
    for pieces in (3, 60):
        assert judged(log, rng, pieces) == made


def test_many_tokens_in_one_hour(rng: np.random.Generator) -> None:
    """Few calls that cost far more than ever are a flood too."""
    now = calls([NOW], 50, rng)
    tables = [past(rng), now]
    costly = [t.append_column("tokens_out", pa.array([each] * t.num_rows, pa.int64())) for t, each in zip(tables, (300, 9000), strict=True)]  # fmt: skip
    assert "flood" in fired(found(Abuse(), *costly))


@pytest.mark.parametrize("times", [4, 10, 19])
def test_a_burst_within_reach_of_known_ones_is_no_flood(rng: np.random.Generator, times: int) -> None:
    """Who had an hour of 70 calls may have one of up to 1,400 now and then: a month end, a backfill."""
    batch = calls([START + 30], 70, rng)
    assert judged(mixed(*others(rng), past(rng), batch, calls([NOW], 70 * times, rng)), rng) == []


def test_failures_and_slow_answers_are_no_flood(rng: np.random.Generator) -> None:
    """An outage makes many errors and long answers of honest calls: that alone is not told of an hour."""
    now = calls([NOW], 1000, rng, status="error")
    slow = [
        t.append_column("latency_ms", pa.array([ms] * t.num_rows, pa.float64()))
        for t, ms in ((past(rng), 20.0), (now, 60_000.0))
    ]
    assert "flood" not in fired(found(Abuse(), *slow))


def test_a_rush_is_told_of_two_at_most(rng: np.random.Generator) -> None:
    """Where all flood the model at once, something happened to all: whoever comes third is told of nothing, nor next hour."""
    names = [f"c{i}" for i in range(5)]
    rush = [calls([NOW, NOW + 1], 1500, rng, n) for n in names]
    log = mixed(*others(rng), past(rng, "c4"), *rush)
    crossed = {n: sorted(np.asarray(t["event_time"]).tolist())[1200] for n, t in zip(names, rush, strict=True)}
    made = [d for d in judged(log, rng) if d.event is Event.ABUSE_SUSPECTED]
    assert {d.subject.id for d in made} == set(sorted(names, key=lambda n: crossed[n])[:2])
    assert [d for d in judged(log, rng, 80) if d.event is Event.ABUSE_SUSPECTED] == made


def test_within_a_month_a_flood_is_above_every_other_s_hours(rng: np.random.Generator) -> None:
    """The first monthly job of a client is not told while others have jobs as large; later its own past alone counts."""
    big = calls([START + 30], 4000, rng, "c0")
    job = calls([NOW], 3000, rng)
    assert "flood" not in fired(found(Abuse(), *others(rng), big, past(rng), job))
    later = [past(rng, hours=24 * 33), calls([START + 24 * 33], 3000, rng)]
    assert "flood" in fired(found(Abuse(), *others(rng), big, *later))


def test_what_comes_again_is_known(rng: np.random.Generator) -> None:
    """The second flood of a caller wins little by itself: its own past has one."""
    evidence = found(Abuse(), past(rng), calls([NOW], 3000, rng), calls([NOW + 24 * 20], 200_000, rng))
    column = evidence.log_e[evidence.flag, evidence.columns.index("flood/0.9")]
    assert column[column != 0].round(1).tolist() == [29.8, 2.2]


def test_a_load_test_floods_the_model_as_declared(rng: np.random.Generator) -> None:
    """Its calls are held against nobody, nor counted among the model's."""
    log = mixed(*others(rng), past(rng), calls([NOW], 30_000, rng))
    assert judged(log, rng, client=Caller(profile="load_test")) == []


def test_retries_explain_calls_and_no_tokens(rng: np.random.Generator) -> None:
    """A declared use excuses what it explains and nothing else of a flood."""
    now = calls([NOW], 5000, rng)
    costly = now.append_column("tokens_out", pa.array([900] * now.num_rows, pa.int64()))
    declared = {"client": Caller(profile="retries")}
    assert "flood" not in fired(found(Abuse(), past(rng), now, declared=declared))
    known = past(rng)
    known = known.append_column("tokens_out", pa.array([300] * known.num_rows, pa.int64()))
    assert "flood" in fired(found(Abuse(), known, costly, declared=declared))


def nameless(table: pa.Table) -> pa.Table:
    """The same calls of nobody."""
    return table.set_column(1, "principal", pa.nulls(table.num_rows, pa.string()))


@pytest.mark.parametrize("known", [nameless, lambda t: t])
def test_a_flood_of_all_calls_ends_with_the_first_usual_hour(rng: np.random.Generator, known: Any) -> None:
    """Calls without a caller count, also where there are no others; a young log has no floods."""
    usual, flood = known(mixed(*others(rng))), calls([NOW, NOW + 1], 4000, rng)
    log = mixed(usual, known(flood), known(calls([NOW + 2, NOW + 3], 5, rng)))
    detector = Abuse()
    said = []
    for pieces in (1, 30):
        state, made = None, list[Detection]()
        for piece in cut(log, rng, pieces):
            measured = detector.measure(detector.calibrate([], "none"), state, as_log(piece))
            state = measured.state
            made += measured.detections
        said.append(made)
    begin, end = said[0]
    assert said[1] == said[0]
    assert (begin.verdict, begin.threshold, begin.window_us[1]) == (Verdict.ALARM, 2000.0, sorted(np.asarray(flood["event_time"]).tolist())[2000])  # fmt: skip
    assert (end.verdict, end.window_us[1]) == (Verdict.OK, (NOW + 3) * HOUR_US)
    early = as_log(mixed(usual.slice(0, 1000), known(calls([START + 100], 4000, rng))))
    assert not detector.measure(detector.calibrate([], "none"), None, early).detections
