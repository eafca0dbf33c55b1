"""What the event log promises, on SQLite and PostgreSQL: all or nothing, once, in one order, and nothing forgotten."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa

from monitor.errors import FencedOut, StoreError
from monitor.intake import Advance, DeadLetter, Placed
from monitor.model import UNREGISTERED, FeedbackEvent, Half, Mark
from monitor.store import deadletters, ingest, people, reading
from monitor.store import segments as segment_files
from monitor.store.engine import read, write
from monitor.store.eventlog import EventLog
from monitor.store.labels import event_id
from monitor.store.schema import (
    audit,
    dead_letters,
    feedback,
    halves,
    idempotency,
    marks,
    partitions,
    segments,
    unregistered,
)
from tests.eventlogs import MODEL, NOON_US, Store, event, store


@pytest.fixture
def it(state_url: str, tmp_path: Path) -> Iterator[Store]:
    """A fresh event log."""
    with store(state_url, tmp_path) as fresh:
        yield fresh


def letter(offset: int) -> DeadLetter:
    """A message that could not be decoded, with everything a hostile one may hold."""
    return DeadLetter("t\x00", 0, offset, "bad_json", "det\x00ail\ud800", b"k", b"\xff\x00", [("h\ud800", b"\xff")], 7)


def count(it: Store, table: sa.Table) -> int:
    """Rows of a table."""
    with read(it.engine) as conn:
        return conn.scalar(sa.select(sa.func.count()).select_from(table)) or 0


def test_rows_can_be_read_right_after_publishing(it: Store) -> None:
    """What was appended is invisible before publishing, and complete and in order right after it."""
    assert it.append([event(i) for i in range(3)]).events == 3
    assert it.log.latest_batch(MODEL.model_id) == 0
    assert it.read("request_id").num_rows == 0
    assert it.publish() == 3
    assert it.publish() == 0
    got = it.read(
        "request_id", "event_time", "feature:amount", "feature:country", "offset", "batch", "ordinal", "position"
    )
    assert got.to_pydict() == {
        "request_id": ["r-0", "r-1", "r-2"],
        "event_time": [NOON_US, NOON_US + 1000, NOON_US + 2000],
        "feature:amount": [0.0, 1.0, 2.0],
        "feature:country": ["QA"] * 3,
        "offset": [0, 1, 2],
        "batch": [1] * 3,
        "ordinal": [0] * 3,
        "position": [0, 1, 2],
    }


def test_marks_are_told_with_the_batch_or_not_at_all(it: Store) -> None:
    """A batch that is fenced out leaves no mark behind; the one that counts leaves each mark once, audited."""
    said = Mark("fraud", "deploy", NOON_US, None, "version \x004", "ci")
    placed = [Placed("t", 0, 0, said), Placed("t", 0, 1, said)]
    batch = it.batch([event(2)])
    batch = replace(batch, parts=[*placed, *batch.parts])
    stale = replace(batch, advances=[replace(batch.advances[0], epoch=it.claim.epoch - 1)])
    with pytest.raises(FencedOut):
        it.log.append(stale)
    assert count(it, marks) == 0
    found = it.log.append(batch)
    assert found.stored() == [("event", 1), ("mark", 2)]
    with pytest.raises(FencedOut):
        it.log.append(batch)
    with read(it.engine) as conn:
        rows = people.marks_since(conn, "fraud", 0)
    assert [(r.mark.kind, r.mark.text, r.mark.actor) for r in rows] == [("deploy", "version \\x004", "ci")] * 2
    assert count(it, audit) == 2


def test_log_order_is_batch_ordinal_position(it: Store) -> None:
    """Segments of one batch are ordered by arrival and offset, batches by number; tables are as long as asked for."""
    for first in range(0, 60, 10):
        it.append([event(first + i) for i in range(10)])  # all at one moment: offsets must decide
        if first % 20:
            it.publish()
    for rows in (1, 7, 50_000):
        tables = list(it.log.read_log(MODEL.model_id, 0, 99, ["request_id"], rows))
        assert [n for t in tables for n in t["request_id"].to_pylist()] == [f"r-{i}" for i in range(60)]
        assert all(t.num_rows == rows for t in tables[:-1])
    assert it.read("request_id", after=2)["request_id"].to_pylist() == [f"r-{i}" for i in range(40, 60)]


def test_windows_are_cut_by_event_time(it: Store) -> None:
    """A window holds what happened in it, start included and end not, whenever it came; `upto` hides later batches."""
    it.append([event(i) for i in (5, 1, 9)])
    it.publish()
    it.append([event(i) for i in (3, 7)])
    it.publish()

    def window(start: int, end: int, upto: int | None = None) -> list[str]:
        bounds = (NOON_US + start * 1000, NOON_US + end * 1000)
        tables = it.log.read_window(MODEL.model_id, *bounds, ["request_id"], upto)
        return [n for t in tables for n in t["request_id"].to_pylist()]

    assert window(1, 7) == ["r-5", "r-1", "r-3"]
    assert window(1, 7, upto=1) == ["r-5", "r-1"]
    assert window(7, 9) == ["r-7"]
    assert window(20, 30) == []


def test_a_window_reads_only_what_can_hold_it(it: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large file a window reads the row groups that its times reach into, whatever the order of the events."""
    monkeypatch.setattr(segment_files, "ROW_GROUP", 2)
    it.append([event(i) for i in (0, 1, 4, 2, 3, 5, 9, 8, 6)])
    it.publish()
    seen: list[int] = []
    real = reading._within

    def watched(rows: pa.Table, *ends: int) -> pa.Table:
        seen.append(rows.num_rows)
        return real(rows, *ends)

    monkeypatch.setattr(reading, "_within", watched)
    for (start, end), wanted, groups in (
        ((2, 5), ["r-4", "r-2", "r-3"], 2), ((5, 6), ["r-5"], 1), ((6, 7), ["r-6"], 1), ((7, 8), [], 0), ((0, 10), None, 5)
    ):  # fmt: skip
        seen.clear()
        found = it.log.read_window(MODEL.model_id, NOON_US + start * 1000, NOON_US + end * 1000, ["request_id"])
        names = [n for t in found for n in t["request_id"].to_pylist()]
        assert wanted is None or names == wanted
        assert len(seen) == groups


def test_a_stale_epoch_is_refused_and_leaves_nothing(it: Store) -> None:
    """After another owner's claim the old owner's batch changes nothing, not even a file."""
    batch = it.batch([event(0)], [letter(0)])
    taken = it.log.claim("s", "other", [("t", 0)])["t", 0]
    assert (taken.epoch, taken.next_offset) == (it.claim.epoch + 1, None)
    with pytest.raises(FencedOut):
        it.log.append(batch)
    assert [count(it, t) for t in (segments, dead_letters)] == [0, 0]
    assert it.files() == set()


def test_an_offset_that_has_moved_is_refused(it: Store) -> None:
    """The same batch cannot be stored twice, nor one that skips messages."""
    batch = it.batch([event(0)])
    it.log.append(batch)
    for expected in (None, 0, 5):
        step = Advance("t", 0, it.claim.epoch, expected, 9, None)
        with pytest.raises(FencedOut):
            it.log.append(replace(batch, advances=(step,)))
    assert it.log.claim("s", "me", [("t", 0)])["t", 0].next_offset == 1
    assert count(it, segments) == 1


def test_one_refused_partition_refuses_the_whole_batch(it: Store) -> None:
    """A batch over several partitions is stored for all of them or for none."""
    second = it.log.claim("s", "me", [("t", 1)])["t", 1]
    steps = (Advance("t", 0, it.claim.epoch, None, 1, None), Advance("t", 1, second.epoch - 1, None, 1, None))
    with pytest.raises(FencedOut):
        it.log.append(replace(it.batch([event(0)]), advances=steps))
    assert it.log.claim("s", "me", [("t", 0)])["t", 0].next_offset is None


def test_a_crash_before_the_commit_leaves_only_a_nameless_file(it: Store) -> None:
    """An error at any point before the commit stores nothing; the same batch can then be stored."""

    def crash(at: str) -> None:
        def hook(point: str) -> None:
            if point == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            EventLog(it.engine, it.root, {"fraud": MODEL}, hook).append(it.batch([event(0)], [letter(0)]))

    for point in ("file_written", "in_transaction"):
        crash(point)
        assert [count(it, t) for t in (segments, dead_letters)] == [0, 0]
    it.append([event(0)])
    assert it.points == ["file_written", "in_transaction", "after_transaction"]
    assert len(it.files()) == 3
    it.publish()
    assert it.read("request_id").num_rows == 1


def test_a_file_that_waited_too_long_is_not_recorded(it: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch whose transaction comes an hour after its file is refused: the sweep may be near."""
    monkeypatch.setattr(ingest, "MAX_FILE_AGE_S", -1.0)
    with pytest.raises(StoreError, match="too old"):
        it.append([event(0)])
    assert count(it, segments) == 0


def test_events_of_unknown_models_are_kept_apart(it: Store) -> None:
    """They go to one table, are counted by name, and beyond a hundred names a source they count together."""
    hostile = "x\x00\ud800" + "y" * 300
    result = it.append([event(0), event(1, model=hostile), event(2, model=UNREGISTERED), event(3, model=UNREGISTERED)])
    assert (result.events, result.unregistered) == (4, 3)
    it.append([event(10 + i, model=f"m{i}") for i in range(150)])
    with read(it.engine) as conn:
        rows = {r.name: r.events for r in conn.execute(sa.select(unregistered))}
    assert len(rows) == 101
    assert rows[UNREGISTERED] == 2
    assert sum(rows.values()) == 153
    assert rows[ingest.OTHER_NAMES] == 52
    assert all(len(name) <= 200 for name in rows)
    stray = it.log.models[UNREGISTERED].model_id
    it.publisher.publish(stray, it.now_us)
    tables = it.log.read_log(stray, 0, 99, ["model", "feature:amount"])
    assert sum(t.num_rows for t in tables) == 153


def test_dead_letters_keep_everything_and_are_dealt_with_once(it: Store) -> None:
    """Key, value and headers come back byte by byte; only new letters can be marked; re-driving marks with the rows."""
    it.append([event(0)], dead=[letter(0), letter(1)])
    second, first = deadletters.find(it.engine, source="s")
    assert (first.letter.offset, first.letter.value, first.letter.key) == (0, b"\xff\x00", b"k")
    assert first.letter.headers == [("h?", b"\xff")]
    assert deadletters.counts(it.engine) == {("s", "bad_json", "new"): 2}
    it.append([event(1)], redriven=[first.id])
    with pytest.raises(FencedOut):
        it.append([event(1)], redriven=[first.id])
    assert deadletters.mark(it.engine, [first.id, second.id], "discarded") == 1
    assert [s.state for s in deadletters.find(it.engine, state=None)] == ["discarded", "redriven"]
    assert deadletters.find(it.engine, state=None, limit=1, before_id=second.id) == [
        deadletters.get(it.engine, first.id)
    ]
    assert deadletters.get(it.engine, 999) is None
    with pytest.raises(ValueError, match="not one of"):
        deadletters.mark(it.engine, [1], "lost")


def test_a_repeated_idempotency_key_stores_nothing(it: Store) -> None:
    """Within 24 hours the same key of the same source succeeds without storing; after it, it is a new key."""
    parts = [Placed("http", 0, 0, event(0))]
    once = replace(it.batch([]), parts=parts, advances=(), idempotency_key="k\x00")
    assert not it.log.append(once).repeated
    assert it.log.append(once).repeated
    assert not it.log.append(replace(once, source="other")).repeated
    assert not it.log.append(replace(once, received_us=NOON_US + ingest.IDEMPOTENCY_US)).repeated
    assert count(it, segments) == 3
    assert len(it.files()) == 3
    it.publisher.sweep(NOON_US + 3 * ingest.IDEMPOTENCY_US)
    assert count(it, idempotency) == 0


def test_feedback_and_halves_are_stored_with_the_batch(it: Store) -> None:
    """Feedback keeps every revision, halves wait with all they know, whatever characters they hold."""
    verdict = FeedbackEvent(
        model="fraud", target={"request_id": "r\x00"}, name="label\ud800", value=float("nan"), label_time_us=2**70
    )
    half = Half(side="request", pair_key="p\x00", event=event(0, principal="\ud800", event_time_us=2**80))
    result = it.append([verdict, half])
    assert (result.feedback, result.halves) == (1, 1)
    assert [count(it, feedback), count(it, halves)] == [1, 1]


def test_labels_join_on_what_was_known(it: Store) -> None:
    """Per event and name the newest label time known at the asked moment wins; ids of callers label all they named."""
    it.append([event(0), event(1, client_request_id="c"), event(2, client_request_id="c"), event(3, row_index=1)])
    hour = 3_600_000_000

    def label(target: dict[str, str], value: float | str | bool, hours: int) -> FeedbackEvent:
        return FeedbackEvent(
            model="fraud", target=target, name="label", value=value, label_time_us=NOON_US + hours * hour, labeler="ops"
        )

    it.now_us = NOON_US + 2 * hour
    it.append([label({"request_id": "r-0"}, "ok", 1), label({"client_request_id": "c"}, True, 1)])
    it.now_us = NOON_US + 4 * hour
    it.append([label({"request_id": "r-0"}, "fraud", 3), label({"request_id": "r-3", "row_index": "1"}, 2.5, 3)])
    it.append([label({"request_id": "r-3", "row_index": "0"}, 9, 3), label({"request_id": "r-99"}, 9, 3)])
    it.publish()

    def known(hours: int) -> dict[str, object]:
        table = it.log.labels("fraud", NOON_US, NOON_US + hour, NOON_US + hours * hour)
        return dict(zip(table["request_id"].to_pylist(), table["value"].to_pylist(), strict=True))

    assert known(0) == {}
    assert known(2) == {"r-0": "ok", "r-1": "true", "r-2": "true"}
    assert known(5) == {"r-0": "fraud", "r-1": "true", "r-2": "true", "r-3": "2.5"}


def test_labels_can_name_an_event_by_where_its_message_stood(it: Store) -> None:
    """An event id is derived from source, topic, partition, offset and row, so a replay gives the same one."""
    it.append([event(0, request_id=None)])
    target = {"event_id": event_id("s", "t", 0, 0, 0)}
    it.append([FeedbackEvent(model="fraud", target=target, name="label", value=1, label_time_us=NOON_US)])
    it.publish()
    assert it.log.labels("fraud", NOON_US, NOON_US + 10, NOON_US)["value_number"].to_pylist() == [1.0]


def test_labels_of_a_time_come_with_their_events(it: Store) -> None:
    """Whoever judges labelers sees each label given in a window, the newest of each labeler, beside the event's columns."""
    hour = 3600 * 1_000_000

    def label(request: str, value: str, at_us: int, labeler: str, kind: str = "truth") -> FeedbackEvent:
        return FeedbackEvent(
            model="fraud", target={"request_id": request}, name="label", value=value, label_time_us=at_us, labeler=labeler, kind=kind,
        )  # fmt: skip

    it.append([event(0), event(1)])
    later = NOON_US + 30 * 24 * hour
    it.append(
        [label("r-0", "ok", later, "ann"), label("r-0", "fraud", later + 1, "ann"), label("r-0", "ok", later, "bob")]
    )
    it.append([label("r-1", "ok", later + hour, "ann"), label("r-9", "ok", later, "ann")])
    it.append([label("r-1", "good", later, "bob", kind="user")])
    it.publish()
    found = it.log.feedback("fraud", later, later + hour, ["event_time"]).to_pylist()
    assert sorted((r["labeler"], r["value"], r["label_time_us"] - later) for r in found) == [
        ("ann", "fraud", 1), ("bob", "ok", 0)
    ]  # fmt: skip
    assert {r["event_time"] for r in found} == {NOON_US}
    assert it.log.feedback("fraud", 0, 1, ["event_time"]).num_rows == 0


def test_labels_of_other_times_count_when_they_were_received(it: Store) -> None:
    """A label belongs to its label time if it came about then, else to when it came; its event may be named by event_id."""
    minute = 60 * 1_000_000

    def said(target: dict[str, str], minutes: int) -> FeedbackEvent:
        at_us = it.now_us + minutes * minute
        return FeedbackEvent(model="fraud", target=target, name="label", value="ok", label_time_us=at_us, labeler="ann")

    it.append([event(0), event(1), event(2), event(3)])
    it.publish()
    it.now_us += 30 * 24 * 60 * minute
    by_event = {"event_id": event_id("s", "t", 0, 1, 0)}
    it.append([said({"request_id": "r-0"}, -5), said(by_event, -6), said({"client_request_id": "?"}, 0)])
    it.append([said({"request_id": "r-2"}, 600), said({"request_id": "r-3", "row_index": "4"}, 0)])

    def given(minutes: int, late_us: int | None = 5 * minute) -> list[tuple[int, int]]:
        start_us = it.now_us + minutes * minute
        found = it.log.feedback("fraud", start_us, start_us + minute, ["event_time"], late_us).to_pylist()
        return sorted(((r["event_time"] - NOON_US) // 1000, (r["label_time_us"] - it.now_us) // minute) for r in found)

    assert (given(-5), given(-6), given(600)) == ([(0, -5)], [], [])
    assert given(0) == [(1, -6), (2, 600)]
    assert (given(-6, None), given(600, None), given(0, None)) == ([(1, -6)], [(2, 600)], [])


def test_progress_of_partitions_is_kept_for_the_watermark(it: Store) -> None:
    """The newest event time only grows; being at the end counts from the first report on, and new events end it."""

    def progress() -> tuple[object, object]:
        with read(it.engine) as conn:
            row = conn.execute(sa.select(partitions)).one()
        return row.max_event_us, row.caught_up_since_us

    for first, newest in ((None, 50), (1, 40), (2, None), (3, 60)):
        step = Advance("t", 0, it.claim.epoch, first, (first or 0) + 1, newest)
        it.log.append(replace(it.batch([]), parts=(), advances=(step,)))
    assert progress() == (60, None)
    it.log.report("s", "me", {("t", 0): True}, 100)
    it.log.report("s", "me", {("t", 0): True}, 200)
    it.log.report("s", "stranger", {("t", 0): False}, 300)
    assert progress() == (60, 100)
    it.log.report("s", "me", {("t", 0): False}, 400)
    assert progress() == (60, None)


def test_nested_write_transactions_are_refused(it: Store) -> None:
    """A second transaction in one thread would be a savepoint, or a deadlock: it is an error."""
    with write(it.engine), pytest.raises(RuntimeError, match="already has a write transaction"), write(it.engine):
        pass  # pragma: no cover


def test_random_batches_are_read_back_in_order_and_whole(it: Store) -> None:
    """Whatever the sizes of flushes, publications and merges, readers see every row once and in one order."""
    rng = random.Random(3)
    sent = 0
    for _ in range(30):
        size = rng.randint(0, 40)
        it.append([event(sent + i) for i in range(size)])
        sent += size
        it.now_us += rng.randint(0, 2_000_000)
        if rng.random() < 0.4:
            it.publish()
    it.publish()
    rows = it.read("request_id", "batch", "ordinal", "position", max_rows=rng.randint(1, 99))
    assert rows["request_id"].to_pylist() == [f"r-{i}" for i in range(sent)]
    order = [tuple(r.values()) for r in rows.select(["batch", "ordinal", "position"]).to_pylist()]
    assert order == sorted(order)
    assert isinstance(rows, pa.Table)
