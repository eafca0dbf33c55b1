"""The `lanner` command: a table of commands whose modules are imported only when one of them runs."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer
import typer.core

from monitor.errors import LannerError


@dataclass(frozen=True, slots=True)
class Entry:
    """One command or group: the module that holds it, the function or Typer in it, and its line in --help."""

    name: str
    module: str
    attribute: str
    help: str


COMMANDS: Final = (
    Entry("run", "run", "run", "Run the whole service: collect, schedule and web."),
    Entry("collect", "run", "collect", "Read the sources into the event log."),
    Entry("schedule", "run", "schedule", "Judge windows when due and deliver alerts."),
    Entry("web", "run", "web", "Serve the page and the API."),
    Entry("replay", "batch", "replay", "Run files through the real pipeline; keep nothing."),
    Entry("check", "batch", "check", "Judge windows that are not judged yet, as a batch job."),
    Entry("backfill", "batch", "backfill", "Fill gaps and judge history."),
    Entry("report", "report", "report", "Write a model owner's report."),
    Entry("reference", "reference", "reference", "Build, check, propose and approve what is normal."),
    Entry("tune", "tune", "tune", "Show what each false-alarm budget would have raised."),
    Entry("alerts", "people", "alerts", "List, show and settle incidents."),
    Entry("principals", "principals", "principals", "Suggest what to declare of callers."),
    Entry("mark", "marks", "mark", "Tell what explains changes: deploys, versions, batch jobs."),
    Entry("maintain", "marks", "maintain", "Announce maintenance, with a reason and an end."),
    Entry("outbox", "alerts", "outbox", "List deliveries and try them again."),
    Entry("routes", "routes", "routes", "Show which sinks get which alerts, and why."),
    Entry("connect", "connect", "connect", "Look at messages and write a configuration that reads them."),
    Entry("decode", "ingest", "decode", "Show what a source's messages become, or why not."),
    Entry("deadletter", "ingest", "deadletter", "List, show and re-drive undecodable messages."),
    Entry("check-config", "config", "check_config", "Name every mistake of a configuration with its line."),
    Entry("config", "config", "config", "Print the configuration's JSON Schema, for editors."),
    Entry("doctor", "config", "doctor", "Check packages, permissions, clock and limits."),
    Entry("migrate", "run", "migrate", "Bring the state store to this version."),
)


SERVICE: Final = ("run", "collect", "schedule", "web")  # these refuse to start on packages of someone else


def load_command(entry: Entry) -> Any:
    """Import a command's module and make it a command of the command line; LannerError when it must not start."""
    if entry.name in SERVICE:
        from monitor.cli.doctor import foreign_packages

        foreign = foreign_packages()
        if foreign:
            raise LannerError(foreign)
    found = getattr(importlib.import_module(f"monitor.cli.{entry.module}"), entry.attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        alone.command(entry.name)(found)
        found = alone
    command = typer.main.get_command(found)
    command.name = entry.name
    return command


class LazyGroup(typer.core.TyperGroup):
    """Lists commands from the table and imports one when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands of this build, in the order of the table."""
        return [e.name for e in COMMANDS if importlib.util.find_spec(f"monitor.cli.{e.module}")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in that knows the line for --help and nothing else."""
        entry = next((e for e in COMMANDS if e.name == cmd_name and cmd_name in self.list_commands(ctx)), None)
        return entry and typer.core.TyperCommand(entry.name, help=entry.help)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real command, once it is certain that it is wanted."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        entry = next((e for e in COMMANDS if stand_in and e.name == stand_in.name), None)
        return name, load_command(entry) if entry else stand_in, rest


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # not needed by any other command

        typer.echo(f"lanner {version('lanner')}")
        raise typer.Exit


@app.callback(context_settings={"help_option_names": ["-h", "--help"]})
def root(
    *,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error; wins over what a command would choose.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Watch AI models in production from their inference logs: drift for their owners, attacks for the SOC."""
    if log_level is not None:
        from monitor import telemetry  # 0.1 s that --help does not have

        if log_level not in ("debug", "info", "warning", "error"):
            raise typer.BadParameter("write debug, info, warning or error", param_hint="--log-level")
        telemetry.configure(level=log_level, force=True)


def main() -> None:
    """Run the command line; exit codes: 0 ok, 1 failed, 2 usage, 3 finding, 4 unreachable, 78 configuration, 130 Ctrl-C."""
    try:
        app()
    except LannerError as error:
        from monitor.telemetry import escaped  # only a failed command pays for it

        if "debug" in sys.argv[1:3]:
            traceback.print_exc()
        for line in str(error).splitlines():
            typer.echo(escaped(line), err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
