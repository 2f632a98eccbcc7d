"""What others say of our TCP address: takes identify's place for observed addresses, and says where a punch could reach us.

Only connections that left from, or came to, a port that we listen on count: any other port is a mapping that nobody else can use.
"""

import ipaddress
from collections.abc import Callable
from typing import Any

import trio
from libp2p.abc import INetConn
from multiaddr import Multiaddr

from daemon.transport.addresses import bound_addresses, expand, remote_end
from daemon.transport.tcp import plain_socket
from nat.addresses import is_public, parse
from nat.observed import Mapping, Observation, ObservedAddresses
from nat.punch_messages import MAX_CANDIDATES, Endpoint


class Observations:
    """Stands where py-libp2p keeps its own, whose threshold of four observers no small mesh meets."""

    def __init__(self, swarm: Any) -> None:
        self._swarm = swarm
        self.tcp = ObservedAddresses()
        self.heard: Callable[[], None] = lambda: None
        """Told after each report."""
        self.mapped: Callable[[], tuple[str, int] | None] = lambda: None
        """The address that the gateway passes on to us, where a peer has come in by it."""

    # ---- asked by the library

    def record_observation(self, conn: INetConn, observed_addr: Multiaddr, _local: list[Multiaddr]) -> None:
        """Identify over `conn` reported `observed_addr`."""
        secured = getattr(conn.muxed_conn, "secured_conn", None)
        raw = getattr(secured, "raw", None)
        socket = plain_socket(raw) if raw is not None else None
        remote = remote_end(getattr(raw, "stream", None))
        if socket is None or remote is None or socket.fileno() < 0:
            return
        if int(socket.getsockname()[1]) in self.listening_ports():
            peer = conn.muxed_conn.peer_id.to_base58()
            self.tcp = self.tcp.observe(Observation(peer, remote[0], str(observed_addr), trio.current_time()))
            self.heard()

    def addrs(self, _observers: int = 0) -> list[Multiaddr]:
        """Addresses that two observers agree on; whether anybody can come in there is another question."""
        return [Multiaddr(address) for address in self.believed()]

    def remove_conn(self, _conn: INetConn) -> None:
        """A mapping outlives the connection that showed it."""

    # ---- asked by us

    def believed(self) -> tuple[str, ...]:
        return self.tcp.believed(trio.current_time())

    def forget(self) -> None:
        """The network has changed: what was seen of us says nothing any more."""
        self.tcp = ObservedAddresses()

    def mapping(self) -> Mapping:
        """What the NAT does to our first listening port."""
        ports = sorted(self.listening_ports())
        own = frozenset(host for host, _ in self.interfaces())
        return self.tcp.mapping(ports[0], own, trio.current_time()) if ports else Mapping.UNKNOWN

    def candidates(self) -> tuple[Endpoint, ...]:
        """Where a punch could meet us, the likeliest first: as seen, as a NAT that keeps ports would map it, as we listen."""
        seen = [endpoint for one in reversed(self.tcp.observations) if (endpoint := parse(one.address)) is not None]
        mapped = self.mapped()
        found = [mapped] if mapped is not None else []
        found += [(endpoint.host, endpoint.port) for endpoint in seen]
        if self.mapping() in (Mapping.UNKNOWN, Mapping.NONE, Mapping.PORT_PRESERVING):
            found += [(endpoint.host, port) for endpoint in seen for port in sorted(self.listening_ports())]
        found += self.interfaces()
        return tuple(Endpoint(host, port) for host, port in dict.fromkeys(found) if port)[:MAX_CANDIDATES]

    def outside_hosts(self) -> frozenset[str]:
        """Public IPs at which peers see us; empty where one of them is an interface's own, as no NAT stands between then."""
        hosts = {endpoint.host for one in self.tcp.observations if (endpoint := parse(one.address)) is not None}
        own = {host for host, _ in self.interfaces()}
        return frozenset() if hosts & own else frozenset(filter(is_public, hosts))

    def listening_ports(self) -> frozenset[int]:
        return frozenset(port for _, port in self.listening())

    def interfaces(self) -> list[tuple[str, int]]:
        """(IP, port) pairs that we listen on, loopback only where we listen there by name or there is nothing else."""
        texts = map(str, expand(bound_addresses(self._swarm)))
        found = [(endpoint.host, endpoint.port) for endpoint in map(parse, texts) if endpoint is not None]
        return [(host, port) for host, port in found if not ipaddress.ip_address(host).is_link_local]

    def listening(self) -> list[tuple[str, int]]:
        """(IP, port) pairs that listeners are bound to, unspecified ones as they are."""
        bound = map(str, bound_addresses(self._swarm))
        return [(endpoint.host, endpoint.port) for endpoint in map(parse, bound) if endpoint is not None]

