"""Each defect of stock py-libp2p 0.8.1 that would end a daemon: shown on a stock host, and closed on ours, by the same input."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.config import ConnectionConfig
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import Transport as StockNoise
from libp2p.stream_muxer.mplex.mplex import Mplex
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

from daemon.transport.host import Libp2pTransport
from daemon.transport.interface import Stream, TransportError
from daemon.transport.muxer import MuxedConnection
from daemon.transport.noise_session import NoiseSession
from daemon.transport.streams import Libp2pStream
from protocol.wire.ids import PeerId

pytestmark = pytest.mark.live

Scenario = Callable[[Any], Awaitable[None]]


def peer_of(host: Any) -> PeerId:
    return PeerId(str(host.get_id()))


def addresses_of(host: Any) -> list[str]:
    return [str(address) for address in host.get_addrs()]


def connection_to(transport: Libp2pTransport, peer: PeerId) -> MuxedConnection:
    return cast("MuxedConnection", transport._swarm.connections[ID.from_base58(peer)][0].muxed_conn)


async def dies_of(stock: Any, scenario: Scenario, **options: Any) -> str:
    """What ended a stock host while `scenario` ran against it; "" where it survived ten seconds."""
    try:
        async with stock(**options) as host:
            with trio.move_on_after(10):
                await scenario(host)
                await trio.sleep(60)
    except Exception as error:  # noqa: BLE001 - which one, is the finding
        cause: BaseException = error
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        return type(cause).__name__
    return ""


async def come_and_go(transport: Libp2pTransport, peer: PeerId, addresses: list[str], times: int) -> int:
    """How many of `times` visits were let in and could talk."""
    served = 0
    for _ in range(times):
        try:
            await transport.connect(peer, addresses)
            stream = await transport.open_stream(peer, "/ipfs/ping/1.0.0")
            await stream.send_all(b"p" * 32)
            served += len(await stream.receive_some()) == 32
        except TransportError:
            pass
        await transport.disconnect(peer)
    return served


async def test_1_inbound_slots_end_with_their_connections(running: Any, stock: Any) -> None:
    limits = ConnectionConfig(max_connections=6, min_connections=2, low_watermark=2, high_watermark=6)
    async with running(1) as (visitor,), stock(connection_config=limits) as deaf:
        assert await come_and_go(visitor, peer_of(deaf), addresses_of(deaf), 6) == 4
    async with running(2, max_connections=6, reserved_outbound=2) as (visitor, ours):
        assert await come_and_go(visitor, ours.peer_id, list(ours.addresses()), 16) == 16
        assert visitor.counters.dialed + visitor.counters.accepted >= 16


async def test_2_an_exception_in_a_handler_ends_the_stock_host(running: Any, stock: Any, echoes: Any) -> None:
    async def raises(_: Any) -> None:
        raise ValueError("a bug in a handler")

    async with running(2) as (visitor, ours):

        async def visit(host: Any) -> None:
            host.set_stream_handler(TProtocol("/raises"), raises)
            await visitor.connect(peer_of(host), addresses_of(host))
            await visitor.open_stream(peer_of(host), "/raises")

        assert await dies_of(stock, visit) == "ValueError"
        ours.handle("/raises", raises)
        await visitor.connect(ours.peer_id, ours.addresses())
        with pytest.raises(TransportError):
            await (await visitor.open_stream(ours.peer_id, "/raises")).receive_some()
        assert await echoes(visitor, ours.peer_id)
        assert ours.counters.handler_faults["/raises"] == 1


async def test_2b_a_negotiation_line_that_is_not_text_ends_the_stock_host(running: Any, stock: Any, echoes: Any) -> None:
    async def garble(transport: Libp2pTransport, peer: PeerId) -> None:
        muxed = await connection_to(transport, peer).open_stream()
        await muxed.write(b"\x13/multistream/1.0.0\n\x03\xff\xfe\n")

    async with running(2) as (visitor, ours):

        async def visit(host: Any) -> None:
            await visitor.connect(peer_of(host), addresses_of(host))
            await garble(visitor, peer_of(host))

        assert await dies_of(stock, visit) == "UnicodeDecodeError"
        await visitor.connect(ours.peer_id, ours.addresses())
        await garble(visitor, ours.peer_id)
        assert await echoes(visitor, ours.peer_id)
        assert ours.counters.handler_faults["negotiation"] == 1


async def test_3_a_malformed_gossip_frame_ends_the_stock_host(running: Any, stock: Any, echoes: Any, until: Any) -> None:
    meshsub = "/meshsub/1.1.0"

    async def garble(transport: Libp2pTransport, peer: PeerId) -> None:
        stream = await transport.open_stream(peer, meshsub)
        await stream.send_all(b"\x05hello")

    async with running(2) as (visitor, ours):

        async def visit(host: Any) -> None:
            router = GossipSub(protocols=[TProtocol(meshsub)], degree=6, degree_low=4, degree_high=12, heartbeat_interval=1)
            pubsub = Pubsub(host, router)
            async with background_trio_service(pubsub), background_trio_service(router):
                await pubsub.wait_until_ready()
                await visitor.connect(peer_of(host), addresses_of(host))
                await garble(visitor, peer_of(host))
                await trio.sleep_forever()

        assert await dies_of(stock, visit) == "DecodeError"
        await visitor.connect(ours.peer_id, ours.addresses())
        await garble(visitor, ours.peer_id)
        assert await echoes(visitor, ours.peer_id)


async def test_4_one_bad_ciphertext_ends_the_stock_host_over_mplex(running: Any, stock: Any, echoes: Any, until: Any) -> None:
    garbage = b"\x00\x40" + os.urandom(64)
    async with stock(muxer_preference="MPLEX") as mplex, running(3) as (visitor, ours, bystander):

        async def visit(host: Any) -> None:
            await mplex.connect(PeerInfo(host.get_id(), host.get_addrs()))
            muxed = mplex.get_network().connections[host.get_id()][0].muxed_conn
            await muxed.secured_conn.conn.read_writer.read_write_closer.write(garbage)

        assert await dies_of(stock, visit) == "NoiseInvalidMessage"
        await bystander.connect(ours.peer_id, ours.addresses())
        await visitor.connect(ours.peer_id, ours.addresses())
        await cast("NoiseSession", connection_to(visitor, ours.peer_id).secured_conn).raw.write(garbage)
        await until(lambda: ours.counters.connections_closed["cipher"] == 1)
        assert await echoes(bystander, ours.peer_id)


async def test_5_a_cancelled_write_breaks_the_stock_session() -> None:
    async def handshaken(side: Any, dialer: bool, other: ID, into: list[Any], keys: Any) -> None:
        noise = StockNoise(keys, noise_privkey=create_x25519_key_pair().private_key)
        into.append(await (noise.secure_outbound(side, other) if dialer else noise.secure_inbound(side)))

    left, right = trio.testing.memory_stream_pair()
    ours, theirs = create_new_key_pair(), create_new_key_pair()
    sending: list[Any] = []
    receiving: list[Any] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handshaken, Wire(left), True, ID.from_pubkey(theirs.public_key), sending, ours)
        nursery.start_soon(handshaken, Wire(right), False, ID.from_pubkey(ours.public_key), receiving, theirs)
    wire = sending[0].conn.read_writer.read_write_closer
    wire.is_full = True
    with trio.move_on_after(0.01) as scope:
        await sending[0].write(b"cancelled")
    assert scope.cancelled_caught
    wire.is_full = False
    await sending[0].write(b"after")
    with pytest.raises(Exception, match="Failed authentication"):
        await receiving[0].read(5)


class Wire:
    """A raw connection over memory; a write waits while `is_full`, as it would for a socket."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.is_full = False

    async def write(self, raw: bytes) -> None:
        if self.is_full:
            await trio.sleep_forever()
        await self.stream.send_all(raw)

    async def read(self, n: int | None = None) -> bytes:
        return bytes(await self.stream.receive_some(n))

    async def close(self) -> None:
        await self.stream.aclose()


async def test_5_thirty_of_thirty_cancelled_writes_survive_on_ours(running: Any, echoes: Any) -> None:
    async def sip(stream: Stream) -> None:
        while await stream.receive_some():
            await trio.sleep(0.02)

    async with running(2) as (visitor, ours):
        ours.handle("/sip", sip)
        await visitor.connect(ours.peer_id, ours.addresses())
        survived = 0
        for _ in range(30):
            stream = await visitor.open_stream(ours.peer_id, "/sip")
            with trio.move_on_after(0.01) as scope:
                for _ in range(100):
                    await stream.send_all(b"x" * 200_000)
            await stream.reset()
            survived += scope.cancelled_caught and await echoes(visitor, ours.peer_id)
        assert survived == 30
        assert visitor.counters.dialed == 1


def negotiated(address: str, protocol: str) -> str:
    """What a listener answers to an offer of one security protocol."""
    port = int(address.split("/")[4])
    line = protocol.encode() + b"\n"
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        sock.sendall(b"\x13/multistream/1.0.0\n" + bytes([len(line)]) + line)
        received = b""
        while received.count(b"\n") < 2:
            received += sock.recv(200)
    return received.split(b"\n")[1][1:].decode()


async def test_6_only_noise_is_offered(running: Any, stock: Any) -> None:
    async with running(1) as (ours,), stock() as shipped:
        for protocol in ("/plaintext/2.0.0", "/secio/1.0.0", "/tls/1.0.0"):
            assert await trio.to_thread.run_sync(negotiated, addresses_of(shipped)[0], protocol) == protocol
            assert await trio.to_thread.run_sync(negotiated, ours.addresses()[0], protocol) == "na"
        assert await trio.to_thread.run_sync(negotiated, ours.addresses()[0], "/noise") == "/noise"


def muxer_of(host: Any, peer: ID) -> str:
    return str(host.get_network().connections[peer][0].get_negotiated_muxer_protocol())


async def test_6_only_yamux_is_offered(running: Any, stock: Any, until: Any) -> None:
    mplex_alone = {TProtocol("/mplex/6.7.0"): Mplex}
    async with AsyncExitStack() as stack:
        shipped = await stack.enter_async_context(stock())
        mplex = await stack.enter_async_context(stock(muxer_preference="MPLEX"))
        stubborn = await stack.enter_async_context(stock(muxer_opt=mplex_alone))
        (ours,) = await stack.enter_async_context(running(1))
        await mplex.connect(PeerInfo(shipped.get_id(), shipped.get_addrs()))
        assert muxer_of(mplex, shipped.get_id()) == "/mplex/6.7.0"
        us = PeerInfo(ID.from_base58(ours.peer_id), [Multiaddr(text) for text in ours.addresses()])
        await mplex.connect(us)
        assert muxer_of(mplex, us.peer_id) == "/yamux/1.0.0"
        with pytest.raises(Exception, match="unable to connect"):
            await stubborn.connect(us)
        await until(lambda: sum(ours.counters.handshakes_failed.values()) >= 1)


CHILD = """
import sys, trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from daemon.transport.host import Libp2pTransport
from daemon.transport.options import TransportOptions

async def main():
    transport = Libp2pTransport(Ed25519PrivateKey.generate(), TransportOptions(listen=("/ip4/127.0.0.1/tcp/0",)))
    async with transport.running():
        print(transport.addresses()[0], flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.slow
async def test_7_a_frozen_peer_is_dropped_within_seconds(running: Any, stock: Any) -> None:
    root = Path(__file__).parents[2]
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, cwd=root)
    try:
        assert child.stdout is not None
        address = (await trio.to_thread.run_sync(child.stdout.readline)).strip()
        peer = PeerId(address.rsplit("/", 1)[1])
        gone = trio.Event()
        async with running(1, keepalive_interval=0.5, keepalive_timeout=1.0) as (ours,), stock() as shipped:
            await ours.connect(peer, [address])
            await shipped.connect(PeerInfo(ID.from_base58(peer), [Multiaddr(address)]))
            ours.listen_to_peers(lambda who, up: gone.set() if who == peer and not up else None)
            child.send_signal(signal.SIGSTOP)
            with trio.fail_after(6):
                await gone.wait()
            assert peer not in ours.paths()
            assert ours.counters.connections_closed["silent"] == 1
            assert shipped.get_network().connections[ID.from_base58(peer)]
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


async def test_8_a_dial_takes_as_long_as_its_handshake(running: Any, stock: Any) -> None:
    async with stock() as target, stock() as shipped, running(1) as (ours,):
        theirs, mine = 10.0, 10.0
        for _ in range(3):
            began = time.perf_counter()
            await shipped.connect(PeerInfo(target.get_id(), target.get_addrs()))
            theirs = min(theirs, time.perf_counter() - began)
            await shipped.disconnect(target.get_id())
            began = time.perf_counter()
            await ours.connect(peer_of(target), addresses_of(target))
            mine = min(mine, time.perf_counter() - began)
            await ours.disconnect(peer_of(target))
        assert theirs / mine > 2


async def test_8_a_peer_that_was_away_is_not_shunned_for_a_minute(running: Any, stock: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    late = new_host(key_pair=create_new_key_pair())
    address = Multiaddr(f"/ip4/127.0.0.1/tcp/{port}")
    async with stock() as shipped, running(1) as (ours,):
        with pytest.raises(Exception, match="unable to connect"):
            await shipped.connect(PeerInfo(late.get_id(), [address]))
        with pytest.raises(TransportError):
            await ours.connect(peer_of(late), [str(address)])
        async with late.run([address]):
            with pytest.raises(Exception, match="negative cache"):
                await shipped.connect(PeerInfo(late.get_id(), [address]))
            await ours.connect(peer_of(late))


async def overrun(transport: Libp2pTransport, peer: PeerId, size: int) -> None:
    """Send `size` bytes on a stream that nobody reads, as if its window had no end."""
    stream = await transport.open_stream(peer, "/hold")
    muxed = cast("Libp2pStream", stream)._muxed
    connection_to(transport, peer)._machine._streams[muxed.stream_id].send_window = 1 << 30
    await stream.send_all(b"z" * size)


async def test_9_the_receive_window_is_enforced(running: Any, stock: Any, until: Any) -> None:
    async def hold(_: Any) -> None:
        await trio.sleep_forever()

    async with running(2) as (visitor, ours), stock() as shipped:
        shipped.set_stream_handler(TProtocol("/hold"), hold)
        await visitor.connect(peer_of(shipped), addresses_of(shipped))
        await overrun(visitor, peer_of(shipped), 3 << 20)
        muxed = shipped.get_network().connections[ID.from_base58(visitor.peer_id)][0].muxed_conn
        await until(lambda: max(map(len, muxed.stream_buffers.values())) == 3 << 20)
        ours.handle("/hold", hold)
        await visitor.connect(ours.peer_id, ours.addresses())
        await overrun(visitor, ours.peer_id, 3 << 20)
        await until(lambda: ours.counters.connections_closed["protocol"] == 1)
        assert visitor.peer_id not in ours.paths()


async def test_9_a_reader_may_pause(running: Any, stock: Any, mock_clock: trio.testing.MockClock) -> None:
    resume = trio.Event()
    total = 1 << 20

    async def pause(stream: Stream) -> None:
        await resume.wait()
        received = 0
        while received < total:
            received += len(await stream.receive_some())
        await stream.send_all(b"all of it")

    mock_clock.rate = 5.0
    patient = {"keepalive_timeout": 100.0, "upgrade_timeout": 100.0, "connect_timeout": 100.0, "stream_open_timeout": 100.0}
    async with running(2, **patient) as (visitor, ours), stock() as shipped:
        ours.handle("/pause", pause)
        await shipped.connect(PeerInfo(ID.from_base58(ours.peer_id), [Multiaddr(text) for text in ours.addresses()]))
        broken = await shipped.new_stream(ID.from_base58(ours.peer_id), [TProtocol("/pause")])
        began = trio.current_time()
        with pytest.raises(StreamError):
            await broken.write(b"x" * total)
        assert 4.5 < trio.current_time() - began < 8
        await visitor.connect(ours.peer_id, ours.addresses())
        stream = await visitor.open_stream(ours.peer_id, "/pause")
        await stream.send_all(b"x" * total)
        await trio.sleep(8)
        resume.set()
        assert await stream.receive_some() == b"all of it"
