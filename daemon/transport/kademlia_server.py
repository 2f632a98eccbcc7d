"""The serving half of the DHT: inbound streams, with a bound on each and on all of a peer. Decides how much a stranger gets."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.kad_dht.common import PROTOCOL_ID

from daemon.transport.gossip_guard import Budgets
from daemon.transport.interface import TransportError
from daemon.transport.kademlia_streams import KEPT
from daemon.transport.kademlia_wire import VarintFrames, decode_question, encode_answer, text_of_id
from daemon.transport.muxed_stream import MuxedStream
from daemon.transport.streams import Libp2pStream
from dht.contacts import Contact
from dht.kad_messages import Answer, FindNode, Question
from dht.node import Node
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId, is_peer_id

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KademliaOptions:
    """What a driver bounds; seconds and counts (research: limits and defaults, DHT rows). The machines' limits are in `dht`."""

    operation_timeout: float = 10.0
    query_timeout: float = 4.0
    closest: int = 20
    """Peers that hold a record (k of Kademlia); fewer make a test of a small mesh one of routing."""
    tell: int = 16
    """Peers that are told of a record at the same time."""
    greet_after: float = 0.2
    stream_lifetime: float = 20.0
    """Of a stream of `/ipfs/kad/1.0.0` in all."""
    kept_idle: float = 60.0
    """Of one that is kept, without a question; twice what its asker leaves it so."""
    kept_per_peer: int = 4
    streams_per_peer: int = 8
    streams: int = 128
    request_rate: float = 50.0
    request_burst: float = 100.0
    dialled: int = 32
    """Connections made for the DHT alone that stay open while half of all connections are taken."""


class Server:
    """Answers strangers from the node; `met` gives the contact of a connected peer, counted to where it is connected from.

    `wanted` is called with those that ask and would get a place in the table.
    """

    def __init__(
        self,
        host: Any,
        node: Node,
        met: Callable[[PeerId], Contact],
        unix_ms: Callable[[], int],
        options: KademliaOptions,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.wanted: Callable[[Contact], None] = lambda _: None
        self._node = node
        self._met = met
        self._unix_ms = unix_ms
        self._options = options
        self._busy: Counter[PeerId] = Counter()
        self._kept: Counter[PeerId] = Counter()
        self._requests = Budgets(options.request_rate, options.request_burst)
        host.set_stream_handler(PROTOCOL_ID, self._serve_once)
        host.set_stream_handler(TProtocol(KEPT), self._serve_kept)

    @property
    def busy(self) -> int:
        """Streams of stock nodes that are served now."""
        return self._busy.total()

    async def _serve_once(self, net_stream: Any) -> None:
        """A stream of a stock node, for a bounded time; too many of one peer, or in all, are reset at once."""
        busy, peer, options = self._busy, _peer_of(net_stream), self._options
        if busy[peer] >= options.streams_per_peer or busy.total() >= options.streams:
            await self._refuse(net_stream)
        else:
            await self._serve(net_stream, peer, busy, trio.CancelScope(deadline=trio.current_time() + options.stream_lifetime))

    async def _serve_kept(self, net_stream: Any) -> None:
        """A stream that stays open between its questions. A peer has few; all have no more than there are connections for."""
        peer = _peer_of(net_stream)
        if self._kept[peer] >= self._options.kept_per_peer:
            await self._refuse(net_stream)
        else:
            await self._serve(net_stream, peer, self._kept, trio.CancelScope(), self._options.kept_idle)

    async def _refuse(self, net_stream: Any) -> None:
        self.counters["refused"] += 1
        await net_stream.muxed_stream.reset()

    async def _serve(
        self, net_stream: Any, peer: PeerId, held: Counter[PeerId], bound: trio.CancelScope, idle: float | None = None
    ) -> None:
        """Answer until the stream ends, or `bound` does; with `idle` that is so many seconds after the latest that came."""
        muxed: MuxedStream = net_stream.muxed_stream
        held[peer] += 1
        stream = Libp2pStream(peer, muxed)
        stream.parked = idle is not None
        ended = False
        try:
            with bound:
                await self._answer_all(stream, bound, idle)
                ended = True
            if bound.cancelled_caught:
                self.counters["expired"] += 1
        except (RemoteError, TransportError) as error:
            self.counters["failed"] += 1
            log.debug("a DHT stream of %s failed: %s", peer, error)
        finally:
            held[peer] -= 1
            if not held[peer]:
                del held[peer]
            if ended:
                muxed.release()
            else:
                with trio.CancelScope(shield=True), trio.move_on_after(1):
                    await muxed.reset()

    async def _answer_all(self, stream: Libp2pStream, bound: trio.CancelScope, idle: float | None) -> None:
        frames = VarintFrames()
        while True:
            if idle is not None:
                bound.deadline = trio.current_time() + idle
            received = await stream.receive_some()
            if not received:
                break
            for number, raw in enumerate(frames.feed(received)):
                if number:
                    await trio.lowlevel.checkpoint()  # of many questions at once each takes its turn
                await self._pace(stream.peer)
                question = decode_question(raw, stream.peer)
                await stream.send_all(self._answer(question, stream.peer))
        if frames.partial:
            raise TransportError("a DHT stream ended within a message")

    def _answer(self, question: Question, peer: PeerId) -> bytes:
        asker = self._met(peer)
        if self._node.table.wants(asker):
            self.wanted(asker)
        answer = self._node.responder.answer(question, asker, trio.current_time(), self._unix_ms())
        if isinstance(question, FindNode):
            answer = self._with_target(question, answer)
        return encode_answer(question, answer)

    def _with_target(self, question: FindNode, answer: Answer) -> Answer:
        """Whoever is looked for by its id is named, though it has no place in our table (kad-dht spec)."""
        peer = PeerId(text_of_id(question.name))
        if not is_peer_id(peer) or any(contact.peer == peer for contact in answer.closer):
            return answer
        target = self._met(peer)
        return Answer((target, *answer.closer)) if target.addresses else answer

    async def _pace(self, peer: PeerId) -> None:
        while not self._requests.take(peer, trio.current_time()):
            self.counters["paced"] += 1
            await trio.sleep(1 / self._options.request_rate)


def _peer_of(net_stream: Any) -> PeerId:
    return PeerId(str(net_stream.muxed_conn.peer_id))
