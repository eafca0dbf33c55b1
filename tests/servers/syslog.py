"""A real syslog-ng: one TLS and one plain listener on loopback; what it understood of each message comes back as JSON."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from tests import servers

CONFIG = """@version: 3.38
options {{ keep-hostname(yes); use-dns(no); stats-freq(0); create-dirs(no); }};
source s_tls {{ syslog(ip(127.0.0.1) port({tls}) transport("tls")
  tls(key-file("{folder}/key.pem") cert-file("{folder}/cert.pem") peer-verify(optional-untrusted))); }};
source s_tcp {{ syslog(ip(127.0.0.1) port({tcp}) transport("tcp")); }};
destination d {{ file("{folder}/seen.jsonl" flush-lines(1) template("$(format-json --scope none TRANSPORT=$SOURCE PRI=$PRI
  ISODATE=$S_ISODATE HOST=$HOST PROGRAM=$PROGRAM PID=$PID MSGID=$MSGID MESSAGE=$MESSAGE)\\n")); }};
log {{ source(s_tls); source(s_tcp); destination(d); }};
"""


@dataclass
class SyslogNg:
    """A running server. `ca_file` is the authority of its certificate."""

    folder: Path
    tls: int
    tcp: int
    ca_file: Path
    process: subprocess.Popen[bytes]

    def seen(self) -> list[dict[str, Any]]:
        """Every message that is written to its end, as the server parsed it."""
        file = self.folder / "seen.jsonl"
        whole = file.read_text().rpartition("\n")[0] if file.exists() else ""  # it may be writing the last line now
        return [json.loads(line) for line in whole.splitlines()]

    def wait(self, word: str, n: int = 1, seconds: float = 10) -> list[dict[str, Any]]:
        """The messages that hold `word`, once there are n."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = [m for m in self.seen() if word in m["MESSAGE"]]
            if len(found) >= n:
                return found
            time.sleep(0.05)
        raise AssertionError(f"{word} never came; seen: {self.seen()[-3:]}")

    def stop(self) -> None:
        servers.stop(self.process)


def start(folder: Path) -> SyslogNg:
    """A fresh server whose certificate is for localhost."""
    program = servers.tool(["syslog-ng"], "syslog-ng-core", "The test of the syslog sink")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    for part in issued.cert_chain_pems:
        part.write_to_path(folder / "cert.pem", append=True)
    tls, tcp = servers.free_port(), servers.free_port()
    config = folder / "syslog-ng.conf"
    config.write_text(CONFIG.format(folder=folder, tls=tls, tcp=tcp))
    command: list[str | Path] = [
        program, "-F", "--no-caps", "-f", config, "-R", folder / "persist", "-p", folder / "pid", "-c", folder / "ctl",
    ]  # fmt: skip
    log = folder / "syslog-ng.log"
    process = servers.spawn(command, log)
    servers.wait_ready(lambda: servers.listening(tls) and servers.listening(tcp), process, log, 20)
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    servers.USED["syslog-ng"] = f"{said[0] if said else ''}, 127.0.0.1:{tls} (TLS), 127.0.0.1:{tcp}"
    return SyslogNg(folder, tls, tcp, folder / "ca.pem", process)
