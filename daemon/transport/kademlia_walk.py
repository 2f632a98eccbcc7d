"""Carries the questions of lookups: over which connection, a dial where there is none, a bound on all. Steers no lookup."""

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import trio
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from multiaddr import Multiaddr

from daemon.transport.addresses import text_of_address
from daemon.transport.interface import TransportError
from daemon.transport.kademlia_server import KademliaOptions
from daemon.transport.kademlia_streams import KEPT, QuestionStreams, ask_once
from daemon.transport.kademlia_wire import library_id
from daemon.transport.muxer import MuxedConnection
from dht import lookup_events
from dht.contacts import Contact, contact_of, met_at
from dht.kad_messages import AddProvider, Answer, FindNode, Question
from dht.lookup import Lookup
from dht.lookup_events import Ask, Done, LookupConfig
from dht.node import Node
from nat.addresses import MAX_ADDRESSES, dial_order
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId

log = logging.getLogger(__name__)

Take = Callable[[Answer], bool]
"""(answer) -> whether it was useful."""

_TICK_SECONDS = 0.25
_STALL_SECONDS = 1.0
"""More than that between two looks at the clock and we did not run: frozen, suspended or starved."""


class Walker:
    """Asks for one node over one host. `greet` is called with whoever waited for a place that has become free."""

    def __init__(self, host: Any, node: Node, addresses: Callable[[], Sequence[str]], options: KademliaOptions) -> None:
        self.greet: Callable[[Contact], None] = lambda _: None
        self._host = host
        self._swarm = host.swarm
        self._node = node
        self._addresses = addresses
        self._options = options
        self._dialled: OrderedDict[ID, None] = OrderedDict()
        self._streams = QuestionStreams()
        self._waiting: dict[trio.CancelScope, float] = {}
        """Seconds of patience that are left of each question."""
        self._asked = trio.Event()

    # ---- lookups

    async def look_up(self, name: bytes, config: LookupConfig, question: Question, take: Take) -> tuple[Done, Lookup]:
        """Run a lookup to its end, or to the end of `operation_timeout`."""
        others = tuple(self.met(PeerId(str(peer))) for peer in self._swarm.connections) if len(self._node.table) < 20 else ()
        lookup, begin = self._node.lookup(name, config, others)
        deadline = trio.current_time() + self._options.operation_timeout
        send, receive = trio.open_memory_channel[lookup_events.Event](math.inf)
        done: Done | None = None
        stalled = 0.0
        """Seconds by which we came too late to our own alarms: they are no peer's silence, so the lookup's clock lacks them."""

        async def ask(contact: Contact, put: Question, useful: Take) -> None:
            answer = await self.ask(contact, put)
            if answer is None:
                send.send_nowait(lookup_events.Failed(contact.peer))
            else:
                send.send_nowait(lookup_events.Answered(contact.peer, answer.closer, useful(answer)))

        async with trio.open_nursery() as nursery:
            event: lookup_events.Event = begin
            wake = deadline
            while True:
                for effect in lookup.handle(event, trio.current_time() - stalled):
                    match effect:
                        case Ask(contact, bytes() as point):
                            nursery.start_soon(ask, contact, FindNode(point), _useless)
                        case Ask(contact):
                            nursery.start_soon(ask, contact, question, take)
                        case lookup_events.WakeAt(time):
                            wake = min(time + stalled, deadline)
                        case Done():
                            done = effect
                if done is not None:
                    break
                with trio.move_on_at(wake) as wait:
                    event = await receive.receive()
                stalled += max(0.0, trio.current_time() - wake)
                if wait.cancelled_caught:
                    event = lookup_events.Stop() if trio.current_time() >= deadline else lookup_events.Tick()
                    wake = deadline
            nursery.cancel_scope.cancel()
        self._node.concluded(lookup, done)
        return done, lookup

    # ---- one question

    async def ask(self, contact: Contact, question: Question) -> Answer | None:
        """One question and its answer within `query_timeout`; None, and out of the table, where there was none."""
        answer: Answer | None = None
        with self._patience() as patience:
            try:
                answer = await self._exchange(contact, question, patience)
            except (TransportError, SwarmException, RemoteError, OSError) as error:
                log.debug("%s does not answer the DHT: %s", contact.peer, error)
        if answer is None:
            waiting = self._node.silent(contact.peer)
            if waiting is not None:
                self.greet(waiting)
        elif not isinstance(question, AddProvider):
            self._node.answered(self.met(contact.peer, contact.addresses), trio.current_time())
        return answer

    async def _exchange(self, contact: Contact, question: Question, patience: trio.CancelScope) -> Answer:
        connection = await self._connection(contact)
        if KEPT in self._protocols(connection.peer_id):
            return await self._streams.ask(contact, connection, question, self._node.me, patience)
        return await ask_once(contact.peer, connection, question, self._node.me)

    def _protocols(self, target: ID) -> Sequence[str]:
        try:
            known: Sequence[str] = self._host.get_peerstore().get_protocols(target)
        except PeerStoreError:
            return ()
        return known

    @contextmanager
    def _patience(self) -> Iterator[trio.CancelScope]:
        """A scope that ends after `query_timeout` of our own running time: see `run`."""
        with trio.CancelScope() as scope:
            self._waiting[scope] = self._options.query_timeout
            self._asked.set()
            try:
                yield scope
            finally:
                del self._waiting[scope]

    async def run(self) -> None:
        """Let patience run out while we run ourselves: after our own stall the answers lie unread, and nobody was silent."""
        while True:
            if not self._waiting:
                self._streams.close_idle()
                self._asked = trio.Event()
                with trio.move_on_at(self._streams.idle_until):
                    await self._asked.wait()
                continue
            before = trio.current_time()
            await trio.sleep(_TICK_SECONDS)
            passed = min(trio.current_time() - before, _STALL_SECONDS)
            for scope in list(self._waiting):
                self._waiting[scope] -= passed
                if self._waiting[scope] <= 0:
                    scope.cancel()

    async def _connection(self, contact: Contact) -> MuxedConnection:
        target = library_id(contact.peer)
        live = self._live(target)
        if not live:
            addresses = [Multiaddr(text) for text in dial_order(contact.addresses, self._addresses())]
            await self._make_room()
            self._dialled[target] = None  # the dial goes on, and may succeed, after we have given up
            await self._swarm.dialing.dial(target, addresses)
            live = self._live(target)
        elif target in self._dialled:
            self._dialled.move_to_end(target)
        if not live:
            raise TransportError("the connection closed at once")
        best: MuxedConnection = self._swarm.best(live).muxed_conn
        return best

    def _live(self, target: ID) -> list[Any]:
        return [conn for conn in self._swarm.live(target) if isinstance(conn.muxed_conn, MuxedConnection)]

    async def _make_room(self) -> None:
        """A mesh has more peers to ask than a daemon has connections: those made to ask give way again, the oldest first."""
        while len(self._dialled) >= self._options.dialled:
            oldest, _ = self._dialled.popitem(last=False)
            if self._swarm.get_total_connections() * 2 < self._swarm.options.max_connections:
                continue
            for conn in self._live(oldest):
                if not conn.muxed_conn.in_use:
                    await conn.close()

    # ---- who is met

    def met(self, peer: PeerId, addresses: Sequence[str] = ()) -> Contact:
        """The contact of a connected peer: at the addresses it has told, counted to the network that it is connected from."""
        target = library_id(peer)
        known = tuple(addresses) or self._told(target)
        live = self._live(target)
        contact = contact_of(peer, known[:MAX_ADDRESSES])
        if not live:
            return contact
        remote = self._swarm.best(live).get_transport_addresses()
        return met_at(contact, text_of_address(remote[0].to_bytes())) if remote else contact

    def _told(self, target: ID) -> tuple[str, ...]:
        try:
            return tuple(text_of_address(address.to_bytes()) for address in self._host.get_peerstore().addrs(target))
        except PeerStoreError:
            return ()


def _useless(_answer: Answer) -> bool:
    return False
