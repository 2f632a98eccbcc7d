"""The DHT over real hosts on loopback: one node, two, twenty; strict records; strangers who send garbage or sit on streams."""

import contextlib
import time
from random import Random

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
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

from daemon.transport import kademlia_streams
from daemon.transport.hardening import build_host
from daemon.transport.interface import TransportError
from daemon.transport.kademlia import Kademlia, KademliaOptions, unix_ms
from daemon.transport.kademlia_streams import KEPT
from daemon.transport.kademlia_wire import VarintFrames, decode_answer, decode_question, encode_answer, encode_question
from daemon.transport.options import TransportCounters, TransportOptions
from dht.contacts import contact_of
from dht.kad_messages import AddProvider, Answer, FindNode, GetProviders, GetValue, Ping, PutValue
from dht.keyspace import name_of_peer, provider_name
from dht.lookup_events import Verdict
from dht.queries import GET, STORE
from dht.record_store import Opened, RecordLimits
from protocol.wire.errors import Code, RemoteError, malformed
from protocol.wire.ids import peer_id_of
from tests.sim.dht_network import answer_bytes, question_bytes
from tests.waiting import until

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


def opened(key, value, wall):
    """Any text is a record; of two the later in the alphabet wins."""
    if not key.startswith("/swarmd/"):
        raise malformed("a DHT key starts with /swarmd/")
    if not value or value.startswith(b"bad"):
        raise malformed("a record is not valid for its key")
    return Opened((0, 0, value), wall + 3_600_000)


class Node:
    def __init__(self, host, options=None, limits=None):
        self.host = host
        self.kad = Kademlia(host, opened, self.addresses, Random(1), options, limits)

    @property
    def id(self):
        return self.host.get_id().to_base58()

    @property
    def held(self):
        return self.kad.node.records.names()

    def addresses(self):
        return [str(address) for address in self.host.get_addrs()]

    async def dial(self, other):
        await self.host.connect(PeerInfo(other.host.get_id(), other.host.get_addrs()))


@contextlib.asynccontextmanager
async def nodes(count, options=None, limits=None):
    failure = None
    async with contextlib.AsyncExitStack() as stack:
        mesh = [Node(await stack.enter_async_context(bare_host()), options, limits) for _ in range(count)]
        async with trio.open_nursery() as nursery:
            for node in mesh:
                await nursery.start(node.kad.run)
            try:
                yield mesh
            except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - each nursery would wrap it, until nobody can read it
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def silence(host):
    """Make `host` unreachable at once, as when its machine dies."""
    for listener in host.swarm.listeners.values():
        await listener.close()
    async with trio.open_nursery() as nursery:
        for conn in host.swarm.get_connections():
            nursery.start_soon(conn.close)


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
        await until(lambda: one.kad.peers == 1 and two.kad.peers == 1, 1.0)
        await until(lambda: two.held == (b"/swarmd/offer/a",))
        await until(lambda: two.kad.node.providers.names() == (provider_name("/swarmd/model/m"),))


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
        one.kad.node.records._remove(b"/swarmd/offer/a")
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
        assert one.held == (b"/swarmd/a",)
        sitting = []
        with contextlib.suppress(Exception):
            for _ in range(14):
                sitting.append(await stranger.new_stream(one.host.get_id(), [PROTOCOL_ID]))  # noqa: PERF401 - until refused
        await two.kad.put_record("/swarmd/c", b"from an honest peer")
        assert b"/swarmd/c" in one.held
        await until(lambda: not one.kad._server.busy)
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
        assert b"/swarmd/b" in ours.held
        ours.kad.node.records._remove(b"/swarmd/b")
        stock.value_store.put(b"/swarmd/b", b"stock")
        assert await stock.get_value("/swarmd/a") == b"ours"
        assert await ours.kad.get_record("/swarmd/b") == b"stock"
        await ours.kad.provide("/swarmd/model/m")
        found = await stock.find_providers(provider_name("/swarmd/model/m").hex())
        assert [info.peer_id for info in found] == [ours.host.get_id()]


async def test_one_stranger_fills_only_its_share():
    async with nodes(1, limits=RecordLimits(per_sender=3)) as (one,), bare_host() as stranger:
        await stranger.connect(PeerInfo(one.host.get_id(), one.host.get_addrs()))
        answers = [await request(stranger, one, put(b"/swarmd/%d" % n, b"v")) for n in range(5)]
        assert [answer is not None for answer in answers] == [True, True, True, False, False]
        assert await request(stranger, one, put(b"/swarmd/1", b"w")) is not None, "replacing its own stays possible"


async def test_a_chatty_stranger_is_slowed():
    async with nodes(1, KademliaOptions(request_rate=20, request_burst=4)) as (one,), bare_host() as stranger:
        await stranger.connect(PeerInfo(one.host.get_id(), one.host.get_addrs()))
        started = trio.current_time()
        for _ in range(12):
            assert await request(stranger, one, Message(type=Message.MessageType.PING)) is not None
        assert trio.current_time() - started > 0.3
        assert one.kad.counters["paced"] > 0


@pytest.mark.timeout(300)  # ten seconds of work, on however little of a machine
async def test_twenty_nodes_put_get_provide_and_find_and_survive_the_loss_of_five():
    # 6 copies of a record rather than 20, so that finding one takes routing and not luck.
    async with nodes(20, KademliaOptions(closest=6)) as mesh:
        for node in mesh[1:]:
            await node.dial(mesh[0])
        # Their greetings keep the one processor of all twenty so busy that a look-up there may give everybody up as too slow.
        await until(lambda: all(node.kad.peers >= 3 and not node.kad._greeting for node in mesh), 30)
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


async def test_a_dead_peer_is_out_at_the_first_question_and_back_at_once():
    async with nodes(3) as (one, two, three):
        for other in (two, three):
            await other.dial(one)
        await until(lambda: all(node.kad.peers == 2 for node in (one, two, three)))
        await silence(three.host)
        with trio.fail_after(20):
            while two.kad.peers != 1:  # the first may end before its question to the dead one does
                with contextlib.suppress(TransportError):
                    await two.kad.put_record("/swarmd/a", b"v")
        assert await one.kad.get_record("/swarmd/a") == b"v"
        await three.host.swarm.listen(Multiaddr("/ip4/127.0.0.1/tcp/0"))
        await three.dial(two)
        await until(lambda: two.kad.peers == 2)


async def test_a_put_says_how_many_hold_it_and_silence_is_neither_stored_nor_absent():
    async with nodes(4) as (one, *others):
        assert await one.kad.put_record("/swarmd/offer/a", b"v") == 0
        for other in others:
            await other.dial(one)
        await until(lambda: one.kad.peers == 3)
        assert await one.kad.put_record("/swarmd/offer/a", b"v") == 3
        for other in others:
            other.kad.node.responder.answer = hang_up
        with pytest.raises(TransportError, match="no peer took the record"):
            await one.kad.put_record("/swarmd/offer/b", b"v")
        one.kad.node.records._remove(b"/swarmd/offer/a")
        with pytest.raises(TransportError, match="not known"):
            await one.kad.get_record("/swarmd/offer/a")
        with pytest.raises(TransportError, match="not known"):
            await one.kad.find_providers("/swarmd/model/m")


def hang_up(*question):
    raise RemoteError(Code.REFUSED, "no")


async def test_questions_share_one_stream_that_outlives_those_that_are_given_up():
    async with nodes(2) as (one, two):
        await two.dial(one)
        await until(lambda: one.kad.peers == two.kad.peers == 1)
        await until(lambda: not two.kad._greeting and KEPT in one.host.get_peerstore().get_protocols(two.host.get_id()))
        await one.kad.put_record("/swarmd/offer/a", b"v")
        (connection,) = (conn.muxed_conn for conn in one.host.swarm.get_connections())
        kept = one.kad._walker._streams._idle[connection].stream
        for _ in range(20):
            with trio.move_on_after(0):
                await one.kad._walker.ask(two.kad.node.me, GetValue(b"/swarmd/offer/a"))
            answer = await one.kad._walker.ask(two.kad.node.me, GetValue(b"/swarmd/offer/a"))
            assert answer.value == b"v", "an answer to a question that was given up must not count for the next"
            await one.kad._walker.ask(two.kad.node.me, Ping())
        assert one.kad._walker._streams._idle[connection].stream is kept
        await kept.reset()
        assert (await one.kad._walker.ask(two.kad.node.me, Ping())) is not None
        assert one.kad.peers == 1


async def test_after_our_own_stall_nobody_counts_as_silent():
    async with nodes(3, KademliaOptions(query_timeout=1.2, operation_timeout=60)) as (one, two, three):
        for other in (two, three):
            await other.dial(one)
        await until(lambda: all(node.kad.peers == 2 for node in (one, two, three)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two.kad.put_record, "/swarmd/offer/a", b"v")
            while not two.kad._walker._waiting:
                await trio.lowlevel.checkpoint()
            time.sleep(1.5)  # noqa: ASYNC251 - what stands still is the whole process
        assert two.kad.peers == 2
        assert await three.kad.get_record("/swarmd/offer/a") == b"v"


async def test_our_own_stall_ends_no_look_up():
    async with nodes(3) as (one, two, three):
        for other in (two, three):
            await other.dial(one)
        await until(lambda: one.kad.peers == 2)
        asked, ended = [], []

        async def exchange(contact, _question, _patience):
            asked.append(contact.peer)
            await trio.sleep_forever()

        async def look_up():
            ended.append(await one.kad._walker.look_up(b"/swarmd/a", GET, GetValue(b"/swarmd/a"), lambda _answer: False))

        one.kad._walker._exchange = exchange
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_up)
            await until(lambda: len(asked) == 2)
            time.sleep(2 * GET.slow)  # noqa: ASYNC251 - what stands still is the whole process
            await trio.sleep(0.05)
            assert not ended, "who is asked had no time to answer"
            await until(lambda: bool(ended))
        assert ended[0][0].verdict is Verdict.FAILED


async def test_a_stream_without_questions_is_let_go(monkeypatch):
    monkeypatch.setattr(kademlia_streams, "IDLE_SECONDS", 0.3)
    async with nodes(2) as (one, two):
        await two.dial(one)
        await until(lambda: one.kad.peers == two.kad.peers == 1)
        await until(lambda: not two.kad._greeting and KEPT in one.host.get_peerstore().get_protocols(two.host.get_id()))
        assert (await one.kad._walker.ask(two.kad.node.me, Ping())) is not None
        streams = one.kad._walker._streams
        assert streams._idle
        await until(lambda: not streams._idle)
        assert streams.idle_until == float("inf")


async def test_a_silent_peer_holds_a_look_up_up_for_a_moment_and_not_for_all_its_time():
    async with nodes(3) as (one, two, three):
        for other in (two, three):
            await other.dial(one)
        await until(lambda: all(node.kad.peers == 2 for node in (one, two, three)))
        three.kad._server._pace = never
        done, lookup = await two.kad._walker.look_up(b"/swarmd/a", STORE, FindNode(b"/swarmd/a"), lambda _answer: False)
        assert {step.peer: step.outcome for step in lookup.steps()} == {one.id: "answered", three.id: "waiting"}
        assert done.failed == 0


async def never(_peer):
    await trio.sleep_forever()


async def test_a_look_up_says_what_it_did_and_what_it_came_to():
    async with nodes(5) as mesh:
        for node in mesh[1:]:
            await node.dial(mesh[0])
        await until(lambda: all(node.kad.peers == 4 for node in mesh))
        await mesh[1].kad.put_record("/swarmd/offer/a", b"v")
        await mesh[2].kad.provide("/swarmd/model/m")
        found = await mesh[3].kad.look_up("/swarmd/offer/a")
        assert (found["verdict"], found["record"], found["failed"]) == ("found", True, 0)
        assert {step["peer_id"] for step in found["steps"]} <= {node.id for node in mesh}
        assert all(step["outcome"] in ("answered", "waiting") for step in found["steps"])
        assert (await mesh[3].kad.look_up("/swarmd/model/m"))["providers"] == [mesh[2].id]
        absent = await mesh[3].kad.look_up("/swarmd/offer/nobody")
        assert (absent["verdict"], absent["reason"]) == ("absent", "")
        assert absent["paths"] >= 2
    async with nodes(1) as (alone,):
        nobody = await alone.kad.look_up("/swarmd/offer/a")
        assert (nobody["verdict"], nobody["reason"]) == ("failed", "there is nobody to ask")


async def test_what_is_taken_back_while_all_is_said_again_is_not_said_again():
    async with nodes(1) as (one,):
        for model in "ab":
            await one.kad.provide(f"/swarmd/model/{model}")
        announce = one.kad._announce

        async def interrupted(name, doing):
            one.kad.unprovide("/swarmd/model/b")
            return await announce(name, doing)

        one.kad._announce = interrupted
        await one.kad._republish()
        assert one.kad.node.providers.names() == (provider_name("/swarmd/model/a"),)


async def test_those_known_to_be_something_else_are_no_providers():
    async with nodes(3) as (one, two, three):
        for other in (two, three):
            await other.dial(one)
        await until(lambda: all(node.kad.peers == 2 for node in (one, two, three)))
        await two.kad.provide("/swarmd/model/m")
        await three.kad.provide("/swarmd/model/m")
        assert set(await one.kad.find_providers("/swarmd/model/m")) == {two.id, three.id}
        assert set(await one.kad.find_providers("/swarmd/model/m", lambda peer: peer != two.id)) == {three.id}


PEER = contact_of(peer_id_of(bytes(range(32))), ("/ip4/8.8.8.8/tcp/4001",))
OTHERS = tuple(contact_of(peer_id_of(Random(n).randbytes(32)), (f"/ip4/8.8.{n}.8/tcp/4001",)) for n in range(20))
QUESTIONS = [
    (FindNode(name_of_peer(PEER.peer)), Answer(OTHERS)),
    (GetValue(b"/swarmd/offer/a"), Answer(OTHERS[:3])),
    (GetValue(b"/swarmd/offer/a"), Answer(OTHERS, b"v" * 570)),
    (GetProviders(provider_name("/swarmd/model/m")), Answer(OTHERS, providers=OTHERS[:5])),
    (PutValue(b"/swarmd/offer/a", b"v" * 570), Answer(value=b"v" * 570)),
    (AddProvider(provider_name("/swarmd/model/m"), PEER.addresses), Answer()),
    (Ping(), Answer()),
]


@pytest.mark.parametrize(("question", "answer"), QUESTIONS)
def test_questions_and_answers_survive_the_wire(question, answer):
    (raw,) = VarintFrames().feed(encode_question(question, PEER))
    assert decode_question(raw, PEER.peer) == question
    (raw,) = VarintFrames().feed(encode_answer(question, answer))
    back = decode_answer(raw, question)
    assert (back.closer, back.providers) == (answer.closer, answer.providers)
    assert back.value == (answer.value if isinstance(question, GetValue) else None)
    for cut in range(len(raw)):
        with contextlib.suppress(RemoteError):
            decode_answer(raw[:cut], question)


@pytest.mark.parametrize(("question", "answer"), QUESTIONS)
def test_the_sizes_that_the_simulation_counts_are_those_of_the_wire(question, answer):
    stream = 105  # multistream-select, Yamux and Noise, each way
    asked = question_bytes(question) - stream
    assert asked == pytest.approx(len(encode_question(question, PEER)), abs=24)
    assert answer_bytes(answer) - stream == pytest.approx(len(encode_answer(question, answer)), abs=70)


def test_frames_come_in_any_pieces_and_a_length_that_is_none_is_refused():
    whole = encode_varint_prefixed(b"a" * 300) + encode_varint_prefixed(b"") + encode_varint_prefixed(b"b")
    for size in (1, 2, 7, 1000):
        frames = VarintFrames()
        cut = [frame for start in range(0, len(whole), size) for frame in frames.feed(whole[start : start + size])]
        assert cut == [b"a" * 300, b"", b"b"]
        assert not frames.partial
    for bad in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", encode_varint_prefixed(bytes(300_000))[:3]):
        with pytest.raises(RemoteError):
            list(VarintFrames().feed(bad))


def test_no_frame_is_cut_before_it_is_asked_for():
    frames = VarintFrames()
    flood = frames.feed(encode_question(Ping(), PEER) * 20_000)
    first = next(flood)
    assert len(frames._rest) == 19_999 * (1 + len(first))


def test_now_is_now():
    assert abs(unix_ms() / 1000 - time.time()) < 5
