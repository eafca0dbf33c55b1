"""`lanner replay`, `lanner check`, `lanner backfill`: jobs over history."""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from monitor import telemetry
from monitor.cli.config import checked
from monitor.cli.options import DEFAULT, ConfigFile, owner
from monitor.config import Config
from monitor.errors import UsageError
from monitor.model import Severity, parse_time_us
from monitor.service import batch
from monitor.service.compose import open_service
from monitor.service.replay import replay as run
from monitor.store.held import callers

Json = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
Model = Annotated[str | None, typer.Option(help="One model instead of all.")]
FOREVER_US = 253_402_300_799_000_000  # the end of year 9999


def replay(
    paths: Annotated[list[Path], typer.Argument(help="JSONL or Parquet files, or folders of Delta tables.")],
    config: ConfigFile = DEFAULT,
    source: Annotated[str | None, typer.Option(help="Decode like this configured source.")] = None,
    as_json: Json = False,
) -> None:
    """Run logs through the real pipeline on a simulated clock; nothing is stored, nothing leaves the machine."""
    loaded = checked(config)
    telemetry.configure("console", level="error")
    err = Console(stderr=True)
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), console=err, disable=not sys.stderr.isatty(), transient=True
    ) as bar:
        task = bar.add_task("reading")
        result = run(loaded, paths, source=source, progress=lambda n: bar.update(task, description=f"{n:,} events"))
    if as_json:
        for t in result.transitions:
            sys.stdout.write(json.dumps(t.to_json(), ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n")
    else:
        table = Table("time", "action", "event", "severity", "subject", "model", "statistic", box=None)
        for t in result.transitions:
            line = t.to_json()
            subject = f"{line['subject']['kind']}:{line['subject']['id']}"
            table.add_row(
                line["time"],
                line["action"],
                line["event"],
                line["severity"],
                _plain(subject),
                _plain(line["model"]),
                str(line["statistic"]),
            )
        Console().print(table)
    for name, held in result.held:
        like = held.evidence["look_alike"]
        why = f"{like['profile']}: {like.get('why', like.get('why_not'))}"
        err.print(
            f"held back on {_plain(name)}: {_plain(', '.join(callers(held)))} looks like {why}",
            highlight=False,
            soft_wrap=True,
        )
    failed = "".join(f", {n} failed ({reason})" for reason, n in sorted(result.failed.items()))
    speed = result.events / result.seconds if result.seconds else 0.0
    err.print(
        f"{result.events:,} events, {result.feedback:,} feedback{failed} in {result.seconds:.1f} s ({speed:,.0f} events/s)",
        highlight=False,
    )


def check(
    config: ConfigFile = DEFAULT,
    model: Model = None,
    from_: Annotated[str | None, typer.Option("--from", help="RFC 3339; default: the beginning.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="RFC 3339; default: now.")] = None,
    fail_on: Annotated[
        Severity | None, typer.Option(help="Exit 3 when an alert of this severity or higher is found.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge windows that are not judged yet, and report them with those that are."""
    loaded = _load(config)
    now_us = time.time_ns() // 1000
    with closing(open_service(loaded, owner("check"))) as service:
        reports = batch.check(service, _models(loaded, model), _time(from_, 0), _time(to, FOREVER_US), now_us)
    _show(reports, as_json)
    found = batch.worst(reports)
    if fail_on is not None and found is not None and found.rank >= fail_on.rank:
        raise typer.Exit(3)


def backfill(
    from_: Annotated[str, typer.Option("--from", help="RFC 3339.")],
    to: Annotated[str, typer.Option("--to", help="RFC 3339.")],
    config: ConfigFile = DEFAULT,
    model: Model = None,
    engine: Annotated[str, typer.Option(help="local; spark is for more than one machine holds.")] = "local",
    as_json: Json = False,
) -> None:
    """Fill gaps in the ledger, rebuild counts on the current reference, judge history; opens no incidents."""
    if engine != "local":
        raise UsageError(f"--engine {engine} is not part of this version; leave it out to run on this machine")
    loaded = _load(config)
    now_us = time.time_ns() // 1000
    start_us, end_us = _time(from_, 0), _time(to, FOREVER_US)
    with closing(open_service(loaded, owner("backfill"))) as service:
        found = {n: batch.backfill(service, n, start_us, end_us, now_us) for n in _models(loaded, model)}
    _show(found, as_json)


def _load(file: Path) -> Config:
    loaded = checked(file)
    telemetry.configure("console", level="error")
    return loaded


def _models(config: Config, model: str | None) -> list[str]:
    if model is not None and model not in config.models:
        raise UsageError(f"--model {model}: no such model; configured are {', '.join(sorted(config.models))}")
    return [model] if model is not None else sorted(config.models)


def _time(text: str | None, default: int) -> int:
    try:
        return default if text is None else parse_time_us(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _show(reports: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(
            json.dumps({"models": {n: r.to_json() for n, r in reports.items()}}, ensure_ascii=False, allow_nan=False)
        )
        return
    for name, report in reports.items():
        counts: dict[str, int] = {}
        for w in report.windows:
            counts[w.outcome] = counts.get(w.outcome, 0) + 1
        words = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items())) or "no windows"
        typer.echo(f"{_plain(name)}: {words} ({report.judged_now} now), {len(report.alerts)} alert(s)")
        for a in report.alerts:
            typer.echo(
                f"  {a.severity.value:8} {a.event.value} {_plain(a.subject.kind + ':' + a.subject.id)} {'open' if a.open else 'cleared'}"
            )


def _plain(text: str) -> str:
    """Text from a log, made harmless for a terminal: control and formatting characters are shown escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text).replace("[", "\\[")
