"""`planner lint`: check an instance without solving it."""

from __future__ import annotations

import click

from planner.errors import InputError, Problem


@click.command(short_help="Check an instance without solving it.")
@click.argument("instance", type=click.Path(), metavar="INSTANCE...", nargs=-1, required=True)
def lint(instance: tuple[str, ...]) -> None:
    """Check one or more instance files without solving them.

    Prints a line for each good file; every mistake is told with its line, and the exit code is 2.
    """
    from planner.perf.instance import instance_backend
    from planner.schema import load_instance
    from planner.workload import build_workload

    problems: list[Problem] = []
    for path in instance:
        try:
            loaded = load_instance(path)
            build_workload(loaded)
            instance_backend(loaded)
        except InputError as error:
            problems += error.problems
            continue
        models = len(loaded.models)
        classes = len(loaded.workloads)
        prefix = f"{path}: " if len(instance) > 1 else ""
        click.echo(
            f"{prefix}ok: {classes} class{'' if classes == 1 else 'es'}, "
            f"{models} model{'' if models == 1 else 's'}"
        )
    if problems:
        raise InputError(problems)
