"""Hosts for the transport tests: ours, and stock py-libp2p ones to show what they do with the same input."""

import gc
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from multiaddr import Multiaddr

from daemon.transport.host import Libp2pTransport
from daemon.transport.interface import Stream, TransportError
from daemon.transport.options import TransportOptions

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


@pytest.fixture
def make_transport() -> Callable[..., Libp2pTransport]:
    """A transport on loopback; keyword arguments are transport options."""
    made = iter(range(1, 256))

    def make(**options: Any) -> Libp2pTransport:
        key = Ed25519PrivateKey.from_private_bytes(bytes([next(made)]) * 32)
        return Libp2pTransport(key, TransportOptions(**{"listen": LOOPBACK, **options}))

    return make


@pytest.fixture
def running(make_transport: Callable[..., Libp2pTransport]) -> Callable[..., AbstractAsyncContextManager[list[Libp2pTransport]]]:
    """`async with running(2) as (a, b)`: transports on loopback that serve /echo."""

    @asynccontextmanager
    async def run(count: int = 1, **options: Any) -> AsyncIterator[list[Libp2pTransport]]:
        transports = [make_transport(**options) for _ in range(count)]
        async with trio.open_nursery() as nursery:
            for transport in transports:
                transport.handle("/echo", _echo)
                await nursery.start(transport.run)
            with trio.fail_after(60):
                yield transports
            nursery.cancel_scope.cancel()

    return run


async def _echo(stream: Stream) -> None:
    while received := await stream.receive_some():
        await stream.send_all(received)


@pytest.fixture
def echoes() -> Callable[..., Any]:
    """`await echoes(transport, peer)`: whether `peer` answers an echo within a few seconds."""

    async def ask(transport: Libp2pTransport, peer: Any, payload: bytes = b"are you there") -> bool:
        try:
            with trio.fail_after(10):
                stream = await transport.open_stream(peer, "/echo")
                await stream.send_all(payload)
                received = b""
                while len(received) < len(payload):
                    chunk = await stream.receive_some()
                    if not chunk:
                        return False
                    received += chunk
                await stream.aclose()
                return received == payload
        except (TransportError, trio.TooSlowError):
            return False

    return ask


@pytest.fixture
def until() -> Callable[..., Any]:
    """`await until(lambda: condition)`: wait for a condition, ten seconds at most."""

    async def wait(condition: Callable[[], bool], seconds: float = 10.0) -> None:
        with trio.fail_after(seconds):
            while not condition():
                await trio.sleep(0.005)

    return wait


@pytest.fixture
def stock() -> Iterator[Callable[..., AbstractAsyncContextManager[Any]]]:
    """`async with stock() as host`: a py-libp2p host as shipped, listening on loopback. Raises on leaving if it died."""

    @asynccontextmanager
    async def run(**options: Any) -> AsyncIterator[Any]:
        host = new_host(key_pair=create_new_key_pair(), **options)
        async with host.run([Multiaddr(LOOPBACK[0])]):
            yield host

    yield run
    # Stock hosts leave sockets to the collector, which would warn in the middle of some later test.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
