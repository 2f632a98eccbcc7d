"""Calls over real libp2p hosts on loopback: what the in-memory mesh promises also holds on TCP, Noise and Yamux."""

from contextlib import suppress

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from daemon.calls import Calls, InboundCall
from daemon.transport.host import Libp2pTransport
from daemon.transport.interface import TransportError
from daemon.transport.options import TransportOptions
from protocol.rpc_frames import MAX_BODY_BYTES, PROTOCOL
from protocol.wire.errors import Code, RemoteError

pytestmark = [pytest.mark.live, pytest.mark.slow]


def host(seed: int) -> Libp2pTransport:
    key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
    return Libp2pTransport(key, TransportOptions(listen=("/ip4/127.0.0.1/tcp/0",)))


async def test_calls_streams_cancel_garbage_and_a_lost_peer_over_libp2p(nursery: trio.Nursery) -> None:
    ended = trio.Event()

    async def echo(call: InboundCall) -> bytes:
        return call.body

    async def tokens(call: InboundCall) -> bytes:
        try:
            for number in range(int(call.body)):
                await call.send(b"%d" % number)
            if call.body == b"1":
                await trio.sleep_forever()
            return b"done"
        finally:
            ended.set()

    with trio.fail_after(30):
        async with host(1).running() as alice, host(2).running() as bob:
            caller, server = Calls(alice), Calls(bob)
            server.serve("echo", echo)
            server.serve("tokens", tokens)
            await nursery.start(caller.run)
            await nursery.start(server.run)
            await alice.connect(bob.peer_id, bob.addresses())
            for size in (0, 5000, MAX_BODY_BYTES):
                assert len(await caller.unary(bob.peer_id, "echo", bytes(size), timeout=10)) == size
            async with caller.stream(bob.peer_id, "tokens", b"3000", timeout=10) as stream:
                assert [int(item) async for item in stream] == list(range(3000))
                assert stream.result == b"done"
            ended = trio.Event()
            async with caller.stream(bob.peer_id, "tokens", b"1", timeout=10) as stream:
                assert await anext(stream) == b"0"
            with trio.fail_after(0.5):
                await ended.wait()
            bad = await alice.open_stream(bob.peer_id, PROTOCOL)
            await bad.send_all(b"\xff\xff\xff\xff")
            with suppress(TransportError):
                while await bad.receive_some():
                    pass
            assert dict(server.breaches) == {"oversized": 1}
            assert await caller.unary(bob.peer_id, "echo", b"still", timeout=10) == b"still"
            async with caller.stream(bob.peer_id, "tokens", b"1", timeout=20) as stream:
                await anext(stream)
                await bob.disconnect(alice.peer_id)
                with pytest.raises(RemoteError) as lost:
                    await anext(stream)
            assert lost.value.code is Code.GONE
    nursery.cancel_scope.cancel()
