"""From a relayed to a direct connection: DCUtR sessions and TCP simultaneous open from the listening port.

Decides when to try and which role to take; the relayed connection keeps serving meanwhile, and for a grace period after.
"""

import ipaddress
import logging
from typing import Any

import trio
from libp2p.abc import INetConn
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from multiaddr import Multiaddr

from daemon.transport.gossip_guard import Budgets
from daemon.transport.interface import PathKind, TransportError
from daemon.transport.relay_hop import RelayOptions, direct_addresses, quietly_reset, receive, send
from nat.addresses import Reach, dial_order, parse, reach_of, without_peer

DCUTR = TProtocol("/libp2p/dcutr")
GREETING = b"\x13/multistream/1.0.0\n"
MAX_ADDRESSES = 8
_MAX_SESSIONS = 16
_IDENTIFY_SECONDS = 0.5
_UNILATERAL_SECONDS = 3.0
_PATIENCE_SECONDS = 0.3

log = logging.getLogger(__name__)


class Puncher:
    """Upgrades relayed connections. The side that accepted the relayed connection starts (DCUtR), so roles never race."""

    def __init__(self, host: Any, options: RelayOptions) -> None:
        self._host = host
        self._swarm = host.swarm
        self._options = options
        self._under_way: set[ID] = set()
        self._punching: dict[ID, float] = {}
        self._sessions = Budgets(rate=0.1, burst=4)
        self._changed = trio.Event()
        self._swarm.watchers.append(self._watch)
        self.succeeded = 0
        self.failed = 0

    async def upgrade(self, peer: ID) -> None:
        """Try for a direct connection to a peer that reached us over a relay; raises nothing."""
        if peer in self._under_way or not self._may_start(peer):
            return
        self._under_way.add(peer)
        try:
            await self._upgrade(peer)
        except Exception as error:  # noqa: BLE001 - the relayed connection serves on, whatever happened to this attempt
            log.debug("no direct connection to %s: %r", peer, error)
        finally:
            self._under_way.discard(peer)
        if self._direct(peer):
            self.succeeded += 1
            await self._retire_relayed(peer)
        else:
            self.failed += 1

    async def handle(self, stream: Any) -> None:
        """Answer a DCUtR session: exchange addresses, then dial when told to, as the connection's client."""
        peer: ID = stream.muxed_conn.peer_id
        if stream.muxed_conn.get_connection_type() != ConnectionType.RELAYED or not self._may_start(peer):
            raise TransportError("no DCUtR session is due")
        with trio.fail_after(2 * self._options.punch_timeout):
            request = await receive(stream, HolePunch)
            if request.type != HolePunch.CONNECT:
                raise TransportError("a DCUtR session starts with CONNECT")
            await send(stream, HolePunch(type=HolePunch.CONNECT, ObsAddrs=self._candidates()))
            if (await receive(stream, HolePunch)).type != HolePunch.SYNC:
                raise TransportError("a DCUtR session goes on with SYNC")
        await stream.close()
        await self._punch(peer, self._targets(request.ObsAddrs), None)

    def _may_start(self, peer: ID) -> bool:
        # Each session makes us dial up to 8 addresses that a stranger names.
        now = trio.current_time()
        return len(self._under_way) < _MAX_SESSIONS and self._sessions.take(peer, now) and self._sessions.take("all", now, 0.1)

    async def _upgrade(self, peer: ID) -> None:
        await self._dial_known(peer)
        for attempt in range(self._options.punch_attempts):
            if self._direct(peer) or not self._connected(peer):
                return
            await self._session(peer)
            if not self._direct(peer):
                await trio.sleep(2.0**attempt)

    async def _dial_known(self, peer: ID) -> None:
        """A plain dial first: a peer with an open port needs no punch."""
        with trio.move_on_after(_IDENTIFY_SECONDS):
            while peer not in self._host._identified_peers:  # noqa: ASYNC110 - the library signals nothing when it is done
                await trio.sleep(0.02)
        try:
            known = [str(address) for address in self._host.get_peerstore().addrs(peer)]
        except PeerStoreError:
            return
        ours = [str(address) for address in self._host.get_addrs()]
        addresses = [Multiaddr(text) for text in dial_order(known, ours) if reach_of(text) is not Reach.RELAYED]
        with trio.move_on_after(_UNILATERAL_SECONDS):
            async with trio.open_nursery() as nursery:
                for address in addresses[:MAX_ADDRESSES]:
                    nursery.start_soon(self._dial, peer, address, None, nursery.cancel_scope)

    async def _session(self, peer: ID) -> None:
        stream = await self._host.new_stream(peer, [DCUTR])
        try:
            with trio.fail_after(2 * self._options.punch_timeout):
                sent = trio.current_time()
                await send(stream, HolePunch(type=HolePunch.CONNECT, ObsAddrs=self._candidates()))
                answer = await receive(stream, HolePunch)
                if answer.type != HolePunch.CONNECT:
                    raise TransportError("a DCUtR session is answered with CONNECT")
                half = (trio.current_time() - sent) / 2
                await send(stream, HolePunch(type=HolePunch.SYNC))
                await trio.sleep(min(half, 2.0))
            await self._punch(peer, self._targets(answer.ObsAddrs), _PATIENCE_SECONDS + 4 * half)
        finally:
            with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
                await quietly_reset(stream)

    async def _punch(self, peer: ID, targets: list[Multiaddr], patience: float | None) -> None:
        """Dial every target from our listening port until a connection stands; with `patience` as the session's initiator."""
        if self._direct(peer):
            return
        now = trio.current_time()
        self._punching = {other: until for other, until in self._punching.items() if until > now}
        self._punching[peer] = now + 2 * self._options.punch_timeout
        with trio.move_on_after(self._options.punch_timeout) as scope:
            async with trio.open_nursery() as nursery:
                for target in targets:
                    nursery.start_soon(self._dial, peer, target, patience, scope)
                nursery.start_soon(self._until_direct, peer, scope)

    async def _dial(self, peer: ID, address: Multiaddr, patience: float | None, won: trio.CancelScope) -> None:
        source = source_for(self._swarm, address)
        try:
            if patience is None:
                await self._swarm._dial_addr_single_attempt(address, peer, source)
            else:
                await self._dial_listening(peer, address, source, patience)
        except Exception as error:  # noqa: BLE001 - most dials of a punch fail
            log.debug("a dial to %s failed: %r", address, error)
            return
        won.cancel()

    async def _dial_listening(self, peer: ID, address: Multiaddr, source: tuple[str, int] | None, patience: float) -> None:
        """Dial as the session's initiator, who is the Noise responder, as both SYNs may have merged into one connection.

        Where only our SYN arrived, the peer's listener took it and is a responder too. Either end greets; only a client goes on
        to propose, so after `patience` seconds without a proposal the client is us.
        """
        transport = self._swarm.transport_manager.transport_for_dialing(address)
        if transport is None:
            return
        raw = await (transport.dial(address) if source is None else transport.dial_with_source(address, source))
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
            await self._swarm.upgrade_outbound_raw_conn(greeted, peer)
            return
        muxed = await self._swarm.upgrade_inbound_raw_conn(greeted, address)
        if muxed.peer_id != peer:
            await muxed.close()
            raise TransportError("another peer came through the punched hole")

    async def _until_direct(self, peer: ID, won: trio.CancelScope) -> None:
        while not self._direct(peer):
            await self._changed.wait()
        won.cancel()

    def _watch(self, conn: INetConn, opened: bool) -> None:
        if not opened:
            return
        punching = trio.current_time() < self._punching.get(conn.muxed_conn.peer_id, 0.0)
        if punching and conn.muxed_conn.get_connection_type() != ConnectionType.RELAYED:
            # Either side's dial may be the one that arrives, even after another of them has won.
            conn.muxed_conn.path_kind = PathKind.PUNCHED  # type: ignore[attr-defined]
        self._changed.set()
        self._changed = trio.Event()

    async def _retire_relayed(self, peer: ID) -> None:
        await trio.sleep(self._options.relayed_grace)
        if self._direct(peer):
            for conn in self._swarm.get_connections(peer):
                if conn.get_connection_type() == ConnectionType.RELAYED:
                    await conn.close()

    def _candidates(self) -> list[bytes]:
        """Where others may reach us: as observed, as a port-preserving NAT would map it, and as we listen; bare multiaddrs."""
        listening = direct_addresses(self._host)
        observed = [without_peer(str(address)) for address in self._host._observed_addr_manager.addrs(min_observers=1)]
        observed = [address for address in observed if reach_of(address) is not Reach.RELAYED]
        ports = {endpoint.port for endpoint in map(parse, listening) if endpoint is not None}
        guessed = ["/".join([*address.split("/")[:4], str(port)]) for address in observed for port in sorted(ports)]
        found = [address for address in (*observed, *guessed, *listening) if reach_of(address) is not Reach.NOWHERE]
        return [Multiaddr(address).to_bytes() for address in dict.fromkeys(found)][: 2 * MAX_ADDRESSES]

    def _targets(self, raw: Any) -> list[Multiaddr]:
        texts = []
        for entry in raw[: 2 * MAX_ADDRESSES]:
            try:
                texts.append(str(Multiaddr(entry)))
            except Exception as error:  # noqa: BLE001 - the library raises many kinds for bytes that are no multiaddr
                log.debug("not an address: %r", error)
        ours = [str(address) for address in self._host.get_addrs()]
        return [Multiaddr(text) for text in dial_order(texts, ours) if reach_of(text) is not Reach.RELAYED][:MAX_ADDRESSES]

    def _connected(self, peer: ID) -> bool:
        return any(not conn.is_closed for conn in self._swarm.get_connections(peer))

    def _direct(self, peer: ID) -> list[INetConn]:
        connections = self._swarm.get_connections(peer)
        return [conn for conn in connections if not conn.is_closed and conn.get_connection_type() != ConnectionType.RELAYED]


class _Greeted(ReadWriteCloser):
    """A socket on which both greetings have passed: ours is not sent again, and the peer's is read once more."""

    def __init__(self, stream: ReadWriteCloser) -> None:
        self._stream = stream
        self._unsent = len(GREETING)
        self._unread = GREETING

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
    for listener in swarm.listeners.values():
        for address in listener.get_addrs():
            own = parse(str(address))
            ip = ipaddress.ip_address(own.host) if own is not None else None
            if own is None or ip is None or ip.version != wanted.version or own.transport != "tcp":
                continue
            if ip.is_unspecified or ip.is_loopback == wanted.is_loopback:
                return own.host, own.port
    return None
