"""How round messages travel, and who is declared gone: one check for many askers, one more try, bounded pushes."""

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from daemon.calls import Calls, InboundCall
from daemon.round_links import GONE_SECONDS, MAX_PUSHES, METHOD, RoundLinks
from protocol.wire.ids import PeerId
from tests.sim.memory_transport import MemoryMesh, MemoryTransport

Clock = trio.testing.MockClock


class Reach:
    """Stands for the transport's dial: `answers` in turn, the last one for ever; each try takes 10 ms."""

    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.tries = 0

    async def __call__(self, peer: PeerId) -> bool:
        self.tries += 1
        await trio.sleep(0.01)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


async def two(mesh: MemoryMesh, nursery: trio.Nursery) -> tuple[Calls, Calls, MemoryTransport]:
    alice, bob = mesh(2, connected=True)
    ours, theirs = Calls(alice), Calls(bob)
    await nursery.start(ours.run)
    await nursery.start(theirs.run)
    return ours, theirs, bob


def links(calls: Calls, reach: Callable[[PeerId], Awaitable[bool]]) -> tuple[RoundLinks, list[PeerId]]:
    gone: list[PeerId] = []
    return RoundLinks(calls, reach, gone.append), gone


async def test_many_who_ask_share_one_check_and_gone_is_said_once(
    memory_mesh: MemoryMesh, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    calls, _, bob = await two(memory_mesh, nursery)
    reach = Reach(False)
    round_links, gone = links(calls, reach)
    found: list[bool] = []

    async def check() -> None:
        found.append(await round_links.still_there(bob.peer_id))

    async with trio.open_nursery() as askers:
        for _ in range(20):
            askers.start_soon(check)
    assert found == [False] * 20
    assert gone == [bob.peer_id]
    assert reach.tries <= 6
    assert trio.current_time() == pytest.approx(GONE_SECONDS)


async def test_a_peer_that_comes_back_in_time_is_not_gone(
    memory_mesh: MemoryMesh, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    calls, _, bob = await two(memory_mesh, nursery)
    round_links, gone = links(calls, Reach(False, False, True))
    assert await round_links.still_there(bob.peer_id)
    assert gone == []


async def test_a_check_that_is_cancelled_is_taken_over(
    memory_mesh: MemoryMesh, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    calls, _, bob = await two(memory_mesh, nursery)
    round_links, gone = links(calls, Reach(False))
    async with trio.open_nursery() as first:
        first.start_soon(round_links.still_there, bob.peer_id)
        nursery.start_soon(round_links.still_there, bob.peer_id)
        await trio.sleep(0.3)
        first.cancel_scope.cancel()
    await trio.sleep(GONE_SECONDS + 0.1)
    assert gone == [bob.peer_id]


async def test_a_push_that_was_interrupted_is_tried_once_more(
    memory_mesh: MemoryMesh, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    calls, theirs, bob = await two(memory_mesh, nursery)
    taken: list[bytes] = []

    async def take(call: InboundCall) -> bytes:
        taken.append(call.body)
        if len(taken) == 1:
            memory_mesh.part(bob.peer_id, call.peer)
            await trio.sleep_forever()
        return b""

    theirs.serve(METHOD, take)
    round_links, gone = links(calls, Reach(True))
    await round_links.push(bob.peer_id, b"seal")
    assert (taken, gone, round_links.pushing) == ([b"seal", b"seal"], [], 0)


async def test_pushes_to_one_peer_are_bounded(memory_mesh: MemoryMesh, nursery: trio.Nursery, autojump_clock: Clock) -> None:
    calls, theirs, bob = await two(memory_mesh, nursery)

    async def slow(call: InboundCall) -> bytes:
        await trio.sleep(1)
        return b""

    theirs.serve(METHOD, slow)
    round_links, _ = links(calls, Reach(True))
    async with trio.open_nursery() as pushes:
        for _ in range(MAX_PUSHES + 10):
            pushes.start_soon(round_links.push, bob.peer_id, b"x")
        await trio.sleep(0.1)
        assert round_links.pushing == MAX_PUSHES
    assert round_links.faults["overflow"] == 10
    assert round_links.pushing == 0
