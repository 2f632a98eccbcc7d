"""py-libp2p's swarm with its unsafe parts replaced: who may connect, which path is used. Dials by `dialing`; serves nothing.

A subclass, so that nothing of the library is patched in place and a stock host in the same process stays stock.
"""

import ipaddress
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio
from libp2p.abc import IMuxedConn, INetConn, IPeerStore
from libp2p.connection_types import ConnectionType
from libp2p.io.abc import ReadWriteCloser
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from daemon.transport.addresses import remote_end, text_of
from daemon.transport.dialing import Dialing
from daemon.transport.gossip_guard import Budgets
from daemon.transport.muxer import MuxedConnection
from daemon.transport.options import TransportCounters, TransportOptions
from daemon.transport.tcp import SharedPortTCP
from protocol.wire.ids import is_peer_id

log = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0

ARRIVALS_RATE = 2.0
ARRIVALS_BURST = 64.0
"""Connections that one IP may make, a second and at once: each costs 12 ms of CPU, also where it is closed again at once."""

ConnectionWatcher = Callable[[INetConn, bool], None]
"""(connection, opened): called once when a connection is registered and once when it is gone."""


class _NoAutoConnector(AutoConnector):
    """The stock one dials strangers out of the peerstore whenever connections are few; whom we dial, the daemon decides."""

    async def run_background_task(self, nursery: trio.Nursery) -> None:
        await trio.lowlevel.checkpoint()

    async def maybe_connect(self) -> None:
        await trio.lowlevel.checkpoint()


class _Connection(SwarmConn):
    async def _cleanup(self) -> None:
        # The stock one sleeps a tenth of a second here, since its streams learn of the end by polling; ours were told already.
        self.swarm.remove_conn(self)
        for stream in tuple(self.streams):
            await stream.reset()
        await self._notify_disconnected()


class HardenedSwarm(Swarm):
    """Admission on accept, dials of our own without a negative cache, and inbound slots that end with their connection."""

    def __init__(
        self,
        peer_id: ID,
        peerstore: IPeerStore,
        upgrader: TransportUpgrader,
        options: TransportOptions,
        counters: TransportCounters,
    ) -> None:
        config = _connection_config(options)
        self.tcp = SharedPortTCP()
        super().__init__(peer_id, peerstore, upgrader, transports=[self.tcp], connection_config=config)
        self.options = options
        self.counters = counters
        self.is_proof: Callable[[ReadWriteCloser], Awaitable[bool]] = _never
        """Whether an inbound connection only proves that we can be dialled."""
        self.watchers: list[ConnectionWatcher] = []
        self.dialing = Dialing(self)
        self.auto_connector = _NoAutoConnector(self)
        self._inbound = 0
        self._inbound_per_ip: Counter[str] = Counter()
        self._arrivals = Budgets(ARRIVALS_RATE, ARRIVALS_BURST)
        self._handshakes = trio.CapacityLimiter(options.max_pending_handshakes)
        self._announced: set[SwarmConn] = set()

    async def run(self) -> None:
        try:
            await super().run()
        finally:
            # The library's own clean-up is cancelled at its first step, and would leave the listening sockets open.
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_SECONDS):
                async with trio.open_nursery() as nursery:
                    for listener in self.listeners.values():
                        nursery.start_soon(listener.close)
                    for conn in self.get_connections():
                        nursery.start_soon(conn.close)

    # ---- accepting

    async def _handle_inbound_connection(self, read_write_closer: ReadWriteCloser, maddr: Multiaddr) -> None:
        ip = _remote_ip(read_write_closer)
        reason = self._refusal(ip)
        if reason:
            self.counters.refused[reason] += 1
            log.debug("refused a connection from %s: %s", ip, reason)
            await _close_quietly(read_write_closer)
            return
        self._inbound += 1
        self._inbound_per_ip[ip] += 1
        try:
            if await self.is_proof(read_write_closer):
                await _close_quietly(read_write_closer)
                return
            muxed = await self._upgrade(read_write_closer, maddr)
            if isinstance(muxed, MuxedConnection):
                await muxed.event_closed.wait()
        finally:
            self._inbound -= 1
            self._inbound_per_ip[ip] -= 1
            if not self._inbound_per_ip[ip]:
                del self._inbound_per_ip[ip]

    async def _upgrade(self, stream: ReadWriteCloser, maddr: Multiaddr) -> IMuxedConn | None:
        raw = RawConnection(stream, False)
        try:
            with trio.fail_after(self.options.upgrade_timeout):
                async with self._handshakes:
                    return await self.upgrade_inbound_raw_conn(raw, maddr)
        except Exception as error:  # noqa: BLE001 - a stranger's bytes decide what is raised here
            kind = type(error.__cause__ or error).__name__
            self.counters.handshakes_failed[kind] += 1
            log.debug("a handshake from %s failed: %s", _remote_ip(stream), kind)
            await _close_quietly(stream)
            return None

    def _refusal(self, ip: str) -> str | None:
        options = self.options
        if self._inbound >= options.max_connections - options.reserved_outbound:
            return "total"
        exempt = options.loopback_exempt and ip and ipaddress.ip_address(ip).is_loopback
        if not exempt and self._inbound_per_ip[ip] >= options.max_connections_per_ip:
            return "ip"
        if not exempt and not self._arrivals.take(ip, trio.current_time()):
            return "rate"
        return None

    # ---- registering

    async def add_conn(self, muxed_conn: IMuxedConn, direction: str = "unknown") -> SwarmConn:
        """Start a connection and list it; raises SwarmException where a limit forbids it or it died at once."""
        peer = muxed_conn.peer_id
        if peer == self.self_id or not is_peer_id(str(peer)):
            self.counters.refused["identity"] += 1
            await muxed_conn.close()
            raise SwarmException("that is this peer itself" if peer == self.self_id else "only Ed25519 identities are peers here")
        for known in self.connections.get(peer, ()):
            if known.muxed_conn is muxed_conn:
                return known  # type: ignore[return-value]
        if self.get_total_connections() >= self.options.max_connections:
            self.counters.refused["total"] += 1
            await muxed_conn.close()
            raise SwarmException("the connection limit is reached")
        conn = _Connection(muxed_conn, self, direction=direction)
        try:
            conn.set_transport_info(muxed_conn.get_transport_addresses(), muxed_conn.get_connection_type())
            self.manager.run_task(muxed_conn.start)
            await muxed_conn.event_started.wait()
            self.manager.run_task(conn.start)
            await conn.event_started.wait()
            if conn.is_closed or muxed_conn.is_closed:
                raise SwarmException("the connection closed at once")
        except BaseException:
            with trio.CancelScope(shield=True):
                await conn.close()
            raise
        self._register(peer, conn, direction)
        await self._make_room(peer, conn)
        await self.notify_connected(conn)
        return conn

    def _register(self, peer: ID, conn: SwarmConn, direction: str) -> None:
        self.connections.setdefault(peer, []).append(conn)
        if direction == "inbound":
            self.counters.accepted += 1
        else:
            self.counters.dialed += 1
        self._announced.add(conn)
        log.debug("connected to %s (%s) at %s", peer, direction, address_of(conn))
        for watcher in self.watchers:
            watcher(conn, True)

    async def _make_room(self, peer: ID, newest: SwarmConn) -> None:
        held = self.connections.get(peer, [])
        if len(held) > self.options.max_connections_per_peer:
            others = [conn for conn in held if conn is not newest]
            # One that carries a call goes last: an upgrade must not break what runs over the relay.
            worst = min(others, key=lambda conn: (bool(getattr(conn.muxed_conn, "in_use", False)), *self.preference(conn)))
            self.counters.refused["peer"] += 1
            await worst.close()

    def remove_conn(self, swarm_conn: SwarmConn) -> None:
        super().remove_conn(swarm_conn)
        if swarm_conn not in self._announced:
            return
        self._announced.discard(swarm_conn)
        muxed = swarm_conn.muxed_conn
        cause = muxed.cause if isinstance(muxed, MuxedConnection) else ""
        detail = muxed.detail if isinstance(muxed, MuxedConnection) else ""
        self.counters.connections_closed[cause or "local"] += 1
        log.debug("disconnected from %s: %s (%s)", muxed.peer_id, cause, detail)
        for watcher in self.watchers:
            watcher(swarm_conn, False)

    async def _notify(self, method: str, *args: Any) -> None:
        # In turn: the stock one opens a nursery and a task per listener for every stream that opens or closes.
        for notifee in tuple(self.notifees):
            try:
                await getattr(notifee, method)(self, *args)
            except Exception as error:  # noqa: BLE001 - a listener's fault must not reach the connection
                log.warning("%s.%s failed: %r", type(notifee).__name__, method, error)

    async def notify_disconnected(self, conn: INetConn) -> None:
        # The stock method also starts the library's own reconnect policy; ours lives in the daemon.
        await self._notify("disconnected", conn)

    def live(self, peer: ID) -> list[INetConn]:
        """The connections to `peer` that are open."""
        return [conn for conn in self.connections.get(peer, ()) if not conn.is_closed]

    def direct(self, peer: ID) -> list[INetConn]:
        """Those of them that no relay carries."""
        return [conn for conn in self.live(peer) if conn.get_connection_type() != ConnectionType.RELAYED]

    def preference(self, conn: INetConn) -> tuple[bool, bool, bool, bool, float]:
        """Sort key, best last: alive, direct, TCP, dialed by the smaller peer id (so both sides agree), newest."""
        muxed = conn.muxed_conn
        own = muxed if isinstance(muxed, MuxedConnection) else None
        dialer_is_smaller = muxed.is_initiator == (self.self_id.to_bytes() < muxed.peer_id.to_bytes())
        return (
            not (own is not None and own.is_suspect),
            conn.get_connection_type() != ConnectionType.RELAYED,
            "/udp/" not in address_of(conn),
            dialer_is_smaller,
            own.since if own is not None else 0.0,
        )

    def best(self, connections: Sequence[INetConn]) -> INetConn:
        """The connection of those to one peer that new streams should take."""
        return connections[0] if len(connections) == 1 else max(connections, key=self.preference)

    def _best_connection(self, connections: list[INetConn]) -> INetConn:
        return self.best(connections)

    async def dial_peer(self, peer_id: ID) -> list[INetConn]:
        """Live connections to a peer, made where there are none; raises DialError or WrongPeerError."""
        return await self.dialing.dial(peer_id)


async def _never(_stream: ReadWriteCloser) -> bool:
    return False


def _connection_config(options: TransportOptions) -> ConnectionConfig:
    return ConnectionConfig(
        max_connections=options.max_connections,
        min_connections=0,
        low_watermark=0,
        high_watermark=options.max_connections,
        max_connections_per_peer=options.max_connections_per_peer,
        inbound_upgrade_timeout=options.upgrade_timeout,
        outbound_upgrade_timeout=options.upgrade_timeout,
        outbound_stream_protocol_negotiation_timeout=max(1.0, options.stream_open_timeout),
        inbound_stream_protocol_negotiation_timeout=max(1.0, options.stream_open_timeout),
        auto_connect_interval=3600.0,
    )


def _remote_ip(stream: ReadWriteCloser) -> str:
    remote = stream.get_remote_address() or remote_end(stream)
    return remote[0] if remote is not None else ""


def address_of(conn: INetConn) -> str:
    """The remote multiaddr of a connection, "" where it has none."""
    addresses = conn.get_transport_addresses()
    return text_of(addresses[0]) if addresses else ""


def all_relayed(swarm: Any, peer: ID) -> list[INetConn]:
    """The connections to `peer` that a relay carries, with those that are about to be gone."""
    return [conn for conn in swarm.get_connections(peer) if conn.get_connection_type() == ConnectionType.RELAYED]


def relayed(swarm: Any, peer: ID) -> MuxedConnection | None:
    """A live one of them."""
    live = [conn.muxed_conn for conn in all_relayed(swarm, peer) if not conn.is_closed]
    return next((muxed for muxed in live if isinstance(muxed, MuxedConnection)), None)


async def _close_quietly(stream: ReadWriteCloser) -> None:
    with trio.CancelScope(shield=True), trio.move_on_after(1):
        try:
            await stream.close()
        except Exception as error:  # noqa: BLE001 - it is being thrown away
            log.debug("a close failed: %s", type(error).__name__)
