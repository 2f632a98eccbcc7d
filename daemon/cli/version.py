"""`swarmd version`: what is installed here. Asks no daemon."""

import platform
from importlib import metadata

import click

from daemon.cli.common import json_option
from daemon.cli.show import print_json
from daemon.version import version as our_version


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the version of swarmd, of Python and of libp2p."""
    parts = {"version": our_version(), "python": platform.python_version(), "libp2p": metadata.version("libp2p")}
    if as_json:
        print_json(parts)
    else:
        click.echo(f"swarmd {parts['version']} (Python {parts['python']}, libp2p {parts['libp2p']})")
