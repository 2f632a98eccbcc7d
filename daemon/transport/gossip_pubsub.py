"""Stock Pubsub made safe against strangers: every inbound frame is judged before the library sees any of it.

The library keeps streams, subscriptions and queues. Judging, rates and blame are ours; what a payload means is for the handlers.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import trio
from libp2p.io.exceptions import IncompleteReadError, IOException, MessageTooLarge
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.validators import PUBSUB_SIGNING_PREFIX
from libp2p.tools.timed_cache.last_seen_cache import LastSeenCache
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from daemon.transport.gossip_guard import Budgets, Graylist, SeenMessages
from daemon.transport.gossip_mesh import GossipOptions, Router
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId, public_key_of
from protocol.wire.signature import verify

log = logging.getLogger(__name__)

MAX_TOPICS_PER_PEER = 16
MAX_TOPIC_CHARS = 128
MAX_CONTROLS_PER_RPC = 16
MAX_PARTS_PER_RPC = 2048
"""Messages, and control entries of each kind: an RPC has room for as many signed ones, and for 131,000 empty ones."""

MAX_IDS_PER_RPC = 5000
MAX_SEQNO_BYTES = 32
"""The specification's are 8 bytes. They are part of a message's id, which is kept for minutes."""

MAX_ID_BYTES = 2 * (64 + MAX_SEQNO_BYTES)
"""Author and sequence number, in the hex that some libraries put on the wire."""

_MESSAGES_PER_TURN = 16

Judge = Callable[[PeerId, str, bytes], bool | None]
"""(author, topic, payload) -> whether it may travel on; None drops it at nobody's cost."""


class GuardedPubsub(Pubsub):
    """Pubsub that reads, judges and forwards in one task per peer, and blames the peer that handed a bad message over.

    An invalid message costs its forwarder, not its author: anyone can replay a message that was valid once, and an honest
    forwarder judges before it forwards, so on the first hop the forwarder is the author.
    """

    def __init__(self, host: Any, router: Router, options: GossipOptions, judge: Judge) -> None:
        super().__init__(
            host,
            router,
            sweep_interval=3600,
            strict_signing=True,
            max_subscriptions_per_rpc=2 * MAX_TOPICS_PER_PEER,
            max_subscriptions_per_peer=MAX_TOPICS_PER_PEER,
            max_inbound_rpc_size=options.max_rpc,
        )
        self.seen_messages.stop()  # a thread per node; `seen` replaces it
        self.seen_messages = cast("LastSeenCache", _SeenView(options))
        self.options = options
        self.judge = judge
        self.scores = router.scores
        self._drop = router.drop
        self.counters: Counter[str] = Counter()
        self.graylist = Graylist(options.fault_limit, options.graylist_duration)
        self._frames = Budgets(options.rpc_rate, options.rpc_burst)
        self._authors = Budgets(options.author_rate, options.author_burst)
        self._forwarders = Budgets(options.verify_rate, options.verify_burst)
        # Nanoseconds, so that a restarted peer never repeats the sequence numbers of its last run.
        self.counter = time.time_ns()

    # -- inbound -----------------------------------------------------------------------------------------------------

    async def stream_handler(self, stream: Any) -> None:
        """Serve one inbound stream until it ends; nothing that a peer sends can raise out of here."""
        peer: ID = stream.muxed_conn.peer_id
        try:
            while True:
                await self._pace(peer)
                await self._receive(peer, await read_varint_prefixed_bytes_limited(stream, self.options.max_rpc))
        except MessageTooLarge:
            self.blame(peer, "oversized", 2.0)
        except (StreamError, IncompleteReadError, IOException, RawConnError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except Exception as error:  # noqa: BLE001 - DecodeError and whatever else garbage provokes in the library
            log.debug("gossip from %s: %r", peer, error)
            self.blame(peer, "malformed", 2.0)
        with trio.move_on_after(1):
            try:
                await stream.reset()
            except Exception as error:  # noqa: BLE001 - it is gone either way
                log.debug("reset: %r", error)
        if not self._peer_is_connected(peer):
            self._handle_dead_peer(peer)

    async def _pace(self, peer: ID, cost: float = 1.0) -> None:
        # Reading late slows a flood at its source, and costs an honest burst nothing but time.
        while not self._frames.take(peer, trio.current_time(), cost):
            self.counters["paced"] += 1
            await trio.sleep(1 / self.options.rpc_rate)

    async def _receive(self, peer: ID, raw: bytes) -> None:
        if self.is_peer_blacklisted(peer):
            self.counters["ignored"] += 1
            return
        rpc = rpc_pb2.RPC()
        rpc.ParseFromString(raw)
        control = rpc.control
        parts = [len(part) for part in (rpc.publish, control.graft, control.prune, control.ihave, control.iwant)]
        if max(parts) > MAX_PARTS_PER_RPC:
            self.blame(peer, "over_limit")
            return
        if sum(parts) > _MESSAGES_PER_TURN:
            await self._pace(peer, min(sum(parts) / _MESSAGES_PER_TURN / 2, self.options.rpc_burst))
        for number, message in enumerate(rpc.publish):
            await self.push_msg(peer, message)
            if number % _MESSAGES_PER_TURN == _MESSAGES_PER_TURN - 1:
                await trio.lowlevel.checkpoint()
        if len(rpc.subscriptions) > self.max_subscriptions_per_rpc:
            self.blame(peer, "over_limit")
        else:
            for subscription in rpc.subscriptions:
                if 0 < len(subscription.topicid) <= MAX_TOPIC_CHARS:
                    self.handle_subscription(peer, subscription)
        if rpc.HasField("control"):
            await self.router.handle_rpc(rpc_pb2.RPC(control=self._bounded(peer, control)), peer)

    def _bounded(self, peer: ID, control: rpc_pb2.ControlMessage) -> rpc_pb2.ControlMessage:
        """Only the parts about our own topics, within limits: the library keeps state per topic name it is given."""
        kept = rpc_pb2.ControlMessage()
        ours = self.topic_ids
        kept.graft.extend(_first(item for item in control.graft if item.topicID in ours))
        kept.prune.extend(_first(item for item in control.prune if item.topicID in ours))
        for prune in kept.prune:
            del prune.peers[:]
            prune.backoff = min(prune.backoff, 3600)
        kept.ihave.extend(_first(item for item in control.ihave if item.topicID in ours))
        kept.iwant.extend(_first(iter(control.iwant)))
        named = [item.messageIDs for part in (control.ihave, control.iwant) for item in part]
        if sum(map(len, named)) > MAX_IDS_PER_RPC or any(len(one) > MAX_ID_BYTES for ids in named for one in ids):
            self.blame(peer, "over_limit")
            del kept.ihave[:]
            del kept.iwant[:]
        return kept

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Judge one message and, if it may travel, forward it. Ours are forwarded unjudged and not delivered to ourselves."""
        now = trio.current_time()
        if msg_forwarder != self.my_id and not self._accept(msg_forwarder, msg, now):
            return
        self.seen_messages.add(self.get_message_id(msg))
        await self.router.publish(msg_forwarder, msg)

    def _accept(self, forwarder: ID, msg: rpc_pb2.Message, now: float) -> bool:
        topic = msg.topicIDs[0] if len(msg.topicIDs) == 1 else ""
        message_id = self.get_message_id(msg)
        if topic not in self.topic_ids or msg.from_id == self.my_id.to_bytes():
            self.counters["ignored"] += 1
            return False
        if self.seen_messages.has(message_id):
            self.counters["duplicate"] += 1
            self.scores.again(message_id, forwarder, now)
            return False
        if len(msg.data) > self.options.max_payload or len(msg.seqno) > MAX_SEQNO_BYTES:
            self.blame(forwarder, "oversized")
            return False
        if not self._forwarders.take(forwarder, now):
            self.counters["over_rate"] += 1
            return False
        author = _signed_by(msg)
        if author is None:
            self.blame(forwarder, "bad_signature")
            return False
        self.seen_messages.add(message_id)
        if self.graylist.holds(ID(msg.from_id), now) or not self._authors.take((msg.from_id, topic), now):
            self.counters["over_rate"] += 1
            return False
        verdict = self.judge(author, topic, msg.data)
        if verdict is False:
            self.blame(forwarder, "invalid")
        elif verdict:
            self.counters["accepted"] += 1
            self.scores.arrived(message_id, topic, ID(msg.from_id), forwarder, tuple(self.router.mesh.get(topic, ())), now)
        return verdict is True

    def blame(self, peer: ID, fault: str, weight: float = 1.0) -> None:
        """Count a fault; a peer with too many leaves the mesh and is ignored for a while, connected or not."""
        self.counters[fault] += 1
        self.scores.fault(peer, trio.current_time(), weight)
        if self.graylist.blame(peer, trio.current_time(), weight):
            self.counters["graylisted"] += 1
            log.info("gossip of %s is ignored for %.0f s: too many faults, last %s", peer, self.options.graylist_duration, fault)
            self._drop(peer)
            self._forget_all_subscriptions(peer)

    def is_peer_blacklisted(self, peer_id: ID) -> bool:
        """Whether `peer_id` is graylisted now."""
        now = trio.current_time()
        return self.graylist.holds(peer_id, now) or self.scores.graylisted(peer_id, now)

    # -- streams over changing connections -----------------------------------------------------------------------------

    async def handle_dead_peer_queue(self) -> None:
        """Follow lost connections: the peer's last one ends it here, any other only moves its stream."""
        async with self.dead_peer_receive_channel:
            self.event_handle_dead_peer_queue_started.set()
            async for peer in self.dead_peer_receive_channel:
                stream = self.peers.get(peer)
                if not self._peer_is_connected(peer) or (stream is not None and stream.muxed_conn.is_closed):
                    self._handle_dead_peer(peer)

    def _handle_dead_peer(self, peer_id: ID) -> None:
        # The library forgets what a peer subscribed to when a stream fails, and hears of it again only when the peer happens to
        # write on its own broken stream: after a move from a relayed to a direct path two quiet peers would be deaf for good.
        if not self._peer_is_connected(peer_id):
            super()._handle_dead_peer(peer_id)
        elif peer_id in self.peers:
            del self.peers[peer_id]
            self.peer_queues.pop(peer_id).close()
            self._replayed_recent_topics.pop(peer_id, None)  # what is published until the new stream stands is replayed on it
            self._schedule_peer_stream_retry(peer_id)

    # -- outbound ----------------------------------------------------------------------------------------------------

    async def handle_sending_messages(self, peer_id: ID, stream: Any, queue: Any) -> None:
        """Send what is queued for a peer, in RPCs that the other side's limit allows."""
        queue.max_message_size = self.options.max_rpc
        await super().handle_sending_messages(peer_id, stream, queue)

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        """Nothing: the judge has already seen the payload, and the library's queue of 32 would drop it."""


class _SeenView:
    """`SeenMessages` behind the two methods that the library calls."""

    def __init__(self, options: GossipOptions) -> None:
        self._seen = SeenMessages(options.seen_lifetime, options.seen_capacity)

    def has(self, key: bytes) -> bool:
        return self._seen.has(key, trio.current_time())

    def add(self, key: bytes) -> bool:
        fresh = not self.has(key)
        self._seen.add(key, trio.current_time())
        return fresh


def _signed_by(msg: rpc_pb2.Message) -> PeerId | None:
    """The author of a message whose signature holds, by the project's one Ed25519 verdict; None for any other."""
    try:
        author = PeerId(ID(msg.from_id).to_base58())
        public_key = public_key_of(author)
    except (RemoteError, ValueError):
        return None
    unsigned = rpc_pb2.Message(data=msg.data, topicIDs=msg.topicIDs, from_id=msg.from_id, seqno=msg.seqno)
    signed = PUBSUB_SIGNING_PREFIX.encode() + unsigned.SerializeToString()
    return author if verify(public_key, msg.signature, signed) else None


def _first(items: Iterator[Any]) -> list[Any]:
    return [item for item, _ in zip(items, range(MAX_CONTROLS_PER_RPC), strict=False)]
