"""`swarmd invite`: let peers into a private mesh, list who was asked, and take it back."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from daemon.cli.common import USAGE, CommandFailed, client_of, common_options, json_option
from daemon.cli.reputation import PEER_ID
from daemon.cli.show import ago, cell, print_json, print_table

DAY_S = 24 * 3600.0
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY_S, "w": 7 * DAY_S}


class Span(click.ParamType[float]):
    """A length of time such as 90s, 15m, 24h or 7d, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip().lower()
        try:
            seconds = float(text[:-1]) * _UNITS[text[-1:]]
        except (ValueError, KeyError):
            self.fail(f"{text[:40]!r} is no length of time such as 90s, 15m, 24h or 7d", param, ctx)
        if not 0 < seconds <= 366 * DAY_S:
            self.fail("an invite is good for at least a moment and at most 366d", param, ctx)
        return seconds


@click.group()
def invite() -> None:
    """Invite peers into a private mesh, list the invites, and take them back."""


@invite.command()
@common_options
@click.option("--for", "recipient", metavar="PEER", help="The peer id that it is for; `swarmd id` prints a peer's own.")
@click.option("--once", is_flag=True, help="For the first peer that uses it, whoever that is; keep it secret.")
@click.option("--expires", type=Span(), default="24h", show_default=True, help="How long it may be used: 90s, 15m, 24h, 7d.")
@click.option("--may-invite", is_flag=True, help="Let the peer invite others, too; with --for alone.")
@click.option("--out", type=click.Path(path_type=Path), help="Write it to this new file (mode 0600) and not to the screen.")
@json_option
def create(
    recipient: str | None,
    once: bool,
    expires: float,
    may_invite: bool,
    out: Path | None,
    as_json: bool,
    **given: Path | None,
) -> None:
    """Make an invite and print it: one line, to be given to `swarmd join`."""
    if bool(recipient) == once:
        raise click.UsageError("say whom it is for: --for PEER (`swarmd id` there prints it), or --once for the first who comes")
    if recipient and PEER_ID.fullmatch(recipient) is None:
        raise click.UsageError("--for takes a whole peer id (12D3KooW...): `swarmd id` there prints it")
    client = client_of(given)
    with _new_file(out) as file:  # before the invite is made: one that nobody can read would stay open
        reply = client.create_invite(recipient, expires_s=expires, may_invite=may_invite)
        text = str(reply["invite"])
        if file is not None:
            file.write(text + "\n")
    if out is not None:
        reply["invite"], reply["file"] = None, str(out)
    if as_json:
        print_json(reply)
        return
    if out is None:
        click.echo(text)
    whom = f"{cell(reply['for'])} alone" if reply.get("for") else "the first peer that uses it: whoever has it can join"
    where = f" in {out}" if out is not None else ""
    click.echo(f"invite {reply['id'][:8]}{where} is for {whom}, good for {ago(expires)}", err=True)


@invite.command(name="list")
@common_options
@json_option
def list_invites(as_json: bool, **given: Path | None) -> None:
    """List the invites that this peer gave, newest first."""
    rows = client_of(given).invites()
    if as_json:
        print_json({"invites": rows})
        return
    table = []
    for row in rows:
        whom = "first to come" if row.get("once") else row.get("for")
        left = max(0.0, row["expires"] / 1000 - time.time()) if row.get("state") == "open" else None
        may = "invite" if row.get("may_invite") else "join"
        table.append((str(row.get("id"))[:8], row.get("state"), whom, may, ago(left), row.get("used_by")))
    print_table(("ID", "STATE", "FOR", "MAY", "GOOD FOR", "USED BY"), table)


@invite.command()
@common_options
@click.argument("named", metavar="INVITE|PEER")
@json_option
def revoke(named: str, as_json: bool, **given: Path | None) -> None:
    """Take back an INVITE (its number) with whoever came by it, or remove a PEER from the mesh for good.

    Its connections are closed and everybody is told at once. What it keeps is the mesh key, with which it can only knock: it can
    neither listen to others' connections nor come in under another name.
    """
    reply = client_of(given).revoke_invite(named)
    if as_json:
        print_json(reply)
        return
    what = f"invite {str(reply['invite'])[:8]}" if reply.get("invite") else f"peer {cell(reply.get('peer_id'))}"
    after = f"; {cell(reply['peer_id'])} is out of the mesh" if reply.get("invite") and reply.get("peer_id") else ""
    click.echo(f"{what} {'is revoked' if reply.get('new') else 'was revoked before'}{after}", err=True)


@contextmanager
def _new_file(path: Path | None) -> Iterator[IO[str] | None]:
    """A new file, mode 0600, that is gone again where what it was for fails; None for no path."""
    if path is None:
        yield None
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise CommandFailed(f"{path} exists; name a new file, as an invite is a secret", USAGE) from None
    except OSError as error:
        raise CommandFailed(f"{path} cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "w") as file:
            yield file
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CommandFailed(f"{path} cannot be written: {error.strerror}") from None
        raise
