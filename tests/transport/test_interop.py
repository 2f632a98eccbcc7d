"""Our Noise session and Yamux against those of stock py-libp2p, both ways, and what is left when peers have come and gone."""

import contextlib
import os
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.secp256k1 import create_new_key_pair as create_secp256k1_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.ping import PingService
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from daemon.transport.addresses import dialable
from daemon.transport.host import Libp2pTransport
from daemon.transport.identify import MAX_ADDRESSES
from daemon.transport.interface import Stream, Transport
from daemon.transport.options import parse_address
from protocol.wire.ids import PeerId

pytestmark = pytest.mark.live

BULK = os.urandom(1 << 20)


def as_transport(transport: Libp2pTransport) -> Transport:
    """For the type checker: the class has the interface's shape."""
    return transport


async def stock_echo(stream: Any) -> None:
    try:
        while True:
            await stream.write(await stream.read(65536))
    except Exception:  # noqa: BLE001 - the end of a stream
        await stream.close()


async def test_we_dial_a_stock_peer(running: Any, stock: Any, until: Any) -> None:
    async with stock() as shipped, running(1) as (ours,):
        shipped.set_stream_handler(TProtocol("/echo"), stock_echo)
        peer = PeerId(str(shipped.get_id()))
        await ours.connect(peer, [str(address) for address in shipped.get_addrs()])
        stream = await ours.open_stream(peer, "/echo")
        assert await echoed(stream, BULK) == BULK
        await stream.aclose()
        await until(lambda: "/ipfs/ping/1.0.0" in ours._host.peerstore.get_protocols(shipped.get_id()))


async def echoed(stream: Stream, payload: bytes) -> bytes:
    received = b""

    async def push() -> None:
        for at in range(0, len(payload), 100_000):
            await stream.send_all(payload[at : at + 100_000])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(push)
        while len(received) < len(payload):
            received += await stream.receive_some()
    return received


async def test_a_stock_peer_dials_us(running: Any, stock: Any) -> None:
    async with stock() as shipped, running(1) as (ours,):
        us = ID.from_base58(ours.peer_id)
        await shipped.connect(PeerInfo(us, [Multiaddr(text) for text in ours.addresses()]))
        assert len(await PingService(shipped).ping(us, 3)) == 3
        stream = await shipped.new_stream(us, [TProtocol("/echo")])
        received = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, BULK)
            while len(received) < len(BULK):
                received += await stream.read(65536)
        assert received == BULK
        assert ours.paths()[PeerId(str(shipped.get_id()))].inbound


async def test_an_identity_that_is_not_ed25519_is_refused(running: Any, until: Any) -> None:
    host = new_host(key_pair=create_secp256k1_key_pair())
    async with host.run([]), running(1) as (ours,):
        with contextlib.suppress(SwarmException):
            await host.connect(PeerInfo(ID.from_base58(ours.peer_id), [Multiaddr(text) for text in ours.addresses()]))
        await until(lambda: ours.counters.refused["identity"] == 1)
        assert not ours.paths()


async def test_two_of_ours_move_bulk_and_talk_at_once(running: Any, echoes: Any) -> None:
    async with running(2) as (a, b):
        await b.connect(a.peer_id, a.addresses())
        stream = await b.open_stream(a.peer_id, "/echo")
        async with trio.open_nursery() as nursery:
            done: list[bytes] = []

            async def bulk() -> None:
                done.append(await echoed(stream, BULK * 8))

            nursery.start_soon(bulk)
            for _ in range(5):
                assert await echoes(b, a.peer_id)
        assert done == [BULK * 8]


@pytest.mark.slow
async def test_peers_that_come_and_go_leave_nothing_behind(running: Any, echoes: Any, until: Any) -> None:
    async with running(1) as (hub,), running(2) as visitors:

        async def visit(times: int) -> None:
            for turn in range(times):
                visitor = visitors[turn % 2]
                await visitor.connect(hub.peer_id, hub.addresses())
                assert await echoes(visitor, hub.peer_id)
                await visitor.disconnect(hub.peer_id)

        async def tasks_at_rest(at_most: int) -> int:
            """Tasks alive once no peer is connected; the DHT may dial once more, so until few enough are left."""
            with trio.fail_after(20):
                while True:
                    for transport in (hub, *visitors):
                        for peer in list(transport.paths()):
                            await transport.disconnect(peer)
                    await until(lambda: not hub.inbound_streams())
                    await trio.sleep(0.2)
                    if trio.lowlevel.current_statistics().tasks_living <= at_most:
                        return trio.lowlevel.current_statistics().tasks_living

        await visit(4)
        await trio.sleep(0.5)
        before = await tasks_at_rest(1000)
        await visit(16)
        # A stock host keeps at least one task of every connection it ever accepted.
        assert await tasks_at_rest(before + 4) <= before + 4
        assert hub._host.swarm._inbound == len(hub._host.swarm.get_connections())
        assert hub.counters.accepted + hub.counters.dialed >= 20


async def test_ipv6_peers_have_an_address_too(make_transport: Any) -> None:
    a, b = make_transport(listen=("/ip6/::1/tcp/0",)), make_transport(listen=("/ip6/::1/tcp/0",))
    try:
        async with a.running(), b.running():
            await b.connect(a.peer_id, a.addresses())
            assert b.paths()[a.peer_id].address.startswith("/ip6/::1/tcp/")
    except* Exception as group:
        if "not an address of this machine" in repr(group):
            pytest.skip("no IPv6 on this machine")
        raise


def test_a_peer_that_lists_a_thousand_addresses_fills_nothing(make_transport: Any) -> None:
    store = make_transport()._host.peerstore
    peer = ID.from_base58(make_transport().peer_id)
    for port in range(1, 1001):
        store.add_addr(peer, parse_address(f"/ip4/192.0.2.1/tcp/{port}"), 60)
    kept = store.addrs(peer)
    assert len(kept) == MAX_ADDRESSES
    assert str(kept[-1]) == "/ip4/192.0.2.1/tcp/1000"
    store.add_protocols(peer, [f"/p/{n}" for n in range(5000)] + ["x" * 10_000])
    assert len(store.get_protocols(peer)) == 128


def test_an_address_may_name_its_peer_behind_a_relay(make_transport: Any) -> None:
    relay, peer = make_transport().peer_id, make_transport().peer_id
    text = f"/ip4/192.0.2.1/tcp/1/p2p/{relay}/p2p-circuit/p2p/{peer}"
    assert [str(address) for address in dialable(peer, [text])] == [text]
