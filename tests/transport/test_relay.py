"""Relaying over real hosts on loopback: reservations, service over the relay, limits, and the upgrade to a direct path."""

import contextlib
from random import Random

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.host.exceptions import StreamFailure
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF, StreamError
from libp2p.peer.peerstore import PeerStoreError
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from multiaddr import Multiaddr

from daemon.transport.hardening import build_host
from daemon.transport.host import Libp2pTransport
from daemon.transport.interface import PathKind, TransportError
from daemon.transport.network_watch import _local_host
from daemon.transport.options import TransportCounters, TransportOptions
from daemon.transport.relay import RelayOptions, RelayService
from daemon.transport.relay_hop import HOP, STOP, receive, send
from daemon.transport.relay_punch import DCUTR

pytestmark = [pytest.mark.live, pytest.mark.slow]

ECHO = TProtocol("/test/echo")
LISTEN = "/ip4/127.0.0.1/tcp/0"
MIB = 1 << 20


class Node:
    """A hardened host with a relay service. `withhold` keeps its direct addresses from others; it may also not listen at all."""

    def __init__(self, relays=(), options=None, listens=True, withhold=False):
        self.listens = listens
        announce = (lambda _: []) if withhold else list
        self.host = build_host(Ed25519PrivateKey.generate(), TransportOptions(), TransportCounters(), announce)
        self.relay = RelayService(self.host, relays, Random(1), options or RelayOptions(punch=False))
        self.host.set_stream_handler(ECHO, self.echo)

    @staticmethod
    async def echo(stream):
        with contextlib.suppress(StreamEOF):
            while True:
                await stream.write(await stream.read(65536))
        await stream.close()

    @property
    def id(self):
        return self.host.get_id()

    @property
    def port(self):
        (listener,) = self.host.swarm.listeners.values()
        return int(listener.get_addrs()[0].value_for_protocol("tcp"))

    @property
    def address(self):
        return f"/ip4/127.0.0.1/tcp/{self.port}/p2p/{self.id}"

    def kinds(self, peer):
        return [conn.get_connection_type() for conn in self.host.swarm.get_connections(peer.id)]

    async def reach(self, peer, address=None):
        self.host.peerstore.add_addrs(peer.id, [Multiaddr(address or peer.relay.addresses()[0])], 600)
        (conn,) = await self.host.swarm.dial_peer(peer.id)
        return conn

    async def ask(self, peer, payload):
        stream = await self.host.new_stream(peer.id, [ECHO])
        received = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, payload)
            while len(received) < len(payload):
                received += await stream.read(65536)
        await stream.close()
        return bytes(received)


@contextlib.asynccontextmanager
async def running(*nodes):
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node.host.run([]))
        async with trio.open_nursery() as nursery:
            for node in nodes:
                await nursery.start(node.host.run_tasks)
                if node.listens:
                    await node.host.swarm.listen(Multiaddr(LISTEN))
                await nursery.start(node.relay.run)
            yield
            with trio.CancelScope(shield=True):
                for node in nodes:
                    for listener in node.host.swarm.listeners.values():
                        await listener.close()
                    for conn in node.host.swarm.get_connections():
                        await conn.close()
            nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def behind_a_relay(relay_options=None, **kinds):
    """A relay and two peers that each hold a reservation there."""
    relay = Node(options=relay_options or RelayOptions(serve=True, punch=False))
    async with running(relay):
        one, two = (Node((relay.address,), **kinds) for _ in range(2))
        async with running(one, two):
            await until(lambda: one.relay.addresses() and two.relay.addresses())
            yield relay, one, two


async def until(condition, seconds=5.0):
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


@pytest.mark.parametrize("kinds", [{"listens": False}, {"withhold": True}], ids=["not listening", "addresses withheld"])
async def test_two_peers_behind_a_relay_serve_each_other(kinds):
    async with behind_a_relay(**kinds) as (relay, one, two):
        assert two.relay.addresses() == (f"{relay.address}/p2p-circuit/p2p/{two.id}",)
        started = trio.current_time()
        conn = await one.reach(two)
        connected = trio.current_time()
        payload = bytes(range(256)) * (MIB // 256)
        assert await one.ask(two, payload) == payload
        middle = trio.current_time()
        assert await two.ask(one, payload) == payload
        print(f"dial {(connected - started) * 1e3:.0f} ms, 1 MiB echo {(middle - connected) * 1e3:.0f} ms")
        assert one.kinds(two) == two.kinds(one) == [ConnectionType.RELAYED]
        assert str(conn.get_transport_addresses()[0]) == f"{relay.address}/p2p-circuit/p2p/{two.id}"
        assert relay.relay.hop.circuits == 1
        assert relay.relay.hop.counters["bytes"] > 4 * MIB
        await conn.close()
        await until(lambda: relay.relay.hop.circuits == 0 and not two.kinds(one))


async def test_a_reservation_is_made_from_the_listening_port_and_again_when_the_relay_comes_back():
    relay, one = Node(options=RelayOptions(serve=True)), None
    async with running(relay):
        one = Node((relay.address,), RelayOptions(retry_min=0.05, retry_max=0.1))
        async with running(one):
            await until(lambda: one.relay.reservations)
            (inbound,) = relay.host.swarm.get_connections(one.id)
            assert inbound.muxed_conn.get_remote_address() == ("127.0.0.1", one.port)
            await inbound.close()
            await until(lambda: relay.relay.hop.counters["reserved"] == 2 and one.relay.addresses())


async def test_a_bootstrap_peer_is_reached_from_the_listening_port():
    boot, one = Node(), Node()
    async with running(boot, one):
        address = boot.address
        await one.relay.reach(address)
        await one.relay.reach(address)  # connected already: nothing happens
        await until(lambda: boot.kinds(one))
        (inbound,) = boot.host.swarm.get_connections(one.id)
        assert inbound.muxed_conn.get_remote_address() == ("127.0.0.1", one.port)
        with pytest.raises(TransportError, match="could not be reached"):
            await one.relay.reach(f"/ip4/127.0.0.1/tcp/1/p2p/{Node().id}")


async def test_a_reservation_is_refreshed_before_it_ends():
    async with behind_a_relay(RelayOptions(serve=True, reservation_lifetime=2)) as (relay, one, _):
        first = next(iter(one.relay.reservations.values()))
        await until(lambda: next(iter(one.relay.reservations.values())) > first)
        assert relay.relay.hop.reservations == 2


async def test_a_relay_that_is_full_or_does_not_serve_is_said_so_and_retried():
    full = RelayOptions(serve=True, max_reservations=0)
    for options in (full, RelayOptions(serve=False)):
        relay = Node(options=options)
        one = Node()
        async with running(relay, one):
            await one.reach(relay, relay.address)
            with pytest.raises(TransportError, match=r"refused with RESERVATION_REFUSED|does not serve as a relay"):
                await one.relay.keeping.reserve(relay.id)
            assert one.relay.addresses() == ()


async def test_an_answer_that_has_no_name_is_a_refusal():
    async def answer(stream):
        await receive(stream, pb.HopMessage)
        await send(stream, pb.HopMessage(type=pb.HopMessage.STATUS, status=999))
        await stream.close()

    relay = Node(options=RelayOptions(serve=True))
    async with running(relay):
        relay.host.set_stream_handler(HOP, answer)
        one = Node((relay.address,))
        async with running(one):
            await until(lambda: one.relay.keeping._known[relay.id].failures)
            with pytest.raises(TransportError, match="refused with status 999"):
                await one.relay.keeping.reserve(relay.id)
            with pytest.raises(SwarmException, match="refused with status 999"):
                await one.relay.dial(Node().id, Multiaddr(f"{relay.address}/p2p-circuit"))


async def test_places_of_those_that_left_are_anybodys():
    relay = Node(options=RelayOptions(serve=True, punch=False, max_reservations=2))
    async with running(relay):
        for _ in range(2):  # one attacker, who comes and leaves under one name after the other
            name = Node(listens=False)
            async with running(name):
                await name.reach(relay, relay.address)
                await name.relay.keeping.reserve(relay.id)
            await until(lambda name=name: not relay.kinds(name))
        assert (relay.relay.hop.reservations, relay.relay.hop.load) == (2, 0)
        one, two, three = (Node(listens=False) for _ in range(3))
        async with running(one, two, three):
            for honest in (one, two, three):
                await honest.reach(relay, relay.address)
            for honest in (one, two, one):
                await honest.relay.keeping.reserve(relay.id)
            with pytest.raises(TransportError, match="RESERVATION_REFUSED"):
                await three.relay.keeping.reserve(relay.id)


async def test_without_a_reservation_nobody_is_relayed_to():
    relay, one, two = Node(options=RelayOptions(serve=True)), Node(), Node(listens=False)
    async with running(relay, one, two):
        await two.reach(relay, relay.address)
        with pytest.raises(SwarmException, match="NO_RESERVATION"):
            await one.reach(two, f"{relay.address}/p2p-circuit/p2p/{two.id}")
        with pytest.raises(SwarmException, match="third peer"):
            await one.relay.dial(relay.id, Multiaddr(f"{relay.address}/p2p-circuit/p2p/{relay.id}"))


async def test_one_peer_cannot_reserve_for_another():
    relay, one, two = Node(options=RelayOptions(serve=True)), Node(), Node()
    async with running(relay, one, two):
        await one.reach(relay, relay.address)
        stream = await one.host.new_stream(relay.id, [HOP])
        await send(stream, pb.HopMessage(type=pb.HopMessage.RESERVE, peer=pb.PeerId(id=two.id.to_bytes())))
        assert (await receive(stream, pb.HopMessage)).status == pb.OK
        assert list(relay.relay.hop._reserved) == [one.id]


async def test_a_circuit_from_a_peer_that_is_not_our_relay_is_refused():
    one, two = Node(), Node()
    async with running(one, two):
        await one.reach(two, two.address)
        stream = await one.host.new_stream(two.id, [STOP])
        await send(stream, pb.StopMessage(type=pb.StopMessage.CONNECT, peer=pb.PeerId(id=one.id.to_bytes())))
        assert (await receive(stream, pb.StopMessage)).status == pb.PERMISSION_DENIED


async def test_limits_end_one_circuit_and_leave_the_other():
    options = RelayOptions(serve=True, max_circuit_bytes=256 << 10, punch=False)
    async with behind_a_relay(options, listens=False) as (relay, one, two):
        three = Node(listens=False)
        async with running(three):
            await one.reach(two)
            await three.reach(two)
            with pytest.raises((StreamError, ExceptionGroup)):
                await one.ask(two, bytes(MIB))
            await until(lambda: relay.relay.hop.circuits == 1)
            assert await three.ask(two, b"still here") == b"still here"
            assert relay.relay.hop.counters["data_limit"] == 1


async def test_too_many_circuits_are_refused():
    options = RelayOptions(serve=True, max_circuits_per_peer=1, punch=False)
    async with behind_a_relay(options, listens=False) as (_, one, two):
        three = Node(listens=False)
        async with running(three):
            await one.reach(two)
            with pytest.raises(SwarmException, match="RESOURCE_LIMIT_EXCEEDED"):
                await three.reach(two)
            assert await one.ask(two, b"unharmed") == b"unharmed"


@pytest.mark.parametrize("protocol", [HOP, STOP, DCUTR])
async def test_garbage_on_a_relay_protocol_costs_its_stream_alone(protocol):
    relay, stranger = Node(options=RelayOptions(serve=True)), Node()
    async with running(relay, stranger):
        await stranger.reach(relay, relay.address)
        for junk in (b"\xff" * 64, b"\x05hello", b"\x80\x80\x80\x32" + bytes(50), b"\x00", b"\x02\x08\x09"):
            with contextlib.suppress(StreamError, StreamFailure):
                stream = await stranger.host.new_stream(relay.id, [protocol])
                await stream.write(junk)
                await stream.close()
        assert await stranger.ask(relay, b"alive") == b"alive"


@pytest.mark.parametrize("way", ["a plain dial", "a punch", "one side's dials alone"])
async def test_a_relayed_connection_becomes_direct_and_new_streams_take_it(way):
    options = RelayOptions(relayed_grace=0.2)
    async with behind_a_relay(options=options) as (_, one, two):
        if way != "a plain dial":  # which would succeed on loopback
            two.relay.puncher._dial_known = skip
        else:
            two.relay.puncher._session = skip
        if way == "one side's dials alone":
            one.relay.puncher._dial = skip
        started = trio.current_time()
        await one.reach(two)
        await until(lambda: ConnectionType.DIRECT in one.kinds(two) and ConnectionType.DIRECT in two.kinds(one))
        print(f"direct after {(trio.current_time() - started) * 1e3:.0f} ms")
        await until(lambda: ConnectionType.RELAYED not in one.kinds(two))
        assert await one.ask(two, b"hello") == b"hello"
        kinds = {conn.muxed_conn.path_kind for conn in two.host.swarm.get_connections(one.id)}
        assert kinds == ({PathKind.DIRECT} if way == "a plain dial" else {PathKind.PUNCHED})
        conns = [*one.host.swarm.get_connections(two.id), *two.host.swarm.get_connections(one.id)]
        assert {_local_host(conn) for conn in conns} == {"127.0.0.1"}, "or a change of network would leave it standing"
        assert two.relay.puncher.succeeded == 1


async def test_a_pair_that_stayed_relayed_is_tried_again():
    options = RelayOptions(punch_attempts=1, punch_again=0.2)
    async with behind_a_relay(options=options) as (_, one, two):
        two.relay.puncher._dial_known = skip
        punch, tried = two.relay.puncher._session, []

        async def fails_twice(*session):
            tried.append(trio.current_time())
            if len(tried) > 2:
                await punch(*session)

        two.relay.puncher._session = fails_twice
        await one.reach(two)
        await until(lambda: ConnectionType.DIRECT in two.kinds(one), 10)
        assert len(tried) == 3
        assert tried[2] - tried[1] > tried[1] - tried[0] > 1.0, "a second after an attempt, and ever more"
        await until(lambda: two.relay.puncher.succeeded == 1)
        assert two.relay.puncher.failed == 2
        assert not two.relay.puncher._waiting


async def test_a_direct_path_that_is_lost_is_looked_for_again():
    async with behind_a_relay(options=RelayOptions()) as (_, one, two):
        await one.reach(two)
        await until(lambda: ConnectionType.DIRECT in one.kinds(two) and ConnectionType.DIRECT in two.kinds(one))
        await until(lambda: two.relay.puncher.succeeded == 1)
        for conn in two.host.swarm.get_connections(one.id):
            if conn.get_connection_type() == ConnectionType.DIRECT:
                await conn.close()
        assert two.kinds(one) == [ConnectionType.RELAYED]
        await until(lambda: ConnectionType.DIRECT in two.kinds(one))
        await until(lambda: two.relay.puncher.succeeded == 2)


async def test_a_direct_path_that_is_lost_soon_leaves_one_search_for_another():
    options = RelayOptions(punch_attempts=1, punch_again=0.2, relayed_grace=1.0)
    async with behind_a_relay(options=options) as (_, one, two):
        puncher = two.relay.puncher
        # No punch of either side, whose connections may come late: the direct path is a plain dial, and no other follows.
        puncher._upgrade, puncher._may_start = skip, lambda _: True
        await one.reach(two)
        await until(lambda: puncher.failed == 1)
        await one.host.swarm._dial_addr_single_attempt(Multiaddr(two.address), two.id)
        await until(lambda: one.id in puncher._retiring)
        (direct,) = (c for c in two.host.swarm.get_connections(one.id) if c.get_connection_type() == ConnectionType.DIRECT)
        failed, began = puncher.failed, trio.current_time()
        await direct.close()
        await until(lambda: puncher.failed == failed + 4)
        assert trio.current_time() - began > 0.9 * (0.2 + 0.4 + 0.8), "the pauses of one search, not of two"


async def test_a_peer_that_comes_again_over_the_relay_leaves_one_task_that_closes_its_circuits():
    async with behind_a_relay(options=RelayOptions()) as (_, one, two):
        await one.reach(two)
        await until(lambda: two.relay.puncher.succeeded == 1)
        assert ConnectionType.RELAYED in two.kinds(one)
        with trio.fail_after(2):
            await two.relay.puncher.upgrade(one.id)


async def test_of_two_peers_that_reach_each_other_at_once_one_leads():
    async with behind_a_relay(options=RelayOptions()) as (_, one, two):
        roles, at_once = {one.id: [], two.id: []}, []

        def recorder(node):
            async def punch(peer, starter, *_):
                roles[node.id].append(starter)
                at_once.append(True)
                try:
                    await trio.sleep(0.3)
                finally:
                    at_once.pop()

            return punch

        for node in (one, two):
            node.relay.puncher._punch_all, node.relay.puncher._dial_known = recorder(node), skip
        conns = [await one.reach(two), await two.relay.dial(one.id, Multiaddr(one.relay.addresses()[0]))]
        assert [conn.get_connection_type() for conn in conns] == [ConnectionType.RELAYED] * 2
        await until(lambda: at_once)
        assert {node.id: bool(node.relay.puncher._under_way) for node in (one, two)} == {one.id: True, two.id: True}
        worst = 0
        with trio.move_on_after(1.2):
            while True:
                worst = max(worst, len(at_once))
                await trio.sleep(0.01)
        assert worst == 2, "one session, in which both punch"
        assert all(mine is not theirs for mine, theirs in zip(roles[one.id], roles[two.id], strict=False))


async def test_a_stranger_cannot_make_us_dial_by_a_session_over_a_direct_connection():
    one, stranger = Node(options=RelayOptions()), Node()
    async with running(one, stranger):
        await stranger.reach(one, one.address)
        named = HolePunch(type=HolePunch.CONNECT, ObsAddrs=[Multiaddr("/ip4/192.0.2.1/tcp/22").to_bytes()])
        with contextlib.suppress(StreamError, StreamFailure):
            stream = await stranger.host.new_stream(one.id, [DCUTR])
            await send(stream, named)
            assert await stream.read(1) == b"", "an answer would start a session"


async def skip(*_):
    """In place of a dial."""


def transport(**options):
    return Libp2pTransport(Ed25519PrivateKey.generate(), TransportOptions(punch=False, **options))


async def test_the_transport_gives_out_its_relayed_address_last_and_reserves_from_its_port():
    async with (
        transport(listen=(LISTEN,), serve_relay=True).running() as relay,
        transport(listen=(LISTEN,), relays=relay.addresses()).running() as one,
    ):
        await until(lambda: one.relay.reservations and one.peer_id in relay.paths())
        direct, relayed = one.addresses()
        assert relayed == f"{relay.addresses()[0]}/p2p-circuit/p2p/{one.peer_id}"
        assert direct == f"{relay.paths()[one.peer_id].address}/p2p/{one.peer_id}"


async def test_the_transport_says_what_is_relayed_and_serves_over_it():
    async with (
        transport(listen=(LISTEN,), serve_relay=True).running() as relay,
        transport(listen=(), relays=relay.addresses()).running() as one,
        transport(listen=(), relays=relay.addresses()).running() as two,
    ):
        await until(lambda: one.relay.reservations and two.relay.reservations)
        (relayed,) = two.addresses()
        await one.connect(two.peer_id, [relayed])
        await until(lambda: one.peer_id in two.paths())
        assert one.paths()[two.peer_id].kind == two.paths()[one.peer_id].kind == PathKind.RELAYED
        assert "/p2p-circuit/" in one.paths()[two.peer_id].address
        heard = trio.Event()

        def hear(author, payload):
            assert (author, payload) == (one.peer_id, b"over the relay")
            heard.set()
            return True

        await two.subscribe("/test", hear)
        await one.publish("/test", b"over the relay")
        with trio.fail_after(5):
            await heard.wait()


@pytest.mark.parametrize("address", ["nonsense", "/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1/p2p/QmWrong", ""])
def test_a_relay_address_must_name_a_peer(address):
    with pytest.raises(TransportError, match="is not a relay's address"):
        Node((address,))


def test_addresses_of_unknown_peers_raise_what_the_puncher_expects():
    node = Node()
    with pytest.raises(PeerStoreError):
        node.host.peerstore.addrs(Node().id)
