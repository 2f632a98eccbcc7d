"""`swarmd netcheck` and `swarmd ping`: how this box can be reached, and how long the way to a peer is."""

import json
import time
from pathlib import Path
from typing import Any

import click

from daemon.cli.common import DEGRADED, FAILED, CommandFailed, client_of, common_options, json_option
from daemon.cli.show import ago, cell, number, print_facts, print_json
from swarmd import ApiError, Client

DIRECT = ("direct", "punched", "mapped")


@click.command()
@common_options
@click.option("--every", type=click.FloatRange(0.5, 3600), metavar="SECONDS", help="Look again and again, until Ctrl-C.")
@json_option
def netcheck(every: float | None, as_json: bool, **given: Path | None) -> int:
    """Show how this box can be reached and what stands in the way; exits with 4 where something does."""
    client = client_of(given)
    while True:
        report = client.netcheck()
        if as_json and every:
            click.echo(json.dumps(report))
        elif as_json:
            print_json(report)
        else:
            print_facts(_facts(report))
        if not every:
            return DEGRADED if report.get("failing_leg") else 0
        time.sleep(every)
        if not as_json:
            click.echo()


def _facts(report: dict[str, Any]) -> list[tuple[str, object]]:
    relays = report.get("relays") or []
    relaying = report.get("relaying") or {}
    held = [relay for relay in relays if relay.get("held")]
    facts: list[tuple[str, object]] = [
        ("UDP", _said(report.get("udp"), "works", "does not pass")),
        ("IPv4", _said(report.get("ipv4"), "works", "no address")),
        ("IPv6", _said(report.get("ipv6"), "works", "no address")),
        ("seen as", ", ".join(report.get("seen_as") or []) or "unknown"),
        ("TCP mapping", _word(report.get("mapping_tcp"))),
        ("UDP mapping", _word(report.get("mapping_udp"))),
        ("lets in", _word(report.get("filtering"))),
        ("port mapping", _port_mapping(report.get("port_mapping") or {})),
        ("can be reached", _reached(report)),
    ]
    facts += [("relay", _relay(relay)) for relay in held]
    if not held:
        facts.append(("relay", "none holds us"))
    if relaying.get("serving"):
        share = number((relaying.get("bytes_per_s") or 0) / 1024, " KiB/s") if relaying.get("bytes_per_s") else "any speed"
        places = f"{relaying.get('reservations')} of {relaying.get('max_reservations')} places"
        facts.append(("we relay", f"{places}, {relaying.get('circuits')} of {relaying.get('max_circuits')} circuits, {share}"))
    facts.append(("in the way", report.get("failing_leg") or "nothing known"))
    return [*facts, ("advice", report.get("advice"))]


def _reached(report: dict[str, Any]) -> str:
    verdict = report.get("reachable")
    if verdict is None:
        return "unknown: nobody was asked yet"
    age, asked = ago(report.get("reachable_age_s")), report.get("reachable_asked")
    if verdict:
        return f"yes, at port {report.get('reachable_port')}, {_by_whom(report)}; {age} ago"
    return f"no: none of {asked} that tried came in; {age} ago"


def _by_whom(report: dict[str, Any]) -> str:
    if report.get("reachable_from_strangers"):
        return "also by peers that we never talked to"
    return "by peers that we talk to (from strangers: unknown)"


_MAPPING_STATES = {
    "off": "off (nat.port_mapping)",
    "idle": "not needed, as far as is known",
    "asking": "asking the gateway",
    "double_nat": "refused: another NAT follows the gateway, so that the mapping would lead nowhere",
}


def _port_mapping(known: dict[str, Any]) -> str:
    state = known.get("state")
    if state == "none":
        upnp = "" if known.get("upnp_installed") else "; UPnP was not tried: miniupnpc is not installed"
        return f"the gateway grants none ({cell(known.get('reason'))}){upnp}"
    if state not in ("active", "unproved"):
        return _MAPPING_STATES.get(str(state), "unknown")
    ports = [f"{name} {known[key]}" for name, key in (("TCP", "tcp_port"), ("UDP", "udp_port")) if known.get(key)]
    held = f"{', '.join(ports)} by {_method(known.get('method'))}, {_for(known.get('ends_s'))}"
    proved = ", ".join(str(name).upper() for name in known.get("proved") or [])
    return f"{held}; peers came in by {proved}" if proved else f"{held}; no peer came in by it yet, so it is told to nobody"


def _method(name: object) -> str:
    return {"pcp": "PCP", "nat_pmp": "NAT-PMP", "upnp": "UPnP"}.get(str(name), "unknown")


def _relay(relay: dict[str, Any]) -> str:
    return f"{relay.get('address')} {number(relay.get('rtt_ms'), ' ms', 1)}, {_for(relay.get('expires_s'))}"


def _said(known: object, yes: str, no: str) -> str:
    return "unknown" if known is None else yes if known else no


def _word(known: object) -> str:
    return "unknown" if known is None else str(known).replace("_", " ")


def _for(seconds: object) -> str:
    return f"for {ago(seconds)} more" if isinstance(seconds, int | float) else "no end known"


@click.command()
@common_options
@click.argument("peer")
@click.option("--count", "-c", type=click.IntRange(1, 100_000), default=4, show_default=True, help="Round trips to measure.")
@click.option("--interval", "-i", type=click.FloatRange(0.01, 60), default=0.5, show_default=True, help="Seconds between them.")
@click.option("--until-direct", is_flag=True, help="Stop as soon as the path is direct; exits with 4 where it never is.")
@json_option
def ping(peer: str, count: int, interval: float, until_direct: bool, as_json: bool, **given: Path | None) -> int:
    """Measure round trips to PEER (an id, or an end of one) and show by which path they go."""
    client = client_of(given)
    target = _resolve(client, peer)
    replies: list[dict[str, Any]] = []
    for number_of_try in range(1, count + 1):
        reply = _one(client, target)
        replies.append(reply)
        click.echo(json.dumps(reply) if as_json else _line(number_of_try, reply))
        if until_direct and (reply.get("path") or {}).get("kind") in DIRECT:
            return 0
        if number_of_try < count:
            time.sleep(interval)
    if not any("rtt_ms" in reply for reply in replies):
        return FAILED
    return DEGRADED if until_direct else 0


def _one(client: Client, peer: str) -> dict[str, Any]:
    try:
        return client.ping(peer)
    except ApiError as error:
        return {"peer_id": peer, "error": str(error)}


def _line(number_of_try: int, reply: dict[str, Any]) -> str:
    if "error" in reply:
        return f"{number_of_try:>3}  {cell(reply['error'])}"
    path = reply.get("path") or {}
    upgraded = path.get("relayed_ms")
    after = f", direct after {upgraded:.0f} ms" if isinstance(upgraded, int | float) else ""
    how = f"{path.get('kind')} {path.get('transport')} for {ago(path.get('age_s'))}{after}"
    return f"{number_of_try:>3}  {number(reply.get('rtt_ms'), ' ms', 1)}  {how}  {cell(path.get('address'))}"


def _resolve(client: Client, named: str) -> str:
    """The peer whose id is, begins with or ends with `named`; an unknown whole id is tried as it is."""
    known = [str(row["peer_id"]) for row in client.peers()]
    found = [peer for peer in known if named == peer]
    found = found or [peer for peer in known if peer.endswith(named) or peer.startswith(named)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CommandFailed(f"{len(found)} peers are meant by {cell(named)}; give more of the id")
    if len(named) >= 46:
        return named
    raise CommandFailed(f"no peer is known by {cell(named)}; `swarmd peers` lists them")
