"""The command line: which commands there are, and what each failure says and exits with. Imports a command only when it is run.

`swarmd --help` and `swarmd status` import neither trio nor libp2p: both take seconds, and a person waits.
"""

import json
import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import click

from daemon.cli.common import DEGRADED, FAILED, NO_DAEMON, REFUSED, USAGE, CommandFailed, Common, common_options
from daemon.cli.show import prose
from daemon.config import ConfigError
from swarmd import ApiError, ClientError, NoDaemon

__all__ = ["DEGRADED", "FAILED", "NO_DAEMON", "REFUSED", "USAGE", "cli", "main"]

COMMANDS = {
    "start": ("daemon.cli.start:start", "Run the daemon and serve a model."),
    "bootstrap": ("daemon.cli.start:bootstrap", "Run a small node through which others join and are relayed."),
    "stop": ("daemon.cli.stop:stop", "Stop the daemon after it finished what it is doing."),
    "status": ("daemon.cli.status:status", "Show whether the daemon is ready, and if not, why."),
    "ask": ("daemon.cli.ask:ask", "Ask one peer, or a committee that ranks its answers."),
    "peers": ("daemon.cli.mesh:peers", "List the peers and how each is reached."),
    "ping": ("daemon.cli.net:ping", "Measure round trips to a peer, until a direct path stands if you like."),
    "lookup": ("daemon.cli.lookup:lookup", "Look for a peer or a model in the DHT and show the paths that it took."),
    "netcheck": ("daemon.cli.net:netcheck", "Show how this box can be reached, and what stands in the way."),
    "models": ("daemon.cli.models:models", "List the models that can be asked for; share and fetch model files."),
    "reputation": ("daemon.cli.reputation:reputation", "Show how good peers are at what, and who says so."),
    "probe": ("daemon.cli.probe:probe", "Ask peers questions of known answer and show how many they got right."),
    "rounds": ("daemon.cli.rounds:rounds", "List the rounds that this peer took part in."),
    "why": ("daemon.cli.rounds:why", "Explain a round, a routed question, or a peer's reputation."),
    "verify": ("daemon.cli.rounds:verify", "Replay a round and compare the verdict to the bit."),
    "id": ("daemon.cli.join:show_id", "Print this peer's id, which others need to invite it."),
    "mesh": ("daemon.cli.join:mesh", "Make a private mesh, or show which one this peer is in."),
    "invite": ("daemon.cli.invite:invite", "Invite peers into a private mesh, and take invites back."),
    "join": ("daemon.cli.join:join", "Join a private mesh by an invite."),
    "leave": ("daemon.cli.join:leave", "Leave a private mesh."),
    "config": ("daemon.cli.settings:config", "Show or check the configuration."),
    "demo": ("daemon.cli.demo:demo", "Start a mesh on this box and ask it a question."),
    "completion": ("daemon.cli.completion:completion", "Print the completion script for a shell."),
    "version": ("daemon.cli.version:version", "Print the version."),
}

_REFUSALS = frozenset({"refused", "overloaded", "oversized"})


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@common_options
@click.pass_context
def cli(
    ctx: click.Context, /, socket: Path | None, data_dir: Path | None, config_file: Path | None, mesh: str | None
) -> None:
    """swarmd: a mesh of peers that serve their models to each other.

    Exit codes: 0 ok, 1 failed, 2 wrong usage or configuration, 3 no daemon, 4 degraded, 5 refused, 130 interrupted.
    With --json a failure is printed as {"error": {"code", "message", "exit_code"}}, too.
    """
    ctx.obj = Common(socket, data_dir, config_file, mesh)


def main() -> NoReturn:
    """Run the command line and exit."""
    # None where the caller closed it (`>&-`).
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - until we end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    try:
        code = cli.main(prog_name="swarmd", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
        _say_json("usage", error.format_message(), code)
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except (ConfigError, ClientError, CommandFailed) as error:
        # A sentence that quotes a peer is one line, and cannot steer the terminal.
        said = " ".join(prose(str(error)).split()) if isinstance(error, ApiError) else str(error)
        click.echo(f"swarmd: {said}", err=True)
        code = exit_code(error)
        _say_json(_name_of(error), said, code)
    except OSError as error:
        # The reader of our output went away, or its disk is full; nothing may be flushed at exit any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            with suppress(OSError):
                click.echo(f"swarmd: {error.filename or 'the output'} cannot be written: {error.strerror or error}", err=True)
        code = FAILED
    sys.exit(code if isinstance(code, int) else 0)


def _say_json(name: str, message: str, code: int) -> None:
    """Say a failure in one line of JSON, too, where JSON was asked for."""
    arguments = sys.argv[1:]
    if "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments):
        with suppress(OSError):
            click.echo(json.dumps({"error": {"code": name, "message": message, "exit_code": code}}))


def _name_of(error: Exception) -> str:
    match error:
        case ApiError():
            return error.code
        case NoDaemon():
            return "no_daemon"
        case ConfigError():
            return "configuration"
        case CommandFailed(exit_code=code) if code == USAGE:
            return "usage"
        case _:
            return "failed"


def exit_code(error: Exception) -> int:
    """The exit code that an error on purpose ends a command with."""
    match error:
        case CommandFailed():
            return error.exit_code
        case ConfigError():
            return USAGE
        case NoDaemon():
            return NO_DAEMON
        case ApiError() if error.code in _REFUSALS or error.status in (401, 403, 413, 429):
            return REFUSED
        case ApiError(status=400):
            return USAGE
        case _:
            return FAILED
