"""The libp2p implementation of `Transport`: one hardened host, its services, their life and bookkeeping. Decides no policy."""

import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from random import Random, SystemRandom
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.abc import INetConn, INetStream
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from daemon.transport.addresses import bound_addresses, check_listen_address, dialable, expand, with_peer
from daemon.transport.gossip import Gossip
from daemon.transport.hardening import build_host, quiet_library_logs
from daemon.transport.interface import (
    GossipHandler,
    MeshGate,
    Path,
    PathKind,
    PathListener,
    PeerListener,
    Stream,
    StreamHandler,
    TransportError,
)
from daemon.transport.kademlia import Kademlia
from daemon.transport.kademlia_wire import library_id
from daemon.transport.muxed_stream import MuxedStream
from daemon.transport.muxer import MuxedConnection
from daemon.transport.net_report import net_report
from daemon.transport.options import TransportCounters, TransportOptions, parse_address
from daemon.transport.relay import RelayOptions, RelayService
from daemon.transport.streams import Libp2pStream, UnsupportedError, open_stream
from daemon.transport.swarm import address_of
from dht.record_store import Opened, OpenRecord
from protocol.wire.envelope import public_bytes
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import PeerId, is_peer_id, peer_id_of, short

_PING = "/ipfs/ping/1.0.0"
_PING_BYTES = 32

ADDRESS_TTL = 24 * 3600
"""Seconds that an address given to `connect` stays known."""


class Libp2pTransport:
    """The mesh over TCP, Noise and Yamux. Build it, register handlers, then `run` it (or enter `running()`)."""

    def __init__(
        self,
        key: Ed25519PrivateKey,
        options: TransportOptions | None = None,
        open_record: OpenRecord | None = None,
        rng: Random | None = None,
        gate: MeshGate | None = None,
    ) -> None:
        """Raises ValueError where an option is malformed. `open_record` says which DHT records are valid (default: none).

        With a `gate` only members of that private mesh are spoken to.
        """
        self._options = options or TransportOptions()
        self._options.validate()
        self._peer_id = peer_id_of(public_bytes(key))
        self.counters = TransportCounters()
        self._host = build_host(key, self._options, self.counters, self._advertised, gate)
        self._swarm = self._host.swarm
        self._swarm.watchers.append(self._watch)
        self._listeners: list[PeerListener] = []
        self._path_listeners: list[PathListener] = []
        self._gossip = Gossip(self._host, gate=gate)
        rng = rng or SystemRandom()
        self._kademlia = Kademlia(self._host, open_record or _refuse_record, self.addresses, rng)
        relaying = RelayOptions(
            serve=self._options.serve_relay,
            max_reservations=self._options.relay_reservations,
            max_circuits=self._options.relay_circuits,
            max_circuits_per_peer=self._options.relay_peer_circuits,
            max_circuit_bytes=self._options.relay_circuit_bytes,
            rate=self._options.relay_rate,
            punch=self._options.punch,
            udp=self._options.udp,
            birthday=self._options.birthday,
            port_mapping=self._options.port_mapping,
        )
        self._relay = RelayService(self._host, self._options.relays, rng, relaying)
        self._host.slots.limit_of = self._stream_limit
        self._relayed_since: dict[ID, float] = {}
        self._relayed_for: dict[ID, float] = {}
        self._paths_ended: Counter[str] = Counter()

    # ---- life

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve until cancelled; started once every listen address answers. Raises TransportError where one cannot."""
        quiet_library_logs()
        listen = [parse_address(text) for text in self._options.listen]
        for address in listen:
            check_listen_address(address)
        refused: list[Multiaddr] = []
        async with self._host.run([]), trio.open_nursery() as nursery:
            for service in (self._host.run_tasks, self._gossip.run, self._kademlia.run, self._relay.run):
                await nursery.start(service)
            refused = [address for address in listen if not await self._swarm.listen(address)]
            if not refused:
                await self._relay.open_udp()
                task_status.started()
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()
        raise TransportError(f"cannot listen on {refused[0]}")

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Libp2pTransport"]:
        """`run` in the background of an `async with` block."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.run)
            yield self
            nursery.cancel_scope.cancel()

    # ---- who and where

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs to give to others, each ending in /p2p/<our id>; announced ones first, relayed ones last."""
        return tuple(with_peer(address, self._peer_id) for address in self._advertised([]))

    def _advertised(self, _candidates: list[Multiaddr]) -> list[Multiaddr]:
        announced = [parse_address(text) for text in self._options.announce]
        # The library asks already while the host is being built, when there is nothing to say.
        relay: RelayService | None = getattr(self, "_relay", None)
        if relay is None:
            return announced
        own = [*expand(bound_addresses(self._swarm)), *map(Multiaddr, (*relay.reached_at(), *relay.addresses()))]
        return list(dict.fromkeys([*announced, *own]))

    def service_counters(self) -> Mapping[str, Mapping[str, int]]:
        """Totals since start, by service; those of connections and streams are in `counters`. "paths": opened, by kind."""
        puncher = self._relay.puncher
        return {
            "gossip": self._gossip.counters,
            "kademlia": self._kademlia.counters,
            "relay": self._relay.hop.counters,
            "punch": {"succeeded": puncher.succeeded, "failed": puncher.failed} | dict(self._relay.udp.counters),
            "paths": self._paths_ended + Counter(str(_path(conn, None).kind) for conn in self._swarm.get_connections()),
        }

    @property
    def relay(self) -> RelayService:
        """Reservations and relayed dials."""
        return self._relay

    def _stream_limit(self, peer: ID) -> int:
        reserved = PeerId(str(peer)) in self._relay.reservations
        return self._options.max_inbound_streams_per_relay if reserved else self._options.max_inbound_streams_per_peer

    def paths(self) -> Mapping[PeerId, Path]:
        """The best live path of every connected peer."""
        best: dict[PeerId, Path] = {}
        for peer in self._swarm.connections:
            if live := self._swarm.live(peer):
                best[PeerId(str(peer))] = _path(self._swarm.best(live), self._relayed_for.get(peer))
        return best

    def path(self, peer: PeerId) -> Path | None:
        """The best live path to one peer; None where it is not connected."""
        target = _library_id(peer)
        live = self._swarm.live(target)
        return _path(self._swarm.best(live), self._relayed_for.get(target)) if live else None

    def inbound_streams(self) -> Mapping[PeerId, int]:
        """Streams that each peer holds open here; of every protocol, the library's included."""
        return {PeerId(str(peer)): count for peer, count in self._host.slots.held.items()}

    def listen_to_peers(self, listener: PeerListener) -> None:
        """Call `listener` when a peer's first path opens and when its last one is gone."""
        self._listeners.append(listener)

    def listen_to_paths(self, listener: PathListener) -> None:
        """Call `listener` when a better path to a connected peer stands than the one it had."""
        self._path_listeners.append(listener)

    def listen_to_moves(self, listener: Callable[[], None]) -> None:
        """Call `listener` when our own network changed and connections were lost by it."""
        self._relay.moved.append(listener)

    def _watch(self, conn: INetConn, opened: bool) -> None:
        peer = conn.muxed_conn.peer_id
        remaining = len(self._swarm.connections.get(peer, ()))
        if not opened:
            self._paths_ended[str(_path(conn, None).kind)] += 1
        if opened and conn.get_connection_type() == ConnectionType.RELAYED:
            if remaining == 1:
                self._relayed_since[peer] = trio.current_time()
        elif opened and peer in self._relayed_since:
            self._relayed_for[peer] = trio.current_time() - self._relayed_since.pop(peer)
            for better in self._path_listeners:
                better(PeerId(str(peer)))
        elif not remaining:
            self._relayed_since.pop(peer, None)
            self._relayed_for.pop(peer, None)
        if remaining == (1 if opened else 0):
            for listener in self._listeners:
                listener(PeerId(str(peer)), opened)

    # ---- connections and streams

    async def connect(self, peer: PeerId, addresses: Sequence[str] = ()) -> None:
        """Reach `peer` at the given and the known addresses; at once if connected; raises TransportError. Bound by 10 s."""
        if peer == self._peer_id:
            raise TransportError("a peer cannot connect to itself")
        target = _library_id(peer)
        given = dialable(peer, addresses)
        if given:
            self._host.peerstore.add_addrs(target, given, ADDRESS_TTL)
        try:
            with trio.fail_after(self._options.connect_timeout + 1):
                if given and target in self._relay.keeping.configured:
                    await self._relay.keeping.connect_from_listening_port(target, given[0])
                else:
                    await self._swarm.dialing.dial(target, given)
        except trio.TooSlowError:
            raise TransportError(f"{short(peer)} could not be reached in {self._options.connect_timeout:g} s") from None
        except SwarmException as error:
            raise TransportError(f"{short(peer)} could not be reached: {error}") from None

    async def ping(self, peer: PeerId) -> float:
        """Seconds of one round trip over the best path to `peer`, connecting first where needed; raises TransportError."""
        if self.path(peer) is None:
            await self.connect(peer)
        payload = os.urandom(_PING_BYTES)
        for conn in sorted(self._swarm.live(_library_id(peer)), key=self._swarm.preference, reverse=True):
            if isinstance(conn.muxed_conn, MuxedConnection):
                return await _round_trip(peer, conn.muxed_conn, payload, self._options.stream_open_timeout)
        raise TransportError(f"{short(peer)} is not connected")

    def netcheck(self) -> dict[str, Any]:
        """What is known of our place in the network, for people; None where it is not known."""
        return net_report(self._relay)

    async def disconnect(self, peer: PeerId) -> None:
        """Close every path to `peer`; no error where there is none."""
        async with trio.open_nursery() as nursery:
            for conn in self._swarm.get_connections(_library_id(peer)):
                nursery.start_soon(conn.close)

    async def open_stream(self, peer: PeerId, protocol: str) -> Stream:
        """A new stream to `peer`, connecting first where needed; tries its paths in turn; raises TransportError."""
        target = _library_id(peer)
        if not self._swarm.live(target):
            await self.connect(peer)
        failure: TransportError | None = None
        for conn in sorted(self._swarm.live(target), key=self._swarm.preference, reverse=True):
            muxed = conn.muxed_conn
            if not isinstance(muxed, MuxedConnection):
                continue
            try:
                with trio.fail_after(self._options.stream_open_timeout):
                    return await open_stream(peer, muxed, protocol)
            except UnsupportedError:
                raise
            except TransportError as error:
                failure = error
            except trio.TooSlowError:
                failure = TransportError(f"{short(peer)} gave no answer on {protocol} in {self._options.stream_open_timeout:g} s")
        raise failure or TransportError(f"{short(peer)} is not connected")

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """Serve inbound streams of `protocol`; the stream is released once `handler` returns, and reset where it raises."""

        async def serve(stream: INetStream) -> None:
            muxed = stream.muxed_stream  # type: ignore[attr-defined]
            assert isinstance(muxed, MuxedStream)  # noqa: S101 - for the type checker
            await handler(Libp2pStream(PeerId(str(stream.muxed_conn.peer_id)), muxed))
            muxed.release()

        self._host.set_stream_handler(TProtocol(protocol), serve)

    # ---- gossip and records

    async def subscribe(self, topic: str, handler: GossipHandler) -> None:
        await self._gossip.subscribe(topic, handler)

    async def publish(self, topic: str, payload: bytes) -> None:
        """Gossip `payload` (at most 64 KiB) to every subscriber; no error where nobody listens."""
        await self._gossip.publish(topic, payload)

    async def put_record(self, key: str, value: bytes) -> int:
        return await self._kademlia.put_record(key, value)

    async def get_record(self, key: str) -> bytes | None:
        return await self._kademlia.get_record(key)

    async def provide(self, key: str) -> None:
        await self._kademlia.provide(key)

    def unprovide(self, key: str) -> None:
        self._kademlia.unprovide(key)

    async def find_providers(
        self, key: str, credible: Callable[[PeerId], bool] = lambda _: True
    ) -> Mapping[PeerId, tuple[str, ...]]:
        return await self._kademlia.find_providers(key, credible)

    async def look_up(self, key: str) -> dict[str, Any]:
        return await self._kademlia.look_up(key)


def _refuse_record(_key: str, _value: bytes, _wall: int) -> Opened:
    raise RemoteError(Code.REFUSED, "this peer keeps no records")


def _library_id(peer: PeerId) -> ID:
    if not is_peer_id(peer):
        raise TransportError(f"{peer[:80]!r} is not a peer id")
    return library_id(peer)


async def _round_trip(peer: PeerId, muxed: MuxedConnection, payload: bytes, timeout: float) -> float:
    """The negotiation and the payload travel together, so that this is one round trip."""
    began = trio.current_time()
    try:
        with trio.fail_after(timeout):
            stream = await open_stream(peer, muxed, _PING, early=payload)
            echoed = b""
            while len(echoed) < len(payload) and (received := await stream.receive_some()):
                echoed += received
            took = trio.current_time() - began
            await stream.aclose()
    except trio.TooSlowError:
        raise TransportError(f"{short(peer)} gave no answer to a ping in {timeout:g} s") from None
    if echoed != payload:
        raise TransportError(f"{short(peer)} answered a ping with something else")
    return took


def _path(conn: INetConn, relayed_for: float | None) -> Path:
    muxed = conn.muxed_conn
    own = muxed if isinstance(muxed, MuxedConnection) else None
    address = address_of(conn)
    relayed = conn.get_connection_type() == ConnectionType.RELAYED
    kind = own.path_kind if own is not None and own.path_kind is not None else PathKind.RELAYED if relayed else PathKind.DIRECT
    return Path(
        kind=kind,
        transport="quic" if "/udp/" in address else "tcp",
        address=address,
        rtt=own.rtt if own is not None else None,
        since=own.since if own is not None else 0.0,
        inbound=not muxed.is_initiator,
        relayed_for=None if relayed else relayed_for,
    )
