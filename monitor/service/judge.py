"""The pure middle of a tick: rows and due windows in, incidents and state out.

Everything here is a function of the log, the stored state and `now`. The running maximum of event times decides after
which row a window is judged, so results do not depend on where ticks or batches fall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pyarrow as pa
import structlog
from numpy.typing import NDArray

from alerts import lifecycle, quiet
from detectors import decide
from detectors.base import Detection, Evidence, Measured, State
from detectors.profile import Coded, Profile
from monitor import telemetry
from monitor.model import Decision, Event, Family, Subject, Verdict
from monitor.service.callers import Find, nobody
from monitor.service.due import Due, due, following
from monitor.service.explained import explained
from monitor.service.watch import Monitor, Watched
from monitor.service.windows import NO_LABELS, Stretch, TimeWindow, no_labels, no_rows, principals, skewed
from monitor.service.work import NEVER, Work, detection_row
from monitor.store import ledger

RERUN_WINDOWS: Final = 24  # late rows re-run state over at most so many judged windows

log = structlog.get_logger("lanner.judge")
Reader = Callable[[int, int, Sequence[str]], pa.Table]  # (start_us, end_us, columns) -> rows of the event log
Counts = Callable[[int, int], Mapping[int, bytes]]  # stored profiles of buckets in [start, end)


@dataclass(frozen=True)
class Judge:
    """Judges one model: the pure middle of a tick. `read`, `labels` and `stored` are its only ways to the store."""

    watched: Watched
    read: Reader
    labels: Callable[[int, int, int], pa.Table]
    stored: Counts
    callers: Find = nobody
    feedback: Reader = lambda start_us, end_us, columns: NO_LABELS

    def absorb(self, work: Work, table: pa.Table, ceiling_us: int | None) -> None:
        """Take in rows in log order; windows that fall due on the way are judged before the row that passes them.

        `ceiling_us` is the store's watermark: while some partition lags, rows of another must not close windows.
        """
        if table.num_rows == 0:
            return
        times = table.column("event_time").to_numpy()
        trusted = np.where(skewed(table), NEVER, times)
        if work.first_us is None:
            seen = trusted[trusted > NEVER]
            work.first_us = int(seen[0]) if len(seen) else None
        high = np.maximum.accumulate(np.maximum(trusted, work.high_us))
        clock = high if ceiling_us is None else np.minimum(high, ceiling_us)
        coded = self.watched.bins.code(table)
        start = 0
        while start < len(times):
            ripe = self._next_due_us(work)
            stop = len(times) if ripe is None else max(int(np.searchsorted(clock, ripe)), start)
            if stop > start:
                self._feed(work, table.slice(start, stop - start), coded.part(start, stop), high[start:stop])
            if stop < len(times):
                self.judge(work, int(clock[stop]))
            start = stop

    def judge(self, work: Work, watermark_us: int | None, *, lateness_us: int | None = None) -> None:
        """Judge every window that is due at this watermark, by end; then the silence since the last event."""
        found = due(
            {m.name: m.window_us for m in self.watched.monitors if m.reads == "windows"},
            work.last_end,
            first_event_us=work.first_us,
            watermark_us=watermark_us,
            lateness_us=self.watched.lateness_us if lateness_us is None else lateness_us,
            catch_up_us=self.watched.catch_up_us,
        )
        for end_us in sorted({d.end_us for d in found}):
            self._lasting(work, end_us + self.watched.lateness_us)
            self._judge_end(work, [d for d in found if d.end_us == end_us])
        if watermark_us is not None:
            self._lasting(work, watermark_us)

    def silence(self, work: Work, now_us: int) -> None:
        """Measure the gap between the last event and `now_us` with the clock detectors (DataMissing)."""
        if work.high_us == NEVER:
            return
        for m in self.watched.monitors:
            if m.reads == "clock":
                window = self._nothing(work.high_us, max(now_us, work.high_us))
                self._rule(work, m, self._measure(work, m, window))

    def _nothing(self, start_us: int, end_us: int) -> TimeWindow:
        """A time in which nothing came."""
        return TimeWindow(self.watched.name, start_us, end_us, None, 0, no_rows, no_labels)

    def _lasting(self, work: Work, until_us: int) -> None:
        """Raise what has stood open too long by then: between the same rows and windows wherever ticks fall."""
        first_us = lifecycle.lasting_from(work.open.values(), self.watched.policy)
        if first_us is not None and first_us <= until_us and not work.silent:
            work.take(lifecycle.lasting(work.standing, work.counters, self.watched.policy, until_us))

    def _next_due_us(self, work: Work) -> int | None:
        """The watermark at which the next window falls due, or an open incident becomes a lasting one."""
        ends = []
        for m in self.watched.monitors:
            if m.reads != "windows" or work.first_us is None:
                continue
            ends.append(following(work.last_end.get(m.name, work.first_us), m.window_us))
        lasting_us = lifecycle.lasting_from(work.open.values(), self.watched.policy)
        due = [min(ends) + self.watched.lateness_us] if ends else []
        return min([*due, *([] if lasting_us is None else [lasting_us])], default=None)

    def _feed(self, work: Work, table: pa.Table, coded: Coded, high: NDArray[np.int64]) -> None:
        """Rows that close no window: silence before them, counts, per-principal evidence, decisions in time order."""
        self._gaps(work, high)
        work.hear(self.watched.name, table, high)
        work.high_us = int(high[-1])
        work.rows_since_snapshot += table.num_rows
        self._count(work, table, coded)
        self.follow(work, self.stretch(table, int(high[0]), int(high[-1])))

    def stretch(self, table: pa.Table, start_us: int, end_us: int) -> Stretch:
        """Rows of the log with what is declared about their callers."""
        found = self.callers(principals(table)) if self.callers is not nobody else {}
        return Stretch(self.watched.name, start_us, end_us, table, declared=found)

    def follow(self, work: Work, window: Stretch) -> None:
        """Per-principal detectors over a stretch of the log, and what fuse() makes of their evidence."""
        found: list[Evidence] = []
        for m in self.watched.monitors:
            if m.reads != "log":
                continue
            if (measured := self._measure(work, m, window)) is not None:
                self._store(work, m, measured.detections)
                for d in measured.detections:  # rules of detectors that read the log: dated to their own event
                    self._decide(work, self._by_rule(work, [d], d.window_us[1]))
                if measured.evidence is not None:
                    found.append(measured.evidence)
        decided = decide.fuse(work.states.get("fuse"), found, work.standing, self.watched.fuse, self.watched.name)
        work.states["fuse"] = decided.state
        work.feedback = replace(work.feedback, suspects=decided.feedback.suspects)
        for d in decided.held:
            self._store(work, self.watched.monitor_of(d.detector), [d])
        self._decide(work, decided.decisions)

    def _gaps(self, work: Work, high: NDArray[np.int64]) -> None:
        """Silence between consecutive events: found here too, so that replay sees what the clock would have seen."""
        times = high if work.high_us == NEVER else np.concatenate(([work.high_us], high))
        for m in self.watched.monitors:
            limit_us = m.silence_limit_us
            if limit_us is None or len(times) < 2:
                continue
            for i in np.flatnonzero(np.diff(times) > limit_us):
                before, after = int(times[i]), int(times[i + 1])
                self._rule(work, m, self._measure(work, m, self._nothing(before, after)))
                self._rule(work, m, self._measure(work, m, self._nothing(after, after)))
            # Events came: an incident that the wall clock opened is over.
            if any(a.event is Event.DATA_MISSING for a in work.open.values()):
                last = int(times[-1])
                self._rule(work, m, self._measure(work, m, self._nothing(last, last)))

    def _count(self, work: Work, table: pa.Table, coded: Coded) -> None:
        """Add rows to the counts of their buckets; a judged bucket is amended and its state re-run before the next window."""
        size = self.watched.bucket_us
        bucket = table.column("event_time").to_numpy() // size * size
        judged = min(work.last_end.values(), default=NEVER)
        if not np.all(bucket[:-1] <= bucket[1:]):
            order = np.argsort(bucket, kind="stable")
            bucket, coded = bucket[order], coded.take(order)
        starts, first = np.unique(bucket, return_index=True)
        for start, (a, b) in zip(starts.tolist(), pairwise([*first.tolist(), len(bucket)]), strict=True):
            counted, known = coded.count(a, b), self._bucket(work, start)
            work.profiles[start] = counted if known is None else known.merge(counted)
            work.touched.add(start)
            if start < judged:
                telemetry.count("late_rows_total", b - a, model=self.watched.name)
                work.late_us = start if work.late_us is None else min(work.late_us, start)

    def _bucket(self, work: Work, start: int) -> Profile | None:
        if start not in work.profiles:
            self._recall(work, start, start + 1)
        return work.profiles.get(start)

    def _recall(self, work: Work, start_us: int, end_us: int) -> None:
        """Bring counts back from the store; those on other bins (the model's parts changed) are of no use."""
        for start, body in self.stored(start_us, end_us).items():
            found = Profile.from_bytes(body, self.watched.bins)
            if found.key == self.watched.bins.key:
                work.profiles.setdefault(start, found)

    def window(self, work: Work, start_us: int, end_us: int) -> TimeWindow:
        """A time window with its counts merged from the buckets."""
        missing = [b for b in range(start_us, end_us, self.watched.bucket_us) if b not in work.profiles]
        if missing:
            self._recall(work, missing[0], missing[-1] + 1)
        counts = self.watched.bins.empty()
        for b in range(start_us, end_us, self.watched.bucket_us):
            if b in work.profiles:
                counts = counts.merge(work.profiles[b])
        return TimeWindow(
            self.watched.name,
            start_us,
            end_us,
            counts,
            counts.n,
            lambda columns: self.read(start_us, end_us, columns),
            lambda as_of_us: self.labels(start_us, end_us, as_of_us),
            lambda: self.callers(principals(self.read(start_us, end_us, ["principal"]))),
            lambda columns: self.feedback(start_us, end_us, columns),
            lambda by_us: self.window(work, start_us - by_us, end_us - by_us),
        )

    def _judge_end(self, work: Work, group: Sequence[Due]) -> None:
        """All windows that end at one time: measure, then let budget() decide over all of them together."""
        end_us = group[0].end_us
        if work.late_us is not None:
            self._rerun(work, work.late_us)
            work.late_us = None
        work.before[end_us] = self._window_states(work)
        for old in sorted(work.before)[:-RERUN_WINDOWS]:
            del work.before[old]
        found = self._measure_end(work, group, record=True)
        self._budget(work, found, end_us, record=True)
        self._decide(work, self._by_rule(work, found, end_us + self.watched.lateness_us))
        for d in group:
            work.last_end[d.monitor] = d.end_us
        # Buckets that no window needs any more leave memory; late rows bring them back from the store.
        keep = min(
            (work.last_end.get(m.name, end_us) for m in self.watched.monitors if m.reads == "windows"), default=end_us
        )
        for start in [b for b in work.profiles if b < keep - self.watched.longest_us and b not in work.touched]:
            del work.profiles[start]

    def _measure_end(self, work: Work, group: Sequence[Due], *, record: bool) -> list[Detection]:
        found: list[Detection] = []
        for d in group:
            m = self.watched.monitor(d.monitor)
            if d.gap:
                if record:
                    work.ledger.append(
                        ledger.LedgerRow(d.monitor, d.start_us, d.end_us, "gap", 0, "missed for longer than catch_up")
                    )
                continue
            window = self.window(work, d.start_us, d.end_us)
            measured = self._measure(work, m, window, report=record)
            if not record:
                found += measured.detections if measured else ()
                continue
            if measured is None:
                outcome = "failed"
            elif all(x.verdict is Verdict.INSUFFICIENT for x in measured.detections):
                outcome = "insufficient"
            else:
                outcome = "judged"
            work.ledger.append(ledger.LedgerRow(d.monitor, d.start_us, d.end_us, outcome, window.n))
            if measured is not None:
                found += measured.detections
                self._store(work, m, measured.detections)
                if measured.evidence is not None:
                    self._accuse(work, measured.evidence)
        return found

    def _accuse(self, work: Work, evidence: Evidence) -> None:
        """Evidence about labelers: added up like that about callers, in a state that windows own."""
        decided = decide.fuse(
            work.states.get("labelers"), [evidence], work.standing, self.watched.fuse, self.watched.name
        )
        work.states["labelers"] = decided.state
        self._decide(work, decided.decisions)

    def _budget(self, work: Work, found: Sequence[Detection], end_us: int, *, record: bool) -> None:
        decided = decide.budget(
            work.states.get("budget"),
            found,
            work.standing,
            self.watched.budget,
            self.watched.name,
            end_us + self.watched.lateness_us,
        )
        work.states["budget"] = decided.state
        work.feedback = replace(decided.feedback, suspects=work.feedback.suspects)
        if record:
            w, rows = self.watched, max((d.n for d in found), default=0)
            self._decide(work, [explained(d, w.bins, w.reference, self.read, rows, w.units) for d in decided.decisions])

    def _rerun(self, work: Work, from_us: int) -> None:
        """Run the state of window detectors forward again over amended windows; what was judged stays judged."""
        ends = sorted(e for e in work.before if e > from_us)
        if not ends or ends[0] - self.watched.bucket_us > from_us:
            log.warning("late_rows_beyond_rerun", model=self.watched.name, since_us=from_us)
            if not ends:
                return
        work.states = {**work.states, **work.before[ends[0]]}
        for end_us in ends:
            work.before[end_us] = self._window_states(work)
            group = [
                Due(end_us, m.name, end_us - m.window_us)
                for m in self.watched.monitors
                if m.reads == "windows" and end_us % m.window_us == 0
            ]
            self._budget(work, self._measure_end(work, group, record=False), end_us, record=False)

    def _window_states(self, work: Work) -> dict[str, State]:
        names = {"budget", *(f"detector:{m.name}" for m in self.watched.monitors if m.reads == "windows")}
        return {name: state for name, state in work.states.items() if name in names}

    def _measure(self, work: Work, m: Monitor, window: Any, *, report: bool = True) -> Measured | None:
        """Run one detector; one that fails is an incident of its own and never stops the others."""
        name = f"detector:{m.name}"
        try:
            measured = m.detector.measure(m.calibration, work.states.get(name), window, work.told_to(m))
        except Exception as error:  # a detector's defect must not silence the model
            log.exception("detector_failed", model=self.watched.name, monitor=m.name)
            if report:
                work.failing.add(m.name)
                telemetry.count("detector_runs_total", model=self.watched.name, detector=m.name, outcome="failed")
                self._decide(work, [self._failed(m, window, type(error).__name__, firing=True)])
            return None
        work.states[name] = measured.state
        if report:
            work.failing.discard(m.name)
            work.ran.add(m.name)
            telemetry.count("detector_runs_total", model=self.watched.name, detector=m.name, outcome="ok")
            if any(a.event is Event.DETECTOR_FAILED and a.subject.id == m.name for a in work.open.values()):
                self._decide(work, [self._failed(m, window, "", firing=False)])
        return measured

    def _failed(self, m: Monitor, window: Any, error: str, *, firing: bool) -> Decision:
        return Decision(
            model=self.watched.name,
            event=Event.DETECTOR_FAILED,
            family=Family.MONITOR,
            subject=Subject("detector", m.name),
            firing=firing,
            time_us=window.end_us,
            window_us=(window.start_us, window.end_us),
            detector=m.detector.name,
            n=window.n,
            fixed_rule=True,
            evidence={"error": error} if error else {},
        )

    def _rule(self, work: Work, m: Monitor, measured: Measured | None) -> None:
        """A fixed-rule detection is a decision by itself."""
        for d in measured.detections if measured is not None else ():
            firing = d.verdict is Verdict.ALARM
            known = quiet.watched(work.counters) or any(a.event is d.event for a in work.open.values())
            if not firing and not known:
                continue
            at_us = d.window_us[1] if not firing else d.window_us[0] + round(float(d.threshold or 0) * 1e6)
            self._decide(work, [decide.fixed(self.watched.name, d, window_us=(d.window_us[0], at_us), time_us=at_us)])

    def _by_rule(self, work: Work, found: Iterable[Detection], at_us: int) -> list[Decision]:
        """Windows that a rule judged by itself: alarms, and what ends the incident of one."""
        # A gauge never ends what fuse() found in callers.
        fused = (Event.ATTACK_SUSPECTED, Event.POISONING_SUSPECTED, Event.ACCESS_ANOMALY, Event.ABUSE_SUSPECTED)
        alive = {
            (a.event, a.subject) for a in work.open.values() if a.event not in fused or a.subject.kind == "component"
        }
        return [
            decide.fixed(self.watched.name, d, window_us=d.window_us, time_us=at_us)
            for d in found
            if d.streams is None
            and (d.verdict is Verdict.ALARM or (d.verdict is Verdict.OK and (d.event, d.subject) in alive))
        ]

    def _decide(self, work: Work, decisions: Iterable[Decision]) -> None:
        """Decisions become transitions of incidents, one by one in time order."""
        made = (self.watched.based(d, work.version_by(d.time_us)) for d in decisions)
        ordered = sorted(made, key=lambda d: (d.time_us, d.subject.kind, d.subject.id, d.event))
        if not ordered or work.silent:
            return
        work.take(lifecycle.step(ordered, work.standing, work.counters, self.watched.policy, work.told))

    def _store(self, work: Work, m: Monitor, found: Iterable[Detection]) -> None:
        if not work.silent:
            work.detections += [detection_row(self.watched.model_id, m, d) for d in found]
