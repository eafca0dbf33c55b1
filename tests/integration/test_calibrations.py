"""What a start learns from the reference, and what it reads back: each detector is calibrated, or refused, once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from detectors.quality.missing import Missing
from detectors.registry import REGISTRY
from tests.smalllogs import jsonl, made, service

REFERENCE = {"file": "a.jsonl"}


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each detector was calibrated."""
    done = Counter[str]()

    def counting(kind: Any) -> None:
        calibrate = kind.calibrate

        def count(self: Any, *args: Any) -> Any:
            done[self.name] += 1
            return calibrate(self, *args)

        monkeypatch.setattr(kind, "calibrate", count)

    for kind in set(REGISTRY.values()):
        counting(kind)
    return done


def start(folder: Path, model: dict[str, Any], **sections: Any) -> dict[str, str]:
    """Start the service, and stop it; what is refused."""
    run = service(folder, {"reference": REFERENCE, **model}, **sections)
    refused = dict(run.model("scores", 0).watched.refused)
    run.close()
    return refused


def missing(**params: Any) -> dict[str, Any]:
    """Monitors with parameters of their own for the detector of silence."""
    return {"monitors": {"gaps": {"model": "scores", "detector": "missing", "params": params}}}


def test_a_start_calibrates_nothing_again(tmp_path: Path, calibrated: Counter[str]) -> None:
    """Neither what could be calibrated nor what was refused, and it is refused for the same reason."""
    jsonl(tmp_path / "a.jsonl", made(range(-4, 0)))
    refused = start(tmp_path, {})
    assert {"missing", "rules", "queries", "membership", "canaries"} <= refused.keys()
    assert set(calibrated.values()) == {1}
    calibrated.clear()
    assert start(tmp_path, {}) == refused
    assert not calibrated


def test_a_refused_detector_is_tried_again_when_something_changed(
    tmp_path: Path, calibrated: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parameters, its version, the files of known rows or the reference; and what it then says is remembered too."""
    jsonl(tmp_path / "a.jsonl", made(range(-4, 0)))
    assert "missing" in start(tmp_path, {})
    calibrated.clear()
    assert "gaps" not in start(tmp_path, {}, **missing(min_gaps=50))
    assert calibrated == {"missing": 1}
    assert "gaps" in start(tmp_path, {}, **missing(min_gaps=90))
    assert "missing" in start(tmp_path, {})
    assert "gaps" not in start(tmp_path, {}, **missing(min_gaps=50))
    assert calibrated == {"missing": 2}
    for _ in range(2):  # where another parameter makes no difference, it is found by that one too
        assert "gaps" not in start(tmp_path, {}, **missing(min_gaps=60))
    assert calibrated == {"missing": 3}
    monkeypatch.setattr(Missing, "version", Missing.version + 1)
    assert "missing" in start(tmp_path, {})
    assert calibrated.pop("missing") == 4
    jsonl(tmp_path / "known.jsonl", made(range(-9, -4)))
    known = start(tmp_path, {"training": "known.jsonl", "canaries": "known.jsonl"})
    assert "canaries" not in known
    assert "names no" not in known["membership"]
    assert calibrated["membership"] == calibrated["canaries"] == 1
    calibrated.clear()
    jsonl(tmp_path / "b.jsonl", made(range(-20, 0), seed=2))
    assert "missing" not in start(tmp_path, {"reference": {"file": "b.jsonl"}})
    assert set(calibrated.values()) == {1}


def test_windows_of_another_length_are_learnt_anew(tmp_path: Path, calibrated: Counter[str]) -> None:
    """What hours of the reference teach says nothing about days."""
    jsonl(tmp_path / "a.jsonl", made(range(-50, 0)))

    def rules(window: str) -> dict[str, Any]:
        return {"monitors": {"own": {"model": "scores", "detector": "rules", "window": window}}}

    assert "own" not in start(tmp_path, {}, **rules("1h"))
    assert "own" in start(tmp_path, {}, **rules("1d"))
    calibrated.clear()
    assert "own" not in start(tmp_path, {}, **rules("1h"))
    assert not calibrated
