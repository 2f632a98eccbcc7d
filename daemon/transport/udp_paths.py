"""Punched UDP paths: what our UDP mapping is, one punch at a time per peer, and the connection over the path that was found.

Drives `nat.udp_punch`; which peer and when, the puncher decides.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import trio
import trio.lowlevel
from libp2p.connection_types import ConnectionType
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from daemon.transport.interface import PathKind, TransportError
from daemon.transport.quic_pipe import QuicPipe
from daemon.transport.udp_port import Address, UdpPort, bound_socket, receive_from, send_now
from nat.addresses import punch_targets
from nat.datagrams import MAGIC, Knock, encode
from nat.observed import Mapping, Observation, ObservedAddresses, ObservedOptions
from nat.punch_messages import MAX_CANDIDATES, Endpoint, Hello, joint_token, mapping_of, number_of
from nat.udp_punch import Effect, Found, OpenSockets, Over, PunchOptions, Send, UdpPunch, Way, way_of

log = logging.getLogger(__name__)

KEEP_SECONDS = 20.0
"""Between questions to the observers, which also hold our mapping: NATs forget after 30 s at the earliest (RFC 4787: 120 s)."""

MAX_OBSERVERS = 3
_PIPE_SECONDS = 5.0
_STEP_ORIGIN = 32768

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
        self.observers: Callable[[], Sequence[Address]] = lambda: ()
        self.interfaces: Callable[[], Sequence[tuple[str, int]]] = lambda: ()
        self.observed = ObservedAddresses(ObservedOptions(lifetime=3 * KEEP_SECONDS))
        self.works: bool | None = None
        """Whether any observer answered over UDP; None before one was asked."""
        self.counters: dict[str, int] = {"punched": 0, "failed": 0, "probes": 0}
        self.mapped: Callable[[], tuple[str, int] | None] = lambda: None
        """The address that the gateway passes on to our UDP port, where a datagram came in by it."""
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
                    await self.refresh()
                    with trio.move_on_after(KEEP_SECONDS):
                        await self._asked_for.wait()
            finally:
                self._nursery = None

    def look_again(self) -> None:
        """Ask the observers now: there is a new one, or the network has changed."""
        self._asked_for.set()

    def forget(self) -> None:
        """The network has changed: what was seen of us says nothing any more."""
        self.observed = ObservedAddresses(self.observed.options)
        self.works = None
        self.look_again()

    async def refresh(self) -> None:
        """Ask up to three observers at which address they see our UDP port."""
        port = self._port()
        observers = list(dict.fromkeys(self.observers()))[:MAX_OBSERVERS]
        if port is None or not observers:
            return
        answers: dict[Address, Address | None] = {}

        async def ask(observer: Address) -> None:
            answers[observer] = await port.observe(observer)

        # In turn for a sequential NAT, whose step shows only where the questions leave, and count, in order.
        async with trio.open_nursery() as nursery:
            for observer in observers:
                nursery.start_soon(ask, observer)
                await trio.lowlevel.checkpoint()
        for observer in observers:
            seen = answers[observer]
            if seen is not None:
                address = f"/ip{6 if ':' in seen[0] else 4}/{seen[0]}/udp/{seen[1]}"
                heard = Observation(f"{observer[0]}:{observer[1]}", observer[0], address, trio.current_time())
                self.observed = self.observed.observe(heard)
        self.works = any(seen is not None for seen in answers.values())

    def _port(self) -> UdpPort | None:
        return self.ports[0] if self.ports else None

    # ---- what a Hello says

    def mapping(self) -> Mapping:
        """What the NAT does to our UDP port."""
        if self.mapped() is not None:
            return Mapping.ENDPOINT_INDEPENDENT  # whoever knocks there comes in
        port = self._port()
        own = frozenset(host for host, _ in self.interfaces())
        return self.observed.mapping(port.port, own, trio.current_time()) if port is not None else Mapping.UNKNOWN

    def candidates(self) -> tuple[Endpoint, ...]:
        """Where our UDP port may be met; empty where no observer answers over UDP."""
        if not self.works:
            return ()
        mapped = self.mapped()
        found: list[tuple[str, int]] = [mapped] if mapped is not None else []
        for seen in reversed(self.observed.observations):
            _, _, host, _, port = seen.address.split("/")
            found.append((host, int(port)))
        found += self.interfaces()
        return tuple(Endpoint(host, port) for host, port in dict.fromkeys(found))[:MAX_CANDIDATES]

    def hello(self, tcp: tuple[Endpoint, ...], tcp_mapping: Mapping) -> Hello:
        """What we tell a peer before a punch."""
        ports = [int(seen.address.rpartition("/")[2]) for seen in self.observed.observations]
        step = ports[-1] - ports[-2] if self.mapping() is Mapping.PREDICTABLE else 0
        return Hello(
            token=self._nonce(16),
            tcp=tcp,
            udp=self.candidates(),
            tcp_mapping=number_of(tcp_mapping),
            udp_mapping=number_of(self.mapping()),
            step=max(0, min(65535, step + _STEP_ORIGIN)),
        )

    def knock(self, host: str, port: int, nonce: bytes) -> None:
        """One datagram with `nonce`, for a peer that asked to be knocked at."""
        for own in self.ports:
            if _same_family(host, own):
                own.send((host, port), encode(Knock(nonce)))
                return

    # ---- punching

    async def punch(self, peer: ID, starter: bool, ours: Hello, theirs: Hello, witness: Witness) -> None:
        """Look for a path and, where there is one, leave the connection over it to the background. Raises nothing."""
        port = self._port()
        way = way_of(mapping_of(ours.udp_mapping), mapping_of(theirs.udp_mapping), self._birthday)
        seen = {address.split("/")[2] for address in (one.address for one in self.observed.observations)}
        named = punch_targets(((endpoint.host, endpoint.port) for endpoint in theirs.udp), seen)
        targets = tuple(target for target in named if _same_family(target[0], port))
        if port is None or way is Way.NONE or not targets or not ours.udp:
            return
        machine = UdpPunch(starter, joint_token(ours.token, theirs.token), way, targets, self._rng, PunchOptions())
        run = _Punch(self, port, peer, starter, machine)
        step = theirs.step - _STEP_ORIGIN
        if way is Way.SPREAD:
            async with self._spreading:  # 256 sockets once
                await run.run(way, step, targets[0][0], witness)
        else:
            await run.run(way, step, targets[0][0], witness)
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
        where = Multiaddr(f"/ip{6 if ':' in host else 4}/{host}/udp/{port}/quic-v1")
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

    async def run(self, way: Way, step: int, target: str, witness: Witness) -> None:
        token = self.machine._token
        self.port.punches[token] = lambda address, payload: self._hear(0, address, payload)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._perform(self.machine.start(trio.current_time(), step))
                if way in (Way.GUESS, Way.SPREAD, Way.WALK):
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
                    self.port.expected.pop(address, None)
            for socket in self._sockets.values():
                socket.close()

    async def _ask_witness(self, witness: Witness, target: str) -> None:
        if await witness(target):
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
                case Found(socket, host, port):
                    if not self.starter:
                        self._use(socket, (host, port), None)
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
                self.port.expected[address] = lambda source, first: self._begin(0, source, first)
        self._perform(effects)
        self._kick.set()

    def _begin(self, socket: int, address: Address, payload: bytes) -> None:
        """A datagram of QUIC: the client has chosen this path, if it is one that the session's probes came through."""
        if self.starter and (socket, address) in self._heard and not self.found:
            self._use(socket, address, payload)

    def _use(self, socket: int, address: Address, first: bytes | None) -> None:
        extra = self._sockets.pop(socket, None)
        send = self.port.send if extra is None else lambda target, payload: send_now(extra, target, payload)
        path = _Path(address, self.port, extra)
        try:
            pipe = QuicPipe(send, address, client=not self.starter, first=first)
        except TransportError as error:
            log.debug("what came through the hole is not QUIC: %s", error)
            if extra is not None:
                self._sockets[socket] = extra
            return
        if extra is None:
            self.port.pipes[address] = pipe.arrived
        self.found = True
        self.paths.carry(path, pipe, self.peer, not self.starter)


async def _read_into(socket: Any, address: Address, pipe: QuicPipe) -> None:
    while True:
        received = await receive_from(socket)
        if received is not None and received[0] == address and not received[1].startswith(MAGIC):
            pipe.arrived(*received)


def _same_family(host: str, port: UdpPort | None) -> bool:
    return port is not None and (":" in host) == port.is_ipv6
