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
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.utils import encode_varint_prefixed
from libp2p.utils.varint import read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from daemon.transport.interface import RecordChooser, RecordValidator, TransportError
from daemon.transport.kademlia_server import KademliaOptions, RecordRules, Server
from nat.addresses import MAX_ADDRESSES, dial_order
from protocol.wire.ids import PeerId, is_peer_id, sha256

__all__ = ["Kademlia", "KademliaOptions"]

log = logging.getLogger(__name__)
_ADDRESS_LIFETIME = 600
_MULTIHASH_SHA256 = b"\x12\x20"

Take = Callable[[ID, Message], bool]
"""(peer, reply) -> whether enough is known and the walk may end."""


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

        Raises TransportError where the record is not valid, or where there are peers and none of them took it.
        """
        try:
            self._rules.validate(key, value)
        except ValueError as error:
            raise TransportError(str(error)) from None
        name = key.encode()
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
            await self._walk(name, Message(type=Message.MessageType.GET_VALUE, key=name), take)
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

    async def find_providers(self, key: str) -> Mapping[PeerId, tuple[str, ...]]:
        """Peers, us excluded, that claim to provide `key`, with the addresses they gave. Unlike the library it always asks."""
        name = _provider_key(key)
        found: dict[PeerId, tuple[str, ...]] = {}
        for own in self._server.provider_store.get_providers(name):
            self._note_provider(found, own.peer_id, [str(address) for address in own.addrs])

        def take(_: ID, reply: Message) -> bool:
            for provider in reply.providerPeers[: self._options.closest]:
                self._note_provider(found, ID(provider.id), _texts(provider.addrs))
            return len(found) >= self._options.closest

        with self._bounded(f"looking for providers of {key}", partial=True):
            await self._walk(name, Message(type=Message.MessageType.GET_PROVIDERS, key=name), take)
        return found

    # -- the walk ----------------------------------------------------------------------------------------------------

    async def _walk(self, target: bytes, question: Message, take: Take | None = None, width: int = 0) -> list[ID]:
        """Ask ever closer peers until all of the closest answered or `take` has enough; those that answered, nearest first."""
        width = width or self._options.closest
        known = set(self._server.routing_table.find_local_closest_peers(target, width))
        if len(known) < width:
            known |= set(self._host.get_connected_peers())
        known.discard(self._me)
        asked: set[ID] = set()
        answered: set[ID] = set()
        running: set[ID] = set()
        progress = trio.Event()
        enough = False

        async def ask(peer: ID) -> None:
            nonlocal progress, enough
            reply = await self._ask(peer, question)
            running.discard(peer)
            if reply is None:
                known.discard(peer)
            else:
                answered.add(peer)
                known.update(self._closer(reply))
                enough = enough or (take is not None and take(peer, reply))
            progress.set()

        async with trio.open_nursery() as nursery:
            while not enough:
                closest = sort_peer_ids_by_distance(target, list(known))[:width]
                for peer in closest:
                    if peer not in asked and len(running) < self._options.parallel:
                        asked.add(peer)
                        running.add(peer)
                        nursery.start_soon(ask, peer)
                if not running.intersection(closest):
                    break
                await progress.wait()
                progress = trio.Event()
            nursery.cancel_scope.cancel()
        return sort_peer_ids_by_distance(target, list(answered))[:width]

    def _closer(self, reply: Message) -> list[ID]:
        peers = []
        for entry in reply.closerPeers[: self._options.closest]:
            if not entry.id or entry.id == self._me.to_bytes():
                continue
            peer = ID(entry.id)
            addresses = [Multiaddr(text) for text in dial_order(_texts(entry.addrs), self._addresses())]
            if addresses and is_peer_id(peer.to_base58()):
                self._host.get_peerstore().add_addrs(peer, addresses, _ADDRESS_LIFETIME)
                peers.append(peer)
        return peers

    async def _ask(self, peer: ID, question: Message) -> Message | None:
        """One request and its reply within `query_timeout`; None, and out of the table, where it failed."""
        reply: Message | None = None
        with trio.move_on_after(self._options.query_timeout):
            try:
                stream = await self._host.new_stream(peer, [PROTOCOL_ID])
                try:
                    await stream.write(encode_varint_prefixed(question.SerializeToString()))
                    answer = Message()
                    answer.ParseFromString(await read_varint_prefixed_bytes_limited(stream, self._options.max_message))
                    reply = answer if answer.type == question.type else None
                finally:
                    with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
                        await stream.close()
            except Exception as error:  # noqa: BLE001 - unreachable, refused or garbage: all mean no answer
                log.debug("%s does not answer the DHT: %r", peer, error)
        if reply is None:
            self._server.routing_table.remove_peer(peer)
        else:
            await self._remember(peer)
        return reply

    async def _remember(self, peer: ID) -> None:
        addresses = self._host.get_peerstore().addrs(peer) if peer in self._host.get_peerstore().peers_with_addrs() else []
        await self._server.routing_table.add_peer(PeerInfo(peer, list(addresses)), skip_server_mode_check=True)

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
        closest = await self._walk(target, Message(type=Message.MessageType.FIND_NODE, key=target))
        confirmed = 0
        limit = trio.CapacityLimiter(self._options.parallel)

        async def tell(peer: ID) -> None:
            nonlocal confirmed
            async with limit:
                confirmed += await self._ask(peer, question) is not None

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
        reply = await self._ask(peer, Message(type=Message.MessageType.FIND_NODE, key=self._me.to_bytes()))
        if reply is not None and (self._closer(reply) or self.peers == 1):
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
        await self._walk(own, Message(type=Message.MessageType.FIND_NODE, key=own), width=self._options.refresh_width)

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


def _texts(addresses: Sequence[bytes]) -> list[str]:
    texts = []
    for raw in addresses[:MAX_ADDRESSES]:
        try:
            texts.append(str(Multiaddr(raw)))
        except Exception as error:  # noqa: BLE001 - the library raises many kinds for bytes that are no multiaddr
            log.debug("not an address: %r", error)
    return texts
