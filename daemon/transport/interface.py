"""The only view of the network that the daemon has: peers, streams, paths, gossip and records. No libp2p type leaks."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from protocol.wire.ids import PeerId


class PathKind(StrEnum):
    """How a peer is reached now."""

    DIRECT = "direct"
    PUNCHED = "punched"
    MAPPED = "mapped"
    RELAYED = "relayed"


@dataclass(frozen=True, slots=True)
class Path:
    """A live connection to a peer.

    `transport` is "tcp" or "quic", `address` the remote multiaddr, `rtt` in seconds (None: unknown), `since` on the trio clock.
    `relayed_for`: seconds from the first relayed connection to the direct one, None where it was not relayed at first.
    """

    kind: PathKind
    transport: str
    address: str
    rtt: float | None
    since: float
    inbound: bool
    relayed_for: float | None = None


MAX_PROOF_BYTES = 8 << 10
"""A chain of grants with room to grow."""


@dataclass(frozen=True, slots=True)
class MeshGate:
    """What a private mesh asks of a connection.

    `key` (32 bytes) is mixed into every handshake; `proof()` is what we show of our membership; `judge(peer, proof)` is why
    `peer` is not let in, or None; `topic` is put behind the name of every gossip topic; `admits(peer)` is whether what it gossips
    through others counts.
    """

    key: bytes
    proof: Callable[[], bytes]
    judge: Callable[[PeerId, bytes], str | None]
    topic: str = ""
    admits: Callable[[PeerId], bool] = lambda _: True


class TransportError(Exception):
    """The network could not do it (unreachable, closed, reset, refused). The message is one clear sentence."""


class Stream(Protocol):
    """One ordered, bidirectional byte stream to an authenticated peer. Cancelling any call never harms the connection."""

    @property
    def peer(self) -> PeerId: ...

    async def receive_some(self) -> bytes:
        """The next bytes (at most 256 KiB), b"" once the peer finished; raises TransportError on reset or loss."""

    async def send_all(self, payload: bytes) -> None:
        """Queue `payload` for the connection's writer; waits while 1 MiB is queued; raises TransportError on loss."""

    async def aclose(self) -> None:
        """Finish our direction and release the stream."""

    async def reset(self) -> None:
        """Drop both directions at once."""


WantsToSend = Callable[[bool], None]


@runtime_checkable
class PluggableStream(Stream, Protocol):
    """A stream whose connection can move the bytes by itself, which saves two turns of the event loop each way."""

    def plug(self, take: Callable[[], bytes | bytearray], arrived: Callable[[bytes | memoryview], bool | None]) -> WantsToSend:
        """From now on hand what comes to `arrived`, and ask `take` for what to send, b"" for nothing, when there is room.

        Where `arrived` says True it was not done with it, and is called with b"" after a turn of the event loop; until it is done
        nothing more is read of this peer. What had come before this call it has at once, and the caller sees to the rest.
        Returns what is to be called when `take` has something: with True where it will not have more soon, so that waiting for it
        saves nothing. Neither may wait, call back or raise. `receive_some` then tells
        the end alone, and `send_all` must not be used.
        """


StreamHandler = Callable[[Stream], Awaitable[None]]
"""Serves one inbound stream. Whatever it raises ends that stream alone and is counted."""

GossipHandler = Callable[[PeerId, bytes], bool]
"""(author, payload) -> whether the payload is valid and may travel on. Synchronous and quick.

False costs the peer that handed it over, who should have checked; blaming the author would let anyone frame it with a replay.
"""

PeerListener = Callable[[PeerId, bool], None]
"""(peer, connected): called when the first path to a peer opens and when the last one is gone."""

PathListener = Callable[[PeerId], None]
"""(peer): new streams take a better path from now on; those that are open stay where they are."""


class Transport(Protocol):
    """The mesh as one peer sees it. Two implementations: libp2p, and the in-memory mesh of tests/sim."""

    @property
    def peer_id(self) -> PeerId: ...

    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs for others, each ending in /p2p/<our id>: interface addresses, never 0.0.0.0; relay addresses last."""

    def paths(self) -> Mapping[PeerId, Path]:
        """The best live path of every connected peer."""

    def path(self, peer: PeerId) -> Path | None:
        """The best live path to one peer; None where it is not connected."""

    async def connect(self, peer: PeerId, addresses: Sequence[str] = ()) -> None:
        """Reach `peer` (known addresses are tried too); at once if connected; raises TransportError. Bound by 10 s."""

    async def disconnect(self, peer: PeerId) -> None: ...

    async def ping(self, peer: PeerId) -> float:
        """Seconds of one round trip over the best path, connecting first where needed; raises TransportError."""

    def netcheck(self) -> dict[str, Any]:
        """What is known of our place in the network, for people; None where it is not known."""

    async def open_stream(self, peer: PeerId, protocol: str) -> Stream:
        """A new stream to `peer`, connecting first where needed; raises TransportError."""

    def handle(self, protocol: str, handler: StreamHandler) -> None:
        """Serve inbound streams of `protocol`."""

    def listen_to_peers(self, listener: PeerListener) -> None: ...

    def listen_to_paths(self, listener: PathListener) -> None:
        """Call `listener` when a better path to a connected peer stands than the one it had."""

    def listen_to_moves(self, listener: Callable[[], None]) -> None:
        """Call `listener` when our own network changed and connections were lost by it: who falls silent then may be well."""

    async def subscribe(self, topic: str, handler: GossipHandler) -> None: ...

    async def publish(self, topic: str, payload: bytes) -> None:
        """Gossip `payload` (at most 64 KiB) to every subscriber; no error where nobody listens."""

    async def put_record(self, key: str, value: bytes) -> int:
        """Store a DHT record (at most 8 KiB) under "/swarmd/<kind>/<name>"; how many other peers took it.

        Raises TransportError where there are others and none did.
        """

    async def get_record(self, key: str) -> bytes | None:
        """The record, None where nobody has one; raises TransportError where too few peers answered to say so."""

    async def provide(self, key: str) -> None:
        """Say in the DHT that we provide `key`."""

    def unprovide(self, key: str) -> None:
        """Say it no more; peers that were told forget it within the hour."""

    async def find_providers(
        self, key: str, credible: Callable[[PeerId], bool] = lambda _: True
    ) -> Mapping[PeerId, tuple[str, ...]]:
        """Peers that provide `key`, with their known multiaddrs; strangers' claims, so confirm before use.

        The search goes on past peers that are not `credible`, because more is known of them than what somebody claims.
        """

    async def look_up(self, key: str) -> dict[str, Any]:
        """How a look-up of a record or of providers goes, for people: verdict, paths, every question."""
