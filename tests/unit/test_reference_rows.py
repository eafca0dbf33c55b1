"""Rows of a reference file that cannot be used stop it, with the line and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from monitor.config import Config
from monitor.errors import ConfigError
from monitor.service.frozen import reference_events


def written(folder: Path, *times: str | None) -> Path:
    """A reference file with a row per time."""
    file = folder / "reference.jsonl"
    rows = [{"features": {"x": float(i)}} | ({"event_time": t} if t else {}) for i, t in enumerate(times)]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("times", "line"), [(("1999-03-01T00:00:00Z", "2026-01-01T00:00:00Z", "2200-01-01T00:00:00Z"), 3),
                        (("2026-01-01T00:00:00Z", None, "1974-01-05T00:00:00Z"), 3)]
)  # fmt: skip
def test_rows_decades_apart_are_a_mistake(tmp_path: Path, times: tuple[str | None, ...], line: int) -> None:
    """Every hour between the first and the last row is a window, so one wrong year would make millions of empty ones."""
    file = written(tmp_path, *times)
    with pytest.raises(ConfigError, match="more than 50 years from") as told:
        list(reference_events(Config.model_validate({"models": {"m": {}}}), "m", file))
    assert f"reference.jsonl:{line}" in str(told.value)
    assert "correct or leave out the wrong one" in str(told.value)


def test_rows_of_decades_are_read(tmp_path: Path) -> None:
    """Twenty years, and rows without a time among them."""
    file = written(tmp_path, "2005-01-01T00:00:00Z", None, "2025-01-01T00:00:00Z")
    assert [
        e.event_time_us == 0 for e in reference_events(Config.model_validate({"models": {"m": {}}}), "m", file)
    ] == [False, True, False]
