"""Labels that come late, backdated or by night, through a real event log and ticks on the wall clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pytest

from collectors.base import Advance, IngestBatch, Placed
from detectors.registry import DEFAULTS
from monitor.config import load
from monitor.model import HOUR_US, SECOND_US, Action, FeedbackEvent, InferenceEvent, Transition, rfc3339
from monitor.service.compose import Service
from monitor.service.replay import replay
from monitor.store.labels import event_id
from tests import smalllogs
from tests.smalllogs import MODEL, START_US

MINUTE_US: Final = 60 * SECOND_US
LABELERS: Final = ("ann", "bob", "eve")
Came = tuple[int, InferenceEvent | FeedbackEvent]  # when it was received, and what
When = Callable[[str, int], tuple[int, int]]  # labeler and event time -> label time, and when it was received


def traffic(
    hours: int, when: When, *, flips_from: int = 6, per_hour: int = 90, by_event_id: bool = False
) -> list[Came]:
    """Events of a model and labels of three persons in turn; eve says the opposite from an hour on."""
    came: list[Came] = []
    for i, made in enumerate(smalllogs.made(range(hours), per_hour, seed=5)):
        at = made.event_time_us // 1000 * 1000  # whole milliseconds, as files hold them
        event = msgspec.structs.replace(made, request_id=f"r-{i}", event_time_us=at)
        came.append((at + SECOND_US, event))
        who = LABELERS[i % 3]
        flips = who == "eve" and at >= START_US + flips_from * HOUR_US
        said = {"yes": "no", "no": "yes"}[str(event.prediction)] if flips else str(event.prediction)
        label_us, received_us = when(who, at)
        target = {"event_id": event_id("s", "t", 0, i, 0)} if by_event_id else {"request_id": f"r-{i}"}
        label = FeedbackEvent(model=MODEL, target=target, name="label", value=said, label_time_us=label_us, labeler=who)
        came.append((received_us, label))
    return sorted(came, key=lambda c: (c[0], isinstance(c[1], FeedbackEvent)))


def lived(
    run: Service, came: Sequence[Came], step: int, ticks: Callable[[int], bool] = lambda minute: True
) -> list[Transition]:
    """Receive every `step` minutes, tick at those that `ticks` picks; what was said of labelers."""
    log, place = run.log, {"t": 0, "labels": 0}
    claims = log.claim("s", "test", [(topic, 0) for topic in place])
    found: list[Transition] = []
    left = list(came)
    for minute in range(step, (came[-1][0] - START_US) // MINUTE_US + 130, step):
        now_us, parts = START_US + minute * MINUTE_US, []
        while left and left[0][0] < now_us:
            parts.append(left.pop(0)[1])
        for topic, kind in (("t", InferenceEvent), ("labels", FeedbackEvent)):
            own = [p for p in parts if isinstance(p, kind)]
            if own:
                at, epoch = place[topic], claims[topic, 0].epoch
                high = max((p.event_time_us for p in own if isinstance(p, InferenceEvent)), default=None)
                moved = Advance(topic, 0, epoch, at or None, at + len(own), high)
                placed = [Placed(topic, 0, at + i, p) for i, p in enumerate(own)]
                log.append(IngestBatch(source="s", received_us=now_us, parts=placed, advances=[moved]))
                place[topic] = at + len(own)
        if ticks(minute):
            log.report("s", "test", {("t", 0): True, ("labels", 0): True}, now_us)
            run.publisher().publish(run.tables[MODEL].model_id, now_us)
            live = run.model(MODEL, now_us)
            live.tick("test", now_us, clock="wall")
            found += live.committed
    return of_labelers(found)


def of_labelers(found: Sequence[Transition]) -> list[Transition]:
    return [t for t in found if t.alert.subject.kind == "labeler"]


def opened(found: Sequence[Transition]) -> list[tuple[str, float]]:
    """Who was accused, and after how many hours of the log."""
    return [(t.alert.subject.id, (t.alert.opened_us - START_US) / HOUR_US) for t in found if t.action is Action.OPEN]


def service(folder: Path) -> Service:
    folder.mkdir(exist_ok=True)
    smalllogs.jsonl(folder / "ref.jsonl", smalllogs.made(range(-48, 0), 40))
    others = {n: {"model": MODEL, "detector": n, "enabled": False} for n in DEFAULTS if n != "feedback"}
    return smalllogs.service(folder, {"reference": {"file": "ref.jsonl"}}, clock="wall", monitors=others)


def at_once(who: str, at: int) -> tuple[int, int]:
    return at + 10 * MINUTE_US, at + 10 * MINUTE_US + 20 * SECOND_US


def backdated(who: str, at: int) -> tuple[int, int]:
    return (at - 80 * MINUTE_US, at + 10 * MINUTE_US) if who == "eve" else at_once(who, at)


def ahead(who: str, at: int) -> tuple[int, int]:
    return (at + 10_000 * HOUR_US, at + 10 * MINUTE_US) if who == "eve" else at_once(who, at)


def nightly(who: str, at: int) -> tuple[int, int]:
    """The labels of a day come in one file at two in the morning."""
    return at + 10 * MINUTE_US, (at // (24 * HOUR_US) + 1) * 24 * HOUR_US + 2 * HOUR_US


@pytest.mark.parametrize("when", [backdated, ahead])
def test_who_misdates_labels_is_found_all_the_same(tmp_path: Path, when: When) -> None:
    """Label times an hour and a half back, or a year ahead, keep nobody's flipped labels from being judged."""
    found = opened(lived(service(tmp_path), traffic(14, when), 20))
    assert [who for who, _ in found] == ["eve"]
    assert 6 <= found[0][1] <= 16


@pytest.mark.parametrize("by_event_id", [False, True])
def test_a_nightly_file_of_labels_is_judged(tmp_path: Path, by_event_id: bool) -> None:
    """Labels that come by night are judged in the window in which they came, whatever id they name their events by."""
    came = traffic(72, nightly, flips_from=24, per_hour=30, by_event_id=by_event_id)
    found = opened(lived(service(tmp_path), came, 60))
    assert [who for who, _ in found] == ["eve"]
    assert found[0][1] == pytest.approx(50, abs=1)


def test_live_finds_what_a_replay_finds_wherever_ticks_fall(tmp_path: Path) -> None:
    """Labels that come on time give the same incidents live, under other ticks, and in a replay; late ones under any ticks."""
    came = traffic(9, at_once)
    rng = np.random.default_rng(3)
    often = lived(service(tmp_path / "a"), came, 4, lambda minute: minute % 8 == 0)
    seldom = lived(service(tmp_path / "b"), came, 4, lambda minute: minute > 600 or bool(rng.random() < 0.05))
    rows = [_row(part) for _, part in came]
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    again = of_labelers(replay(load(tmp_path / "a" / "lanner.yaml"), [tmp_path / "log.jsonl"]).transitions)
    assert [who for who, _ in opened(often)] == ["eve"]
    assert opened(seldom) == opened(often) == opened(again)
    late = traffic(12, backdated)
    once = lived(service(tmp_path / "c"), late, 10)
    assert opened(once) == opened(lived(service(tmp_path / "d"), late, 10, lambda minute: minute % 110 == 0)) != []


def _row(part: InferenceEvent | FeedbackEvent) -> dict[str, Any]:
    """A native message."""
    if isinstance(part, FeedbackEvent):
        return {
            "kind": "feedback", "model": MODEL, "target": part.target, "name": part.name, "value": part.value,
            "label_time": rfc3339(part.label_time_us), "labeler": part.labeler,
        }  # fmt: skip
    return {
        "event_time": rfc3339(part.event_time_us), "model": MODEL, "request_id": part.request_id, "features": part.features,
        "principal": part.principal, "model_version": part.model_version, "prediction": part.prediction, "scores": part.scores,
        "class_names": part.class_names,
    }  # fmt: skip
