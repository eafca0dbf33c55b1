"""Searches over a model alarm within some dozens of queries; honest clients of the hard kinds do not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from detectors import constraints, signals
from detectors.aged import Ids, Part
from detectors.anomaly.learnt import Learnt
from detectors.anomaly.queries import Queries
from detectors.base import Calibration
from detectors.chains import fitted
from detectors.constraints import Constraints
from detectors.profile import Bins
from detectors.signals import Encoder, Frame
from monitor.errors import CalibrationRefused
from monitor.model import HOUR_US, SECOND_US
from tests.judging import CATEGORICAL, NUMERIC, Court, Rng, Rows, as_log, bins_of, events, numbers, sent

Matrix = np.ndarray[Any, np.dtype[np.float64]]


@functools.cache
def calibration() -> Calibration:
    """Three thousand honest events."""
    table = events(3000, np.random.default_rng(1))
    return Queries().calibrate([Rows("m", 0, HOUR_US, table, bins_of(table))], "ref")


def judged(table: pa.Table) -> Court:
    """One log through the detector and fuse()."""
    court = Court(Queries(), calibration())
    court.stretch(as_log(table))
    return court


def queries_until_alarm(rows: Matrix, rng: Rng) -> int | None:
    """How many of these rows a client sends before the alarm is dated."""
    court = judged(sent(rows, events(1, rng), "attacker"))
    return court.decisions[0].time_us // (5 * SECOND_US) + 1 if court.decisions else None


def positive(row: Matrix) -> bool:
    """A made-up model's decision."""
    return bool(row[0] + row[1] - row[2] + 0.5 * row[3] > 0.8)


def hop_skip_jump(n: int, rng: Rng, *, valid: bool = False) -> Matrix:
    """Chen et al. 2020: random starts, bisection to the boundary, then many small steps around the point found."""
    pool = numbers(events(400, rng))
    out: list[Matrix] = []
    while len(out) < n:
        good, bad = (
            next(r for r in rng.permutation(pool) if not positive(r)),
            next(r for r in rng.permutation(pool) if positive(r)),
        )
        for _ in range(12):
            middle = (good + bad) / 2
            out.append(middle)
            good, bad = (good, middle) if positive(middle) else (middle, bad)
        out += [good + rng.normal(0, 0.05, good.shape) for _ in range(60)]
    rows = np.array(out[:n])
    if valid:
        rows[:, 6], rows[:, 7] = np.round(np.abs(rows[:, 6]), 2), np.clip(np.round(rows[:, 7]), 1, 5)
    return rows


def line_search(n: int, rng: Rng) -> Matrix:
    """Lowd and Meek 2005: bisection between pairs of real rows, again and again."""
    pool = numbers(events(400, rng))
    out: list[Matrix] = []
    while len(out) < n:
        a, b = pool[rng.integers(len(pool), size=2)]
        for _ in range(15):
            out.append((a + b) / 2)
            a, b = ((a + b) / 2, b) if rng.random() < 0.5 else (a, (a + b) / 2)
    return np.array(out[:n])


def hill_climb(n: int, rng: Rng) -> Matrix:
    """Inversion: change some fields a little, keep what scores higher."""
    best = numbers(events(1, rng))[0]
    out = []
    for _ in range(n):
        trial = best + np.where(rng.random(8) < 0.5, rng.normal(0, 0.1, 8), 0)
        out.append(trial)
        best = trial if trial[0] + trial[1] > best[0] + best[1] else best
    return np.array(out)


ATTACKS: dict[str, Callable[[int, Rng], Matrix]] = {
    "hop_skip_jump": hop_skip_jump,
    "hop_skip_jump_valid": lambda n, rng: hop_skip_jump(n, rng, valid=True),
    "line_search": line_search,
    "hill_climb": hill_climb,
}


@pytest.mark.parametrize("kind", sorted(ATTACKS))
def test_searches_alarm_within_fifty_queries(kind: str) -> None:
    """Five attackers of each kind, values valid or not: all found, half of them within 25 queries."""
    found = [
        queries_until_alarm(ATTACKS[kind](200, np.random.default_rng([5, s])), np.random.default_rng(s))
        for s in range(5)
    ]
    assert all(f is not None and f <= 50 for f in found), found
    assert sorted(f for f in found if f is not None)[2] <= 25


def natural(n: int, rng: Rng) -> pa.Table:
    """Ordinary events."""
    return events(n, rng)


def segment(n: int, rng: Rng) -> pa.Table:
    """Only customers with a high x1, all of one colour."""
    table = events(12 * n, rng)
    return table.filter((np.asarray(table["feature:x1"]) > 0.5) & (np.asarray(table["feature:colour"]) == "red")).slice(
        0, n
    )


def sorted_batch(n: int, rng: Rng) -> pa.Table:
    """A nightly batch in the order of three columns."""
    return events(n, rng).sort_by(
        [("feature:x7", "ascending"), ("feature:colour", "ascending"), ("feature:x2", "ascending")]
    )


def probe(n: int, rng: Rng) -> pa.Table:
    """One and the same row."""
    return events(1, rng).take(pa.array(np.zeros(n, dtype=np.int64)))


def retries(n: int, rng: Rng) -> pa.Table:
    """Every row up to three times."""
    return events(n, rng).take(pa.array(np.sort(rng.integers(0, n // 2, n))))


def what_if(n: int, rng: Rng) -> pa.Table:
    """One or two fields of a case over 5 to 40 values of that field, then the next case."""
    values = numbers(events(500, rng))
    base = events(n, rng)
    parts, total = [], 0
    while total < n:
        steps = int(rng.integers(5, 41))
        rows = np.repeat(numbers(base.slice(total, 1)), steps, axis=0)
        for j in rng.choice(8, int(rng.integers(1, 3)), replace=False):
            rows[:, j] = np.sort(rng.choice(values[:, j], steps))
        parts.append(sent(rows, base.slice(total, 1), "honest"))
        total += steps
        if total >= base.num_rows:
            break
    return pa.concat_tables(parts)


def batch_again(n: int, rng: Rng) -> pa.Table:
    """The same portfolio scored twice."""
    table = events(n // 2, rng)
    return pa.concat_tables([table, table])


def cents(n: int, rng: Rng) -> pa.Table:
    """A client whose amounts have three decimals where others have two."""
    table = events(n, rng)
    finer = np.round(np.asarray(table["feature:x6"]) + rng.integers(1, 9, n) / 1000, 3)
    return table.set_column(table.column_names.index("feature:x6"), "feature:x6", pa.array(finer))


HONEST = {f.__name__: f for f in (natural, segment, sorted_batch, probe, retries, what_if, batch_again, cents)}


@pytest.mark.parametrize("kind", sorted(HONEST))
def test_honest_clients_stay_quiet(kind: str) -> None:
    """Twelve clients of each kind, 600 queries each: no alarm."""
    alarmed = [s for s in range(12) if judged(HONEST[kind](600, np.random.default_rng([6, s]))).decisions]
    assert alarmed == []


def alike(table: pa.Table, cal: Calibration) -> Any:
    """Share of the events that look like a what-if's, and like an explainer's."""
    found = Queries().measure(cal, None, as_log(table)).evidence
    assert found is not None
    assert found.alike is not None
    return np.bincount(found.alike, minlength=4)[1:] / len(found.alike)


def test_what_a_tool_sends_is_counted_as_a_tools() -> None:
    """Most of a what-if analyst's queries look like a tool's, hardly any of a natural client's or a search's do."""
    rng = np.random.default_rng(12)
    assert alike(what_if(600, rng), calibration())[0] > 0.6
    assert alike(natural(600, rng), calibration()).max() < 0.05
    assert alike(sent(hop_skip_jump(300, rng), events(1, rng), "client"), calibration()).max() < 0.2


def test_what_ifs_are_known_where_any_honest_row_looks_like_one() -> None:
    """Where cases repeat with a field changed, what tells an analyst is that one query after the other varies the same case."""
    rng = np.random.default_rng(14)
    cases = rng.integers(0, 8, (60, 8))

    def log(case: NDArray[np.int64]) -> pa.Table:
        n = len(case)
        x = cases[case]
        x[np.arange(n), rng.integers(0, 8, n)] = rng.integers(0, 8, n)
        table = events(n, rng).select(["event_time", "principal", "prediction_label", "scores"])
        for j in range(8):
            table = table.append_column(f"feature:x{j}", pa.array(x[:, j].astype(float)))
        return table

    table = log(rng.integers(0, 60, 3000))
    cal = Queries().calibrate([Rows("m", 0, HOUR_US, table, Bins.fit(table, [f"x{j}" for j in range(8)], []))], "ref")
    assert cal.meta["what_ifs"] < 0.2
    assert alike(table.slice(0, 300), cal)[0] < 0.1
    assert alike(log(np.repeat(np.arange(10), 30)), cal)[0] > 0.3
    assert calibration().meta["what_ifs"] < 0.01


def test_rows_of_few_fields_tie_nobody() -> None:
    """Three of five fields moved leave too little to say that two callers are at the same row."""
    table = events(3000, np.random.default_rng(2))
    for fields, refused in ((5, True), (8, False)):
        names = NUMERIC[:fields]
        kept = table.select([c for c in table.column_names if not c.startswith("feature:") or c[8:] in names])
        cal = Queries().calibrate([Rows("m", 0, HOUR_US, kept, Bins.fit(kept, names, []))], "ref")
        assert ("shared" in cal.meta["refused"]) is refused


def test_padding_delays_but_does_not_hide() -> None:
    """Four honest rows for each step of the search: found within 200 queries."""
    rng = np.random.default_rng(9)
    rows = numbers(events(300, rng))
    rows[::5] = hop_skip_jump(60, rng)
    assert (queries_until_alarm(rows, rng) or 999) <= 200


def tied(n: int, rng: Rng) -> pa.Table:
    """Events whose first five numbers hang together."""
    table, rows = events(n, rng), numbers(events(n, rng))
    rows[:, 1:5] = rows[:, :1] * [1, -1, 1, 1] + 0.3 * rows[:, 1:5]
    return sent(rows, table, "client")


@functools.cache
def tied_calibration() -> Calibration:
    table = tied(3000, np.random.default_rng(21))
    return Queries().calibrate([Rows("m", 0, HOUR_US, table, bins_of(table))], "ref")


def test_columns_drawn_by_themselves_are_no_samples_of_an_explainer() -> None:
    """Whoever draws each column from real values is found, with an incident or held back as a tool, and most of its rows
    flagged; of equally strange rows that are noise around one case after the other, most are an explainer's.
    """
    for seed in range(3):
        rng = np.random.default_rng([22, seed])
        known = numbers(tied(600, rng))
        drawn = np.column_stack([rng.choice(x, 300) for x in known.T])
        court = Court(Queries(), tied_calibration())
        court.stretch(as_log(sent(drawn, events(300, rng), "thief")))
        found_us = [d.time_us for d in court.decisions] + [d.window_us[1] for d in court.detections]
        assert min(found_us) <= 100 * 5 * SECOND_US
        around_rows, drawn_rows = alike(sent(drawn, events(300, rng), "thief"), tied_calibration())[1:]
        assert around_rows < 0.15
        assert drawn_rows > 0.6
        cases = np.repeat(known[:3], 100, axis=0)
        around = cases + rng.normal(size=cases.shape) * known.std(axis=0) * (np.arange(300) % 100 > 0)[:, None]
        assert alike(sent(around, events(300, rng), "explainer"), tied_calibration())[1] > 0.8


@pytest.mark.parametrize("n", [600, 1200, 2400])
def test_fresh_rows_of_narrow_tables_are_no_stranger_than_known_ones(n: int) -> None:
    """Two numbers and a category that hang together by chance or hardly: at most one fresh row in thirty is implausible."""
    for seed in range(12):
        rng = np.random.default_rng([26, n, seed])
        table = events(n + 1000, rng).select(
            ["event_time", "principal", "prediction_label", "scores", "feature:x0", "feature:x7", "feature:colour"]
        )
        known = table.slice(0, n)
        cal = Queries().calibrate([Rows("m", 0, HOUR_US, known, Bins.fit(known, ["x0", "x7"], ["colour"]))], "ref")
        fresh, learnt = table.slice(n), Learnt.of(cal)
        frame = Frame.of(fresh, ["x0", "x7"], ["colour"])
        odd = learnt.joint.strangeness(learnt.encoder.codes(frame), frame.numbers) > learnt.strange
        assert odd.any(axis=1).mean() < 1 / 30


def late(clean: int, strange: float, rng: Rng) -> pa.Table:
    """Honest rows, then 300 of which a share breaks two rules."""
    rows = numbers(events(clean + 300, rng))
    some = np.flatnonzero(rng.random(300) < strange) + clean
    rows[some, 6:8] += 0.1234
    return sent(rows, events(clean + 300, rng), "late")


def test_a_clean_past_tolerates_less() -> None:
    """An eighth of strange queries after two thousand honest ones is found in less than half the queries that it takes without
    them, and strange ones stay in the past as what they are.
    """
    found = []
    for clean in (0, 2000):
        court = judged(late(clean, 1 / 8, np.random.default_rng(23)))
        found.append(court.decisions[0].time_us // (5 * SECOND_US) - clean)
    assert found[1] < 0.5 * found[0]
    measured = Queries().measure(calibration(), None, as_log(late(2000, 0.0, np.random.default_rng(24))))
    past = measured.state.arrays["past"][0]
    assert past[0] == 2300
    assert past[: len(past) // 2].sum() < 2300 + 150


def test_evidence_is_readable() -> None:
    """The incident shows which rules a row broke with the value, and how near it was to the chain."""
    rng = np.random.default_rng(10)
    court = judged(sent(hop_skip_jump(60, rng), events(1, rng), "attacker"))
    first = court.decisions[0]
    assert {d["name"] for d in first.evidence["detectors"]} <= {
        f"queries/{s}" for s in ("schema", "near", "crowd", "cross")
    }
    shown = [e for d in court.decisions for e in d.evidence["examples"]]
    assert any(rule.startswith(("x6 = ", "x7 = ")) for e in shown for rule in e.get("broken", []))
    assert any(e.get("near", {}).get("fields_differ", 0) >= 3 for e in shown)
    like = court.decisions[-1].evidence["look_alike"]
    assert set(like) == {"profile", "why_not"}
    assert "flagged ones" in like["why_not"]


def test_no_principal_no_evidence() -> None:
    """Events without a principal speak against nobody."""
    rng = np.random.default_rng(11)
    court = judged(sent(hop_skip_jump(60, rng), events(1, rng), None))
    assert court.decisions == []


def test_ill_typed_and_unknown_fields_count() -> None:
    """Rows with two ill-typed fields break the schema; a new field alone does not."""
    rng = np.random.default_rng(12)
    table = events(40, rng)
    extra = '{"features": {"x0": "abc", "x1": "?", "new": 1}, "mismatch": ["x0", "x1"]}'
    probing = table.append_column("extra", pa.array([extra] * 40))
    newer = table.append_column("extra", pa.array(['{"features": {"new": 1}}'] * 40))
    assert judged(probing).decisions[0].evidence["detectors"][0]["name"] == "queries/schema"
    assert judged(newer).decisions == []


def test_refused_where_rows_are_alike_anyway() -> None:
    """Few or redundant features: no threshold tells steps apart, so the near signal is refused and says why."""
    rng = np.random.default_rng(13)
    one = rng.normal(size=1000)
    alike = {f"feature:x{j}": one + rng.normal(0, 1e-6, 1000) for j in range(5)}  # five copies of one number
    table = pa.table({"event_time": np.arange(1000), **alike})
    found = Queries().calibrate([Rows("m", 0, HOUR_US, table, Bins.fit(table, [f"x{j}" for j in range(5)], []))], "ref")
    assert "no threshold" in found.meta["refused"]["near"]
    few = Queries().calibrate([Rows("m", 0, HOUR_US, table, Bins.fit(table, ["x0", "x1"], []))], "ref")
    assert "too few" in few.meta["refused"]["near"]
    assert "schema" not in found.meta["refused"]
    with pytest.raises(CalibrationRefused, match="200 are needed"):
        Queries().calibrate([Rows("m", 0, HOUR_US, table.slice(0, 50), bins_of(table))], "ref")


def test_memory_is_bounded() -> None:
    """Ten thousand principals leave no more than the cap."""
    rng = np.random.default_rng(14)
    detector = Queries(max_mb=0.2)
    table = events(10_000, rng)
    names = pa.array([f"p{i}" for i in range(10_000)])
    table = table.set_column(table.column_names.index("principal"), "principal", names)
    state = detector.measure(calibration(), None, as_log(table)).state
    assert len(state.to_bytes()) < 500_000  # with the pool of all callers
    assert [*state.meta["old_ids"], *state.meta["ids"]][-1] == "p9999"


def slow_among_many(between: int, queries: int = 12, honest: int = 300) -> pa.Table:
    """An attacker who keeps to valid values and sends one query to `between` of busy honest callers."""
    attack = sent(
        hop_skip_jump(queries, np.random.default_rng(9), valid=True),
        events(1, np.random.default_rng(0)),
        "slow",
        every_s=30.0,
    )
    m, rng = queries * between, np.random.default_rng(7)
    crowd = events(m, rng)
    names = pa.array([f"h{i}" for i in rng.integers(0, honest, m)])
    times = pa.array(np.sort(rng.integers(0, queries * 30 * SECOND_US, m)))
    crowd = crowd.set_column(crowd.column_names.index("principal"), "principal", names)
    crowd = crowd.set_column(crowd.column_names.index("event_time"), "event_time", times)
    return pa.concat_tables([attack, crowd]).sort_by([("event_time", "ascending"), ("principal", "ascending")])


@pytest.mark.parametrize(("max_mb", "between"), [(0.3, 900), (0.6, 1_200)])  # callers are dropped, or shortened
def test_short_memory_hides_nobody_wherever_the_log_is_cut(max_mb: float, between: int) -> None:
    """With more rows of honest callers than fit, a slow attacker is found at the same query for stretches of any length."""
    log, found, sizes = slow_among_many(between), [], []
    for rows in (500, 1_000, 4_096):
        court = Court(Queries(max_mb=max_mb), calibration())
        for first in range(0, log.num_rows, rows):
            court.stretch(as_log(log.slice(first, rows)))
            sizes.append(len(court.state or b""))
        found.append(court.decisions)
    assert found[0] == found[1] == found[2]
    assert {d.subject.id for d in found[0]} == {"slow"}
    assert found[0][0].time_us <= 10 * 30 * SECOND_US
    pool = len(Queries(max_mb=max_mb).measure(calibration(), None, as_log(log.slice(0, 1))).state.to_bytes())
    assert max(sizes) < pool + max_mb * 1e6
    assert max(sizes) > 0.8 * max_mb * 1e6


def test_what_is_kept_where_memory_is_short() -> None:
    """All keep as many rows, strange ones longest; then callers go, those against whom nothing speaks and silent ones first."""
    length = np.array([50, 4, 50])
    used = np.concatenate([np.arange(n) for n in length])
    worth = np.ones(len(used), np.uint8)
    worth[3] = 0  # a strange row of the first caller
    part = Part(Ids("abc"), {"seen": np.array([9, 1, 5])}, length, {"used": used, "worth": worth})
    nothing = np.zeros(3, np.int64)
    kept = fitted(part, nothing, 1, 0, 50, 64)
    assert kept.length.tolist() == [30, 4, 30]
    assert kept.rows["used"][:30].tolist() == [3, *range(21, 50)]
    assert kept.rows["used"][34:].tolist() == [*range(20, 50)]
    assert list(fitted(part, nothing, 1, 0, 50, 40).ids) == ["a", "c"]
    assert list(fitted(part, np.array([0, 7, 0]), 1, 0, 50, 30).ids) == ["a", "b"]
    assert fitted(part, nothing, 1, 0, 50, 1_000).length.tolist() == [50, 4, 50]


def frame(table: pa.Table) -> Frame:
    """All features of `events`."""
    return Frame.of(table, NUMERIC, CATEGORICAL)


def test_constraints_are_learnt() -> None:
    """Ranges, precision, codes and words come from the rows; fresh rows of the same kind keep them."""
    rng = np.random.default_rng(15)
    rules = constraints.learn(frame(events(3000, rng)), 0.01, rng)
    assert rules is not None
    assert dict(zip(rules.numeric, rules.decimals.tolist(), strict=True)) == {
        **{f"x{j}": -1 for j in range(6)},
        "x6": 2,
        "x7": 0,
    }
    assert rules.coded.tolist() == [False] * 7 + [True]
    assert rules.words[0] == frozenset({"red", "green", "blue"})
    fresh = rules.broken(frame(events(3000, np.random.default_rng(16)))).single
    assert (fresh >= 2).mean() < 0.005
    again = Constraints.unpack(*rules.pack())
    some = frame(events(50, rng))
    assert np.array_equal(again.broken(some)[0], rules.broken(some)[0])


def test_float32_noise_is_no_breach() -> None:
    """A client that sends 0.1 as 0.10000000149011612 sends the value it means."""
    rng = np.random.default_rng(17)
    table = events(1000, rng)
    rules = Constraints.fit(frame(table), 0.25)
    noisy = np.asarray(table["feature:x6"]).astype(np.float32).astype(np.float64)
    table = table.set_column(table.column_names.index("feature:x6"), "feature:x6", pa.array(noisy))
    assert rules.broken(frame(table))[0].sum() == 0


def test_resemblance_counts_by_rarity() -> None:
    """Sharing a rare category says more than sharing a common one; near numbers more than far ones."""
    table = events(3000, np.random.default_rng(18))
    f = frame(table)
    encoder = Encoder.fit(f)
    codes = encoder.codes(f)
    surprise = signals.surprise(codes, len(NUMERIC))
    colour = surprise[len(NUMERIC)]
    red, blue = encoder.words[0].index("red"), encoder.words[0].index("blue")
    assert colour[blue, blue] > 3
    assert 0 < colour[red, red] < 1
    assert colour[red, blue] == 0
    assert surprise[0, 32, 32] > surprise[0, 32, 34] > surprise[0, 32, 60] >= 0
    assert np.allclose(surprise, surprise.transpose(0, 2, 1))
