"""Stock GossipSub 1.1 with safe settings: the mesh, its heartbeat, and to whom a message goes. Judges no message.

The library keeps the mesh and its message cache; its scoring, peer exchange and rate rules are off, as they harm honest peers.
"""

import logging
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2

log = logging.getLogger(__name__)

PROTOCOL = TProtocol("/meshsub/1.1.0")


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
    fault_limit: float = 8.0
    graylist_duration: float = 600.0


class Router(GossipSub):
    """GossipSub whose own messages go to every subscriber it knows, and which dials nobody on a stranger's word."""

    def __init__(self, options: GossipOptions) -> None:
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
        targets = subscribers if msg_forwarder == pubsub.my_id else self.mesh.get(topic, set())
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
