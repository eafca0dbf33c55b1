"""The directory of principals: every mistake with its line, and which entry a name gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitor.config import directories, load
from monitor.config.principals import read_directory
from monitor.errors import ConfigError

GOOD = """
- id: svc-batch-7
  owner: cards-ops
- id: 'svc-batch-*'
  kind: service
  group: batch
  profile: batch
  budget: {kappa: 0.8, distinct_rows: 100000}
- id: 'analyst-[ab]?'
  profile: ${PROFILE:-what_if}
"""
BAD = """
- id: 'svc-*'
  profile: batchh
- id: svc-a
  budget: {kappa: 2, rows: 3}
- kind: x
- id: 'svc-*'
- id: ${NOWHERE}
"""


def written(tmp_path: Path, text: str) -> Path:
    """A configuration beside a directory with this text."""
    (tmp_path / "who.yaml").write_text(text)
    config = tmp_path / "lanner.yaml"
    config.write_text("models:\n  m: {principals: who.yaml}\n  n: {}\n")
    return config


def test_the_first_entry_that_fits_counts(tmp_path: Path) -> None:
    """Exact names and patterns, in file order; upper case counts; nobody else is known."""
    known = directories(load(written(tmp_path, GOOD), env={}), {})
    assert list(known) == ["m"]
    entries = {
        n: known["m"].entry(n) for n in ("svc-batch-7", "svc-batch-8", "analyst-b1", "SVC-BATCH-8", "analyst-c1")
    }
    assert {n: e.id for n, e in entries.items() if e} == {
        "svc-batch-7": "svc-batch-7", "svc-batch-8": "svc-batch-*", "analyst-b1": "analyst-[ab]?",
    }  # fmt: skip
    batch, analyst = entries["svc-batch-8"], entries["analyst-b1"]
    assert batch and batch.budget.kappa == 0.8 and batch.budget.distinct_rows == 100_000
    assert analyst and analyst.profile == "what_if"
    assert known["m"].matching("svc-batch-7") == ("svc-batch-*",)


def test_all_mistakes_at_once_with_their_lines(tmp_path: Path) -> None:
    """check-config names what is wrong in the directory as in the file that names it."""
    with pytest.raises(ConfigError) as raised:
        load(written(tmp_path, BAD), env={})
    said = [(Path(m.file).name, m.line, m.message) for m in raised.value.mistakes]
    assert [(f, n) for f, n, _ in said] == [("who.yaml", n) for n in (3, 4, 5, 5, 6, 7, 8)]
    text = "\n".join(m for _, _, m in said)
    for part in (
        "profile: must be batch, what_if,", "1.id: is never reached; `svc-*` in line 2", "kappa: must be at most 1",
        "unknown key `rows`", "`id` is missing", "3.id: is never reached", "NOWHERE is not set",
    ):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(("text", "said"), [("", "is empty"), ("id: x", "must be a list"), ("- [", "not valid YAML")])
def test_a_file_that_is_no_directory(tmp_path: Path, text: str, said: str) -> None:
    """Anything but a list of entries is refused in one sentence."""
    file = tmp_path / "who.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_directory(file, {})
