"""Real servers for tests and benchmarks: each is started on free loopback ports by `start` and stopped by `stop`.

`USED` names every server that this session really talked to; pytest prints it at the end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
USED: dict[str, str] = {}


class ServerUnavailable(Exception):
    """A server that the tests need cannot be started; the message says in one sentence what to install."""


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One process of this checkout at a time: what several test processes need is fetched or installed by the first."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "fetching.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        yield


def tool(names: Sequence[str], package: str, purpose: str) -> str:
    """The first of these programs on PATH; as root on Debian it is installed, otherwise one sentence says what to do."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        with alone():
            for command in (["update"], ["install", "-y", "--no-install-recommends", package]):
                subprocess.run(["apt-get", "-q", *command], check=False, stdout=subprocess.DEVNULL, env=env)
            found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        raise ServerUnavailable(f"{purpose} needs {names[0]}: install it, on Debian with `apt-get install {package}`.")
    return found


def spawn(
    command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None, user: str | None = None
) -> subprocess.Popen[bytes]:
    """Start a server that writes to `log` and that the kernel ends should this process be killed."""
    setpriv = shutil.which("setpriv")
    guard = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
    with log.open("ab") as out:
        return subprocess.Popen(
            [*guard, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            user=user,
            start_new_session=True,  # Ctrl-C goes to pytest, which then stops its servers in order
        )


def wait_ready(ready: Callable[[], object], process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> None:
    """Poll until `ready` is true; fail with the end of the log when the server dies or the time is over."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            if ready():
                return
        time.sleep(0.05)
    state = f"ended with code {process.poll()}" if process.poll() is not None else f"not ready after {timeout_s:.0f} s"
    stop(process)
    raise ServerUnavailable(f"{process.args!r}: {state}; its log ends:\n{log.read_text(errors='replace')[-3000:]}")


def stop(process: subprocess.Popen[bytes], timeout_s: float = 15) -> None:
    """End a server politely, then by force."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def listening(port: int) -> bool:
    """Whether something accepts connections on this loopback port."""
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
