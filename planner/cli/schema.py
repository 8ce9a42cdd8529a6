"""`planner schema`: the JSON Schema of the instance file."""

from __future__ import annotations

import click


@click.command(short_help="Print the JSON Schema of the instance file.")
def schema() -> None:
    """Print the JSON Schema of the instance file.

    Editors complete and explain fields with it: save it and name it in the first line of an
    instance, `# yaml-language-server: $schema=PATH`.
    """
    from planner.schema import instance_json_schema

    click.echo(instance_json_schema(), nl=False)
