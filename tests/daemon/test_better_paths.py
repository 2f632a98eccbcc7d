"""A better path takes new calls over; those that run stay where they are, and the old link is closed after the last of them."""

import pytest
import trio
import trio.testing

from daemon.calls import RETIRE_SECONDS, Calls, InboundCall
from tests.sim.memory_transport import MemoryMesh


@pytest.fixture
async def two(memory_mesh: MemoryMesh, nursery: trio.Nursery) -> list[Calls]:
    everyone = [Calls(peer) for peer in memory_mesh(2)]
    for calls in everyone:
        await nursery.start(calls.run)
    return everyone


async def test_running_calls_stay_and_new_ones_move(
    memory_mesh: MemoryMesh, two: list[Calls], autojump_clock: trio.testing.MockClock
) -> None:
    caller, server = two
    alice, bob = memory_mesh.peers.values()
    go = trio.Event()

    async def slow(call: InboundCall) -> bytes:
        await call.send(b"first")
        await go.wait()
        await call.send(b"last")
        return b"done"

    async def echo(call: InboundCall) -> bytes:
        return call.body

    server.serve("slow", slow)
    server.serve("echo", echo)
    with trio.fail_after(60):
        async with caller.stream(bob.peer_id, "slow", b"", timeout=50) as stream:
            assert await anext(stream) == b"first"
            old = caller._links[bob.peer_id, False]
            alice.improved(bob)
            assert await caller.unary(bob.peer_id, "echo", b"new", timeout=5) == b"new"
            assert caller._links[bob.peer_id, False] is not old
            await trio.sleep(5 * RETIRE_SECONDS)
            assert not old.closed, "a call runs on it"
            go.set()
            assert [item async for item in stream] == [b"last"]
            assert stream.result == b"done"
        await trio.sleep(3 * RETIRE_SECONDS)
        assert old.closed
        assert await caller.unary(bob.peer_id, "echo", b"again", timeout=5) == b"again"


async def test_a_caller_that_was_just_given_the_old_link_is_served(
    memory_mesh: MemoryMesh, two: list[Calls], autojump_clock: trio.testing.MockClock
) -> None:
    caller, server = two
    alice, bob = memory_mesh.peers.values()

    async def echo(call: InboundCall) -> bytes:
        await trio.sleep(0.1)
        return call.body

    server.serve("echo", echo)
    answers: list[bytes] = []

    async def ask(number: int) -> None:
        await trio.sleep(number / 50)
        answers.append(await caller.unary(bob.peer_id, "echo", b"%d" % number, timeout=5))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, number)
            for _ in range(8):
                await trio.sleep(0.11)
                alice.improved(bob)
    assert len(answers) == 50
