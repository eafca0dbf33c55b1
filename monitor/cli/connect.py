"""`lanner connect`: look at messages, write the configuration that reads them."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitor.errors import UsageError

if TYPE_CHECKING:  # heavy; a command imports what it needs
    from collectors.base import Record


def connect(
    paths: Annotated[list[str] | None, typer.Argument(help="Files of messages, or - for lines on stdin.")] = None,
    bootstrap: Annotated[str | None, typer.Option(help="Kafka instead of files: host:port.")] = None,
    topic: Annotated[str | None, typer.Option(help="Kafka: the topic.")] = None,
    model: Annotated[str | None, typer.Option(help="The model, where messages name none.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Look at so many messages.")] = 1000,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write there instead of to stdout.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as one JSON object.")] = False,
) -> None:
    """Look at messages and write a configuration that reads them.

    Nothing is stored and no consumer group is joined. Exit code 1 when no decoder fits.
    """
    from collectors.sniff import as_yaml, sniff

    if output is not None and output.exists():
        raise UsageError(f"{output} is there already; name another file, or move it away")
    if (bootstrap is None) != (topic is None) or bool(paths) == (bootstrap is not None):
        raise UsageError("give files of messages, or --bootstrap and --topic")
    name, source = _source(paths or [], bootstrap, topic, model)
    found = sniff(list(itertools.islice(_records(paths or [], name, source, limit), limit)), model)
    if not found.messages:
        raise UsageError("there is not a single message to look at")
    named = found.good and bool(found.named)
    text = as_yaml(found, source, name) if named else ""
    if as_json:
        typer.echo(json.dumps({**asdict(found), "good": named, "config": text or None}))
    elif named and output is None:
        typer.echo(text, nl=False)
    if named and output is not None:
        output.write_text(text, encoding="utf-8")
    typer.echo(_told(found, output if named else None), err=True)
    if not named:
        raise typer.Exit(1)


def _source(
    paths: list[str], bootstrap: str | None, topic: str | None, model: str | None
) -> tuple[str, dict[str, Any]]:
    """A name and the settings of the source."""
    extra = {"model": model} if model is not None else {}
    if topic is not None:
        return topic, {"type": "kafka", "bootstrap": bootstrap, "topic": topic, **extra}
    if paths == ["-"]:
        return "api", {"type": "http", "bind": "127.0.0.1:8081", **extra}
    return "files", {"type": "files", "paths": [path for path in paths if path != "-"], **extra}


def _records(paths: list[str], name: str, source: Mapping[str, Any], limit: int) -> Iterator[Record]:
    from collectors.base import Record
    from collectors.files import read_records
    from collectors.recent import recent
    from monitor.config import Source

    if not paths:
        yield from recent(name, Source(**source), Path(), limit)
    for path in paths:
        if path == "-":
            lines = (line.strip() for line in sys.stdin.buffer)
            yield from (Record(name, "stdin", 0, i, None, line) for i, line in enumerate(lines) if line)
        elif Path(path).is_file():
            yield from read_records(Path(path), name)
        else:
            raise UsageError(f"{path}: no such file")


def _told(found: Any, output: Path | None) -> str:
    from monitor.telemetry import escaped

    said = f"{found.decoded} of {found.messages} messages decode as {found.decoder}"
    said += "".join(f"; {reason} {n}" for reason, n in found.reasons.most_common(3))
    if not found.good:
        return f"{said}. No decoder fits: describe the format with a field map (docs/decoders.md)."
    if not found.named:
        return f"{said}. They name no model that a configuration takes: give --model."
    models = ", ".join(escaped(name) for name in found.named[:5])
    models += f" and {len(found.models) - 5} more" if len(found.models) > 5 else ""
    return f"{said}; models: {models}." + ("" if output is None else f" Written to {output}: look it over.")
