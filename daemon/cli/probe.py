"""`swarmd probe`: asks peers questions whose answers are known, and shows how many each got right, by skill."""

from typing import Any

import click

from daemon.cli.common import client_of, common_options, json_option
from daemon.cli.show import cell, milli, print_json, print_table


@click.command()
@common_options
@click.argument("peer", required=False)
@click.option(
    "--skill", metavar="S", help="Of this skill alone, such as add or arithmetic; else in turn of each that suits the peer."
)
@click.option("--count", type=click.IntRange(0, 1000), default=10, show_default=True, help="Questions to each peer.")
@click.option(
    "--rounds", type=click.IntRange(0, 100), default=0, show_default=True, help="Rounds on such questions: how peers judge."
)
@click.option("--timeout", type=click.FloatRange(min=1), default=600.0, show_default=True, help="Seconds for all of it.")
@json_option
def probe(peer: str | None, skill: str | None, count: int, rounds: int, timeout: float, as_json: bool, **given: Any) -> None:
    """Ask PEER, or every peer, questions of known answer now. What they get right and wrong becomes claims of this peer's."""
    if peer and rounds:
        raise click.UsageError("--rounds choose their members themselves, so leave the peer out")
    reply = client_of(given).probe(peer, skill=skill, count=count, rounds=rounds, timeout=timeout)
    if as_json:
        print_json(reply)
        return
    table = []
    for row in reply.get("peers", []):
        for found in row.get("skills", []):
            interval = f"{milli(found.get('low_milli'))} to {milli(found.get('high_milli'))}"
            counts = (found.get("right"), found.get("wrong"))
            table.append(
                (row.get("peer_id"), row.get("model"), found.get("skill"), *counts, milli(found.get("share_milli")), interval)
            )
    print_table(("PEER", "MODEL", "SKILL", "RIGHT", "WRONG", "SHARE", "90% INTERVAL"), table)
    for row in reply.get("peers", []):
        if row.get("unanswered"):
            click.echo(
                f"{cell(row.get('peer_id'))} left {row['unanswered']} questions unanswered, which says nothing of it", err=True
            )
