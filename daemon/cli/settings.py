"""`swarmd config`: what the settings are and where each came from. Reads files and the environment; asks no daemon."""

import json
from pathlib import Path
from typing import Any

import click

from daemon.cli.common import common_options, json_option, merged
from daemon.cli.show import print_facts, print_json
from daemon.config import Base, Loaded, load, masked


@click.group()
def config() -> None:
    """Show or check the configuration that `swarmd start` would use."""


@config.command()
@common_options
@click.option("--origin", is_flag=True, help="Say where each value came from.")
@json_option
def show(origin: bool, as_json: bool, **given: Path | None) -> None:
    """Print every setting; secrets are masked."""
    loaded = _load(given, check=False)
    settings = masked(loaded)
    if as_json:
        print_json({"settings": settings} if origin else {name: entry["value"] for name, entry in settings.items()})
    else:
        print_facts((name, _line(entry, origin)) for name, entry in settings.items())
    _warn(loaded)


@config.command()
@common_options
def validate(**given: Path | None) -> None:
    """Check the configuration; says what is wrong with it and exits with 2."""
    _warn(_load(given, check=True))
    click.echo("the configuration is valid", err=True)


def _load(given: dict[str, Path | None], check: bool) -> Loaded:
    common = merged(given)
    return load({"data_dir": common.data_dir}, common.config_file, check=check, base=Base(common.mesh))


def _line(entry: dict[str, Any], origin: bool) -> str:
    value = entry["value"]
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text or '-'}  ({entry['origin']})" if origin else text


def _warn(loaded: Loaded) -> None:
    for warning in loaded.warnings:
        click.echo(f"swarmd: {warning}", err=True)
