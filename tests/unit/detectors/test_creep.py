"""Use that creeps up: what a caller's first weeks held is kept, and its newest are compared with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from alerts import lifecycle
from benchmarks import creeping
from detectors import decide
from detectors.abuse.creep import FOLD
from detectors.abuse.surges import Abuse
from detectors.base import Caller, Detection, Feedback, State
from monitor.model import HOUR_US, Event, Severity, Subject, Verdict, rfc3339
from monitor.service.watch import Monitor
from monitor.service.windows import Stretch
from monitor.service.work import Work
from tests.alerting import alert
from tests.judging import as_log, calls, cut, mixed
from tests.unit.test_lifecycle import Timeline

START = 24 * 7 * 30  # an hour in which a week of the log begins
LEVEL = 25  # calls an hour, four hours a day, in the first weeks
DOUBLED = [*[LEVEL] * 9, 27, 30, 32, 35, 37, 40, 42, 45, 47, *[50] * 8]  # nine weeks later


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def weeks(rng: np.random.Generator, per_hour: Sequence[int], principal: str = "client") -> pa.Table:
    """Four hours of calls a day, so many an hour in each week."""
    hours = [[START + 168 * w + 24 * day + hour for day in range(7) for hour in range(4)] for w in range(len(per_hour))]
    return pa.concat_tables(calls(h, n, rng, principal) for h, n in zip(hours, per_hour, strict=True) if n)


def said(*parts: pa.Table | tuple[pa.Table, Feedback], declared: dict[str, Caller] | None = None) -> list[Detection]:
    """What the rule says of a log in parts, each with what the deciders said before it."""
    abuse, made, state = Abuse(), list[Detection](), None
    calibration = abuse.calibrate([], "none")
    for part in parts:
        table, feedback = part if isinstance(part, tuple) else (part, Feedback())
        log = as_log(table)
        window = Stretch("m", log.start_us, log.end_us, table, None, declared or {})
        measured = abuse.measure(calibration, state, window, feedback)
        state = State.from_bytes(measured.state.to_bytes())
        made += [d for d in measured.detections if d.subject.kind == "principal"]
    return made


def test_who_doubles_slowly_is_told_of_and_no_other_signal_sees_it(rng: np.random.Generator) -> None:
    """Every week while it lasts, wherever the log is cut, with both habits, how many fold and since when."""
    log = weeks(rng, DOUBLED)
    told = said(log)
    assert {(d.event, d.verdict, d.severity, d.subject.id) for d in told} == {
        (Event.TRAFFIC_ANOMALY, Verdict.ALARM, Severity.WARNING, "client")
    }
    week = 7 * 24 * HOUR_US
    ends = [d.window_us[1] // week - START // 168 for d in told]
    assert ends == list(range(ends[0], len(DOUBLED)))
    assert ends[0] in range(18, 22)  # the five weeks before hold half as much again
    first = told[0].evidence
    assert (first["then"], first["amount"], first["peers_fold"]) == (pytest.approx(700, rel=0.2), "calls", 1.0)
    assert first["now"] >= FOLD * first["then"]
    assert first["fold"] == pytest.approx(first["now"] / first["then"], abs=0.01)
    assert str(first["detail"]).startswith(f"calls crept up {first['fold']:.1f}-fold: {first['now']:,} a week since ")
    assert first["since"] == rfc3339(told[0].window_us[1] - 5 * week)
    assert said(*cut(log, rng, 20)) == told
    evidence = Abuse().measure(Abuse().calibrate([], "none"), None, as_log(log)).evidence
    assert evidence is not None
    assert not evidence.flag.any()


def test_who_goes_back_is_told_of_once_more_and_may_creep_again(rng: np.random.Generator) -> None:
    """The middle of the newest five weeks under 80 % of the limit ends it; so does silence."""
    told = said(weeks(rng, [*DOUBLED, *[LEVEL] * 6, *[50] * 6]))
    verdicts = [d.verdict for d in told]
    back = verdicts.index(Verdict.OK)
    assert verdicts[back - 1] is verdicts[back + 1] is Verdict.ALARM
    assert verdicts.count(Verdict.OK) == 1
    assert (told[back].statistic or 9) <= 0.8 * FOLD
    others = [weeks(rng, [LEVEL] * (len(DOUBLED) + 6), "other")]
    assert said(mixed(*others, weeks(rng, DOUBLED)))[-1].verdict is Verdict.OK


def test_what_a_person_has_judged_is_what_counts_from_then_on(rng: np.random.Generator) -> None:
    """Where its incident was open and is gone, the caller is told of again only when it creeps up as much once more."""
    first, later = weeks(rng, [*DOUBLED, *[50] * 12, *[95] * 8]), START + 168 * len(DOUBLED)
    at = int(np.searchsorted(np.asarray(first["event_time"]), later * HOUR_US))
    before, after = first.slice(0, at), first.slice(at)
    seen = Feedback(told=frozenset({"client"}))
    told = said(before, (after.slice(0, 100), seen), (after.slice(100), Feedback()))
    again = [d for d in told if d.window_us[1] > (later + 1) * HOUR_US]
    assert again[0].evidence["then"] == pytest.approx(1400, rel=0.2)
    assert again[0].window_us[1] // (168 * HOUR_US) - START // 168 == len(DOUBLED) + 12 + 5
    kept = said(before, (after.slice(0, 100), seen), (after.slice(100), seen))
    assert len(kept) > len(told)  # an incident that is open goes on


def test_what_a_suspicion_took_in_is_said_again_after_it(rng: np.random.Generator) -> None:
    """An incident that an attack's absorbed was judged by nobody, and what is sent under suspicion is not learnt."""
    log, later = weeks(rng, [*DOUBLED, *[50] * 4]), START + 168 * len(DOUBLED)
    at = int(np.searchsorted(np.asarray(log["event_time"]), later * HOUR_US))
    seen = Feedback(told=frozenset({"client"}))
    suspected = Feedback(suspects=frozenset({"client"}))
    told = said(
        log.slice(0, at), (log.slice(at, 10), seen), (log.slice(at + 10, 1000), suspected), log.slice(at + 1010)
    )
    assert told[-1].evidence["then"] == pytest.approx(700, rel=0.2)
    assert told[-1].window_us[1] // (168 * HOUR_US) - START // 168 == len(DOUBLED) + 3


@pytest.mark.parametrize(("group", "others", "found"), [("", 9, False), ("", 3, True), ("desk", 3, False), ("desk", 2, True)])  # fmt: skip
def test_growth_that_peers_share_is_nobody_s(rng: np.random.Generator, group: str, others: int, found: bool) -> None:
    """Those of a declared group, or else all callers; where they are too few a caller stands alone."""
    names = ["client", *(f"peer-{i}" for i in range(others))]
    steady = [weeks(rng, [LEVEL] * len(DOUBLED), f"other-{i}") for i in range(6 if group else 0)]
    declared = {n: Caller(group=group) for n in names}
    told = said(mixed(*(weeks(rng, DOUBLED, n) for n in names), *steady), declared=declared)
    assert {d.subject.id for d in told} == (set(names) if found else set())


def test_one_that_grows_alone_among_many_is_told_of(rng: np.random.Generator) -> None:
    """Peers that stay as they are excuse nobody; nor do few that grow alike."""
    peers = [weeks(rng, [LEVEL] * len(DOUBLED), f"peer-{i}") for i in range(8)]
    told = said(mixed(weeks(rng, DOUBLED), weeks(rng, DOUBLED, "accomplice"), *peers))
    assert {d.subject.id for d in told} == {"client", "accomplice"}


def test_declared_uses_and_small_amounts_are_left_alone(rng: np.random.Generator) -> None:
    """A load test may grow; who asks little may ask more."""
    assert said(weeks(rng, DOUBLED), declared={"client": Caller(profile="load_test")}) == []
    assert said(weeks(rng, [n // 3 for n in DOUBLED])) == []


def test_its_incident_is_a_warning_that_stays_one() -> None:
    """It waits for whoever looks, whatever the tier, and is over when the rule says so."""
    crept = Detection(
        "abuse", Abuse.family, Event.TRAFFIC_ANOMALY, Subject("principal", "p"), (0, HOUR_US), 1.8, Verdict.ALARM, 0,
        threshold=FOLD, severity=Severity.WARNING, evidence={"detail": "calls crept up 1.8-fold: 18 a week since 2026-01-05, 10 at first"},
    )  # fmt: skip
    line = Timeline()
    line.tick(decide.fixed("m", crept, window_us=crept.window_us, time_us=HOUR_US))
    line.take(lifecycle.lasting(tuple(line.open.values()), line.counters, line.policy, 10**15))
    line.tick(decide.fixed("m", replace(crept, statistic=2.5), window_us=crept.window_us, time_us=HOUR_US))
    back = replace(crept, statistic=1.1, verdict=Verdict.OK)
    line.tick(decide.fixed("m", back, window_us=crept.window_us, time_us=9 * HOUR_US))
    assert line.story == ["open TrafficAnomaly p", "clear TrafficAnomaly p"]
    assert line.made[0].alert.severity is Severity.WARNING
    assert "calls crept up 1.8-fold: 18 a week since 2026-01-05, 10 at first" in line.made[0].alert.text


def test_detectors_hear_whose_traffic_has_an_open_incident() -> None:
    """Of callers only: the model's own traffic and suspected attacks are others' business."""
    work = Work(0, {}, Feedback(), {}, {}, {}, None, 0)
    events = (Event.TRAFFIC_ANOMALY, "principal", "p"), (Event.TRAFFIC_ANOMALY, "model", "m"), (Event.ATTACK_SUSPECTED, "principal", "q")  # fmt: skip
    opened = [replace(alert(), event=event, subject=Subject(kind, name)) for event, kind, name in events]
    work.open = {a.key: a for a in opened}
    abuse = Abuse()
    assert work.told_to(Monitor("abuse", abuse, abuse.calibrate([], "none"), HOUR_US)).told == {"p"}


def test_the_page_tells_what_was_measured() -> None:
    """Stored: hardly any honest client but those that grow is told of; regular ones that double slowly are."""
    root = Path(creeping.__file__).parents[1]
    found = json.loads((root / "benchmarks" / "creeping.json").read_text(encoding="utf-8"))
    page = (root / "docs" / "detectors.md").read_text(encoding="utf-8").splitlines()
    assert set(creeping.lines(found)) <= set(page)
    assert found["split"] == "judging"
    assert found["honest"]["interval"][1] < 0.03
    assert all(x["by_kind"]["steady"] == x["of"] // len(x["by_kind"]) for x in found["slow"].values())
