"""`swarmd stop`: asks the daemon to drain, and waits until it is gone."""

import time
from pathlib import Path

import click

from daemon.cli.common import CommandFailed, client_of, common_options, json_option
from daemon.cli.show import print_json
from swarmd import ClientError, NoDaemon

POLL_S = 0.05


@click.command()
@common_options
@click.option("--timeout", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds to wait for its end.")
@json_option
def stop(timeout: float, as_json: bool, **given: Path | None) -> None:
    """Let the daemon finish what it is doing, then end it."""
    client = client_of(given, timeout=5.0)
    client.stop()
    deadline = time.monotonic() + timeout
    while True:
        try:
            client.status()
        except NoDaemon:
            break
        except ClientError:
            pass  # it is going down: a reply that breaks off is no news
        if time.monotonic() >= deadline:
            raise CommandFailed(f"the daemon is still finishing what it was doing after {timeout:g} s")
        time.sleep(POLL_S)
    if as_json:
        print_json({"stopped": True})
    else:
        click.echo("stopped", err=True)
