"""TCP dials from a port that we also listen on, for hole punching; a cancelled one closes its socket. Decides no address."""

import os
import socket
from collections import OrderedDict

import trio
from libp2p.abc import IRawConnection
from libp2p.custom_types import THandler
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from libp2p.transport.tcp.tcp import TCP, TCPListener
from multiaddr import Multiaddr

from daemon.transport.addresses import host_and_port
from daemon.transport.interface import TransportError
from nat.addresses import parse

_MAX_CONTACTED = 1024


class _Listener(TCPListener):
    """Repeats a SYN-ACK once, not five times: a forged SYN draws less, and a client whose answer was lost sends its SYN again."""

    async def listen(self, maddr: Multiaddr) -> None:
        await super().listen(maddr)
        if hasattr(socket, "TCP_SYNCNT"):
            for listening in self.listeners:
                listening.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)


class SharedPortTCP(TCP):
    """The stock transport, whose dial from a given source leaves its socket to the collector when it is cancelled.

    `contacted` are the hosts that were dialled lately: a NAT may let them in that lets nobody else in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.contacted: OrderedDict[str, None] = OrderedDict()

    def create_listener(self, handler_function: THandler) -> TCPListener:
        return _Listener(handler_function)

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        self._note(maddr)
        return await super().dial(maddr)

    def _note(self, maddr: Multiaddr) -> None:
        endpoint = parse(str(maddr))
        if endpoint is not None:
            self.contacted[endpoint.host] = None
            self.contacted.move_to_end(endpoint.host)
            if len(self.contacted) > _MAX_CONTACTED:
                self.contacted.popitem(last=False)

    async def dial_with_source(self, maddr: Multiaddr, source: tuple[str, int]) -> IRawConnection:
        """Connect to `maddr` from `source`; raises OpenConnectionError. A host name is the stock transport's to resolve."""
        self._note(maddr)
        try:
            target = host_and_port(maddr)
        except TransportError:
            return await super().dial_with_source(maddr, source)
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        if (":" in source[0]) != (":" in target[0]):
            raise OpenConnectionError(f"{source[0]} cannot reach {target[0]}: they are of two IP versions")
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                sock.setsockopt(socket.SOL_SOCKET, option, 1)
            await sock.bind(source)
            await sock.connect(target)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise OpenConnectionError(f"no connection to {maddr} from {source[0]}:{source[1]}: {error}") from error
            raise
        return RawConnection(TrioTCPStream(trio.SocketStream(sock)), True)


def plain_socket(raw: IRawConnection) -> "trio.socket.SocketType | None":
    """The socket of a TCP connection; None where something else carries it, such as a relay."""
    stream = getattr(raw, "stream", None)
    stream = getattr(stream, "beneath", stream)  # a wrapper's that has nothing left to do
    return stream.stream.socket if isinstance(stream, TrioTCPStream) else None


# py-libp2p's TCP stream takes a lock and a checkpoint for each read and write: three turns of the event loop per message. One
# reader and one writer need no lock. The descriptor is asked for anew each time: once closed it is -1, never another file's.


async def receive(sock: "trio.socket.SocketType", limit: int) -> bytes:
    """At most `limit` bytes, b"" at the end; raises OSError or trio.ClosedResourceError."""
    while True:
        await trio.lowlevel.wait_readable(sock.fileno())
        try:
            return os.read(sock.fileno(), limit)
        except BlockingIOError:
            continue


def receive_now(sock: "trio.socket.SocketType", limit: int) -> bytes:
    """At most `limit` bytes that have come; b"" where there are none yet, and at the end; raises OSError."""
    try:
        return os.read(sock.fileno(), limit)
    except BlockingIOError:
        return b""


async def send_all(sock: "trio.socket.SocketType", payload: bytes) -> None:
    """Send all of `payload`; no checkpoint while the kernel takes it; raises OSError or trio.ClosedResourceError."""
    view = memoryview(payload)
    while view:
        try:
            view = view[os.write(sock.fileno(), view) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock.fileno())


def send_now(sock: "trio.socket.SocketType", payload: bytes) -> bytes:
    """Give the kernel what it takes of `payload` without waiting; returns the rest, also where the socket is broken."""
    try:
        return payload[os.write(sock.fileno(), payload) :]
    except OSError:
        return payload
