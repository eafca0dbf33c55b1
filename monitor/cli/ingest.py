"""`lanner decode` and `lanner deadletter`: what a source's messages become, and those that became nothing."""

from __future__ import annotations

import base64
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitor.cli.options import DEFAULT, AsJson, ConfigFile, store
from monitor.errors import DecodeError, UsageError
from monitor.model import FeedbackEvent, Half, InferenceEvent, Mark, rfc3339

if TYPE_CHECKING:  # both are heavy; a command imports what it needs
    from collectors.base import Part, Record
    from monitor.config import Config
    from monitor.store.deadletters import Stored

SourceName = Annotated[str | None, typer.Option("--source", help="Only this source.")]
Reason = Annotated[str | None, typer.Option(help="Only this reason code, such as bad_json.")]

deadletter = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="List, show and re-drive undecodable messages."
)


def decode(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Files of messages, or - for lines on stdin; else the source itself.")
    ] = None,
    config: ConfigFile = DEFAULT,
    source: Annotated[str | None, typer.Option("--source", help="Whose decoder; else the only one, or native.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many messages.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Show what a source's messages become, or why not. Nothing is stored; names are shown as they are.

    Without files, the latest messages of the source are read: a Kafka topic outside any consumer group.
    """
    from collectors.decode import decoder_for
    from monitor.config import load

    loaded = load(config)
    if source is None:
        source = next(iter(loaded.sources)) if len(loaded.sources) == 1 else "native"
    elif source not in loaded.sources:
        raise UsageError(f"no source is called {source!r}; configured are {', '.join(loaded.sources) or 'none'}")
    decoder = decoder_for(source, loaded)
    reasons: Counter[str] = Counter()
    total = 0
    for record in itertools.islice(_records(paths or [], source, loaded, limit), limit):
        total += 1
        try:
            parts, error = decoder(record), None
        except DecodeError as failure:
            parts, error = (), failure
            reasons[failure.reason] += 1
        typer.echo(json.dumps(_shown(record, parts, error)) if as_json else _told(record, parts, error))
    failed = reasons.total()
    why = "".join(f"; {reason} {n}" for reason, n in reasons.most_common())
    typer.echo(f"{total} messages, {total - failed} decoded, {failed} not{why}", err=True)
    if total and failed == total:
        raise typer.Exit(1)


def _records(paths: Sequence[str], source: str, config: Config, limit: int) -> Iterator[Record]:
    from collectors.base import Record
    from collectors.files import read_records

    given = config.sources.get(source)
    for path in paths:
        if path == "-":
            for number, line in enumerate(sys.stdin.buffer):
                if line.strip():
                    yield Record(source, "stdin", 0, number, None, line.strip())
        elif Path(path).is_file():
            yield from read_records(Path(path), source)
        else:
            raise UsageError(f"{path}: no such file")
    if paths:
        return
    if given is None:
        raise UsageError("give --source, or files of messages")
    if given.type == "kafka":
        from collectors.recent import recent

        yield from recent(source, given, config.folder, limit)
    elif given.type == "files":
        from collectors.files import matching

        for file in matching([str(config.folder / pattern) for pattern in given.paths]):
            yield from read_records(file, source)
    else:
        raise UsageError(f"source {source} receives by HTTP and keeps nothing to look at; give files of messages")


def _shown(record: Record, parts: Sequence[Part], error: DecodeError | None) -> dict[str, Any]:
    place: dict[str, Any] = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
    if error is not None:
        return {**place, "error": {"reason": error.reason, "detail": error.detail}}
    return {**place, "parts": [_part_json(part) for part in parts]}


def _part_json(part: Part) -> dict[str, Any]:
    """A part in plain JSON, absent fields left out, times as text."""
    import msgspec

    if isinstance(part, Half):
        return {"kind": part.side, "pair_key": part.pair_key, **_event_json(part.event)}
    if isinstance(part, InferenceEvent):
        return {"kind": "inference", **_event_json(part)}
    if isinstance(part, Mark):
        end = None if part.end_us is None else rfc3339(part.end_us)
        return {"kind": part.kind, "text": part.text, "model": part.model, "start": rfc3339(part.start_us), "end": end,
                "by": part.actor}  # fmt: skip
    body = msgspec.to_builtins(part)
    return {"kind": "feedback", "label_time": rfc3339(body.pop("label_time_us")), **body}


def _event_json(event: InferenceEvent) -> dict[str, Any]:
    import msgspec

    body = msgspec.to_builtins(event)
    return {"event_time": rfc3339(body.pop("event_time_us")), **{k: v for k, v in body.items() if v not in (None, [])}}


def _told(record: Record, parts: Sequence[Part], error: DecodeError | None) -> str:
    """One line a part, safe to print."""
    from collectors.base import REASONS
    from monitor.telemetry import escaped

    place = escaped(f"{record.topic}/{record.partition}/{record.offset}")
    if error is not None:
        return escaped(f"{place}  FAILED {error.reason}: {error.detail or REASONS[error.reason]}")
    if not parts:
        return f"{place}  nothing (a message without content, or one that is not counted)"
    return "\n".join(f"{place}  {escaped(_line(part))}" for part in parts)


def _line(part: Part) -> str:
    if isinstance(part, FeedbackEvent):
        return f"feedback {rfc3339(part.label_time_us)} {part.target} {part.name}={part.value!r}"
    if isinstance(part, Mark):
        end = f" until {rfc3339(part.end_us)}" if part.end_us is not None else ""
        return f"{part.kind} {rfc3339(part.start_us)}{end} model={part.model} by={part.actor}: {part.text}"
    event = part.event if isinstance(part, Half) else part
    kind = part.side if isinstance(part, Half) else "inference"
    features = ", ".join(f"{k}={v!r}" for k, v in itertools.islice((event.features or {}).items(), 6))
    more = f", … {len(event.features)} in all" if event.features and len(event.features) > 6 else ""
    told = [f"{kind} {rfc3339(event.event_time_us)} model={event.model}", f"principal={event.principal}"]
    told += [f"features({features}{more})"] if event.features is not None else []
    told += [f"{name}={value!r}" for name in ("prediction", "scores", "status") if (value := getattr(event, name))]
    told += [f"quality={','.join(event.quality)}"] if event.quality else []
    return " ".join(told)[:1000]


@deadletter.command("list")
def list_letters(
    config: ConfigFile = DEFAULT,
    source: SourceName = None,
    reason: Reason = None,
    state: Annotated[str, typer.Option(help="new, redriven, discarded or all.")] = "new",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many, the newest first.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List messages that could not be decoded, and why."""
    from monitor.store import deadletters
    from monitor.telemetry import escaped

    wanted = _state(state)
    with store(config) as engine:
        found = deadletters.find(engine, source=source, reason=reason, state=wanted, limit=limit)
    for stored in found:
        if as_json:
            typer.echo(json.dumps(_letter_json(stored, body=False)))
            continue
        d = stored.letter
        place = f"{stored.source} {d.topic}/{d.partition}/{d.offset}"
        line = f"{stored.id:>7}  {rfc3339(stored.received_us)}  {stored.state:9} {d.reason:14} {place}  {d.detail}"
        typer.echo(escaped(line))
    if not found and not as_json:
        typer.echo("no dead letters", err=True)


@deadletter.command("show")
def show_letter(
    letter_id: Annotated[int, typer.Argument(help="The id that the list shows.")],
    config: ConfigFile = DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Show one message as it came: headers and bytes, control characters escaped."""
    from monitor.store import deadletters
    from monitor.telemetry import escaped

    with store(config) as engine:
        stored = deadletters.get(engine, letter_id)
    if stored is None:
        raise UsageError(f"there is no dead letter {letter_id}; see `lanner deadletter list`")
    if as_json:
        typer.echo(json.dumps(_letter_json(stored, body=True)))
        return
    d = stored.letter
    typer.echo(escaped(f"dead letter {stored.id}, {stored.state}, {d.reason}: {d.detail}"))
    typer.echo(escaped(f"source {stored.source}, {d.topic} partition {d.partition} offset {d.offset}"))
    typer.echo(f"received {rfc3339(stored.received_us)}")
    for name, value in d.headers:
        typer.echo(escaped(f"header {name}: {value.decode('utf-8', 'backslashreplace')}"))
    if d.key is not None:
        typer.echo(escaped(f"key {d.key.decode('utf-8', 'backslashreplace')}"))
    note = " (cut)" if d.truncated else ""
    typer.echo(f"value, {len(d.value or b'')} bytes{note}:")
    typer.echo(escaped((d.value or b"").decode("utf-8", "backslashreplace")))


@deadletter.command("redrive")
def redrive_letters(
    ids: Annotated[list[int] | None, typer.Argument(help="Ids that the list shows; or use --all.")] = None,
    config: ConfigFile = DEFAULT,
    source: SourceName = None,
    reason: Reason = None,
    everything: Annotated[bool, typer.Option("--all", help="Every new one that --source and --reason allow.")] = False,
    as_json: AsJson = False,
) -> None:
    """Decode messages again with the current configuration and store those that are events now.

    Exit code 1 when some still cannot be decoded; they stay as they are.
    """
    from collectors.decode import decoder_for
    from collectors.redrive import Letter, redrive
    from monitor.config import load
    from monitor.service.callers import intake
    from monitor.service.compose import open_service

    if bool(ids) == everything:
        raise UsageError("name dead letters by their ids, or say --all")
    loaded = load(config)
    with closing(open_service(loaded, "redrive")) as service:
        stored = _chosen(service.engine, ids or [], source, reason)

        def decoder_of(name: str) -> Any:
            return decoder_for(name if name in loaded.sources else "native", loaded)

        letters = [Letter(s.id, s.source, s.letter) for s in sorted(stored, key=lambda s: s.id)]
        keyed, events = intake(loaded, service.engine, service.log)
        result = redrive(letters, decoder_of, events, keyed, time.time_ns() // 1000)
    failed = {str(i): {"reason": e.reason, "detail": e.detail} for i, e in result.failed.items()}
    if as_json:
        typer.echo(json.dumps({"redriven": result.done, "failed": failed}))
    else:
        from monitor.telemetry import escaped

        typer.echo(f"{len(result.done)} re-driven, {len(failed)} still cannot be decoded")
        for i, why in failed.items():
            typer.echo(escaped(f"{i:>7}  {why['reason']}: {why['detail']}"))
    if failed:
        raise typer.Exit(1)


def _chosen(engine: Any, ids: Sequence[int], source: str | None, reason: str | None) -> list[Stored]:
    """The new dead letters with these ids, else all that source and reason allow."""
    from monitor.store import deadletters

    if ids:
        found = [deadletters.get(engine, i) for i in ids]
        missing = [i for i, s in zip(ids, found, strict=True) if s is None or s.state != "new"]
        if missing:
            raise UsageError(f"not there, or dealt with already: {', '.join(map(str, missing))}")
        return [s for s in found if s is not None]
    stored: list[Stored] = []
    before: int | None = None
    while page := deadletters.find(engine, source=source, reason=reason, limit=1000, before_id=before):
        stored += page
        before = page[-1].id
    return stored


def _state(name: str) -> str | None:
    from monitor.store.deadletters import STATES

    if name == "all":
        return None
    if name not in STATES:
        raise UsageError(f"--state {name}: write {', '.join(STATES)} or all")
    return name


def _letter_json(stored: Stored, *, body: bool) -> dict[str, Any]:
    d = stored.letter
    out: dict[str, Any] = {
        "id": stored.id,
        "source": stored.source,
        "topic": d.topic,
        "partition": d.partition,
        "offset": d.offset,
        "reason": d.reason,
        "detail": d.detail,
        "state": stored.state,
        "received": rfc3339(stored.received_us),
        "truncated": d.truncated,
    }
    if body:
        out |= {
            "key_base64": None if d.key is None else base64.b64encode(d.key).decode(),
            "value_base64": None if d.value is None else base64.b64encode(d.value).decode(),
            "headers": [[name, base64.b64encode(value).decode()] for name, value in d.headers],
        }
    return out
