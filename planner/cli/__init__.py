"""The `planner` command: a click group whose commands are imported only when they run.

Exit codes: 0 done; 1 infeasible, or a check failed; 2 wrong usage or input; 3 no plan within the
limit; 4 solver or internal failure; 130 interrupted. Data goes to stdout, everything else to
stderr. A command returns its exit code, or None for 0.

(This module never calls `list()`: once `planner list` has run, that name here is the module.)
"""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final

import click

from planner import __version__
from planner.errors import PlannerError

EXIT_USAGE: Final = 2
EXIT_INTERNAL: Final = 4
EXIT_INTERRUPTED: Final = 130

COMMANDS: Final = {
    "solve": "Find the cheapest fleet for an instance, with a proven bound.",
    "evaluate": "Cost, latencies and spare capacity of a given fleet.",
    "simulate": "Simulate a plan, request by request.",
    "lint": "Check an instance without solving it.",
    "workload": "Turn traces or metrics into workload classes.",
    "perf": "Predict the performance of a model on an accelerator.",
    "calibrate": "Correct the performance model by your own measurements.",
    "check": "Compare a plan with what was measured.",
    "validate": "Measure the accuracy of predictions; refit the constants.",
    "list": "Show the models, accelerators and offers of the catalogue.",
    "schema": "Print the JSON Schema of the instance file.",
}
"""Every command and its line of help; `planner --help` shows these without importing anything."""


@dataclass(frozen=True, slots=True)
class Verbosity:
    """How much to say on stderr: -1 errors only, 0 notes and warnings, 1 and more details."""

    level: int = 0

    @property
    def quiet(self) -> bool:
        """True under -q."""
        return self.level < 0

    @property
    def verbose(self) -> bool:
        """True under -v."""
        return self.level > 0


class _PipeClosed(Exception):
    """The reader of stdout went away; click would report that as a failure of the command."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports `planner.cli.NAME` on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the order of a first session, not of the alphabet."""
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command object `NAME` of the module `planner.cli.NAME`."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"planner.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a mistyped command."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands from `COMMANDS`, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; a closed pipe is no error."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _PipeClosed from error


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    solvers = []
    for name in ("pyomo", "highspy", "pyscipopt"):
        try:
            solvers.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    python = ".".join(map(str, sys.version_info[:3]))
    click.echo(f"planner {__version__} ({', '.join([*solvers, f'python {python}'])})")
    ctx.exit()


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`planner COMMAND --help` explains a command. Exit codes: 0 done, 1 infeasible or a "
    "check failed, 2 wrong usage or input, 3 no plan within the limit, 4 failure.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the versions of planner and its solvers.",
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors on stderr.")
@click.option("-v", "--verbose", count=True, help="Say more on stderr; twice for debugging.")
@click.pass_context
def cli(ctx: click.Context, quiet: bool, verbose: int) -> None:
    """Plan LLM inference fleets at least cost under latency targets."""
    ctx.obj = Verbosity(-1 if quiet else verbose)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line (`sys.argv` by default) and return the exit code."""
    try:
        outcome = cli.main(
            args=None if args is None else [*args], prog_name="planner", standalone_mode=False
        )
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return EXIT_USAGE
    except PlannerError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except (_PipeClosed, BrokenPipeError):
        # Nobody reads any more; keep the interpreter from flushing into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EBADF, errno.EIO):
            return _internal_error(error)
        click.echo(f"error: output cannot be written: {error.strerror}", err=True)
        return EXIT_USAGE
    except Exception as error:
        # The one place that catches everything: a crash must end in exit code 4, not in 1, which
        # means infeasible.
        return _internal_error(error)
    return outcome if isinstance(outcome, int) else 0


def _internal_error(error: Exception) -> int:
    if os.environ.get("PLANNER_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    detail = " ".join(str(error).split())
    click.echo(
        f"internal error: {type(error).__name__}: {detail}; this is a bug: please report it with "
        "the command, its input and what PLANNER_DEBUG=1 prints",
        err=True,
    )
    return EXIT_INTERNAL
