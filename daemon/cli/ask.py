"""`swarmd ask`: puts a question to the mesh. The answer goes to standard output, progress and the ranking to standard error."""

import sys
from typing import Any

import click

from daemon.cli.common import CommandFailed, client_of, common_options, json_option
from daemon.cli.rounds import show_round
from daemon.cli.show import cell, milli, number, print_json, prose
from protocol.wire.limits import MAX_TOKENS

MAX_INPUT_BYTES = 8 << 20
"""Far beyond any prompt the daemon takes, so that its own limit gives the reason, and a pipe without end is still cut."""

STRATEGIES = ("route", "majority", "rank", "auto")


@click.command()
@common_options
@click.argument("question")
@click.option(
    "--strategy", type=click.Choice(STRATEGIES), default="route", show_default=True, help="One peer, a committee, or the cheaper."
)
@click.option("--committee", type=click.IntRange(2, 50), help="Members of the committee.")
@click.option("--peer", metavar="ID", help="Ask this peer.")
@click.option("--model", metavar="NAME", help="Ask a peer that serves this model.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1, MAX_TOKENS),
    help="Longest answer, in tokens: 4096 by default, 256 in a round or by auto.",
)
@click.option("--temperature", type=click.FloatRange(0, 2), help="0 gives the likeliest answer.")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    help="With --temperature, the same answer of one peer again; drawn anew where none is named.",
)
@click.option("--watch", is_flag=True, help="Show every member as the round goes on.")
@click.option("--verify", is_flag=True, help="Have another engine say whether the offered model gave this answer.")
@click.option("--rationale", is_flag=True, help="Let those of a round's judges that can write say what decided them.")
@click.option("--timeout", type=click.FloatRange(0, 3600, min_open=True), help="Seconds for all of it; an hour by default.")
@json_option
def ask(question: str, strategy: str, timeout: float | None, as_json: bool, **given: Any) -> None:
    """Ask QUESTION ("-" reads it from standard input)."""
    if given["committee"] and strategy == "route":
        raise click.UsageError("--committee needs --strategy majority or rank")
    if given["peer"] and strategy != "route":
        raise click.UsageError("--peer asks one peer, so it goes with --strategy route")
    if given["model"] and strategy in ("majority", "rank"):
        raise click.UsageError("--model asks one peer that serves it, so it goes with --strategy route or auto")
    if given["verify"] and strategy != "route":
        raise click.UsageError("--verify checks one peer's answer, so it goes with --strategy route")
    if given["rationale"] and strategy in ("route", "majority"):
        raise click.UsageError("--rationale is what judges say, so it goes with --strategy rank or auto")
    prompt = _standard_input() if question == "-" else question
    if not prompt.strip():
        raise click.UsageError("the question is empty")
    options = {name: given[name] for name in ("committee", "peer", "model", "max_tokens", "temperature", "seed")}
    options |= {name: given[name] or None for name in ("verify", "rationale")}
    shown = _Shown(as_json, given["watch"])
    for event in client_of(given).ask(prompt, strategy=strategy, timeout_s=timeout, **options):
        shown.take(event.name, event.fields)


class _Shown:
    """What the person has seen so far."""

    def __init__(self, as_json: bool, watch: bool = False) -> None:
        self._as_json = as_json
        self._watch = watch
        self._states: dict[str, str] = {}
        self._live = sys.stderr.isatty()
        self._printed = ""
        self._progress = ""

    def take(self, name: str, fields: dict[str, Any]) -> None:
        if name == "token" and not self._as_json:
            text = prose(str(fields.get("text", "")))
            self._printed += text
            click.echo(text, nl=False)
            sys.stdout.flush()
        elif name == "estimate":
            self._clear_progress()
            click.echo(_estimate(fields), err=True)
        elif name == "progress":
            self._show_members(fields) if self._watch else self._show_progress(fields)
        elif name == "result":
            self._clear_progress()
            self._finish(fields)

    def _finish(self, fields: dict[str, Any]) -> None:
        if self._as_json:
            print_json(fields)
            return
        if not self._printed:
            self._printed = prose(str(fields.get("answer", "")))
            click.echo(self._printed, nl=False)
        if not self._printed.endswith("\n"):
            click.echo()
        sys.stdout.flush()
        if fields.get("round"):
            show_round(fields["round"], err=True)
        else:
            who = f"{cell(fields.get('peer_id'))} ({cell(fields.get('model'))})"
            click.echo(f"answered by {who} in {number(fields.get('elapsed_s'), ' s', 1)}", err=True)
        if fields.get("verification"):
            click.echo(_verification(fields["verification"]), err=True)

    def _show_progress(self, fields: dict[str, Any]) -> None:
        of = fields.get("of")
        counts = ", ".join(f"{name} {fields.get(name, 0)}/{of}" for name in ("sealed", "revealed", "judged"))
        line = f"{cell(fields.get('phase'))}: {counts}"
        if line == self._progress:
            return
        self._progress = line
        if self._live:
            click.echo(f"\r\x1b[K{line}", nl=False, err=True)
        else:
            click.echo(line, err=True)

    def _show_members(self, fields: dict[str, Any]) -> None:
        """A line for each member whose state changed: a log of the round that also reads well through a pipe."""
        for member in fields.get("members") or []:
            peer, state = cell(member.get("peer_id")), cell(member.get("state"))
            if self._states.get(peer) != state:
                self._states[peer] = state
                click.echo(f"{cell(fields.get('phase')):<8} {peer}  {cell(member.get('model'))}  {state}", err=True)

    def _clear_progress(self) -> None:
        if self._progress and self._live:
            click.echo("\r\x1b[K", nl=False, err=True)


def _estimate(fields: dict[str, Any]) -> str:
    ways = {name: fields.get(name) or {} for name in ("round", "route")}
    plan = f"strategy {cell(fields.get('strategy'))}: {cell(fields.get('why'))}"
    if not fields.get("known"):
        return plan
    said = [
        f"{label} costs {number(way.get('answers'), '', 1)} answers and is right in {milli(way.get('right_milli'))} of cases"
        for label, way in (("a round", ways["round"]), ("one peer", ways["route"]))
    ]
    return f"{plan}\nexpected for {cell(fields.get('topic'))}: {'; '.join(said)}"


def _verification(fields: dict[str, Any]) -> str:
    by = "this peer's own engine" if fields.get("verifier") == "local" else f"peer {cell(fields.get('verifier'))}"
    verdict, reason = cell(fields.get("verdict")), cell(fields.get("reason"))
    if not fields.get("tokens"):
        return f"output {verdict}: {reason}"
    measured = f"{number(fields.get('deviation_millinats'), '', 1)} millinats a token over {fields.get('tokens')} tokens"
    return f"output {verdict} by {by}: deviates by {measured}" + (f"; {reason}" if fields.get("reason") else "")


def _standard_input() -> str:
    raw = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(raw) > MAX_INPUT_BYTES:
        raise CommandFailed(f"standard input has more than {MAX_INPUT_BYTES >> 20} MiB")
    try:
        return raw.decode("utf-8").removesuffix("\n")  # the newline that echo and editors append is no part of the question
    except UnicodeDecodeError:
        raise CommandFailed("standard input is not UTF-8") from None
