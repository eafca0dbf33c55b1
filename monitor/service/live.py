"""A model that this process holds the lease of: hot state between ticks, one committed transaction per tick."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pyarrow as pa

from alerts import lifecycle
from detectors import decide
from detectors.base import Feedback, State, pack, unpack
from monitor.config import Config
from monitor.errors import FencedOut
from monitor.model import SECOND_US, Alert, Event, Transition
from monitor.service import counts, groups
from monitor.service.callers import Find, nobody
from monitor.service.due import watermark
from monitor.service.judge import Judge
from monitor.service.references import recount
from monitor.service.told import told
from monitor.service.watch import Watched
from monitor.service.windows import no_rows
from monitor.service.work import NEVER, Work
from monitor.store import leases, ledger
from monitor.store.counts import ProfileRow
from monitor.store.eventlog import EventLog
from monitor.store.queries import Engine

SNAPSHOT_BYTES = 1 << 20  # per-principal state up to this size is stored with every tick
SNAPSHOT_ROWS = 200_000  # larger state after so many rows; a crash re-reads at most these
MAX_BATCHES = 500  # batches that one tick reads at most, so that its transaction stays short
BEAT_US = 20 * SECOND_US
SCHEDULE_S = 60.0  # detectors that read the log run with every tick; less than a minute's silence says nothing


@dataclass
class LiveModel:
    """One model in one scheduler process."""

    watched: Watched
    engine: Engine
    log: EventLog
    config: Config
    sinks_for: Callable[[Transition], Sequence[str]]
    callers: Find = nobody
    work: Work | None = None
    epoch: int = 0
    hold: leases.Hold | None = None  # while a tick works
    beat_us: int = NEVER  # when the detectors' heartbeats were last stored
    batches: int = MAX_BATCHES  # read by one tick; less after a tick that outlived its lease
    committed: list[Transition] = field(default_factory=list)  # of the last tick, for consoles and replay

    def tick(self, owner: str, now_us: int, *, clock: str | None = None, close: bool = False) -> bool:
        """One tick; False when another process holds the lease. `close` ends a replay: judge all that has ended.

        Raises FencedOut when the lease was lost on the way: nothing was written, the hot state is dropped.
        """
        clock = clock or self.config.clock
        ttl_us = round(self.config.schedule.lease * SECOND_US)
        lease = f"model:{self.watched.model_id}"
        epoch = leases.acquire(self.engine, lease, owner, now_us, ttl_us, model_id=self.watched.model_id)
        self.committed = []
        if epoch is None:
            self.work = None
            return False
        latest = self.log.latest_batch(self.watched.model_id)
        standing = ledger.standing(self.engine, self.watched.model_id, self.watched.name, latest)
        if standing.epoch != epoch:
            raise FencedOut(f"model {self.watched.name}: another scheduler has taken the lease")
        self.hold = leases.Hold(self.engine, lease, owner, epoch, now_us, ttl_us)
        try:
            if self.work is None or self.epoch != epoch or self.work.position != standing.position:
                self.work, self.epoch = self._restore(standing), epoch
            self._run(self.work, standing, latest, now_us, clock, close=close)
        except FencedOut:
            # Some part of the tick took longer than its lease: smaller ones get through, or two would only rob each other.
            self.work, self.batches = None, max(1, min(self.batches, latest - standing.position) // 8)
            raise
        except BaseException:
            self.work = None  # half-way state must never be carried on
            raise
        finally:
            self.hold = None
        self.batches = min(MAX_BATCHES, self.batches * 2)
        if clock == "wall":
            self._beat(self.work, now_us)
        return True

    def _beat(self, work: Work, now_us: int) -> None:
        """Say which detectors have completed a run: those of windows by judging one, the others by living through ticks."""
        if now_us - self.beat_us < BEAT_US:
            return
        known = {f"detector:{self.watched.name}/{m.name}": m for m in self.watched.monitors}
        first = self.beat_us == NEVER  # a process that begins counts as a sign of life: nothing is late yet
        done = {
            name: {"schedule_s": max(m.window_us / SECOND_US if m.reads == "windows" else 0.0, SCHEDULE_S)}
            for name, m in known.items()
            if first or m.name in work.ran or (m.reads != "windows" and m.name not in work.failing)
        }
        ledger.beat_all(self.engine, done, now_us, only=(f"detector:{self.watched.name}/", known) if first else None)
        self.beat_us = now_us
        work.ran.clear()

    def release(self, owner: str) -> None:
        """Let others go on with this model at once."""
        leases.release(self.engine, f"model:{self.watched.model_id}", owner)

    def judge(self, work: Work) -> Judge:
        """The pure middle, with its ways to the store bound."""
        watched = self.watched
        # A log that is its own clock does not tell when a label came: what it is received at is another time.
        late_us = watched.lateness_us if self.config.clock == "wall" else None

        def read(start_us: int, end_us: int, columns: Sequence[str]) -> pa.Table:
            self._keep()
            return _joined(self.log.read_window(watched.model_id, start_us, end_us, columns), columns)

        return Judge(
            watched,
            read=read,
            labels=lambda start, end, as_of: self.log.labels(watched.name, start, end, as_of),
            feedback=lambda start, end, columns: self.log.feedback(watched.name, start, end, columns, late_us),
            # A bucket that is asked for holds no row of the tick under way. Fresh state stands at no batch: all counts.
            stored=lambda start, end: counts.stored(self.engine, self.log, watched, start, end, work.position or None),
            callers=self.callers,
        )

    def _keep(self) -> None:
        if self.hold is not None:
            self.hold.keep()

    def fresh(self) -> Work:
        """State as it was before any event: what backfill starts from."""
        return Work.fresh()

    def _run(self, work: Work, standing: ledger.Standing, latest: int, now_us: int, clock: str, *, close: bool) -> None:
        upto = min(latest, standing.position + self.batches)
        mark = watermark(
            self._configured(standing.partitions),
            held_us=standing.held_us,
            previous_us=standing.watermark_us,
            now_us=now_us,
            idle_us=round(self.config.schedule.idle * SECOND_US),
            clock=clock,
            files={name for name, source in self.config.sources.items() if source.type == "files"},
        )
        judge = self.judge(work)
        work.told, acts = told(self.engine, self.watched.name, now_us, self.config)
        rules, at_us = self.watched.policy, now_us if clock == "wall" else max(work.high_us, mark or NEVER)
        if acts:
            work.take(lifecycle.settle([a.act for a in acts], work.standing, work.counters, rules, at_us))
            work.applied = [a.id for a in acts]
        if work.standing:
            work.take(lifecycle.believed(work.standing, work.counters, rules, work.told, at_us))
        for table in self.log.read_log(self.watched.model_id, standing.position, upto, self.watched.columns):
            judge.absorb(work, self.watched.known.mark(table), mark)
            self._keep()
        if upto == latest:
            judge.judge(work, mark)
            if close and work.high_us != NEVER:
                judge.judge(work, work.high_us, lateness_us=0)
                self._partial(work)
            # Wall time says what silence is; a log clock stands still with its events.
            judge.silence(work, now_us if clock == "wall" else max(work.high_us, mark or NEVER))
        work.position = upto
        self._commit(work, standing, mark, now_us)

    def _configured(self, found: Sequence[ledger.PartitionProgress]) -> Sequence[ledger.PartitionProgress]:
        """Partitions that may still bring events: what is no longer configured must not hold time for ever."""
        if not self.config.sources:
            return found
        sources = {name: s for name, s in self.config.sources.items() if s.decoder != "marks"}  # they move no clock
        topics = {name: source.topic for name, source in sources.items()}
        return [p for p in found if p.source in sources and topics[p.source] in (None, p.topic)]

    def _partial(self, work: Work) -> None:
        """The window that the log ends in was not seen whole: it is recorded as insufficient, never judged."""
        for m in self.watched.monitors:
            if m.reads == "windows":
                start = work.high_us // m.window_us * m.window_us
                if work.last_end.get(m.name, NEVER) > start:  # labels that came after the last event closed it
                    continue
                row = ledger.LedgerRow(
                    m.name, start, start + m.window_us, "insufficient", 0, "partial: the log ends here"
                )
                work.ledger.append(row)
                work.last_end[m.name] = start + m.window_us

    def _commit(self, work: Work, standing: ledger.Standing, mark: int | None, now_us: int) -> None:
        watched = self.watched
        idle = work.position == standing.position and mark == standing.watermark_us
        if (
            idle
            and not work.touched
            and not work.ledger
            and not work.transitions
            and not work.applied
            and not work.excepted
        ):
            work.settle()
            return
        touched = [
            ProfileRow(
                watched.reference_hash, b, b + watched.bucket_us, work.profiles[b].n, work.profiles[b].to_bytes()
            )
            for b in sorted(work.touched)
        ]
        divided = groups.of_buckets(self.log, watched, groups.ended(work, watched), work.position)
        states, snapshot = self._snapshot(work)
        ledger.commit(
            self.engine,
            ledger.TickCommit(
                model_id=watched.model_id,
                epoch=standing.epoch,
                position=standing.position,
                to_position=work.position,
                watermark_us=mark,
                last_event_us=None if work.high_us == NEVER else work.high_us,
                now_us=now_us,
                ledger=work.ledger,
                profiles=touched,
                groups={(watched.reference_hash, start): body for start, body in divided.items()},
                states=states,
                detections=work.detections,
                alerts=list(work.alerts.values()),
                transitions=work.transitions,
                applied=work.applied,
                excepted=work.excepted,
                marks=work.marks,
            ),
            self.sinks_for,
        )
        work.stored |= {n: work.states[n] for n in states if n in work.states}
        if snapshot:
            work.rows_since_snapshot = 0
        self.committed = list(work.transitions)
        work.settle()

    def _snapshot(self, work: Work) -> tuple[dict[str, bytes | None], bool]:
        """State to store with this tick.

        What windows left behind is stored always; per-principal state only while it is small or after many rows,
        since a crash can re-read those. `log` says at which position the per-principal state stands.
        """
        windows = {f"detector:{m.name}" for m in self.watched.monitors if m.reads != "log"} | {"budget", "labelers"}
        changed = {n: s for n, s in work.states.items() if s is not work.stored.get(n)}
        states: dict[str, bytes | None] = {n: s.to_bytes() for n, s in changed.items() if n in windows}
        small = (
            work.rows_since_snapshot == 0
            or sum(_size(s) for n, s in work.states.items() if n not in windows) <= SNAPSHOT_BYTES
        )
        due = small or work.rows_since_snapshot >= SNAPSHOT_ROWS
        if due:
            states |= {n: s.to_bytes() for n, s in changed.items() if n not in windows}
            states["log"] = pack({"position": work.position}, {})
        head = {
            "feedback": {
                "frozen": work.feedback.frozen,
                "restart": work.feedback.restart,
                "suspects": sorted(work.feedback.suspects),
            },
            "counters": dict(work.counters),
            "first_us": work.first_us,
            "late_us": work.late_us,
            "reference": self.watched.reference_hash,
            "bucket_us": self.watched.bucket_us,
            "versions": work.versions,
            "refused": dict(self.watched.refused),
            "void": dict(self.watched.void),
        }
        states["service"] = msgspec.json.encode(head)
        before = (
            {str(end): {n: s.to_bytes() for n, s in kept.items()} for end, kept in work.before.items()}
            if work.ledger
            else None
        )
        if before is not None:
            states["before"] = msgspec.msgpack.encode(before)
        return states, due

    def _restore(self, standing: ledger.Standing) -> Work:
        """Hot state from the store; per-principal state catches up silently to the ledger's position."""
        stored = ledger.load_states(self.engine, self.watched.model_id)
        head: dict[str, Any] = msgspec.json.decode(stored["service"]) if "service" in stored else {}
        kept = msgspec.msgpack.decode(stored["before"]) if "before" in stored else {}
        feedback = head.get("feedback") or {}
        work = Work(
            position=standing.position,
            states={
                n: State.from_bytes(b)
                for n, b in stored.items()
                if n.startswith("detector:") or n in ("budget", "fuse", "labelers")
            },
            feedback=Feedback(
                frozen=feedback.get("frozen", False),
                restart=feedback.get("restart", False),
                suspects=frozenset(feedback.get("suspects", ())),
            ),
            counters=head.get("counters") or {},
            open={a.key: a for a in standing.open},
            last_end=dict(standing.last_end_us),
            first_us=head.get("first_us"),
            versions=head.get("versions") or dict.fromkeys(self.watched.versions, 0),
            late_us=head.get("late_us"),
            high_us=NEVER if standing.last_event_us is None else standing.last_event_us,
            before={int(end): {n: State.from_bytes(b) for n, b in s.items()} for end, s in kept.items()},
        )
        at = int(unpack(stored["log"])[0]["position"]) if "log" in stored else 0
        if at < standing.position:
            self._catch_up(work, at, standing.position)
        if head.get("reference", self.watched.reference_hash) != self.watched.reference_hash:
            self._rebase(work)
        elif head.get("bucket_us", self.watched.bucket_us) != self.watched.bucket_us:
            self._recount(work)
        self._retire(work)
        return work

    def _rebase(self, work: Work) -> None:
        """Go on under another reference: what windows said under the old one ends, what they need is counted anew.

        Guilt of callers stays. Monitors that could not run so far begin with the window that is under way.
        """
        watched = self.watched
        if work.high_us == NEVER:
            return
        work.first_us = work.high_us // watched.longest_us * watched.longest_us
        self._recount(work)
        work.before, work.late_us = {}, None
        work.states.pop("budget", None)
        work.feedback = replace(work.feedback, frozen=False, restart=False)
        kinds = ("model", "segment", "principal")  # of callers: that their use has crept up
        own = [a for a in work.standing if a.event in decide.LANES and a.subject.kind in kinds]
        work.take(lifecycle.end(own, work.standing, work.counters, watched.policy, work.high_us, "new reference"))

    def _retire(self, work: Work) -> None:
        """Forget what monitors said that are no more. What is known of callers goes on by itself."""
        monitors, rules = self.watched.monitors, self.watched.policy
        names, detectors = {m.name for m in monitors}, {m.detector.name for m in monitors}
        work.take(lifecycle.retire(detectors, work.standing, work.counters, rules, work.high_us))
        failed = [a for a in work.standing if a.event is Event.DETECTOR_FAILED and a.subject.id not in names]
        work.take(lifecycle.end(failed, work.standing, work.counters, rules, work.high_us, lifecycle.RETIRED))
        if (state := work.states.get("budget")) is not None:
            work.states["budget"] = decide.kept(state, {(m.detector.name, m.window_us) for m in monitors})

    def _recount(self, work: Work) -> None:
        """Count what windows under way need in the model's present buckets: other ones are stored."""
        watched = self.watched
        if work.high_us == NEVER:
            return
        ends = [work.last_end[m.name] for m in watched.monitors if m.reads == "windows" and m.name in work.last_end]
        start_us = min([work.high_us // watched.longest_us * watched.longest_us, *ends]) // watched.longest_us
        # Up to the ledger's position, as what follows is counted when it is read.
        work.profiles = recount(
            self.log, watched.model_id, watched.bins, watched.columns, watched.bucket_us,
            ((start_us - 1) * watched.longest_us, 1 << 62), upto=work.position,
        )  # fmt: skip
        work.touched |= set(work.profiles)

    def _catch_up(self, work: Work, after: int, upto: int) -> None:
        work.silent = True
        judge = self.judge(work)
        for table in self.log.read_log(self.watched.model_id, after, upto, self.watched.columns):
            times = table.column("event_time").to_numpy()
            marked = self.watched.known.mark(table)
            judge.follow(work, judge.stretch(marked, int(times.min()), int(times.max())))
            self._keep()
        work.silent = False


def _size(state: State) -> int:
    return sum(a.nbytes for a in state.arrays.values())


def _joined(tables: Iterable[pa.Table], columns: Sequence[str]) -> pa.Table:
    """One table; these columns and nothing in them where the log has no rows."""
    found = list(tables)
    return pa.concat_tables(found) if found else no_rows(columns)


def open_alerts(work: Work) -> list[Alert]:
    """Alerts that stand open now, by opening time."""
    return sorted(work.open.values(), key=lambda a: (a.opened_us, a.alert_id))
