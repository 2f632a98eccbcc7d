"""Notices that the box is in another network: compares the interfaces' addresses, and closes what hung on the old ones."""

import logging
from collections.abc import Callable
from typing import Any

import trio
from libp2p.abc import INetConn
from libp2p.connection_types import ConnectionType

from daemon.transport.addresses import interface_addresses
from daemon.transport.swarm import address_of
from daemon.transport.tcp import plain_socket

CHECK_SECONDS = 3.0
"""A change is acted on within 10 s; reading the interfaces takes a millisecond."""

log = logging.getLogger(__name__)


class NetworkWatch:
    """`run` calls `changed` once the addresses of this box are others, after closing what hung on the old ones."""

    def __init__(self, swarm: Any, changed: Callable[[], None], addresses: Callable[[], frozenset[str]] | None = None) -> None:
        self._swarm = swarm
        self._changed = changed
        self._addresses = addresses or own_addresses
        self.changes = 0

    async def run(self) -> None:
        known = self._addresses()
        while True:
            await trio.sleep(CHECK_SECONDS)
            now = self._addresses()
            if now == known:
                continue
            log.info("the network has changed: %s became %s", ", ".join(sorted(known)), ", ".join(sorted(now)) or "nothing")
            lost, known = known - now, now
            self.changes += 1
            for conn in tuple(self._swarm.get_connections()):
                local = _local_host(conn)
                # Of a UDP path it is not known on which address it hung: its socket is bound to all.
                if (lost and _is_udp(conn)) if local is None else not (_is_loopback(local) or local in now):
                    await conn.close()
            self._changed()


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
