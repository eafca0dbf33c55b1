"""What people and policy do to incidents: verdicts, exceptions, maintenance, floods, flapping; on timelines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from alerts import lifecycle, quiet
from alerts.base import tells_of_many
from alerts.metrics import Judged, quality
from alerts.policy import Named, Policy
from alerts.quiet import HELD_BACK, Told
from monitor.config import Config
from monitor.model import (
    HOUR_US,
    MAINTENANCE,
    Act,
    Action,
    Decision,
    Event,
    Exemption,
    Family,
    Mark,
    Said,
    Severity,
    Subject,
)
from monitor.service.told import _demoted
from tests.alerting import alert, at, attack, drift, missing, traffic
from tests.unit.test_lifecycle import Timeline

HOUR = 3600.0


class People(Timeline):
    """A timeline on which people act."""

    def settle(self, seconds: float, said: Said = Said.FALSE, *, closes: bool = True, index: int = 0) -> None:
        """A verdict on the index-th open incident."""
        target = list(self.open.values())[index]
        act = Act(target.alert_id, "verdict", "ann", "because", "cli", at(seconds), said, closes)
        step = lifecycle.settle([act], tuple(self.open.values()), self.counters, self.policy, at(seconds))
        self.take(step)


def exemption(**fields: Any) -> Exemption:
    """An exception for principal p1 of model m."""
    base = Exemption(
        "x1", "m", Event.ATTACK_SUSPECTED, Subject("principal", "p1"), (), {}, "batch", "ann", at(0), at(1e6)
    )
    return replace(base, **fields)


def maintenance(start: float, end: float, model: str | None = "m") -> Mark:
    """A maintenance window."""
    return Mark(model, MAINTENANCE, at(start), at(end), "move to new rack", "ops")


def test_a_verdict_closes_and_says_who_and_why() -> None:
    """The clear carries the verdict; the deciders see the incident gone."""
    line = People()
    line.tick(attack(10))
    line.settle(60, Said.BENIGN_TRUE)
    (_, over) = line.made
    assert (over.action, over.alert.open, over.alert.cleared_us) == (Action.CLEAR, False, at(60))
    assert over.alert.evidence["verdict"] == {
        "verdict": "benign-true", "by": "ann", "why": "because", "at": "2023-11-14T22:14:20.000Z"
    }  # fmt: skip
    assert "verdict benign-true by ann: because" in over.alert.text
    assert not line.open


def test_a_verdict_may_leave_the_incident_open() -> None:
    """While people work on it, what they know already can be recorded."""
    line = People()
    line.tick(attack(10))
    line.settle(60, Said.TRUE, closes=False)
    assert line.story == ["open AttackSuspected p1"]


def test_a_verdict_is_never_dated_before_what_it_closes() -> None:
    """A slow wall clock does not turn time back."""
    line = People()
    line.tick(attack(100))
    line.settle(50)
    assert line.made[-1].time_us == at(100)


@pytest.mark.parametrize("decide", [drift, missing, traffic])
def test_what_a_person_closed_does_not_come_back_unchanged(decide: Any) -> None:
    """The rule still fires; it is silent for a day, and then says it again."""
    line = People()
    line.tick(*(decide(s, firing=True) for s in (1, 2, 3)))
    line.settle(60)
    for hour in range(1, 24):
        line.tick(decide(hour * HOUR, firing=True))
    assert len(line.made) == 2
    assert "settled" in line.dropped
    line.tick(*(decide(s + 25 * HOUR, firing=True) for s in (1, 2, 3)))
    assert line.made[-1].action is Action.OPEN


def test_what_is_said_again_is_a_new_incident() -> None:
    """A rule dates its problem to the beginning, which is the same after a day; the incident is another all the same."""
    line = People()
    line.tick(missing(700))
    line.settle(800)
    line.tick(missing(700, statistic=26 * HOUR, severity=Severity.CRITICAL))
    first, over, again = line.made
    assert again.action is Action.OPEN
    assert again.alert.alert_id != first.alert.alert_id
    assert again.alert.opened_us > over.time_us


def test_a_settled_problem_that_ended_is_news_when_it_returns() -> None:
    """The clean evaluation in between makes the second outage an incident of its own."""
    line = People()
    line.tick(missing(700))
    line.settle(800)
    assert quiet.watched(line.counters)
    line.tick(missing(900, firing=False, statistic=0.0))
    assert not quiet.watched(line.counters)
    line.tick(missing(3000))
    assert line.made[-1].action is Action.OPEN


def test_what_got_worse_comes_back_at_once() -> None:
    """More severe, or about other features: a person has not seen that."""
    line = People()
    line.tick(drift(1))
    line.settle(10)
    line.tick(drift(20, evidence={"features": [{"name": "country", "share": 0.9}]}))
    assert line.made[-1].action is Action.OPEN
    line.settle(30)
    line.tick(drift(40, severity=Severity.CRITICAL))
    assert line.made[-1].alert.severity is Severity.CRITICAL


def test_new_evidence_of_an_attack_is_always_news() -> None:
    """Whatever was said of the incident before, only an exception keeps the next one from opening."""
    line = People()
    line.tick(attack(1))
    line.settle(10, Said.UNDETERMINED)
    line.tick(attack(20))
    assert line.made[-1].action is Action.OPEN
    assert line.made[-1].alert.evidence["before"] == {"incidents": 1, "undetermined": 1}
    assert "before: 1 incident (1 undetermined)" in line.made[-1].alert.text


def test_an_exception_is_narrow_and_expires() -> None:
    """It covers its principal, up to its bounds and its end; one more detector, query or second is not covered."""
    told = Told([exemption(detectors=("queries",), bounds={"queries": 100.0}, expires_us=at(500))])
    line = Timeline(told=told)
    line.tick(attack(10))
    assert (line.made, line.dropped) == ([], ["excepted"])
    assert line.excepted == {"x1": 1}
    for other in (
        attack(20, queries=101),
        attack(20, "p2"),
        attack(500),
        attack(20, evidence={"principals": ["p1"], "queries": 5, "detectors": [{"name": "other"}]}),
        attack(20, evidence={"principals": ["p1"]}),  # what is not known is not within bounds
    ):
        line = Timeline(told=told)
        line.tick(other)
        assert len(line.made) == 1


def test_an_exception_leaves_open_incidents_alone() -> None:
    """What is open is updated and cleared as ever."""
    line = Timeline()
    line.tick(attack(10))
    line.told = Told([exemption()])
    line.tick(attack(20, queries=5000), attack(30, firing=False))
    assert [t.action for t in line.made] == [Action.OPEN, Action.UPDATE, Action.CLEAR]


def test_maintenance_silences_all_but_attacks_and_ends() -> None:
    """Windows that touch it are silent, attacks are not; what lasts beyond its end is told then."""
    line = Timeline(told=Told(marks=[maintenance(0, 1000)]))
    line.tick(drift(900), missing(700), attack(800))
    assert line.story == ["open AttackSuspected p1"]
    assert line.dropped == ["maintenance"] * 2
    line.tick(drift(3000))  # its window began before the end
    assert len(line.made) == 1
    line.tick(drift(1000 + 3601))
    line.tick(missing(700, statistic=1001.0))
    assert line.story[1:] == ["open FeatureDrift m", "open DataMissing m"]


@pytest.mark.parametrize(("model", "silent"), [("m", True), (None, True), ("other", False)])
def test_maintenance_is_of_one_model_or_of_all(model: str | None, silent: bool) -> None:
    """Another model's maintenance explains nothing here."""
    line = Timeline(told=Told(marks=[maintenance(0, 1000, model)]))
    line.tick(drift(900))
    assert (not line.made) is silent


def test_missing_data_silences_what_it_looks_like() -> None:
    """Drift that opens while data is missing is counted in the incident that explains it; afterwards it is told."""
    line = Timeline()
    line.tick(missing(700), drift(800), drift(900), attack(910))
    assert line.story == ["open DataMissing m", "open AttackSuspected p1"]
    line.tick(missing(1000, firing=False, statistic=0.0), drift(1100))
    over = next(t for t in line.made if t.action is Action.CLEAR)
    assert over.alert.evidence["inhibited"] == {"FeatureDrift": 2}
    assert line.story[-1] == "open FeatureDrift m"


def test_marks_stand_in_the_text() -> None:
    """A deploy of the day before is named; without one, the text says that none is known."""
    line = Timeline(told=Told(marks=[Mark("m", "deploy", at(-HOUR), None, "version 4 <b>", "ci")]))
    line.tick(drift(10))
    assert "known here: deploy version 4 \\x3cb\\x3e at 2023-11-14T21:13:20.000Z" in line.made[0].alert.text
    line = Timeline(told=Told(marks=[Mark("m", "deploy", at(-30 * HOUR), None, "version 3", "ci")]))
    line.tick(drift(10))
    assert "no deploy, batch job or maintenance known here" in line.made[0].alert.text


def test_a_rule_that_flaps_stays_open_until_it_is_calm() -> None:
    """The third opening within a day closes after six hours without a sign of it, not after three clean windows."""
    line = Timeline()
    hour = 0.0

    def run(firing: bool, n: int) -> None:
        nonlocal hour
        for _ in range(n):
            hour += 0.25
            line.tick(traffic(hour * HOUR, firing=firing))

    for _ in range(6):
        run(True, 2)
        run(False, 3)
    actions = [t.action.value for t in line.made]
    assert actions == ["open", "clear", "open", "clear", "open", "update"]
    assert "comes and goes (3 times in a day)" in line.made[-1].alert.text
    run(False, 24 + 3)
    assert line.made[-1].action is Action.CLEAR


def test_a_flood_is_told_as_one_with_a_number() -> None:
    """Beyond the cap incidents are kept but held back; one incident says how many, and ends with the last of them."""
    line = Timeline(Policy(models={"m": Named()}, per_hour=3))
    many = [attack(10 + i, f"p{i}") for i in range(40)]
    line.tick(*many)
    sent = [t for t in line.made if quiet.told(t)]
    alone = [t for t in sent if t.alert.subject.kind == "principal"]
    whole = [t for t in sent if tells_of_many(t.alert.subject)]
    assert [len(alone), len(line.open)] == [3, 41]
    assert [t.alert.evidence["suppressed"] for t in whole] == [1, 2, 4, 8, 16, 32]
    assert "suppressed 32" in whole[-1].alert.text
    kept = [a for a in line.open.values() if HELD_BACK in a.evidence]
    assert {a.evidence["told_by"] for a in kept} == {whole[0].alert.alert_id}
    line.tick(*(attack(7200 + i, f"p{i}", firing=False) for i in range(39)))
    assert any(tells_of_many(a.subject) for a in line.open.values())
    line.tick(attack(7300, "p39", firing=False))
    assert not line.open
    assert line.made[-1].alert.evidence["suppressed"] == 37


def test_a_thief_behind_decoys_is_told_as_soon_as_it_is_major() -> None:
    """Held back while minor like the decoys, it leaves the roll-up when it gets worse, and its end is told as well."""
    line = Timeline(Policy(models={"m": Named()}, per_hour=20))
    line.tick(*(attack(10 + i, f"decoy-{i}") for i in range(20)), attack(60, "thief"))
    assert not quiet.told(line.made[-1])
    assert line.made[-2].alert.evidence["suppressed"] == 1
    line.tick(attack(90, "thief", queries=5000, family=Family.EXTRACTION))
    line.tick(attack(100, "thief", queries=9000, family=Family.EXTRACTION), attack(7200, "thief", firing=False))
    sent = [t for t in line.made[22:] if quiet.told(t)]
    assert [(t.action.value, t.alert.subject.id, t.alert.severity.value) for t in sent] == [
        ("update", "thief", "major"), ("clear", "many principals", "minor"), ("update", "thief", "major"), ("clear", "thief", "major"),
    ]  # fmt: skip
    assert sent[1].alert.evidence["reason"] == "all of them are over or told by themselves"


def test_what_is_major_is_never_held_back_and_leaves_room_for_others() -> None:
    """However many there are, and they do not count as those that a flood may hide."""
    line = Timeline(Policy(models={"m": Named()}, per_hour=2))
    line.tick(*(attack(10 + i, f"p{i}", family=Family.EXTRACTION) for i in range(9)))
    line.tick(*(attack(50 + i, f"q{i}") for i in range(3)))
    assert [t.alert.subject.id for t in line.made if not quiet.told(t)] == ["q2"]


def test_a_roll_up_is_as_severe_as_the_worst_in_it() -> None:
    """Also when the worst comes between two powers of two, or gets worse later; what gets worse twice leaves it."""
    line = Timeline(Policy(models={"m": Named()}, per_hour=1))
    line.tick(*(attack(10 + i, f"p{i}", severity=Severity.WARNING) for i in range(3)))

    def whole() -> list[tuple[str, int]]:
        told = [t.alert for t in line.made if tells_of_many(t.alert.subject)]
        return [(a.severity.value, a.evidence["suppressed"]) for a in told]

    assert whole() == [("warning", 1), ("warning", 2)]
    line.tick(attack(20, "p1"))
    assert whole()[2:] == [("minor", 2)]
    line.tick(attack(30, "p1", family=Family.EXTRACTION))
    assert [t.alert.subject.id for t in line.made if t.alert.severity is Severity.MAJOR and quiet.told(t)] == ["p1"]
    assert len(whole()) == 3
    other = Timeline(Policy(models={"m": Named()}, per_hour=1))
    first = [attack(10 + i, f"p{i}", severity=Severity.WARNING) for i in range(3)]
    other.tick(*first, attack(20, "p3"))
    assert [t.alert.severity.value for t in other.made if tells_of_many(t.alert.subject)][-1] == "minor"


@pytest.mark.parametrize("own_first", [True, False])
def test_a_flood_of_segments_leaves_the_model_s_own_drift_alone(own_first: bool) -> None:
    """Both are about the same model and event; each is opened, changed and cleared by its own decisions only."""
    line = Timeline(Policy(models={"m": Named()}, per_hour=1))
    about = [Subject("segment", name) for name in "abc"]
    flood = [drift(20 + i, subject=s, evidence={"features": [{"name": "age"}]}) for i, s in enumerate(about)]
    line.tick(*([drift(10), *flood] if own_first else [*flood, drift(30)]))
    own = next(t.alert for t in line.made if t.alert.subject == Subject("model", "m"))
    whole = next(t.alert for t in line.made if t.alert.subject == Subject("component", "many segments"))
    assert (whole.resource, whole.evidence["segments"]) == ("model:m/component:many segments", ["b"])
    assert "many segments on m" in whole.text
    assert line.open[whole.alert_id].evidence["suppressed"] == 2
    line.tick(*(replace(d, time_us=at(50), firing=False) for d in flood))
    assert line.story[-1] == "clear FeatureDrift many segments"
    assert list(line.open.values()) == [own]
    line.tick(drift(60, firing=False))
    assert not line.open


def test_a_verdict_on_a_flood_is_none_on_the_model_s_own_incident() -> None:
    """A person who closes what tells of many callers has not seen what the model itself may do next."""
    line = People(Policy(models={"m": Named()}, per_hour=1))
    line.tick(*(traffic(10 + i, firing=True, subject=Subject("principal", f"p{i}")) for i in range(2)))
    line.settle(20, index=1)
    assert line.story[-1] == "clear TrafficAnomaly many principals"
    line.tick(traffic(30, firing=True))
    assert line.story[-1] == "open TrafficAnomaly m"


def test_a_detector_on_report_only_fails_aloud() -> None:
    """What is said about Lanner itself is no detection of that detector, and always sent."""
    line = Timeline(told=Told(demoted=frozenset({"self", "volume"})))
    broken = traffic(10, firing=True, event=Event.DETECTOR_FAILED, subject=Subject("detector", "volume"))
    line.tick(broken, replace(broken, event=Event.MONITOR_DEGRADED, detector="self"), traffic(20, firing=True))
    assert [quiet.told(t) for t in line.made] == [True, True, False]


@pytest.mark.parametrize("kind", ["principal", "cluster"])
@pytest.mark.parametrize("demoted", [True, False])
def test_what_is_held_back_hides_nothing_that_was_told(kind: str, demoted: bool) -> None:
    """An attack on report only, or one of a flood, absorbs no incident that sinks know of; once told itself, it does."""
    who = Subject(kind, "p1" if kind == "principal" else "c1")
    hidden = attack(30, subject=who, evidence={"principals": ["p1"], "queries": 100})
    told = frozenset({"queries"}) if demoted else frozenset()
    line = Timeline(Policy(models={"m": Named()}, per_hour=1), told=Told(demoted=told))
    line.tick(attack(10, "decoy"))
    abuse = attack(20, event=Event.ABUSE_SUSPECTED, detector="abuse")
    line.tick(abuse, hidden, attack(40, event=Event.ACCESS_ANOMALY, detector="access"))
    assert not quiet.told(next(t for t in line.made if t.alert.subject == who and t.alert.event is hidden.event))
    assert {a.event for a in line.open.values() if HELD_BACK not in a.evidence and a.subject.id == "p1"} == {
        Event.ABUSE_SUSPECTED, Event.ACCESS_ANOMALY,
    }  # fmt: skip
    line.told = Told()
    line.tick(replace(hidden, time_us=at(50), family=Family.EXTRACTION))
    assert {a.event for a in line.open.values() if "p1" in a.evidence["principals"]} == {Event.ATTACK_SUSPECTED}
    assert quiet.told(line.made[-1])


@pytest.mark.parametrize("demoted", [True, False])
def test_a_cluster_with_a_caller_that_was_told_is_told(demoted: bool) -> None:
    """The deciders speak of the cluster alone from then on: its member's incident could not end by itself."""
    line = Timeline(Policy(models={"m": Named()}, per_hour=1))
    line.tick(attack(10), attack(20, "decoy"), attack(30, "decoy 2"))
    line.told = Told(demoted=frozenset({"queries"}) if demoted else frozenset())
    line.tick(attack(40, subject=Subject("cluster", "c1"), evidence={"principals": ["p1", "p2"], "queries": 100}))
    last = [t for t in line.made if quiet.told(t) and t.time_us == at(40) and not tells_of_many(t.alert.subject)]
    told = [(t.action.value, t.alert.subject.id) for t in last]
    assert told == [("update", "c1"), ("clear", "p1")]
    assert {a.subject.id for a in line.open.values()} == {"decoy", "decoy 2", "c1", "many principals"}


def test_what_is_believed_is_told_though_nothing_else_changed() -> None:
    """A detector that is off report only, or another one that sees the same: sinks hear of the incident as it stands."""
    line = Timeline(told=Told(demoted=frozenset({"marginals"})))
    line.tick(drift(10), drift(20))
    assert [quiet.told(t) for t in line.made] == [False]
    line.told = Told()
    line.tick(drift(30), drift(40))
    assert [(t.action, quiet.told(t)) for t in line.made[1:]] == [(Action.UPDATE, True)]


def test_what_is_believed_again_is_told_at_once() -> None:
    """A decider may have nothing new to say for weeks: the incident as it stands is told with the next tick, once."""
    line = Timeline(told=Told(demoted=frozenset({"marginals"})))
    line.tick(drift(10), attack(20))
    for told in (line.told, Told(), Told()):
        line.take(lifecycle.believed(tuple(line.open.values()), line.counters, line.policy, told, at(30)))
    assert [(t.action, t.alert.event, quiet.told(t), t.time_us) for t in line.made[2:]] == [
        (Action.UPDATE, Event.FEATURE_DRIFT, True, at(30))
    ]


def test_only_detectors_can_be_on_report_only() -> None:
    """False alarms about Lanner itself silence neither it nor what it says of itself."""
    config = Config.model_validate({"models": {"m": {}}})
    counts = {name: {Said.FALSE: 100} for name in ("self", "volume", "registry")}
    assert set(_demoted(counts, config)) == {"volume"}


def test_the_next_hour_has_its_own_cap() -> None:
    """The cap is per hour, model and event."""
    line = Timeline(Policy(models={"m": Named()}, per_hour=1))
    line.tick(attack(10, "p1"), attack(20, "p2"), attack(20, "p3", event=Event.ACCESS_ANOMALY), attack(3700, "p4"))
    held = {t.alert.subject.id for t in line.made if not quiet.told(t)}
    assert held == {"p2"}


def test_a_demoted_detector_is_kept_but_not_sent() -> None:
    """Its incidents open, for the record, and no sink hears of them."""
    line = Timeline(told=Told(demoted=frozenset({"queries"})))
    line.tick(attack(10), attack(20, queries=5000), attack(30, firing=False), drift(40))
    assert [quiet.told(t) for t in line.made] == [False, False, False, True]


def test_what_comes_to_rest_on_another_detector_is_sent() -> None:
    """Report only holds back what its own detector says, and only as long as it is on report only."""
    line = Timeline(told=Told(demoted=frozenset({"queries"})))
    line.tick(attack(10), attack(20, queries=5000), attack(30, queries=20_000, detector="canaries"))
    assert [quiet.told(t) for t in line.made] == [False, False, True]


def test_cuts_change_nothing() -> None:
    """A flood, flapping and exceptions give the same transitions wherever ticks fall."""
    decisions: list[Decision] = []
    for i in range(300):
        decisions += [attack(i * 60, f"p{i % 70}", firing=i % 9 > 1, queries=i), traffic(i * 60, firing=i % 5 < 2)]
    told = Told([exemption(subject=Subject("principal", "p7"))], [maintenance(6000, 8000)])
    policy = Policy(models={"m": Named()}, per_hour=5)
    whole, cut = Timeline(policy, told=told), Timeline(policy, told=told)
    whole.tick(*decisions)
    for i in range(0, len(decisions), 7):
        cut.tick(*sorted(decisions, key=lambda d: d.time_us)[i : i + 7])
    assert [t.to_json() for t in cut.made] == [t.to_json() for t in whole.made]
    assert cut.counters == whole.counters


def test_quality_is_told_by_verdicts() -> None:
    """Precision counts benign-true as seen rightly; undetermined counts nowhere; rates are per model and week."""

    def judged(i: int, said: Said | None, seconds: float = 600.0) -> Judged:
        a = alert(f"p{i}", opened_us=at(i))
        return Judged(a, said, None if said is None else at(i + seconds), at(i + 60) if i < 2 else None)

    found = quality(
        [judged(1, Said.TRUE), judged(2, Said.BENIGN_TRUE), judged(3, Said.FALSE, 1200), judged(4, Said.UNDETERMINED),
         judged(5, None), Judged(alert("p1", opened_us=at(5000), alert_id="again"))],
        models=2, period_us=14 * 24 * HOUR_US,
    )  # fmt: skip
    (q,) = found
    assert (q.detector, q.incidents, q.per_model_week) == ("queries", 6, 1.5)
    assert q.verdicts == {"true": 1, "benign-true": 1, "false": 1, "undetermined": 1}
    assert q.precision == pytest.approx(2 / 3)
    assert q.benign_share == pytest.approx(1 / 3)
    assert (q.acknowledged_s, q.verdict_s) == (60.0, 600.0)
    assert q.reopened_share == 0.0  # the first of p1 has not ended


def test_a_reopened_problem_is_counted() -> None:
    """An incident within a day after the end of the one before counts; one of two days later does not."""
    ends = [alert("p1", opened_us=at(h * HOUR), cleared_us=at((h + 1) * HOUR), alert_id=str(h)) for h in (0, 5, 60)]
    (q,) = quality([Judged(a) for a in ends], 1, 7 * 24 * HOUR_US)
    assert q.reopened_share == pytest.approx(1 / 3)
