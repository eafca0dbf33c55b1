"""Incidents as timelines: decisions go in at their times, transitions come out."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from alerts import evidence, lifecycle, quiet
from alerts.base import Step
from alerts.policy import Named, Policy, policy
from alerts.quiet import Told
from alerts.text import LOOKALIKES, STEPS, TITLES
from monitor.config import Config
from monitor.model import Action, Alert, Decision, Event, Family, Severity, Subject, Transition
from tests.alerting import alert, at, attack, drift, missing, traffic

POLICY = Policy(models={"m": Named(owner="cards-ml", tier=2)})


@dataclass
class Timeline:
    """Steps one after the other, with what stays open and the counters carried over, as ticks do."""

    policy: Policy = POLICY
    open: dict[str, Alert] = field(default_factory=dict)
    counters: Mapping[str, Any] = field(default_factory=dict)
    made: list[Transition] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    told: Told = field(default_factory=Told)
    excepted: dict[str, int] = field(default_factory=dict)

    def tick(self, *decisions: Decision) -> Sequence[Transition]:
        return self.take(lifecycle.step(decisions, tuple(self.open.values()), self.counters, self.policy, self.told))

    def take(self, step: Step) -> Sequence[Transition]:
        for changed in step.alerts:
            self.open[changed.alert_id] = changed
            if not changed.open:
                del self.open[changed.alert_id]
        self.counters = step.counters
        self.made += step.transitions
        self.dropped += [reason for reason, n in step.dropped.items() for _ in range(n)]
        self.excepted.update(step.excepted)
        return step.transitions

    @property
    def story(self) -> list[str]:
        return [f"{t.action.value} {t.alert.event.value} {t.alert.subject.id}" for t in self.made]


def test_a_segment_that_says_nothing_of_its_own_joins_the_model() -> None:
    """When the model's drift names all that a segment's does, the segment's incident is absorbed; another feature stays."""
    line = Timeline()
    country, channel = Subject("segment", "country:QA"), Subject("segment", "channel:web")
    line.tick(replace(drift(1), subject=country, evidence={"features": [{"name": "amount", "share": 1.0}]}))
    line.tick(replace(drift(2), subject=channel, evidence={"features": [{"name": "age", "share": 1.0}]}))
    line.tick(replace(drift(3), evidence={"features": [{"name": "amount", "share": 1.0}]}))
    told = [(t.action, t.alert.subject.kind, t.alert.subject.id) for t in line.made]
    whole = line.made[2].alert
    assert told[2:] == [(Action.OPEN, "model", "m"), (Action.CLEAR, "segment", "country:QA")]
    assert line.made[3].alert.evidence["reason"] == "absorbed"
    assert line.made[3].alert.evidence["into"] == whole.alert_id
    assert whole.resource == "model:m"
    assert line.made[0].alert.resource == "model:m/segment:country:QA"


def test_a_weighed_decision_opens_and_clears_at_once() -> None:
    """budget() and fuse() weigh their evidence themselves, so one decision opens and one clears."""
    line = Timeline()
    line.tick(drift(10))
    line.tick(drift(20, firing=False))
    assert line.story == ["open FeatureDrift m", "clear FeatureDrift m"]
    assert [t.alert.seq for t in line.made] == [1, 2]
    assert line.made[1].alert.cleared_us == at(20)
    assert not line.open


def test_one_continuing_problem_is_one_alert() -> None:
    """A thousand decisions about the same problem are one alert and one transition."""
    line = Timeline()
    for second in range(1000):
        line.tick(drift(second))
    assert line.story == ["open FeatureDrift m"]
    assert line.dropped.count("unchanged") == 999


def test_a_problem_that_returns_is_a_new_alert() -> None:
    """After a clear the next decision opens an alert with another id."""
    line = Timeline()
    line.tick(drift(10), drift(20, firing=False), drift(30))
    first, _, second = line.made
    assert first.alert.alert_id != second.alert.alert_id


def test_a_problem_dated_like_the_one_before_is_a_new_alert_too() -> None:
    """Rules date a problem to its beginning: after a clock that went back, or years later, that may be the same again."""
    line = Timeline()
    for seconds in (700, 800, 86_400 * 30):
        line.tick(missing(600, statistic=float(seconds)), missing(seconds, firing=False, statistic=0.0))
        line.tick(drift(seconds), drift(seconds + 1, firing=False))
    silences = [t for t in line.made if t.alert.event is Event.DATA_MISSING and t.action is Action.OPEN]
    assert len({t.alert.alert_id for t in silences}) == 3
    assert [t.time_us - at(600) for t in silences] == [0, 1, 2]


def test_a_clear_is_never_dated_before_what_it_clears() -> None:
    """Also when the clock of the machine has gone back in between."""
    line = Timeline()
    line.tick(missing(600, statistic=700.0))
    line.tick(missing(300, firing=False, statistic=300.0))
    assert [t.time_us for t in line.made] == [at(600), at(600)]
    assert line.made[-1].alert.cleared_us == at(600)


def test_features_join_and_leave_by_update() -> None:
    """The incident of a model is updated when the set of its features changes, not when their shares do."""
    line = Timeline()
    line.tick(drift(10, evidence={"features": [{"name": "amount", "share": 0.8}]}))
    line.tick(drift(20, evidence={"features": [{"name": "amount", "share": 0.6}]}))
    line.tick(drift(30, evidence={"features": [{"name": "amount", "share": 0.5}, {"name": "age", "share": 0.4}]}))
    line.tick(drift(40, evidence={"features": [{"name": "age", "share": 1.0}]}))
    assert line.story == ["open FeatureDrift m", "update FeatureDrift m", "update FeatureDrift m"]


def test_queries_update_at_powers_of_two_since_opening() -> None:
    """An attack that goes on is updated when its queries since opening reach a power of two."""
    line = Timeline()
    for n in range(100, 1100):
        line.tick(attack(n, queries=n))
    since = [t.alert.evidence["queries"] - 100 for t in line.made[1:]]
    assert since == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


def test_a_family_that_can_be_named_raises_the_severity() -> None:
    """An attack nobody can name is minor; once it is extraction it is major, and never less again."""
    line = Timeline()
    line.tick(attack(10))
    line.tick(attack(20, family=Family.EXTRACTION))
    line.tick(attack(30, family=Family.ANOMALY))
    assert [t.alert.severity for t in line.made] == [Severity.MINOR, Severity.MAJOR, Severity.MAJOR]
    assert line.made[1].alert.techniques[0] == "AML.T0024.002"
    assert "Model extraction suspected" in line.made[1].alert.text


def test_an_attack_goes_quiet_by_update() -> None:
    """Quiet is a state of an open incident, told by one update."""
    line = Timeline()
    line.tick(attack(10), attack(90_000, evidence={"principals": ["p1"], "queries": 100, "quiet": True}))
    assert line.made[-1].action is Action.UPDATE
    assert line.made[-1].alert.quiet
    assert "quiet for 24 h" in line.made[-1].alert.text


def test_fixed_rules_open_after_two_of_three() -> None:
    """One window over the line opens nothing; two of three do."""
    line = Timeline(Policy(persistence={}))
    line.tick(traffic(1, firing=True))
    line.tick(traffic(2, firing=False))
    assert line.story == []
    line.tick(traffic(3, firing=True))
    assert line.story == ["open TrafficAnomaly m"]
    assert line.made[0].time_us == at(3)


def test_fixed_rules_clear_after_three_clean_windows_under_a_lower_line() -> None:
    """A window just under the line is not clean, so a series on the border does not flap."""
    line = Timeline(Policy(persistence={}))
    line.tick(traffic(1, firing=True), traffic(2, firing=True))
    line.tick(traffic(3, firing=False), traffic(4, firing=False), traffic(5, firing=False, statistic=9.0))
    assert line.story == ["open TrafficAnomaly m"]
    line.tick(traffic(6, firing=False), traffic(7, firing=False))
    assert line.story == ["open TrafficAnomaly m"]
    line.tick(traffic(8, firing=False))
    assert line.story == ["open TrafficAnomaly m", "clear TrafficAnomaly m"]


def test_a_borderline_series_flips_at_most_three_times() -> None:
    """A thousand evaluations around the line make at most three transitions, as alternating noise never clears it."""
    line = Timeline()
    rng = random.Random(7)
    for second in range(1000):
        statistic = rng.gauss(10.0, 0.5)
        line.tick(traffic(second, firing=statistic > 10, statistic=statistic))
    assert len(line.made) <= 3
    assert len({t.alert.alert_id for t in line.made}) == 1


def test_missing_data_opens_and_clears_at_once() -> None:
    """Its limit already is a time: no second evaluation is waited for."""
    line = Timeline()
    line.tick(missing(601))
    line.tick(missing(602, firing=False, statistic=0.0))
    assert line.story == ["open DataMissing m", "clear DataMissing m"]


def test_several_rules_hold_one_incident_open() -> None:
    """An incident clears only when the last of its rules has cleared."""
    line = Timeline()
    line.tick(*(traffic(s, firing=True, detector=d) for s in (1, 2) for d in ("volume", "callers")))
    line.tick(*(traffic(s, firing=False) for s in (3, 4, 5)))
    assert line.story == ["open TrafficAnomaly m"]
    assert "still_firing" in line.dropped
    line.tick(*(traffic(s, firing=False, detector="callers") for s in (6, 7, 8)))
    assert line.story[-1] == "clear TrafficAnomaly m"
    assert line.counters["slots"] == {}


def test_what_rests_on_nothing_more_ends_though_rules_held_it_open() -> None:
    """Of a rule whose memory is gone nothing more would come."""
    line = Timeline()
    line.tick(*(traffic(s, firing=True) for s in (1, 2)))
    gone = replace(traffic(3, firing=False), fixed_rule=False, statistic=None, threshold=None)
    line.tick(gone)
    assert line.dropped[-1] == "still_firing"
    (standing,) = line.open.values()
    line.take(lifecycle.end([standing], [standing], line.counters, line.policy, at(4), "new reference"))
    assert line.made[-1].alert.evidence["reason"] == "new reference"
    assert line.counters["slots"] == {}
    assert line.story == ["open TrafficAnomaly m", "clear TrafficAnomaly m"]


def test_what_only_a_detector_that_is_gone_held_open_ends() -> None:
    """What another rule or the weighing of evidence still holds stays; so does all where nothing is remembered."""
    line = Timeline()
    broken: dict[str, Any] = {"event": Event.DATA_QUALITY}
    line.tick(*(traffic(s, firing=True, detector=who, **broken) for s in (3, 4) for who in ("rules", "volume")))
    line.tick(attack(5), traffic(6, firing=True))
    line.tick(missing(600))
    standing = tuple(line.open.values())
    assert len(standing) == 4
    assert not lifecycle.retire({"volume"}, standing, {}, line.policy, at(700)).transitions
    assert not lifecycle.retire({"queries"}, [alert("p9")], line.counters, line.policy, at(700)).transitions
    line.take(lifecycle.retire({"volume"}, standing, line.counters, line.policy, at(700)))
    assert line.story[4:] == ["clear DataMissing m"]
    line.tick(*(traffic(s, firing=False, **broken) for s in (701, 702, 703)))  # the other rule's word is forgotten
    assert line.story[5:] == ["clear DataQuality m"]


def test_nothing_is_cleared_that_is_not_open() -> None:
    """A clear for a problem that is not open leads nowhere."""
    line = Timeline()
    line.tick(drift(10, firing=False))
    assert line.story == []
    assert line.dropped == ["not_open"]


def test_an_attack_absorbs_the_earlier_access_anomaly() -> None:
    """Access anomalies of a principal end in its attack incident, and later ones are added to it."""
    access: dict[str, Any] = {"event": Event.ACCESS_ANOMALY, "family": Family.ACCESS, "detector": "access"}
    line = Timeline()
    line.tick(attack(10, **access))
    line.tick(attack(20))
    line.tick(attack(30, **access))
    assert line.story == ["open AccessAnomaly p1", "open AttackSuspected p1", "clear AccessAnomaly p1"]
    assert line.made[2].alert.evidence["reason"] == "absorbed"
    assert line.made[2].alert.evidence["into"] == line.made[1].alert.alert_id
    (home,) = line.open.values()
    assert [e["event"] for e in home.evidence["also"]] == ["AccessAnomaly"]
    line.tick(attack(40, queries=500))
    assert [e["event"] for e in line.made[-1].alert.evidence["also"]] == ["AccessAnomaly"]


def test_an_attack_that_is_milder_absorbs_nothing_worse() -> None:
    """What pages somebody does not end in what pages nobody; it does once the attack is as severe."""
    line = Timeline(Policy(models={"m": Named(tier=1)}))
    abuse = attack(10, event=Event.ABUSE_SUSPECTED, family=Family.ABUSE, detector="abuse")
    line.tick(abuse, attack(20, severity=Severity.MINOR), replace(abuse, time_us=at(25)))
    assert [(a.event, a.severity) for a in line.open.values()] == [
        (Event.ABUSE_SUSPECTED, Severity.MAJOR), (Event.ATTACK_SUSPECTED, Severity.MINOR),
    ]  # fmt: skip
    line.tick(attack(30, queries=5000, severity=Severity.MAJOR))
    assert [(a.event, a.severity) for a in line.open.values()] == [(Event.ATTACK_SUSPECTED, Severity.MAJOR)]


def test_a_cluster_absorbs_its_principals() -> None:
    """Members' own incidents are absorbed when the cluster opens or grows, and open no more."""

    def cluster(seconds: float, *members: str) -> Decision:
        return attack(seconds, subject=Subject("cluster", "c1"), evidence={"principals": list(members), "queries": 100})

    line = Timeline()
    line.tick(attack(10, "p1"), attack(11, "p3"))
    line.tick(cluster(20, "p1", "p2"))
    line.tick(attack(30, "p2"))
    line.tick(cluster(40, "p1", "p2", "p3"))
    assert line.story == [
        "open AttackSuspected p1", "open AttackSuspected p3", "open AttackSuspected c1", "clear AttackSuspected p1",
        "update AttackSuspected c1", "clear AttackSuspected p3",
    ]  # fmt: skip
    assert "in_cluster" in line.dropped


@pytest.mark.parametrize("seed", range(5))
def test_results_do_not_depend_on_where_ticks_fall(seed: int) -> None:
    """The same decisions cut into ticks at random places make the same transitions, byte for byte."""
    rng = random.Random(seed)
    decisions: list[Decision] = []
    for second in range(200):
        kind = rng.choice(["drift", "attack", "traffic", "missing"])
        firing = rng.random() < 0.6
        if kind == "drift":
            names = rng.sample(["a", "b", "c"], rng.randint(1, 2))
            decisions.append(
                drift(second, firing=firing, evidence={"features": [{"name": n, "share": 0.5} for n in names]})
            )
        elif kind == "attack":
            decisions.append(attack(second, rng.choice(["p1", "p2"]), firing=firing, queries=second))
        elif kind == "traffic":
            decisions.append(traffic(second, firing=firing))
        else:
            decisions.append(missing(second, firing=firing))
    whole, cut = Timeline(), Timeline()
    whole.tick(*rng.sample(decisions, len(decisions)))
    at_once = 0
    while at_once < len(decisions):
        size = rng.randint(1, 9)
        cut.tick(*decisions[at_once : at_once + size])
        at_once += size
    assert [t.to_json() for t in cut.made] == [t.to_json() for t in whole.made]
    assert cut.counters == whole.counters


@pytest.mark.parametrize("event", list(Event))
def test_every_event_has_words_and_a_severity(event: Event) -> None:
    """No event of the closed set can come without title, look-alikes, first steps and severity."""
    assert TITLES[event]
    assert LOOKALIKES[event]
    assert STEPS[event]
    line = Timeline()
    line.tick(drift(1, event=event))
    (made,) = line.made
    lines = made.alert.text.splitlines()
    assert len(lines) <= 6
    assert all(len(text) <= 240 for text in lines)
    assert lines[0].startswith(f"[{made.alert.severity.value.upper()}] ")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(models={"m": Named(tier=1)}), Severity.MAJOR),
        (Policy(models={"m": Named(tier=3)}), Severity.WARNING),
        (Policy(severities={("m", "marginals"): Severity.CRITICAL}), Severity.CRITICAL),
    ],
)
def test_tier_and_configuration_decide_severity(policy: Policy, expected: Severity) -> None:
    """A drift of a tier-1 model is a step worse, of a tier-3 model a step milder; the monitor's own word wins."""
    line = Timeline(policy)
    line.tick(drift(1))
    assert line.made[0].alert.severity is expected


def policy_of(**severity: Any) -> Policy:
    """What `alerting.severity` of a configuration makes of a model of tier 2."""
    return policy(Config.model_validate({"models": {"m": {}}, "alerting": {"severity": severity}}))


@pytest.mark.parametrize(
    ("rules", "decision", "expected"),
    [
        ({"events": {"FeatureDrift": "warning"}}, drift(1), Severity.WARNING),
        ({"families": {"drift": "major"}, "events": {"FeatureDrift": "warning"}}, drift(1), Severity.MAJOR),
        ({"tiers": [0, 2, 0]}, drift(1), Severity.CRITICAL),
        ({"tiers": [0, 3, 0]}, drift(1, event=Event.DISTRIBUTION_BREAK), Severity.WARNING),
        ({}, attack(1), Severity.MINOR),  # nobody can name it
        ({"families": {"anomaly": "critical"}}, attack(1), Severity.CRITICAL),
        ({}, attack(1, threshold=14.0), Severity.MINOR),
        ({}, attack(1, threshold=0.1), Severity.MAJOR),  # e^14 is more than a million times above e^0.1
        ({"evidence": 0}, attack(1, threshold=0.1), Severity.MINOR),
        ({"evidence": 10}, attack(1, threshold=11.0), Severity.MAJOR),
        ({}, drift(1, threshold=-20.0), Severity.MINOR),  # for drift, evidence says how sure it is and not how bad
    ],
)  # fmt: skip
def test_severity_is_policy(rules: dict[str, Any], decision: Decision, expected: Severity) -> None:
    """Family or event say where it begins; tier and evidence far above the level move it; all of it is configured."""
    line = Timeline(policy_of(**rules))
    line.tick(decision)
    assert line.made[0].alert.severity is expected


def test_a_drift_that_lasts_gets_worse_once() -> None:
    """A day after its opening, dated to that moment, by one update that says why; a restart does not repeat it."""
    line = Timeline()
    line.tick(drift(0))
    for hour in range(100):
        open_now = tuple(line.open.values())
        assert (lifecycle.lasting_from(open_now, line.policy) is None) == (hour > 24)
        line.take(lifecycle.lasting(open_now, line.counters, line.policy, at(3600 * hour)))
        line.tick(drift(3600 * hour))
    assert [(t.action.value, t.alert.severity.value, t.time_us) for t in line.made] == [
        ("open", "minor", at(0)), ("update", "major", at(86_400)),
    ]  # fmt: skip
    assert "more severe because it lasts" in line.made[1].alert.text


def lasting_flood(tier: int) -> tuple[Timeline, list[tuple[str, str, str]]]:
    """Drift of the segments a to d, one a minute, of which a flood hides all but the first; what happens a day later."""
    line = Timeline(Policy(models={"m": Named(tier=tier)}, per_hour=1))
    line.tick(*(drift(60 * i, subject=Subject("segment", s), evidence={}) for i, s in enumerate("abcd")))
    before = len(line.made)
    for minutes in (1440.5, 1441.5, 3000):  # a; then b with what tells of the flood; then c and d
        line.take(lifecycle.lasting(tuple(line.open.values()), line.counters, line.policy, at(60 * minutes)))
    assert lifecycle.lasting_from(line.open.values(), line.policy) is None
    made = line.made[before:]
    assert [t.time_us for t in made] == sorted(t.time_us for t in made)
    return line, [(t.action.value, t.alert.subject.id, t.alert.severity.value) for t in made]


def test_a_flood_that_lasts_is_told_one_by_one() -> None:
    """What gets major leaves what tells of the flood, which ends with the last of them and is not heard of again."""
    line, told = lasting_flood(tier=2)
    assert told == [
        ("update", "a", "major"), ("update", "b", "major"), ("update", "c", "major"), ("update", "d", "major"),
        ("clear", "many segments", "minor"),
    ]  # fmt: skip
    assert {a.subject.id for a in line.open.values()} == set("abcd")
    assert all(quiet.told(t) for t in line.made[-5:])


def test_a_flood_that_lasts_is_as_severe_as_the_worst_in_it() -> None:
    """It takes no step of its own beside those of its parts."""
    line, told = lasting_flood(tier=3)
    assert told == [
        ("update", "a", "minor"), ("update", "b", "minor"), ("update", "many segments", "minor"), ("update", "c", "minor"),
        ("update", "d", "minor"),
    ]  # fmt: skip
    assert len(line.open) == 5


def test_an_attack_gets_worse_while_evidence_keeps_coming() -> None:
    """Not by standing open: a caller that has stopped is quiet after a day, and that is no reason for alarm."""
    line = Timeline()
    line.tick(attack(0))
    line.take(lifecycle.lasting(tuple(line.open.values()), line.counters, line.policy, at(10 * 86_400)))
    line.tick(attack(90_000, evidence={"principals": ["p1"], "queries": 100, "quiet": True}))
    assert [t.alert.severity for t in line.made] == [Severity.MINOR] * 2
    line.tick(attack(100_000, queries=5000))
    assert [t.alert.severity.value for t in line.made] == ["minor", "minor", "major"]
    line.tick(attack(110_000, queries=50_000, log_e=40.0, threshold=14.0))
    assert line.made[-1].alert.severity is Severity.CRITICAL
    assert line.made[-1].alert.evidence["raised"] == ["evidence", "lasting"]


def test_the_level_is_remembered_for_later_evidence() -> None:
    """An update says no level; what it exceeds is the one that the incident opened at."""
    line = Timeline()
    line.tick(attack(0, threshold=14.0))
    line.tick(attack(10, queries=5000, log_e=40.0))
    assert [t.alert.severity.value for t in line.made] == ["minor", "major"]
    assert line.made[1].alert.threshold == 14.0


def test_a_silence_in_one_piece_is_told_as_in_many() -> None:
    """A gap found after the fact opens, gets worse and ends as the clock would have told it."""
    whole, ticking = Timeline(), Timeline()
    whole.tick(missing(600, statistic=200_000.0))
    for second in range(600, 200_001, 600):
        ticking.tick(missing(600, statistic=float(second)))
    for line in (whole, ticking):
        line.tick(missing(200_000, firing=False, statistic=0.0))
    steps = [[(t.action.value, t.alert.severity.value, t.time_us) for t in line.made] for line in (whole, ticking)]
    assert steps[0] == steps[1]
    assert [s[:2] for s in steps[0]] == [("open", "major"), ("update", "critical"), ("clear", "critical")]


def test_the_word_of_a_monitor_is_final() -> None:
    """A severity that stands at the monitor takes no step, however long or strong."""
    line = Timeline(Policy(severities={("m", "marginals"): Severity.WARNING, ("m", "queries"): Severity.MINOR}))
    line.tick(drift(0), attack(0, threshold=1.0))
    line.take(lifecycle.lasting(tuple(line.open.values()), line.counters, line.policy, at(1e6)))
    line.tick(attack(90_000, queries=9999, threshold=1.0))
    assert {t.alert.severity.value for t in line.made} == {"warning", "minor"}
    assert not any("more severe" in t.alert.text for t in line.made)


def test_evidence_is_made_ready_for_json() -> None:
    """NaN, sets, tuples, NUL and endless lists never reach a store or a sink."""
    import numpy as np

    value = evidence.clean({"nan": float("nan"), "np": np.float64(2.5), "t": (1, {2}), "s": "a\x00", "l": range(5000)})
    assert value["nan"] is None
    assert value["np"] == 2.5
    assert value["t"] == [1, [2]]
    assert value["s"] == "a\\x00"
    assert len(value["l"]) == evidence.EVIDENCE_ITEMS


def test_input_is_left_as_it_was() -> None:
    """step() is pure: counters and alerts that went in are not changed."""
    counters: dict[str, Any] = {}
    first = lifecycle.step([traffic(1, firing=True)], (), counters, POLICY)
    assert counters == {}
    before = repr(first.counters)
    lifecycle.step([traffic(2, firing=True)], (), first.counters, POLICY)
    assert repr(first.counters) == before
