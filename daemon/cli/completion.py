"""`swarmd completion`: the script that lets a shell complete our commands."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL; add it to the shell's start-up file."""
    from daemon.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - the choice above lists the kinds that click has
    click.echo(kind(cli, {}, "swarmd", "_SWARMD_COMPLETE").source())
