"""Unchanged py-libp2p: the least multiplexer over one of its streams, its own Noise and Yamux. What swarmd's link replaces.

A stream per call, as its examples do, is far slower still. This is the one program outside daemon/transport that imports libp2p.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from libp2p import new_host
from libp2p.abc import INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from multiaddr import Multiaddr

from bench.peers.multiplex import PipeCaller, serve_pipe
from bench.peers.on_trio import run

PROTOCOL = TProtocol("/swarmd-bench/1")
READ_BYTES = 64 << 10


class StreamPipe:
    """A py-libp2p stream."""

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream

    async def read(self) -> bytes:
        try:
            return await self._stream.read(READ_BYTES)
        except (StreamEOF, MuxedStreamEOF):
            return b""

    async def write(self, payload: bytes) -> None:
        await self._stream.write(payload)


async def _handle(stream: INetStream) -> None:
    await serve_pipe(StreamPipe(stream))


@asynccontextmanager
async def serve() -> AsyncIterator[str]:
    """Serve on a free port of loopback; gives the full address."""
    host = new_host(key_pair=create_new_key_pair())
    async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        host.set_stream_handler(PROTOCOL, _handle)
        yield str(host.get_addrs()[0])


@asynccontextmanager
async def dial(address: str) -> AsyncIterator[PipeCaller]:
    """Connect to a server's full address and open the one stream."""
    host = new_host(key_pair=create_new_key_pair())
    info = info_from_p2p_addr(Multiaddr(address))
    async with host.run([]), trio.open_nursery() as nursery:
        await host.connect(info)
        caller = PipeCaller(StreamPipe(await host.new_stream(info.peer_id, [PROTOCOL])))
        nursery.start_soon(caller.run)
        yield caller
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    run(serve, dial)
