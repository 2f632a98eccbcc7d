"""From a relayed to a direct connection: sessions over the relayed one, then TCP and UDP punches from the mesh port.

Decides when to try and which role to take; the relayed connection keeps serving meanwhile, and until nothing runs on it.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import trio
from libp2p.abc import INetConn
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from multiaddr import Multiaddr

from daemon.transport.addresses import text_of_address
from daemon.transport.blind_credit import BlindCredit
from daemon.transport.gossip_guard import Budgets
from daemon.transport.interface import PathKind, TransportError
from daemon.transport.muxer import MuxedConnection
from daemon.transport.observations import Observations
from daemon.transport.relay_hop import RelayOptions, quietly_reset, receive, send
from daemon.transport.streams import Libp2pStream, UnsupportedError, open_stream, receive_message
from daemon.transport.swarm import all_relayed, relayed
from daemon.transport.tcp_punch import connect, upgrade_as_client, upgrade_as_starter
from daemon.transport.udp_paths import UdpPaths
from nat.addresses import Reach, dial_order, multiaddr_of, parse, reach_of
from nat.observed import HARD, Mapping
from nat.port_count import PortCount
from nat.punch_messages import (
    DIAL_BYTES,
    KNOCK_BYTES,
    MAX_MESSAGE_BYTES,
    MOST_KNOCKS,
    PROTOCOL,
    Go,
    Hello,
    count_in,
    counted,
    mapping_of,
)
from protocol.wire.codec import encode, frame
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId

DCUTR = TProtocol("/libp2p/dcutr")
MAX_ADDRESSES = 8
_MAX_KNOWN = 4
_MAX_SESSIONS = 16
_IDENTIFY_SECONDS = 0.5
_UNILATERAL_SECONDS = 3.0
_LONGEST_PAUSE = 900.0
_PATIENCE_SECONDS = 0.15
_TCP_HEAD_START = 0.4
"""Seconds for which TCP is tried alone where it should do: it carries fifteen times what QUIC does here (research)."""

_UDP_HEAD_START = 0.3
"""And UDP where both ends are symmetric: each dial has a NAT count on, away from the port that it was predicted to give."""

log = logging.getLogger(__name__)

Witnesses = Callable[[ID, str], Awaitable[bool]]
"""(peer, IP address): whether the relay between us sees the peer come from there."""


class Puncher:
    """Upgrades relayed connections. The side that accepted the relayed connection starts (DCUtR), so roles never race."""

    def __init__(self, host: Any, options: RelayOptions, observations: Observations, udp: UdpPaths, witness: Witnesses) -> None:
        self._host = host
        self._swarm = host.swarm
        self._options = options
        self._observations = observations
        self._udp = udp
        self._witness = witness
        self._under_way: set[ID] = set()
        self._retiring: set[ID] = set()
        self._waiting: dict[ID, trio.CancelScope] = {}
        self._leading: dict[ID, trio.CancelScope] = {}
        self._answering: dict[ID, trio.Event] = {}
        self._punching: dict[ID, float] = {}
        self._sessions = Budgets(rate=0.1, burst=4)
        self._credit = BlindCredit(self._swarm)
        self._changed = trio.Event()
        self._swarm.watchers.append(self._watch)
        self.nursery: trio.Nursery | None = None
        """Where connections that a punch made go on, whatever becomes of the punch."""
        self.succeeded = 0
        self.failed = 0

    async def upgrade(self, peer: ID) -> None:
        """Try for a direct connection to a peer that reached us over a relay, and again ever more seldom; raises nothing."""
        if (waiting := self._waiting.pop(peer, None)) is not None:
            waiting.cancel()  # it has come anew, so that another try is due now
        pause = self._options.punch_again
        while peer not in self._under_way and relayed(self._swarm, peer) is not None:
            if not self._swarm.direct(peer) and self._may_start(peer):
                await self._try(peer)
            if self._swarm.direct(peer):
                if peer not in self._retiring:
                    await self._retire_relayed(peer)
                return  # were the direct path lost meanwhile, another search has begun
            with trio.CancelScope() as scope:
                self._waiting[peer] = scope
                await trio.sleep(pause)
            if scope.cancel_called:
                return
            del self._waiting[peer]
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _try(self, peer: ID) -> None:
        self._under_way.add(peer)
        try:
            await self._upgrade(peer)
        except Exception as error:  # noqa: BLE001 - the relayed connection serves on, whatever happened to this attempt
            log.debug("no direct connection to %s: %r", peer, error)
        finally:
            self._under_way.discard(peer)
        if self._swarm.direct(peer):
            self.succeeded += 1
        else:
            self.failed += 1

    async def _upgrade(self, peer: ID) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_direct, peer, nursery.cancel_scope)
            nursery.start_soon(self._dial_known, peer)
            for attempt in range(self._options.punch_attempts):
                if peer in self._answering:
                    await self._answering[peer].wait()
                over = relayed(self._swarm, peer)
                if over is None:
                    break
                await self._lead(peer, over)
                await trio.sleep(2.0**attempt)
            nursery.cancel_scope.cancel()

    async def _lead(self, peer: ID, over: MuxedConnection) -> None:
        """Run a session as its starter, until the peer leads one."""
        with trio.CancelScope() as self._leading[peer]:
            try:
                await self._session(peer, over)
            except UnsupportedError:
                await self._dcutr_session(peer)
            except (TransportError, RemoteError, trio.TooSlowError) as error:
                log.debug("a punch session with %s failed: %r", peer, error)
            finally:
                del self._leading[peer]

    def _may_start(self, peer: ID) -> bool:
        # Each session makes us dial up to 8 addresses that a stranger names.
        now = trio.current_time()
        return len(self._under_way) < _MAX_SESSIONS and self._sessions.take(peer, now) and self._sessions.take("all", now, 0.1)

    async def _dial_known(self, peer: ID) -> None:
        """A plain dial meanwhile: a peer with an open port needs no punch."""
        with trio.move_on_after(_IDENTIFY_SECONDS):
            while peer not in self._host._identified_peers:  # noqa: ASYNC110 - the library signals nothing when it is done
                await trio.sleep(0.02)
        try:
            known = [str(address) for address in self._host.get_peerstore().addrs(peer)]
        except PeerStoreError:
            return
        with trio.move_on_after(_UNILATERAL_SECONDS):
            async with trio.open_nursery() as nursery:
                for address in self._affordable(peer, self._dialable(known)[:_MAX_KNOWN]):
                    # From a port of its own: the punch needs the way from the listening port for itself.
                    nursery.start_soon(self._dial_plainly, peer, address)

    async def _dial_plainly(self, peer: ID, address: Multiaddr) -> None:
        try:
            conn = await self._swarm._dial_addr_single_attempt(address, peer)
            conn.muxed_conn.path_kind = PathKind.DIRECT
        except Exception as error:  # noqa: BLE001 - most dials of a punch fail
            log.debug("a dial failed: %r", error)

    # ---- sessions between two of us

    async def _session(self, peer: ID, over: MuxedConnection) -> None:
        """Start a session: both Hellos in one round trip, then Go, and punch when it arrives."""
        ours = self._hello()
        sent = trio.current_time()
        with trio.fail_after(2 * self._options.punch_timeout):
            stream = await open_stream(PeerId(peer.to_base58()), over, PROTOCOL, early=frame(encode(ours)))
            try:
                theirs = await receive_message(stream, Hello, MAX_MESSAGE_BYTES)
                half = min((trio.current_time() - sent) / 2, 2.0)
                count = await self._count(ours, theirs)
                ours = counted(ours, count)
                await stream.send_all(frame(encode(counted(Go(), count))))
                await stream.aclose()
            except BaseException:
                with trio.CancelScope(shield=True):
                    await stream.reset()
                raise
        await trio.sleep(half)
        await self._punch_all(peer, True, ours, theirs, _PATIENCE_SECONDS + 3 * half)

    async def handle_session(self, stream: Any) -> None:
        """Answer a session: our Hello for theirs, and punch at their Go, as the connection's client."""
        peer: ID = stream.muxed_conn.peer_id
        self._check_session(stream, peer)
        if peer in self._answering:
            raise TransportError("a punch session with it is under way")
        # Two that reach each other at once would both start, and both then be clients on one path: the smaller id leads.
        if peer in self._leading:
            if self._swarm.self_id.to_bytes() < peer.to_bytes():
                raise TransportError("we lead a punch session with it")
            self._leading[peer].cancel()
        over = self._answering[peer] = trio.Event()
        try:
            await self._answer(peer, stream)
        finally:
            del self._answering[peer]
            over.set()

    async def _answer(self, peer: ID, stream: Any) -> None:
        ours = self._hello()
        own = Libp2pStream(PeerId(peer.to_base58()), stream.muxed_stream)
        with trio.fail_after(2 * self._options.punch_timeout):
            theirs = await receive_message(own, Hello, MAX_MESSAGE_BYTES)
            ours = counted(ours, await self._count(ours, theirs))
            await own.send_all(frame(encode(ours)))
            theirs = counted(theirs, count_in(await receive_message(own, Go, MAX_MESSAGE_BYTES)))
        await own.aclose()
        await self._punch_all(peer, False, ours, theirs, None)

    async def _count(self, ours: Hello, theirs: Hello) -> PortCount | None:
        """How far our NAT has come, asked as late as can be, where both count: whatever else we dial now makes it older."""
        counting = all(mapping_of(hello.udp_mapping) is Mapping.PREDICTABLE for hello in (ours, theirs))
        return await self._udp.mapping.count() if counting else None

    def _hello(self) -> Hello:
        return self._udp.hello(self._observations.candidates(), self._observations.mapping())

    def _check_session(self, stream: Any, peer: ID) -> None:
        if stream.muxed_conn.get_connection_type() != ConnectionType.RELAYED or not self._may_start(peer):
            raise TransportError("no punch session is due")

    async def _punch_all(self, peer: ID, starter: bool, ours: Hello, theirs: Hello, patience: float | None) -> None:
        """TCP and UDP until a connection stands."""
        texts = [multiaddr_of(at.host, at.port) for at in theirs.tcp]
        hard = [mapping_of(hello.tcp_mapping) in HARD for hello in (ours, theirs)]
        dials = self._affordable(peer, self._dialable(texts))  # before UDP, which takes what is left

        async def by_udp() -> None:
            await trio.sleep(0 if any(hard) else _TCP_HEAD_START)
            knocks = self._credit.afford(peer, KNOCK_BYTES, MOST_KNOCKS)
            await self._udp.punch(peer, starter, (ours, theirs), lambda host: self._witness(peer, host), knocks)

        async def by_tcp() -> None:
            await trio.sleep(_UDP_HEAD_START if all(hard) else 0)
            await self._dial_all(peer, dials, patience)

        await self._until(peer, by_udp, by_tcp)

    # ---- sessions of the DCUtR specification, with others

    async def handle(self, stream: Any) -> None:
        """Answer a DCUtR session: exchange addresses, then dial when told to, as the connection's client."""
        peer: ID = stream.muxed_conn.peer_id
        self._check_session(stream, peer)
        with trio.fail_after(2 * self._options.punch_timeout):
            request = await receive(stream, HolePunch)
            if request.type != HolePunch.CONNECT:
                raise TransportError("a DCUtR session starts with CONNECT")
            await send(stream, HolePunch(type=HolePunch.CONNECT, ObsAddrs=self._candidates()))
            if (await receive(stream, HolePunch)).type != HolePunch.SYNC:
                raise TransportError("a DCUtR session goes on with SYNC")
        await stream.close()
        await self._until(peer, lambda: self._dial_all(peer, self._affordable(peer, self._targets(request.ObsAddrs)), None))

    async def _dcutr_session(self, peer: ID) -> None:
        stream = await self._host.new_stream(peer, [DCUTR])
        try:
            with trio.fail_after(2 * self._options.punch_timeout):
                sent = trio.current_time()
                await send(stream, HolePunch(type=HolePunch.CONNECT, ObsAddrs=self._candidates()))
                answer = await receive(stream, HolePunch)
                if answer.type != HolePunch.CONNECT:
                    raise TransportError("a DCUtR session is answered with CONNECT")
                half = (trio.current_time() - sent) / 2
                await send(stream, HolePunch(type=HolePunch.SYNC))
                await trio.sleep(min(half, 2.0))
            targets, patience = self._affordable(peer, self._targets(answer.ObsAddrs)), _PATIENCE_SECONDS + 4 * half
            await self._until(peer, lambda: self._dial_all(peer, targets, patience))
        finally:
            with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
                await quietly_reset(stream)

    def _candidates(self) -> list[bytes]:
        return [Multiaddr(multiaddr_of(at.host, at.port)).to_bytes() for at in self._observations.candidates()]

    def _targets(self, raw: Any) -> list[Multiaddr]:
        return self._dialable([text_of_address(entry) for entry in raw[: 2 * MAX_ADDRESSES]])

    # ---- punching

    async def _until(self, peer: ID, *ways: Callable[[], Awaitable[None]]) -> None:
        """Go all these ways until a connection stands."""
        if self._swarm.direct(peer):
            return
        now = trio.current_time()
        self._punching = {other: until for other, until in self._punching.items() if until > now}
        self._punching[peer] = now + 2 * self._options.punch_timeout
        with trio.move_on_after(self._options.punch_timeout) as scope:
            async with trio.open_nursery() as nursery:
                for way in ways:
                    nursery.start_soon(way)
                nursery.start_soon(self._until_direct, peer, scope)

    async def _dial_all(self, peer: ID, targets: list[Multiaddr], patience: float | None) -> None:
        """Dial every target from our listening port; with `patience` as the session's starter."""
        async with trio.open_nursery() as nursery:
            for target in targets:
                nursery.start_soon(self._dial, peer, target, patience)

    async def _dial(self, peer: ID, address: Multiaddr, patience: float | None) -> None:
        try:
            raw = await connect(self._swarm, address)
        except Exception as error:  # noqa: BLE001 - most dials of a punch fail
            log.debug("a dial failed: %r", error)
            return
        # Not cancelled with the others: the peer may have counted this connection as made, and put a call on it.
        over = trio.Event()
        if self.nursery is not None:
            self.nursery.start_soon(self._upgrade_dialed, peer, raw, address, patience, over)
            await over.wait()

    async def _upgrade_dialed(self, peer: ID, raw: Any, address: Multiaddr, patience: float | None, over: trio.Event) -> None:
        try:
            with trio.fail_after(self._options.message_timeout):
                if patience is None:
                    await upgrade_as_client(self._swarm, peer, raw)
                else:
                    await upgrade_as_starter(self._swarm, peer, raw, address, patience)
        except Exception as error:  # noqa: BLE001 - the peer's bytes decide what is raised here
            log.debug("a punched connection came to nothing: %r", error)
        over.set()

    def _dialable(self, texts: Iterable[str]) -> list[Multiaddr]:
        ours = [str(address) for address in self._host.get_addrs()]
        ordered = [text for text in dial_order(texts, ours) if reach_of(text) is not Reach.RELAYED]
        return [Multiaddr(text) for text in ordered if (at := parse(text)) is not None and at.transport == "tcp"][:MAX_ADDRESSES]

    def _affordable(self, peer: ID, targets: list[Multiaddr]) -> list[Multiaddr]:
        return targets[: self._credit.afford(peer, DIAL_BYTES, len(targets))]

    async def _until_direct(self, peer: ID, won: trio.CancelScope) -> None:
        while not self._swarm.direct(peer):
            await self._changed.wait()
        won.cancel()

    def _watch(self, conn: INetConn, opened: bool) -> None:
        if not opened:
            self._lost(conn)
            return
        punching = trio.current_time() < self._punching.get(conn.muxed_conn.peer_id, 0.0)
        if punching and conn.muxed_conn.get_connection_type() != ConnectionType.RELAYED:
            # Either side's dial may be the one that arrives, even after another of them has won.
            conn.muxed_conn.path_kind = PathKind.PUNCHED  # type: ignore[attr-defined]
        self._changed.set()
        self._changed = trio.Event()

    def _lost(self, conn: INetConn) -> None:
        """Look for another direct path where one is gone, as when the peer changed networks, and the relayed one stands."""
        peer = conn.muxed_conn.peer_id
        left = relayed(self._swarm, peer)
        if conn.get_connection_type() == ConnectionType.RELAYED or self._swarm.direct(peer):
            return
        if left is None or left.is_initiator:
            return
        if self.nursery is not None:
            self.nursery.start_soon(self.upgrade, peer)

    async def _retire_relayed(self, peer: ID) -> None:
        """Close the relayed connection once nothing of ours runs on it any more, a day at most."""
        self._retiring.add(peer)
        try:
            await trio.sleep(self._options.relayed_grace)
            with trio.move_on_after(self._options.max_circuit_duration):
                while self._swarm.direct(peer) and any(map(_in_use, all_relayed(self._swarm, peer))):  # noqa: ASYNC110 - seldom, not urgent
                    await trio.sleep(self._options.relayed_grace / 4)
            if self._swarm.direct(peer):
                for conn in all_relayed(self._swarm, peer):
                    await conn.close()
        finally:
            self._retiring.discard(peer)


def _in_use(conn: INetConn) -> bool:
    return isinstance(conn.muxed_conn, MuxedConnection) and conn.muxed_conn.in_use
