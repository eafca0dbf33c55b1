"""What a reference costs while it is checked, cut and calibrated on."""

from __future__ import annotations

from benchmarks.measure import measured

ROWS = 200_000  # of which all samples of a reference are full
MORE = 4
GROWTH_MB = 40.0  # the rows that are more hold 80 MB, and twice that while they are sorted in memory


def test_memory_does_not_grow_with_the_rows() -> None:
    """Four times the rows of a reference out of order need no more memory to check, cut and calibrate on."""
    few, many = (measured("tests.reference_memory", n)["above_mb"] for n in (ROWS, MORE * ROWS))
    assert many < few + GROWTH_MB
