"""Seeded windows, logs and clients for detector tests, and the loop that lets the deciders judge them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from detectors import decide
from detectors.base import Calibration, Caller, Detection, Detector, Feedback, Measured, State
from detectors.profile import Bins, Profile
from monitor.model import HOUR_US, SECOND_US, Alert, Decision, Severity, Verdict

Rng = np.random.Generator
NUMERIC = tuple(f"x{j}" for j in range(8))
CATEGORICAL = ("colour", "shop")
DECLARED = {f"limited-{i}": Caller(distinct_rows=100) for i in range(10)} | {"probe": Caller(profile="health_probe")}
ATTACKS = decide.FuseSettings.derive(1 / (30 * 86400))
DRIFT = decide.BudgetSettings.derive(1 / (30 * 86400), [HOUR_US])


@dataclass(frozen=True)
class Rows:
    """A window or stretch held in memory."""

    model: str
    start_us: int
    end_us: int
    table: pa.Table
    bins: Bins | None = None

    @property
    def n(self) -> int:
        return int(self.table.num_rows)

    def profile(self) -> Profile | None:
        return self.bins.count(self.table) if self.bins is not None else None

    def rows(self, columns: Sequence[str]) -> pa.Table:
        return self.table.select([c for c in columns if c in self.table.column_names])

    def once(self, name: Hashable, make: Callable[[], Any]) -> Any:
        return make()

    def callers(self) -> dict[str, Caller]:
        return DECLARED

    def feedback(self, columns: Sequence[str]) -> pa.Table:
        """The window's events, labelled by `labeler` with `value`, where the table has them."""
        held = [c for c in (*columns, "labeler", "name", "value", "label_time_us") if c in self.table.column_names]
        return self.table.select(held)

    def labels(self, as_of_us: int) -> pa.Table:
        return pa.table({"request_id": pa.array([], pa.string())})

    def earlier(self, by_us: int) -> Rows:
        """Nothing was logged before."""
        return Rows(self.model, self.start_us - by_us, self.end_us - by_us, self.table.slice(0, 0), self.bins)


def events(n: int, rng: Rng, *, start_us: int = 0, principal: str | None = "client", shift: float = 0.0) -> pa.Table:
    """n events over one hour: eight numbers (x0 moved by `shift`, x6 in cents, x7 a small code), two categories, scores."""
    x = rng.normal(size=(n, len(NUMERIC)))
    x[:, 0] += shift
    x[:, 6] = np.round(np.exp(x[:, 6]), 2)
    x[:, 7] = rng.integers(1, 6, n)
    fraud = np.round(1 / (1 + np.exp(-x[:, 0] - x[:, 1] + 1)), 4)
    columns: dict[str, Any] = {
        "event_time": start_us + np.sort(rng.integers(0, HOUR_US, n)),
        "principal": pa.array([principal] * n, pa.string()),
        "prediction_label": pa.array(np.where(fraud > 0.5, "fraud", "ok").tolist(), pa.string()),
        "scores": pa.array([[1 - s, s] for s in fraud.tolist()], pa.list_(pa.float64())),
        "class_names": pa.array([["ok", "fraud"]] * n, pa.list_(pa.string())),
    }
    columns |= {f"feature:{name}": x[:, j] for j, name in enumerate(NUMERIC)}
    columns["feature:colour"] = pa.array(
        rng.choice(["red", "green", "blue"], n, p=[0.6, 0.3, 0.1]).tolist(), pa.string()
    )
    columns["feature:shop"] = pa.array([f"s{i}" for i in rng.zipf(1.6, n).clip(1, 60)], pa.string())
    return pa.table(columns)


def bins_of(table: pa.Table) -> Bins:
    """Bins for the features of `events`."""
    return Bins.fit(table, NUMERIC, CATEGORICAL)


def hours(
    count: int, rows: int, rng: Rng, *, first: int = 0, bins: Bins | None = None, shift: float = 0.0
) -> list[Rows]:
    """Hourly windows of `events`."""
    tables = [events(rows, rng, start_us=(first + i) * HOUR_US, shift=shift) for i in range(count)]
    bins = bins if bins is not None else bins_of(pa.concat_tables(tables))
    return [Rows("m", (first + i) * HOUR_US, (first + i + 1) * HOUR_US, t, bins) for i, t in enumerate(tables)]


def as_log(table: pa.Table) -> Rows:
    """A stretch of the log."""
    times = np.asarray(table["event_time"])
    return Rows("m", int(times[0]) if len(times) else 0, int(times[-1]) if len(times) else 0, table)


def sent(
    rows: np.ndarray[Any, Any], template: pa.Table, principal: str | None, *, start_us: int = 0, every_s: float = 5.0
) -> pa.Table:
    """Rows of numbers (n, 8) as events of one principal; everything else as in the template's rows, cycled."""
    n = len(rows)
    table = template.take(pa.array(np.arange(n) % template.num_rows))
    for j, name in enumerate(NUMERIC):
        table = table.set_column(table.column_names.index(f"feature:{name}"), f"feature:{name}", pa.array(rows[:, j]))
    times = start_us + (np.arange(n) * every_s * SECOND_US).astype(np.int64)
    table = table.set_column(table.column_names.index("event_time"), "event_time", pa.array(times))
    return table.set_column(table.column_names.index("principal"), "principal", pa.array([principal] * n, pa.string()))


def numbers(table: pa.Table) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The numeric features as a matrix (n, 8)."""
    return np.column_stack([np.asarray(table[f"feature:{name}"]) for name in NUMERIC])


def mixed(*tables: pa.Table) -> pa.Table:
    """Several clients' events as one log, by event time."""
    return pa.concat_tables(tables).sort_by([("event_time", "ascending")])


def incident(d: Decision) -> Alert:
    """The open alert that a firing decision makes."""
    return Alert(
        alert_id=f"{d.event}/{d.subject.id}", environment="test", customer=None, model=d.model, event=d.event,
        subject=d.subject, family=d.family, severity=d.severity or Severity.MINOR, open=True, seq=1, opened_us=d.time_us,
        updated_us=d.time_us, cleared_us=None, detector=d.detector, statistic=d.statistic, threshold=d.threshold,
        p_value=d.p_value, log_e=d.log_e, n=d.n, window_us=d.window_us, techniques=(), text="", evidence=d.evidence,
    )  # fmt: skip


@dataclass
class Court:
    """Measures windows one after the other and lets a decider judge them, as a tick does; states travel as bytes."""

    detector: Detector
    calibration: Calibration
    state: bytes | None = None
    decider: bytes | None = None
    feedback: Feedback = field(default_factory=Feedback)
    open: dict[Any, Alert] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    detections: list[Detection] = field(default_factory=list)

    def window(self, window: Rows) -> list[Decision]:
        """One time window through measure() and budget()."""
        measured = self._measure(window)
        self.detections += measured.detections
        return self._keep(
            decide.budget(
                _state(self.decider), measured.detections, tuple(self.open.values()), DRIFT, "m", window.end_us
            )
        )

    def stretch(self, window: Rows, settings: decide.FuseSettings = ATTACKS) -> list[Decision]:
        """One stretch of the log through measure() and fuse(); what rules say of it decides by itself."""
        measured = self._measure(window)
        found = [measured.evidence] if measured.evidence is not None else []
        ruled = [d for d in measured.detections if d.verdict is Verdict.ALARM]
        self.decisions += [decide.fixed("m", d, window_us=d.window_us, time_us=d.window_us[1]) for d in ruled]
        return self._keep(decide.fuse(_state(self.decider), found, tuple(self.open.values()), settings, "m"))

    def _measure(self, window: Rows) -> Measured:
        measured = self.detector.measure(self.calibration, _state(self.state), window, self.feedback)
        self.state = measured.state.to_bytes()
        return measured

    def _keep(self, decided: decide.Decided) -> list[Decision]:
        self.decider, self.feedback = decided.state.to_bytes(), decided.feedback
        self.detections += decided.held
        for d in decided.decisions:
            key = (d.event, d.subject)
            if d.firing:
                self.open[key] = incident(d)
            else:
                self.open.pop(key, None)
        self.decisions += decided.decisions
        return list(decided.decisions)


def _state(raw: bytes | None) -> State | None:
    return None if raw is None else State.from_bytes(raw)


def cut(table: pa.Table, rng: Rng, pieces: int) -> Iterable[pa.Table]:
    """The table in order, cut at random places (empty pieces included)."""
    places = np.sort(rng.integers(0, table.num_rows + 1, pieces))
    for a, b in zip([0, *places.tolist()], [*places.tolist(), table.num_rows], strict=True):
        yield table.slice(a, b - a)


@dataclass(frozen=True)
class Case:
    """A detector's row of test data.

    reference: windows to calibrate on. usual(i): the i-th window after it with nothing wrong. wrong(size): a window with
    the detector's finding in it, more of it for a larger size. settled: how many usual windows it needs first.
    params: what the detector cannot do without. log: a log whose cuts must not matter, and the principals to be found in it; None: searches over the model.
    """

    reference: Callable[[], list[Rows]]
    usual: Callable[[int], Rows]
    wrong: Callable[[float], Rows]
    settled: int = 0
    log: Callable[[], tuple[pa.Table, set[str]]] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


@functools.cache
def _reference() -> list[Rows]:
    return hours(60, 100, np.random.default_rng(1))


def _hour(i: int, rows: int = 100, shift: float = 0.0) -> Rows:
    return hours(1, rows, np.random.default_rng([2, i]), first=60 + i, bins=_reference()[0].bins, shift=shift)[0]


def _wrong_unit(share: float) -> Rows:
    """An hour in which x0 of `share` of the rows comes in thousandths."""
    hour = _hour(80)
    x, i = hour.table["feature:x0"].to_numpy().copy(), hour.table.column_names.index("feature:x0")
    x[: round(len(x) * min(1.0, share))] *= 1000 * share
    return dataclasses.replace(hour, table=hour.table.set_column(i, "feature:x0", pa.array(x)))


@dataclass(frozen=True)
class Labelled(Rows):
    """A window whose events all have labels."""

    known: pa.Table | None = None
    before: Callable[[int], Rows] | None = None  # by hours

    def labels(self, as_of_us: int) -> pa.Table:
        """Those whose time has come, where they have times."""
        assert self.known is not None
        timed = "label_time_us" in self.known.column_names
        return self.known.filter(pc.less_equal(self.known["label_time_us"], as_of_us)) if timed else self.known

    def earlier(self, by_us: int) -> Rows:
        first = self.start_us - by_us < 60 * HOUR_US
        return super().earlier(by_us) if self.before is None or first else self.before(by_us // HOUR_US)


def known_later(i: int, wrong: float = 0.05, rows: int = 100) -> Labelled:
    """An hour in which the share `wrong` of the answers turns out wrong."""
    rng = np.random.default_rng([5, i])
    table = events(rows, rng, start_us=(60 + i) * HOUR_US)
    ids = [f"{i}-{j}" for j in range(rows)]
    said = np.array(table["prediction_label"].to_pylist())
    truth = np.where(rng.random(rows) < wrong, np.where(said == "ok", "fraud", "ok"), said)
    known = pa.table({"request_id": ids, "name": ["label"] * rows, "value": truth.tolist()})
    table = table.append_column("request_id", pa.array(ids))
    return Labelled(
        "m", (60 + i) * HOUR_US, (61 + i) * HOUR_US, table, _reference()[0].bins, known, lambda by: known_later(i - by)
    )


def favoured(i: int, share: float = 0.0, rows: int = 200) -> Labelled:
    """An hour in which a further `share` of the blue is called fraud, without cause; i counts from 0."""
    w = known_later(i, rows=rows)
    rng = np.random.default_rng([16, i])
    blue = np.array(w.table["feature:colour"].to_pylist()) == "blue"
    said = np.where(blue & (rng.random(rows) < share), "fraud", np.array(w.table["prediction_label"].to_pylist()))
    at = w.table.column_names.index("prediction_label")
    table = w.table.set_column(at, "prediction_label", pa.array(said.tolist(), pa.string()))
    return dataclasses.replace(w, table=table, before=lambda by: favoured(i - by, share, rows))


def recorded(i: int, delay_s: float = 5.0, rows: int = 100) -> Rows:
    """An hour whose events are recorded some `delay_s` later."""
    w = _hour(i, rows)
    rng = np.random.default_rng([17, i])
    late = (rng.exponential(delay_s, rows) * SECOND_US).astype(np.int64)
    times = pa.array(np.asarray(w.table["event_time"]) + late)
    return dataclasses.replace(w, table=w.table.append_column("ingest_time", times))


def _silence(seconds: float) -> Rows:
    end = 100 * HOUR_US
    return Rows("m", end - round(seconds * SECOND_US), end, events(0, np.random.default_rng(0)))


def _queries(share: float) -> Rows:
    """200 queries of one client; `share` of them tiny steps around one of its rows."""
    rng = np.random.default_rng(3)
    table = events(200, rng)
    x = numbers(table)
    steps = rng.random(len(x)) < share
    x[steps] = x[0] + rng.normal(0, 0.01, (int(steps.sum()), x.shape[1]))
    return as_log(sent(x, table, "client"))


def calls(hours: Iterable[int], per_hour: int, rng: Rng, principal: str = "client", **fields: Any) -> pa.Table:
    """`per_hour` calls in each of these hours, with columns about the call; a field may be one value or one per event."""
    start = np.repeat(np.array(list(hours), np.int64), per_hour) * HOUR_US
    n = len(start)
    table = {"event_time": np.sort(start + rng.integers(0, HOUR_US, n)), "principal": [principal] * n}
    usual = {"credential_id": "key", "source_ip": "10.0.0.1", "model_version": "3", "status": "ok", "returned": "label"}
    said = {k: list(v) if isinstance(v, list | tuple) else [v] * n for k, v in (usual | fields).items()}
    kinds = {"event_time": pa.int64()}
    return pa.table({k: pa.array(v, kinds.get(k, pa.string())) for k, v in (table | said).items()})


def places(n: int, first: int = 0) -> list[str]:
    """n addresses, each in a network of its own."""
    return [f"10.{(first + i) // 200}.{(first + i) % 200}.9" for i in range(n)]


def _habit(i: int) -> Rows:
    """Two days of one client's usual calls, features included."""
    rng = np.random.default_rng([5, i])
    span = range(1000 + 48 * i, 1048 + 48 * i)
    return as_log(_with_features(calls(span, 4, rng)))


def _with_features(table: pa.Table) -> pa.Table:
    like = events(table.num_rows, np.random.default_rng(6))
    for name in (c for c in like.column_names if c.startswith("feature:")):
        table = table.append_column(name, like[name])
    return table


def own_rows(
    hours: Iterable[int],
    rng: Rng,
    principal: str = "client",
    *,
    per_hour: int = 40,
    moved: float = 0.0,
    by: float = 1.5,
) -> pa.Table:
    """Hours of a client that asks about customers of its own, the first share `moved` of them about others."""
    span = list(hours)
    table = calls(span, per_hour, rng, principal)
    like = events(table.num_rows, rng)
    off = by * (np.arange(table.num_rows) < moved * table.num_rows)
    for name in (c for c in like.column_names if c.startswith("feature:")):
        x = pa.array(np.asarray(like[name]) + off) if name in ("feature:x0", "feature:x1", "feature:x2") else like[name]
        table = table.append_column(name, x)
    return table


def _own(i: int, moved: float = 0.0) -> Rows:
    """Two days of one client and, as calm as ever, two more."""
    rng, span = np.random.default_rng([31, i]), range(1000 + 48 * i, 1048 + 48 * i)
    return as_log(
        mixed(own_rows(span, rng, moved=moved), *[own_rows(span, rng, f"other-{j}", moved=j) for j in (0, 1)])
    )


def _own_log() -> tuple[pa.Table, set[str]]:
    """Three clients for 17 days, then one of them asks about other customers."""
    rng = np.random.default_rng(32)
    tables = [own_rows(range(1000, 1000 + 24 * 17), rng, f"honest-{i}", moved=i / 2) for i in (0, 2)]
    tables.append(own_rows(range(1000, 1000 + 24 * 16), rng, "taken"))
    tables.append(own_rows(range(1000 + 24 * 16, 1000 + 24 * 17), rng, "taken", moved=1.0))
    return mixed(*tables), set()


def _wrong_calls(size: float, **odd: Any) -> Rows:
    """The next 40 hours of that client; in a share of them something new."""
    rng = np.random.default_rng(7)
    span, bad = range(1000 + 48 * 6, 1000 + 48 * 6 + 40), round(40 * size)
    quiet = calls(list(span)[bad:], 4, rng)
    loud = calls(list(span)[:bad], odd.pop("per_hour", 4), rng, **{k: v(4 * bad) for k, v in odd.items()})
    return as_log(_with_features(mixed(quiet, loud)))


def _habit_log(**odd: Any) -> tuple[pa.Table, set[str]]:
    """Ten days of six clients; then two of them go wrong for a day."""
    rng = np.random.default_rng(8)
    base = [calls(range(2000, 2264), 3, rng, f"honest-{i}", credential_id=f"k{i}") for i in range(6)]
    per_hour = odd.pop("per_hour", 5)
    made = [
        calls(
            range(2240, 2264),
            per_hour,
            rng,
            f"honest-{i}",
            **{"credential_id": f"k{i}"} | {k: v(24 * per_hour) for k, v in odd.items()},
        )
        for i in (1, 4)
    ]
    return mixed(*base, *made), {"honest-1", "honest-4"}


def _asking(rows: Sequence[int]) -> pa.Table:
    """Clients that may ask about 100 rows each; so many do they ask about."""
    rng = np.random.default_rng(9)
    return mixed(*[events(n, rng, principal=f"limited-{i}") for i, n in enumerate(rows)])


def _asking_log() -> tuple[pa.Table, set[str]]:
    """Two clients that pass their budgets, one that repeats its rows instead, and some without any."""
    rng = np.random.default_rng(10)
    honest = [events(300, rng, principal=f"honest-{i}") for i in range(4)]
    repeated = events(90, rng, principal="limited-3").take(pa.array(np.arange(270) % 90))
    return mixed(_asking([150, 60, 220]), repeated, *honest), {"limited-0", "limited-2"}


def told_by(rows: Rows, flips: Mapping[str, float], rng: Rng) -> Rows:
    """The window with labels: those of the model, by these labelers in turn, each with its share of flipped ones."""
    n, names = rows.n, list(flips)
    who = rng.integers(0, len(names), n)
    flipped = rng.random(n) < np.array([flips[k] for k in names])[who]
    truth = np.array(rows.table["prediction_label"].to_pylist()) == "fraud"
    table = rows.table.append_column("labeler", pa.array([names[i] for i in who], pa.string()))
    table = table.append_column("value", pa.array(np.where(truth != flipped, "fraud", "ok").tolist(), pa.string()))
    return dataclasses.replace(rows, table=table.append_column("label_time_us", table["event_time"]))


def _feedback(i: int, share: float = 0.0) -> Rows:
    flips = {"ann": 0.02, "bob": 0.02, "eve": share}
    return told_by(_hour(i, rows=300), flips, np.random.default_rng([11, i]))


def with_known(table: pa.Table, column: str, share: float, rng: Rng) -> pa.Table:
    """The table with what `monitor.service.known` says per row: whether it is a training record, or which canary."""
    known = rng.random(table.num_rows) < share
    return table.append_column(column, pa.array(np.where(known, 3, -1) if column == "canary" else known))


def _known_reference(column: str) -> list[Rows]:
    return [
        dataclasses.replace(h, table=with_known(h.table, column, 0.5, np.random.default_rng([12, i])))
        for i, h in enumerate(_reference())
    ]


def _usual_known(i: int, column: str, share: float) -> Rows:
    rng = np.random.default_rng([4, i])
    return as_log(with_known(events(200, rng), column, share, rng))


def tested(rows: int, share: float, rng: Rng, principal: str = "client") -> pa.Table:
    """A client that sends training records; `share` of its rows are copies of the last one, a little changed."""
    table = events(rows, rng)
    x, known = numbers(table), np.ones(rows, dtype=bool)
    last = 0
    for i in range(1, rows):
        if rng.random() < share:
            x[i], known[i] = x[last] + rng.normal(0, 0.02, x.shape[1]), False
        else:
            last = i
    made = sent(x, table, principal)
    return made.append_column("training", pa.array(known))


def _tested_log() -> tuple[pa.Table, set[str]]:
    """Two clients that test for membership, some that score training records again, and some that know none."""
    rng = np.random.default_rng(13)
    again = [with_known(events(150, rng, principal=f"again-{i}"), "training", i / 3, rng) for i in range(4)]
    tests = [tested(120, 0.9, rng, f"tester-{i}") for i in range(2)]
    return mixed(*again, *tests), {"tester-0", "tester-1"}


def _canary_log() -> tuple[pa.Table, set[str]]:
    """One client that sends a canary among much else."""
    rng = np.random.default_rng(14)
    honest = [with_known(events(100, rng, principal=f"honest-{i}"), "canary", 0.0, rng) for i in range(3)]
    return mixed(*honest, with_known(events(100, rng, principal="thief"), "canary", 0.02, rng)), {"thief"}


def probed(rounds: Sequence[float], rng: Rng, *, noise: float = 0.0, canaries: int = 20, **fields: Any) -> pa.Table:
    """A declared probe that sends every canary each hour; in each round a share of them is answered .2 higher."""
    table = events(canaries * len(rounds), rng, principal="probe")
    line = np.arange(table.num_rows) % canaries
    hour = np.arange(table.num_rows) // canaries
    score = (
        0.3 + line / (3 * canaries) + 0.2 * (line < np.array(rounds)[hour] * canaries) + rng.normal(0, noise, len(line))
    )
    made = {
        "event_time": pa.array(hour * HOUR_US + line * SECOND_US), "canary": pa.array(line),
        "scores": pa.array([[1 - s, s] for s in score.tolist()], pa.list_(pa.float64())),
    }  # fmt: skip
    for name, value in (made | {k: pa.array([v] * len(line)) for k, v in fields.items()}).items():
        table = table.drop_columns([name]) if name in table.column_names else table
        table = table.append_column(name, value)
    return table


def _canaries_log() -> tuple[pa.Table, set[str]]:
    """Honest clients, and a probe whose canaries begin to be answered otherwise after ten rounds."""
    rng = np.random.default_rng(21)
    honest = [with_known(events(200, rng, principal=f"honest-{i}"), "canary", 0.0, rng) for i in range(3)]
    probe = probed([0.0] * 10 + [0.3] * 4, rng, noise=0.002)
    return pa.concat_tables([*honest, probe], promote_options="default").sort_by([("event_time", "ascending")]), {
        "canaries"
    }


CASES: dict[str, Case] = {
    "abuse": Case(
        _reference,
        _habit,
        lambda size: _wrong_calls(size, per_hour=400),
        settled=6,
        log=lambda: _habit_log(per_hour=400),
    ),
    "access": Case(
        _reference,
        _habit,
        lambda size: _wrong_calls(size, source_ip=places),
        settled=6,
        log=lambda: _habit_log(source_ip=places),
    ),
    "canaries": Case(
        lambda: _known_reference("canary"),
        lambda i: _usual_known(i, "canary", 0.0),
        lambda size: _usual_known(80, "canary", size),
        log=_canary_log,
    ),
    "canary_scores": Case(
        lambda: _known_reference("canary"),
        lambda i: as_log(probed([0.0] * 6, np.random.default_rng([22, i]))),
        lambda size: as_log(probed([size] * 3, np.random.default_rng(23))),
        settled=1,
        log=_canaries_log,
    ),
    "exposure": Case(
        _reference,
        lambda i: as_log(events(200, np.random.default_rng([4, i]))),
        lambda size: as_log(_asking([120 if i < round(10 * size) else 80 for i in range(10)])),
        log=_asking_log,
    ),
    "fairness": Case(
        _reference,
        lambda i: favoured(i, rows=600),
        lambda size: favoured(80, size, rows=600),
        params={"groups": "colour"},
    ),
    "freshness": Case(_reference, recorded, lambda size: recorded(80, 5.0 + 600 * size), settled=60),
    "feedback": Case(_reference, _feedback, lambda size: _feedback(80, size), settled=4),
    "marginals": Case(_reference, _hour, lambda size: _hour(80, shift=size)),
    "volume": Case(_reference, _hour, lambda size: _hour(80, rows=round(100 * (1 + 3 * size))), settled=60),
    "rules": Case(_reference, _hour, _wrong_unit),
    "performance": Case(_reference, known_later, lambda size: known_later(80, 0.05 + 0.4 * size), settled=80),
    "membership": Case(
        lambda: _known_reference("training"),
        lambda i: _usual_known(i, "training", 0.5),
        lambda size: as_log(tested(200, size, np.random.default_rng(15))),
        log=_tested_log,
    ),
    "mmd": Case(_reference, _own, lambda size: _own(9, moved=size), settled=9, params={"rows": 30}, log=_own_log),
    "missing": Case(_reference, lambda i: _silence(10.0), lambda size: _silence(1000.0 * size)),
    "queries": Case(_reference, lambda i: as_log(events(200, np.random.default_rng([4, i]))), _queries),
}
