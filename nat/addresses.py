"""What an address is, in which order a peer's are dialled, and at which may be knocked. Decides on text; opens no socket."""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

MAX_ADDRESSES = 32
"""Addresses kept of one peer; a stranger that lists more only makes us dial more."""

_HOST_KINDS = ("ip4", "ip6", "dns", "dns4", "dns6")
_UNDIALABLE_PORT = 0
_CARRIER_GRADE = ipaddress.ip_network("100.64.0.0/10")  # RFC 6598: shared by a carrier's customers, so not public


class Reach(IntEnum):
    """From where an address can be dialled at all."""

    NOWHERE = 0
    LOOPBACK = 1
    PRIVATE = 2
    PUBLIC = 3
    RELAYED = 4


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The parts of a multiaddr that matter here. `host` is an IP literal or a DNS name; `port` is 0 where there is none."""

    host: str
    transport: str
    port: int
    peer: str | None
    relayed: bool


def parse(address: str) -> Endpoint | None:
    """The endpoint of a multiaddr's text, or None where it is not one of /ip4, /ip6 or /dns* over tcp or udp.

    For `/.../p2p/RELAY/p2p-circuit/p2p/PEER` the peer is the last one and the host is the relay's.
    """
    parts = address.split("/")
    if len(parts) < 5 or parts[0] != "" or parts[1] not in _HOST_KINDS or parts[3] not in ("tcp", "udp"):
        return None
    host, port = parts[2], parts[4]
    if parts[1] in ("ip4", "ip6") and _ip(host) is None:
        return None
    if not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        return None
    rest = parts[5:]
    named = [rest[index + 1] for index, word in enumerate(rest[:-1]) if word == "p2p"]
    transport = "quic" if "quic-v1" in rest else "ws" if "ws" in rest or "wss" in rest else parts[3]
    relayed = "p2p-circuit" in rest
    peer = named[-1] if named and not (relayed and rest[-1] == "p2p-circuit") else None
    return Endpoint(host, transport, int(port), peer, relayed)


def multiaddr_of(host: str, port: int, transport: str = "tcp") -> str:
    """The text of the multiaddr of an IP address and a port."""
    return f"/ip{6 if ':' in host else 4}/{host}/{transport}/{port}"


def is_public(host: str) -> bool:
    """Whether an IP address is one of the Internet's."""
    return reach_of(multiaddr_of(host, 1)) is Reach.PUBLIC


def reach_of(address: str) -> Reach:
    """From where `address` can be dialled. NOWHERE: malformed, unspecified, multicast, link-local or port 0."""
    endpoint = parse(address)
    if endpoint is None or endpoint.port == _UNDIALABLE_PORT:
        return Reach.NOWHERE
    ip = _ip(endpoint.host)
    if ip is not None and (ip.is_unspecified or ip.is_multicast or ip.is_link_local):
        return Reach.NOWHERE
    if endpoint.relayed:
        return Reach.RELAYED
    if ip is None:
        return Reach.PUBLIC
    if ip.is_loopback:
        return Reach.LOOPBACK
    if ip.is_private or (isinstance(ip, ipaddress.IPv4Address) and ip in _CARRIER_GRADE):
        return Reach.PRIVATE
    return Reach.PUBLIC


def with_peer(address: str, peer: str) -> str:
    """`address` ending in /p2p/`peer`, whether or not it named the peer already."""
    suffix = f"/p2p/{peer}"
    return address if address.endswith(suffix) else address.rstrip("/") + suffix


def without_peer(address: str) -> str:
    """`address` without its last /p2p part; a relay's own /p2p part before /p2p-circuit stays."""
    head, separator, tail = address.rpartition("/p2p/")
    return head if separator and "/" not in tail else address


def dial_order(addresses: Iterable[str], ours: Sequence[str]) -> tuple[str, ...]:
    """A peer's addresses in the order to try: same network, public, other private, relays; the undialable left out.

    Loopback is kept, and tried first, only for a peer on our own host: one that shares an outer IP with us, or any peer while
    all of our own addresses are loopback. Otherwise a stranger could aim us at services of this box.
    """
    listed = _distinct(addresses)[:MAX_ADDRESSES]
    own = [endpoint for endpoint in map(parse, ours) if endpoint is not None and not endpoint.relayed]
    own_ips = {ip for ip in (_ip(endpoint.host) for endpoint in own) if ip is not None}
    own_endpoints = {(endpoint.host, endpoint.transport, endpoint.port) for endpoint in own}
    outer_ips = {ip for ip in own_ips if not ip.is_loopback}
    same_host = any(_direct_ip(address) in outer_ips for address in listed) or (bool(own_ips) and not outer_ips)
    ranked: list[tuple[int, str]] = []
    for address in listed:
        endpoint, reach = parse(address), reach_of(address)
        if endpoint is None or reach is Reach.NOWHERE or (reach is Reach.LOOPBACK and not same_host):
            continue
        if not endpoint.relayed and (endpoint.host, endpoint.transport, endpoint.port) in own_endpoints:
            continue  # our own door: a peer behind another NAT may use the same private address
        ranked.append((_dial_rank(endpoint, reach, own_ips), address))
    ranked.sort(key=lambda pair: pair[0])
    return tuple(address for _, address in ranked)


def punch_targets(theirs: Iterable[tuple[str, int]], seen: Iterable[str]) -> tuple[tuple[str, int], ...]:
    """Which of a peer's announced (IP, port) pairs may be knocked at; `seen` are our own IPs as others see them.

    Private ones only where the peer may be in our network: it is seen at an IP of ours, or we do not know how we are seen. Else a
    peer could make us knock at boxes of our household. Loopback never.
    """
    listed = list(dict.fromkeys(theirs))[:MAX_ADDRESSES]
    reaches = {pair: reach_of(multiaddr_of(*pair, "udp")) for pair in listed}
    ours = set(seen)
    neighbour = not ours or any(host in ours for host, _ in listed)
    public = [pair for pair in listed if reaches[pair] is Reach.PUBLIC]
    return (*public, *(pair for pair in listed if reaches[pair] is Reach.PRIVATE and neighbour))


_IP = ipaddress.IPv4Address | ipaddress.IPv6Address


def _dial_rank(endpoint: Endpoint, reach: Reach, own_ips: set[_IP]) -> int:
    if reach is Reach.LOOPBACK:
        return 0
    if reach is Reach.RELAYED:
        return 4
    ip = _ip(endpoint.host)
    if ip is not None and any(_same_network(ip, other) for other in own_ips):
        return 1
    return 2 if reach is Reach.PUBLIC else 3


def _same_network(ip: _IP, other: _IP) -> bool:
    # Without netmasks, /24 and /64 are what home networks use.
    if ip.version != other.version or other.is_loopback:
        return False
    shift = 8 if ip.version == 4 else 64
    return int(ip) >> shift == int(other) >> shift


def _direct_ip(address: str) -> _IP | None:
    endpoint = parse(address)
    return None if endpoint is None or endpoint.relayed else _ip(endpoint.host)


def _ip(host: str) -> _IP | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _distinct(addresses: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(addresses))
