"""Being reached through relays and reaching others through them, and what follows: relayed dials and direct paths.

Puts the parts together: reservations are relay_keep's, the relay's own side relay_hop's, hole punching relay_punch's.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import trio
from libp2p.abc import INetConn
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb
from multiaddr import Multiaddr

from daemon.transport.gateway import Gateway
from daemon.transport.interface import PathKind, TransportError
from daemon.transport.muxer import MuxedConnection
from daemon.transport.network_watch import NetworkWatch
from daemon.transport.observations import Observations
from daemon.transport.port_mapper import PortMapper
from daemon.transport.reachability import ASK as DIAL_BACK
from daemon.transport.reachability import Reachability
from daemon.transport.relay_hop import HOP, STOP, Hop, RelayOptions, quietly_reset, receive, send, status_name
from daemon.transport.relay_keep import Reservations, relay_of
from daemon.transport.relay_punch import DCUTR, Puncher
from daemon.transport.swarm import relayed
from daemon.transport.udp_paths import UdpPaths
from daemon.transport.witness import WITNESS, Witnessing
from nat.addresses import Reach, is_public, multiaddr_of, parse, reach_of, with_peer, without_peer
from nat.natpmp import Protocol
from nat.observed import Mapping as NatMapping
from nat.punch_messages import PROTOCOL as PUNCH
from protocol.wire.ids import PeerId, is_peer_id

__all__ = ["RelayOptions", "RelayService"]

log = logging.getLogger(__name__)
_MAX_GUESSES = 2


class RelayService:
    """Circuit relay v2 for one host: server where `options.serve`, client of the given relays, and hole punching.

    `relays` are multiaddrs ending in /p2p/<relay>. Build it before the host listens; it serves while `run` runs.
    """

    def __init__(self, host: Any, relays: Sequence[str], rng: Random, options: RelayOptions | None = None) -> None:
        """Raises TransportError for a relay address that names no peer."""
        self._host = host
        self._swarm = host.swarm
        self.options = options or RelayOptions()
        self.hop = Hop(host, self.options)
        self.observations = Observations(self._swarm)
        host._observed_addr_manager = self.observations
        self.keeping = Reservations(host, relays, rng, self.options)
        self.keeping.needed = self._is_hidden
        self.udp = UdpPaths(self._swarm, rng, os.urandom, self.options.birthday)
        self.udp.mapping.observers = self._udp_observers
        self.udp.mapping.interfaces = self.observations.interfaces
        self._witnessing = Witnessing(host, self.hop)
        self.puncher = Puncher(host, self.options, self.observations, self.udp, self._sees)
        self.reachability = Reachability(host, self._ports_to_try, os.urandom)
        seen, prove = self.observations.outside_hosts, self.reachability.look_again
        self.mapper = PortMapper(Gateway(os.urandom), self._mappable, seen, prove)
        self._wire_mapper()
        self._swarm.is_proof = self.reachability.take_proof
        self.network = NetworkWatch(self._swarm, self._network_changed)
        self.network.moved = self._moved
        self.moved: list[Callable[[], None]] = []
        """Called when connections of ours hang on an address that is gone."""
        self.hop.willing = lambda: self.reachability.verdict.reachable is not False
        self.stranger_came = False
        """A peer came in over TCP from a public IP that we did not dial before."""
        self._nursery: trio.Nursery | None = None
        self._swarm.dialing.relay_dialer = self.dial
        self._swarm.dialing.relayed_guesses = self._guesses
        self._swarm.watchers.append(self._watch)

    def _wire_mapper(self) -> None:
        mapper, reachability = self.mapper, self.reachability
        if self.options.port_mapping:
            self.observations.heard = mapper.look_again
        self.observations.mapped = lambda: mapper.outside(Protocol.TCP)
        self.udp.mapping.granted = lambda: mapper.outside(Protocol.UDP)
        reachability.udp_port = lambda: mapper.to_prove(Protocol.UDP) or 0
        reachability.knock = self.udp.knock
        self.udp.knocked = reachability.take_knock

        def judged(came: set[int], udp: dict[int, bool]) -> None:
            mapper.judged(Protocol.TCP, came)
            if udp:
                mapper.judged(Protocol.UDP, [port for port, knocked in udp.items() if knocked])

        reachability.judged = judged

    @property
    def reservations(self) -> Mapping[PeerId, float]:
        """Relays that hold a reservation of ours, and the unix time at which it ends."""
        return {PeerId(relay.to_base58()): expire for relay, (expire, _) in self.keeping.held.items()}

    def addresses(self) -> tuple[str, ...]:
        """Our relayed multiaddrs, each /.../p2p/<relay>/p2p-circuit/p2p/<us>; those of the relay's public addresses first."""
        me = self._host.get_id().to_base58()
        return tuple(dict.fromkeys(with_peer(address, me) for address in self.keeping.addresses()))

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Serve, reserve and punch until cancelled. Started when the handlers answer, not when reservations are made."""
        self._host.set_stream_handler(STOP, self._handle_stop)
        if self.options.serve:
            self._host.set_stream_handler(HOP, self.hop.handle)
            self._host.set_stream_handler(WITNESS, self._witnessing.handle)
        if self.options.punch:
            self._host.set_stream_handler(DCUTR, self.puncher.handle)
            self._host.set_stream_handler(TProtocol(PUNCH), self.puncher.handle_session)
        self._host.set_stream_handler(DIAL_BACK, self.reachability.handle_ask)
        async with trio.open_nursery() as nursery:
            self._nursery = self.puncher.nursery = nursery
            for part in (self.keeping.run, self.reachability.run, self.network.run):
                nursery.start_soon(part)
            if self.options.port_mapping:
                nursery.start_soon(self.mapper.run)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = self.puncher.nursery = None

    async def open_udp(self) -> None:
        """Open UDP beside the TCP ports that listen by now; for `options.udp` alone."""
        if self._nursery is not None and self.options.udp:
            await self._nursery.start(self.udp.run, self.observations.listening())

    def use(self, address: str) -> None:
        """One more relay to choose from; raises TransportError where `address` names no peer."""
        self.keeping.add(address)

    async def reach(self, address: str) -> None:
        """Connect to the peer that `address` names from our listening port, as for bootstrap peers; raises TransportError."""
        peer, known = relay_of(address)
        try:
            with trio.fail_after(self.options.message_timeout):
                await self.keeping.connect_from_listening_port(peer, known)
        except (SwarmException, trio.TooSlowError) as error:
            raise TransportError(f"{address} could not be reached: {error or 'no answer in time'}") from None

    def reached_at(self) -> tuple[str, ...]:
        """The outside address at which a peer came in, where we know of one and do not listen on it anyway."""
        mapped = self.mapper.outside(Protocol.TCP)
        if mapped is not None:
            return (multiaddr_of(*mapped),)
        verdict = self.reachability.verdict
        hosts = [endpoint.host for one in self.observations.tcp.observations if (endpoint := parse(one.address)) is not None]
        if not verdict.reachable or not hosts:
            return ()
        return (multiaddr_of(hosts[-1], verdict.port),)

    # -- what the parts ask of each other ----------------------------------------------------------------------------

    def _is_hidden(self) -> bool:
        return not self.observations.listening() or self.observations.mapping() not in (NatMapping.UNKNOWN, NatMapping.NONE)

    def _udp_observers(self) -> list[tuple[str, int]]:
        """Relays and bootstraps answer questions over UDP on the number of their TCP port."""
        connected = {peer for peer in self.keeping.configured if self._swarm.direct(peer)} | set(self.keeping.held)
        found = []
        for peer in connected:
            address = self.keeping.address_of(peer)
            endpoint = parse(str(address)) if address is not None else None
            if endpoint is not None and endpoint.transport == "tcp":
                found.append((endpoint.host, endpoint.port))
        return sorted(found)

    def _guesses(self, peer: ID) -> list[Multiaddr]:
        """`peer` at our own relays: peers of one mesh mostly share one, and a relay that does not know it says so at once."""
        relays = [relay for relay in self.keeping.held if relay != peer]
        found = [f"{self.keeping.held[relay][1][0]}/p2p-circuit/p2p/{peer.to_base58()}" for relay in relays[:_MAX_GUESSES]]
        return [Multiaddr(address) for address in found]

    async def _sees(self, peer: ID, host: str) -> bool:
        over = relayed(self._swarm, peer)
        addresses = over.get_transport_addresses() if over is not None else []
        if not addresses:
            return False
        relay, _ = relay_of(str(addresses[0]).split("/p2p-circuit")[0])
        return await self._witnessing.sees(relay, peer, host)

    def _ports_to_try(self) -> list[int]:
        """Outside ports at which we may be dialled: as mapped, as seen, then as we listen."""
        mapped = self.mapper.to_prove(Protocol.TCP)
        seen = [endpoint.port for one in self.observations.tcp.observations if (endpoint := parse(one.address)) is not None]
        return list(dict.fromkeys([*([mapped] if mapped else []), *reversed(seen), *sorted(self.observations.listening_ports())]))

    def _moved(self) -> None:
        self.keeping.moved()
        for told in self.moved:
            told()

    def _network_changed(self, lost: frozenset[str]) -> None:
        if lost:
            self._swarm.dialing.again()  # also where no connection hung on them yet, which is when answers are waited for
        self.observations.forget()
        self.udp.forget()
        self.reachability.forget()
        self.mapper.forget()
        self.stranger_came = False

    def _mappable(self) -> dict[Protocol, int]:
        """The ports that a gateway could pass on: the first that listens on IPv4, and UDP beside it."""
        ports = [port for host, port in self.observations.listening() if ":" not in host and not host.startswith("127.")]
        udp = [Protocol.UDP] if any(opened.port in ports[:1] for opened in self.udp.ports) else []
        return dict.fromkeys((Protocol.TCP, *udp), ports[0]) if ports else {}

    def _watch(self, conn: INetConn, opened: bool) -> None:
        muxed = conn.muxed_conn
        if opened:
            self._note_stranger(conn)
        if opened and isinstance(muxed, MuxedConnection) and self._came_by_mapping(conn, muxed):
            muxed.path_kind = PathKind.MAPPED
        if opened and muxed.peer_id in self.keeping.configured:
            self.udp.look_again()
            self.reachability.look_again()

    def _note_stranger(self, conn: INetConn) -> None:
        muxed = conn.muxed_conn
        remote = muxed.get_remote_address() if isinstance(muxed, MuxedConnection) else None
        if remote is None or muxed.is_initiator or conn.get_connection_type() == ConnectionType.RELAYED:
            return
        host = remote[0]
        if is_public(host) and host not in self._swarm.tcp.contacted and host not in self.observations.outside_hosts():
            self.stranger_came = True

    def _came_by_mapping(self, conn: INetConn, muxed: MuxedConnection) -> bool:
        """Whether a connection came in by the gateway's word: from outside, neither punched nor relayed."""
        if muxed.path_kind is not None or muxed.is_initiator or conn.get_connection_type() == ConnectionType.RELAYED:
            return False
        addresses = [str(address) for address in conn.get_transport_addresses()]
        outside = any(reach_of(address) is Reach.PUBLIC for address in addresses)
        return outside and self.mapper.outside(Protocol.TCP) is not None

    # -- relayed connections -----------------------------------------------------------------------------------------

    async def dial(self, peer: ID, address: Multiaddr) -> INetConn:
        """Connect to `peer` through the relay that `address` names; raises SwarmException."""
        text = str(address).split("/p2p-circuit")[0]
        relay, relay_address = relay_of(text)
        if relay in (self._host.get_id(), peer):
            raise SwarmException("a relay is a third peer")
        if not self._swarm.direct(relay):
            await self.keeping.connect_from_listening_port(relay, relay_address)
        stream = await self._host.new_stream(relay, [HOP])
        try:
            with trio.fail_after(self.options.message_timeout):
                await send(stream, pb.HopMessage(type=pb.HopMessage.CONNECT, peer=pb.PeerId(id=peer.to_bytes())))
                answer = await receive(stream, pb.HopMessage)
            if answer.status != pb.OK:
                raise SwarmException(f"the relay refused with {status_name(answer.status)}")
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
        asked = request.type == pb.StopMessage.CONNECT and is_peer_id(ID(request.peer.id).to_base58())
        known = asked and relay in self.keeping.held
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
        known = self.keeping.held.get(relay)
        via = known[1][0] if known and known[1] else with_peer(without_peer(_remote_address(stream)), relay.to_base58())
        address = Multiaddr(f"{via}/p2p-circuit/p2p/{peer.to_base58()}")
        return RawConnection(_Circuit(stream), initiator, ConnectionType.RELAYED, [address])


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


def _remote_address(stream: Any) -> str:
    addresses = stream.muxed_conn.get_transport_addresses()
    return str(addresses[0]) if addresses else ""
