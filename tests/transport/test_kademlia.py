"""The DHT over real hosts on loopback: one node, two, twenty; strict records; strangers who send garbage or sit on streams."""

import contextlib
import time
from random import Random

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p import new_host
from libp2p.io.exceptions import IncompleteReadError
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message, Record
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import Validator
from libp2p.utils import encode_varint_prefixed
from libp2p.utils.varint import read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from daemon.transport.hardening import build_host
from daemon.transport.interface import TransportError
from daemon.transport.kademlia import Kademlia, KademliaOptions, _provider_key
from daemon.transport.kademlia_server import BoundedProviders, BoundedValues, _sender
from daemon.transport.options import TransportCounters, TransportOptions

pytestmark = [pytest.mark.live, pytest.mark.slow]


@contextlib.asynccontextmanager
async def bare_host():
    """A hardened host on loopback without services."""
    host = build_host(Ed25519PrivateKey.generate(), TransportOptions(), TransportCounters(), list)
    async with host.run([]), trio.open_nursery() as nursery:
        await nursery.start(host.run_tasks)
        await host.swarm.listen(Multiaddr("/ip4/127.0.0.1/tcp/0"))
        yield host
        for listener in host.swarm.listeners.values():
            await listener.close()
        for conn in host.swarm.get_connections():
            await conn.close()
        nursery.cancel_scope.cancel()


class Node:
    def __init__(self, host, options=None):
        self.host = host
        self.kad = Kademlia(host, self.valid, self.choose, self.addresses, Random(1), options)

    @property
    def id(self):
        return self.host.get_id().to_base58()

    def addresses(self):
        return [str(address) for address in self.host.get_addrs()]

    @staticmethod
    def valid(key, value):
        return not value.startswith(b"bad")

    @staticmethod
    def choose(key, values):
        return max(range(len(values)), key=lambda index: values[index])

    async def dial(self, other):
        await self.host.connect(PeerInfo(other.host.get_id(), other.host.get_addrs()))


@contextlib.asynccontextmanager
async def nodes(count, options=None):
    async with contextlib.AsyncExitStack() as stack:
        mesh = [Node(await stack.enter_async_context(bare_host()), options) for _ in range(count)]
        async with trio.open_nursery() as nursery:
            for node in mesh:
                await nursery.start(node.kad.run)
            yield mesh
            nursery.cancel_scope.cancel()


async def silence(host):
    """Make `host` unreachable at once, as when its machine dies."""
    for listener in host.swarm.listeners.values():
        await listener.close()
    async with trio.open_nursery() as nursery:
        for conn in host.swarm.get_connections():
            nursery.start_soon(conn.close)


async def until(condition, seconds=5.0):
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


async def test_alone_a_record_is_kept_and_found_and_others_do_not_exist():
    async with nodes(1) as (one,):
        await one.kad.put_record("/swarmd/offer/a", b"mine")
        assert await one.kad.get_record("/swarmd/offer/a") == b"mine"
        assert await one.kad.get_record("/swarmd/offer/b") is None
        await one.kad.provide("/swarmd/model/m")
        assert await one.kad.find_providers("/swarmd/model/m") == {}


async def test_what_was_put_alone_reaches_the_first_peer_that_comes():
    async with nodes(2) as (one, two):
        await one.kad.put_record("/swarmd/offer/a", b"mine")
        await one.kad.provide("/swarmd/model/m")
        await two.dial(one)
        await until(lambda: one.kad._server.routing_table.size() == 1 and two.kad.peers == 1, 1.0)
        await until(lambda: two.kad._server.value_store.size() == 1)
        await until(lambda: two.kad._server.provider_store.size() == 1)


async def test_two_peers_put_get_provide_and_find():
    async with nodes(2) as (one, two):
        await two.dial(one)
        await one.kad.put_record("/swarmd/offer/a", b"value 1")
        assert await two.kad.get_record("/swarmd/offer/a") == b"value 1"
        await one.kad.put_record("/swarmd/offer/a", b"value 1")  # republishing the same is no fault
        await one.kad.put_record("/swarmd/offer/a", b"value 2")
        assert await two.kad.get_record("/swarmd/offer/a") == b"value 2"
        with pytest.raises(TransportError, match="a better record stands"):
            await one.kad.put_record("/swarmd/offer/a", b"value 0")
        one.kad._server.value_store.remove(b"/swarmd/offer/a")
        with pytest.raises(TransportError, match="none of 1 peers took"):
            await one.kad.put_record("/swarmd/offer/a", b"value 0")
        await one.kad.provide("/swarmd/model/m")
        await two.kad.provide("/swarmd/model/m")
        found = await two.kad.find_providers("/swarmd/model/m")
        assert set(found) == {one.id}, "a provider must find the others although it knows one locally: itself"
        assert found[one.id] == tuple(one.addresses())


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("/swarmd/offer/a", b"bad", "not valid"),
        ("/swarmd/offer/a", b"", "not valid"),
        ("/swarmd/offer/a", bytes(8193), "over the limit of 8192"),
        ("/other/a", b"x", "starts with /swarmd/"),
        ("plain", b"x", "starts with /swarmd/"),
        ("/swarmd/" + "k" * 121, b"x", "at most 128 bytes"),
    ],
)
async def test_a_record_that_breaks_the_rules_is_refused_before_it_leaves(key, value, reason):
    async with nodes(1) as (one,):
        with pytest.raises(TransportError, match=reason):
            await one.kad.put_record(key, value)


async def request(host, target, message):
    stream = await host.new_stream(target.host.get_id(), [PROTOCOL_ID])
    try:
        await stream.write(message if isinstance(message, bytes) else encode_varint_prefixed(message.SerializeToString()))
        answer = Message()
        with trio.fail_after(3):
            answer.ParseFromString(await read_varint_prefixed_bytes_limited(stream, 1 << 20))
        return answer
    except (StreamError, IncompleteReadError):
        return None
    finally:
        await stream.close()


def put(key, value):
    return Message(type=Message.MessageType.PUT_VALUE, key=key, record=Record(key=key, value=value))


async def test_strangers_records_are_validated_and_garbage_wedges_nothing():
    async with nodes(2, KademliaOptions(stream_lifetime=0.3)) as (one, two), bare_host() as stranger:
        await two.dial(one)
        await stranger.connect(PeerInfo(one.host.get_id(), one.host.get_addrs()))
        assert await request(stranger, one, put(b"/swarmd/a", b"good")) is not None
        for message in (
            put(b"/swarmd/b", b"bad"),
            put(b"/swarmd/b", bytes(9000)),
            put(b"/other/b", b"x"),
            put(b"plain", b"x"),
            put(b"\xff\xfe", b"x"),
            put(b"/swarmd/" + b"k" * 200, b"x"),
            b"\xff" * 64,
            encode_varint_prefixed(b"\xff" * 40),
            b"\x80\x80\x80\x32" + bytes(100),
            Message(type=Message.MessageType.FIND_NODE, key=b""),
            Message(type=Message.MessageType.ADD_PROVIDER, key=b"k" * 81),
            Message(type=Message.MessageType.PUT_VALUE, key=b"/swarmd/b"),
        ):
            assert await request(stranger, one, message) is None
        assert one.kad._server.value_store.get_keys() == [b"/swarmd/a"]
        sitting = []
        with contextlib.suppress(Exception):
            for _ in range(14):
                sitting.append(await stranger.new_stream(one.host.get_id(), [PROTOCOL_ID]))  # noqa: PERF401 - until refused
        await two.kad.put_record("/swarmd/c", b"from an honest peer")
        assert one.kad._server.value_store.has(b"/swarmd/c")
        await until(lambda: not one.kad._server._busy)
        assert one.kad.counters["expired"] >= 1
        assert one.kad.counters["refused"] >= 1


async def test_a_stock_node_and_ours_share_records_and_providers():
    class Anything(Validator):
        def validate(self, key, value):
            """Accept."""

        def select(self, key, values):
            return 0

    async with nodes(1) as (ours,), bare_host() as host:
        stock = KadDHT(host, DHTMode.SERVER)
        stock.register_validator("swarmd", Anything())
        await host.connect(PeerInfo(ours.host.get_id(), ours.host.get_addrs()))
        await until(lambda: ours.kad.peers == 1)
        await ours.kad.put_record("/swarmd/a", b"ours")
        await stock.put_value("/swarmd/b", b"stock")
        stock.value_store.store.pop(b"/swarmd/a")
        ours.kad._server.value_store.remove(b"/swarmd/b")
        stock.value_store.put(b"/swarmd/b", b"stock")
        assert await stock.get_value("/swarmd/a") == b"ours"
        assert await ours.kad.get_record("/swarmd/b") == b"stock"
        await ours.kad.provide("/swarmd/model/m")
        found = await stock.find_providers(_provider_key("/swarmd/model/m").hex())
        assert [info.peer_id for info in found] == [ours.host.get_id()]


async def test_one_stranger_fills_only_its_share():
    async with nodes(1, KademliaOptions(max_records_per_peer=3)) as (one,), bare_host() as stranger:
        await stranger.connect(PeerInfo(one.host.get_id(), one.host.get_addrs()))
        answers = [await request(stranger, one, put(b"/swarmd/%d" % n, b"v")) for n in range(5)]
        assert [answer is not None for answer in answers] == [True, True, True, False, False]
        assert await request(stranger, one, put(b"/swarmd/1", b"w")) is not None, "replacing its own stays possible"


async def test_a_chatty_stranger_is_slowed():
    async with nodes(1, KademliaOptions(request_rate=20, request_burst=4)) as (one,), bare_host() as stranger:
        await stranger.connect(PeerInfo(one.host.get_id(), one.host.get_addrs()))
        started = trio.current_time()
        for _ in range(6):
            assert await request(stranger, one, Message(type=Message.MessageType.PING)) is not None
        assert trio.current_time() - started > 0.3
        assert one.kad.counters["paced"] > 0


async def test_twenty_nodes_put_get_provide_and_find_and_survive_the_loss_of_five():
    # 8 copies of a record rather than 20, so that finding one takes routing and not luck.
    async with nodes(20, KademliaOptions(closest=8, refresh_width=3)) as mesh:
        for node in mesh[1:]:
            await node.dial(mesh[0])
        await until(lambda: all(node.kad.peers >= 3 for node in mesh), 30)
        rng = Random(2)
        spent = {"put": [], "get": [], "provide": [], "find": []}

        async def timed(kind, call, *arguments):
            started = time.perf_counter()
            result = await call(*arguments)
            spent[kind].append(time.perf_counter() - started)
            return result

        for number in range(5):
            writer, reader = rng.sample(mesh[1:], 2)
            key = f"/swarmd/offer/{number}"
            await timed("put", writer.kad.put_record, key, b"v%d" % number)
            assert await timed("get", reader.kad.get_record, key) == b"v%d" % number
            await timed("provide", writer.kad.provide, key)
            assert writer.id in await timed("find", reader.kad.find_providers, key)
        for node in mesh[-5:]:
            async with trio.open_nursery() as nursery:
                for conn in node.host.swarm.get_connections():
                    nursery.start_soon(conn.close)
            await next(iter(node.host.swarm.listeners.values())).close()
        for number in range(5):
            assert await timed("get", mesh[number].kad.get_record, f"/swarmd/offer/{number}") == b"v%d" % number
        for kind, times in spent.items():
            print(f"{kind}: median {sorted(times)[len(times) // 2] * 1e3:.0f} ms, max {max(times) * 1e3:.0f} ms")


def test_a_full_store_keeps_our_own_and_the_closest():
    host = new_host()
    values = BoundedValues(host, KademliaOptions(max_records=3))
    values.put(b"own", b"v")
    keys = [b"%d" % number for number in range(10)]
    for key in keys:
        values.put_record(key, Record(key=key, value=b"v"))
    nearest = sorted(keys, key=values._distance)
    assert set(values.store) == {b"own", nearest[0], keys[-1]} or set(values.store) == {b"own", *nearest[:2]}
    assert values._owned.total() == 0


def test_stores_forget_by_time_and_give_shares_back():
    host = new_host()
    values = BoundedValues(host, KademliaOptions(record_lifetime=-1))
    token = _sender.set(new_host().get_id())
    values.put_record(b"k", Record(key=b"k", value=b"v"))
    _sender.reset(token)
    assert values._owned.total() == 1
    assert values.cleanup_expired() == 1
    assert values._owned.total() == 0
    providers = BoundedProviders(host, None, KademliaOptions(closest=2, max_provided_keys=2), Random(1))
    for key in (b"a", b"b", b"c"):
        for _ in range(4):
            providers.add_provider(key, PeerInfo(new_host().get_id(), []))
    assert len(providers.providers) == 2
    assert all(len(listed) == 2 for listed in providers.providers.values())
