"""`swarmd lookup`: what the DHT says of a peer, a model or a key, by which paths, and how sure that is."""

from pathlib import Path
from typing import Any

import click

from daemon.cli.common import DEGRADED, FAILED, client_of, common_options, json_option
from daemon.cli.show import number, print_facts, print_json, print_table

_EXIT = {"found": 0, "absent": DEGRADED}


@click.command()
@common_options
@click.argument("what")
@json_option
def lookup(what: str, as_json: bool, **given: Path | None) -> int:
    """Look in the DHT for WHAT: a peer id, a model's name, a config digest, or a key.

    Exits with 0 where it was found, 4 where the peers that must have it say that it is not there, 1 where that is not known.
    """
    report = client_of(given).lookup(what)
    if as_json:
        print_json(report)
    else:
        columns = ("PATH", "HOP", "PEER", "BITS", "OUTCOME", "HAD IT", "TIME")
        print_table(columns, [_row(step) for step in report.get("steps") or []])
        print_facts(_facts(report))
    return _EXIT.get(str(report.get("verdict")), FAILED)


def _row(step: dict[str, Any]) -> tuple[object, ...]:
    had = "yes" if step.get("useful") else ""
    return (
        step.get("path"),
        step.get("hop"),
        step.get("peer_id"),
        step.get("bits"),
        step.get("outcome"),
        had,
        number(step.get("ms"), " ms", 1),
    )


def _facts(report: dict[str, Any]) -> list[tuple[str, object]]:
    verdict, reason = str(report.get("verdict")), report.get("reason")
    said = {
        "found": "found",
        "absent": "not there: the peers that must have it answered, and do not",
        "failed": "not known",
    }.get(verdict, verdict)
    facts: list[tuple[str, object]] = [("key", report.get("key")), ("verdict", f"{said}; {reason}" if reason else said)]
    if "providers" in report:
        facts += [("provided by", peer) for peer in report["providers"][:20]] or [("provided by", "nobody")]
    if report.get("invalid"):
        facts.append(("refused", f"{report['invalid']} records that are not valid"))
    facts.append(
        ("asked", f"{report.get('asked')} times on {report.get('paths')} paths, {report.get('failed')} without an answer")
    )
    facts.append(
        ("paths", f"{report.get('agreeing')} of {report.get('paths')} end at the same peers, {report.get('hops')} hops away")
    )
    size = f"about {report['mesh_estimate']} peers" if report.get("mesh_estimate") else "too few peers known to estimate it"
    facts.append(("mesh", f"{size}, {report.get('table')} in our table"))
    return [*facts, ("took", number(report.get("ms"), " ms", 1))]
