"""`swarmd id`, `mesh`, `join` and `leave`: which mesh a data folder belongs to. They need no daemon; `leave` stops it."""

import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.cli.common import (
    FAILED,
    REFUSED,
    USAGE,
    CommandFailed,
    client_of,
    common_options,
    json_option,
    loaded_of,
    merged,
    start_command,
)
from daemon.cli.show import ago, print_json
from swarmd import ClientError, NoDaemon

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_INVITE_CHARS = 16 << 10
LEAVE_SECONDS = 60.0


@click.command(name="id")
@common_options
@json_option
def show_id(as_json: bool, **given: Path | None) -> None:
    """Print this peer's id, which others need to invite it; makes its key where there is none yet."""
    from daemon.identity import KEY_NAME, IdentityError, load_or_create_key, locked
    from protocol.wire.envelope import public_bytes
    from protocol.wire.ids import peer_id_of

    folder = loaded_of(given).config.data_dir
    try:
        if (folder / KEY_NAME).exists():
            key = load_or_create_key(folder)
        else:
            with locked(folder):
                key = load_or_create_key(folder)
    except IdentityError as error:
        raise CommandFailed(str(error)) from None
    peer_id = peer_id_of(public_bytes(key))
    if as_json:
        print_json({"peer_id": peer_id, "data_dir": str(folder)})
    else:
        click.echo(peer_id)


@click.group()
def mesh() -> None:
    """Make a private mesh, and show the one that this peer is in."""


@mesh.command()
@common_options
@click.argument("name")
@json_option
def create(name: str, as_json: bool, **given: Path | None) -> None:
    """Make a private mesh called NAME with this peer as its founder; others come by `swarmd invite create`."""
    from daemon.config import BAD_NAME
    from daemon.mesh_folder import Kept
    from dht.grants import MESH_NAME

    if re.match(MESH_NAME, name) is None:
        raise CommandFailed(BAD_NAME, USAGE)

    def kept(_key: "Ed25519PrivateKey", peer_id: str) -> Kept:
        return Kept(name, peer_id, os.urandom(16), os.urandom(32))

    made = _put(given, kept)
    _said(as_json, made, f"the mesh {name} is made; start it with: {start_command(merged(given))}")


@mesh.command()
@common_options
@json_option
def show(as_json: bool, **given: Path | None) -> None:
    """Show the private mesh that this peer's data folder belongs to."""
    from daemon.mesh_folder import MeshFolder, MeshFolderError

    folder = loaded_of(given).config.data_dir
    try:
        kept = MeshFolder(folder).read()
    except MeshFolderError as error:
        raise CommandFailed(str(error)) from None
    facts = None if kept is None else {"name": kept.name, "id": kept.mesh.id.hex(), "founder": kept.founder}
    if as_json:
        print_json({"mesh": facts, "data_dir": str(folder)})
    elif facts is None:
        click.echo("the public mesh")
    else:
        click.echo(f"{facts['name']}  founded by {facts['founder']}  ({str(facts['id'])[:16]})")


@click.command()
@common_options
@click.argument("invite", required=False)
@click.option("--file", "file", type=click.Path(path_type=Path), help="Read the invite from this file; - is standard input.")
@json_option
def join(invite: str | None, file: Path | None, as_json: bool, **given: Path | None) -> None:
    """Join a private mesh by an INVITE; then start the daemon on the same folder.

    One data folder is in one mesh. To be in several, give each a name: `swarmd join --mesh NAME INVITE`, then
    `swarmd start --mesh NAME`. An invite made with --once is a secret: hand it over by --file, as others on this box see the
    command line.
    """
    from daemon.mesh_folder import Kept
    from dht.invites import accept, read_invite, recipient_of
    from protocol.wire.errors import RemoteError

    text = _invite_text(invite, file)
    now = int(time.time() * 1000)
    read: list[Any] = []

    def kept(key: "Ed25519PrivateKey", _peer_id: str) -> Kept:
        try:
            opened = read_invite(text, key, now)
            chain = accept(opened, key, now)
        except RemoteError as error:
            raise CommandFailed(error.message, REFUSED) from None
        read.append(opened)
        return Kept(opened.mesh.name, opened.mesh.founder, opened.mesh.salt, opened.key, chain, opened.addresses)

    made = _put(given, kept)
    if invite is not None and recipient_of(text) is None:
        click.echo("swarmd: others on this box see a command line, and this invite is a secret: use --file", err=True)
    left = (read[0].grant.expires - now) / 1000
    note = f"come in within {ago(left)}: start it with: {start_command(merged(given))}"
    _said(as_json, {**made, "expires": read[0].grant.expires}, f"joined the mesh {made['mesh']}; {note}")


@click.command()
@common_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def leave(yes: bool, as_json: bool, **given: Path | None) -> None:
    """Leave the private mesh: stop the daemon, and delete the mesh key, our grants and the addresses of its peers.

    The peer's key, its claims and its files stay, and the folder may be used for that mesh alone from then on.
    """
    from daemon.identity import IdentityError, locked
    from daemon.mesh_folder import MeshFolder, MeshFolderError

    folder = loaded_of(given).config.data_dir
    files = MeshFolder(folder)
    try:
        kept = files.read()
        if kept is None:
            raise CommandFailed(f"{folder} is in no private mesh; the public one is left by stopping the daemon", USAGE)
        if not yes:
            if not sys.stdin.isatty():
                raise click.UsageError("nobody can be asked here, as standard input is no terminal; say so with --yes")
            click.confirm(f"Leave the mesh {kept.name}? It takes a new invite to come back.", abort=True, err=True)
        _stop(given)
        with locked(folder):
            files.leave(kept)
    except (MeshFolderError, IdentityError) as error:
        raise CommandFailed(str(error)) from None
    except OSError as error:
        raise CommandFailed(f"{folder} cannot be written: {error.strerror}") from None
    _said(as_json, {"mesh": kept.name, "left": True, "data_dir": str(folder)}, f"left the mesh {kept.name}")


def _put(given: Mapping[str, Any], make: Any) -> dict[str, Any]:
    """Make the data folder one of the mesh that `make(key, peer id)` says, if it is in no other."""
    from daemon.identity import EPOCH_NAME, IdentityError, load_or_create_key, locked
    from daemon.mesh_folder import MeshFolder, MeshFolderError
    from protocol.wire.envelope import public_bytes
    from protocol.wire.ids import peer_id_of

    folder = loaded_of(given).config.data_dir
    files = MeshFolder(folder)
    try:
        with locked(folder):
            key = load_or_create_key(folder)
            peer_id = peer_id_of(public_bytes(key))
            now, before = files.read(), files.left()
            kept = make(key, peer_id)
            another = "name a folder of its own by --mesh NAME or --data-dir"
            if now is not None and now.mesh != kept.mesh:
                raise CommandFailed(f"{folder} is in the mesh {now.name} already; {another}", REFUSED)
            if now is None and before is not None and before != kept.mesh:
                raise CommandFailed(f"{folder} was in the mesh {before.name} and can come back to that alone; {another}", REFUSED)
            if now is None and before is None and (folder / EPOCH_NAME).exists():
                raise CommandFailed(f"{folder} was used in the public mesh, where its peer is known; {another}", REFUSED)
            files.write(kept)
    except (MeshFolderError, IdentityError) as error:
        raise CommandFailed(str(error)) from None
    except OSError as error:
        raise CommandFailed(f"{folder} cannot be written: {error.strerror}") from None
    return {"mesh": kept.name, "id": kept.mesh.id.hex(), "founder": kept.founder, "peer_id": peer_id, "data_dir": str(folder)}


def _invite_text(invite: str | None, file: Path | None) -> str:
    if (invite is None) == (file is None):
        raise click.UsageError("give the invite itself, or the file that holds it by --file")
    if invite is not None:
        return invite
    try:
        if str(file) == "-":
            return sys.stdin.read(MAX_INVITE_CHARS)
        assert file is not None  # noqa: S101 - one of the two is given
        with file.open() as opened:
            return opened.read(MAX_INVITE_CHARS)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{file} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}", USAGE) from None


def _stop(given: Mapping[str, Any]) -> None:
    client = client_of(given, timeout=5.0)
    deadline = time.monotonic() + LEAVE_SECONDS
    try:
        client.stop()
        while time.monotonic() < deadline:
            time.sleep(0.1)
            client.status()
    except NoDaemon:
        return
    except ClientError:
        pass  # it is going down: a reply that breaks off is no news
    while time.monotonic() < deadline:
        try:
            client.status()
        except NoDaemon:
            return
        except ClientError:
            pass
        time.sleep(0.1)
    raise CommandFailed(f"the daemon is still finishing what it was doing after {LEAVE_SECONDS:g} s; nothing was changed", FAILED)


def _said(as_json: bool, facts: dict[str, Any], sentence: str) -> None:
    if as_json:
        print_json(facts)
    else:
        click.echo(sentence, err=True)
