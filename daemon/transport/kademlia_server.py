"""The serving half of the DHT: inbound streams, with a bound on each and on all of a peer. Decides how much a stranger gets."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.peer.id import ID

from daemon.transport.gossip_guard import Budgets
from daemon.transport.interface import TransportError
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
    streams_per_peer: int = 8
    streams: int = 128
    request_rate: float = 50.0
    request_burst: float = 100.0
    dialled: int = 32
    """Connections made for the DHT alone that stay open while half of all connections are taken."""


class Server:
    """Answers strangers from the node; `met` gives the contact of a connected peer, counted to where it is connected from."""

    def __init__(
        self,
        host: Any,
        node: Node,
        met: Callable[[PeerId], Contact],
        unix_ms: Callable[[], int],
        options: KademliaOptions,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._node = node
        self._met = met
        self._unix_ms = unix_ms
        self._options = options
        self._busy: Counter[PeerId] = Counter()
        self._requests = Budgets(options.request_rate, options.request_burst)
        host.set_stream_handler(PROTOCOL_ID, self._serve)

    @property
    def busy(self) -> int:
        """Streams that are served now."""
        return self._busy.total()

    async def _serve(self, net_stream: Any) -> None:
        """One inbound stream for a bounded time; too many streams of one peer, or in all, are reset at once."""
        muxed = net_stream.muxed_stream
        assert isinstance(muxed, MuxedStream)  # noqa: S101 - for the type checker
        library_id: ID = net_stream.muxed_conn.peer_id
        peer = PeerId(str(library_id))
        if self._busy[peer] >= self._options.streams_per_peer or self._busy.total() >= self._options.streams:
            self.counters["refused"] += 1
            await muxed.reset()
            return
        self._busy[peer] += 1
        stream = Libp2pStream(peer, muxed)
        ended = False
        try:
            with trio.move_on_after(self._options.stream_lifetime) as scope:
                await self._answer_all(stream)
                ended = True
            if scope.cancelled_caught:
                self.counters["expired"] += 1
        except (RemoteError, TransportError) as error:
            self.counters["failed"] += 1
            log.debug("a DHT stream of %s failed: %s", peer, error)
        finally:
            self._busy[peer] -= 1
            if not self._busy[peer]:
                del self._busy[peer]
            if ended:
                muxed.release()
            else:
                with trio.CancelScope(shield=True), trio.move_on_after(1):
                    await muxed.reset()

    async def _answer_all(self, stream: Libp2pStream) -> None:
        frames = VarintFrames()
        while received := await stream.receive_some():
            for raw in frames.feed(received):
                await self._pace(stream.peer)
                question = decode_question(raw, stream.peer)
                await stream.send_all(self._answer(question, stream.peer))
        if frames.partial:
            raise TransportError("a DHT stream ended within a message")

    def _answer(self, question: Question, peer: PeerId) -> bytes:
        asker = self._met(peer)
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
