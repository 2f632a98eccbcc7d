"""TCP simultaneous open from the listening port, and which end of the connection goes first. Decides no address and no time."""

import ipaddress
import logging
from typing import Any

import trio
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from daemon.transport.addresses import bound_addresses
from daemon.transport.interface import TransportError
from nat.addresses import parse

GREETING = b"\x13/multistream/1.0.0\n"

log = logging.getLogger(__name__)


async def connect(swarm: Any, address: Multiaddr) -> Any:
    """A connection to `address` from our listening port; raises TransportError or what connecting raises."""
    transport = swarm.transport_manager.transport_for_dialing(address)
    if transport is None:
        raise TransportError(f"{address} cannot be dialled")
    source = source_for(swarm, address)
    return await (transport.dial(address) if source is None else transport.dial_with_source(address, source))


async def upgrade_as_client(swarm: Any, peer: ID, raw: Any) -> None:
    """Propose at once: the session's other side, and a peer's listener, answer; raises what upgrades raise."""
    await swarm.upgrade_outbound_raw_conn(raw, peer)


async def upgrade_as_starter(swarm: Any, peer: ID, raw: Any, address: Multiaddr, patience: float) -> None:
    """Go on as the session's starter, who is the Noise responder, as both SYNs may have merged into one connection.

    Where only our SYN arrived, the peer's listener took it and is a responder too. Either end greets; only a client goes on to
    propose, so after `patience` seconds without a proposal the client is us.
    """
    try:
        await raw.write(GREETING)
        greeting = b""
        while len(greeting) < len(GREETING) and (received := await raw.read(len(GREETING) - len(greeting))):
            greeting += received
        if greeting != GREETING:
            raise TransportError("it does not speak multistream")
        with trio.move_on_after(patience) as silence:
            await trio.lowlevel.wait_readable(raw.stream.stream.socket)
    except BaseException:
        with trio.CancelScope(shield=True):
            await raw.close()
        raise
    greeted = RawConnection(_Greeted(raw.stream), silence.cancelled_caught)
    if silence.cancelled_caught:
        await swarm.upgrade_outbound_raw_conn(greeted, peer)
        return
    muxed = await swarm.upgrade_inbound_raw_conn(greeted, address)
    if muxed.peer_id != peer:
        await muxed.close()
        raise TransportError("another peer came through the punched hole")


class _Greeted(ReadWriteCloser):
    """A socket on which both greetings have passed: ours is not sent again, and the peer's is read once more."""

    def __init__(self, stream: ReadWriteCloser) -> None:
        self.stream = getattr(stream, "stream", None)
        self._stream = stream
        self._unsent = len(GREETING)
        self._unread = GREETING

    @property
    def beneath(self) -> ReadWriteCloser:
        """The socket's own stream once both have passed."""
        return self if self._unsent or self._unread else self._stream

    async def write(self, data: bytes) -> None:
        skipped = min(self._unsent, len(data))
        self._unsent -= skipped
        if skipped < len(data):
            await self._stream.write(data[skipped:])

    async def read(self, n: int | None = None) -> bytes:
        if not self._unread:
            return await self._stream.read(n)
        taken = self._unread if n is None else self._unread[:n]
        self._unread = self._unread[len(taken) :]
        return taken

    async def close(self) -> None:
        await self._stream.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._stream.get_remote_address()


def source_for(swarm: Any, target: Multiaddr) -> tuple[str, int] | None:
    """The (IP, port) we listen on in the target's family, to dial from; None where there is none or it could not reach there."""
    endpoint = parse(str(target))
    if endpoint is None:
        return None
    try:
        wanted = ipaddress.ip_address(endpoint.host)
    except ValueError:
        return None
    for address in bound_addresses(swarm):
        own = parse(str(address))
        ip = ipaddress.ip_address(own.host) if own is not None else None
        if own is None or ip is None or ip.version != wanted.version or own.transport != "tcp":
            continue
        if ip.is_unspecified or ip.is_loopback == wanted.is_loopback:
            return own.host, own.port
    return None
