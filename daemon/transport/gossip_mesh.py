"""GossipSub 1.1 on the wire: the mesh, its heartbeat, and to whom a message goes. Judges no message.

The library keeps streams and its message cache; whom the mesh consists of and what a neighbour is worth is `protocol.gossip`'s.
The library's scoring, peer exchange and rate rules are off, as they harm honest peers.
"""

import ipaddress
import logging
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from random import Random, SystemRandom
from typing import Any

import trio
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2

from protocol.gossip.mesh import Degrees, Neighbourhood, TopicMesh
from protocol.gossip.score import Scores, Weights

log = logging.getLogger(__name__)

PROTOCOL = TProtocol("/meshsub/1.1.0")
MAX_PROMISES = 1024


@dataclass(frozen=True)
class GossipOptions:
    """Limits of gossip; seconds, bytes and counts. Degrees and rates: research (hardened gossipsub, Ethereum's 8/6/12)."""

    degree: int = 8
    degree_low: int = 6
    degree_high: int = 12
    heartbeat: float = 1.0
    history: int = 6
    history_gossip: int = 3
    seen_lifetime: float = 120.0
    seen_capacity: int = 65_536
    max_payload: int = 64 << 10
    max_rpc: int = 256 << 10
    rpc_rate: float = 200.0
    rpc_burst: float = 400.0
    author_rate: float = 10.0
    author_burst: float = 20.0
    verify_rate: float = 50.0
    verify_burst: float = 100.0
    promise: float = 3.0
    """Seconds in which a message that a peer said it has must come when it is asked for."""
    fault_limit: float = 8.0
    graylist_duration: float = 600.0


class Router(GossipSub):
    """GossipSub whose own messages go to every subscriber it knows, and which dials nobody on a stranger's word."""

    def __init__(self, options: GossipOptions, rng: Random | None = None) -> None:
        self.options = options
        self.rng = rng or SystemRandom()
        self.scores = Scores(Weights())
        self.degrees = Degrees(options.degree, options.degree_low, options.degree_high, per_network=max(1, options.degree // 4))
        self.topics: dict[str, TopicMesh] = {}
        self.dropped: Counter[str] = Counter()
        """What did not fit into a peer's queue, and promises that were not kept."""
        self._promises: dict[bytes, tuple[ID, float]] = {}
        super().__init__(
            protocols=[PROTOCOL],
            degree=options.degree,
            degree_low=options.degree_low,
            degree_high=options.degree_high,
            gossip_window=options.history_gossip,
            gossip_history=options.history,
            heartbeat_interval=1,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,
            eclipse_protection_enabled=False,
        )
        self.interval = options.heartbeat
        # The stock scorer rewards invalid messages (its signs are reversed) and forgets on disconnect: the Graylist decides.
        self.scorer = None

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        """Forward a judged message to the mesh; our own go to all subscribers, so that a forming mesh loses none."""
        pubsub = self.pubsub
        assert pubsub is not None  # noqa: S101 - attached by Pubsub's constructor
        self.mcache.put(pubsub_msg)
        topic, origin = pubsub_msg.topicIDs[0], ID(pubsub_msg.from_id)
        subscribers: set[ID] = pubsub.peer_topics.get(topic, set())
        mesh = self.topics.get(topic)
        targets: Any = subscribers if msg_forwarder == pubsub.my_id else () if mesh is None else mesh.targets()
        packet = rpc_pb2.RPC(publish=[pubsub_msg])
        for peer in list(targets):
            if peer not in (msg_forwarder, origin) and not pubsub.is_peer_blacklisted(peer):
                self.send_rpc(peer, packet)

    async def send_recent_messages(self, peer_id: ID, topic: str) -> None:
        """Replay the last seconds to a new subscriber, through its queue: two writers on one stream would mix their frames."""
        for message_id in self.mcache.window(topic):
            message = self.mcache.get(message_id)
            if message is not None and message.from_id != peer_id.to_bytes():
                self.send_rpc(peer_id, rpc_pb2.RPC(publish=[message]))

    async def flush_pending_messages(self, peer_id: ID) -> None:
        """Nothing: `send_recent_messages` covers what the library would have held back."""

    async def emit_control_message(self, control_msg: rpc_pb2.ControlMessage, to_peer: ID) -> None:
        """Queue control alone, without the signed address record that the library adds to each."""
        self.send_rpc(to_peer, rpc_pb2.RPC(control=control_msg), priority=True)

    async def _emit_control_msgs(self, peers_to_graft: Any, peers_to_prune: Any, peers_to_gossip: Any) -> None:
        # The stock loop never empties its lists between peers, so each peer is grafted into the topics of those before it.
        for peer in {*peers_to_graft, *peers_to_prune, *peers_to_gossip}:
            control = rpc_pb2.ControlMessage()
            control.graft.extend(rpc_pb2.ControlGraft(topicID=topic) for topic in peers_to_graft.get(peer, ()))
            control.prune.extend(
                rpc_pb2.ControlPrune(topicID=topic, backoff=self.prune_back_off) for topic in peers_to_prune.get(peer, ())
            )
            gossip = peers_to_gossip.get(peer, {})
            control.ihave.extend(rpc_pb2.ControlIHave(topicID=topic, messageIDs=ids) for topic, ids in gossip.items())
            await self.emit_control_message(control, peer)

    async def _do_px(self, px_peers: Any) -> None:
        """Nothing: peer exchange would dial addresses that a stranger chose."""

    # ---- the mesh

    async def join(self, topic: str) -> None:
        """Begin a mesh for `topic`; the next heartbeat fills it."""
        if topic not in self.topics:
            self.topics[topic] = TopicMesh(self.degrees, self.rng)
            self.mesh[topic] = self.topics[topic].members  # type: ignore[assignment]  # one set, whoever changes it

    async def on_peer_subscribed(self, peer_id: ID, topic: str) -> None:
        """Graft a new subscriber at once where the mesh is small. The library's own way asks neither score nor network."""
        mesh, now = self.topics.get(topic), trio.current_time()
        for peer in mesh.greet(self._around([peer_id], now), now) if mesh is not None else ():
            self.scores.grafted(peer, topic, now)
            self._notify_mesh_peer_added(peer, topic)  # type: ignore[arg-type]
            await self.emit_graft(topic, peer)  # type: ignore[arg-type]

    def mesh_heartbeat(self) -> Any:
        """Who is to be grafted and pruned, by peer."""
        pubsub, now = self.pubsub, trio.current_time()
        assert pubsub is not None  # noqa: S101 - attached by Pubsub's constructor
        grafts: defaultdict[ID, list[str]] = defaultdict(list)
        prunes: defaultdict[ID, list[str]] = defaultdict(list)
        self._judge_promises(now)
        for topic, mesh in self.topics.items():
            subscribed = [peer for peer in pubsub.peer_topics.get(topic, ()) if peer in pubsub.peers]
            before = set(mesh.members)
            grafted, pruned = mesh.beat(self._around([p for p in subscribed if not pubsub.is_peer_blacklisted(p)], now), now)
            for peer in grafted:
                self.scores.grafted(peer, topic, now)
                self._notify_mesh_peer_added(peer, topic)  # type: ignore[arg-type]
                grafts[peer].append(topic)  # type: ignore[index]
            for peer in before - mesh.members:  # also who unsubscribed, or what it owes would be forgotten sooner
                self.scores.pruned(peer, topic, now)
            for peer in pruned:
                prunes[peer].append(topic)  # type: ignore[index]
        return grafts, prunes

    def gossip_heartbeat(self) -> Any:
        """Who hears the ids of our last messages, by topic."""
        pubsub, now = self.pubsub, trio.current_time()
        assert pubsub is not None  # noqa: S101 - attached by Pubsub's constructor
        told: defaultdict[ID, dict[str, list[bytes]]] = defaultdict(dict)
        for topic, mesh in self.topics.items():
            ids = list(self.mcache.window(topic))
            subscribed = [peer for peer in pubsub.peer_topics.get(topic, ()) if peer in pubsub.peers]
            for peer in mesh.told(self._around(subscribed, now)) if ids else ():
                told[peer][topic] = ids  # type: ignore[index]
        return told

    async def handle_graft(self, graft_msg: rpc_pb2.ControlGraft, sender_peer_id: ID) -> None:
        """Take a neighbour that asks, or say no; whoever asks again before its time is at fault."""
        topic, now = graft_msg.topicID, trio.current_time()
        mesh = self.topics.get(topic)
        if mesh is not None and mesh.backs_off(sender_peer_id, now):
            self.scores.fault(sender_peer_id, now, 0.1)
        elif mesh is not None and mesh.takes(sender_peer_id, self._around([], now), now):
            self.scores.grafted(sender_peer_id, topic, now)
            self._notify_mesh_peer_added(sender_peer_id, topic)
            return
        await self.emit_prune(topic, sender_peer_id, False, False)

    async def handle_prune(self, prune_msg: rpc_pb2.ControlPrune, sender_peer_id: ID) -> None:
        """It is no neighbour any more, and is left alone for as long as it says."""
        mesh, now = self.topics.get(prune_msg.topicID), trio.current_time()
        if mesh is not None:
            self.scores.pruned(sender_peer_id, prune_msg.topicID, now)
            mesh.back_off(sender_peer_id, now, float(prune_msg.backoff) or None)

    def remove_peer(self, peer_id: ID) -> None:
        """Its connection is gone; what it did stays known."""
        self.drop(peer_id)
        super().remove_peer(peer_id)

    def drop(self, peer_id: ID) -> None:
        """It is in no mesh any more; nobody is told."""
        for topic, mesh in self.topics.items():
            if peer_id in mesh.members:
                mesh.members.discard(peer_id)
                self.scores.pruned(peer_id, topic, trio.current_time())

    async def emit_iwant(self, msg_ids: Any, to_peer: ID) -> None:
        """Ask for messages that a peer says it has, and remember one of them: it must come."""
        if msg_ids and len(self._promises) < MAX_PROMISES:
            until = trio.current_time() + self.options.promise
            self._promises.setdefault(bytes(self.rng.choice(list(msg_ids))), (to_peer, until))
        await super().emit_iwant(msg_ids, to_peer)

    def _judge_promises(self, now: float) -> None:
        pubsub = self.pubsub
        for message, (peer, until) in list(self._promises.items()):
            if pubsub is not None and pubsub.seen_messages.has(message):
                del self._promises[message]
            elif until < now:
                del self._promises[message]
                self.dropped["promises"] += 1
                self.scores.fault(peer, now, 0.1)

    def _handle_dropped_rpc(self, peer_id: ID, rpc: rpc_pb2.RPC, reason: str) -> None:
        self.dropped["queue_full"] += 1
        super()._handle_dropped_rpc(peer_id, rpc, reason)

    def _around(self, candidates: Sequence[Hashable], now: float) -> Neighbourhood:
        return Neighbourhood(candidates, lambda peer: self.scores.score(peer, now), self._dialled, self._network)

    def _connections(self, peer: Hashable) -> list[Any]:
        live: list[Any] = [] if self.pubsub is None else self.pubsub.host.get_network().live(peer)  # type: ignore[attr-defined]
        return live

    def _dialled(self, peer: Hashable) -> bool:
        return any(conn.muxed_conn.is_initiator for conn in self._connections(peer))

    def _network(self, peer: Hashable) -> str:
        """The /24 or /48 that a peer comes from; "" on this box and over a relay, where an address says nothing."""
        for conn in self._connections(peer):
            addresses = conn.get_transport_addresses()
            if conn.get_connection_type() != ConnectionType.RELAYED and addresses:
                return network_of(str(addresses[0]))
        return ""

    async def heartbeat(self) -> None:
        """Keep the mesh at its degree and gossip ids. A fault in it is counted, not fatal: the next beat repairs."""
        while True:
            try:
                grafts, prunes = self.mesh_heartbeat()
                self.fanout_heartbeat()
                await self._emit_control_msgs(grafts, prunes, self.gossip_heartbeat())
                self.mcache.shift()
                self._periodic_security_cleanup()
            except Exception:  # the library's own bookkeeping races must not end gossip
                log.warning("a gossip heartbeat failed", exc_info=True)
            await trio.sleep(self.interval)


def network_of(address: str) -> str:
    """The network of a multiaddr's IP address: IPv4 /24, IPv6 /48; "" for loopback and for names."""
    parts = address.split("/")
    try:
        ip = ipaddress.ip_address(parts[2])
    except (IndexError, ValueError):
        return ""
    if ip.is_loopback:
        return ""
    return str(ipaddress.ip_network((ip, 24 if ip.version == 4 else 48), strict=False))
