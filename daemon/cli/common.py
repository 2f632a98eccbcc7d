"""What the commands share: exit codes, the common options, the client of the daemon they mean. Prints nothing."""

import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from daemon.config import Base, Loaded, load
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

    socket: Path | None = None
    data_dir: Path | None = None
    config_file: Path | None = None
    mesh: str | None = None


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --socket, --data-dir, --mesh and --config."""
    options = [
        click.option("--config", "config_file", type=click.Path(path_type=Path), help="The configuration file."),
        click.option("--data-dir", type=click.Path(path_type=Path), help="The daemon's data folder; its socket follows from it."),
        click.option("--mesh", metavar="NAME", help="The daemon that was given this name, for a box that is in several meshes."),
        click.option("--socket", type=click.Path(path_type=Path), help="The daemon's local socket."),
    ]
    for option in options:
        function = option(function)
    return function


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def merged(given: Mapping[str, Any]) -> Common:
    """The common options of the running command, those after its name first."""
    before = click.get_current_context().find_object(Common) or Common()
    common = Common(*(given.get(name) or getattr(before, name) for name in Common._fields))
    if common.mesh and common.data_dir:
        raise click.UsageError("--mesh names a data folder, so --data-dir cannot be given as well")
    named = os.environ.get("SWARMD_MESH") if common == (None, None, None, None) else None
    return common._replace(mesh=named) if named else common


def loaded_of(given: Mapping[str, Any], check: bool = False) -> Loaded:
    """The configuration of the daemon that the common options mean."""
    common = merged(given)
    return load({"data_dir": common.data_dir}, common.config_file, check=check, base=Base(common.mesh))


def client_of(given: Mapping[str, Any], timeout: float = 30.0) -> Client:
    """The client of the daemon that the common options mean."""
    common = merged(given)
    if common.socket is not None:
        return Client(common.socket, timeout=timeout)
    if not (common.data_dir or common.config_file or common.mesh) and os.environ.get("SWARMD_SOCKET"):
        return Client(timeout=timeout)
    client = Client(loaded_of(given).config.socket_path, timeout=timeout)
    client.start_command = start_command(common)
    return client


def start_command(common: Common) -> str:
    """The command that starts the daemon that the common options mean."""
    named = (("--mesh", common.mesh), ("--data-dir", common.data_dir), ("--config", common.config_file))
    return shlex.join(["swarmd", "start", *(word for option, value in named if value for word in (option, str(value)))])
