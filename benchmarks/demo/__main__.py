"""`python -m benchmarks.demo`: watch Lanner work on real data in about two minutes. Ctrl-C ends it."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.demo.broker import Channel, channel
from benchmarks.demo.children import child, free_port, wait_for_port
from benchmarks.demo.story import INJECTED, REAL, REFERENCE_HOURS, STORY, reference_lines, tell
from benchmarks.traffic import Victim, victim
from monitor.model import HOUR_US, parse_time_us, rfc3339

START_US = parse_time_us("2026-03-02T00:00:00Z")  # when the story begins; a Monday
PORTION_S = 0.3  # how often events are sent
SETTLE_S = 45.0  # how long after the last event the page may take to show everything


class Ended(Exception):
    """SIGTERM: end as on Ctrl-C."""


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    p.add_argument(
        "--exit", action="store_true", help="end by itself when the story is told (exit code 1: not all was seen)"
    )
    p.add_argument("--pace", type=float, default=1.2, help="seconds per hour of log time (default %(default)s)")
    p.add_argument("--seed", type=int, default=0)
    return p.parse_args()


def _say(text: str = "") -> None:
    print(text, flush=True)


def _configure(folder: Path, source: dict[str, Any]) -> tuple[Path, int]:
    """A copy of config/demo.yaml in the demo's folder, with this run's source and a free port for the page."""
    shipped = Path(__file__).parents[2] / "config" / "demo.yaml"
    config = yaml.safe_load(shipped.read_text())
    config["sources"]["predictions"] = source | {"flush": config["sources"]["predictions"]["flush"]}
    host, port = config["server"]["bind"].rsplit(":", 1)
    config["server"]["bind"] = f"{host}:{free_port(int(port))}"
    file = folder / "demo.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file, int(config["server"]["bind"].rsplit(":", 1)[1])


def _lanner() -> Path:
    """The command installed beside this Python."""
    return Path(sys.executable).with_name("lanner")


def _incidents(url: str) -> list[dict[str, Any]]:
    """What the page's API shows now."""
    with urllib.request.urlopen(f"{url}/api/v1/incidents?state=all&limit=500", timeout=10) as answer:
        shown: dict[str, Any] = json.load(answer)
    return list(shown["items"])


def missing(incidents: list[dict[str, Any]]) -> list[str]:
    """What the story promises and these incidents do not show."""
    drift = [a for a in incidents if a["event"] == "FeatureDrift"]
    attackers = {a["subject"]["id"] for a in incidents if a["event"] == "AttackSuspected"}
    promised = {
        "a drift incident": bool(drift),
        "its end": any(not a["open"] for a in drift),
        **{f"the attack by {phase.attack[0]}": phase.attack[0] in attackers for phase in STORY if phase.attack},
    }
    return [what for what, seen in promised.items() if not seen]


def _introduce() -> None:
    _say("Lanner demo: a model that predicts late flights, its traffic, a drift and two attacks.")
    for title, lines in (("Real:", REAL), ("Made up:", INJECTED)):
        _say(f"\n{title}")
        for line in lines:
            _say(f"  - {line}")
    _say()


def _run(args: argparse.Namespace, folder: Path) -> int:
    began = time.monotonic()
    rng = np.random.default_rng(args.seed)
    _introduce()
    _say("Training the model ...")
    v = victim("flights")
    right = float(np.mean(v.answer(v.pool[:20_000]).argmax(axis=1) == v.labels[:20_000]))
    _say(f"  it is right about {right:.0%} of 20,000 flights it has not seen ({time.monotonic() - began:.0f} s)")
    with (folder / "reference.jsonl").open("wb") as out:
        out.writelines(line + b"\n" for line in reference_lines(v, rng, START_US - REFERENCE_HOURS * HOUR_US))
    with channel(folder) as sink:
        _say(f"Events travel through: {sink.kind}")
        file, port = _configure(folder, sink.source)
        url = f"http://127.0.0.1:{port}"
        with child([_lanner(), "run", "-c", file], cwd=folder) as service:
            wait_for_port(port, service, 60)
            _say(f"\nThe page: {url}    (configuration and data: {folder})\n")
            _play(args, v, rng, sink, url)
            return _finish(args, url, began)


def _play(args: argparse.Namespace, v: Victim, rng: np.random.Generator, sink: Channel, url: str) -> None:
    """Send the story at its pace, in small portions, so that incidents open while one watches."""

    def say(now_us: int, text: str) -> None:
        _say(f"--- {rfc3339(now_us)[:16]}  {text}")

    due = time.monotonic()
    for length, lines in tell(v, rng, START_US, say):
        portions = max(1, round(length * args.pace / PORTION_S))
        for i in range(portions):
            sink.send(lines[len(lines) * i // portions : len(lines) * (i + 1) // portions])
            due = max(due + length * args.pace / portions, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))


def _finish(args: argparse.Namespace, url: str, began: float) -> int:
    deadline = time.monotonic() + SETTLE_S
    while (gap := missing(_incidents(url))) and time.monotonic() < deadline:
        time.sleep(0.5)
    _say(f"\nThe story is told ({time.monotonic() - began:.0f} s). The page shows:")
    for alert in sorted(_incidents(url), key=lambda a: a["opened"]):
        state = "open" if alert["open"] else f"cleared {alert['cleared'][:16]}"
        _say(f"  {alert['opened'][:16]}  {alert['event']:<16} {alert['subject']['id']:<16} {state}")
    if gap:
        _say(f"Not seen: {', '.join(gap)}. Please report this with the lines above.")
    if not args.exit:
        _say(f"\nLook around at {url} and end with Ctrl-C.")
        signal.pause()
    return 1 if gap else 0


def _ended(*_: object) -> None:
    raise Ended


def main() -> int:
    """Run the demo in a fresh temporary folder and leave nothing behind."""
    args = _arguments()
    signal.signal(signal.SIGTERM, _ended)
    folder = Path(tempfile.mkdtemp(prefix="lanner-demo-"))
    try:
        return _run(args, folder)
    except (KeyboardInterrupt, Ended):
        _say("\nEnding ...")
        return 0
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
