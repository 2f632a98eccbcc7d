"""`swarmd peers`: who is there, and how each is reached."""

from pathlib import Path

import click

from daemon.cli.common import client_of, common_options, json_option
from daemon.cli.show import ago, number, print_json, print_table


@click.command()
@common_options
@json_option
def peers(as_json: bool, **given: Path | None) -> None:
    """List the peers and how each is reached now."""
    rows = client_of(given).peers()
    if as_json:
        print_json({"peers": rows})
        return
    table = []
    for peer in rows:
        path = peer.get("path") or {}
        load = f"{peer['busy']}/{peer['slots']}" if peer.get("slots") is not None and peer.get("busy") is not None else "-"
        reached = f"{path['kind']} {path.get('transport')}" if path.get("kind") else "-"
        rtt, heard = number(path.get("rtt_ms"), " ms", 1), ago(peer.get("last_heard_s"))
        since = ago(path.get("age_s"))
        table.append((peer.get("peer_id"), peer.get("state"), peer.get("model"), load, reached, since, rtt, heard))
    print_table(("PEER", "STATE", "MODEL", "BUSY", "REACHED", "SINCE", "RTT", "HEARD"), table)
