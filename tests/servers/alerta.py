"""Alerta: the real alerta-server of this virtual environment, on a database of our PostgreSQL."""

from __future__ import annotations

import importlib.metadata
import os
import secrets
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import servers
from tests.servers.postgres import Postgres

ADMIN = "admin@example.org"
SETTINGS: dict[str, Any] = {
    "AUTH_REQUIRED": True,
    "ADMIN_USERS": [ADMIN],
    "SIGNUP_ENABLED": False,
    "PLUGINS": ["reject", "heartbeat", "blackout"],
    "ALLOWED_ENVIRONMENTS": ["Production", "Staging", "Development", "Test"],
    "DELETE_EXPIRED_AFTER": 0,
    "DELETE_INFO_AFTER": 0,
}


@dataclass
class Alerta:
    """A running server: its address and the key of its administrator."""

    url: str
    key: str
    port: int
    log: Path
    command: tuple[str, ...]
    env: dict[str, str]
    process: subprocess.Popen[bytes]

    def restart(self) -> None:
        """Stop the server if it runs and start it again on the same address and database."""
        self.stop()
        self.process = servers.spawn(self.command, self.log, self.env)
        servers.wait_ready(lambda: _answers(self.url), self.process, self.log, 60)

    def stop(self) -> None:
        """End the server; the database stays."""
        servers.stop(self.process, 5)


def start(folder: Path, postgres: Postgres, settings: dict[str, Any] | None = None) -> Alerta:
    """A fresh server on a fresh database; `settings` replace lines of its configuration; about 4 s."""
    folder.mkdir(parents=True, exist_ok=True)
    conf, log, port = folder / "alertad.conf", folder / "alerta.log", servers.free_port()
    values = {"SECRET_KEY": secrets.token_urlsafe(24), **SETTINGS, **(settings or {})}
    conf.write_text("".join(f"{name} = {value!r}\n" for name, value in values.items()))
    # Alerta reads bare names such as DEBUG or PLUGINS from the environment, so it gets next to none.
    env = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    env |= {
        "HOME": str(folder),
        "ALERTA_SVR_CONF_FILE": str(conf),
        "DATABASE_URL": postgres.database().replace("postgresql+psycopg:", "postgresql:"),
        "NO_PROXY": "*",
    }
    alertad = str(Path(sys.executable).parent / "alertad")
    made = [alertad, "key", "--username", ADMIN]
    done = subprocess.run(made, capture_output=True, text=True, env=env, cwd=folder, check=False)
    if done.returncode:
        raise servers.ServerUnavailable(f"alertad could not make a key:\n{(done.stdout + done.stderr)[-2000:]}")
    key = done.stdout.split()[-1]
    command = (alertad, "run", "--host", "127.0.0.1", "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    alerta = Alerta(url, key, port, log, command, env, servers.spawn(command, log, env))
    servers.wait_ready(lambda: _answers(url), alerta.process, log, 60)
    servers.USED["Alerta"] = f"{importlib.metadata.version('alerta-server')}, {url}"
    return alerta


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/management/gtg", timeout=5) as answer:
        return bool(answer.status == 200)
