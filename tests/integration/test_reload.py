"""`lanner run` with a configuration that changes under it, and the metrics of its three processes."""

from __future__ import annotations

import json
import shutil
import signal
import urllib.request
from pathlib import Path
from typing import Any

from tests.running import eventually, running
from tests.servers import free_port
from tests.stories import MODEL, write_config


def got(url: str) -> str | None:
    """What a server of ours answers; None while it does not."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return None


def test_a_changed_configuration_is_taken_up_and_one_with_mistakes_is_not(tmp_path: Path) -> None:
    """A new model is there without a restart; a broken file is named in the log and changes nothing. All along each process
    serves its metrics on a port of its own: collect at the configured one, schedule and web at the two after it.
    """
    port, metrics = free_port(), free_port() & ~3  # even with two more it is a port
    inputs: dict[str, Any] = {"in": {"type": "http", "bind": f"127.0.0.1:{free_port()}"}}
    server = {"bind": f"127.0.0.1:{port}", "metrics_bind": f"127.0.0.1:{metrics}"}
    file = write_config(tmp_path, sources=inputs, server=server)
    written, log = json.loads(file.read_text()), tmp_path / "lanner.log"

    def shown() -> set[str]:
        return {
            m["name"] for m in json.loads(got(f"http://127.0.0.1:{port}/api/v1/models") or '{"items": []}')["items"]
        }

    with running(file, log) as service:
        eventually(lambda: shown() == {MODEL})
        file.write_text(json.dumps(written | {"modles": {}}))
        eventually(lambda: "configuration_refused" in log.read_text())
        assert "modles" in log.read_text()
        assert shown() == {MODEL}
        shutil.copy(tmp_path / "reference.jsonl", tmp_path / "other.jsonl")
        written["models"]["second"] = {"reference": {"file": "other.jsonl"}}
        file.write_text(json.dumps(written))
        eventually(lambda: shown() == {MODEL, "second"})
        service.send_signal(signal.SIGHUP)  # what only stands beside the file is read anew as well
        eventually(lambda: log.read_text().count("configuration_reloaded") == 2)
        for own in range(metrics, metrics + 3):
            said = eventually(lambda own=own: got(f"http://127.0.0.1:{own}/metrics"))  # type: ignore[misc]
            assert "lanner_" in said
