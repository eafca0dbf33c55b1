"""Access and abuse: what is new, what is much, what a declared profile explains, and what is left alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import usage
from detectors.abuse.surges import Abuse
from detectors.access.novelty import Access
from detectors.base import Caller, Detection, Evidence, Feedback, State
from detectors.habits import TOLERATED
from monitor.model import HOUR_US, Event, Severity, Verdict
from tests.judging import Court, Rows, as_log, calls, mixed, places

START = 4000  # an hour of the log; all clients are settled ten days later
NOW = START + 240


@dataclass(frozen=True)
class Known(Rows):
    """A stretch whose callers are declared."""

    declared: dict[str, Caller] = field(default_factory=dict)

    def callers(self) -> dict[str, Caller]:
        return self.declared


def found(detector: Any, *tables: pa.Table, declared: dict[str, Caller] | None = None) -> Evidence:
    """What the detector says of a log."""
    log = as_log(mixed(*tables))
    window = Known(log.model, log.start_us, log.end_us, log.table, None, declared or {})
    evidence = detector.measure(detector.calibrate([], "none"), None, window).evidence
    assert isinstance(evidence, Evidence)
    return evidence


def fired(evidence: Evidence, principal: str = "client") -> list[str]:
    """Signals of a principal that fired, each time."""
    mine = [
        r
        for r, c, f in zip(evidence.row, evidence.code, evidence.flag, strict=True)
        if f and evidence.principals[c] == principal
    ]
    return [s for r in mine for s in evidence.details[int(r)]["signals"]]


def past(rng: np.random.Generator, principal: str = "client", hours: int = 240, **fields: Any) -> pa.Table:
    """The usual calls of a client."""
    return calls(range(START, START + hours), 3, rng, principal, **fields)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(12)


@pytest.mark.parametrize(
    ("field", "signal"),
    [("source_ip", "network"), ("credential_id", "credential"), ("model_version", "version"), ("returned", "returned")],
)
def test_something_new_every_hour(rng: np.random.Generator, field: str, signal: str) -> None:
    """Hours that each bring a new value fire once; values within one network are not new."""
    now = calls(range(NOW, NOW + 12), 5, rng, "client", **{field: places(60)})
    assert fired(found(Access(), past(rng), now)) == [signal] * 12
    same = calls(range(NOW, NOW + 12), 5, rng, source_ip=[f"10.0.0.{i}" for i in range(60)])
    assert fired(found(Access(), past(rng), same)) == []


def test_a_moved_job_is_one_hour_of_news(rng: np.random.Generator) -> None:
    """A new key and a new network are learnt after the hour in which they came."""
    now = calls(range(NOW, NOW + 48), 5, rng, source_ip="192.0.2.1", credential_id="new")
    evidence = found(Access(), past(rng), now)
    assert sorted(fired(evidence)) == ["credential", "network"]
    assert evidence.log_e.sum(axis=0).max() < 0


def test_a_newcomer_is_no_anomaly(rng: np.random.Generator) -> None:
    """Young principals and young logs say nothing, whatever they do."""
    young = calls(range(NOW, NOW + 100), 5, rng, "young", source_ip=places(500))
    for detector in (Access(), Abuse()):
        evidence = found(detector, past(rng), young)
        assert "young" not in {evidence.principals[c] for c in evidence.code}


def test_who_always_changes_is_expected_to(rng: np.random.Generator) -> None:
    """Short-lived credentials are the habit of their principal: nothing is won by another one."""
    evidence = found(Access(), past(rng, credential_id=[f"token-{i}" for i in range(720)]))
    column = evidence.columns.index("credential/0.9")
    assert evidence.log_e[:, column].max() < 0.1


def test_back_from_a_long_silence_nothing_is_learnt_for_a_week(rng: np.random.Generator) -> None:
    """The key of a forgotten client in new hands: each hour of use counts, and only from unknown places."""
    later = range(NOW + 24 * 60, NOW + 24 * 60 + 10)
    stolen = found(Access(), past(rng), calls(later, 5, rng, source_ip="192.0.2.1"))
    assert fired(stolen) == ["network"] * 10
    assert stolen.details[int(stolen.row[stolen.flag][0])]["new_network"] == {"known": 1, "dormant": True}
    assert fired(found(Access(), past(rng), calls(later, 5, rng))) == []


def test_what_everybody_does_is_nobody_s_anomaly(rng: np.random.Generator) -> None:
    """An outage of a day fires for all clients, and soon wins nothing against any of them."""
    names = [f"c{i}" for i in range(12)]
    before = [past(rng, n) for n in names]
    outage = [calls(range(NOW, NOW + 24), 90, rng, n, status="error") for n in names]
    crowd = found(Abuse(), *before, *outage)
    alone = found(Abuse(), *before, outage[0])
    column = crowd.columns.index("errors/0.9")
    mine = {
        name: np.array([e.principals[c] == "c0" for c in e.code]) for name, e in (("crowd", crowd), ("alone", alone))
    }
    assert alone.log_e[mine["alone"], column][-20:].sum() > 20
    assert crowd.log_e[mine["crowd"], column][-20:].sum() < 3


@pytest.mark.parametrize(
    ("fields", "signals"),
    [
        ({}, {"calls", "odd_hours"}),
        ({"status": "rejected"}, {"calls", "errors", "odd_hours"}),
        ({"returned": "scores"}, {"calls", "scores", "odd_hours"}),
        ({"extra": '{"params":{"top_logprobs":5}}'}, {"calls", "scores", "odd_hours"}),
        ({"extra": '{"params":{"top_logprobs":0,"logit_bias_count":0}}'}, {"calls", "odd_hours"}),
    ],
)
def test_hours_larger_than_ever(rng: np.random.Generator, fields: dict[str, str], signals: set[str]) -> None:
    """Each amount that is several times its largest hour fires in every hour; the odd hour once a day."""
    before = past(rng, extra="{}")
    evidence = found(Abuse(), before, calls(range(NOW, NOW + 10), 300, rng, **({"extra": "{}"} | fields)))
    said = fired(evidence)
    assert set(said) == signals
    assert said.count("calls") == 10
    assert said.count("odd_hours") == 1
    why = [evidence.details[int(r)].get("calls") for r in evidence.row[evidence.flag]]
    assert next(w for w in why if w) == {"limit": 240, "largest": 60}


def test_tokens_and_seconds_count_where_the_log_has_them(rng: np.random.Generator) -> None:
    """Few calls may cost much."""
    table = calls(range(NOW, NOW + 10), 5, rng)
    table = table.append_column("tokens_out", pa.array([50_000] * table.num_rows, pa.int64()))
    table = table.append_column("latency_ms", pa.array([90_000.0] * table.num_rows, pa.float64()))
    before = past(rng)
    before = before.append_column("tokens_out", pa.array([100] * before.num_rows, pa.int64()))
    before = before.append_column("latency_ms", pa.array([50.0] * before.num_rows, pa.float64()))
    assert set(fired(found(Abuse(), before, table))) == {"tokens", "busy_us"}


def test_a_surge_is_not_usual_by_its_second_day(rng: np.random.Generator) -> None:
    """The largest hour is raised once a day and at most fourfold: a hundredfold surge lasts for days."""
    surge = calls(range(NOW, NOW + 72), 6000 // 24, rng)
    assert fired(found(Abuse(), past(rng), surge)).count("calls") > 20
    more = calls(range(NOW, NOW + 72), 1200, rng)
    assert fired(found(Abuse(), past(rng), more)).count("calls") > 40


SUSPECTED = Feedback(suspects=frozenset({"client"}))


def went_on(detector: Any, *parts: tuple[pa.Table, Feedback]) -> tuple[State, Evidence]:
    """The state after stretches with what the deciders said before each, and the evidence of the last one."""
    calibration, state, evidence = detector.calibrate([], "none"), None, None
    for table, feedback in parts:
        measured = detector.measure(calibration, state, as_log(table), feedback)
        state, evidence = measured.state, measured.evidence
    assert isinstance(state, State)
    assert isinstance(evidence, Evidence)
    return state, evidence


def test_what_a_suspect_does_much_of_is_not_usual_for_it(rng: np.random.Generator) -> None:
    """Days of surges under suspicion leave the past of a caller as it was; after the incident it learns again."""
    before = past(rng)
    surge, then = (calls(range(NOW + first, NOW + first + 144), 400, rng) for first in (24, 168))
    old, _ = went_on(Abuse(), (before, Feedback()))
    held, _ = went_on(Abuse(), (before, Feedback()), (surge, SUSPECTED))
    for name in ("top", "week", "hits", "trials"):
        assert np.array_equal(held.arrays[name], old.arrays[name])
    assert not held.arrays["crowd"][:, 1:].any()  # nor does it say what happens to many
    learnt, _ = went_on(Abuse(), (mixed(before, surge), Feedback()))
    assert learnt.arrays["top"][0, 0] == 400
    again, evidence = went_on(Abuse(), (before, Feedback()), (surge, SUSPECTED), (then, Feedback()))
    assert "calls" in fired(evidence)
    assert again.arrays["top"][0, 0] == 400


def test_values_of_a_suspect_do_not_become_known(rng: np.random.Generator) -> None:
    """A network used under suspicion is as new when the incident is over, and then becomes known."""
    now = calls(range(NOW, NOW + 24), 5, rng, source_ip="192.0.2.1")
    then = calls(range(NOW + 24, NOW + 48), 5, rng, source_ip="192.0.2.1")
    old, _ = went_on(Access(), (past(rng), Feedback()))
    held, evidence = went_on(Access(), (past(rng), Feedback()), (now, SUSPECTED))
    assert fired(evidence) == ["network"] * 24
    for name in ("known", "longest", "hits", "trials"):
        assert np.array_equal(held.arrays[name], old.arrays[name])
    _, evidence = went_on(Access(), (past(rng), Feedback()), (now, SUSPECTED), (then, Feedback()))
    assert fired(evidence) == ["network"]


@pytest.mark.parametrize("detector", [Abuse(), Access()])
def test_suspicion_counts_from_the_hour_of_the_incident_on(rng: np.random.Generator, detector: Any) -> None:
    """Wherever in the hour of the incident the log is cut, the same is learnt, and nothing of that hour."""
    before = past(rng)
    now = calls(range(NOW, NOW + 72), 200, rng, source_ip=places(72 * 200))
    kept = []
    for first in (20, 90, 199):
        parts = (mixed(before, now.slice(0, first)), Feedback()), (now.slice(first), SUSPECTED)
        kept.append(went_on(detector, *parts)[0].arrays)
    old = went_on(detector, (before, Feedback()))[0].arrays
    for name in {"top", "week", "known"} & set(old):
        assert all(np.array_equal(k[name], old[name] if name != "week" else kept[0][name]) for k in kept)


@pytest.mark.parametrize(
    ("profile", "signals"),
    [
        ("load_test", set()),
        ("explainer", set()),
        ("batch", {"calls"}),
        ("retries", {"odd_hours"}),
        ("segment", {"calls", "odd_hours"}),
    ],
)
def test_declared_profiles_explain(rng: np.random.Generator, profile: str, signals: set[str]) -> None:
    """What a profile explains is no evidence at all, not even against those who stay quiet."""
    now = calls(range(NOW, NOW + 10), 300, rng)
    evidence = found(Abuse(), past(rng), now, declared={"client": Caller(profile=profile)})
    assert set(fired(evidence)) == signals


def test_a_newcomer_beside_its_peers(rng: np.random.Generator) -> None:
    """Who has no past yet is measured by a declared group of settled peers, if there are three."""
    peers = [past(rng, f"p{i}") for i in range(3)]
    young = calls(range(NOW - 20, NOW), 300, rng, "young")
    group = {n: Caller(group="desk") for n in ("p0", "p1", "p2", "young")}
    evidence = found(Abuse(), *peers, young, declared=group)
    assert set(fired(evidence, "young")) == {"calls", "day"}
    mine = np.array([evidence.principals[c] == "young" for c in evidence.code])
    assert evidence.log_e[mine].sum(axis=0).max() > 20
    assert fired(found(Abuse(), *peers, young), "young") == []
    assert fired(found(Abuse(), *peers[:2], young, declared=group), "young") == []
    usual = calls(range(NOW - 20, NOW), 5, rng, "young")
    assert fired(found(Abuse(), *peers, usual, declared=group), "young") == []


@pytest.mark.parametrize("declared", [{}, {"young": Caller(group="alone")}])
def test_a_newcomer_without_peers_beside_all_settled_callers(
    rng: np.random.Generator, declared: dict[str, Caller]
) -> None:
    """Where five are settled, whoever has no peers is measured by all: as a warning, and slower than beside peers."""
    settled = [past(rng, f"c{i}") for i in range(5)]
    much = calls(range(NOW - 20, NOW), 300, rng, "young", source_ip=places(6000))
    for detector, signals in ((Abuse(), {"calls", "day"}), (Access(), {"network"})):
        evidence = found(detector, *settled, much, declared=declared)
        assert set(fired(evidence, "young")) == signals
        assert evidence.young is not None
        assert evidence.young[evidence.flag].all()
        said = next(iter(evidence.details.values()))
        assert next(why for name, why in said.items() if name != "signals")["beside"] == "all callers"
        court = Court(detector, detector.calibrate([], "none"))
        log = as_log(mixed(*settled, much))
        court.stretch(Known(log.model, log.start_us, log.end_us, log.table, None, declared))
        (opened,) = court.decisions[:1]
        assert (opened.subject.id, opened.severity) == ("young", Severity.WARNING)
        assert NOW - 9 <= opened.time_us // HOUR_US < NOW - 5  # the twelfth hour, or soon after
        assert fired(found(detector, *settled[:4], much, declared=declared), "young") == []
    usual = calls(range(NOW - 20, NOW), 3, rng, "young")
    for detector in (Abuse(), Access()):
        assert fired(found(detector, *settled, usual, declared=declared), "young") == []


def test_newcomers_do_not_cover_for_each_other_nor_for_others(rng: np.random.Generator) -> None:
    """What callers without a past do too much of is no rush: it hides nobody."""
    settled = [past(rng, f"c{i}") for i in range(5)]
    names = [calls(range(NOW, NOW + 12), 300, rng, f"young-{i}") for i in range(6)]
    alone, among = (found(Abuse(), *settled, *t, calls(range(NOW, NOW + 12), 300, rng, "c0")) for t in ([], names))
    column = alone.columns.index("calls/0.9")
    won = [e.log_e[[e.principals[c] == "c0" for c in e.code], column][-20:].sum() for e in (alone, among)]
    assert won[0] == pytest.approx(won[1], abs=0.5)


def test_peers_are_those_of_the_group_or_else_of_the_kind(rng: np.random.Generator) -> None:
    """A declared kind does where no group is given; one group's peers are not those of another."""
    peers, young = [past(rng, f"p{i}") for i in range(3)], calls(range(NOW - 20, NOW), 300, rng, "young")
    names = ("p0", "p1", "p2", "young")
    for kinds, seen in (
        ({n: Caller(kind="service") for n in names}, True),
        ({n: Caller(kind="service", group="a" if n == "young" else "b") for n in names}, False),
        ({n: Caller(group="service") if n == "young" else Caller(kind="service") for n in names}, False),
    ):
        evidence = found(Abuse(), *peers, young, declared=kinds)
        assert bool(fired(evidence, "young")) == seen
        assert evidence.young is not None
        assert evidence.young.any() == seen


def test_new_ways_of_a_newcomer_beside_its_peers(rng: np.random.Generator) -> None:
    """A new principal that brings a new network every hour, where its peers never do and none of them uses these."""
    peers = [past(rng, f"p{i}") for i in range(3)]
    roaming = [past(rng, f"p{i}", source_ip=places(720)) for i in range(3)]
    sharing = [past(rng, f"p{i}", source_ip=places(12, 800) * 60) for i in range(3)]
    young = calls(range(NOW - 20, NOW), 3, rng, "young", source_ip=places(60, 800))
    among = calls(range(NOW - 20, NOW), 3, rng, "young", source_ip=places(12, 800) * 5)
    group = {n: Caller(group="pods") for n in ("p0", "p1", "p2", "young")}
    evidence = found(Access(), *peers, young, declared=group)
    assert fired(evidence, "young") == ["network"] * 19  # what came in its first hour is where it lives
    assert evidence.details[int(evidence.row[evidence.flag][0])]["new_network"]["beside"] == "peers"
    assert fired(found(Access(), *peers, young), "young") == []
    quiet = found(Access(), *roaming, young, declared=group)
    mine = np.array([quiet.principals[c] == "young" for c in quiet.code])
    assert quiet.log_e[mine, quiet.columns.index("network/0.9")].sum() <= 0.1
    assert fired(found(Access(), *sharing, among, declared=group), "young") == []


def test_returned_fields_never_asked_for_before(rng: np.random.Generator) -> None:
    """Scores and parameters that ask for more are news once each; who always got them brings none."""
    now = calls(range(NOW, NOW + 12), 5, rng, returned="scores", extra='{"params":{"top_logprobs":5}}')
    evidence = found(Access(), past(rng, extra="{}"), now)
    assert fired(evidence) == ["returned"]
    first = int(evidence.row[evidence.flag][0])
    assert evidence.details[first]["new_returned"] == {"known": 1, "fields": "scores, logprobs"}
    assert evidence.readings == {first: {"new_returned": {"known": 1, "fields": "scores, logprobs"}}}
    assert fired(found(Access(), past(rng, returned="scores", extra='{"params":{"top_logprobs":5}}'), now)) == []
    again = calls(range(NOW + 12, NOW + 24), 5, rng, returned="scores", extra='{"params":{"explain":true}}')
    assert fired(found(Access(), past(rng, extra="{}"), now, again)) == ["returned"] * 2


def told_of(log: pa.Table, pieces: int = 1) -> tuple[list[Detection], list[dict[str, Any]]]:
    """What `access` says of absences in a log that is cut into so many pieces, and what it lets incidents say."""
    access, state = Access(), None
    calibration, said, read = access.calibrate([], "none"), list[Detection](), list[dict[str, Any]]()
    cuts = np.linspace(0, log.num_rows, pieces + 1).astype(int).tolist()
    for a, b in pairwise(cuts):
        measured = access.measure(calibration, state, as_log(log.slice(a, b - a)))
        state = measured.state
        said += measured.detections
        read += [dict(r) for r in measured.evidence.readings.values()] if measured.evidence is not None else []
    return said, read


def test_who_is_missing_from_the_log_is_told_of_and_when_it_is_back(rng: np.random.Generator) -> None:
    """A caller of every hour falls silent while others go on: told after six hours of others, and on its return."""
    others = [calls(range(START, NOW + 48), 2, rng, f"c{i}") for i in range(4)]
    log = mixed(*others, past(rng), calls(range(NOW + 30, NOW + 48), 3, rng))
    said, read = told_of(log)
    gone, back = said
    assert (gone.subject.id, gone.verdict, gone.event) == ("client", Verdict.OK, Event.ACCESS_ANOMALY)
    assert gone.window_us == (NOW * HOUR_US, (NOW + 7) * HOUR_US)
    assert gone.evidence["hours_of_others"] == 7
    assert gone.evidence["others_with_it"] == 0
    assert back.window_us == (NOW * HOUR_US, (NOW + 30) * HOUR_US)
    assert read == [{"absence": dict(back.evidence)}]
    assert back.evidence["back"]
    for pieces in (7, 100):
        assert told_of(log, pieces) == (said, read)


def test_a_log_that_stands_still_and_a_usual_pause_are_no_absence(rng: np.random.Generator) -> None:
    """Nobody is absent when all are, nor who pauses every night; of a part of the log it is said how many miss with it."""
    names = [f"c{i}" for i in range(4)]
    whole = mixed(*[t for n in names for t in (past(rng, n), calls(range(NOW + 60, NOW + 80), 3, rng, n))])
    assert told_of(whole) == ([], [])
    hours = [START + 24 * day + h for day in range(20) for h in range(8)]
    office = mixed(calls(hours, 3, rng), *[calls(range(START, START + 480), 2, rng, n) for n in names])
    assert told_of(office) == ([], [])
    part = mixed(*[past(rng, n) for n in names], calls(range(START, NOW + 30), 2, rng, "goes on"))
    said, _ = told_of(part)
    assert {d.subject.id for d in said} == set(names)
    assert {d.evidence["others_with_it"] for d in said} == {3}


def test_state_is_small_and_bounded(rng: np.random.Generator) -> None:
    """A flood of names keeps memory flat, and those with a past of their own stay."""
    for detector in (Access(max_principals=200), Abuse(max_principals=200)):
        calibration = detector.calibrate([], "none")
        state = detector.measure(calibration, None, as_log(past(rng))).state
        for k in range(5):
            names = [f"flood-{k}-{i}" for i in range(1000)]
            flood = calls([NOW + k], 1000, rng).set_column(1, "principal", pa.array(names))
            state = detector.measure(calibration, state, as_log(flood)).state
        assert len(state.meta["ids"]) <= 200 * 9 // 8
        assert "client" in state.meta["ids"]
        assert len(State.from_bytes(state.to_bytes()).to_bytes()) < 1200 * 200


@pytest.mark.parametrize("detector", [Abuse(max_principals=40), Access(max_principals=40)])
def test_who_is_forgotten_does_not_depend_on_where_the_log_is_cut(rng: np.random.Generator, detector: Any) -> None:
    """Under a tight cap, with more callers than are remembered, state and evidence are the same for all cuts."""
    usual = [past(rng, f"c{i}") for i in range(20)]
    flood = calls(range(NOW - 30, NOW), 40, rng, status="error", source_ip=places(1200))
    named = flood.set_column(1, "principal", pa.array([f"f{i // 3 % 90}" for i in range(flood.num_rows)]))
    log = mixed(*usual, named, calls(range(NOW, NOW + 12), 90, rng, "c3", source_ip=places(1080)))
    calibration, said = detector.calibrate([], "none"), []
    for cuts in ([], [7000, 14_900, 15_500], sorted(rng.integers(0, log.num_rows, 40).tolist())):
        state, told = None, []
        for a, b in pairwise([0, *cuts, log.num_rows]):
            measured = detector.measure(calibration, state, as_log(log.slice(a, b - a)))
            state, e = measured.state, measured.evidence
            assert e is not None
            told += [
                (e.principals[c], a + r, x, e.details.get(r)) for c, r, x in zip(e.code.tolist(), e.row.tolist(), e.log_e.tolist(), strict=True)
            ]  # fmt: skip
        assert isinstance(state, State)
        said.append((state.to_bytes(), told))
        assert len(state.meta["ids"]) <= 40 * 9 // 8
    assert "c3" in {who for who, *_ in said[0][1][-20:]}
    assert said[0] == said[1] == said[2]


def later_days(first: int, days: int, per_hour: int, rng: np.random.Generator, **fields: Any) -> pa.Table:
    """Calls around the clock from that day after START on."""
    return calls(range(START + 24 * first, START + 24 * (first + days)), per_hour, rng, **fields)


def test_days_of_more_than_ever_are_seen_where_no_hour_stands_out(rng: np.random.Generator) -> None:
    """Three times as much for days: no hour is four times the largest, but days are twice the largest and the usual."""
    usual, much = later_days(0, 70, 20, rng), later_days(70, 12, 60, rng)
    said = fired(found(Abuse(), usual, much))
    assert said.count("day") in range(7, 13)  # until the week before the last has become usual
    assert said.count("month") in range(11, 14)
    assert set(said) == {"day", "month"}
    evidence = found(Abuse(), usual, much)
    why = evidence.details[int(evidence.row[evidence.flag][0])]["day"]
    assert why == {"limit": 720, "largest": 480, "amounts": ["calls"]}
    assert fired(found(Abuse(), later_days(0, 70, 20, rng), later_days(70, 12, 28, rng))) == []


def test_what_comes_once_a_week_is_known_by_the_days_without_it(rng: np.random.Generator) -> None:
    """Days of silence are trials too: a weekly batch that comes daily, at its usual size, is too much for a month."""
    hours = [START + 24 * 7 * week + h for week in range(14) for h in range(8, 20)]  # of one day
    usual = calls(hours, 60, rng)
    daily = calls([START + 24 * (7 * 14 + day) + h for day in range(20) for h in range(8, 20)], 60, rng)
    evidence = found(Abuse(), usual, daily)
    column = evidence.columns.index("month/0.9")
    late = evidence.time_us >= (START + 24 * (7 * 14 + 1)) * HOUR_US
    assert evidence.log_e[~late, column].sum() < 0
    assert evidence.log_e[late, column].sum() > 19


def test_days_under_suspicion_do_not_become_usual(rng: np.random.Generator) -> None:
    """The largest and the usual day stay what they were, and so does the share of days that fired."""
    before, surge = later_days(0, 70, 20, rng), later_days(70, 20, 70, rng)
    old, _ = went_on(Abuse(), (before, Feedback()))
    held, _ = went_on(Abuse(), (before, Feedback()), (surge, SUSPECTED))
    learnt, _ = went_on(Abuse(), (before, Feedback()), (surge, Feedback()))
    for name in ("peak", "past", "hits", "trials"):
        assert np.array_equal(held.arrays[name], old.arrays[name])
        assert not np.array_equal(learnt.arrays[name], old.arrays[name])


def test_a_rush_of_all_customers_is_nobody_s_abuse(rng: np.random.Generator) -> None:
    """Days that are too much for most callers at once win nothing after the first."""
    names = [f"c{i}" for i in range(12)]
    before = [later_days(0, 60, 15, rng, principal=n) for n in names]
    rush = [later_days(60, 10, 40, rng, principal=n) for n in names]
    evidence = found(Abuse(), *before, *rush)
    mine = np.array([evidence.principals[c] == "c0" for c in evidence.code]) & (
        evidence.time_us >= (START + 1440) * HOUR_US
    )
    for signal in ("day/0.9", "month/0.9"):
        assert evidence.log_e[mine, evidence.columns.index(signal)].sum() < 10


def test_a_flood_of_new_principals(rng: np.random.Generator) -> None:
    """It begins at the principal that is too many, ends with the first usual hour, wherever the log is cut."""
    before = mixed(*[calls([START + h], 8, rng, f"c{h}") for h in range(0, 240, 4)])
    flood = [
        calls([NOW + h], 700, rng).set_column(1, "principal", pa.array([f"f{h}-{i}" for i in range(700)]))
        for h in (0, 1)
    ]
    log = mixed(before, *flood, calls(range(NOW + 2, NOW + 4), 3, rng, "c0"))
    access = Access()
    calibration = access.calibrate([], "none")
    said = {}
    for pieces in ([0, log.num_rows], [0, 300, 700, 1200, 1201, log.num_rows]):
        state, made = None, list[Detection]()
        for a, b in pairwise(pieces):
            measured = access.measure(calibration, state, as_log(log.slice(a, b - a)))
            state = State.from_bytes(measured.state.to_bytes())
            made += measured.detections
        said[len(pieces)] = made
    begin, end = said[2]
    assert said[6] == [begin, end]
    assert (begin.event, begin.verdict, begin.n, begin.threshold) == (Event.TRAFFIC_ANOMALY, Verdict.ALARM, 501, 500.0)
    assert begin.window_us[1] == sorted(np.asarray(flood[0]["event_time"]).tolist())[500]
    assert (end.verdict, end.window_us[1]) == (Verdict.OK, (NOW + 3) * HOUR_US)


def test_the_page_tells_what_was_measured() -> None:
    """Stored: honest clients alarm for backfills and little else; what is thrice as much is found where use is regular."""
    root = Path(usage.__file__).parents[1]
    found = json.loads((root / "benchmarks" / "usage.json").read_text(encoding="utf-8"))
    page = (root / "docs" / "detectors.md").read_text(encoding="utf-8").splitlines()
    assert set(usage.lines(found)) <= set(page)
    alarms = found["honest"]["alarms"]
    assert sum(n for kind, n in alarms.items() if kind != "backfill") < 0.02 * found["honest"]["each"] * len(alarms)


def test_tolerance_is_what_the_documentation_says() -> None:
    """Docs and docstrings name it."""
    assert TOLERATED == 0.02
