"""What the commands share: exit codes, the common options, the client of the daemon they mean. Prints nothing."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from daemon.config import load
from swarmd import Client

FAILED = 1
USAGE = 2
NO_DAEMON = 3
DEGRADED = 4
REFUSED = 5


class CommandFailed(Exception):
    """A command could not do it. The message is one sentence."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Common(NamedTuple):
    """The options that may stand before or after the command's name."""

    socket: Path | None
    data_dir: Path | None
    config_file: Path | None


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --socket, --data-dir and --config."""
    options = [
        click.option("--config", "config_file", type=click.Path(path_type=Path), help="The configuration file."),
        click.option("--data-dir", type=click.Path(path_type=Path), help="The daemon's data folder; its socket follows from it."),
        click.option("--socket", type=click.Path(path_type=Path), help="The daemon's local socket."),
    ]
    for option in options:
        function = option(function)
    return function


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def merged(given: Mapping[str, Path | None]) -> Common:
    """The common options of the running command, those after its name first."""
    before = click.get_current_context().find_object(Common) or Common(None, None, None)
    return Common(
        given.get("socket") or before.socket,
        given.get("data_dir") or before.data_dir,
        given.get("config_file") or before.config_file,
    )


def client_of(given: Mapping[str, Path | None], timeout: float = 30.0) -> Client:
    """The client of the daemon that the common options mean."""
    common = merged(given)
    if common.socket is not None:
        return Client(common.socket, timeout=timeout)
    if common.data_dir is None and common.config_file is None and os.environ.get("SWARMD_SOCKET"):
        return Client(timeout=timeout)
    loaded = load({"data_dir": common.data_dir}, common.config_file, check=False)
    return Client(loaded.config.socket_path, timeout=timeout)
