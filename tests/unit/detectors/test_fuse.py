"""fuse(): the same as adding up event by event, dated to the event, bounded, and indifferent to cuts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from detectors import aged, decide
from detectors.base import Evidence, State
from detectors.decide.fuse import ATTACK, CLEAR_US, QUIET_US
from detectors.decide.principals import Ledger
from detectors.signals import bernoulli_bets
from monitor.model import HOUR_US, SECOND_US, Event, Family, Severity, Subject
from tests.fusing import LEVEL, Log, evidence


def slowly(flag: Sequence[bool]) -> tuple[int | None, int]:
    """The first event at which plain addition reaches the level, and the event its evidence began with."""
    bets = bernoulli_bets(np.array(flag, dtype=bool), 0.01)
    sums, since = np.zeros(bets.shape[1]), np.zeros(bets.shape[1], dtype=int)
    for i, row in enumerate(bets):
        since = np.where(sums <= 0, i, since)
        sums = np.maximum(sums, 0) + row
        if math.log(np.exp(np.maximum(sums, 0)).mean()) >= math.log(LEVEL.level / ATTACK.share):
            return i, int(since[int(np.argmax(sums))])
    return None, 0


@pytest.mark.parametrize("seed", range(8))
def test_same_as_adding_up_event_by_event(seed: int) -> None:
    """Opening event and onset agree with a loop that anybody can read, for several clients at once and any cut."""
    rng = np.random.default_rng(seed)
    clients = [f"c{i}" for i in range(5)]
    who = [clients[i] for i in rng.integers(5, size=600)]
    share = {c: rng.choice([0.0, 0.02, 0.1, 0.3, 0.8]) for c in clients}
    flag = [bool(rng.random() < share[w]) for w in who]
    log = Log()
    places = [0, *sorted(rng.integers(0, 601, 5).tolist()), 600]
    for a, b in itertools.pairwise(places):
        if b > a:
            log(evidence(who[a:b], flag[a:b], first_row=a))
    opened = {d.subject.id: d for d in reversed(log.decisions)}
    for c in clients:
        own = [i for i, w in enumerate(who) if w == c]
        at, since = slowly([flag[i] for i in own])
        assert (c in opened) == (at is not None)
        if at is not None:
            d = opened[c]
            assert d.window_us == (own[since] * SECOND_US, own[at] * SECOND_US)
            assert d.evidence["queries"] == at - since + 1


def test_callers_set_aside_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether callers lie among those of late or with the silent changes no decision, those about clusters included."""
    decided = []
    for least in (aged.LEAST, 0):
        monkeypatch.setattr(aged, "LEAST", least)
        rng, log = np.random.default_rng(3), Log()
        for k in range(60):
            who = [f"c{i}" for i in rng.integers(12, size=6)]
            some = tied(who, [f"c{i}" for i in rng.integers(3, size=6)], first_row=6 * k)
            flag = np.array([int(w[1:]) < 4 or rng.random() < 0.01 for w in who])
            log(replace(some, flag=flag, log_e=bernoulli_bets(flag, 0.01)))
        decided.append([(d.time_us, d.subject, d.statistic, d.evidence) for d in log.decisions])
    assert decided[0] == decided[1]
    assert {s.kind for _, s, _, _ in decided[0]} == {"principal", "cluster"}


def test_five_flags_in_a_row_alarm_and_four_do_not() -> None:
    """The level of a million events is 13.8 nats, of which this lane may use 0.6: 14.3; a flag that comes once in a hundred events brings up to 4.6."""
    log = Log()
    log(evidence(["a"] * 3, [True] * 3))
    assert log.decisions == []
    (opened,) = log(evidence(["a"] * 7, [True] * 7, first_row=3))[:1]
    assert opened.time_us == 3 * SECOND_US
    assert opened.subject.id == "a"
    assert opened.threshold == pytest.approx(math.log(1e6 / 0.6), rel=1e-4)
    assert opened.evidence["principals"] == ["a"]
    assert [e["row"] for e in opened.evidence["examples"]] == [0, 1, 2, 3]


def test_what_gauges_say_of_a_caller_stands_in_its_incident() -> None:
    """The newest reading before each decision is told, also one from before the first flag; of others' nothing."""
    log = Log()
    calm = evidence(["a", "b"] * 3, [False] * 6)
    read = {
        0: {"exposure": {"kappa": 0.2, "distinct_rows": 64}},
        1: {"exposure": {"kappa": 0.9, "distinct_rows": 9000}},
    }
    log(replace(calm, readings=read))
    later = {2: {"exposure": {"kappa": 0.3, "distinct_rows": 128}, "unlike_itself": {"rows": 100, "mmd2": 0.1}}}
    log(replace(evidence(["a"] * 12, [True] * 12, first_row=6), readings=later))
    told = [d.evidence["exposure"]["kappa"] for d in log.decisions]
    assert told[0] == 0.3
    assert set(told) == {0.3}
    assert log.decisions[-1].evidence["unlike_itself"] == {"rows": 100, "mmd2": 0.1}
    other = Log()
    other(replace(calm, readings=read))
    other(evidence(["a"] * 12, [True] * 12, first_row=6))
    assert other.decisions[0].evidence["exposure"]["kappa"] == 0.2


def test_honest_history_does_not_hide_an_attack() -> None:
    """A thousand clean events before it delay the alarm by not a single query."""
    log = Log()
    log(evidence(["a"] * 1000, [False] * 1000))
    found = log(evidence(["a"] * 10, [True] * 10, first_row=1000))
    assert found[0].time_us == 1003 * SECOND_US
    assert found[0].window_us[0] == 1000 * SECOND_US


def test_updates_come_at_powers_of_two() -> None:
    """1, 2, 4, 8 ... queries after the opening, each dated to its own event."""
    log = Log()
    log(evidence(["a"] * 104, [True] * 104))
    assert [d.time_us // SECOND_US for d in log.decisions] == [3, 4, 5, 7, 11, 19, 35, 67]
    assert [d.evidence["queries"] for d in log.decisions] == [4, 5, 6, 8, 12, 20, 36, 68]


def test_quiet_after_a_day_and_over_after_a_week() -> None:
    """Both are dated to their own moment, however late other traffic shows that it has passed."""
    for stretches in (1, 3):
        log = Log()
        log(evidence(["a"] * 5, [True] * 5))
        last = 4 * SECOND_US
        others = [10 * HOUR_US, 30 * HOUR_US, 40 * HOUR_US, 8 * 24 * HOUR_US]
        if stretches == 1:
            log(evidence(["b"] * 4, [False] * 4, others))
        else:
            for t in others:
                log(evidence(["b"], [False], [t]))
        quiet, over = log.decisions[-2:]
        assert (quiet.time_us, quiet.firing, quiet.evidence["quiet"]) == (last + QUIET_US, True, True)
        assert (over.time_us, over.firing) == (last + CLEAR_US, False)
        assert log.open == {}


def test_a_flag_wakes_a_quiet_incident() -> None:
    """New evidence after the day of silence makes it active again at once."""
    log = Log()
    log(evidence(["a"] * 5, [True] * 5))
    found = log(evidence(["a", "a"], [False, True], [30 * HOUR_US, 31 * HOUR_US]))
    assert [(d.time_us, d.evidence["quiet"]) for d in found] == [
        (4 * SECOND_US + QUIET_US, True),
        (30 * HOUR_US, True),  # the second query since opening
        (31 * HOUR_US, False),
    ]


def test_after_the_end_evidence_starts_afresh() -> None:
    """A principal that comes back after a week, or whose incident a person closed, is judged from nothing."""
    for closed in (False, True):
        log = Log()
        log(evidence(["a"] * 5, [True] * 5))
        if closed:
            log.open.clear()
        back = 9 * 24 * HOUR_US
        found = log(evidence(["a"] * 5, [True] * 5, [back + i for i in range(5)]))
        reopened = [d for d in found if d.firing and d.time_us >= back]
        assert reopened[0].time_us == back + 3


def test_an_incident_of_something_else_is_not_a_caller_s_of_that_name() -> None:
    """A caller may call itself anything: after a verdict it is judged from nothing, whatever else is open."""
    log = Log()
    log(evidence(["principals"] * 5, [True] * 5))
    log.open["flood"] = replace(log.open.pop("principals"), subject=Subject("component", "principals"))
    found = log(evidence(["principals"] * 4, [True] * 4, first_row=10))
    assert [(d.time_us, d.evidence["queries"]) for d in found] == [(13 * SECOND_US, 4)]


def test_two_detectors_do_not_count_one_flag_twice() -> None:
    """The same evidence from two dependent detectors weighs no more than from one."""
    flag = [True] * 6
    one, two = Log(), Log()
    one(evidence(["a"] * 6, flag))
    two(evidence(["a"] * 6, flag), evidence(["a"] * 6, flag, detector="copy"))
    assert one.decisions[0].time_us == two.decisions[0].time_us
    assert one.decisions[0].log_e == pytest.approx(two.decisions[0].log_e)
    assert [d["name"].split("/")[0] for d in two.decisions[0].evidence["detectors"]] == ["copy", "queries"]


def remembered(log: Log) -> int:
    """Callers in the state, those of late and the old ones."""
    assert log.state is not None
    lane = log.state.meta["lanes"]["AttackSuspected"]
    return len(lane["ids"]) + len(lane["old_ids"])


def test_a_flood_of_principals_clears_no_guilt() -> None:
    """With room for 100 principals, 5,000 newcomers do not wash away what three flags said about one."""
    log = Log(decide.FuseSettings(1e6, max_principals=100))
    log(evidence(["a"] * 3, [True] * 3))
    for k in range(5):
        log(evidence([f"n{k}-{i}" for i in range(1000)], [False] * 1000, first_row=3 + k * 1000))
    assert log.state is not None
    assert remembered(log) <= 100 + Ledger.step(100)
    assert log.state.meta["lanes"]["AttackSuspected"]["dropped"] == 0
    found = log(evidence(["a"], [True], first_row=5003))
    assert [d.subject.id for d in found] == ["a"]
    assert found[0].window_us[0] == 0


def test_guilt_that_finds_no_room_is_counted() -> None:
    """When even principals with evidence do not fit, the weakest go and the state says how many."""
    log = Log(decide.FuseSettings(1e6, max_principals=50))
    n = 13 * Ledger.step(50)
    log(evidence([f"n{i}" for i in range(n)], [True] * n))
    assert log.state is not None
    assert remembered(log) == 50
    assert log.state.meta["lanes"]["AttackSuspected"]["dropped"] == n - 50


@pytest.mark.parametrize("seed", range(4))
def test_who_is_forgotten_does_not_depend_on_where_the_log_is_cut(seed: int) -> None:
    """With room for 30 of 300 flagged callers: the same incidents, the same callers remembered, however it is cut."""
    rng = np.random.default_rng(seed)
    n, ends = 3_000, []
    who = [f"c{i}" for i in rng.zipf(1.3, n).clip(1, 300)]
    share = {w: rng.choice([0.0, 0.1, 0.4]) for w in sorted(set(who))}
    flag = [bool(rng.random() < share[w]) for w in who]
    for cuts in (0, 1, 40):
        log = Log(decide.FuseSettings(1e5, max_principals=30))
        for a, b in itertools.pairwise([0, *sorted(rng.integers(1, n, cuts).tolist()), n]):
            if b > a:
                log(evidence(who[a:b], flag[a:b], first_row=a))
        assert log.state is not None
        lane = log.state.meta["lanes"]["AttackSuspected"]
        kept = Ledger.load(lane, log.state.arrays, "AttackSuspected/")
        against = {p: s.tolist() for p in sorted(set(who)) if (s := kept.sums_of(p)) is not None and s.max() > 0}
        told = [(d.time_us, d.subject.id, d.log_e, d.firing, d.evidence) for d in log.decisions]
        ends.append((told, against, lane["dropped"], lane["votes"], lane["examples"]))
    assert ends[0][2] > 0
    assert ends[1] == ends[0]
    assert ends[2] == ends[0]


def test_false_alarms_stay_under_the_level() -> None:
    """Clients that flag exactly at the tolerated rate: at most one alarm in `level` events on average."""
    rng = np.random.default_rng(1)
    settings = decide.FuseSettings(2000.0)
    alarms = 0
    for k in range(20):
        log = Log(settings)
        n = 20_000
        log(evidence([f"c{i}" for i in rng.integers(20, size=n)], (rng.random(n) < 0.01).tolist(), first_row=k * n))
        alarms += len({d.subject.id for d in log.decisions})
    assert alarms <= 20 * 20_000 / settings.level


def tied(who: Sequence[str], others: Sequence[str], first_row: int = 0) -> Evidence:
    """Flagged events, each of which belongs with a row of another caller."""
    found = evidence(who, [True] * len(who), first_row=first_row)
    names = tuple(dict.fromkeys([*found.principals, *others]))
    links = np.array([(i, names.index(o), 0) for i, o in enumerate(others)], dtype=np.int64).reshape(-1, 3)
    return replace(found, principals=names, links=links)


def test_callers_that_share_a_search_are_one_incident() -> None:
    """Two callers in turns: one cluster with both, whose id does not depend on how the log was cut."""
    who, others = ["a", "b"] * 8, ["b", "a"] * 8
    whole, parts = Log(), Log()
    whole(tied(who, others))
    for k in range(0, 16, 4):
        parts(tied(who[k : k + 4], others[k : k + 4], first_row=k))
    assert {d.subject.kind for d in whole.decisions} == {"cluster"}
    assert len(whole.open) == 1
    assert whole.decisions[-1].evidence["principals"] == ["a", "b"]
    assert [(d.time_us, d.subject) for d in parts.decisions] == [(d.time_us, d.subject) for d in whole.decisions]


def test_what_a_cluster_was_answered_is_added_up() -> None:
    """Of its members the one with most tells kappa; their rows together are told as so many at most, of so many members."""
    log = Log()
    read = {
        0: {"exposure": {"kappa": 0.2, "distinct_rows": 64}, "unlike_itself": {"rows": 100, "mmd2": 0.1}},
        1: {"exposure": {"kappa": 0.5, "distinct_rows": 128}},
    }
    log(replace(tied(["a", "b"] * 8, ["b", "a"] * 8), readings=read))
    log(evidence(["c"] * 6, [True] * 6, first_row=16))
    assert log.decisions[-1].evidence.keys().isdisjoint({"exposure", "unlike_itself"})
    told = log(tied(["c"] * 4, ["a"] * 4, first_row=22))[-1].evidence
    assert told["principals"] == ["a", "b", "c"]
    assert told["exposure"] == {"kappa": 0.5, "distinct_rows": 192, "callers": 2}
    assert told["unlike_itself"] == {"rows": 100, "mmd2": 0.1}


def test_a_third_caller_joins_the_cluster() -> None:
    """The cluster keeps its id; the newcomer's own incident moves into it."""
    log = Log()
    log(tied(["a", "b"] * 8, ["b", "a"] * 8))
    (cluster,) = log.open
    log(evidence(["c"] * 6, [True] * 6, first_row=16))
    assert set(log.open) == {cluster, "c"}
    found = log(tied(["c"] * 4, ["a"] * 4, first_row=22))
    assert found[-1].subject.id == cluster
    assert found[-1].evidence["principals"] == ["a", "b", "c"]


def test_a_cluster_that_ended_falls_apart_for_all_its_members() -> None:
    """After a silent week each former member stands for itself, and wherever the log is cut the same is decided."""
    week = 8 * 24 * HOUR_US
    who, others = ["a", "b"] * 8, ["b", "a"] * 8
    back = evidence(["b", "a"] * 6, [True] * 12, [week + i * SECOND_US for i in range(12)], first_row=16)
    both = tied(who, others)
    rows = np.concatenate([both.row, back.row + 16])
    joined = replace(
        both, code=np.concatenate([both.code, back.code]), row=rows, time_us=np.concatenate([both.time_us, back.time_us]),
        log_e=np.concatenate([both.log_e, back.log_e]), flag=np.concatenate([both.flag, back.flag]),
        details={int(r): {"signals": ["near"], "row": int(r)} for r in rows},
    )  # fmt: skip
    whole, parts = Log(), Log()
    whole(joined)
    parts(both)
    parts(replace(back, details={int(i): {"signals": ["near"], "row": int(i) + 16} for i in back.row}))
    assert [(d.time_us, d.subject, d.firing) for d in whole.decisions] == [
        (d.time_us, d.subject, d.firing) for d in parts.decisions
    ]
    assert [a.subject for a in whole.open.values()] == [Subject("principal", "b"), Subject("principal", "a")]


def test_two_links_are_chance() -> None:
    """Callers that met twice stay apart."""
    log = Log()
    log(tied(["a", "b"], ["b", "a"]), evidence(["z"], [False], first_row=2))
    log(evidence(["a"] * 6, [True] * 6, first_row=3))
    assert set(log.open) == {"a"}


def by_rows(who: Sequence[str], others: Sequence[str], first_row: int, *, shared: bool) -> Evidence:
    """Flagged events tied by rows: the signal that ties them says something against each caller, or nothing beyond chance."""
    found = tied(who, others, first_row)
    bets = bernoulli_bets(found.flag, 0.01)
    both = np.concatenate([bets, bets if shared else -np.abs(bets)], axis=1)
    links = np.array([[r, o, bets.shape[1] + 1] for r, o, _ in found.links]) if found.links is not None else None
    columns = tuple(f"{s}/{k}" for s in ("near", "shared") for k in range(bets.shape[1]))
    return replace(found, log_e=both, columns=columns, links=links)


@pytest.mark.parametrize("shared", [True, False])
def test_rows_tie_strangers_only_beyond_chance(*, shared: bool) -> None:
    """In a table of few possible rows two unrelated searches come near each other: they stay two incidents."""
    log = Log()
    log(by_rows(["a", "b"] * 12, ["b", "a"] * 12, 0, shared=shared))
    assert {s.kind for s in (a.subject for a in log.open.values())} == ({"cluster"} if shared else {"principal"})
    assert len(log.open) == (1 if shared else 2)


def test_families_make_incidents_of_their_own() -> None:
    """Access evidence opens an AccessAnomaly and adds nothing to the suspicion of an attack."""
    log = Log()
    log(replace(evidence(["a"] * 6, [True] * 6, detector="access"), family=Family.ACCESS))
    assert {d.event for d in log.decisions} == {Event.ACCESS_ANOMALY}
    assert log.decisions[0].family is Family.ACCESS


def test_who_is_only_unlike_its_peers_is_a_warning() -> None:
    """A new caller that is judged beside peers pages nobody, until it is unlike a past of its own."""
    log = Log()
    first = replace(evidence(["a"] * 6, [True] * 6, detector="access"), family=Family.ACCESS)
    log(replace(first, young=np.ones(6, dtype=bool)))
    assert {d.severity for d in log.decisions} == {Severity.WARNING}
    later = replace(evidence(["a"] * 6, [True] * 6, detector="access", first_row=6), family=Family.ACCESS)
    log(replace(later, young=np.zeros(6, dtype=bool)))
    assert log.decisions[-1].severity is None


def test_what_gauges_of_habits_say_is_told_in_the_attack_incident_too() -> None:
    """Evidence of access adds nothing to an attack, but its readings are shown there."""
    log = Log()
    quiet = evidence(["a"], [False], [0], detector="access")
    log(
        replace(quiet, family=Family.ACCESS, readings={0: {"absence": {"hours_of_others": 30}}}),
        evidence(["b"], [False]),
    )
    log(evidence(["a"] * 6, [True] * 6, first_row=1))
    assert {d.event for d in log.decisions} == {Event.ATTACK_SUSPECTED}
    assert log.decisions[0].evidence["absence"] == {"hours_of_others": 30}


def test_nothing_to_decide() -> None:
    """No evidence, no decision, and a state all the same."""
    log = Log()
    assert log() == []
    assert log(evidence([], [])) == []


def test_the_order_of_births_survives_a_round_trip() -> None:
    """Which of two clusters is older does not depend on how their ids sort."""
    ledger = Ledger.load(None, {}, "")
    ledger.groups = {"z": ["a", "b"], "c": ["d", "e"]}
    meta, arrays = ledger.save("x/")
    again = State.from_bytes(State("fuse", 1, "", {"lane": meta}, arrays).to_bytes())
    assert list(Ledger.load(again.meta["lane"], again.arrays, "x/").groups) == ["z", "c"]
