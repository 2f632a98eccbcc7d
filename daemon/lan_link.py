"""Keeps mDNS to its link: what comes from elsewhere, whose source may be forged, is not answered. Opens nothing itself.

RFC 6762 section 11 asks for this check and zeroconf lacks it: a query of 61 bytes from anywhere drew an answer of 297.
"""

import asyncio
import ipaddress
from collections.abc import Sequence
from typing import Any

import ifaddr
from zeroconf import Zeroconf

START_SECONDS = 5.0

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def own_networks() -> tuple[Network, ...]:
    """The networks that our interfaces are in, without loopback."""
    found: list[Network] = []
    for adapter in ifaddr.get_adapters():
        for own in adapter.ips:
            host = own.ip if isinstance(own.ip, str) else own.ip[0]
            network = ipaddress.ip_network(f"{host.split('%')[0]}/{own.network_prefix}", strict=False)
            if not network.is_loopback:
                found.append(network)
    return tuple(dict.fromkeys(found))


def on_link(source: str, networks: Sequence[Network]) -> bool:
    """Whether a datagram from the IP address `source` can have come from a network of ours."""
    ip = ipaddress.ip_address(source.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    return ip.is_link_local or any(ip in network for network in networks)


class _Guarded(asyncio.DatagramProtocol):
    """Hands on to `inner` what is on the link."""

    def __init__(self, inner: Any, networks: Sequence[Network]) -> None:
        self._inner = inner
        self._networks = networks

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if on_link(str(addr[0]), self._networks):
            self._inner.datagram_received(data, addr)

    def error_received(self, exc: Exception) -> None:
        self._inner.error_received(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)


def guard(zeroconf: Zeroconf) -> None:
    """Have `zeroconf` hear its own networks alone; call it from another thread than its loop's. Raises TimeoutError."""
    networks = own_networks()

    async def put_between() -> None:
        await zeroconf.async_wait_for_start()
        for reader in zeroconf.engine.readers:
            transport: Any = reader.transport
            transport.set_protocol(_Guarded(transport.get_protocol(), networks))

    assert zeroconf.loop is not None  # noqa: S101 - its constructor waited for it
    asyncio.run_coroutine_threadsafe(put_between(), zeroconf.loop).result(START_SECONDS)
