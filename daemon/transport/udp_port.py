"""The mesh's UDP port: says to others at which address it sees them, learns its own from them, and sorts what else arrives.

It shares its number with the TCP port that we listen on. Decides nothing about punching and reads no QUIC.
"""

import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

import trio

from daemon.transport.gossip_guard import Budgets
from nat.datagrams import NONCE_BYTES, Ack, Ask, Knock, Probe, Tell, decode, encode

log = logging.getLogger(__name__)

RECEIVE_BYTES = 2048
BUFFER_BYTES = 1 << 20
ASK_SECONDS = (0.15, 0.3, 0.6)
"""Waits for an answer; each but the last ends in another question."""

Address = tuple[str, int]
Receiver = Callable[[Address, bytes], None]


class UdpPort:
    """One UDP socket. `run` serves it; `observe` asks an observer; pipes take the datagrams of their own peer address."""

    def __init__(self, host: str, port: int, nonce: Callable[[int], bytes]) -> None:
        """Raises OSError where the port cannot be had."""
        self._nonce = nonce
        self._socket = bound_socket(host, port)
        self.port = int(self._socket.getsockname()[1])
        self.is_ipv6 = self._socket.family == socket.AF_INET6
        self.pipes: dict[Address, Receiver] = {}
        self.punches: dict[bytes, Callable[[Address, bytes], None]] = {}
        """By token: who takes probes and acks."""
        self.expected: dict[Address, list[Receiver]] = {}
        """From where a QUIC connection may begin now, and the sessions that look whether its first packet is theirs."""
        self.knocked: Callable[[bytes], None] = lambda _nonce: None
        """Told of each knock's nonce."""
        self.answered = 0
        self._asked: dict[bytes, tuple[Address, trio.Event, list[Address]]] = {}
        self._budgets = Budgets(rate=5.0, burst=20.0)

    def send(self, address: Address, payload: bytes) -> None:
        """Send one datagram; a full buffer or an unreachable network loses it, as the network might."""
        send_now(self._socket, address, payload)

    async def run(self) -> None:
        """Read until cancelled."""
        try:
            while True:
                received = await receive_from(self._socket)
                if received is not None:
                    self._sort(*received)
        finally:
            self._socket.close()

    def _sort(self, address: Address, payload: bytes) -> None:
        datagram = decode(payload)
        if datagram is None:
            pipe = self.pipes.get(address)
            for receiver in [pipe] if pipe is not None else list(self.expected.get(address, ())):
                receiver(address, payload)
        elif isinstance(datagram, Ask):
            # The answer is no longer than the question, and one address gets five a second.
            if self._budgets.take(address[0], trio.current_time()):
                self.answered += 1
                self.send(address, encode(Tell(datagram.nonce, *address)))
        elif isinstance(datagram, Tell):
            asked = self._asked.get(datagram.nonce)
            if asked is not None and asked[0] == address:
                asked[2].append((datagram.host, datagram.port))
                asked[1].set()
        elif isinstance(datagram, Knock):
            self.knocked(datagram.nonce)
        elif isinstance(datagram, Probe | Ack) and datagram.token in self.punches:
            self.punches[datagram.token](address, payload)

    async def observe(self, observer: Address, waits: Sequence[float] = ASK_SECONDS) -> Address | None:
        """The address at which `observer` sees us; None where it gives no answer."""
        nonce = self._nonce(NONCE_BYTES)
        answered, answers = trio.Event(), list[Address]()
        self._asked[nonce] = observer, answered, answers
        try:
            for wait in waits:
                self.send(observer, encode(Ask(nonce)))
                with trio.move_on_after(wait):
                    await answered.wait()
                    return answers[0]
        finally:
            del self._asked[nonce]
        return None


def bound_socket(host: str, port: int) -> "trio.socket.SocketType":
    """A UDP socket at (host, port), of the host's IP version; raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    plain = socket.socket(family, socket.SOCK_DGRAM)
    try:
        plain.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            plain.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
        plain.bind((host, port))
    except BaseException:
        plain.close()
        raise
    return trio.socket.from_stdlib_socket(plain)


def send_now(sock: Any, address: Address, payload: bytes) -> None:
    """Hand one datagram to the kernel without waiting; what it does not take is lost."""
    try:
        # The descriptor's own call: trio's would be a task switch for each of a thousand probes.
        sock._sock.sendto(payload, address)
    except OSError as error:
        log.debug("a datagram to %s:%s was not sent: %s", *address, error.strerror)


async def receive_from(sock: Any) -> tuple[Address, bytes] | None:
    """The next datagram; None for an error that an earlier one of ours brought back."""
    try:
        payload, source = await sock.recvfrom(RECEIVE_BYTES)
    except ConnectionError:
        return None
    return (str(source[0]).split("%")[0], int(source[1])), payload
