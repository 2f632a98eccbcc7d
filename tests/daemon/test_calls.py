"""Calls over the in-memory mesh: deadlines, cancellation, backpressure, lost peers, hostile peers and our own bugs."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import structlog
import trio
import trio.testing

from daemon.calls import HELLO, MAX_INBOUND_LINKS, CallOptions, Calls, Handler, InboundCall
from daemon.transport.interface import Stream, TransportError
from protocol.rpc_frames import MAX_BODY_BYTES, PROTOCOL, End, Hello, Item, Request
from protocol.wire.codec import FrameReader, encode, frame
from protocol.wire.errors import Code, LocalError, RemoteError
from protocol.wire.ids import PeerId
from tests.sim.memory_transport import MemoryMesh, MemoryTransport

Joined = Callable[[int], Awaitable[list[Calls]]]
Clock = trio.testing.MockClock


@pytest.fixture
async def joined(memory_mesh: MemoryMesh, nursery: trio.Nursery) -> Joined:
    async def make(count: int) -> list[Calls]:
        everyone = [Calls(peer) for peer in memory_mesh(count)]
        for calls in everyone:
            await nursery.start(calls.run)
        return everyone

    return make


def peers_of(mesh: MemoryMesh) -> list[MemoryTransport]:
    return list(mesh.peers.values())


async def echo(call: InboundCall) -> bytes:
    return call.body


async def forever(call: InboundCall) -> None:
    await trio.sleep_forever()


async def count(call: InboundCall) -> bytes:
    for number in range(int(call.body)):
        await call.send(b"%d" % number)
    return b"counted"


def watched(begun: trio.Event, ended: trio.Event) -> Handler:
    async def handler(call: InboundCall) -> None:
        begun.set()
        try:
            await call.send(b"first")
            await trio.sleep_forever()
        finally:
            ended.set()

    return handler


async def failure(awaitable: Awaitable[object]) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await awaitable
    return caught.value


async def exhaust(caller: Calls, peer: PeerId, method: str, timeout: float) -> None:
    async with caller.stream(peer, method, b"", timeout=timeout) as stream:
        async for _ in stream:
            pass


async def test_unary_calls_in_both_directions_at_once(memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock) -> None:
    memory_mesh.latency = 0.02
    everyone = await joined(2)
    alice, bob = peers_of(memory_mesh)
    seen: list[tuple[str, bytes]] = []

    async def ask(calls: Calls, peer: MemoryTransport, body: bytes) -> None:
        seen.append((peer.peer_id, await calls.unary(peer.peer_id, "echo", body, timeout=5)))

    for calls in everyone:
        calls.serve("echo", echo)
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ask, everyone[0], bob, b"%d" % number)
            nursery.start_soon(ask, everyone[1], alice, b"%d" % number)
    assert sorted(seen) == sorted((peer.peer_id, b"%d" % number) for number in range(20) for peer in (alice, bob))
    assert [len(alice.links[bob.peer_id].streams), everyone[0].outcomes["out", "echo", "ok"]] == [2, 20]


async def test_what_travels_beside_a_call(memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock) -> None:
    memory_mesh.latency = 0.5
    caller, server = await joined(2)
    heard: list[tuple[int, str, float]] = []

    async def note(call: InboundCall) -> bytes:
        heard.append((call.priority, call.traceparent, call.deadline - trio.current_time()))
        return b""

    server.serve("note", note)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for options in (CallOptions(), CallOptions(priority=1, traceparent=trace)):
        await caller.unary(peers_of(memory_mesh)[1].peer_id, "note", b"", timeout=7, options=options)
    assert [one[:2] for one in heard] == [(4, ""), (1, trace)]
    assert heard[1][2] == pytest.approx(7), "the time that is left, by the server's own clock"


async def test_a_stream_yields_items_and_then_its_result(memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock) -> None:
    caller, server = await joined(2)
    server.serve("count", count)
    async with caller.stream(peers_of(memory_mesh)[1].peer_id, "count", b"3", timeout=5) as stream:
        assert stream.result == b""
        assert [item async for item in stream] == [b"0", b"1", b"2"]
        assert stream.result == b"counted"
    assert server.outcomes["in", "count", "ok"] == caller.outcomes["out", "count", "ok"] == 1


async def test_a_caller_may_stream_too(memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock) -> None:
    caller, server = await joined(2)

    async def add(call: InboundCall) -> bytes:
        total = 0
        while (item := await call.receive()) is not None:
            total += int(item)
            await call.send(b"%d" % total)
        return b"sum %d" % total

    server.serve("add", add)
    bob = peers_of(memory_mesh)[1].peer_id
    async with caller.stream(bob, "add", b"", timeout=5, options=CallOptions(more=True)) as stream:
        for number in (1, 2, 3):
            await stream.send(b"%d" % number)
            assert await anext(stream) == b"%d" % (number * (number + 1) // 2)
        await stream.finish()
        assert [item async for item in stream] == []
        assert stream.result == b"sum 6"


async def test_sending_to_a_handler_that_ended_early_fails_at_once(
    memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock
) -> None:
    caller, server = await joined(2)
    server.serve("hasty", echo)
    bob = peers_of(memory_mesh)[1].peer_id

    async def pour() -> None:
        async with caller.stream(bob, "hasty", b"", timeout=50, options=CallOptions(more=True)) as stream:
            while True:
                await stream.send(bytes(30_000))

    begin = trio.current_time()
    assert (await failure(pour())).code is Code.CANCELLED
    assert trio.current_time() - begin < 1


async def test_the_deadline_fails_the_call_and_cancels_the_handler(
    memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock
) -> None:
    caller, server = await joined(2)
    begun, ended = trio.Event(), trio.Event()
    server.serve("slow", watched(begun, ended))
    begin = trio.current_time()
    bob = peers_of(memory_mesh)[1].peer_id
    assert (await failure(exhaust(caller, bob, "slow", 2))).code is Code.DEADLINE
    assert trio.current_time() - begin == pytest.approx(2)
    await ended.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert caller.outcomes["out", "slow", "deadline"] == 1
    assert sum(server.outcomes.values()) == 1


async def test_a_peer_without_an_answer_costs_the_deadline_alone(
    memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock
) -> None:
    caller, _ = await joined(2)
    bob = peers_of(memory_mesh)[1].peer_id
    memory_mesh.freeze(bob)
    begin = trio.current_time()
    assert (await failure(caller.unary(bob, "echo", b"", timeout=3))).code is Code.DEADLINE
    assert trio.current_time() - begin == pytest.approx(3)


Leave = Callable[[Calls, PeerId], Awaitable[None]]


async def leave_by_break(caller: Calls, peer: PeerId) -> None:
    async with caller.stream(peer, "slow", b"", timeout=100) as stream:
        async for _ in stream:
            break


async def leave_by_cancel(caller: Calls, peer: PeerId) -> None:
    with trio.move_on_after(1):
        await caller.unary(peer, "quiet", b"", timeout=100)


async def leave_by_exception(caller: Calls, peer: PeerId) -> None:
    with suppress(ZeroDivisionError):
        async with caller.stream(peer, "slow", b"", timeout=100) as stream:
            await anext(stream)
            raise ZeroDivisionError


@pytest.mark.parametrize("leave", [leave_by_break, leave_by_cancel, leave_by_exception])
async def test_leaving_a_call_cancels_the_handler_within_100_ms(
    memory_mesh: MemoryMesh, joined: Joined, leave: Leave, autojump_clock: Clock
) -> None:
    caller, server = await joined(2)
    memory_mesh.latency = 0.04
    begun, ended = trio.Event(), trio.Event()

    async def quiet(call: InboundCall) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    server.serve("slow", watched(begun, ended))
    server.serve("quiet", quiet)
    await leave(caller, peers_of(memory_mesh)[1].peer_id)
    with trio.fail_after(0.1):
        await ended.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert [outcome for (_, _, outcome) in server.outcomes] == ["cancelled"]
    assert [outcome for (_, _, outcome) in caller.outcomes] == ["cancelled"]


async def test_a_slow_reader_stops_only_its_own_call(memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock) -> None:
    caller, server = await joined(2)
    sent = 0

    async def flood(call: InboundCall) -> None:
        nonlocal sent
        while True:
            await call.send(bytes(60_000))
            sent += 1

    server.serve("flood", flood)
    server.serve("count", count)
    bob = peers_of(memory_mesh)[1].peer_id
    async with caller.stream(bob, "flood", b"", timeout=100) as slow:
        await anext(slow)
        async with caller.stream(bob, "count", b"5000", timeout=50) as quick:
            assert sum([1 async for _ in quick]) == 5000
        assert sent == 4
        for _ in range(5):
            await anext(slow)
        await trio.testing.wait_all_tasks_blocked()
        assert 6 <= sent <= 14


async def test_a_killed_peer_fails_its_calls_at_once_and_the_next_call_opens_a_fresh_link(
    memory_mesh: MemoryMesh, joined: Joined, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    caller, server = await joined(2)
    begun, ended = trio.Event(), trio.Event()
    server.serve("slow", watched(begun, ended))
    bob = peers_of(memory_mesh)[1].peer_id
    begin = trio.current_time()

    async def kill_when(begun: trio.Event) -> None:
        await begun.wait()
        memory_mesh.kill(bob)

    nursery.start_soon(kill_when, begun)
    assert (await failure(exhaust(caller, bob, "slow", 100))).code is Code.GONE
    assert trio.current_time() == begin
    await ended.wait()
    assert (await failure(caller.unary(bob, "echo", b"", timeout=5))).code is Code.GONE
    again = Calls(memory_mesh.restart(bob))
    again.serve("echo", echo)
    await nursery.start(again.run)
    assert await caller.unary(bob, "echo", b"back", timeout=5) == b"back"


async def test_a_refusal_keeps_its_code_and_hint(memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock) -> None:
    caller, server = await joined(2)

    async def refuse(call: InboundCall) -> None:
        async with trio.open_nursery():
            raise RemoteError(Code.OVERLOADED, "all slots are busy", retry_after=2)

    server.serve("infer", refuse)
    error = await failure(caller.unary(peers_of(memory_mesh)[1].peer_id, "infer", b"", timeout=5))
    assert (error.code, error.message, error.retry_after) == (Code.OVERLOADED, "all slots are busy", 2)
    assert server.outcomes["in", "infer", "overloaded"] == 1


async def raise_bug(call: InboundCall) -> None:
    raise ValueError("a secret path /home/x")


async def raise_group(call: InboundCall) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        raise ValueError("in a nursery")


async def return_text(call: InboundCall) -> bytes:
    return "text"  # type: ignore[return-value]


async def return_too_much(call: InboundCall) -> bytes:
    return bytes(MAX_BODY_BYTES + 1)


async def send_too_much(call: InboundCall) -> None:
    await call.send(bytes(70_000))


@pytest.mark.parametrize("handler", [raise_bug, raise_group, return_text, return_too_much, send_too_much])
async def test_a_bug_in_a_handler_reads_as_internal_and_harms_nobody_else(
    memory_mesh: MemoryMesh, joined: Joined, handler: Handler, autojump_clock: Clock
) -> None:
    caller, server = await joined(2)
    server.serve("bug", handler)
    server.serve("echo", echo)
    bob = peers_of(memory_mesh)[1].peer_id
    error = await failure(caller.unary(bob, "bug", b"", timeout=5))
    assert (error.code, error.message) == (Code.INTERNAL, "the peer failed to answer")
    assert server.outcomes["in", "bug", "internal"] == 1
    assert await caller.unary(bob, "echo", b"fine", timeout=5) == b"fine"
    assert not caller.breaches
    assert not server.breaches


async def test_unknown_methods_share_one_label(memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock) -> None:
    caller, server = await joined(2)
    for number in range(3):
        error = await failure(caller.unary(peers_of(memory_mesh)[1].peer_id, f"made-up-{number}", b"", timeout=5))
        assert error.code is Code.UNSUPPORTED
    assert dict(server.outcomes) == {("in", "unknown", "unsupported"): 3}


async def test_a_stream_where_one_answer_is_due_is_malformed(
    memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock
) -> None:
    caller, server = await joined(2)
    server.serve("count", count)
    error = await failure(caller.unary(peers_of(memory_mesh)[1].peer_id, "count", b"3", timeout=5))
    assert error.code is Code.MALFORMED


async def test_more_calls_than_a_link_takes_are_overloaded(
    memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock
) -> None:
    caller, server = await joined(2)
    server.serve("wait", forever)
    codes: list[Code] = []

    async def ask() -> None:
        codes.append((await failure(caller.unary(peers_of(memory_mesh)[1].peer_id, "wait", b"", timeout=5))).code)

    async with trio.open_nursery() as nursery:
        for _ in range(260):
            nursery.start_soon(ask)
    assert (codes.count(Code.OVERLOADED), codes.count(Code.DEADLINE)) == (4, 256)


async def test_big_bodies_take_a_link_of_their_own(memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock) -> None:
    caller, server = await joined(2)
    server.serve("echo", echo)
    alice, bob = peers_of(memory_mesh)
    for size in (10, 65_536, 300_000, MAX_BODY_BYTES):
        assert len(await caller.unary(bob.peer_id, "echo", bytes(size), timeout=5)) == size
    assert len(alice.links[bob.peer_id].streams) == 2


@pytest.mark.parametrize(
    ("received", "reason"),
    [
        (b"\xff\xff\xff\xff", "oversized"),
        (frame(b"\xc1\xc1"), "malformed"),
        (frame(encode(Request(1, "echo", 1000))), "no_hello"),
        (frame(encode(Hello())) + frame(encode(Item(1, b""))), "stray"),
    ],
)
async def test_a_peer_that_sends_garbage_loses_its_link_alone(
    memory_mesh: MemoryMesh, joined: Joined, received: bytes, reason: str, autojump_clock: Clock
) -> None:
    server, honest, _ = await joined(3)
    server.serve("echo", echo)
    bob, _, mallory = peers_of(memory_mesh)
    async with honest.stream(bob.peer_id, "echo", b"before", timeout=50) as stream:
        bad = await mallory.open_stream(bob.peer_id, PROTOCOL)
        await bad.send_all(received)
        await trio.testing.wait_all_tasks_blocked()
        assert dict(server.breaches) == {reason: 1}
        assert [item async for item in stream] == []
        assert stream.result == b"before"
    assert await honest.unary(bob.peer_id, "echo", b"after", timeout=5) == b"after"
    assert bob.faults == 0


async def test_who_breaks_the_contract_all_day_fills_no_log(
    memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock
) -> None:
    server, _ = await joined(2)
    bob, mallory = peers_of(memory_mesh)
    with structlog.testing.capture_logs() as lines:
        for _ in range(50):
            await (await mallory.open_stream(bob.peer_id, PROTOCOL)).send_all(b"\xff\xff\xff\xff")
            await trio.testing.wait_all_tasks_blocked()
    assert dict(server.breaches) == {"oversized": 50}
    loud = [line["dropped"] for line in lines if line["event"] == "link dropped" and line["log_level"] == "warning"]
    assert loud == [1, 2, 4, 8, 16, 32]


async def test_an_answer_that_breaks_the_contract_fails_the_call_with_gone(
    memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock
) -> None:
    (caller,) = await joined(1)
    (mallory,) = memory_mesh(1)

    async def answer(stream: Stream) -> None:
        await stream.send_all(frame(encode(Hello())) + frame(encode(End(77))))
        await trio.sleep_forever()

    mallory.handle(PROTOCOL, answer)
    assert (await failure(caller.unary(mallory.peer_id, "echo", b"", timeout=5))).code is Code.GONE
    assert dict(caller.breaches) == {"stray": 1}


async def test_one_inbound_link_too_many_replaces_the_oldest(
    memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock
) -> None:
    await joined(1)
    (server,) = peers_of(memory_mesh)
    (client,) = memory_mesh(1)
    streams = []
    for _ in range(MAX_INBOUND_LINKS + 1):
        streams.append(await client.open_stream(server.peer_id, PROTOCOL))
        await trio.testing.wait_all_tasks_blocked()
    for stream in streams[1:]:
        assert FrameReader().feed(await stream.receive_some()) == [encode(HELLO)]
    with pytest.raises(TransportError, match="reset"):
        await streams[0].receive_some()


async def test_a_cancelled_caller_never_cuts_a_frame_in_two(
    memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock
) -> None:
    caller, server = await joined(2)
    server.serve("echo", echo)
    bob = peers_of(memory_mesh)[1].peer_id
    memory_mesh.latency = 0.01
    await caller.unary(bob, "echo", b"", timeout=5)
    for step in range(30):
        with trio.move_on_after(step / 1000):
            await caller.unary(bob, "echo", bytes(50_000), timeout=5)
    assert await caller.unary(bob, "echo", b"whole", timeout=5) == b"whole"
    assert not server.breaches
    assert not caller.breaches


async def test_calls_of_a_stopped_node_are_gone(memory_mesh: MemoryMesh, autojump_clock: Clock) -> None:
    alice, bob = memory_mesh(2)
    caller, server = Calls(alice), Calls(bob)
    server.serve("wait", forever)
    codes: list[Code] = []

    async def ask() -> None:
        codes.append((await failure(caller.unary(bob.peer_id, "wait", b"", timeout=50))).code)

    async with trio.open_nursery() as outer:
        await outer.start(server.run)
        async with trio.open_nursery() as running:
            await running.start(caller.run)
            outer.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            running.cancel_scope.cancel()
        await ask()
        outer.cancel_scope.cancel()
    assert codes == [Code.GONE, Code.GONE]
    assert alice.faults == bob.faults == 0


async def test_a_method_is_served_once(memory_mesh: MemoryMesh) -> None:
    calls = Calls(memory_mesh(1)[0])
    calls.serve("echo", echo)
    with pytest.raises(LocalError):
        calls.serve("echo", echo)


async def test_many_callers_of_an_unknown_peer_share_one_dial(
    memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock
) -> None:
    caller, _ = await joined(2)
    bob = peers_of(memory_mesh)[1].peer_id
    memory_mesh.freeze(bob)
    memory_mesh.freeze(peers_of(memory_mesh)[0].peer_id)
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(failure, caller.unary(bob, "echo", b"", timeout=60))
    assert trio.current_time() - begin == pytest.approx(10)
    assert caller.outcomes["out", "echo", "gone"] == 5


async def test_a_node_that_stops_tells_its_callers_at_once(
    memory_mesh: MemoryMesh, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    alice, bob = memory_mesh(2)
    caller, server = Calls(alice), Calls(bob)
    begun, ended = trio.Event(), trio.Event()
    server.serve("slow", watched(begun, ended))
    await nursery.start(caller.run)
    async with trio.open_nursery() as running:
        await running.start(server.run)
        async with caller.stream(bob.peer_id, "slow", b"", timeout=50) as stream:
            assert await anext(stream) == b"first"
            begin = trio.current_time()
            running.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                assert (await failure(anext(stream))).code is Code.GONE
                await ended.wait()
    assert trio.current_time() == begin
    assert (await failure(caller.unary(bob.peer_id, "slow", b"", timeout=5))).code is Code.GONE


async def test_full_pipes_in_both_directions_do_not_lock_up(
    memory_mesh: MemoryMesh, joined: Joined, autojump_clock: Clock
) -> None:
    memory_mesh.latency = 0.01
    everyone = await joined(2)

    async def mirror(call: InboundCall) -> bytes:
        while (item := await call.receive()) is not None:
            await call.send(item)
        return b"mirrored"

    async def fill(calls: Calls, peer: MemoryTransport, mark: int) -> None:
        async with calls.stream(peer.peer_id, "mirror", b"", timeout=60, options=CallOptions(more=True)) as stream:

            async def pour() -> None:
                for number in range(40):
                    await stream.send(bytes([mark, number]) * 30_000)
                await stream.finish()

            async with trio.open_nursery() as pouring:
                pouring.start_soon(pour)
                assert [item[:2] async for item in stream] == [bytes([mark, number]) for number in range(40)]
            assert stream.result == b"mirrored"

    async with trio.open_nursery() as nursery:
        for calls, other in zip(everyone, reversed(peers_of(memory_mesh)), strict=True):
            calls.serve("mirror", mirror)
            for mark in range(8):
                nursery.start_soon(fill, calls, other, mark)
    assert [calls.outcomes["out", "mirror", "ok"] for calls in everyone] == [8, 8]
