"""Segments and context: counted exactly, judged under one budget, and blind to what may change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from detectors.drift.marginals import Marginals
from detectors.parting import choose
from detectors.profile import Bins, Profile, merged
from detectors.strata import MAX_CELLS, MAX_PARTS, MAX_SEGMENTS, Segment, fit_strata
from detectors.subjects import subjects
from monitor.model import HOUR_US, Event, Subject
from tests.judging import Court, Rng, Rows

CHANNELS = ("web", "app", "branch")
NUMBERS = ("amount", "age", "score_in")
LARGE = Segment("large", "feature:amount", low=2.0)
Change = Callable[[pa.Table], pa.Table]


def payments(n: int, rng: Rng, *, mix: tuple[float, ...] = (0.5, 0.3, 0.2)) -> pa.Table:
    """Payments whose amount and age depend on the channel; countries do not."""
    channel = rng.choice(len(CHANNELS), n, p=mix)
    amount = rng.normal(size=n) + np.array([0.0, 1.0, 2.0])[channel]
    return pa.table({
        "feature:amount": amount,
        "feature:age": rng.normal(size=n) - channel + 0.5 * amount,
        "feature:score_in": rng.normal(size=n),
        "feature:channel": pa.array([CHANNELS[c] for c in channel]),
        "feature:country": pa.array(rng.choice(["QA", "AE", "BH"], n, p=[0.6, 0.25, 0.15]).tolist()),
    })  # fmt: skip


def court(
    rng: Rng, *, segments: tuple[Segment | str, ...] = (), context: tuple[str, ...] = (), rows: int = 300
) -> Court:
    """The drift detector, calibrated on 120 hours of payments divided like this."""
    return calibrated([payments(rows, rng) for _ in range(120)], segments, context)


def calibrated(
    tables: list[pa.Table], segments: tuple[Segment | str, ...] = (), context: tuple[str, ...] = ()
) -> Court:
    """The same on the given hours."""
    whole = pa.concat_tables(tables)
    bins = dataclasses.replace(
        Bins.fit(whole, NUMBERS, ("channel", "country")), strata=fit_strata(whole, segments, context)
    )
    windows = [Rows("m", i * HOUR_US, (i + 1) * HOUR_US, t, bins) for i, t in enumerate(tables)]
    detector = Marginals()
    return Court(detector, detector.calibrate(windows, "ref"))


def watch(judge: Court, tables: list[pa.Table], first: int = 0) -> list[tuple[int, Event, Subject, bool]]:
    """Judge windows after the reference: decisions as (window, event, subject, firing)."""
    bins = Bins.from_bytes(judge.calibration.meta["bins"])
    found = []
    for i, table in enumerate(tables, start=first):
        at = (120 + i) * HOUR_US
        found += [(i, d.event, d.subject, d.firing) for d in judge.window(Rows("m", at, at + HOUR_US, table, bins))]
    return found


def moved(table: pa.Table, column: str, by: float | pa.Array, where: pa.ChunkedArray | None = None) -> pa.Table:
    """A number moved by so much, in some rows."""
    new = pc.add(table[column], by)
    new = new if where is None else pc.if_else(where, new, table[column])
    return table.set_column(table.column_names.index(column), column, new)


def test_parts_are_counted_exactly_however_rows_are_cut() -> None:
    """Any cut gives the same parts; a segment's counts are those of its rows; cells add up to the whole."""
    rng = np.random.default_rng(1)
    table = payments(4000, rng)
    divided = fit_strata(table, [LARGE, "feature:country"], ["feature:channel"])
    bins = dataclasses.replace(Bins.fit(table, NUMBERS, ("channel", "country")), strata=divided)
    whole = bins.count(table)
    cut = merged(bins.count(table.slice(a, b - a)) for a, b in ((0, 0), (0, 17), (17, 2900), (2900, 4000)))
    assert cut is not None
    assert cut.to_bytes() == whole.to_bytes()
    assert Profile.from_bytes(whole.to_bytes(), bins).to_bytes() == whole.to_bytes()
    assert [s.name for s in divided.segments] == ["large", "country:QA", "country:AE", "country:BH"]
    assert divided.words() == ["channel:web", "channel:app", "channel:branch", "all else"]
    for judged, rows in zip(
        subjects(bins), (table, table.filter(pc.greater_equal(table["feature:amount"], 2.0))), strict=False
    ):
        assert judged.plain(whole).counts.tolist() == bins.count(rows).counts.tolist()
    assert whole.parts[0].sum(axis=0).tolist() == whole.counts.tolist()
    assert whole.part_cross.sum(axis=0).tolist() == whole.cross.tolist()


def test_parts_are_bounded() -> None:
    """However many values a column has, segments, cells and their product stay within their limits."""
    rng = np.random.default_rng(2)
    words = pa.array([f"v{i}" for i in rng.integers(0, 30, 60_000)])
    table = pa.table({"feature:a": words, "feature:b": words, "feature:h": rng.integers(0, 24, 60_000).astype(float)})
    found = fit_strata(table, ["feature:a"], ["feature:b", "feature:h"], numeric=["feature:h"])
    assert len(found.segments) == MAX_SEGMENTS
    assert found.width * (1 + len(found.segments)) <= MAX_PARTS
    alone = fit_strata(table, [], ["feature:b"])
    assert len(alone.cells) == MAX_CELLS
    assert alone.cell(table).max() == MAX_CELLS


def test_a_moved_mix_of_the_context_is_no_drift_but_is_told() -> None:
    """The channels' mix moves from 50/30/20 to 20/30/50 %: no incident on what depends on it, and the mix is shown."""
    rng = np.random.default_rng(3)
    judge = court(rng, context=("feature:channel",))
    assert watch(judge, [payments(300, rng, mix=(0.2, 0.3, 0.5)) for _ in range(150)]) == []
    mix = judge.detections[-1].evidence["mix"]
    assert [m["value"] for m in mix] == ["channel:web", "channel:app", "channel:branch", "all else"]
    assert abs(mix[0]["reference"] - 0.5) < 0.02
    assert abs(mix[0]["share"] - 0.2) < 0.1


def test_without_a_context_the_same_mix_is_drift() -> None:
    """The test above would see nothing if the engine were blind: without context the same windows alarm."""
    rng = np.random.default_rng(3)
    judge = court(rng)
    found = watch(judge, [payments(300, rng, mix=(0.2, 0.3, 0.5)) for _ in range(10)])
    assert found[0][1:] == (Event.FEATURE_DRIFT, Subject("model", "m"), True)
    assert {"amount", "age"} <= {f["name"] for f in judge.decisions[-1].evidence["features"]}


@pytest.mark.parametrize(("mix", "within"), [((0.5, 0.3, 0.2), 5), ((0.2, 0.3, 0.5), 6)])
def test_a_conditional_shift_is_found_whatever_the_mix(mix: tuple[float, ...], within: int) -> None:
    """Half a standard deviation on age within every channel: found in 5 windows, in 6 while the mix moves as well."""
    rng = np.random.default_rng(4)
    judge = court(rng, context=("feature:channel",))
    changed = [moved(payments(300, rng, mix=mix), "feature:age", 0.5) for _ in range(12)]
    found = watch(judge, [*(payments(300, rng) for _ in range(10)), *changed])
    assert [x[1:] for x in found[:1]] == [(Event.FEATURE_DRIFT, Subject("model", "m"), True)]
    assert 10 <= found[0][0] < 10 + within
    assert [f["name"] for f in judge.decisions[0].evidence["features"]] == ["age"]


def test_an_empty_cell_counts_as_unchanged() -> None:
    """A channel that sends nothing for a day is a matter of mix."""
    rng = np.random.default_rng(5)
    judge = court(rng, context=("feature:channel",))
    assert watch(judge, [payments(300, rng, mix=(0.625, 0.375, 0.0)) for _ in range(60)]) == []


def test_a_mix_that_moved_far_is_no_break_of_dependence() -> None:
    """The rows that relations hang on become rare, nothing else changes: scores of dependence stay below what is tolerated."""
    rng = np.random.default_rng(11)

    def wild(n: int, mix: tuple[float, ...]) -> pa.Table:
        table = payments(n, rng, mix=mix)
        far = np.where(np.asarray(pc.equal(table["feature:channel"], "branch")), 4.0 * rng.normal(size=n), 0.0)
        moved_too = pc.add(table["feature:age"], pa.array(2.0 * far))
        table = moved(table, "feature:amount", pa.array(far))
        return table.set_column(table.column_names.index("feature:age"), "feature:age", moved_too)

    whole = [wild(300, (0.5, 0.3, 0.2)) for _ in range(120)]
    judge = calibrated(whole, context=("feature:channel",))
    scores = []
    for i in range(60):
        watch(judge, [wild(300, (0.6, 0.36, 0.04))], first=i)
        streams = judge.detections[-1].streams
        assert streams is not None
        scores += [z for n, z in zip(streams.names, streams.z, strict=True) if n.endswith("/dependence/+/1.0")]
    assert len(scores) == 60 * 3
    assert np.mean(scores) < Marginals().kappa_shape


def test_drift_inside_a_segment_opens_an_incident_of_the_segment() -> None:
    """One of three countries moves: the incident is the segment's, in time, and it ends when the shift ends."""
    rng = np.random.default_rng(0)
    judge = court(rng, segments=("feature:country",))

    def tables(count: int, by: float) -> list[pa.Table]:
        raw = [payments(300, rng) for _ in range(count)]
        return [moved(t, "feature:score_in", by, pc.equal(t["feature:country"], "BH")) for t in raw]

    found = watch(judge, [*tables(10, 0.0), *tables(6, 0.8), *tables(20, 0.0)])
    segment = Subject("segment", "country:BH")
    assert (Event.FEATURE_DRIFT, segment, True) in [x[1:] for x in found]
    assert found[-1][1:] == (Event.FEATURE_DRIFT, segment, False)
    assert {x[2] for x in found} == {segment}
    assert 10 < found[0][0] <= 17
    assert judge.decisions[0].evidence["features"] == [{"name": "score_in", "share": 1.0}]


def test_drift_inside_a_segment_that_nobody_named_opens_an_incident_of_it() -> None:
    """The model answers by channel and country: both are found in the reference, and one country's shift is the segment's."""
    rng = np.random.default_rng(0)

    def answered(n: int) -> pa.Table:
        table = payments(n, rng)
        gulf = np.asarray(pc.equal(table["feature:country"], "BH"))
        score = np.asarray(table["feature:amount"]) + 2.0 * gulf + rng.normal(size=n)
        return table.append_column("prediction_value", pa.array(score))

    hours = [answered(300) for _ in range(120)]
    parts = choose(pa.concat_tables(hours), NUMBERS, ("channel", "country"), least=20 / 300)
    assert {"country:BH", "country:AE", "channel:branch", "channel:app"} <= {p.segment.name for p in parts}
    judge = calibrated(hours, tuple(p.segment for p in parts))
    later = [answered(300) for _ in range(16)]
    found = watch(judge, [
        *later[:10],
        *(moved(t, "feature:score_in", 0.8, pc.equal(t["feature:country"], "BH")) for t in later[10:]),
    ])  # fmt: skip
    assert found[0][1:] == (Event.FEATURE_DRIFT, Subject("segment", "country:BH"), True)
    assert 10 < found[0][0] <= 15
    assert sum(float(d.streams.weight.sum()) for d in judge.detections if d.streams) <= len(later) + 1e-9


def test_what_the_model_tells_its_segments_do_not_repeat() -> None:
    """A shift of every row is one incident, of the model."""
    rng = np.random.default_rng(7)
    judge = court(rng, segments=("feature:country", "feature:channel"))
    found = watch(judge, [moved(payments(300, rng), "feature:score_in", 0.5) for _ in range(40)])
    assert {(x[1], x[2]) for x in found} == {(Event.FEATURE_DRIFT, Subject("model", "m"))}
    assert found[0][0] <= 5


def test_weights_of_model_and_segments_add_up_to_one_budget() -> None:
    """Whatever reaches the level, all bets of a window together stake one unit."""
    rng = np.random.default_rng(8)
    judge = court(rng, segments=("feature:country",), context=("feature:channel",))
    watch(judge, [payments(300, rng)])
    streams = [d.streams for d in judge.detections]
    assert len(streams) == 4
    assert sum(float(s.weight.sum()) for s in streams if s is not None) == pytest.approx(1.0, abs=1e-9)
    for s in streams:
        assert s is not None
        assert s.weight[[b == "channel" for b in s.blame]].sum() == 0.0


def test_nothing_alarms_when_nothing_changes() -> None:
    """Segments and context on 120 windows of unchanged payments: no decision (benchmarks.drift_parts has the long form)."""
    rng = np.random.default_rng(9)
    judge = court(rng, segments=("feature:country", LARGE), context=("feature:channel",), rows=150)
    assert watch(judge, [payments(150, rng) for _ in range(120)]) == []
