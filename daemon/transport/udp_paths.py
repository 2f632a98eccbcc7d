"""Punched UDP paths: one punch at a time per peer, and the connection over the path that was found.

Drives `nat.udp_punch`; which peer and when, the puncher decides.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import trio
from libp2p.connection_types import ConnectionType
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from daemon.transport.interface import PathKind, TransportError
from daemon.transport.quic_pipe import QuicPipe, ticket_in
from daemon.transport.udp_mapping import KEEP_SECONDS, UdpMapping
from daemon.transport.udp_port import Address, UdpPort, bound_socket, receive_from, send_now
from nat.addresses import multiaddr_of, punch_targets
from nat.datagrams import MAGIC, Knock, encode
from nat.observed import Mapping
from nat.punch_messages import Endpoint, Hello, count_in, joint_token, mapping_of, number_of, padded
from nat.udp_punch import Effect, Found, OpenSockets, Over, PunchOptions, Send, UdpPunch, Way, way_of

log = logging.getLogger(__name__)

_PIPE_SECONDS = 5.0

Witness = Callable[[str], Awaitable[bool]]
"""Whether a relay sees the peer come from this IP address."""


class UdpPaths:
    """The UDP side of one host. `ports` is empty where UDP is off or the port is taken."""

    def __init__(self, swarm: Any, rng: Random, nonce: Callable[[int], bytes], birthday: bool) -> None:
        self._swarm = swarm
        self._rng = rng
        self._nonce = nonce
        self._birthday = birthday
        self.ports: list[UdpPort] = []
        self.mapping = UdpMapping(self._port, nonce)
        self.counters: dict[str, int] = {"punched": 0, "failed": 0, "probes": 0}
        self.knocked: Callable[[bytes], None] = lambda _nonce: None
        self._spreading = trio.CapacityLimiter(1)
        self._nursery: trio.Nursery | None = None
        self._asked_for = trio.Event()

    # ---- life

    async def run(self, listening: Sequence[Address], task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Open a UDP port beside each TCP one and keep the mapping known, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for host, port in listening:
                try:
                    opened = UdpPort(host, port, self._nonce)
                except OSError as error:
                    log.warning("no UDP on port %s, so that fewer NATs can be passed: %s", port, error.strerror)
                    continue
                opened.knocked = lambda nonce: self.knocked(nonce)
                self.ports.append(opened)
                nursery.start_soon(opened.run)
            task_status.started()
            try:
                while True:
                    self._asked_for = trio.Event()
                    await self.mapping.refresh()
                    with trio.move_on_after(KEEP_SECONDS):
                        await self._asked_for.wait()
            finally:
                self._nursery = None

    def look_again(self) -> None:
        """Ask the observers now: there is a new one, or the network has changed."""
        self._asked_for.set()

    def forget(self) -> None:
        """The network has changed: what was seen of us says nothing any more."""
        self.mapping.forget()
        self.look_again()

    def _port(self) -> UdpPort | None:
        return self.ports[0] if self.ports else None

    # ---- what is said to a peer

    def hello(self, tcp: tuple[Endpoint, ...], tcp_mapping: Mapping) -> Hello:
        """What we tell a peer before a punch."""
        hello = Hello(
            token=self._nonce(16),
            tcp=tcp,
            udp=self.mapping.candidates(),
            tcp_mapping=number_of(tcp_mapping),
            udp_mapping=number_of(self.mapping.kind()),
        )
        return padded(hello)

    def knock(self, host: str, port: int, nonce: bytes) -> None:
        """One datagram with `nonce`, for a peer that asked to be knocked at."""
        for own in self.ports:
            if _same_family(host, own):
                own.send((host, port), encode(Knock(nonce)))
                return

    # ---- punching

    async def punch(self, peer: ID, starter: bool, hellos: tuple[Hello, Hello], witness: Witness, knocks: int) -> None:
        """Look for a path and, where there is one, leave the connection over it to the background. Raises nothing.

        `hellos` are ours and theirs; at most `knocks` datagrams go to addresses from which nothing came.
        """
        ours, theirs = hellos
        port = self._port()
        way = way_of(mapping_of(ours.udp_mapping), mapping_of(theirs.udp_mapping), self._birthday, starter)
        named = punch_targets(((endpoint.host, endpoint.port) for endpoint in theirs.udp), self.mapping.hosts())
        targets = tuple(target for target in named if _same_family(target[0], port))
        if way in (Way.WALK, Way.MEET):
            targets = _ahead(targets, ours, theirs, way)
        if port is None or way is Way.NONE or not targets or not ours.udp:
            log.debug("no way to %s over UDP: %s %s, %s %s", peer, ours.udp_mapping, ours.udp, theirs.udp_mapping, theirs.udp)
            return
        log.debug("%s to meet %s over UDP at %s; counts: %s, %s", way, peer, targets, count_in(ours), count_in(theirs))
        token = joint_token(ours.token, theirs.token)
        if token in port.punches:  # the peer, which answers last, chose that of another session
            log.debug("a punch session of %s has the token of another one", peer)
            return
        machine = UdpPunch(starter, (token, self._nonce(16)), way, targets, self._rng, PunchOptions(unheard=knocks))
        run = _Punch(self, port, peer, starter, machine)
        if way is Way.SPREAD:
            async with self._spreading:  # 256 sockets once
                await run.run(way, targets[0][0], witness)
        else:
            await run.run(way, targets[0][0], witness)
        self.counters["probes"] += machine.probes
        self.counters["punched" if run.found else "failed"] += 1

    def carry(self, path: "_Path", pipe: QuicPipe, peer: ID, client: bool) -> None:
        """Make the connection over a found path, and keep its socket as long as it lives."""
        if self._nursery is not None:
            self._nursery.start_soon(self._carry, path, pipe, peer, client)

    async def _carry(self, path: "_Path", pipe: QuicPipe, peer: ID, client: bool) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pipe.serve)
                if path.socket is not None:
                    nursery.start_soon(_read_into, path.socket, path.address, pipe)
                try:
                    await self._connect(path.address, pipe, peer, client)
                    await pipe.ended.wait()
                except Exception as error:  # noqa: BLE001 - a punched path that comes to nothing leaves the relayed one
                    log.debug("no connection over the punched path to %s: %r", peer, error)
                nursery.cancel_scope.cancel()
        finally:
            path.close()

    async def _connect(self, address: Address, pipe: QuicPipe, peer: ID, client: bool) -> None:
        host, port = address
        where = Multiaddr(f"{multiaddr_of(host, port, 'udp')}/quic-v1")
        raw = RawConnection(pipe, client, ConnectionType.DIRECT, [where])
        with trio.fail_after(_PIPE_SECONDS):
            await pipe.opened.wait()
            if client:
                conn = await self._swarm.upgrade_outbound_raw_conn(raw, peer)
                muxed = conn.muxed_conn
            else:
                muxed = await self._swarm.upgrade_inbound_raw_conn(raw, where)
        if muxed.peer_id != peer:
            await muxed.close()
            raise TransportError("another peer came through the punched hole")
        muxed.path_kind = PathKind.PUNCHED


@dataclass
class _Path:
    """A found path: the extra socket that it leaves from (None: the mesh port's) and the peer's end of it."""

    address: Address
    port: UdpPort
    socket: Any = None

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        else:
            self.port.pipes.pop(self.address, None)


@dataclass
class _Punch:
    """One punch under way."""

    paths: UdpPaths
    port: UdpPort
    peer: ID
    starter: bool
    machine: UdpPunch
    found: bool = False
    _sockets: dict[int, Any] = field(default_factory=dict)
    _heard: set[tuple[int, Address]] = field(default_factory=set)
    _kick: trio.Event = field(default_factory=trio.Event)
    _over: bool = False
    _nursery: trio.Nursery | None = None

    async def run(self, way: Way, target: str, witness: Witness) -> None:
        token = self.machine.token
        self.port.punches[token] = lambda address, payload: self._hear(0, address, payload)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._perform(self.machine.start(trio.current_time()))
                if way is not Way.PLAIN:
                    nursery.start_soon(self._ask_witness, witness, target)
                while not self._over:
                    self._kick = trio.Event()
                    with trio.move_on_at(self.machine.wake):
                        await self._kick.wait()
                    self._perform(self.machine.tick(trio.current_time()))
                nursery.cancel_scope.cancel()
        finally:
            del self.port.punches[token]
            for socket_number, address in self._heard:
                if socket_number == 0:
                    self._expect_no_more(address)
            for socket in self._sockets.values():
                socket.close()

    async def _ask_witness(self, witness: Witness, target: str) -> None:
        if not await witness(target):
            log.debug("no relay sees %s come from %s", self.peer, target)
            return
        self.machine.allow_many(trio.current_time())
        self._kick.set()

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(0, host, port, payload):
                    self.port.send((host, port), payload)
                case Send(socket, host, port, payload):
                    if socket in self._sockets:
                        send_now(self._sockets[socket], (host, port), payload)
                case OpenSockets(count):
                    self._open(count)
                case Found(socket, host, port, ticket):
                    self._use(socket, (host, port), ticket=ticket)
                case Over():
                    self._over = True

    def _open(self, count: int) -> None:
        host = "::" if self.port.is_ipv6 else "0.0.0.0"  # noqa: S104 - every interface may lead to the peer
        for number in range(1, count):
            try:
                self._sockets[number] = bound_socket(host, 0)
            except OSError as error:
                log.debug("only %s sockets for a punch: %s", number, error.strerror)
                return
            if self._nursery is not None:
                self._nursery.start_soon(self._read, number)

    async def _read(self, number: int) -> None:
        socket = self._sockets[number]
        while number in self._sockets:
            received = await receive_from(socket)
            if received is None:
                continue
            if received[1].startswith(MAGIC):
                self._hear(number, *received)
            else:
                self._begin(number, *received)

    def _hear(self, socket: int, address: Address, payload: bytes) -> None:
        effects = self.machine.heard(socket, *address, payload, trio.current_time())
        if effects and (socket, address) not in self._heard:
            self._heard.add((socket, address))
            if socket == 0:
                self.port.expected.setdefault(address, []).append(self._begin_at_port)
        self._perform(effects)
        self._kick.set()

    def _begin_at_port(self, address: Address, payload: bytes) -> None:
        self._begin(0, address, payload)

    def _expect_no_more(self, address: Address) -> None:
        waiting = self.port.expected[address]
        waiting.remove(self._begin_at_port)
        if not waiting:
            del self.port.expected[address]

    def _begin(self, socket: int, address: Address, payload: bytes) -> None:
        """A datagram of QUIC: the client has chosen this path, if it shows what we sent to that very address."""
        if not self.starter or self.found:
            return
        try:
            shown = ticket_in(payload)
        except TransportError as error:
            log.debug("what came through the hole is not QUIC: %s", error)
            return
        if shown == self.machine.proof_of(socket, *address):
            self._use(socket, address, first=payload)

    def _use(self, socket: int, address: Address, first: bytes | None = None, ticket: bytes = b"") -> None:
        extra = self._sockets.pop(socket, None)
        send = self.port.send if extra is None else lambda target, payload: send_now(extra, target, payload)
        path = _Path(address, self.port, extra)
        pipe = QuicPipe(send, address, first, ticket)
        self.machine.settle()
        if extra is None:
            self.port.pipes[address] = pipe.arrived
        self.found = True
        self.paths.carry(path, pipe, self.peer, not self.starter)


async def _read_into(socket: Any, address: Address, pipe: QuicPipe) -> None:
    while True:
        received = await receive_from(socket)
        if received is not None and received[0] == address and not received[1].startswith(MAGIC):
            pipe.arrived(*received)


def _ahead(targets: Sequence[Address], ours: Hello, theirs: Hello, way: Way) -> tuple[Address, ...]:
    """The next ports of a peer whose NAT counts, or where to meet it; none where either side does not know its own count."""
    count = count_in(theirs)
    if count is None or count_in(ours) is None:
        return ()
    ports = count.ahead() if way is Way.WALK else count.ahead()[-1:]
    return tuple((host, port) for host, _ in targets[:1] for port in ports)


def _same_family(host: str, port: UdpPort | None) -> bool:
    return port is not None and (":" in host) == port.is_ipv6
