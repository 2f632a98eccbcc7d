"""Keeps mDNS to its link, and its answers below what is asked. Opens nothing itself.

RFC 6762 section 11 asks for the first and zeroconf lacks both: a query of 61 bytes from anywhere drew an answer of 297.
"""

import asyncio
import ipaddress
import time
from collections.abc import Callable, Sequence
from typing import Any

import ifaddr
from zeroconf import Zeroconf

from daemon.lan_account import AnswerAccount

HEADERS = 28
PORT = 5353
START_SECONDS = 5.0

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


def own_interfaces() -> tuple[Interface, ...]:
    """The addresses of our interfaces with their networks, without loopback."""
    found: list[Interface] = []
    for adapter in ifaddr.get_adapters():
        for own in adapter.ips:
            host = own.ip if isinstance(own.ip, str) else own.ip[0]
            interface = ipaddress.ip_interface(f"{host.split('%')[0]}/{own.network_prefix}")
            if not interface.is_loopback:
                found.append(interface)
    return tuple(dict.fromkeys(found))


def address_of(source: str) -> "ipaddress.IPv4Address | ipaddress.IPv6Address":
    """The address that a socket names as `source`: without a scope, and as IPv4 what an IPv6 socket maps."""
    ip = ipaddress.ip_address(source.split("%")[0])
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip


def on_link(source: str, networks: Sequence[Network]) -> bool:
    """Whether a datagram from the IP address `source` can have come from a network of ours."""
    ip = address_of(source)
    return ip.is_link_local or any(ip in network for network in networks)


class _Guarded(asyncio.DatagramProtocol):
    """Hands on to `inner` what is on the link, and of the queries for one of `labels` those that the account allows."""

    def __init__(
        self, inner: Any, interfaces: Sequence[Interface], labels: Sequence[bytes], allowed: Callable[[int], bool]
    ) -> None:
        self._inner = inner
        self._networks = [own.network for own in interfaces]
        self._own = {own.ip for own in interfaces}
        self._labels = tuple(label.lower() for label in labels)
        self._allowed = allowed

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if on_link(str(addr[0]), self._networks) and (not self._asks_us(data, addr) or self._allowed(len(data))):
            self._inner.datagram_received(data, addr)

    def _asks_us(self, data: bytes, addr: tuple[Any, ...]) -> bool:
        """Whether an answer could follow: a query with one of our labels. Those of this box itself come back and count not."""
        if len(data) < 12 or data[2] & 0x80 or (addr[1] == PORT and address_of(str(addr[0])) in self._own):
            return False
        lowered = data.lower()  # names are compared without case, and a label stands in one piece (RFC 1035 section 4.1.4)
        return any(label in lowered for label in self._labels)

    def error_received(self, exc: Exception) -> None:
        self._inner.error_received(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)


class _Metered:
    """A transport whose datagrams are counted."""

    def __init__(self, inner: Any, account: AnswerAccount) -> None:
        self._inner = inner
        self._account = account

    def sendto(self, data: bytes, addr: Any = None) -> None:
        self._account.sent(HEADERS + len(data), time.monotonic())
        self._inner.sendto(data, addr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def guard(zeroconf: Zeroconf, labels: Sequence[bytes], counters: dict[str, int]) -> None:
    """Have `zeroconf` hear its own networks alone and answer for `labels`, parts of its names, no more than it is asked.

    Queries that get no answer for that are counted as "unanswered". Call it from another thread than its loop's; raises
    TimeoutError.
    """
    interfaces, account = own_interfaces(), AnswerAccount()

    def allowed(size: int) -> bool:
        answered = account.query(HEADERS + size, time.monotonic())
        counters["unanswered"] += not answered
        return answered

    async def put_between() -> None:
        await zeroconf.async_wait_for_start()
        for reader in zeroconf.engine.readers:
            transport: Any = reader.transport
            listener: Any = transport.get_protocol()
            transport.set_protocol(_Guarded(listener, interfaces, labels, allowed))
            listener.transport.transport = _Metered(transport, account)
        for sender in zeroconf.engine.senders:
            sender.transport = _Metered(sender.transport, account)  # type: ignore[assignment]

    assert zeroconf.loop is not None  # noqa: S101 - its constructor waited for it
    asyncio.run_coroutine_threadsafe(put_between(), zeroconf.loop).result(START_SECONDS)
