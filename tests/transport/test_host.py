"""The transport as the daemon sees it, over real sockets on loopback: paths, listeners, limits, a clear sentence per failure."""

import logging
import socket
from typing import Any, cast

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.peer.id import ID
from libp2p.transport.exceptions import OpenConnectionError

from daemon.transport.addresses import expand
from daemon.transport.host import Libp2pTransport
from daemon.transport.interface import PathKind, Stream, TransportError
from daemon.transport.muxer import MuxedConnection, _Ping
from daemon.transport.options import TransportOptions, parse_address
from daemon.transport.tcp import SharedPortTCP
from protocol.wire.envelope import public_bytes
from protocol.wire.ids import PeerId, peer_id_of

pytestmark = pytest.mark.live

STRANGER = peer_id_of(public_bytes(Ed25519PrivateKey.from_private_bytes(b"\x77" * 32)))


async def test_two_peers_meet_talk_and_part(running: Any, until: Any) -> None:
    events: list[tuple[str, PeerId, bool]] = []
    async with running(2) as (a, b):
        a.listen_to_peers(lambda peer, up: events.append(("a", peer, up)))
        b.listen_to_peers(lambda peer, up: events.append(("b", peer, up)))
        await b.connect(a.peer_id, a.addresses())
        stream = await b.open_stream(a.peer_id, "/echo")
        assert stream.peer == a.peer_id
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
        await stream.aclose()
        path = b.paths()[a.peer_id]
        assert (path.kind, path.transport, path.inbound) == (PathKind.DIRECT, "tcp", False)
        assert path.address in a.addresses()[0]
        await until(lambda: b.peer_id in a.paths() and a.paths()[b.peer_id].rtt is not None)
        assert a.paths()[b.peer_id].inbound
        assert 0 <= (a.paths()[b.peer_id].rtt or 0) < 1
        await b.disconnect(a.peer_id)
        await until(lambda: not a.paths() and not b.paths())
    seen = {side: [(peer, up) for which, peer, up in events if which == side] for side in "ab"}
    assert seen == {"a": [(b.peer_id, True), (b.peer_id, False)], "b": [(a.peer_id, True), (a.peer_id, False)]}


async def test_connecting_again_is_immediate_and_makes_no_second_connection(running: Any) -> None:
    async with running(2) as (a, b):
        await b.connect(a.peer_id, a.addresses())
        await b.connect(a.peer_id)
        await b.connect(a.peer_id, a.addresses())
        assert b.counters.dialed == 1


async def test_a_dial_goes_on_when_its_caller_gives_up(running: Any, until: Any) -> None:
    gate, accepted = trio.Event(), []

    async with running(2) as (a, b), trio.open_nursery() as nursery:
        port = int(a.addresses()[0].split("/")[4])

        async def slow_line(incoming: trio.SocketStream) -> None:
            accepted.append(incoming)
            await gate.wait()
            async with incoming, await trio.open_tcp_stream("127.0.0.1", port) as onward, trio.open_nursery() as pipes:

                async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                    async for piece in source:
                        await sink.send_all(piece)
                    pipes.cancel_scope.cancel()

                pipes.start_soon(copy, incoming, onward)
                pipes.start_soon(copy, onward, incoming)

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, slow_line, [listener])
        address = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}/p2p/{a.peer_id}"
        with trio.move_on_after(0.1) as gave_up:
            await b.connect(a.peer_id, [address])
        assert gave_up.cancelled_caught
        gate.set()
        await until(lambda: a.peer_id in b.paths())
        await b.connect(a.peer_id, [address])
        assert (len(accepted), b.counters.dialed) == (1, 1)
        nursery.cancel_scope.cancel()


async def test_a_connection_from_there_ends_the_wait_for_a_dial(running: Any) -> None:
    async with running(2) as (a, b), trio.open_nursery() as nursery:
        asked = trio.Event()

        async def silent_line(incoming: trio.SocketStream) -> None:
            asked.set()
            await trio.sleep_forever()

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, silent_line, [listener])
        silent = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}/p2p/{a.peer_id}"
        with trio.fail_after(5):  # half of what a dial may take
            async with trio.open_nursery() as callers:
                callers.start_soon(b.connect, a.peer_id, [silent])
                await asked.wait()
                await a.connect(b.peer_id, b.addresses())
        assert b.path(a.peer_id).inbound
        nursery.cancel_scope.cancel()


async def test_a_dial_of_the_old_network_begins_anew_in_the_new_one(running: Any) -> None:
    async with running(1) as (a,), trio.open_nursery() as nursery:
        came: list[trio.SocketStream] = []
        enough = {1: trio.Event(), 2: trio.Event()}

        async def silent_line(incoming: trio.SocketStream) -> None:
            came.append(incoming)
            enough[len(came)].set()
            await trio.sleep_forever()

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, silent_line, [listener])
        peer = "12D3KooWRpRMTtJfBF5tJFtLWhaB8XHSurC2eFeDhudVYzMT6DS3"
        with trio.fail_after(5):  # half of what a dial may take
            nursery.start_soon(a.connect, peer, [f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}/p2p/{peer}"])
            await enough[1].wait()
            a._swarm.dialing.again()
            await enough[2].wait()
        nursery.cancel_scope.cancel()


async def test_many_callers_share_one_dial(running: Any) -> None:
    async with running(2) as (a, b), trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(b.connect, a.peer_id, a.addresses())
    assert b.counters.dialed == 1


async def test_a_failed_dial_fails_all_who_wait_for_it_once(running: Any) -> None:
    failures: list[str] = []

    async def attempt(transport: Libp2pTransport) -> None:
        with pytest.raises(TransportError) as caught:
            await transport.connect(STRANGER, ["/ip4/127.0.0.1/tcp/1"])
        failures.append(str(caught.value))

    async with running(1) as (a,):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(attempt, a)
        assert len(failures) == 5
        assert a.counters.dials_failed == 1


@pytest.mark.parametrize(
    "addresses",
    [["/ip4/127.0.0.1/udp/1/quic-v1", "/ip4/127.0.0.1/tcp/1"], [f"/ip4/127.0.0.1/tcp/{port}" for port in range(1, 20)]],
    ids=["one that nothing here dials", "more than are tried"],
)
async def test_addresses_that_are_not_tried_do_not_begin_a_dial_anew(running: Any, addresses: list[str]) -> None:
    async with running(1) as (a,):
        with pytest.raises(TransportError, match="refused"):
            await a.connect(STRANGER, addresses)
        assert a.counters.dials_failed == 1


async def test_both_dial_at_once_and_agree_on_one_path(running: Any, echoes: Any, until: Any) -> None:
    async with running(2) as (a, b):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.connect, b.peer_id, b.addresses())
            nursery.start_soon(b.connect, a.peer_id, a.addresses())
        assert await echoes(a, b.peer_id)
        assert await echoes(b, a.peer_id)
        total = a.counters.dialed + a.counters.accepted
        await until(lambda: b.counters.dialed + b.counters.accepted == total)
        # One of the two sees the chosen connection as its own dial, the other as accepted.
        assert a.paths()[b.peer_id].inbound != b.paths()[a.peer_id].inbound


@pytest.mark.parametrize("first", [0, 1])
async def test_of_two_connections_both_sides_use_the_one_that_the_smaller_id_dialed(running: Any, until: Any, first: int) -> None:
    async with running(2) as (a, b):
        pair = [(a, b), (b, a)]
        for dialer, target in (pair[first], pair[1 - first]):
            peer = ID.from_base58(target.peer_id)
            await dialer._swarm._dial_addr_single_attempt(parse_address(target.addresses()[0]), peer)
        smaller, larger = sorted((a, b), key=lambda one: ID.from_base58(one.peer_id).to_bytes())
        await until(lambda: all(len(one._swarm.get_connections()) == 2 for one in (a, b)))
        assert not smaller.paths()[larger.peer_id].inbound
        assert larger.paths()[smaller.peer_id].inbound


async def test_a_connection_that_answers_no_ping_is_passed_over(running: Any, echoes: Any, until: Any) -> None:
    async with running(2, keepalive_interval=60.0) as (a, b):
        peer = ID.from_base58(b.peer_id)
        for _ in range(2):
            await a._swarm._dial_addr_single_attempt(parse_address(b.addresses()[0]), peer)
        old, new = (cast("MuxedConnection", conn.muxed_conn) for conn in a._swarm.connections[peer])
        await until(lambda: new.rtt is not None)
        assert a.paths()[b.peer_id].since == new.since
        new._ping = _Ping(0, trio.current_time() - 5, new._times_heard)
        assert a.paths()[b.peer_id].since == old.since
        assert await echoes(a, b.peer_id)


async def test_nobody_is_dialed_but_on_our_word(running: Any) -> None:
    async with running(2) as (a, b):
        a._host.peerstore.add_addrs(ID.from_base58(b.peer_id), [parse_address(text) for text in b.addresses()], 60)
        # The stock swarm asks its connector to fill up to half of the limit at start and at every disconnect.
        await a._swarm.auto_connector.maybe_connect()
        assert not a.paths()
        assert b.counters.accepted == 0


async def test_opening_a_stream_connects_first(running: Any, echoes: Any) -> None:
    async with running(2) as (a, b):
        await b.connect(a.peer_id, a.addresses())
        await b.disconnect(a.peer_id)
        assert await echoes(b, a.peer_id)


async def test_a_peer_that_comes_back_is_reached_at_once(running: Any, make_transport: Any, echoes: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"/ip4/127.0.0.1/tcp/{port}"
    late = make_transport(listen=(address,))
    late.handle("/echo", echo_once)
    async with running(1) as (a,):
        for _ in range(3):
            with pytest.raises(TransportError, match="refused"):
                await a.connect(late.peer_id, [address])
        async with late.running():
            await a.connect(late.peer_id)
            assert await echoes(a, late.peer_id)


async def echo_once(stream: Stream) -> None:
    await stream.send_all(await stream.receive_some())


async def test_the_next_address_is_tried(running: Any) -> None:
    async with running(2) as (a, b):
        await b.connect(a.peer_id, ["/ip4/127.0.0.1/tcp/1", *a.addresses()])
        assert a.peer_id in b.paths()


async def test_an_address_that_never_answers_does_not_hold_up_one_that_does(running: Any) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        async with running(2, dial_stagger=0.05) as (a, b):
            with trio.fail_after(3):
                await b.connect(a.peer_id, [f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}", *a.addresses()])


async def test_a_peer_that_never_answers_is_given_up(running: Any) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        async with running(1, connect_timeout=0.3) as (a,):
            with pytest.raises(TransportError, match=r"could not be reached: .*no answer in 0\.3 s"):
                await a.connect(STRANGER, [f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"])


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("/ip4/127.0.0.1/tcp/1", "connection refused"),
        ("127.0.0.1:4001", "'127.0.0.1:4001' is not a multiaddr"),
        ("/ip4/127.0.0.1/tcp/99999", "is not a multiaddr"),
        ("", "is not a multiaddr"),
        (f"/ip4/127.0.0.1/tcp/1/p2p/{STRANGER[:-1]}", "is not a multiaddr"),
    ],
)
async def test_a_failure_to_connect_is_one_sentence(running: Any, address: str, says: str) -> None:
    async with running(1) as (a,):
        with pytest.raises(TransportError, match=r"^[^\n]+$") as caught:
            await a.connect(STRANGER, [address])
        assert says in str(caught.value)


async def test_nothing_known_is_said_so(running: Any) -> None:
    async with running(1) as (a,):
        with pytest.raises(TransportError, match="no address is known"):
            await a.connect(STRANGER)
        with pytest.raises(TransportError, match="itself"):
            await a.connect(a.peer_id, a.addresses())
        with pytest.raises(TransportError, match="not a peer id"):
            await a.connect(PeerId("nobody"))


async def test_somebody_else_at_the_address_is_said_so(running: Any) -> None:
    async with running(2) as (a, b):
        bare = b.addresses()[0].rsplit("/p2p/", 1)[0]
        with pytest.raises(TransportError, match=f"another peer answers there: {b.peer_id}"):
            await a.connect(STRANGER, [bare])
        with pytest.raises(TransportError, match="is of another peer"):
            await a.connect(STRANGER, b.addresses())
        assert STRANGER not in a.paths()


async def test_an_unknown_protocol_is_said_so_and_leaves_the_connection(running: Any, echoes: Any) -> None:
    async with running(2) as (a, b):
        await b.connect(a.peer_id, a.addresses())
        with pytest.raises(TransportError, match="does not serve /nope"):
            await b.open_stream(a.peer_id, "/nope")
        assert await echoes(b, a.peer_id)
        assert b.counters.dialed == 1


async def test_a_busy_port_is_one_clear_sentence(running: Any, make_transport: Any) -> None:
    async with running(1) as (a,):
        address = a.addresses()[0].rsplit("/p2p/", 1)[0]
        port = address.rsplit("/", 1)[1]
        # The library itself would share the port without a word, since it binds for hole punching.
        with pytest.raises(TransportError, match=rf"port {port} is in use on 127\.0\.0\.1: stop .* or choose another"):
            await make_transport(listen=(address,)).run()


async def test_an_address_of_another_machine_cannot_be_listened_on(make_transport: Any) -> None:
    with pytest.raises(TransportError, match=r"192\.0\.2\.1 is not an address of this machine"):
        await make_transport(listen=("/ip4/192.0.2.1/tcp/0",)).run()
    with pytest.raises(TransportError, match=r"cannot listen on /dns4/example\.com/tcp/1"):
        await make_transport(listen=("/dns4/example.com/tcp/1",)).run()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"listen": ("127.0.0.1:4001",)}, "'127.0.0.1:4001'"),
        ({"announce": ("/ip4/300.1.1.1/tcp/1",)}, "'/ip4/300.1.1.1/tcp/1'"),
        ({"max_connections": 0}, "max_connections"),
        ({"keepalive_timeout": 0.0}, "keepalive_timeout"),
        ({"reserved_outbound": 500}, "reserved_outbound"),
        ({"max_stream_window": 1}, "max_stream_window"),
        ({"receive_memory": 1}, "receive_memory"),
    ],
)
def test_a_bad_option_is_named(make_transport: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make_transport(**options)


async def test_addresses_are_of_interfaces_and_name_the_peer(make_transport: Any) -> None:
    transport = make_transport(listen=("/ip4/0.0.0.0/tcp/0",), announce=("/ip4/203.0.113.7/tcp/4001",))
    async with transport.running():
        first, *rest = transport.addresses()
        assert first == f"/ip4/203.0.113.7/tcp/4001/p2p/{transport.peer_id}"
        assert rest
        assert all(text.endswith(f"/p2p/{transport.peer_id}") for text in rest)
        assert not any("0.0.0.0" in text or "/tcp/0/" in text for text in rest)


def test_only_wildcards_are_expanded() -> None:
    given = [parse_address("/ip4/127.0.0.1/tcp/5"), parse_address("/ip4/0.0.0.0/tcp/6"), parse_address("/ip6/::/tcp/7")]
    found = [str(address) for address in expand(given)]
    assert found[0] == "/ip4/127.0.0.1/tcp/5"
    assert not any("0.0.0.0" in text or "/::/" in text for text in found)


async def test_connections_are_capped_in_all_and_the_reserve_is_for_dialing(running: Any, until: Any) -> None:
    limits = {"max_connections": 4, "reserved_outbound": 1}
    async with running(1, **limits) as (hub,), running(5) as others:
        reached = 0
        for other in others:
            try:
                await other.connect(hub.peer_id, hub.addresses())
                reached += 1
            except TransportError:
                pass
        await until(lambda: len(hub.paths()) == 3)
        assert hub.counters.refused["total"] == 2
        last = next(other for other in others if other.peer_id not in hub.paths())
        await hub.connect(last.peer_id, last.addresses())
        assert len(hub.paths()) == 4


async def test_connections_are_capped_per_address(running: Any) -> None:
    async with running(1, max_connections_per_ip=2, loopback_exempt=False) as (hub,), running(4) as others:
        for other in others:
            try:
                await other.connect(hub.peer_id, hub.addresses())
            except TransportError:
                continue
        assert hub.counters.refused["ip"] == 2
        assert len(hub.paths()) == 2


async def test_a_peer_with_too_many_connections_keeps_its_newest(running: Any, echoes: Any, until: Any) -> None:
    async with running(1, max_connections_per_peer=2) as (hub,), running(1) as (other,):
        for _ in range(5):
            swarm = other._swarm
            target = next(iter(swarm.connections), None)
            if target is None:
                await other.connect(hub.peer_id, hub.addresses())
            else:
                await swarm._dial_addr_single_attempt(parse_address(hub.addresses()[0]), target)
        await until(lambda: hub.counters.refused["peer"] == 3)
        await until(lambda: len(next(iter(hub._swarm.connections.values()))) == 2)
        assert await echoes(other, hub.peer_id)


async def test_a_loud_handler_is_contained_and_counted(running: Any, echoes: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(stream: Stream) -> None:
        await stream.receive_some()
        raise ValueError("a bug of ours")

    async with running(2) as (a, b):
        a.handle("/broken", broken)
        await b.connect(a.peer_id, a.addresses())
        for _ in range(3):
            stream = await b.open_stream(a.peer_id, "/broken")
            await stream.send_all(b"x")
            with pytest.raises(TransportError, match="reset"):
                await stream.receive_some()
        assert a.counters.handler_faults["/broken"] == 3
        assert await echoes(b, a.peer_id)
        assert b.counters.dialed == 1
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 3
    assert all("a bug of ours" in line and "\n" not in line for line in warnings)


async def hold(stream: Stream) -> None:
    await stream.receive_some()


async def open_until_refused(transport: Libp2pTransport, peer: PeerId) -> list[Stream]:
    held: list[Stream] = []
    try:
        while True:
            stream = await transport.open_stream(peer, "/hold")
            with trio.move_on_after(0.1):
                await stream.receive_some()
            held.append(stream)
    except TransportError:
        return held


async def test_streams_of_one_protocol_are_capped(running: Any, echoes: Any) -> None:
    async with running(2, max_inbound_streams_per_protocol=3) as (a, b):
        a.handle("/hold", hold)
        await b.connect(a.peer_id, a.addresses())
        held = await open_until_refused(b, a.peer_id)
        assert len(held) == 3
        assert a.counters.streams_refused["protocol"] == 1
        assert await echoes(b, a.peer_id)


async def test_streams_of_one_peer_are_capped_and_freed_with_their_handlers(running: Any, echoes: Any, until: Any) -> None:
    async with running(3, max_inbound_streams_per_peer=6, max_inbound_streams_per_protocol=6) as (a, b, c):
        a.handle("/hold", hold)
        await b.connect(a.peer_id, a.addresses())
        await c.connect(a.peer_id, a.addresses())
        held = await open_until_refused(b, a.peer_id)
        assert 1 <= len(held) <= 6
        assert a.counters.streams_refused["peer"] >= 1
        assert await echoes(c, a.peer_id)
        for stream in held:
            await stream.reset()
        await until(lambda: a.inbound_streams().get(b.peer_id, 0) < 6)
        assert await echoes(b, a.peer_id)


async def test_closing_ends_handlers_and_frees_the_port(make_transport: Any) -> None:
    first = make_transport()
    async with first.running():
        address = first.addresses()[0].rsplit("/p2p/", 1)[0]
    async with make_transport(listen=(address,)).running() as second:
        assert second.addresses()[0].startswith(address)


async def test_the_library_writes_nothing_to_stderr(running: Any, capfd: pytest.CaptureFixture[str]) -> None:
    async with running(2) as (a, b):
        await b.connect(a.peer_id, a.addresses())
        with pytest.raises(TransportError):
            await b.connect(STRANGER, ["/ip4/127.0.0.1/tcp/1"])
        logging.getLogger("libp2p.network.swarm").error("noise")
    assert capfd.readouterr().err == ""


def test_default_options_hold() -> None:
    TransportOptions().validate()


async def test_a_cancelled_dial_from_a_port_of_ours_closes_its_socket() -> None:
    transport, made = SharedPortTCP(), []

    class Recorded(trio.abc.SocketFactory):
        def socket(self, family: int = -1, type: int = -1, proto: int = -1) -> Any:
            sock = trio.socket.from_stdlib_socket(socket.socket(family, type))
            made.append(sock)
            return sock

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    previous = trio.socket.set_custom_socket_factory(Recorded())
    try:
        with trio.CancelScope() as scope:
            scope.cancel()
            await transport.dial_with_source(parse_address("/ip4/127.0.0.1/tcp/1"), ("127.0.0.1", port))
        with pytest.raises(OpenConnectionError, match=rf"no connection to /ip4/127\.0\.0\.1/tcp/1 from 127\.0\.0\.1:{port}"):
            await transport.dial_with_source(parse_address("/ip4/127.0.0.1/tcp/1"), ("127.0.0.1", port))
    finally:
        trio.socket.set_custom_socket_factory(previous)
    assert [sock.fileno() for sock in made] == [-1, -1]
