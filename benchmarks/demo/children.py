"""Child processes that never outlive the demo: not after Ctrl-C, and on Linux not after kill -9 either."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

# Linux: ask for SIGTERM when the parent dies (PR_SET_PDEATHSIG = 1), then become the program. A launcher, because code
# between fork and exec is not safe in a process that has threads.
_LAUNCH = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"


@contextlib.contextmanager
def child(
    command: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
    grace_s: float = 15.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a session of its own: Ctrl-C reaches it once, from us, and its whole group ends with it."""
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCH] if sys.platform == "linux" else []
    process = subprocess.Popen(
        [*launcher, *(str(part) for part in command)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output is not None else None,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        stop(process, grace_s)


def stop(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """Ask it to end, wait, then end what is left of its group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port(preferred: int) -> int:
    """The preferred loopback port, or another one where it is taken."""
    for port in (preferred, 0):
        with contextlib.suppress(OSError), socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("127.0.0.1", port))
            return int(s.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


def wait_for_port(port: int, process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Until something accepts connections; RuntimeError when the process ends first, TimeoutError when it takes too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with exit code {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port} after {timeout_s:.0f} s")
