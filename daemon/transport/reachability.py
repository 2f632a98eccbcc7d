"""Whether others can come in at our address: asks peers to dial back with a nonce, and dials back for them. Believes no claim.

A peer dials only the IP at which it sees the asker, from another port than the one it is connected by. A NAT that lets in every
port of an IP that it has sent to cannot be told from none this way.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from socket import MSG_PEEK
from typing import Annotated, Any

import msgspec
import trio
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID

from daemon.transport.gossip_guard import Budgets
from daemon.transport.interface import TransportError
from daemon.transport.muxer import MuxedConnection
from daemon.transport.streams import Libp2pStream, open_stream, receive_message
from nat.addresses import Reach, multiaddr_of, reach_of
from protocol.wire.codec import Message, encode, frame
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId

ASK = TProtocol("/swarmd/dialback/1")
PROOF = b"\x05swmproof"
PROVED = b"ok"
NONCE_BYTES = 16
_MAX_BYTES = 256
_DIAL_SECONDS = 3.0
_PEEK_SECONDS = 1.0
_ASK_SECONDS = 6.0
_MAX_PORTS = 2
_MAX_ASKED = 2
_RECHECK_SECONDS = 300.0
_SETTLE_SECONDS = 1.0
_KNOCKS = 3
_KNOCK_SECONDS = 0.1

log = logging.getLogger(__name__)


class DialBack(Message, frozen=True):
    """Asks for a dial to the IP at which we are seen, at these ports, and for the nonce over that connection.

    `udp_port`: also for datagrams with the nonce to that port (0: none).
    """

    nonce: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
    ports: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=1, le=65535)], ...], msgspec.Meta(min_length=1, max_length=_MAX_PORTS)
    ]
    udp_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


class DialBackDone(Message, frozen=True):
    """The first of the ports, in the asker's order, that answered; 0 where none did."""

    port: Annotated[int, msgspec.Meta(ge=0, le=65535)]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reachable` is None before anybody could say; `port` is where the dial came in; `time` on trio's clock."""

    reachable: bool | None
    port: int
    asked: int
    time: float


class Reachability:
    """`verdict` is the latest; `run` renews it."""

    def __init__(self, host: Any, ports: Callable[[], Sequence[int]], nonce: Callable[[int], bytes]) -> None:
        """`ports` are those worth trying, the likeliest first."""
        self._host = host
        self._swarm = host.swarm
        self._ports = ports
        self._nonce = nonce
        self._expected: dict[bytes, ID] = {}
        self._proved: set[bytes] = set()
        self._budgets = Budgets(rate=0.1, burst=3.0)
        self._again = trio.Event()
        self.verdict = Verdict(None, 0, 0, 0.0)
        self.served = 0
        self._knocked: set[bytes] = set()
        self.udp_port: Callable[[], int] = lambda: 0
        """The outside UDP port that is worth trying; 0: none."""
        self.knock: Callable[[str, int, bytes], None] = lambda _host, _port, _nonce: None
        """Sends a nonce over UDP, for others."""
        self.judged: Callable[[set[int], dict[int, bool]], None] = lambda _came, _udp: None
        """Told after each check at which TCP ports peers came in, and whether they did at the UDP port that was tried."""

    async def run(self) -> None:
        """Ask when there is somebody to ask, after every change, and every five minutes."""
        while True:
            self._again = trio.Event()
            await trio.sleep(_SETTLE_SECONDS)
            if self._ports() and self._askable():
                await self._check()
            with trio.move_on_after(_RECHECK_SECONDS):
                await self._again.wait()

    def look_again(self) -> None:
        """There is somebody new to ask, or our address has changed."""
        self._again.set()

    def forget(self) -> None:
        self.verdict = Verdict(None, 0, 0, trio.current_time())
        self.look_again()

    # ---- asking

    def _askable(self) -> list[tuple[ID, MuxedConnection]]:
        """Peers that we dialled ourselves: a peer that came in from behind our own NAT would see the wrong address."""
        found = []
        for peer, connections in self._swarm.connections.items():
            for conn in connections:
                muxed = conn.muxed_conn
                direct = not conn.is_closed and conn.get_connection_type() != ConnectionType.RELAYED
                if direct and isinstance(muxed, MuxedConnection) and muxed.is_initiator:
                    found.append((peer, muxed))
                    break
        return found

    async def _check(self) -> None:
        answers: list[int] = []
        udp_port = self.udp_port()
        knocks: list[bool] = []

        async def ask(peer: ID, muxed: MuxedConnection) -> None:
            try:
                with trio.fail_after(_ASK_SECONDS):
                    port, knocked = await self._ask(peer, muxed, udp_port)
                    answers.append(port)
                    knocks.append(knocked)
            except (TransportError, RemoteError, trio.TooSlowError) as error:
                log.debug("%s does not dial back: %s", peer, error)

        async with trio.open_nursery() as nursery:
            for peer, muxed in self._askable()[:_MAX_ASKED]:
                nursery.start_soon(ask, peer, muxed)
        if answers:
            came = [port for port in answers if port]
            self.verdict = Verdict(bool(came), came[0] if came else 0, len(answers), trio.current_time())
            self.judged(set(came), {udp_port: any(knocks)} if udp_port else {})

    async def _ask(self, peer: ID, muxed: MuxedConnection, udp_port: int) -> tuple[int, bool]:
        """The port at which `peer` came in, 0 where it did not, and whether it did over UDP; raises TransportError."""
        nonce = self._nonce(16)
        self._expected[nonce] = peer
        try:
            asked = frame(encode(DialBack(nonce, tuple(self._ports()[:_MAX_PORTS]), udp_port)))
            stream = await open_stream(PeerId(peer.to_base58()), muxed, ASK, early=asked)
            try:
                done: DialBackDone = await receive_message(stream, DialBackDone, _MAX_BYTES)
            finally:
                await stream.aclose()
            # Its word alone says nothing: the nonce must have come in by another connection.
            return (done.port if nonce in self._proved else 0), nonce in self._knocked
        finally:
            self._proved.discard(nonce)
            self._knocked.discard(nonce)
            del self._expected[nonce]

    def take_knock(self, nonce: bytes) -> None:
        """A nonce came in over UDP."""
        if nonce in self._expected:
            self._knocked.add(nonce)

    async def take_proof(self, stream: Any) -> bool:
        """Whether a connection that has just come in is a nonce of ours and no peer; it is answered then. Only while we ask.

        The wait costs nobody anything: whoever dials speaks first.
        """
        if not self._expected:
            return False
        socket = stream.stream.socket
        with trio.move_on_after(_PEEK_SECONDS):
            await trio.lowlevel.wait_readable(socket)
            opening = await socket.recv(len(PROOF) + NONCE_BYTES, MSG_PEEK)
            nonce = opening[len(PROOF) :]
            if opening.startswith(PROOF) and nonce in self._expected:
                self._proved.add(nonce)
                await stream.write(PROVED)
                return True
        return False

    # ---- answering

    async def handle_ask(self, stream: Any) -> None:
        """Dial the asker back at the IP from which it is connected, whatever it says, at most two ports of it."""
        asker: ID = stream.muxed_conn.peer_id
        remote = stream.muxed_conn.get_remote_address()
        now = trio.current_time()
        relayed = stream.muxed_conn.get_connection_type() == ConnectionType.RELAYED
        if relayed or remote is None or not (self._budgets.take(asker, now) and self._budgets.take("all", now, 0.1)):
            raise TransportError("no dial-back now")
        own = Libp2pStream(PeerId(asker.to_base58()), stream.muxed_stream)
        with trio.fail_after(_ASK_SECONDS):
            request: DialBack = await receive_message(own, DialBack, _MAX_BYTES)
            self.served += 1
            reached: list[int] = []

            async def attempt(port: int) -> None:
                if await self._dial_back(remote[0], port, request.nonce):
                    reached.append(port)

            async with trio.open_nursery() as nursery:
                for port in dict.fromkeys(request.ports):
                    nursery.start_soon(attempt, port)
                if request.udp_port:
                    nursery.start_soon(self._knock, remote[0], request.udp_port, request.nonce)
            first = next((port for port in request.ports if port in reached), 0)
            await own.send_all(frame(encode(DialBackDone(first))))
        await own.aclose()

    async def _knock(self, host: str, port: int, nonce: bytes) -> None:
        """Three datagrams of 21 bytes, fewer than the question had."""
        for _ in range(_KNOCKS):
            self.knock(host, port, nonce)
            await trio.sleep(_KNOCK_SECONDS)

    async def _dial_back(self, host: str, port: int, nonce: bytes) -> bool:
        address = multiaddr_of(host, port)
        if reach_of(address) is Reach.NOWHERE:
            return False
        try:
            with trio.fail_after(_DIAL_SECONDS):
                async with await trio.open_tcp_stream(host, port) as stream:
                    await stream.send_all(PROOF + nonce)
                    return bytes(await stream.receive_some(len(PROVED))) == PROVED
        except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            log.debug("a dial back to %s failed: %s", address, error)
            return False
