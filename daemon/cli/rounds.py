"""`swarmd rounds`, `why` and `verify`: what committees did, why a round or a routed question went so, and whether it replays."""

import json
import time
from pathlib import Path
from typing import Any

import click

from daemon.cli.common import FAILED, client_of, common_options, json_option
from daemon.cli.reputation import PEER_ID, show_evidence
from daemon.cli.show import ago, cell, milli, number, print_facts, print_json, print_table

_WEIGHTS = ("draw_weight_milli", "vote_weight_milli", "judge_weight_milli", "favourite_weight_milli")

UNRANKED = 1 << 30
"""Sorts a class without a rank behind all others."""


@click.command()
@common_options
@json_option
def rounds(as_json: bool, **given: Path | None) -> None:
    """List the rounds that this peer took part in."""
    rows = client_of(given).rounds()
    if as_json:
        print_json({"rounds": rows})
        return
    table = []
    for row in rows:
        created = row.get("created")
        age = ago(time.time() - created) if isinstance(created, int | float) else "-"
        outcome = row.get("winner") if row.get("state") == "verdict" else row.get("reason")
        facts = [row.get(name) for name in ("strategy", "state", "members")]
        table.append((row.get("round_id"), age, *facts, _short(row.get("question")), _short(outcome)))
    print_table(("ROUND", "AGE", "STRATEGY", "STATE", "MEMBERS", "QUESTION", "OUTCOME"), table)


@click.command()
@common_options
@click.argument("named", metavar="ID")
@json_option
def why(named: str, as_json: bool, **given: Path | None) -> None:
    """Explain the round or the routed question ID ("last": the newest): who was chosen, and why; or a peer's reputation."""
    if PEER_ID.fullmatch(named):
        evidence = client_of(given).reputation(named)
        print_json(evidence) if as_json else show_evidence(evidence)
        return
    reply = client_of(given).why(named)
    if as_json:
        print_json(reply)
    elif reply.get("what") == "ask":
        show_ask(reply)
    else:
        show_round(reply, ballots=True)


@click.command()
@common_options
@click.argument("round_id", metavar="ROUND")
@json_option
def verify(round_id: str, as_json: bool, **given: Path | None) -> int:
    """Replay ROUND from its transcript; exits with 1 where the verdict differs in a single bit."""
    reply = client_of(given, timeout=120.0).verify(round_id)
    if as_json:
        print_json(reply)
    else:
        result = "the same to the bit" if reply.get("ok") else f"DIFFERENT: {reply.get('reason') or 'no reason given'}"
        hashes = [("verdict", reply.get("verdict_hash")), ("replayed", reply.get("replayed_hash"))]
        print_facts([("round", reply.get("round_id")), *hashes, ("result", result)])
    return 0 if reply.get("ok") else FAILED


def show_ask(reply: dict[str, Any]) -> None:
    """Print a routed question for people: who could answer and how soon, who was asked, and what came of it."""
    took = number(reply.get("elapsed_s"), " s", 3)
    model = reply.get("model") or "any model"
    click.echo(f"ask {cell(reply.get('ask_id'))}  {cell(model)}  {cell(reply.get('outcome'))}  {took}")
    if reply.get("error"):
        click.echo(f"reason {cell(reply.get('error'))}")
    rows = []
    for one in reply.get("candidates") or []:
        parts = one.get("parts") or {}
        seconds = (one.get("predicted_s"), *(parts.get(name) for name in ("reach_s", "queue_s", "share_s", "engine_s")))
        load = f"{cell(one.get('busy'))}/{cell(one.get('slots'))}"
        shown = [number(value, "", 3) for value in seconds]
        rows.append((one.get("peer_id"), one.get("model"), one.get("path"), load, *shown, parts.get("engine_from")))
    if rows:
        head = ("CANDIDATE", "MODEL", "PATH", "BUSY", "FIRST TOKEN s", "= REACH", "+ QUEUE", "+ SHARE", "+ ENGINE", "ENGINE FROM")
        print_table(head, rows)
    for one in reply.get("ruled_out") or []:
        click.echo(f"not {cell(one.get('peer_id'))}: {cell(one.get('reason'))}")
    tried = []
    for one in reply.get("attempts") or []:
        times = [number(one.get(name), " s", 3) for name in ("at_s", "predicted_s", "first_token_s")]
        tried.append((one.get("peer_id"), one.get("reason"), *times, one.get("outcome"), _short(one.get("message"))))
    if tried:
        print_table(("ASKED", "AS", "AT", "PREDICTED", "FIRST TOKEN", "OUTCOME", "MESSAGE"), tried)
    for reason in reply.get("why") or []:
        click.echo(f"because {cell(reason)}")


def show_round(reply: dict[str, Any], err: bool = False, ballots: bool = False) -> None:
    """Print a round for people: its classes of answers in their ranking, its members, and the reasons; with `ballots` every
    judgement too."""
    click.echo(f"round {cell(reply.get('round_id'))}  {cell(reply.get('strategy'))}  {cell(reply.get('state'))}", err=err)
    if reply.get("reason"):
        click.echo(f"reason {cell(reply.get('reason'))}", err=err)
    ranking = []
    for row in sorted(reply.get("classes") or [], key=lambda row: row.get("rank") or UNRANKED):
        weighed = (row.get("votes"), row.get("vote_weight"), milli(row.get("pair_wins_milli")), row.get("score"))
        ranking.append((row.get("rank"), _short(row.get("answer"), 60), *weighed))
    if ranking:
        print_table(("RANK", "ANSWER", "VOTES", "VOTE WEIGHT", "PAIR WINS", "SCORE"), ranking, err)
    members = []
    # Where judges alone rank the answers, what is expected of their authors decides too.
    expected = ("strength_milli",) if reply.get("arm") == "rank" else ()
    for member in reply.get("members") or []:
        spoke = ("yes" if member.get(name) else "no" for name in ("sealed", "revealed", "judged"))
        weights = (milli(member.get(name)) for name in (*_WEIGHTS, *expected))
        members.append((member.get("peer_id"), member.get("model"), *spoke, member.get("class"), *weights))
    if members:
        print_table(
            (
                *("MEMBER", "MODEL", "SEALED", "REVEALED", "JUDGED", "CLASS", "TICKETS", "VOTE", "JUDGEMENT", "OF ITS FIRST"),
                *("EXPECTED" for _ in expected),
            ),
            members,
            err,
        )
    if ballots and reply.get("ballots"):
        shown = [
            (row.get("peer_id"), row.get("first"), row.get("second"), milli(row.get("log_odds_milli")))
            for row in reply["ballots"]
        ]
        print_table(("JUDGE", "CLASS SHOWN FIRST", "SECOND", "LOG-ODDS FOR FIRST"), shown, err)
        pairs = [
            (f"{row.get('first')} over {row.get('second')}", row.get("judges"), milli(row.get("wins_milli")))
            for row in reply.get("pairs") or []
        ]
        print_table(("PAIR", "JUDGES", "PREFERRED"), pairs, err)
    if ballots and reply.get("messages"):
        times = ", ".join(f"{cell(phase)} {cell(took)}" for phase, took in (reply.get("timings_ms") or {}).items())
        took = f"; ms by phase: {times}" if times else ""
        click.echo(f"cost {cell(reply.get('messages'))} messages, {cell(reply.get('bytes'))} bytes{took}", err=err)
    for row in reply.get("rationales") or []:
        about = f"{cell(row.get('preferred'))} over {cell(row.get('over'))}"
        quoted = json.dumps(cell(row.get("text")), ensure_ascii=False)
        click.echo(f"{cell(row.get('peer_id'))} on {about}: {quoted}", err=err)
    for reason in reply.get("why") or []:
        click.echo(f"because {cell(reason)}", err=err)
    if reply.get("verdict_hash"):
        certainty = f"confidence {milli(reply.get('confidence_milli'))}, attested by {len(reply.get('attested_by') or [])}"
        click.echo(f"verdict {cell(reply.get('verdict_hash'))}, {certainty}", err=err)


def _short(value: object, limit: int = 40) -> str:
    text = cell(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
