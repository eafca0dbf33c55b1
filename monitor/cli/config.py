"""`lanner check-config`, `lanner config schema`, `lanner doctor`."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from monitor.cli import doctor as doctoring
from monitor.config import Config, Loaded, read
from monitor.errors import ConfigError, Mistake
from monitor.telemetry import escaped

Json = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]


def checked(file: Path, overrides: dict[str, Any] | None = None) -> Config:
    """A configuration whose detectors, parameters and decoders exist in this build; ConfigError names every mistake."""
    loaded = read(file, overrides)
    mistakes = registry_mistakes(loaded)
    if mistakes:
        raise ConfigError(mistakes)
    return loaded.config


def registry_mistakes(loaded: Loaded) -> list[Mistake]:
    """What the registries say about the names in a configuration."""
    from collectors.decode import DECODERS
    from detectors.registry import REGISTRY
    from monitor.config.checks import unknown

    found: list[Mistake] = []
    for name, source in loaded.config.sources.items():
        if source.decoder not in DECODERS:
            key, text = unknown(("sources", name, "decoder"), source.decoder, "decoder", DECODERS)
            found.append(loaded.mistake(key, text))
    for name, monitor in loaded.config.monitors.items():
        detector = REGISTRY.get(monitor.detector)
        if detector is None:
            key, text = unknown(("monitors", name, "detector"), monitor.detector, "detector", REGISTRY)
            found.append(loaded.mistake(key, text))
            continue
        parameters = [f.name for f in dataclasses.fields(detector) if f.init]
        for parameter in monitor.params:
            if parameter not in parameters:
                at = ("monitors", name, "params", parameter)
                key, text = unknown(at, parameter, f"parameter of {monitor.detector}", parameters)
                found.append(loaded.mistake(key, text))
    return found


def check_config(
    file: Annotated[Path, typer.Argument(help="The configuration file.")] = Path("lanner.yaml"),
    as_json: Json = False,
) -> None:
    """Name every mistake of a configuration with file and line; nothing is opened or connected to."""
    try:
        config = checked(file)
    except ConfigError as error:
        if as_json:
            mistakes = [dataclasses.asdict(m) for m in error.mistakes]
            typer.echo(json.dumps({"ok": False, "mistakes": mistakes}, ensure_ascii=True))
            raise typer.Exit(error.exit_code) from error
        raise
    if as_json:
        typer.echo(json.dumps({"ok": True, "mistakes": []}))
    else:
        parts = (
            ("model", config.models),
            ("source", config.sources),
            ("monitor", config.monitors),
            ("sink", config.sinks),
        )
        counted = ", ".join(f"{len(named)} {word}{'' if len(named) == 1 else 's'}" for word, named in parts)
        typer.echo(escaped(f"{file}: ok ({counted})"))


config = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


@config.callback()
def about() -> None:
    """The configuration's JSON Schema, for editors."""


@config.command()
def schema() -> None:
    """Print the JSON Schema of the configuration; editors complete and check with it."""
    found = Config.model_json_schema()
    found["properties"].pop("folder", None)
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    typer.echo(json.dumps(_plain(found), indent=2, ensure_ascii=True))


def _plain(tree: Any) -> Any:
    """The same schema without the titles that only repeat the names."""
    if isinstance(tree, dict):
        return {
            k: re.sub(r"\s+", " ", v) if k == "description" and isinstance(v, str) else _plain(v)
            for k, v in tree.items()
            if not (k == "title" and isinstance(v, str))
        }
    return [_plain(v) for v in tree] if isinstance(tree, list) else tree


def doctor(
    file: Annotated[
        Path | None, typer.Option("-c", "--config", help="Also check what this configuration needs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check what Lanner stands on: packages, permissions, clock, limits, and with -c also its servers and store."""
    found = [*doctoring.machine(), *doctoring.service(checked(file))] if file else list(doctoring.machine())
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(f) for f in found], ensure_ascii=True))
    else:
        for f in found:
            typer.echo(escaped(f"{f.state:5} {f.what}: {f.says}"))
    bad = [f for f in found if f.state == "fail"]
    if bad:
        raise typer.Exit(4 if all(f.unreachable for f in bad) else 1)
