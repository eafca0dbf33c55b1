"""Detectors; what they compile is kept beside them.

numba keeps a compiled function by the file that it stands in and does not see that a file it calls into has changed: after
an upgrade old code could go on judging. So everything compiled lives in a folder named after all the sources together.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Final

KEPT: Final = 3  # folders of earlier sources, for whoever goes back and forth between versions


def _compiled(package: Path, home: Path) -> Path | None:
    """The folder for what these sources compile to: in the package where that is writable, else in the user's cache; None:
    nowhere, so that every process compiles for itself.
    """
    sources = sorted(package.rglob("*.py"))
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    for base in (package / "__pycache__", home / "lanner"):
        folder = base / f"compiled-{digest}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            others = [f for f in base.glob("compiled-*") if f != folder]
            for old in sorted(others, key=lambda f: f.stat().st_mtime)[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return None


def _keep() -> None:
    env = os.environ  # noqa: TID251 -- numba's own setting, not one of ours
    if "NUMBA_CACHE_DIR" in env:  # the operator's word, or that of the process which started this one
        return
    home = Path(env.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 -- never fails
    folder = _compiled(Path(__file__).parent, home)
    if folder is not None:
        env["NUMBA_CACHE_DIR"] = str(folder)
        if "numba" in sys.modules:  # it has read its environment already
            sys.modules["numba"].config.CACHE_DIR = str(folder)


_keep()
