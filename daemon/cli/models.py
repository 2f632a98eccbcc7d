"""`swarmd models`: what can be asked for, and the model files that peers hand each other by content hash."""

import sys
from pathlib import Path
from typing import Any

import click

from daemon.cli.common import USAGE, CommandFailed, client_of, common_options, json_option, merged
from daemon.cli.show import cell, number, print_facts, print_json, print_table

_MIB = 1 << 20


@click.group(invoke_without_command=True)
@common_options
@json_option
@click.pass_context
def models(ctx: click.Context, /, as_json: bool, **given: Path | None) -> None:
    """List the models that can be asked for; with a command, share and fetch model files."""
    if ctx.invoked_subcommand is not None:
        ctx.obj = merged(given)
        return
    rows = client_of(given).models()
    if as_json:
        print_json({"models": rows})
        return
    table = []
    for row in rows:
        serving, builds = len(row.get("peers") or []), len(row.get("config_digests") or [])
        table.append((row.get("name"), serving, row.get("slots_free"), "yes" if row.get("local") else "no", builds))
    print_table(("MODEL", "PEERS", "FREE SLOTS", "HERE", "BUILDS"), table)


@models.command("list")
@common_options
@click.option("--peers", "offered", is_flag=True, help="What connected peers share, instead of what this peer has.")
@json_option
def list_files(offered: bool, as_json: bool, **given: Path | None) -> None:
    """List the model files that this peer shares or is fetching."""
    rows = client_of(given).content(offered)
    if as_json:
        print_json({"files": rows})
    elif offered:
        shared = ((row.get("address"), row.get("name"), _mib(row.get("size")), len(row.get("peers") or [])) for row in rows)
        print_table(("ADDRESS", "NAME", "SIZE", "PEERS"), shared)
    else:
        own = ((row.get("address"), row.get("name"), _mib(row.get("size")), _share(row), row.get("path")) for row in rows)
        print_table(("ADDRESS", "NAME", "SIZE", "HERE", "PATH"), own)


@models.command()
@common_options
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def seed(file: Path, as_json: bool, **given: Path | None) -> None:
    """Share FILE (GGUF or safetensors) with peers, where it lies."""
    _print_file(client_of(given).seed(file), as_json)


@models.command()
@common_options
@click.argument("address")
@click.option("--peer", "peers", multiple=True, metavar="ID", help="Ask this peer too; may be given several times.")
@click.option("--name", help="Call the file so.")
@json_option
def pull(address: str, peers: tuple[str, ...], name: str | None, as_json: bool, **given: Path | None) -> None:
    """Fetch the file at ADDRESS from all peers that share it, and share it too. Interrupted, it goes on where it stopped."""
    if len(address) != 64 or set(address) - set("0123456789abcdef"):
        raise CommandFailed("an address is 64 hexadecimal digits; swarmd models list --peers shows them", USAGE)
    live = sys.stderr.isatty() and not as_json
    for event in client_of(given).pull(address, peers, name):
        if event.name == "progress" and live:
            done, size = int(event.fields.get("done") or 0), int(event.fields.get("size") or 1)
            line = f"{done * 100 // size:3d}%  {done // _MIB} of {size // _MIB} MiB from {event.fields.get('sources')} peers"
            click.echo(f"\r\x1b[K{line}", nl=False, err=True)
        elif event.name == "result":
            if live:
                click.echo("\r\x1b[K", nl=False, err=True)
            _print_pulled(event.fields, as_json)


@models.command()
@common_options
@click.argument("peer")
@click.argument("file")
@json_option
def push(peer: str, file: str, as_json: bool, **given: Path | None) -> None:
    """Ask PEER to fetch FILE, a shared file's name or the beginning of its address. PEER must accept files from this peer."""
    _print_file(client_of(given).push(peer, file), as_json)


@models.command()
@common_options
@click.argument("file")
@json_option
def remove(file: str, as_json: bool, **given: Path | None) -> None:
    """Share FILE no more; one that was fetched from peers is deleted."""
    _print_file(client_of(given).unshare(file), as_json)


def _print_pulled(fields: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(fields)
        return
    seconds, fetched = float(fields.get("elapsed_s") or 0), int(fields.get("fetched") or 0)
    _print_file(fields, as_json)
    if seconds:
        speed = number(fetched / _MIB / seconds, " MiB/s", 1)
        click.echo(f"{fetched // _MIB} MiB from {len(fields.get('by_peer') or {})} peers at {speed}", err=True)
    for peer, reason in (fields.get("dropped") or {}).items():
        click.echo(f"{cell(peer)} was asked no more: it {cell(reason)}", err=True)


def _print_file(fields: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(fields)
        return
    print_facts([(name, fields.get(name)) for name in ("address", "name", "path")] + [("size", _mib(fields.get("size")))])


def _mib(size: object) -> str:
    return number(size / _MIB if isinstance(size, int) else None, " MiB", 1)


def _share(row: dict[str, Any]) -> str:
    size, done = row.get("size") or 1, row.get("done") or 0
    return "whole" if done >= size else f"{done * 100 // size}%"
