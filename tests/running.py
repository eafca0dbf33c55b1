"""`lanner run` as a process of its own, and waiting for what it does."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LANNER = Path(sys.executable).with_name("lanner")


def eventually(what: Callable[[], Any], timeout_s: float = 120.0) -> Any:
    """Poll until something is true; its value. AssertionError with the last value otherwise."""
    end, value = time.monotonic() + timeout_s, None
    while time.monotonic() < end:
        value = what()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout_s} s; last seen: {value!r}")


@contextmanager
def running(file: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`lanner run` until the block ends, then SIGTERM; it must end cleanly by itself."""
    with log.open("ab") as out:
        process = subprocess.Popen([LANNER, "run", "-c", file], stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
    except BaseException:
        print(log.read_text(errors="replace")[-6000:])
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(40)
    assert code == 0, log.read_text(errors="replace")[-3000:]
