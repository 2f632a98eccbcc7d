"""Gossip between peers: topics, their handlers and publishing. Decides which handler judges a payload; never what it means."""

import logging
from collections.abc import Mapping
from typing import Any

import trio
from libp2p.tools.anyio_service import background_trio_service

from daemon.transport.gossip_mesh import GossipOptions, Router
from daemon.transport.gossip_pubsub import GuardedPubsub
from daemon.transport.interface import GossipHandler, MeshGate, TransportError
from protocol.wire.ids import PeerId

__all__ = ["Gossip", "GossipOptions"]

log = logging.getLogger(__name__)


class Gossip:
    """GossipSub 1.1 over a libp2p host, with strict signing.

    Build it before the host listens or dials, start `run`, and wait for its `task_status` before connecting to anyone: the
    library learns of peers from connection events alone.
    """

    def __init__(self, host: Any, options: GossipOptions | None = None, gate: MeshGate | None = None) -> None:
        """The `gate` of a private mesh gives its topics names of their own, and says whose messages count."""
        self._options = options or GossipOptions()
        self._scope = gate.topic if gate is not None else ""
        self._gate = gate
        self._handlers: dict[str, GossipHandler] = {}
        self._router = Router(self._options)
        self._pubsub = GuardedPubsub(host, self._router, self._options, self._judge)
        self._started = trio.Event()

    @property
    def counters(self) -> Mapping[str, int]:
        """Messages accepted, duplicate, ignored, over_rate, and faults by kind, since the start."""
        return self._pubsub.counters

    def subscribers(self, topic: str) -> frozenset[str]:
        """Connected peers that listen to `topic`."""
        listening = self._pubsub.peer_topics.get(topic + self._scope, ())
        return frozenset(peer.to_base58() for peer in listening if peer in self._pubsub.peers)

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the mesh until cancelled."""
        async with background_trio_service(self._pubsub), background_trio_service(self._router):
            await self._pubsub.wait_until_ready()
            self._started.set()
            task_status.started()
            await trio.sleep_forever()

    async def subscribe(self, topic: str, handler: GossipHandler) -> None:
        """Receive `topic`; `handler` judges each message of another peer once, before it travels on. Replaces an earlier handler.

        False from the handler counts against the peer that handed the message to us; an exception drops the message alone.
        """
        await self._started.wait()
        self._handlers[topic + self._scope] = handler
        await self._pubsub.subscribe(topic + self._scope)

    async def publish(self, topic: str, payload: bytes) -> None:
        """Send `payload` to every known subscriber of `topic`; late ones get it within `history_gossip` heartbeats of joining.

        Raises TransportError for a payload over the limit. Our own handler does not see our own messages.
        """
        if len(payload) > self._options.max_payload:
            raise TransportError(f"a gossip payload of {len(payload)} bytes is over the limit of {self._options.max_payload}")
        await self._started.wait()
        await self._pubsub.publish(topic + self._scope, payload)

    def _judge(self, author: PeerId, topic: str, payload: bytes) -> bool | None:
        handler = self._handlers.get(topic)
        if handler is None or (self._gate is not None and not self._gate.admits(author)):
            return None  # whoever handed it over may not know yet that its author was removed
        try:
            return handler(author, payload)
        except Exception:  # our own fault must not cost the peer
            log.exception("the gossip handler of %s failed", topic)
            self._pubsub.counters["handler_failed"] += 1
            return None
