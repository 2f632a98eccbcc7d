"""The DHT as the daemon uses it: put, get, provide and find, and the upkeep of our node. `dht` decides; this keeps the time.

Wire compatible with stock kad-dht nodes (`/ipfs/kad/1.0.0`): kademlia_wire's. Serving strangers is kademlia_server's, carrying
questions kademlia_walk's.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import trio
from libp2p.abc import INotifee
from libp2p.peer.id import ID

from daemon.transport.interface import TransportError
from daemon.transport.kademlia_server import KademliaOptions, Server
from daemon.transport.kademlia_walk import Take, Walker
from daemon.transport.kademlia_wire import library_id
from dht import upkeep
from dht.contacts import Contact, contact_of
from dht.kad_messages import AddProvider, Answer, FindNode, GetProviders, GetValue, Ping, PutValue, Question
from dht.keyspace import name_of_peer, provider_name
from dht.lookup import Lookup
from dht.lookup_events import Done, LookupConfig, Verdict
from dht.node import Node
from dht.queries import FIND, GET, REFRESH, STORE, Providers, Values, holders, wider
from dht.record_store import OpenRecord, RecordLimits
from dht.records import OFFER_PREFIX
from nat.addresses import MAX_ADDRESSES, dial_order
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId

__all__ = ["Kademlia", "KademliaOptions"]

log = logging.getLogger(__name__)


def unix_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000


class Kademlia:
    """A DHT node in server mode. Build it before the host listens; `run` must be running before anything else is called."""

    def __init__(
        self,
        host: Any,
        open_record: OpenRecord,
        addresses: Callable[[], Sequence[str]],
        rng: Random,
        options: KademliaOptions | None = None,
        limits: RecordLimits | None = None,
    ) -> None:
        self.options = options or KademliaOptions()
        closest = self.options.closest
        self._get_config, self._find_config, self._store_config = (
            replace(config, width=closest, region=closest) for config in (GET, FIND, STORE)
        )
        self._host = host
        self._addresses = addresses
        self._open = open_record
        me = contact_of(PeerId(host.get_id().to_base58()))
        self.node = Node(me, open_record, rng, limits)
        self._walker = Walker(host, self.node, addresses, self.options)
        self._walker.greet = self._greet_soon
        self._server = Server(host, self.node, self._walker.met, unix_ms, self.options)
        self._server.wanted = self._greet_soon
        self._provided: dict[str, bytes] = {}
        self._arrivals, self._arrived = trio.open_memory_channel[ID](256)
        self._nursery: trio.Nursery | None = None
        self._greeting: set[PeerId] = set()
        self._wake = trio.CancelScope()
        self._wake_at = 0.0
        host.get_network().register_notifee(_Arrivals(self._arrivals))

    @property
    def counters(self) -> Mapping[str, int]:
        """Inbound streams refused, expired, paced and failed, records refused, and questions served, since the start."""
        refused = {f"record_{reason}": count for reason, count in self.node.records.refused.items()}
        served = {f"served_{kind.lower()}": count for kind, count in self.node.responder.served.items()}
        return {**self._server.counters, **refused, **served}

    @property
    def peers(self) -> int:
        """Peers in the routing table."""
        return len(self.node.table)

    async def run(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Greet peers as they connect, keep the table and our own records alive, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._walker.run)
                nursery.start_soon(self._greet_arrivals)
                nursery.start_soon(self._keep_time)
                task_status.started()
        finally:
            self._nursery = None

    # ---- operations

    async def put_record(self, key: str, value: bytes) -> int:
        """Store `value` here and with the peers closest to `key`; how many took it. 0: kept here alone, there is no other peer.

        Raises TransportError where the record is not valid, where we hold a better one, or where no other peer took it.
        """
        try:
            self.node.records.put_own(key, value, unix_ms())
        except RemoteError as error:
            raise TransportError(error.message) from None
        return await self._tell(key.encode(), PutValue(key.encode(), value), f"took the record {key}")

    async def get_record(self, key: str) -> bytes | None:
        """The best valid value that is found under `key`, ours among them; None where nobody has one.

        Raises TransportError where that cannot be said, because too few peers answered.
        """
        done, _, values = await self._get(key)
        if values.best is None and _came_to_nothing(done):
            raise TransportError(f"whether anybody holds {key} is not known: {done.reason}")
        return values.best

    async def _get(self, key: str) -> tuple[Done, Lookup, Values]:
        values, name = Values(key, self._open), key.encode()
        values.take(self.node.records.get(name, unix_ms()), unix_ms())

        def take(answer: Answer) -> bool:
            return values.take(answer.value, unix_ms())

        return *await self._insist(name, self._get_config, GetValue(name), take), values

    async def provide(self, key: str) -> None:
        """Tell the peers closest to `key` that we provide it, now and at each republication from then on."""
        name = provider_name(key)
        self._provided[key] = name
        await self._announce(name, f"listed us as a provider of {key}")

    def unprovide(self, key: str) -> None:
        """Tell nobody any more; those that were told forget it within the hour."""
        self._provided.pop(key, None)
        self.node.providers.remove(provider_name(key), self.node.me.peer)

    async def find_providers(
        self, key: str, credible: Callable[[PeerId], bool] = lambda _: True
    ) -> Mapping[PeerId, tuple[str, ...]]:
        """Peers, us excluded, that claim to provide `key`, with their addresses. Those not `credible` are left out.

        Raises TransportError where too few peers answered to say that there are none.
        """
        done, _, providers = await self._find(key, credible)
        if not providers.found and _came_to_nothing(done):
            raise TransportError(f"whether anybody provides {key} is not known: {done.reason}")
        ours = self._addresses()
        return {peer: dial_order(contact.addresses, ours)[:MAX_ADDRESSES] for peer, contact in providers.found.items()}

    async def _find(self, key: str, credible: Callable[[PeerId], bool]) -> tuple[Done, Lookup, Providers]:
        name = provider_name(key)
        providers = Providers(self.node.me.peer, lambda contact: credible(contact.peer))
        for contact in self.node.providers.get(name, trio.current_time()):
            if contact.peer != self.node.me.peer and credible(contact.peer):
                providers.found[contact.peer] = contact
        return *await self._insist(name, self._find_config, GetProviders(name), providers.take), providers

    async def _insist(self, name: bytes, config: LookupConfig, question: Question, take: Take) -> tuple[Done, Lookup]:
        """Look up, and once more and wider where those asked did not answer: a moment of ours or of theirs is no absence."""
        done, lookup = await self._walker.look_up(name, config, question, take)
        if _came_to_nothing(done) and not (done.closest and config is self._store_config):
            again = await self._walker.look_up(name, wider(config), question, take)
            if again[0].asked:
                return again
        return done, lookup

    async def look_up(self, key: str) -> dict[str, Any]:
        """How a look-up of a record or of providers goes, for people: its verdict, its paths and every question on them."""
        started = trio.current_time()
        if self._is_record(key):
            done, lookup, values = await self._get(key)
            found: dict[str, Any] = {"record": values.best is not None, "invalid": values.invalid}
            verdict = Verdict.FOUND if values.best is not None else done.verdict
        else:
            done, lookup, providers = await self._find(key, lambda _: True)
            found = {"providers": sorted(providers.found)}
            verdict = Verdict.FOUND if providers.found else done.verdict
        steps = [
            {"path": s.path, "hop": s.hop, "peer_id": s.peer, "bits": s.bits, "outcome": s.outcome, "useful": s.useful}
            | {"ms": None if s.seconds is None else round(1000 * s.seconds, 1)}
            for s in lookup.steps()
        ]
        report = {"key": key, "verdict": str(verdict), "reason": done.reason, **found}
        report |= {
            "ms": round(1000 * (trio.current_time() - started), 1),
            "paths": done.paths,
            "agreeing": done.agreeing,
            "asked": done.asked,
            "failed": done.failed,
            "hops": done.hops,
        }
        return report | {
            "region_scanned": done.scanned,
            "mesh_estimate": self.node.density.peers(),
            "table": self.peers,
            "steps": steps,
        }

    @staticmethod
    def _is_record(key: str) -> bool:
        return key.startswith(OFFER_PREFIX)

    # ---- telling the closest peers

    async def _announce(self, name: bytes, doing: str) -> int:
        addresses = tuple(self._addresses()[:MAX_ADDRESSES])
        me = contact_of(self.node.me.peer, addresses)
        self.node.providers.add(name, me, trio.current_time(), own=True)
        return await self._tell(name, AddProvider(name, addresses), doing)

    async def _tell(self, name: bytes, question: Question, doing: str) -> int:
        """Send `question` to everybody that should hold `name`; how many took it, 0 where there is nobody but us.

        Raises TransportError where there are peers and none took it; `doing` says what none did.
        """
        took, targets = 0, tuple[Contact, ...]()
        limit = trio.CapacityLimiter(self.options.tell)

        async def tell(contact: Contact) -> None:
            nonlocal took
            async with limit:
                answer = await self._walker.ask(contact, question)
            took += answer is not None

        with trio.move_on_after(2 * self.options.operation_timeout) as scope:
            done, _ = await self._insist(name, self._store_config, FindNode(name), _nothing)
            targets = holders(done, self.options.closest)
            if not targets and _came_to_nothing(done):
                raise TransportError(f"no peer {doing}: {done.reason}")
            async with trio.open_nursery() as nursery:
                for contact in targets:
                    nursery.start_soon(tell, contact)
        if scope.cancelled_caught and not took:
            raise TransportError(f"no peer {doing} within {2 * self.options.operation_timeout:.0f} s")
        if targets and not took:
            raise TransportError(f"none of {len(targets)} peers {doing}")
        return took

    # ---- upkeep

    async def _greet_arrivals(self) -> None:
        async for peer in self._arrived:
            self._greet_soon(self._walker.met(PeerId(str(peer))), FindNode(name_of_peer(self.node.me.peer)))

    def _greet_soon(self, contact: Contact, question: Question | None = None) -> None:
        if self._nursery is not None and contact.peer not in self._greeting and len(self._greeting) < 64:
            self._greeting.add(contact.peer)
            self._nursery.start_soon(self._greet, contact, question or Ping())

    async def _greet(self, contact: Contact, question: Question) -> None:
        """Ask a peer that has no place yet: that proves it serves the DHT, and fills the table before the first refresh."""
        try:
            arrived = isinstance(question, FindNode)
            if arrived:
                await trio.sleep(self.options.greet_after)
                if contact.peer in self.node.table or library_id(contact.peer) not in self._host.swarm.connections:
                    return  # a lookup has its answer; or it left again, and asking would dial it for as long as it keeps leaving
                contact = self._walker.met(contact.peer)
            answer = await self._walker.ask(contact, question)
            if answer is not None and arrived and (answer.closer or self.peers == 1):
                self._upkeep(upkeep.Arrived())
        finally:
            self._greeting.discard(contact.peer)

    async def _keep_time(self) -> None:
        self._upkeep(upkeep.Tick())
        while True:
            with trio.CancelScope() as self._wake:
                await trio.sleep_until(self._wake_at)
                self._upkeep(upkeep.Tick())
                await trio.lowlevel.checkpoint()

    def _upkeep(self, event: upkeep.Event) -> None:
        for effect in self.node.upkeep.handle(event, trio.current_time()):
            match effect:
                case upkeep.LookUp(name) if self._nursery is not None:
                    self._nursery.start_soon(self._refresh, name)
                case upkeep.Republish() if self._nursery is not None:
                    self._nursery.start_soon(self._republish)
                case upkeep.Check(contact):
                    self._greet_soon(contact)
                case upkeep.Expire():
                    self.node.records.expire(unix_ms())
                    self.node.providers.expire(trio.current_time())
                case upkeep.WakeAt(at):
                    self._wake_at = at
                    self._wake.cancel()

    async def _refresh(self, name: bytes) -> None:
        config = self._store_config if name == self.node.upkeep.name else REFRESH
        await self._walker.look_up(name, config, FindNode(name), _nothing)
        self._upkeep(upkeep.LookedUp(name))

    async def _republish(self) -> None:
        for name in self.node.records.own():
            value = self.node.records.get(name, unix_ms())
            if value is not None:
                await self._quietly(name, PutValue(name, value))
        for key in list(self._provided):
            if (provided := self._provided.get(key)) is not None:  # meanwhile it may have been taken back
                await self._quietly(provided, None)

    async def _quietly(self, name: bytes, question: Question | None) -> None:
        try:
            if question is None:
                await self._announce(name, "providing again")
            else:
                await self._tell(name, question, "storing again")
        except TransportError as error:
            log.debug("the DHT was not told again: %s", error)


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


def _nothing(_answer: object) -> bool:
    return False


def _came_to_nothing(done: Done) -> bool:
    """Whether there were peers to ask and they did not answer, or not enough of them to say anything."""
    return done.verdict is Verdict.FAILED and done.asked > 0
