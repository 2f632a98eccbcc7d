"""`python -m tests.natlab.netcheck`: what `swarmd netcheck` prints behind each type of NAT, and whether it is the truth."""

import argparse
import json
import sys
from functools import partial
from typing import Any

from tests.natlab.commands import add_skip, begin
from tests.natlab.house import House, until
from tests.natlab.namespaces import LabError
from tests.natlab.routers import EXTRA_TYPES, TYPES
from tests.natlab.topology import RELAYS, Lab

SETTLE_SECONDS = 20.0

NOBODY = {"reachable": False, "filtering": "address_and_port_dependent"}


def _mapped(tcp: str, udp: str | None, /, **more: Any) -> dict[str, Any]:
    return {"mapping_tcp": tcp, "mapping_udp": udp, **more}


TRUTH: dict[str, dict[str, Any]] = {
    "open": _mapped("none", "none", reachable=True),
    "full": _mapped("port_preserving", "port_preserving", reachable=True),
    "addr": _mapped("port_preserving", "port_preserving", reachable=True, reachable_from_strangers=None),
    "port": _mapped("port_preserving", "port_preserving", **NOBODY),
    "portnp": _mapped("endpoint_independent", "endpoint_independent", **NOBODY),
    "sym": _mapped("symmetric", "symmetric", **NOBODY),
    "cgn": _mapped("endpoint_independent", "endpoint_independent", **NOBODY),
    "udpblk": _mapped("port_preserving", None, udp=False, **NOBODY),
    "symseq": _mapped("symmetric", "predictable", **NOBODY),
}
"""Of each type what must be said; besides, UDP and IPv4 work and there is no IPv6. Only relays, which the box has dialled, try to
come in: so of strangers nothing is known, unless not even those come in."""


def look(lab: Lab, kind: str) -> tuple[dict[str, Any], str]:
    """The report behind a NAT of `kind` once it is the truth, or what it is after 20 s; and as people read it."""
    with House(lab) as house:
        house.site("A", kind, 1)
        house.relay(*RELAYS)
        peer = house.start("A", "--no-model", *house.joins()).wait_api()
        until(lambda: not wrong_in(kind, peer.client.netcheck()), SETTLE_SECONDS)
        return peer.client.netcheck(), peer.cli("netcheck").stdout


def wrong_in(kind: str, report: dict[str, Any]) -> list[str]:
    """What is said and not so, or not said."""
    truth = {"udp": True, "ipv4": True, "ipv6": False, **TRUTH[kind]}
    wrong = [f"{name} is {report[name]}, the truth is {said}" for name, said in truth.items() if report[name] != said]
    held = [relay for relay in report["relays"] if relay["held"]]
    return [*wrong, *([] if len(held) == len(RELAYS) else [f"{len(held)} relays hold it, of {len(RELAYS)}"])]


def main() -> int:
    parser = argparse.ArgumentParser(prog="natlab.netcheck", description=__doc__)
    parser.add_argument("--types", default=",".join((*TYPES, *EXTRA_TYPES)), help="only these, such as port,sym")
    parser.add_argument("--json", action="store_true", help="the whole report of each type, one JSON object a line")
    parser.add_argument("--check", action="store_true", help="exit with 1 where anything is said that is not so")
    add_skip(parser)
    options = parser.parse_args()
    kinds = options.types.split(",")
    if unknown := set(kinds) - set(TRUTH):
        parser.error(f"unknown types: {', '.join(sorted(unknown))}; there are {', '.join(TRUTH)}")
    begin(options)
    faults: list[str] = []
    with Lab() as lab:
        for kind in kinds:
            try:
                report, shown = lab.undisturbed(kind, partial(look, lab, kind))
            except LabError as error:
                faults.append(f"{kind}: {error}")
                continue
            wrong = wrong_in(kind, report)
            faults += [f"{kind}: {fault}" for fault in wrong]
            if options.json:
                print(json.dumps({"type": kind, "wrong": wrong, **report}), flush=True)
            else:
                print(f"# {kind}: {'; '.join(wrong) or 'all of it is so'}\n{shown}", flush=True)
    print("\n".join(faults), file=sys.stderr, end="\n" if faults else "")
    return 1 if faults and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
