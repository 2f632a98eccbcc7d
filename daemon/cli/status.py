"""`swarmd status`: whether the daemon is ready, and everything that stands in the way."""

from pathlib import Path
from typing import Any

import click

from daemon.cli.common import DEGRADED, client_of, common_options, json_option
from daemon.cli.show import ago, cell, print_facts, print_json


@click.command()
@common_options
@click.option("--quiet", "-q", is_flag=True, help="Print nothing; the exit code tells.")
@json_option
def status(quiet: bool, as_json: bool, **given: Path | None) -> int:
    """Show the daemon's state; exits with 4 where it is not ready."""
    reply = client_of(given).status()
    if as_json:
        print_json(reply)
    elif not quiet:
        print_facts(_facts(reply))
        for reason in reply.get("reasons") or []:
            click.echo(f"not ready: {cell(reason)}")
    return 0 if reply.get("state") == "ready" else DEGRADED


def _facts(reply: dict[str, Any]) -> list[tuple[str, object]]:
    engine, mesh, api = reply.get("engine") or {}, reply.get("mesh") or {}, reply.get("api") or {}
    facts: list[tuple[str, object]] = [
        ("state", reply.get("state")),
        ("peer", reply.get("peer_id")),
        ("version", reply.get("version")),
        ("up for", ago(reply.get("uptime_s"))),
        ("model", engine.get("model") if engine else "none (client)"),
    ]
    if engine:
        load = f", {engine.get('busy')} of {engine['slots']} slots busy" if engine.get("slots") else ""
        facts.append(("engine", f"{engine.get('engine') or ''} {engine.get('state')}{load}".strip()))
    private = mesh.get("private")
    if private:
        until = private.get("provisional_until")
        waiting = ", until its inviter answers" if until else ""
        facts.append(("mesh", f"{private.get('name')} (private{waiting})"))
    facts.append(("peers", f"{mesh.get('connected', 0)} connected, {mesh.get('peers', 0)} known"))
    kinds = mesh.get("paths") or {}
    if kinds:
        facts.append(("paths", ", ".join(f"{count} {kind} for {ago(oldest)}" for kind, (count, oldest) in kinds.items())))
    facts += [("address", address) for address in reply.get("addresses") or []]
    for peer in mesh.get("bootstrap") or []:
        state = "connected" if peer.get("connected") else peer.get("error") or "not connected"
        facts.append(("joins through", f"{peer.get('address')}: {state}"))
    if mesh.get("hint"):
        facts.append(("joins through", mesh["hint"]))
    facts += [("relay", address) for address in (reply.get("relay") or {}).get("reservations") or []]
    return [*facts, ("socket", api.get("socket")), ("OpenAI API", api.get("url"))]
