"""The limit: the least multiplexer over trio TCP with swarmd's cipher (ChaCha20-Poly1305, messages of at most 64 KiB).

No handshake, no muxer, a key that both sides know: for loopback measurements alone.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from bench.peers.multiplex import PipeCaller, serve_pipe
from bench.peers.on_trio import run

KEYS = (bytes(32), b"\1" * 32)
"""Of what the caller and the server send."""

MAX_PLAINTEXT = 65535 - 16
RECEIVE_BYTES = 256 << 10


class SealedPipe:
    """A TCP stream whose bytes travel as length-prefixed sealed messages."""

    def __init__(self, stream: trio.SocketStream, caller: bool) -> None:
        self._stream = stream
        self._seal = ChaCha20Poly1305(KEYS[not caller])
        self._open = ChaCha20Poly1305(KEYS[caller])
        self._sent = self._opened = 0
        self._received = bytearray()

    async def write(self, payload: bytes) -> None:
        parts = []
        for start in range(0, len(payload), MAX_PLAINTEXT):
            message = self._seal.encrypt(self._sent.to_bytes(12, "little"), payload[start : start + MAX_PLAINTEXT], b"")
            self._sent += 1
            parts += [len(message).to_bytes(2, "big"), message]
        await self._stream.send_all(b"".join(parts))

    async def read(self) -> bytes:
        opened: list[bytes] = []
        while not opened:
            received = await self._stream.receive_some(RECEIVE_BYTES)
            if not received:
                return b""
            self._received += received
            self._take(opened)
        return b"".join(opened)

    def _take(self, opened: list[bytes]) -> None:
        buffer, at = self._received, 0
        with memoryview(buffer) as view:
            while len(buffer) - at > 2:
                after = at + 2 + ((buffer[at] << 8) | buffer[at + 1])
                if after > len(buffer):
                    break
                opened.append(self._open.decrypt(self._opened.to_bytes(12, "little"), view[at + 2 : after], b""))
                self._opened += 1
                at = after
        del buffer[:at]


async def _serve_one(stream: trio.SocketStream) -> None:
    await serve_pipe(SealedPipe(stream, caller=False))


@asynccontextmanager
async def serve() -> AsyncIterator[str]:
    """Serve on a free port of loopback; gives the port."""
    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(partial(trio.serve_tcp, _serve_one, 0, host="127.0.0.1"))
        yield str(listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def dial(address: str) -> AsyncIterator[PipeCaller]:
    """Connect to a port of loopback."""
    stream = await trio.open_tcp_stream("127.0.0.1", int(address))
    async with stream, trio.open_nursery() as nursery:
        caller = PipeCaller(SealedPipe(stream, caller=True))
        nursery.start_soon(caller.run)
        yield caller
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    run(serve, dial)
