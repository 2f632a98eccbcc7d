"""The mesh in one process's memory: the second implementation of `Transport`. Decides delivery, delay and loss.

Time is trio's, so a test under `autojump_clock` pays nothing for latency. Peers find each other by id alone, as if every look-up
succeeded; records and providers live in one dict, as if the DHT were perfect.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from daemon.transport.interface import (
    GossipHandler,
    Path,
    PathKind,
    PathListener,
    PeerListener,
    StreamHandler,
    TransportError,
)
from protocol.wire.envelope import public_bytes
from protocol.wire.ids import PeerId, peer_id_of
from protocol.wire.limits import MAX_GOSSIP_BYTES, MAX_RECORD_BYTES

BUFFER_BYTES = 1 << 20
RECEIVE_BYTES = 256 << 10
CONNECT_SECONDS = 10.0
"""How long a dial of a frozen peer hangs: the bound that `Transport.connect` promises."""


def memory_key(index: int) -> Ed25519PrivateKey:
    """The key of the peer made `index`-th (from 0), the same in every run."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"memory peer %d" % index).digest())


class _Pipe:
    """One direction of a stream: bounded, delayed, breakable."""

    def __init__(self, mesh: "MemoryMesh", sender: PeerId, receiver: PeerId) -> None:
        self._mesh = mesh
        self._ends = (sender, receiver)
        self._queue: deque[tuple[float, bytes]] = deque()
        self._held = 0
        self._finished = False
        self._broken = ""
        self._changed = trio.lowlevel.ParkingLot()

    async def send(self, payload: bytes) -> None:
        while self._held >= BUFFER_BYTES and not self._broken:
            await self._changed.park()
        if self._broken or self._finished:
            raise TransportError(self._broken or "the stream is finished")
        self._queue.append((trio.current_time() + self._mesh.latency, payload))
        self._held += len(payload)
        self.changed()
        await trio.lowlevel.checkpoint()

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._broken:
            due = self._queue[0][0] if self._queue else float("inf")
            if self._mesh.frozen.isdisjoint(self._ends):
                if due <= trio.current_time():
                    return self._take()
                if not self._queue and self._finished:
                    return b""
            else:
                due = float("inf")
            with trio.move_on_at(due):
                await self._changed.park()
        raise TransportError(self._broken)

    def _take(self) -> bytes:
        due, payload = self._queue.popleft()
        if len(payload) > RECEIVE_BYTES:
            self._queue.appendleft((due, payload[RECEIVE_BYTES:]))
            payload = payload[:RECEIVE_BYTES]
        self._held -= len(payload)
        self.changed()
        return payload

    def finish(self) -> None:
        self._finished = True
        self.changed()

    def break_off(self, reason: str) -> None:
        self._broken = self._broken or reason
        self._queue.clear()
        self._held = 0
        self.changed()

    def changed(self) -> None:
        self._changed.unpark_all()


class MemoryStream:
    """One end of a stream between two peers."""

    def __init__(self, peer: PeerId, outgoing: _Pipe, incoming: _Pipe) -> None:
        self._peer = peer
        self._outgoing = outgoing
        self._incoming = incoming

    @property
    def peer(self) -> PeerId:
        return self._peer

    async def receive_some(self) -> bytes:
        return await self._incoming.receive()

    async def send_all(self, payload: bytes) -> None:
        await self._outgoing.send(payload)

    async def aclose(self) -> None:
        self._outgoing.finish()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        self.break_off("the stream was reset")
        await trio.lowlevel.checkpoint()

    def break_off(self, reason: str) -> None:
        self._outgoing.break_off(reason)
        self._incoming.break_off(reason)

    def changed(self) -> None:
        self._outgoing.changed()
        self._incoming.changed()


@dataclass
class MemoryMesh:
    """All peers of one test, and the switches that hurt them. Call it to add peers: `alice, bob = memory_mesh(2)`.

    `latency` is one way, in seconds.
    """

    nursery: trio.Nursery
    latency: float = 0.0
    frozen: set[PeerId] = field(default_factory=set)
    peers: dict[PeerId, "MemoryTransport"] = field(default_factory=dict)
    records: dict[str, bytes] = field(default_factory=dict)
    providers: dict[str, set[PeerId]] = field(default_factory=dict)
    _cut: set[frozenset[PeerId]] = field(default_factory=set)

    def __call__(self, count: int, *, connected: bool = False) -> "list[MemoryTransport]":
        """Add `count` peers; `connected` joins every pair of the whole mesh at once."""
        made = []
        for _ in range(count):
            peer = MemoryTransport(self, len(self.peers))
            self.peers[peer.peer_id] = peer
            made.append(peer)
        if connected:
            everyone = list(self.peers.values())
            for position, one in enumerate(everyone):
                for other in everyone[:position]:
                    self.join(one, other)
        return made

    def join(self, one: "MemoryTransport", other: "MemoryTransport") -> None:
        """Connect two peers (the first dialled); nothing happens where they are connected, dead or cut apart."""
        pair = frozenset((one.peer_id, other.peer_id))
        if one.is_connected(other.peer_id) or not one.alive or not other.alive or pair in self._cut:
            return
        one.gained(other, inbound=False)
        other.gained(one, inbound=True)

    def part(self, one: PeerId, other: PeerId, reason: str = "the connection was closed") -> None:
        """Close the connection of two peers; both may dial again."""
        for here, there in ((one, other), (other, one)):
            self.peers[here].lost(there, reason)

    def cut(self, one: PeerId, other: PeerId) -> None:
        """Drop the link between two peers and refuse it until `heal`."""
        self._cut.add(frozenset((one, other)))
        self.part(one, other, "the link is down")

    def heal(self, one: PeerId, other: PeerId) -> None:
        self._cut.discard(frozenset((one, other)))

    def kill(self, peer: PeerId) -> None:
        """End a peer's process: its handlers are cancelled, its streams break at both ends, dialling it fails at once."""
        dead = self.peers[peer]
        dead.alive = False
        for other in list(dead.links):
            self.part(peer, other, "the peer is gone")
        for scope in list(dead.scopes):
            scope.cancel()

    def restart(self, peer: PeerId) -> "MemoryTransport":
        """The same identity in a new process: a fresh transport without connections, handlers or subscriptions."""
        if self.peers[peer].alive:
            self.kill(peer)
        self.peers[peer] = MemoryTransport(self, self.peers[peer].index)
        return self.peers[peer]

    def freeze(self, peer: PeerId) -> None:
        """Stop a peer as SIGSTOP does: it stays connected, but no byte or gossip leaves or reaches it, and dialling it hangs."""
        self.frozen.add(peer)

    def thaw(self, peer: PeerId) -> None:
        self.frozen.discard(peer)
        for stream in [s for link in self.peers[peer].links.values() for s in link.streams]:
            stream.changed()

    def refusal(self, one: PeerId, other: PeerId) -> str:
        """Why `one` cannot dial `other` now; "" where it can."""
        if other not in self.peers or not self.peers[other].alive:
            return "the peer is not reachable"
        return "the link is down" if frozenset((one, other)) in self._cut else ""


@dataclass
class _Link:
    path: Path
    streams: list[MemoryStream] = field(default_factory=list)


class MemoryTransport:
    """One peer of a `MemoryMesh`. `key` signs for it; `faults` counts exceptions that left its stream handlers."""

    def __init__(self, mesh: MemoryMesh, index: int) -> None:
        self.mesh = mesh
        self.index = index
        self.key = memory_key(index)
        self.alive = True
        self.faults = 0
        self.gossip_refused = 0
        self.links: dict[PeerId, _Link] = {}
        self.scopes: set[trio.CancelScope] = set()
        self._peer_id = peer_id_of(public_bytes(self.key))
        self._handlers: dict[str, StreamHandler] = {}
        self._listeners: list[PeerListener] = []
        self._path_listeners: list[PathListener] = []
        self._subscriptions: dict[str, GossipHandler] = {}

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    def addresses(self) -> tuple[str, ...]:
        high, low = divmod(self.index, 250)
        return (f"/ip4/10.0.{high}.{low + 1}/tcp/4001/p2p/{self._peer_id}",)

    def paths(self) -> Mapping[PeerId, Path]:
        return {peer: link.path for peer, link in self.links.items()}

    def path(self, peer: PeerId) -> Path | None:
        link = self.links.get(peer)
        return None if link is None else link.path

    def is_connected(self, peer: PeerId) -> bool:
        return peer in self.links

    async def connect(self, peer: PeerId, addresses: Sequence[str] = ()) -> None:
        await trio.lowlevel.checkpoint()
        self._check_alive()
        if peer == self._peer_id:
            raise TransportError("a peer does not dial itself")
        if peer in self.links:
            return
        reason = self.mesh.refusal(self._peer_id, peer)
        if not reason and not self.mesh.frozen.isdisjoint((peer, self._peer_id)):
            await trio.sleep(CONNECT_SECONDS)
            reason = "the dial ran out of time"
        await trio.sleep(2 * self.mesh.latency)
        reason = reason or self.mesh.refusal(self._peer_id, peer)
        if reason:
            raise TransportError(reason)
        self._check_alive()
        self.mesh.join(self, self.mesh.peers[peer])

    async def disconnect(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        if peer in self.links:
            self.mesh.part(self._peer_id, peer)

    async def open_stream(self, peer: PeerId, protocol: str) -> MemoryStream:
        await self.connect(peer)
        await trio.sleep(2 * self.mesh.latency)
        other = self.mesh.peers[peer]
        handler = other._handlers.get(protocol)
        if peer not in self.links:
            raise TransportError("the connection was lost")
        if handler is None:
            raise TransportError(f"the peer does not speak {protocol}")
        there, back = _Pipe(self.mesh, self._peer_id, peer), _Pipe(self.mesh, peer, self._peer_id)
        mine, theirs = MemoryStream(peer, there, back), MemoryStream(self._peer_id, back, there)
        self.links[peer].streams.append(mine)
        other.links[self._peer_id].streams.append(theirs)
        self.mesh.nursery.start_soon(other.serve, handler, theirs)
        return mine

    async def serve(self, handler: StreamHandler, stream: MemoryStream) -> None:
        """Run a handler inside this peer's life; what it raises ends the stream alone."""
        with trio.CancelScope() as scope:
            self.scopes.add(scope)
            try:
                await handler(stream)
            except TransportError:
                pass
            except Exception:  # noqa: BLE001 - the interface says so: counted, ends that stream alone
                self.faults += 1
                stream.break_off("the stream was reset")
            finally:
                self.scopes.discard(scope)

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        self._handlers[protocol] = handler

    def listen_to_peers(self, listener: PeerListener) -> None:
        self._listeners.append(listener)

    async def ping(self, peer: PeerId) -> float:
        if peer not in self.links:
            await self.connect(peer)
        await trio.sleep(2 * self.mesh.latency)
        return 2 * self.mesh.latency

    def netcheck(self) -> dict[str, Any]:
        return {"udp": None, "reachable": None, "advice": "nothing to do: a simulation", "failing_leg": None, "relays": []}

    def listen_to_paths(self, listener: PathListener) -> None:
        self._path_listeners.append(listener)

    def listen_to_moves(self, listener: Callable[[], None]) -> None:
        """Nobody moves here."""

    def improved(self, other: "MemoryTransport") -> None:
        """A better path to `other` stands; nothing else changes here, where all paths are alike."""
        for listener in self._path_listeners:
            listener(other.peer_id)

    def gained(self, other: "MemoryTransport", *, inbound: bool) -> None:
        """A connection to `other` opened."""
        rtt = 2 * self.mesh.latency
        path = Path(PathKind.DIRECT, "tcp", other.addresses()[0], rtt, trio.current_time(), inbound)
        self.links[other.peer_id] = _Link(path)
        for listener in self._listeners:
            listener(other.peer_id, True)

    def lost(self, other: PeerId, reason: str) -> None:
        """The connection to `other` is gone; its streams fail with `reason`."""
        link = self.links.pop(other, None)
        if link is None:
            return
        for stream in link.streams:
            stream.break_off(reason)
        for listener in self._listeners:
            listener(other, False)

    async def subscribe(self, topic: str, handler: GossipHandler) -> None:
        await trio.lowlevel.checkpoint()
        self._subscriptions[topic] = handler

    async def publish(self, topic: str, payload: bytes) -> None:
        """Flood over the connections, through subscribers whose handler says True; never back to the author."""
        await trio.lowlevel.checkpoint()
        self._check_alive()
        if len(payload) > MAX_GOSSIP_BYTES:
            raise TransportError(f"a gossip payload of {len(payload)} bytes")
        self.mesh.nursery.start_soon(self._flood, topic, payload)

    async def _flood(self, topic: str, payload: bytes) -> None:
        seen = {self._peer_id}
        ring: list[MemoryTransport] = [self]
        while ring:
            await trio.sleep(self.mesh.latency)
            reached: list[MemoryTransport] = []
            for peer_id in [p for forwarder in ring if forwarder.peer_id not in self.mesh.frozen for p in forwarder.links]:
                peer = self.mesh.peers[peer_id]
                if peer_id not in seen and topic in peer._subscriptions and peer_id not in self.mesh.frozen:
                    seen.add(peer_id)
                    if peer._subscriptions[topic](self._peer_id, payload):
                        reached.append(peer)
                    else:
                        peer.gossip_refused += 1
            ring = reached

    async def put_record(self, key: str, value: bytes) -> int:
        await self._dht_round_trip()
        if len(value) > MAX_RECORD_BYTES:
            raise TransportError("no peer would take the record")
        self.mesh.records[key] = value
        return len(self.mesh.peers) - 1

    async def get_record(self, key: str) -> bytes | None:
        await self._dht_round_trip()
        return self.mesh.records.get(key)

    async def provide(self, key: str) -> None:
        await self._dht_round_trip()
        self.mesh.providers.setdefault(key, set()).add(self._peer_id)

    def unprovide(self, key: str) -> None:
        self.mesh.providers.get(key, set()).discard(self._peer_id)

    async def find_providers(
        self, key: str, credible: Callable[[PeerId], bool] = lambda _: True
    ) -> Mapping[PeerId, tuple[str, ...]]:
        await self._dht_round_trip()
        return {peer: self.mesh.peers[peer].addresses() for peer in sorted(self.mesh.providers.get(key, ())) if credible(peer)}

    async def look_up(self, key: str) -> dict[str, Any]:
        await self._dht_round_trip()
        return {"key": key, "verdict": "found" if key in self.mesh.records else "absent", "steps": []}

    async def _dht_round_trip(self) -> None:
        await trio.sleep(2 * self.mesh.latency)
        self._check_alive()

    def _check_alive(self) -> None:
        if not self.alive:
            raise TransportError("this peer is stopped")
