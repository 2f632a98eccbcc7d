"""`swarmd start`: turns options into a configuration and runs the node, here or detached. Imports the node last."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from daemon.cli.common import DEGRADED, CommandFailed, common_options, merged
from daemon.config import Base, ConfigError, Loaded, load

DETACH_WAIT_S = 120.0
"""How long a detached daemon may take to become ready; loading a large model in vLLM goes on behind it."""
MAX_READY_BYTES = 64 << 10
READY_LINE = "swarmd is ready"

BOOTSTRAP: Mapping[str, object] = {
    "api.listen": "",
    "relay.serve": True,
    "relay.reservations": 512,
    "relay.circuits": 256,
    "limits.connections": 512,
    "lan.mdns": False,
    "probe.share": 0.0,
    "verify.share": 0.0,
}
"""What a bootstrap has in place of the defaults; the configuration overrules it."""


@click.command()
@common_options
@click.option("--model", help="A .gguf file, a shipped model's name, or owner/name to serve with vLLM.")
@click.option("--engine-url", metavar="URL", help="Serve from this OpenAI-compatible server.")
@click.option("--no-model", is_flag=True, help="Serve no model; join as a client.")
@click.option("--join", multiple=True, metavar="MULTIADDR", help="Join the mesh through this peer; may be repeated.")
@click.option("--listen", multiple=True, metavar="MULTIADDR", help="Listen for peers here; may be repeated.")
@click.option("--api", metavar="HOST:PORT", help='Address of the OpenAI endpoint; "" turns it off.')
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Set any setting, such as engine.threads=2.")
@click.option("--detach", is_flag=True, help="Return once the daemon is ready and leave it running.")
@click.option("--ready-fd", type=int, hidden=True)
def start(detach: bool, ready_fd: int | None, assignments: Sequence[str], **given: Any) -> int:
    """Run the daemon: make a key, serve a model, open the local socket, join the mesh.

    Ctrl-C lets it finish what it is doing; a second Ctrl-C stops it at once.
    """
    common = merged(given)
    loaded = load(_flags(given), common.config_file, assignments=assignments, base=Base(common.mesh))
    for warning in loaded.warnings:
        click.echo(f"swarmd: {warning}", err=True)
    return _detach(loaded) if detach else _run(loaded, ready_fd)


@click.command()
@common_options
@click.option("--join", multiple=True, metavar="MULTIADDR", help="Another bootstrap of the same mesh; may be repeated.")
@click.option("--listen", multiple=True, metavar="MULTIADDR", help="Listen for peers here; may be repeated.")
@click.option("--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Set any setting, such as relay.circuits=512.")
@click.option("--detach", is_flag=True, help="Return once the node is ready and leave it running.")
@click.option("--ready-fd", type=int, hidden=True)
def bootstrap(detach: bool, ready_fd: int | None, assignments: Sequence[str], **given: Any) -> int:
    """Run a small node through which others join and are relayed: no model, no rounds, no claims, no OpenAI endpoint.

    It prints the address to give to others. It needs a port that they can reach, and its data folder should be kept: the folder
    holds its key, which is part of that address.
    """
    common = merged(given)
    flags = _flags({**given, "model": None, "engine_url": None, "no_model": True, "api": None}) | {"role": "bootstrap"}
    loaded = load(flags, common.config_file, assignments=assignments, base=Base(common.mesh, BOOTSTRAP))
    for warning in loaded.warnings:
        click.echo(f"swarmd: {warning}", err=True)
    return _detach(loaded) if detach else _run(loaded, ready_fd)


def _flags(given: Mapping[str, Any]) -> dict[str, object]:
    if sum(bool(given[name]) for name in ("model", "no_model")) > 1 or (given["engine_url"] and given["no_model"]):
        raise click.UsageError("--no-model cannot be combined with --model or --engine-url")
    flags: dict[str, object] = {
        "data_dir": merged(given).data_dir,
        "join": given["join"] or None,
        "listen": given["listen"] or None,
        "api.listen": given["api"],
        "engine.model": given["model"],
    }
    if (socket := merged(given).socket) is not None:
        if socket.name != "api.sock":
            raise click.UsageError("the socket's file is always called api.sock; name its folder by --set runtime_dir=FOLDER")
        flags["runtime_dir"] = socket.parent
    # What is named here decides the kind of engine, whatever kind a file chose for another model.
    if given["no_model"]:
        flags["engine.kind"] = "none"
    elif given["engine_url"]:
        flags.update({"engine.kind": "url", "engine.url": given["engine_url"]})
    elif given["model"]:
        flags.update({"engine.kind": "auto", "engine.url": ""})
    return flags


def _run(loaded: Loaded, ready_fd: int | None) -> int:
    from daemon.node import run  # imports trio and libp2p, which take a second

    def ready(addresses: Sequence[str], api_url: str, mesh: str, may_invite: bool) -> None:
        said = {"addresses": list(addresses), "api_url": api_url, "mesh": mesh, "may_invite": may_invite}
        if ready_fd is not None:
            with os.fdopen(ready_fd, "w") as pipe:
                json.dump(said, pipe)
        announce(loaded, said)

    try:
        return run(loaded, ready)
    except Exception as raised:  # the last line of defence: one clear line, whatever happened
        faults = list(_faults(raised))
        unexpected = [fault for fault in faults if not isinstance(fault, _expected_errors())]
        if unexpected:
            traceback.print_exception(raised)
            raise CommandFailed(f"internal error: {type(unexpected[0]).__name__}: {unexpected[0]}") from raised
        raise CommandFailed(_sentence(faults[0])) from raised


def announce(loaded: Loaded, said: Mapping[str, Any]) -> None:
    """Print what a person needs to use the daemon and to let others join: what it `said` of itself, then that it is ready."""
    click.echo(f"local socket  {loaded.config.socket_path}")
    if said["api_url"]:
        click.echo(f"OpenAI API    {said['api_url']}")
    if said["mesh"] and said["may_invite"]:
        click.echo(f"private mesh {said['mesh']}; let others in with\n  swarmd invite create --for PEER")
    elif said["mesh"]:
        click.echo(f"private mesh {said['mesh']}; this peer may not invite others")
    elif said["addresses"]:
        click.echo("let others join with")
        for address in said["addresses"]:
            click.echo(f"  swarmd start --join {address}")
    click.echo(READY_LINE)
    sys.stdout.flush()


def _expected_errors() -> tuple[type[Exception], ...]:
    from crdt_store.store import StorageError
    from daemon.api.listeners import ListenError
    from daemon.engine.interface import EngineError
    from daemon.identity import IdentityError
    from daemon.mesh_folder import MeshFolderError
    from daemon.paths import UnsafeFolder
    from daemon.transport.interface import TransportError

    ours = (IdentityError, MeshFolderError, UnsafeFolder, ListenError, TransportError, EngineError, StorageError, ConfigError)
    return (*ours, OSError)


def _faults(error: BaseException) -> Iterator[BaseException]:
    """The faults inside nested exception groups, in their order."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _faults(inner)
    else:
        yield error


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _detach(loaded: Loaded) -> int:
    from daemon.paths import UnsafeFolder, log_file, private_folder

    config = loaded.config
    log_path = log_file(config.data_dir)
    try:
        private_folder(log_path.parent, "data" if log_path.parent == config.data_dir else "log")
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except (UnsafeFolder, OSError) as error:
        raise CommandFailed(f"the log cannot be written: {_sentence(error)}") from None
    began = os.fstat(log).st_size
    reading, writing = os.pipe()
    arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
    # -P: a folder called swarmd in the working directory must not be taken for us.
    command = [sys.executable, "-P", "-m", "swarmd", *arguments, "--ready-fd", str(writing)]
    child = subprocess.Popen(  # noqa: S603 - our own program with the arguments we were called with
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(writing,), start_new_session=True
    )
    os.close(writing)
    os.close(log)
    try:
        announcement = _await_ready(reading)
    except KeyboardInterrupt:
        child.terminate()  # whoever interrupts its start does not want it to run on
        child.wait()
        raise
    if announcement is not None:
        announce(loaded, announcement)
        click.echo(f"it runs on as process {child.pid} and logs to {log_path}", err=True)
        child.returncode = 0  # it outlives us, which is no reason for a warning
        return 0
    with contextlib.suppress(subprocess.TimeoutExpired):
        code = child.wait(timeout=1.0)
        click.echo(_tail(log_path, began), err=True, nl=False)
        raise CommandFailed(f"the daemon ended with exit code {code}; its log is {log_path}", code if code > 0 else 1)
    click.echo(f"swarmd: not ready after {DETACH_WAIT_S:.0f} s, still starting; see `swarmd status` and {log_path}", err=True)
    child.returncode = 0
    return DEGRADED


def _await_ready(descriptor: int) -> dict[str, Any] | None:
    """What the child wrote once it was ready; None where it ended or took too long."""
    deadline, raw = time.monotonic() + DETACH_WAIT_S, b""
    try:
        while len(raw) < MAX_READY_BYTES:
            readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                return None
            piece = os.read(descriptor, MAX_READY_BYTES)
            if not piece:
                break
            raw += piece
    finally:
        os.close(descriptor)
    try:
        announcement: dict[str, Any] = json.loads(raw)
    except ValueError:
        return None
    return announcement


def _tail(log_path: Path, began: int) -> str:
    with log_path.open("rb") as log:
        log.seek(began)
        lines = log.read(MAX_READY_BYTES).decode("utf-8", "replace").splitlines(keepends=True)
    return "".join(lines[-20:])
