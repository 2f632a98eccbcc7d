"""swarmd's own side: the transport and the calls that the daemon runs, with the options that it runs them with. Tunes nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.loads import ACK, PUSH_CHUNK_BYTES, Kind
from bench.peers.on_trio import run
from daemon import collector
from daemon.calls import CallOptions, Calls, InboundCall
from daemon.transport.host import Libp2pTransport
from daemon.transport.options import TransportOptions
from protocol.wire.ids import PeerId

TIMEOUT = 60.0
"""Seconds that one call may take; far above any that is not stuck."""


@asynccontextmanager
async def _node() -> AsyncIterator[tuple[Libp2pTransport, Calls]]:
    transport = Libp2pTransport(Ed25519PrivateKey.generate(), TransportOptions(listen=("/ip4/127.0.0.1/tcp/0",)))
    async with transport.running(), trio.open_nursery() as nursery:
        calls = Calls(transport)
        await nursery.start(calls.run)
        collector.settle()  # as the daemon does
        yield transport, calls
        nursery.cancel_scope.cancel()


async def _echo(call: InboundCall) -> bytes:
    return call.body


async def _ack(call: InboundCall) -> bytes:
    return ACK


async def _push(call: InboundCall) -> bytes:
    received = 0
    while (item := await call.receive()) is not None:
        received += len(item)
    return b"%d" % received


async def _items(call: InboundCall) -> None:
    count, size = map(int, call.body.split())
    item = bytes(size)
    for _ in range(count):
        await call.send(item)


@asynccontextmanager
async def serve() -> AsyncIterator[str]:
    """Serve the loads' methods; gives the full address."""
    async with _node() as (transport, calls):
        for method, handler in (("echo", _echo), ("ack", _ack), ("push", _push), ("items", _items)):
            calls.serve(method, handler)
        yield transport.addresses()[0]


class SwarmdCaller:
    """Calls through `daemon.calls.Calls`."""

    def __init__(self, calls: Calls, peer: PeerId) -> None:
        self._calls = calls
        self._peer = peer

    async def unary(self, kind: Kind, body: bytes) -> bytes:
        return await self._calls.unary(self._peer, kind.value, body, timeout=TIMEOUT)

    async def push(self, body: bytes) -> int:
        options = CallOptions(more=True, bulk=True)
        async with self._calls.stream(self._peer, "push", b"", timeout=TIMEOUT, options=options) as call:
            for start in range(0, len(body), PUSH_CHUNK_BYTES):
                await call.send(body[start : start + PUSH_CHUNK_BYTES])
            await call.finish()
            async for _ in call:
                pass
        return int(call.result)

    async def items(self, count: int, size: int) -> int:
        received = 0
        async with self._calls.stream(self._peer, "items", b"%d %d" % (count, size), timeout=TIMEOUT) as call:
            async for item in call:
                received += len(item)
        return received


@asynccontextmanager
async def dial(address: str) -> AsyncIterator[SwarmdCaller]:
    """Connect to a server's full address."""
    peer = PeerId(address.rsplit("/p2p/", 1)[1])
    async with _node() as (transport, calls):
        await transport.connect(peer, [address])
        yield SwarmdCaller(calls, peer)


if __name__ == "__main__":
    run(serve, dial)
