"""The DHT: put, get, provide and find with a bound on each, and a routing table filled as soon as a peer connects.

Serving strangers is kademlia_server's; whether a record is valid is the caller's.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import trio
from libp2p.abc import INotifee
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from daemon.transport.interface import RecordChooser, RecordValidator, TransportError
from daemon.transport.kademlia_server import KademliaOptions, RecordRules, Server
from daemon.transport.kademlia_walk import Walker, texts_of
from nat.addresses import MAX_ADDRESSES, dial_order
from protocol.wire.ids import PeerId, is_peer_id, sha256

__all__ = ["Kademlia", "KademliaOptions"]

log = logging.getLogger(__name__)
_MULTIHASH_SHA256 = b"\x12\x20"


class Kademlia:
    """A DHT node in server mode. Build it before the host listens; `run` must be running before anything else is called."""

    def __init__(
        self,
        host: Any,
        validator: RecordValidator,
        chooser: RecordChooser,
        addresses: Callable[[], Sequence[str]],
        rng: Random,
        options: KademliaOptions | None = None,
    ) -> None:
        self._host = host
        self._me: ID = host.get_id()
        self._addresses = addresses
        self._rng = rng
        self._options = options or KademliaOptions()
        self._rules = RecordRules(validator, chooser, self._options)
        self._server = Server(host, self._rules, self._options, rng)
        self._walker = Walker(host, self._server.routing_table, addresses, self._options)
        self._provided: set[bytes] = set()
        self._arrivals, self._arrived = trio.open_memory_channel[ID](256)
        self._refresh_due = trio.Event()
        host.get_network().register_notifee(_Arrivals(self._arrivals))
        # The library warns several lines per unreachable peer and request; `counters` say the same in bounded space.
        logging.getLogger("libp2p.kad_dht").setLevel(logging.CRITICAL)

    @property
    def counters(self) -> Mapping[str, int]:
        """Inbound streams refused, expired, paced and failed, since the start."""
        return self._server.counters

    @property
    def peers(self) -> int:
        """Peers in the routing table."""
        return self._server.routing_table.size()

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Greet peers as they connect, keep the table and our own records alive, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._greet_arrivals, nursery)
            nursery.start_soon(self._maintain)
            task_status.started()

    # -- operations --------------------------------------------------------------------------------------------------

    async def put_record(self, key: str, value: bytes) -> None:
        """Store `value` here and with the peers closest to `key`; kept here alone while there is no other peer.

        Raises TransportError where the record is not valid, where we hold a better one, or where no other peer took it.
        """
        try:
            self._rules.validate(key, value)
        except ValueError as error:
            raise TransportError(str(error)) from None
        name = key.encode()
        held = self._server.value_store.get(name)
        if held is not None and self._rules.select(key, [held.value, value]) == 0:
            raise TransportError(f"a better record stands under {key}")
        self._server.value_store.put(name, value)
        with self._bounded(f"storing {key}"):
            asked, took = await self._store(name)
        if asked and not took:
            raise TransportError(f"none of {asked} peers took the record {key}")

    async def get_record(self, key: str) -> bytes | None:
        """The best valid value that `answers` peers, or all close ones, hold under `key`; None where nobody has one."""
        name, values = key.encode(), list[bytes]()
        own = self._server.value_store.get(name)
        if own is not None:
            values.append(own.value)
        heard = 0

        def take(_: ID, reply: Message) -> bool:
            nonlocal heard
            if reply.HasField("record") and reply.record.key == name and self._valid(key, reply.record.value):
                heard += 1
                values.append(reply.record.value)
            return heard >= self._options.answers

        with self._bounded(f"looking up {key}", partial=True):
            await self._walker.walk(name, Message(type=Message.MessageType.GET_VALUE, key=name), take)
        distinct = list(dict.fromkeys(values))
        return distinct[self._rules.select(key, distinct)] if distinct else None

    async def provide(self, key: str) -> None:
        """Tell the peers closest to `key` that we provide it, now and every `republish` seconds from then on."""
        name = _provider_key(key)
        self._provided.add(name)
        with self._bounded(f"providing {key}"):
            asked, took = await self._announce(name)
        if asked and not took:
            raise TransportError(f"none of {asked} peers listed us as a provider of {key}")

    def unprovide(self, key: str) -> None:
        """Tell nobody any more; those that were told forget it after `provider_lifetime`."""
        name = _provider_key(key)
        self._provided.discard(name)
        self._server.provider_store.providers.get(name, {}).pop(str(self._me), None)

    async def find_providers(self, key: str) -> Mapping[PeerId, tuple[str, ...]]:
        """Peers, us excluded, that claim to provide `key`, with the addresses they gave. Unlike the library it always asks."""
        name = _provider_key(key)
        found: dict[PeerId, tuple[str, ...]] = {}
        for own in self._server.provider_store.get_providers(name):
            self._note_provider(found, own.peer_id, [str(address) for address in own.addrs])

        def take(_: ID, reply: Message) -> bool:
            for provider in reply.providerPeers[: self._options.closest]:
                self._note_provider(found, ID(provider.id), texts_of(provider.addrs))
            return len(found) >= self._options.closest

        with self._bounded(f"looking for providers of {key}", partial=True):
            await self._walker.walk(name, Message(type=Message.MessageType.GET_PROVIDERS, key=name), take)
        return found

    # -- telling the closest peers --------------------------------------------------------------------------------------

    async def _store(self, name: bytes) -> tuple[int, int]:
        kept = self._server.value_store.get(name)
        if kept is None:
            return 0, 0
        question = Message(type=Message.MessageType.PUT_VALUE, key=name, record=kept)
        question.record.ClearField("timeReceived")
        return await self._tell(name, question)

    async def _announce(self, name: bytes) -> tuple[int, int]:
        addresses = [Multiaddr(text) for text in self._addresses()[:MAX_ADDRESSES]]
        self._server.provider_store.add_provider(name, PeerInfo(self._me, addresses))
        question = Message(type=Message.MessageType.ADD_PROVIDER, key=name)
        question.providerPeers.add(id=self._me.to_bytes(), addrs=[address.to_bytes() for address in addresses])
        return await self._tell(name, question)

    async def _tell(self, target: bytes, question: Message) -> tuple[int, int]:
        """Send `question` to the closest peers; how many were asked and how many confirmed."""
        closest = await self._walker.walk(target, Message(type=Message.MessageType.FIND_NODE, key=target))
        confirmed = 0
        limit = trio.CapacityLimiter(self._options.parallel)

        async def tell(peer: ID) -> None:
            nonlocal confirmed
            async with limit:
                confirmed += await self._walker.ask(peer, question) is not None

        async with trio.open_nursery() as nursery:
            for peer in closest:
                nursery.start_soon(tell, peer)
        return len(closest), confirmed

    # -- maintenance -------------------------------------------------------------------------------------------------

    async def _greet_arrivals(self, nursery: trio.Nursery) -> None:
        async for peer in self._arrived:
            nursery.start_soon(self._greet, peer)

    async def _greet(self, peer: ID) -> None:
        """Ask a fresh peer for peers near us: that proves it serves the DHT, and fills the table 10 minutes earlier."""
        await trio.sleep(0.2)
        if self._server.routing_table.peer_in_table(peer):
            return  # we dialed it in a walk and have its answer, or it asked us
        if peer not in self._host.get_connected_peers():
            return  # it left again; asking would dial it, and greet it anew, for as long as it keeps leaving
        reply = await self._walker.ask(peer, Message(type=Message.MessageType.FIND_NODE, key=self._me.to_bytes()))
        if reply is not None and (self._walker.closer(reply) or self.peers == 1):
            self._refresh_due.set()

    async def _maintain(self) -> None:
        """Refresh after arrivals, ever more rarely while they go on, and every `refresh` seconds; republish what is ours."""
        published, pause = -math.inf, 1.0
        while True:
            with trio.move_on_after(self._options.refresh * self._rng.uniform(0.8, 1.2)) as quiet:
                await self._refresh_due.wait()
            pause = 1.0 if quiet.cancelled_caught else min(2 * pause, 60.0)
            self._refresh_due = trio.Event()
            first = self.peers <= 1
            await self._guarded(self._refresh)
            now = trio.current_time()
            if now - published > self._options.republish or first:
                published = now
                await self._guarded(self._republish)
            self._server.value_store.cleanup_expired()
            self._server.provider_store.cleanup_expired()
            await trio.sleep(pause)

    async def _refresh(self) -> None:
        own = self._me.to_bytes()
        await self._walker.walk(own, Message(type=Message.MessageType.FIND_NODE, key=own), width=self._options.refresh_width)

    async def _republish(self) -> None:
        for name in list(self._server.value_store.local_keys):
            await self._store(name)
        for name in list(self._provided):
            await self._announce(name)

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        with trio.move_on_after(60):
            try:
                await work()
            except Exception:  # a stranger's reply that trips the library must not end maintenance
                log.warning("DHT maintenance failed", exc_info=True)

    # -- small parts -------------------------------------------------------------------------------------------------

    @contextmanager
    def _bounded(self, doing: str, partial: bool = False) -> Any:
        """Bound an operation; past the time, `partial` results stand, and anything else is a TransportError."""
        with trio.move_on_after(self._options.operation_timeout) as scope:
            yield
        if scope.cancelled_caught and not partial:
            raise TransportError(f"{doing} in the DHT took longer than {self._options.operation_timeout:.0f} s")

    def _valid(self, key: str, value: bytes) -> bool:
        try:
            self._rules.validate(key, value)
        except ValueError:
            return False
        return True

    def _note_provider(self, found: dict[PeerId, tuple[str, ...]], peer: ID, addresses: Sequence[str]) -> None:
        name = peer.to_base58()
        if peer == self._me or not is_peer_id(name):
            return
        known = found.get(PeerId(name), ())
        found[PeerId(name)] = tuple(dict.fromkeys((*known, *dial_order(addresses, self._addresses()))))[:MAX_ADDRESSES]


class _Arrivals(INotifee):
    """Passes on who connected; drops rather than delays when 256 wait."""

    def __init__(self, channel: "trio.MemorySendChannel[ID]") -> None:
        self._channel = channel

    async def connected(self, network: Any, conn: Any) -> None:
        try:
            self._channel.send_nowait(conn.muxed_conn.peer_id)
        except (trio.WouldBlock, trio.BrokenResourceError):
            log.debug("an arrival was not greeted")

    async def disconnected(self, network: Any, conn: Any) -> None: ...

    async def opened_stream(self, network: Any, stream: Any) -> None: ...

    async def closed_stream(self, network: Any, stream: Any) -> None: ...

    async def listen(self, network: Any, multiaddr: Any) -> None: ...

    async def listen_close(self, network: Any, multiaddr: Any) -> None: ...


def _provider_key(key: str) -> bytes:
    """Provider keys are multihashes (libp2p kad-dht spec), so other implementations store them too."""
    return _MULTIHASH_SHA256 + sha256(key.encode())
