"""Where compiled code is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from detectors import KEPT, _compiled

CALLER = "import numba\nfrom inner import inner\n\n@numba.njit(cache=True)\ndef outer(x):\n    return inner(x)\n"
CALLED = "import numba\n\n@numba.njit(cache=True)\ndef inner(x):\n    return x + {}\n"


def answer(package: Path, home: Path) -> str:
    """What the compiled caller says in a fresh process that keeps its code where we say."""
    env = {**os.environ, "NUMBA_CACHE_DIR": str(_compiled(package, home)), "PYTHONDONTWRITEBYTECODE": "1"}
    code = "from outer import outer; print(outer(1))"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=package, env=env, check=True, capture_output=True
    ).stdout.decode()


def test_a_change_in_a_called_file_is_seen(tmp_path: Path) -> None:
    """The caller's file stays as it is, and still the new code answers."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "outer.py").write_text(CALLER)
    for wanted in (1, 2):
        (package / "inner.py").write_text(CALLED.format(wanted))
        assert answer(package, tmp_path / "home") == f"{1 + wanted}\n"
    assert len(list((package / "__pycache__").glob("compiled-*"))) == 2


def test_a_package_that_cannot_be_written_keeps_code_in_the_cache(tmp_path: Path) -> None:
    """As in a container with a read-only file system; and where nothing can be written, nowhere."""
    package, home = tmp_path / "package", tmp_path / "home"
    package.mkdir()
    (package / "__pycache__").touch()  # no folder can be made here, not even by root
    found = _compiled(package, home)
    assert found is not None
    assert found.parent == home / "lanner"
    home.joinpath("taken").touch()
    assert _compiled(package, home / "taken") is None


def test_old_code_is_thrown_away(tmp_path: Path) -> None:
    """Of many versions only the latest are kept."""
    for i in range(KEPT + 4):
        (tmp_path / "a.py").write_text(f"x = {i}\n")
        _compiled(tmp_path, tmp_path / "home")
    assert len(list((tmp_path / "__pycache__").glob("compiled-*"))) == KEPT + 1
