"""Which multiaddrs to listen on and which to give to others. Reads the interfaces; opens nothing for longer than a check."""

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from multiaddr import Multiaddr
from multiaddr.exceptions import ProtocolLookupError
from multiaddr.utils import get_network_addrs

from daemon.transport.interface import TransportError
from daemon.transport.options import parse_address, read_address
from protocol.wire.ids import PeerId, short


@lru_cache(maxsize=4096)
def text_of(address: Multiaddr) -> str:
    """`str(address)`, which the library finds anew each time, at 20 us: too much for what each call asks of each connection."""
    return str(address)


MAX_ADDRESS_BYTES = 256
"""Of a binary multiaddr that a stranger gives; a relayed one by name has some 120."""


def text_of_address(raw: bytes) -> str:
    """A stranger's binary multiaddr as text; "" where it is too long, none, or none that can be read again."""
    return _text_of_address(raw) if len(raw) <= MAX_ADDRESS_BYTES else ""


@lru_cache(maxsize=4096)
def _text_of_address(raw: bytes) -> str:
    try:
        text = str(Multiaddr(raw))
        read_address(text)
    except Exception:  # noqa: BLE001 - the library raises many kinds for bytes that are no multiaddr
        return ""
    return text


def check_listen_address(address: Multiaddr) -> None:
    """Raise TransportError where `address` cannot be listened on: not TCP, port taken, address not ours.

    The library binds with SO_REUSEPORT for hole punching, so that two daemons would share a port without a word.
    """
    host, port = host_and_port(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TransportError(_bind_sentence(error, host, port)) from None


def host_and_port(address: Multiaddr) -> tuple[str, int]:
    """The IP and TCP port of a listen address; raises TransportError where it has none."""
    for name in ("ip4", "ip6"):
        try:
            host = address.value_for_protocol(name)
            port = address.value_for_protocol("tcp")
        except ProtocolLookupError:
            continue
        if host is not None and port is not None:
            return str(host), int(port)
    raise TransportError(f"cannot listen on {address}: it must be /ip4/<address>/tcp/<port> or /ip6/<address>/tcp/<port>")


def _bind_sentence(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use on {host}: stop what listens there or choose another port (0 takes a free one)"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is not an address of this machine: listen on one of its own or on 0.0.0.0"
    if error.errno == errno.EACCES:
        return f"port {port} needs privileges: choose one above 1023"
    return f"cannot listen on {host} port {port}: {error.strerror}"


def expand(listening: Iterable[Multiaddr]) -> list[Multiaddr]:
    """`listening` with each wildcard replaced by the addresses of the interfaces; loopback only where nothing else is."""
    expanded: list[Multiaddr] = []
    for address in listening:
        try:
            host, port = host_and_port(address)
        except TransportError:
            continue
        ip = ipaddress.ip_address(host)
        if not ip.is_unspecified:
            expanded.append(address)
            continue
        kind = "ip4" if ip.version == 4 else "ip6"
        expanded += [Multiaddr(f"/{kind}/{found}/tcp/{port}") for found in interface_addresses(ip.version)]
    return list(dict.fromkeys(expanded))


def interface_addresses(version: int) -> list[str]:
    """IPs of the interfaces, without link-local ones; loopback only where there is nothing else."""
    try:
        found = [ipaddress.ip_address(str(text).split("%")[0]) for text in get_network_addrs(version)]
    except OSError:
        found = []
    usable = [ip for ip in found if not ip.is_link_local and not ip.is_unspecified and not ip.is_multicast]
    beyond = [str(ip) for ip in usable if not ip.is_loopback]
    return beyond or ["127.0.0.1" if version == 4 else "::1"]


def bound_addresses(swarm: Any) -> list[Multiaddr]:
    """What the listeners of `swarm` are bound to; a listener that is being closed is bound to nothing."""
    found: list[Multiaddr] = []
    for listener in swarm.listeners.values():
        with contextlib.suppress(OSError):
            found += listener.get_addrs()
    return found


def remote_end(stream: object) -> tuple[str, int] | None:
    """IP and port at the far end of a TCP stream of the library, which itself reads no IPv6 peer name (they have four parts)."""
    try:
        name = stream.stream.socket.getpeername()  # type: ignore[attr-defined]
        return str(name[0]).split("%")[0], int(name[1])
    except (AttributeError, OSError, IndexError):
        return None


def with_peer(address: Multiaddr, peer: PeerId) -> str:
    """`address` ending in /p2p/<peer>."""
    text = str(address).rstrip("/")
    return text if text.endswith(f"/p2p/{peer}") else f"{text}/p2p/{peer}"


def dialable(peer: PeerId, addresses: Sequence[str]) -> list[Multiaddr]:
    """Parse addresses of `peer`; raises TransportError for one that is malformed or names somebody else."""
    parsed: list[Multiaddr] = []
    for text in addresses:
        try:
            address = parse_address(text)
        except ValueError as error:
            raise TransportError(str(error)) from None
        last = text.rstrip("/").rsplit("/p2p/", 1)
        if len(last) == 2 and "/" not in last[1] and last[1] != peer:
            raise TransportError(f"the address {text} is of another peer, not of {short(peer)}")
        parsed.append(address)
    return parsed
