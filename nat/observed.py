"""What others see of our address, which of it to believe, and what it says about our NAT. Pure; told what identify reported.

Only reports over connections that left from our listening port count: any other port is a mapping nobody else can use.
"""

import ipaddress
from dataclasses import dataclass, replace
from enum import StrEnum

from nat.addresses import parse


class Mapping(StrEnum):
    """How the NAT in front of us picks an outside port for our listening port (RFC 4787 section 4.1)."""

    UNKNOWN = "unknown"
    NONE = "none"
    PORT_PRESERVING = "port_preserving"
    ENDPOINT_INDEPENDENT = "endpoint_independent"
    PREDICTABLE = "predictable"
    """Symmetric, and counts its ports: told by `nat.port_count` from mappings just made, never by observations of one port."""
    SYMMETRIC = "symmetric"


HARD = (Mapping.SYMMETRIC, Mapping.PREDICTABLE)
"""Another port for each destination."""


class Filtering(StrEnum):
    """What the NAT lets in (RFC 4787 section 5), as far as dial-backs can tell."""

    UNKNOWN = "unknown"
    ENDPOINT_INDEPENDENT = "endpoint_independent"
    """Strangers come in: one did, from an IP that we never dialled."""
    ADDRESS_DEPENDENT_AT_MOST = "address_dependent_at_most"
    """Another port of a peer that we talk to comes in; of strangers nothing is known."""
    ADDRESS_AND_PORT_DEPENDENT = "address_and_port_dependent"


def filtering(reachable: bool | None, stranger_came: bool) -> Filtering:
    """`reachable`: a peer that we dialled came in from another port than the one we dialled; None: none tried."""
    if stranger_came:
        return Filtering.ENDPOINT_INDEPENDENT
    if reachable is None:
        return Filtering.UNKNOWN
    return Filtering.ADDRESS_DEPENDENT_AT_MOST if reachable else Filtering.ADDRESS_AND_PORT_DEPENDENT


@dataclass(frozen=True, slots=True)
class Observation:
    """`observer` (a peer at the IP `observer_host`) saw us as the multiaddr `address` at `time` (seconds, monotonic)."""

    observer: str
    observer_host: str
    address: str
    time: float


@dataclass(frozen=True, slots=True)
class ObservedOptions:
    """`observers`: distinct peers at distinct IPs needed for belief; `lifetime` in seconds; `capacity` in observations.

    Two observers is the least that can tell an endpoint-independent mapping from a symmetric one.
    """

    observers: int = 2
    lifetime: float = 1800.0
    capacity: int = 64


@dataclass(frozen=True, slots=True)
class ObservedAddresses:
    """The observations in force, oldest first, at most one per observer. A value: `observe` returns the next one."""

    options: ObservedOptions = ObservedOptions()
    observations: tuple[Observation, ...] = ()

    def observe(self, seen: Observation) -> "ObservedAddresses":
        """With `seen` added; unusable addresses change nothing, a second word of one observer replaces its first."""
        endpoint = parse(seen.address)
        if endpoint is None or endpoint.relayed or endpoint.port == 0 or not _is_outside(endpoint.host):
            return self
        others = (old for old in self.observations if old.observer != seen.observer)
        kept = [old for old in others if seen.time - old.time < self.options.lifetime]
        return replace(self, observations=(*kept, seen)[-self.options.capacity :])

    def believed(self, now: float) -> tuple[str, ...]:
        """Addresses (without /p2p) that enough observers agree on, most observed first."""
        voices: dict[str, set[str]] = {}
        for seen in self._fresh(now):
            voices.setdefault(_bare(seen.address), set()).add(seen.observer_host)
        agreed = [(len(hosts), address) for address, hosts in voices.items() if len(hosts) >= self.options.observers]
        return tuple(address for _, address in sorted(agreed, key=lambda pair: (-pair[0], pair[1])))

    def mapping(self, listen_port: int, own_hosts: frozenset[str], now: float) -> Mapping:
        """The NAT's behaviour for `listen_port`; UNKNOWN before enough distinct observer IPs spoke of one outside IP."""
        ports: dict[str, dict[str, int]] = {}
        for seen in self._fresh(now):
            endpoint = parse(seen.address)
            if endpoint is not None:
                ports.setdefault(endpoint.host, {})[seen.observer_host] = endpoint.port
        host, views = max(ports.items(), key=lambda pair: len(pair[1]), default=("", {}))
        if len(views) < self.options.observers:
            return Mapping.UNKNOWN
        return Mapping.NONE if host in own_hosts else _mapping_of(list(views.values()), listen_port)

    def _fresh(self, now: float) -> list[Observation]:
        return [seen for seen in self.observations if now - seen.time < self.options.lifetime]


def _mapping_of(ports: list[int], listen_port: int) -> Mapping:
    if len(set(ports)) == 1:
        return Mapping.PORT_PRESERVING if ports[0] == listen_port else Mapping.ENDPOINT_INDEPENDENT
    return Mapping.SYMMETRIC


def _is_outside(host: str) -> bool:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    return not (ip.is_unspecified or ip.is_loopback or ip.is_multicast or ip.is_link_local)


def _bare(address: str) -> str:
    return "/".join(address.split("/")[:5])
