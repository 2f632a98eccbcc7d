"""What `swarmd netcheck` shows, gathered from the parts that know it. Measures and decides nothing; unknown is None."""

from typing import Any

import trio

from daemon.transport.relay import RelayService
from nat.advice import Standing, advice, failing_leg
from nat.observed import Filtering, Mapping, filtering


def net_report(relay: RelayService) -> dict[str, Any]:
    """JSON for people and programs; times in milliseconds and seconds as the names say."""
    swarm = relay.keeping.swarm
    verdict = relay.reachability.verdict
    mapping = relay.observations.mapping()
    interfaces = relay.observations.interfaces()
    known = verdict.reachable is not None
    lets_in = filtering(verdict.reachable, relay.stranger_came)
    strangers = True if relay.stranger_came else False if verdict.reachable is False else None
    standing = Standing(
        udp=relay.udp.mapping.works,
        reachable=verdict.reachable,
        strangers=strangers,
        mapping=mapping,
        relays=len(relay.keeping.held),
        connected=len(swarm.connections),
    )
    return {
        "udp": relay.udp.mapping.works,
        "ipv4": _version(relay, interfaces, 4),
        "ipv6": _version(relay, interfaces, 6),
        "interfaces": [f"{host}:{port}" if ":" not in host else f"[{host}]:{port}" for host, port in interfaces],
        "seen_as": list(dict.fromkeys(one.address for one in reversed(relay.observations.tcp.observations))),
        "believed": list(relay.observations.believed()),
        "observers": len(relay.observations.tcp.observations),
        "mapping_tcp": None if mapping is Mapping.UNKNOWN else str(mapping),
        "mapping_udp": None if (udp := relay.udp.mapping.kind()) is Mapping.UNKNOWN else str(udp),
        "filtering": None if lets_in is Filtering.UNKNOWN else str(lets_in),
        "port_mapping": relay.mapper.view() if relay.options.port_mapping else {"state": "off"},
        "reachable": verdict.reachable,
        "reachable_from_strangers": strangers,
        "reachable_port": verdict.port or None,
        "reachable_age_s": round(trio.current_time() - verdict.time, 1) if known else None,
        "reachable_asked": verdict.asked,
        "relays": relay.keeping.view(),
        "relaying": {
            "serving": relay.options.serve and relay.hop.willing(),
            "reservations": relay.hop.reservations,
            "circuits": relay.hop.circuits,
            "max_reservations": relay.options.max_reservations,
            "max_circuits": relay.options.max_circuits,
            "bytes_per_s": relay.options.rate or None,
        },
        "punches": {"succeeded": relay.puncher.succeeded, "failed": relay.puncher.failed, **relay.udp.counters},
        "network_changes": relay.network.changes,
        "failing_leg": failing_leg(standing),
        "advice": advice(standing),
    }


def _version(relay: RelayService, interfaces: list[tuple[str, int]], version: int) -> bool | None:
    """Whether a peer was reached over this IP version; False where the box has no address of it."""
    marker = f"/ip{version}/"
    for conn in relay.keeping.swarm.get_connections():
        addresses = map(str, conn.get_transport_addresses())
        if any(address.startswith(marker) and "/p2p-circuit" not in address for address in addresses):
            return True
    has = any((":" in host) == (version == 6) for host, _ in interfaces)
    return None if has else False
