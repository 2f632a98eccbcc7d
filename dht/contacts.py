"""A peer as the DHT passes it on: who it is, where it stands, its addresses and network. Decides what counts as one network."""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from dht.keyspace import name_of_peer, place_of
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId

MAX_ADDRESSES = 16


class Network(NamedTuple):
    """Who shares `narrow` probably shares a box or a rented block; who shares `wide` probably shares an operator.

    IPv4: /24 and /16; IPv6: /48 and /32; through a relay: that relay. Attackers rent blocks, and go-libp2p groups by /16 as well.
    """

    narrow: str
    wide: str


@dataclass(frozen=True, slots=True)
class Contact:
    """`network` is None for addresses that anybody has (loopback, private ranges, names): they prove nothing."""

    peer: PeerId
    place: int
    addresses: tuple[str, ...] = ()
    network: Network | None = None


def contact_of(peer: PeerId, addresses: Sequence[str] = ()) -> Contact:
    """The contact of a peer as somebody names it; raises RemoteError(malformed) for an id that is none."""
    kept = tuple(addresses[:MAX_ADDRESSES])
    return Contact(peer, _place_of_peer(peer), kept, network_of(kept))


def met_at(contact: Contact, address: str) -> Contact:
    """The same contact, counted to the network where it was really met; what it claims of itself may be anywhere."""
    network = network_of((address,))
    return contact if network == contact.network else replace(contact, network=network)


def network_of(addresses: Iterable[str]) -> Network | None:
    """The network of the first address that is in one."""
    for address in addresses:
        network = _network(address)
        if network is not None:
            return network
    return None


@lru_cache(maxsize=2048)
def _place_of_peer(peer: PeerId) -> int:
    return place_of(name_of_peer(peer))


@lru_cache(maxsize=2048)
def _network(address: str) -> Network | None:
    parts = address.split("/")
    if "p2p-circuit" in parts:
        relay = parts[parts.index("p2p-circuit") - 1]
        return Network(f"relay {relay}", f"relay {relay}")
    if len(parts) < 3 or parts[1] not in ("ip4", "ip6"):
        return None
    try:
        ip = ipaddress.ip_address(parts[2])
    except ValueError:
        return None
    if not ip.is_global:
        return None
    value, bits = int(ip), 32 if ip.version == 4 else 128
    narrow, wide = (24, 16) if ip.version == 4 else (48, 32)
    return Network(f"{ip.version}/{value >> (bits - narrow):x}", f"{ip.version}/{value >> (bits - wide):x}")


def valid_contact(peer: str, addresses: Sequence[str]) -> Contact | None:
    """As `contact_of`, None for an id that is none: what a stranger lists."""
    try:
        return contact_of(PeerId(peer), addresses)
    except RemoteError:
        return None
