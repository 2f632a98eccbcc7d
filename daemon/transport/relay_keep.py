"""Our reservations: at how many relays, which, refreshed in time and replaced when one dies. Dials relays; carries nothing."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from weakref import WeakValueDictionary

import trio
from libp2p.abc import INetConn
from libp2p.connection_types import ConnectionType
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb
from multiaddr import Multiaddr

from daemon.transport.addresses import bound_addresses, text_of_address
from daemon.transport.interface import PathKind, TransportError
from daemon.transport.muxer import MuxedConnection
from daemon.transport.relay_hop import HOP, RelayOptions, load_of, quietly_reset, receive, send, status_name
from daemon.transport.tcp_punch import source_for
from nat.addresses import Reach, parse, reach_of, with_peer, without_peer
from nat.relay_choice import RelayCandidate, choose
from protocol.wire.ids import PeerId, is_peer_id

log = logging.getLogger(__name__)

_ADDRESS_LIFETIME = 24 * 3600
_MAX_ADDRESSES_PER_RELAY = 4
_LISTEN_SECONDS = 0.2
_SHORTEST_RESERVATION = 2.0
_LOOK_SECONDS = 5.0
_SILENCE_SECONDS = 0.5
"""How often relays that hold us are looked at."""

_AGAIN_SECONDS = 0.1
_MOVE_SECONDS = 2.0
"""For so long after a change of our network a failure says nothing of a relay: it is tried again at once."""

_PING_SECONDS = 1.5
"""Between pings to them. A dead one is to be replaced within 5 s: 1.5 to the ping, 1 in doubt, 0.5 to the look, then the dial."""


@dataclass(slots=True)
class _Known:
    address: Multiaddr
    configured: bool
    failures: int = 0
    load: float = 0.0
    ready: float = 0.0
    keeper: trio.CancelScope | None = None
    lost: trio.Event = field(default_factory=trio.Event)


class Reservations:
    """Keeps `options.relays` reservations at configured relays and at reachable peers that volunteer."""

    def __init__(self, host: Any, relays: Sequence[str], rng: Random, options: RelayOptions) -> None:
        """Raises TransportError for a relay address that names no peer."""
        self._host = host
        self.swarm = host.swarm
        self._rng = rng
        self._options = options
        self._known = {peer: _Known(address, True) for peer, address in map(relay_of, relays)}
        self._held: dict[ID, tuple[float, tuple[str, ...]]] = {}
        self._changed = trio.Event()
        self._moved_at = float("-inf")
        self._dialing: WeakValueDictionary[ID, trio.Lock] = WeakValueDictionary()
        self.needed: Callable[[], bool] = lambda: False
        """Whether peers that volunteer are wanted: only where we cannot be reached otherwise."""
        self.swarm.watchers.append(self._watch)

    @property
    def held(self) -> Mapping[ID, tuple[float, tuple[str, ...]]]:
        """Relays that hold a reservation of ours: the unix time at which it ends, and the relay's addresses."""
        return self._held

    @property
    def configured(self) -> Mapping[ID, Multiaddr]:
        """Relays that were named to us, with their addresses."""
        return {peer: known.address for peer, known in self._known.items() if known.configured}

    def address_of(self, peer: ID) -> Multiaddr | None:
        """Where a relay is dialled; None for a peer that is none."""
        return self._known[peer].address if peer in self._known else None

    def view(self) -> list[dict[str, Any]]:
        """The relays that we know of, those that hold us first; for people."""
        now = time.time()
        rows = [
            {
                "peer_id": peer.to_base58(),
                "address": str(known.address),
                "held": peer in self._held,
                "expires_s": round(self._held[peer][0] - now) if peer in self._held else None,
                "rtt_ms": None if (rtt := self._rtt(peer)) is None else round(rtt * 1000, 1),
                "configured": known.configured,
                "load": known.load if peer in self._held else None,
                "circuits": self._circuits(peer),
                "failures": known.failures,
            }
            for peer, known in self._known.items()
        ]
        return sorted(rows, key=lambda row: (not row["held"], row["peer_id"]))

    def add(self, address: str) -> None:
        """One more relay to choose from; raises TransportError where `address` names no peer."""
        relay, where = relay_of(address)
        self._known.setdefault(relay, _Known(where, True))
        self._wake()

    def addresses(self) -> list[str]:
        """/.../p2p/<relay>/p2p-circuit for each address of each relay that holds us; public ones first."""
        found = [f"{address}/p2p-circuit" for _, addresses in self._held.values() for address in addresses]
        return sorted(found, key=lambda address: reach_of(address.split("/p2p-circuit")[0]) is not Reach.PUBLIC)

    async def run(self) -> None:
        """Hold what `choose` says, until cancelled."""
        with trio.move_on_after(_LISTEN_SECONDS):
            while not bound_addresses(self.swarm):  # noqa: ASYNC110 - the library signals nothing when it listens
                await trio.sleep(0.01)
        async with trio.open_nursery() as nursery:
            while True:
                self._changed = trio.Event()
                self._volunteers()
                wanted = set(choose(self._candidates(), self._options.relays, trio.current_time()))
                for peer, known in self._known.items():
                    if peer.to_base58() in wanted and known.keeper is None:
                        known.keeper = trio.CancelScope()
                        nursery.start_soon(self._keep, peer, known, known.keeper)
                    elif peer.to_base58() not in wanted and known.keeper is not None:
                        known.keeper.cancel()
                with trio.move_on_at(self._next_look()):
                    await self._until_changed()

    def _next_look(self) -> float:
        now = trio.current_time()
        due = [known.ready for known in self._known.values() if known.keeper is None and known.ready > now]
        return min([now + _LOOK_SECONDS, *due])

    async def _until_changed(self) -> None:
        """Until something happened, which includes that a relay that holds us fell silent or spoke again."""
        silent = self._silent_ones()
        while not self._changed.is_set() and silent == self._silent_ones():
            with trio.move_on_after(_SILENCE_SECONDS if self._held else _LOOK_SECONDS):
                await self._changed.wait()

    def _silent_ones(self) -> set[ID]:
        return {relay for relay in self._held if self._silent(relay)}

    def _silent(self, relay: ID) -> bool:
        direct = [conn.muxed_conn for conn in self.swarm.live(relay)]
        return bool(direct) and all(isinstance(muxed, MuxedConnection) and muxed.is_suspect for muxed in direct)

    def _ping_often(self, relay: ID) -> None:
        for conn in self.swarm.get_connections(relay):
            muxed = conn.muxed_conn
            if isinstance(muxed, MuxedConnection):
                interval = min(muxed.settings.keepalive_interval, _PING_SECONDS)
                muxed.settings = replace(muxed.settings, keepalive_interval=interval)

    def _circuits(self, relay: ID) -> int:
        """Connections of ours that run through `relay`."""
        via = f"/p2p/{relay.to_base58()}/p2p-circuit"
        relayed = [conn for conn in self.swarm.get_connections() if conn.get_connection_type() == ConnectionType.RELAYED]
        return sum(any(via in str(at) for at in conn.get_transport_addresses()) for conn in relayed if not conn.is_closed)

    def _wake(self) -> None:
        self._changed.set()

    def _candidates(self) -> list[RelayCandidate]:
        return [
            RelayCandidate(
                peer.to_base58(), self._rtt(peer), known.keeper is not None, self._circuits(peer), known.ready, known.configured,
                known.load, self._silent(peer),
            )
            for peer, known in self._known.items()
        ]

    def _volunteers(self) -> None:
        """Peers that we reached by a plain dial, so that others can, and that say they relay."""
        if not self.needed():
            return
        for peer, connections in self.swarm.connections.items():
            if peer in self._known or len(self._known) >= self._options.max_known_relays:
                continue
            for conn in connections:
                muxed = conn.muxed_conn
                plain = isinstance(muxed, MuxedConnection) and muxed.path_kind in (None, PathKind.DIRECT) and muxed.is_initiator
                addresses = [] if conn.is_closed or not plain else conn.get_transport_addresses()
                if addresses and conn.get_connection_type() != ConnectionType.RELAYED and self._relays(peer):
                    self._known[peer] = _Known(Multiaddr(without_peer(str(addresses[0]))), False)
                    break

    def _relays(self, peer: ID) -> bool:
        try:
            return HOP in self._host.get_peerstore().get_protocols(peer)
        except PeerStoreError:
            return False

    def _rtt(self, peer: ID) -> float | None:
        measured = [getattr(conn.muxed_conn, "rtt", None) for conn in self.swarm.live(peer)]
        known = [rtt for rtt in measured if rtt is not None]
        return min(known) if known else None

    async def _keep(self, relay: ID, known: _Known, scope: trio.CancelScope) -> None:
        """Stay connected to `relay` with a reservation, refreshed at half its time; gives up at its first failure."""
        with scope:
            try:
                while True:
                    known.lost = trio.Event()
                    with trio.fail_after(3 * self._options.message_timeout):
                        await self.connect_from_listening_port(relay, known.address)
                        expire = await self.reserve(relay)
                    self._ping_often(relay)
                    self._wake()
                    known.failures, known.ready = 0, 0.0
                    with trio.move_on_after(max(1.0, (expire - time.time()) / 2)):
                        await known.lost.wait()
                        raise TransportError("the connection to it was lost")
            except (TransportError, SwarmException, trio.TooSlowError) as error:
                log.info("no reservation at the relay %s: %s", relay, error or "no answer in time")
                now = trio.current_time()
                if now < self._moved_at + _MOVE_SECONDS:
                    known.failures, known.ready = 0, now + _AGAIN_SECONDS
                else:
                    self._put_off(known)
        self._held.pop(relay, None)
        known.keeper = None
        self._wake()

    def _put_off(self, known: _Known) -> None:
        longest = min(self._options.retry_max, self._options.retry_min * 2.0**known.failures)
        known.failures = min(known.failures + 1, 16)
        known.ready = trio.current_time() + self._rng.uniform(0, longest)

    def moved(self) -> None:
        """Our network has changed: relays are dialled from the new one at once."""
        self._moved_at = trio.current_time()
        for known in self._known.values():
            known.failures, known.ready = 0, 0.0
        self._wake()

    async def connect_from_listening_port(self, peer: ID, address: Multiaddr) -> None:
        """Connect to a relay or bootstrap peer from our listening port; at once where connected directly.

        Only so does what the peer observes of us name a port that others can dial (research: 7 of 36 NAT pairs depend on it).
        """
        lock = self._dialing.setdefault(peer, trio.Lock())
        async with lock:
            if self.swarm.direct(peer):
                return
            self._host.get_peerstore().add_addrs(peer, [address], _ADDRESS_LIFETIME)
            source = source_for(self.swarm, address)
            if source is not None:
                try:
                    await self.swarm._dial_addr_single_attempt(address, peer, source)
                    return
                except Exception as error:  # noqa: BLE001 - whoever answers there decides what is raised, and need be no peer at all
                    # The port may still be bound to the same peer from before (TIME_WAIT), which an ephemeral port is not.
                    log.debug("a dial from %s failed: %s", source, error)
            await self.swarm.dial_peer(peer)

    async def reserve(self, relay: ID) -> float:
        """Ask `relay` for a place; returns the unix time at which it ends; raises TransportError or SwarmException."""
        try:
            stream = await self._host.new_stream(relay, [HOP])
            try:
                await send(stream, pb.HopMessage(type=pb.HopMessage.RESERVE))
                answer = await receive(stream, pb.HopMessage)
            finally:
                await quietly_reset(stream)
        except (SwarmException, trio.TooSlowError):
            raise
        except Exception as error:
            raise TransportError(f"it does not serve as a relay ({error})") from error
        if answer.status != pb.OK:
            raise TransportError(f"it refused with {status_name(answer.status)}")
        now = time.time()
        expire = min(max(float(answer.reservation.expire), now + _SHORTEST_RESERVATION), now + 24 * 3600)
        if relay in self._known:
            self._known[relay].load = load_of(answer)
        self._held[relay] = expire, self._relay_addresses(relay, answer.reservation.addrs)
        log.info("reserved a place at the relay %s until %.0f", relay, expire)
        return expire

    def _relay_addresses(self, relay: ID, claimed: Sequence[bytes]) -> tuple[str, ...]:
        """The address that worked for us, then the public ones that the relay claims."""
        found = [str(self._known[relay].address)] if relay in self._known else []
        texts = map(text_of_address, claimed[:16])
        found += [text for text in texts if reach_of(text) is Reach.PUBLIC]
        name = PeerId(relay.to_base58())
        return tuple(dict.fromkeys(with_peer(without_peer(address), name) for address in found))[:_MAX_ADDRESSES_PER_RELAY]

    def _watch(self, conn: INetConn, opened: bool) -> None:
        peer = conn.muxed_conn.peer_id
        known = self._known.get(peer)
        if opened or known is None:
            self._wake()
        elif not self.swarm.direct(peer):
            self._held.pop(peer, None)
            known.lost.set()


def relay_of(address: str) -> tuple[ID, Multiaddr]:
    """The relay that `address` names, and the address without the name; raises TransportError."""
    endpoint = parse(address)
    if endpoint is None or endpoint.relayed or endpoint.peer is None or not is_peer_id(endpoint.peer):
        raise TransportError(f"{address[:200]!r} is not a relay's address such as /ip4/192.0.2.1/tcp/4001/p2p/12D3KooW...")
    return ID.from_base58(endpoint.peer), Multiaddr(without_peer(address))
