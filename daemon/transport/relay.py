"""Being reached through relays and reaching others through them: reservations, relayed dials, and what follows them.

Decides when to reserve and which relay addresses to give out. The relay's own side is relay_hop's, hole punching relay_punch's.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import trio
from libp2p.abc import INetConn
from libp2p.connection_types import ConnectionType
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb
from multiaddr import Multiaddr

from daemon.transport.interface import TransportError
from daemon.transport.relay_hop import HOP, STOP, Hop, RelayOptions, quietly_reset, receive, send
from daemon.transport.relay_punch import DCUTR, Puncher, source_for
from nat.addresses import Reach, parse, reach_of, with_peer, without_peer
from protocol.wire.ids import PeerId, is_peer_id

__all__ = ["RelayOptions", "RelayService"]

log = logging.getLogger(__name__)
_ADDRESS_LIFETIME = 24 * 3600
_MAX_ADDRESSES_PER_RELAY = 4
_LISTEN_SECONDS = 0.2
_SHORTEST_RESERVATION = 2.0


class RelayService:
    """Circuit relay v2 for one host: server where `options.serve`, client of the given relays, and hole punching.

    `relays` are multiaddrs ending in /p2p/<relay>. Build it before the host listens; it serves while `run` runs.
    """

    def __init__(self, host: Any, relays: Sequence[str], rng: Random, options: RelayOptions | None = None) -> None:
        """Raises TransportError for a relay address that names no peer."""
        self._host = host
        self._swarm = host.swarm
        self._rng = rng
        self.options = options or RelayOptions()
        self.hop = Hop(host, self.options)
        self.puncher = Puncher(host, self.options)
        self._relays = dict(_relay_of(address) for address in relays)
        self._reserved: dict[ID, tuple[float, tuple[str, ...]]] = {}
        self._lost: dict[ID, trio.Event] = {}
        self._nursery: trio.Nursery | None = None
        self._swarm.relay_dialer = self.dial
        self._swarm.watchers.append(self._watch)

    @property
    def reservations(self) -> Mapping[PeerId, float]:
        """Relays that hold a reservation of ours, and the unix time at which it ends."""
        return {PeerId(relay.to_base58()): expire for relay, (expire, _) in self._reserved.items()}

    def addresses(self) -> tuple[str, ...]:
        """Our relayed multiaddrs, each /.../p2p/<relay>/p2p-circuit/p2p/<us>; those of the relay's public addresses first."""
        me = self._host.get_id().to_base58()
        found = [f"{address}/p2p-circuit" for _, addresses in self._reserved.values() for address in addresses]
        found.sort(key=lambda address: reach_of(address.split("/p2p-circuit")[0]) is not Reach.PUBLIC)
        return tuple(dict.fromkeys(with_peer(address, me) for address in found))

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Serve, reserve and punch until cancelled. Started when the handlers answer, not when reservations are made."""
        self._host.set_stream_handler(STOP, self._handle_stop)
        if self.options.serve:
            self._host.set_stream_handler(HOP, self.hop.handle)
        if self.options.punch:
            self._host.set_stream_handler(DCUTR, self.puncher.handle)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for relay in self._relays:
                nursery.start_soon(self._keep, relay)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def use(self, address: str) -> None:
        """Keep a reservation at one more relay; raises TransportError where `address` names no peer."""
        relay, known = _relay_of(address)
        if relay in self._relays:
            return
        self._relays[relay] = known
        if self._nursery is not None:
            self._nursery.start_soon(self._keep, relay)

    async def reach(self, address: str) -> None:
        """Connect to the peer that `address` names from our listening port, as for bootstrap peers; raises TransportError."""
        peer, known = _relay_of(address)
        try:
            with trio.fail_after(self.options.message_timeout):
                await self.connect_from_listening_port(peer, known)
        except (SwarmException, trio.TooSlowError) as error:
            raise TransportError(f"{address} could not be reached: {error or 'no answer in time'}") from None

    # -- as a client -------------------------------------------------------------------------------------------------

    async def _keep(self, relay: ID) -> None:
        """Stay connected to `relay` with a reservation, refreshed at half its time; retries with full jitter."""
        wait = self.options.retry_min
        with trio.move_on_after(_LISTEN_SECONDS):
            while not any(listener.get_addrs() for listener in self._swarm.listeners.values()):  # noqa: ASYNC110 - the library signals nothing when it listens
                await trio.sleep(0.01)
        while True:
            lost = self._lost[relay] = trio.Event()
            try:
                with trio.fail_after(3 * self.options.message_timeout):
                    await self.connect_from_listening_port(relay, self._relays[relay])
                    expire = await self._reserve(relay)
                wait = self.options.retry_min
                with trio.move_on_after(max(1.0, (expire - time.time()) / 2)):
                    await lost.wait()
            except (TransportError, SwarmException, trio.TooSlowError) as error:
                log.info("no reservation at the relay %s: %s", relay, error or "no answer in time")
                self._reserved.pop(relay, None)
                await trio.sleep(self._rng.uniform(0, wait))
                wait = min(2 * wait, self.options.retry_max)

    async def connect_from_listening_port(self, peer: ID, address: Multiaddr) -> None:
        """Connect to a relay or bootstrap peer from our listening port; at once where connected directly.

        Only so does what the peer observes of us name a port that others can dial (research: 7 of 36 NAT pairs depend on it).
        """
        if self._direct(peer):
            return
        self._host.get_peerstore().add_addrs(peer, [address], _ADDRESS_LIFETIME)
        source = source_for(self._swarm, address)
        if source is not None:
            try:
                await self._swarm._dial_addr_single_attempt(address, peer, source)
                return
            except SwarmException as error:
                # The port may still be bound to the same peer from before (TIME_WAIT), which an ephemeral port is not.
                log.debug("a dial from %s failed: %s", source, error)
        await self._swarm.dial_peer(peer)

    async def _reserve(self, relay: ID) -> float:
        try:
            stream = await self._host.new_stream(relay, [HOP])
            try:
                await send(stream, pb.HopMessage(type=pb.HopMessage.RESERVE))
                answer = await receive(stream, pb.HopMessage)
            finally:
                await quietly_reset(stream)
        except (SwarmException, trio.TooSlowError):
            raise
        except Exception as error:
            raise TransportError(f"it does not serve as a relay ({error})") from error
        if answer.status != pb.OK:
            raise TransportError(f"it refused with {pb.Status.Name(answer.status)}")
        now = time.time()
        expire = min(max(float(answer.reservation.expire), now + _SHORTEST_RESERVATION), now + 24 * 3600)
        self._reserved[relay] = expire, self._relay_addresses(relay, answer.reservation.addrs)
        log.info("reserved a place at the relay %s until %.0f", relay, expire)
        return expire

    def _relay_addresses(self, relay: ID, claimed: Sequence[bytes]) -> tuple[str, ...]:
        """The address that worked for us, then the public ones that the relay claims."""
        found = [str(self._relays[relay])] if relay in self._relays else []
        for raw in claimed[:16]:
            try:
                address = str(Multiaddr(raw))
            except Exception as error:  # noqa: BLE001 - the library raises many kinds for bytes that are no multiaddr
                log.debug("not an address: %r", error)
                continue
            if reach_of(address) is Reach.PUBLIC:
                found.append(address)
        name = relay.to_base58()
        return tuple(dict.fromkeys(with_peer(without_peer(address), name) for address in found))[:_MAX_ADDRESSES_PER_RELAY]

    async def dial(self, peer: ID, address: Multiaddr) -> INetConn:
        """Connect to `peer` through the relay that `address` names; raises SwarmException."""
        text = str(address).split("/p2p-circuit")[0]
        relay, relay_address = _relay_of(text)
        if relay in (self._host.get_id(), peer):
            raise SwarmException("a relay is a third peer")
        if not self._direct(relay):
            await self.connect_from_listening_port(relay, relay_address)
        stream = await self._host.new_stream(relay, [HOP])
        try:
            with trio.fail_after(self.options.message_timeout):
                await send(stream, pb.HopMessage(type=pb.HopMessage.CONNECT, peer=pb.PeerId(id=peer.to_bytes())))
                answer = await receive(stream, pb.HopMessage)
            if answer.status != pb.OK:
                raise SwarmException(f"the relay refused with {pb.Status.Name(answer.status)}")
            raw = self._raw(stream, relay, peer, initiator=True)
            with trio.fail_after(self.options.message_timeout):
                conn: INetConn = await self._swarm.upgrade_outbound_raw_conn(raw, peer)
        except BaseException as error:
            with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
                await quietly_reset(stream)
            if isinstance(error, Exception) and not isinstance(error, SwarmException):
                raise SwarmException(f"the relay did not connect us ({type(error).__name__}: {error})") from error
            raise
        return conn

    async def _handle_stop(self, stream: Any) -> None:
        """Accept a circuit from a relay that holds a reservation of ours, and serve the connection in it until it ends."""
        relay: ID = stream.muxed_conn.peer_id
        with trio.fail_after(self.options.message_timeout):
            request = await receive(stream, pb.StopMessage)
        known = relay in self._reserved and request.type == pb.StopMessage.CONNECT and is_peer_id(ID(request.peer.id).to_base58())
        status = pb.OK if known else pb.PERMISSION_DENIED
        await send(stream, pb.StopMessage(type=pb.StopMessage.STATUS, status=status))
        if not known:
            await stream.close()
            return
        source = ID(request.peer.id)
        raw = self._raw(stream, relay, source, initiator=False)
        with trio.fail_after(self.options.message_timeout):
            muxed = await self._swarm.upgrade_inbound_raw_conn(raw, raw.get_transport_addresses()[0])
        if muxed.peer_id != source:
            await muxed.close()
            raise TransportError("a relay announced another peer than the one that came")
        if self.options.punch and self._nursery is not None:
            self._nursery.start_soon(self.puncher.upgrade, source)
        await muxed.event_closed.wait()

    def _raw(self, stream: Any, relay: ID, peer: ID, initiator: bool) -> RawConnection:
        known = self._reserved.get(relay)
        via = known[1][0] if known and known[1] else with_peer(without_peer(_remote_address(stream)), relay.to_base58())
        address = Multiaddr(f"{via}/p2p-circuit/p2p/{peer.to_base58()}")
        return RawConnection(_Circuit(stream), initiator, ConnectionType.RELAYED, [address])

    def _direct(self, peer: ID) -> bool:
        connections = self._swarm.get_connections(peer)
        return any(not conn.is_closed and conn.get_connection_type() != ConnectionType.RELAYED for conn in connections)

    def _watch(self, conn: INetConn, opened: bool) -> None:
        peer = conn.muxed_conn.peer_id
        if not opened and peer in self._relays and not self._direct(peer):
            self._reserved.pop(peer, None)
            if peer in self._lost:
                self._lost[peer].set()


class _Circuit(ReadWriteCloser):
    """A relayed stream in the shape of a socket: b"" at the end, and closing it finishes our direction."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        try:
            received: bytes = await self._stream.read(n)
        except StreamEOF:
            return b""
        return received

    async def write(self, data: bytes) -> None:
        await self._stream.write(data)

    async def close(self) -> None:
        await self._stream.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None


def _relay_of(address: str) -> tuple[ID, Multiaddr]:
    endpoint = parse(address)
    if endpoint is None or endpoint.relayed or endpoint.peer is None or not is_peer_id(endpoint.peer):
        raise TransportError(f"{address[:200]!r} is not a relay's address such as /ip4/192.0.2.1/tcp/4001/p2p/12D3KooW...")
    return ID.from_base58(endpoint.peer), Multiaddr(without_peer(address))


def _remote_address(stream: Any) -> str:
    addresses = stream.muxed_conn.get_transport_addresses()
    return str(addresses[0]) if addresses else ""
