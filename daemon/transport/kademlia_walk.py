"""Walking the DHT: asking ever closer peers, each within a bound. Decides whom to ask next and who leaves the routing table."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import trio
from libp2p.abc import INetStream
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.utils import encode_varint_prefixed
from libp2p.utils.varint import read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from daemon.transport.kademlia_server import KademliaOptions
from nat.addresses import MAX_ADDRESSES, dial_order
from protocol.wire.ids import is_peer_id

log = logging.getLogger(__name__)
_ADDRESS_LIFETIME = 600

Take = Callable[[ID, Message], bool]
"""(peer, reply) -> whether enough is known and the walk may end."""


class Walker:
    """Asks peers over one host; `table` is the library's routing table, which only answers put a peer in."""

    def __init__(self, host: Any, table: Any, addresses: Callable[[], Sequence[str]], options: KademliaOptions) -> None:
        self._host = host
        self._me: ID = host.get_id()
        self._table = table
        self._addresses = addresses
        self._options = options

    async def walk(self, target: bytes, question: Message, take: Take | None = None, width: int = 0) -> list[ID]:
        """Ask ever closer peers until all of the closest answered or `take` has enough; those that answered, nearest first."""
        width = width or self._options.closest
        known = set(self._table.find_local_closest_peers(target, width))
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
            reply = await self.ask(peer, question)
            running.discard(peer)
            if reply is None:
                known.discard(peer)
            else:
                answered.add(peer)
                try:
                    known.update(self.closer(reply))
                    enough = enough or (take is not None and take(peer, reply))
                except Exception as error:  # noqa: BLE001 - garbage in one reply leaves the other replies
                    log.debug("a DHT reply of %s is unusable: %r", peer, error)
            progress.set()

        async with trio.open_nursery() as nursery:
            while not enough:
                closest = sort_peer_ids_by_distance(target, list(known))[:width]
                waiting = [peer for peer in closest if peer not in asked]
                for peer in waiting[: self._options.parallel - len(running)]:
                    asked.add(peer)
                    running.add(peer)
                    nursery.start_soon(ask, peer)
                if not waiting and not running.intersection(closest):
                    break
                await progress.wait()
                progress = trio.Event()
            nursery.cancel_scope.cancel()
        return sort_peer_ids_by_distance(target, list(answered))[:width]

    def closer(self, reply: Message) -> list[ID]:
        """Peers of a reply that can be asked: connected, or with an address worth dialing, which is noted."""
        connected = set(self._host.get_connected_peers())
        ours: Sequence[str] | None = None
        peers = []
        for entry in reply.closerPeers[: self._options.closest]:
            peer = ID(entry.id)
            if peer == self._me or not entry.id:
                continue
            if peer not in connected:
                ours = self._addresses() if ours is None else ours
                addresses = dial_order(texts_of(entry.addrs), ours)
                if not addresses or not is_peer_id(peer.to_base58()):
                    continue
                self._host.get_peerstore().add_addrs(peer, [Multiaddr(text) for text in addresses], _ADDRESS_LIFETIME)
            peers.append(peer)
        return peers

    async def ask(self, peer: ID, question: Message) -> Message | None:
        """One request and its reply within `query_timeout`; None, and out of the table, where it failed."""
        reply: Message | None = None
        with trio.move_on_after(self._options.query_timeout):
            try:
                stream = await self._host.new_stream(peer, [PROTOCOL_ID])
                try:
                    await stream.write(encode_varint_prefixed(question.SerializeToString()))
                    reply = await self._answer(stream, question)
                finally:
                    with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
                        await stream.close()
            except Exception as error:  # noqa: BLE001 - unreachable, refused or garbage: all mean no answer
                log.debug("%s does not answer the DHT: %r", peer, error)
        if reply is None:
            self._table.remove_peer(peer)
        else:
            await self._remember(peer)
        return reply

    async def _answer(self, stream: INetStream, question: Message) -> Message | None:
        if question.type == Message.MessageType.ADD_PROVIDER:
            return question  # the Kademlia specification has no answer to it; py-libp2p alone sends one
        answer = Message()
        answer.ParseFromString(await read_varint_prefixed_bytes_limited(stream, self._options.max_message))
        return answer if answer.type == question.type else None

    async def _remember(self, peer: ID) -> None:
        addresses = self._host.get_peerstore().addrs(peer) if peer in self._host.get_peerstore().peers_with_addrs() else []
        await self._table.add_peer(PeerInfo(peer, list(addresses)), skip_server_mode_check=True)


def texts_of(addresses: Sequence[bytes]) -> list[str]:
    """The addresses of a message as text, without those that are none."""
    texts = []
    for raw in addresses[:MAX_ADDRESSES]:
        try:
            texts.append(str(Multiaddr(raw)))
        except Exception as error:  # noqa: BLE001 - the library raises many kinds for bytes that are no multiaddr
            log.debug("not an address: %r", error)
    return texts
