"""Notices that the box is in another network: compares the interfaces' addresses, and closes what hung on the old ones."""

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import trio
from libp2p.abc import INetConn
from libp2p.connection_types import ConnectionType

from daemon.transport.addresses import interface_addresses
from daemon.transport.swarm import address_of
from daemon.transport.tcp import plain_socket

CHECK_SECONDS = 3.0
"""Between looks, should the kernel not tell of a change (Linux does). It is acted on within 10 s; a look takes a millisecond."""

_SETTLE_SECONDS = 0.25
"""An old address goes, a new one comes, then its route: acted on once nothing followed for so long."""

_LONGEST_SETTLING = 1.5
_GROUPS = 0x10 | 0x40 | 0x100 | 0x400
"""Addresses and routes of both IP versions (linux/rtnetlink.h: RTMGRP_IPV4_IFADDR, _ROUTE, RTMGRP_IPV6_IFADDR, _ROUTE)."""

log = logging.getLogger(__name__)


class NetworkWatch:
    """`run` calls `changed` once the addresses of this box are others, after closing what hung on the old ones.

    `changed` is given those that are gone.
    """

    def __init__(
        self, swarm: Any, changed: Callable[[frozenset[str]], None], addresses: Callable[[], frozenset[str]] | None = None
    ) -> None:
        self._swarm = swarm
        self._changed = changed
        self._addresses = addresses or own_addresses
        self.changes = 0
        self.moved: Callable[[], None] = lambda: None
        """Called where connections of ours hang on an address that is gone, before they are closed."""

    async def run(self) -> None:
        with _announcements() as announced:
            await self._run(announced)

    async def _run(self, announced: "socket.socket | None") -> None:
        known = self._addresses()
        while True:
            with trio.move_on_after(CHECK_SECONDS):
                await _settled(announced)
            now = self._addresses()
            if now == known:
                continue
            log.info("the network has changed: %s became %s", ", ".join(sorted(known)), ", ".join(sorted(now)) or "nothing")
            lost, known = known - now, now
            self.changes += 1
            hung = [conn for conn in tuple(self._swarm.get_connections()) if _hung(conn, lost, now)]
            if hung:
                self.moved()
            async with trio.open_nursery() as nursery:
                for conn in hung:
                    nursery.start_soon(conn.close)
            self._changed(lost)


def _hung(conn: INetConn, lost: frozenset[str], now: frozenset[str]) -> bool:
    local = _local_host(conn)
    # Of a UDP path it is not known on which address it hung: its socket is bound to all.
    return bool(lost and _is_udp(conn)) if local is None else not (_is_loopback(local) or local in now)


@contextlib.contextmanager
def _announcements() -> "Iterator[socket.socket | None]":
    """A socket on which the kernel tells of changed addresses and routes; None elsewhere than on Linux."""
    try:
        told = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except (AttributeError, OSError):
        yield None
        return
    with told:
        try:
            told.bind((0, _GROUPS))
        except OSError as error:
            log.debug("changes of the network are looked for, as the kernel tells of none: %s", error.strerror)
            yield None
            return
        yield told


async def _settled(announced: "socket.socket | None") -> None:
    """Return soon after something was announced."""
    if announced is None:
        await trio.sleep_forever()
    await _announced(announced)
    with trio.move_on_after(_LONGEST_SETTLING):
        while True:
            with trio.move_on_after(_SETTLE_SECONDS) as quiet:
                await _announced(announced)
            if quiet.cancelled_caught:
                return


async def _announced(announced: "socket.socket") -> None:
    await trio.lowlevel.wait_readable(announced.fileno())
    with contextlib.suppress(OSError):  # empty, or more than it holds was announced
        while announced.recv(65536):
            pass


def own_addresses() -> frozenset[str]:
    """The addresses of all interfaces but loopback."""
    found = [*interface_addresses(4), *interface_addresses(6)]
    return frozenset(address for address in found if not _is_loopback(address))


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


def _is_udp(conn: INetConn) -> bool:
    return "/udp/" in address_of(conn) and conn.get_connection_type() != ConnectionType.RELAYED


def _local_host(conn: INetConn) -> str | None:
    raw = getattr(getattr(conn.muxed_conn, "secured_conn", None), "raw", None)
    socket = plain_socket(raw) if raw is not None else None
    if socket is None or socket.fileno() < 0:
        return None
    try:
        return str(socket.getsockname()[0]).removeprefix("::ffff:").split("%")[0]
    except OSError:
        return None
