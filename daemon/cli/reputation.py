"""`swarmd reputation`: how good peers are at what, as this peer sees it, and the signed claims that say so."""

import re
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from daemon.cli.common import FAILED, CommandFailed, client_of, common_options, json_option, merged
from daemon.cli.show import ago, cell, milli, print_facts, print_json, print_table

_SKILL = click.option("--skill", help="Only this skill, such as arithmetic, judge.arithmetic or service.")


PEER_ID = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}")
"""An Ed25519 peer id in base58."""


_ARCHIVE = {"export": "export_claims", "import": "import_claims", "check": "check"}
"""Commands of another module, which imports cryptography: nobody waits for that who does not need it."""


class _PeerGroup(click.Group):
    """`swarmd reputation PEER` is `swarmd reputation show PEER`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *_ARCHIVE]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ARCHIVE:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(import_module("daemon.cli.reputation_archive"), _ARCHIVE[cmd_name])
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        return super().resolve_command(ctx, ["show", *args] if PEER_ID.fullmatch(args[0]) else args)


@click.group(cls=_PeerGroup, invoke_without_command=True)
@common_options
@json_option
@click.pass_context
def reputation(ctx: click.Context, /, as_json: bool, **given: Path | None) -> None:
    """Show every known peer's scores by skill; `show` and `why` explain one peer's.

    MEAN is the share of trials that this peer expects to go right, within 90%. EARNED is what the peer has earned, 0 to 1. TRIALS
    is the evidence in trials of our own; OWN is how much of it we saw ourselves. The skill "service" is doing what was accepted.
    """
    if ctx.invoked_subcommand is not None:
        ctx.obj = merged(given)
        return
    reply = client_of(given).reputation()
    if as_json:
        print_json(reply)
        return
    _print_set(reply)
    if reply.get("scores"):
        print_table(("PEER", *_COLUMNS), ((row.get("peer"), *_row(row)) for row in reply["scores"]))


@reputation.command()
@common_options
@click.argument("peer")
@_SKILL
@json_option
def show(peer: str, skill: str | None, as_json: bool, **given: Path | None) -> None:
    """Show PEER's scores by skill and its standing as a witness."""
    reply = _only(client_of(given).reputation(peer), skill)
    if as_json:
        print_json(reply)
        return
    _print_peer(reply)


@reputation.command()
@common_options
@click.argument("peer")
@_SKILL
@json_option
def why(peer: str, skill: str | None, as_json: bool, **given: Path | None) -> None:
    """Show the evidence about PEER, line by line: who said what, when, how far we believe it, and what it adds.

    BELIEVED is what a fresh trial of that issuer weighs in trials of our own; ADDS is what the claim adds, in such trials.
    """
    reply = _only(client_of(given).reputation(peer), skill)
    if as_json:
        print_json(reply)
        return
    show_evidence(reply)


def show_evidence(reply: dict[str, Any]) -> None:
    """Print a peer's scores for people, and every claim behind them.

    "compacted": a later claim of the same issuer vouches for it; its own signature is kept here no longer.
    """
    _print_peer(reply)
    lines = reply.get("evidence") or []
    if lines:
        print_table(("AGE", "ISSUER", "SAYS", "COUNTS FOR", "BELIEVED", "ADDS", "BECAUSE"), map(_line, lines))


@reputation.command()
@common_options
@click.argument("peer", required=False)
@json_option
def claims(peer: str | None, as_json: bool, **given: Path | None) -> None:
    """List the newest claims that this peer holds, or those about PEER."""
    reply = client_of(given).reputation(peer)
    if as_json:
        print_json(reply)
        return
    _print_set(reply)
    rows = reply.get("claims_list") or []
    if rows:
        columns = ("issuer", "seq", "kind", "subject", "skill", "value", "evidence")
        print_table([name.upper() for name in columns], ([claim.get(name) for name in columns] for claim in rows))


_COLUMNS = ("SKILL", "MEAN", "90% BETWEEN", "EARNED", "TRIALS", "OWN", "WITNESSES", "LEFT OUT")


def _row(row: dict[str, Any]) -> tuple[object, ...]:
    between = f"{milli(row.get('low_milli'))} and {milli(row.get('high_milli'))}"
    evidence = [_trials(row.get(name)) for name in ("trials_milli", "own_milli")]
    earned = milli(row.get("weight_milli"))
    return row.get("skill"), milli(row.get("mean_milli")), between, earned, *evidence, row.get("witnesses"), row.get("left_out")


def _trials(value: object) -> str:
    return f"{value / 1000:.1f}" if isinstance(value, int) else "-"


def _line(line: dict[str, Any]) -> tuple[object, ...]:
    said, at = line.get("time"), str(line.get("kind"))
    age = ago(time.time() - said) if isinstance(said, int | float) else "-"
    right, wrong = line.get("right") or 0, line.get("wrong") or 0
    if right + wrong > 1:
        at = f"{at} x{right + wrong}"
    if line.get("skill") and line.get("skill") != line.get("counts_for"):
        at = f"{at} ({line.get('skill')})"
    adds = [f"{sign}{_trials(line.get(name))} {name.split('_')[1]}" for sign, name in _ADDS if line.get(name)]
    issuer = "this peer" if line.get("own") else line.get("issuer")
    note = f"{line.get('note')} (compacted)" if line.get("compacted") else line.get("note")
    return age, issuer, at, line.get("counts_for"), milli(line.get("weight_milli")), ", ".join(adds), note


_ADDS = (("+", "adds_right_milli"), ("+", "adds_wrong_milli"))


def _only(reply: dict[str, Any], skill: str | None) -> dict[str, Any]:
    """The reply with one skill's scores and evidence alone."""
    if skill is None:
        return reply
    scores = [row for row in reply.get("scores") or [] if row.get("skill") == skill]
    if not scores:
        known = ", ".join(str(row.get("skill")) for row in reply.get("scores") or []) or "nothing"
        raise CommandFailed(f"nothing is known of this peer's {cell(skill)}; what is known: {cell(known)}", FAILED)
    lines = [line for line in reply.get("evidence") or [] if line.get("counts_for") == skill]
    return reply | {"scores": scores, "evidence": lines}


def _print_set(reply: dict[str, Any]) -> None:
    counts = [(name, reply.get(name)) for name in ("claims", "issuers")]
    frozen = [str(fork.get("issuer")) for fork in reply.get("forks") or []]
    print_facts([*counts, ("forks", len(frozen)), ("set", reply.get("replica_hash"))])
    for issuer in frozen:
        click.echo(f"frozen: {cell(issuer)} signed two histories; nothing it says from there on counts")


def _print_peer(reply: dict[str, Any]) -> None:
    witness = reply.get("witness") or {}
    told = f"believed {milli(witness.get('weight_milli'))} of 1 on {witness.get('shared_trials') or 0} shared trials"
    print_facts([("peer", reply.get("peer")), ("as a witness", told)])
    if reply.get("frozen_from") is not None:
        click.echo("FROZEN: this peer signed two histories; nothing it says from there on counts, and it weighs nothing")
    rows = reply.get("scores") or []
    if rows:
        print_table(_COLUMNS, map(_row, rows))
    else:
        click.echo("nothing is known of what it can do")
