"""Our transport against js-libp2p over TCP, Noise and Yamux: each dials, each opens streams, and every byte arrives."""

import hashlib
import os
import time
from typing import Any

import pytest
import trio
from libp2p.host.ping import PingService
from libp2p.peer.id import ID

from daemon.transport.interface import PathKind, Stream, TransportError
from daemon.transport.options import TransportOptions
from dht.record_store import Opened
from protocol.wire.ids import sha256

pytestmark = [pytest.mark.interop, pytest.mark.live, pytest.mark.slow]

SIZES = (1, 1 << 10, 64 << 10, 1 << 20, 16 << 20)
PIECE = 64 << 10
TOPIC = "/swarmd/presence/1"
WIDE = {"max_inbound_streams_per_peer": 128, "max_inbound_streams_per_protocol": 128}


async def push(stream: Stream, payload: bytes, written: list[int] | None = None) -> None:
    """Send `payload` and finish our direction alone; the interface has no half-close, and RPC needs none."""
    for at in range(0, len(payload), PIECE):
        piece = payload[at : at + PIECE]
        await stream.send_all(piece)
        if written is not None:
            written.append(len(piece))
    await stream._muxed.close()  # type: ignore[attr-defined]


async def echoed(ours: Any, peer: Any, payload: bytes) -> bytes:
    """What comes back of `payload`, until the peer finishes."""
    stream = await ours.open_stream(peer, "/interop/echo/1")
    parts = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(push, stream, payload)
        while received := await stream.receive_some():
            parts.append(received)
    await stream.aclose()
    return b"".join(parts)


def multihash_of(key: str) -> str:
    """Under what name, in hexadecimal, the DHT keeps the providers of `key`."""
    return "1220" + sha256(key.encode()).hex()


async def test_each_identifies_and_pings_the_other(js: Any, meet: Any, until: Any) -> None:
    async with meet() as ours:
        told = await until(lambda: js.ask("identified", peer=ours.peer_id))
        assert {"/interop/echo/1", "/ipfs/ping/1.0.0", "/ipfs/kad/1.0.0", "/meshsub/1.1.0"} <= set(told["protocols"])
        assert set(told["listens"]) == {address.split("/p2p/")[0] for address in ours.addresses()}
        assert told["observed"].startswith("/ip4/127.0.0.1/tcp/")
        assert await js.ask("ping", peer=ours.peer_id) < 1000

        them = ID.from_base58(js.peer)
        known = ours._host.peerstore
        await until(lambda: "/interop/echo/1" in known.get_protocols(them))
        assert js.address.split("/p2p/")[0] in {str(address).split("/p2p/")[0] for address in known.addrs(them)}
        assert len(await PingService(ours._host).ping(them, 3)) == 3
        await until(lambda: ours.paths()[js.peer].rtt is not None)


async def test_echoes_are_exact_in_both_roles(js: Any, meet: Any, report: Any) -> None:
    async with meet() as ours:
        for size in SIZES:
            payload = os.urandom(size)
            started = time.perf_counter()
            returned = await echoed(ours, js.peer, payload)
            seconds = time.perf_counter() - started
            assert hashlib.sha256(returned).digest() == hashlib.sha256(payload).digest()
            theirs = await js.ask("echo", peer=ours.peer_id, size=size)
            assert (theirs["same"], theirs["wrong"], theirs["errors"]) == (1, 0, [])
        report(f"16 MiB echoed: {size / seconds / 1e6:.0f} MB/s as we ask, {size / theirs['seconds'] / 1e6:.0f} MB/s as js asks")
        assert not ours.counters.handler_faults
        assert not ours.broken


async def test_sixty_four_streams_at_once_in_both_roles(js: Any, meet: Any) -> None:
    async with meet(**WIDE) as ours:
        same = []

        async def one() -> None:
            payload = os.urandom(64 << 10)
            same.append(await echoed(ours, js.peer, payload) == payload)

        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(one)
            theirs = await js.ask("echo", peer=ours.peer_id, size=64 << 10, streams=64)
        assert same == [True] * 64
        assert (theirs["same"], theirs["wrong"], theirs["errors"]) == (64, 0, [])


async def test_streams_over_the_limit_are_reset_and_the_rest_is_served(js: Any, meet: Any, until: Any) -> None:
    async with meet() as ours:
        limit = TransportOptions().max_inbound_streams_per_protocol
        crowd = await js.ask("echo", peer=ours.peer_id, size=256 << 10, streams=64)
        assert crowd["wrong"] == 0
        assert crowd["same"] >= limit
        assert len(crowd["errors"]) == 64 - crowd["same"] > 0
        await until(lambda: ours.counters.streams_refused.total() == len(crowd["errors"]))
        assert (await js.ask("echo", peer=ours.peer_id, size=1))["same"] == 1
        assert ours.counters.accepted + ours.counters.dialed == 1


async def test_a_finished_direction_leaves_the_other_open(js: Any, meet: Any) -> None:
    async with meet() as ours:
        payload = os.urandom(100_000)
        stream = await ours.open_stream(js.peer, "/interop/hash/1")
        await push(stream, payload)
        assert await stream.receive_some() == hashlib.sha256(payload).digest()
        assert await stream.receive_some() == b""
        assert await js.ask("upload", peer=ours.peer_id, protocol="hash", size=100_000)
        empty = await ours.open_stream(js.peer, "/interop/hash/1")
        await push(empty, b"")
        assert await empty.receive_some() == hashlib.sha256().digest()
        assert await js.ask("upload", peer=ours.peer_id, protocol="hash", size=0)


async def test_a_reset_reaches_the_other_side_and_ends_that_stream_alone(js: Any, meet: Any, until: Any) -> None:
    async with meet() as ours:
        assert await js.ask("provoke", peer=ours.peer_id) == "reset"
        await js.ask("abandon", peer=ours.peer_id)
        await until(lambda: ours.broken == ["echo"])
        stream = await ours.open_stream(js.peer, "/interop/reset/1")
        await stream.send_all(b"?")
        with pytest.raises(TransportError):
            await stream.receive_some()
        assert await echoed(ours, js.peer, b"still here") == b"still here"
        assert ours.counters.accepted + ours.counters.dialed == 1


async def test_a_protocol_that_nobody_serves_is_refused(js: Any, meet: Any) -> None:
    async with meet() as ours:
        with pytest.raises(TransportError, match="does not serve"):
            await ours.open_stream(js.peer, "/interop/none/1")
        assert await echoed(ours, js.peer, b"still here") == b"still here"


async def test_a_slow_js_reader_holds_our_writer_back_and_no_other_stream(js: Any, meet: Any, until: Any) -> None:
    payload = os.urandom(4 << 20)
    async with meet() as ours:
        stream = await ours.open_stream(js.peer, "/interop/hold/1")
        written: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(push, stream, payload, written)
            await until(lambda: sum(written) >= 1 << 20)
            for _ in range(5):
                assert await echoed(ours, js.peer, b"meanwhile") == b"meanwhile"
            # The queue of one stream, js's initial window, and the piece that filled it.
            assert sum(written) <= (1 << 20) + (256 << 10) + 2 * PIECE
            await js.ask("release")
        assert await stream.receive_some() == hashlib.sha256(payload).digest()


async def test_our_slow_reader_holds_js_back_and_no_other_stream(js: Any, meet: Any, until: Any) -> None:
    same = []
    async with meet() as ours:

        async def upload() -> None:
            same.append(await js.ask("upload", peer=ours.peer_id, protocol="hold", size=4 << 20))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            await until(lambda: ours.inbound_streams().get(js.peer, 0) >= 1)
            for _ in range(5):
                assert (await js.ask("echo", peer=ours.peer_id, size=1000))["same"] == 1
            assert await js.ask("written") <= (256 << 10) + 2 * PIECE
            ours.release.set()
        assert same == [True]
        assert ours._host.swarm.upgrader._settings.memory.held == 0


async def test_gossip_travels_both_ways_on_our_topic(js: Any, meet: Any, until: Any) -> None:
    heard: list[tuple[str, bytes]] = []

    def hear(author: str, payload: bytes) -> bool:
        heard.append((author, payload))
        return True

    async with meet() as ours:
        await js.ask("subscribe", topic=TOPIC)
        await ours.subscribe(TOPIC, hear)

        async def js_sends() -> bool:
            return ours.peer_id in await js.ask("publish", topic=TOPIC, text="from js")

        # It publishes to nobody until its stream to us stands, some time after it knows that we subscribe.
        await until(js_sends)
        await until(lambda: (js.peer, b"from js") in heard)
        await ours.publish(TOPIC, b"from us")

        async def js_heard() -> bool:
            return [TOPIC, ours.peer_id, "from us"] in await js.ask("heard")

        await until(js_heard)
        assert heard.count((js.peer, b"from js")) == 1
        faults = {"bad_signature", "malformed", "over_limit", "oversized", "invalid"}
        assert not faults & set(ours.service_counters()["gossip"])


async def test_records_travel_both_ways(js: Any, meet: Any, until: Any) -> None:
    records = {"open_record": lambda key, value, wall: Opened((0, 0, value), wall + 60_000)}
    async with meet(records=records) as ours:
        await until(lambda: ours._kademlia.peers == 1)
        await ours.put_record("/swarmd/offer/ours", b"put by us")
        assert await js.ask("get", key="/swarmd/offer/ours") == "put by us"
        await js.ask("put", key="/swarmd/offer/js", value="put by js")
        assert await ours.get_record("/swarmd/offer/js") == b"put by js"


async def test_we_find_what_js_provides(js: Any, meet: Any, until: Any) -> None:
    async with meet() as ours:
        await until(lambda: ours._kademlia.peers == 1)
        await js.ask("provide", multihash=multihash_of("model/js"))
        found = await ours.find_providers("model/js")
        assert js.address.split("/p2p/")[0] in {address.split("/p2p/")[0] for address in found[js.peer]}


async def test_js_finds_what_we_provide(js: Any, meet: Any, until: Any) -> None:
    async with meet() as ours:
        await until(lambda: ours._kademlia.peers == 1)
        await ours.provide("model/ours")
        assert ours.peer_id in await js.ask("providers", multihash=multihash_of("model/ours"))


async def test_two_of_ours_meet_through_a_js_relay(js: Any, ours: Any, until: Any) -> None:
    away = {"listen": (), "punch": False}  # or they would find the short way while we look
    async with ours(relays=(js.address,), **away) as reached, ours(**away) as caller:
        await until(lambda: reached.relay.addresses())
        await caller.connect(reached.peer_id, reached.relay.addresses())
        assert caller.paths()[reached.peer_id].kind is PathKind.RELAYED
        payload = os.urandom(1 << 20)
        assert await echoed(caller, reached.peer_id, payload) == payload


async def test_js_dials_one_of_ours_through_our_relay(js: Any, ours: Any, until: Any) -> None:
    async with ours(serve_relay=True) as relay, ours(relays=(relay.addresses()[0],), punch=False) as reached:
        await until(lambda: reached.relay.addresses())
        await js.ask("dial", address=reached.relay.addresses()[0])
        path = await until(lambda: reached.paths().get(js.peer))
        assert path.kind is PathKind.RELAYED
        assert (await js.ask("echo", peer=reached.peer_id, size=64 << 10))["same"] == 1


async def test_one_of_ours_dials_js_through_our_relay(js: Any, ours: Any) -> None:
    async with ours(serve_relay=True) as relay, ours(punch=False) as caller:
        address = (await js.ask("listenThrough", relay=relay.addresses()[0]))[0]
        peer = address.rsplit("/", 1)[1]
        await caller.connect(peer, [address])
        assert caller.paths()[peer].kind is PathKind.RELAYED
        payload = os.urandom(64 << 10)
        assert await echoed(caller, peer, payload) == payload
        await js.ask("stopListening")
