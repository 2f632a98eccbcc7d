"""The in-memory mesh keeps the promises of `Transport`, so that what passes on it means something."""

import pytest
import trio
import trio.testing

from daemon.transport.interface import Stream, Transport, TransportError
from protocol.wire.limits import MAX_RECORD_BYTES
from tests.sim.memory_transport import BUFFER_BYTES, MemoryMesh


async def echo(stream: Stream) -> None:
    while received := await stream.receive_some():
        await stream.send_all(received)
    await stream.aclose()


async def hold(stream: Stream) -> None:
    await trio.sleep_forever()


async def test_a_stream_carries_bytes_both_ways_and_ends(memory_mesh: MemoryMesh, autojump_clock: trio.testing.MockClock) -> None:
    alice, bob = memory_mesh(2)
    _: Transport = alice
    memory_mesh.latency = 0.05
    bob.handle("/echo", echo)
    stream = await alice.open_stream(bob.peer_id, "/echo")
    assert (stream.peer, bob.is_connected(alice.peer_id)) == (bob.peer_id, True)
    begun = trio.current_time()
    await stream.send_all(b"hello")
    assert await stream.receive_some() == b"hello"
    assert trio.current_time() - begun == pytest.approx(0.1)
    await stream.aclose()
    assert await stream.receive_some() == b""


async def test_a_reader_who_pauses_stops_the_writer(memory_mesh: MemoryMesh, autojump_clock: trio.testing.MockClock) -> None:
    alice, bob = memory_mesh(2)
    bob.handle("/sink", hold)
    stream = await alice.open_stream(bob.peer_id, "/sink")
    await stream.send_all(bytes(BUFFER_BYTES))
    with trio.move_on_after(60) as waiting:
        await stream.send_all(b"x")
    assert waiting.cancelled_caught


async def test_a_killed_peer_breaks_streams_and_stops_its_handlers(
    memory_mesh: MemoryMesh, autojump_clock: trio.testing.MockClock
) -> None:
    alice, bob = memory_mesh(2)
    ended = trio.Event()
    seen: list[bool] = []
    alice.listen_to_peers(lambda peer, connected: seen.append(connected))

    async def serve(stream: Stream) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    bob.handle("/hold", serve)
    stream = await alice.open_stream(bob.peer_id, "/hold")
    await trio.testing.wait_all_tasks_blocked()
    memory_mesh.kill(bob.peer_id)
    with pytest.raises(TransportError):
        await stream.receive_some()
    await ended.wait()
    with pytest.raises(TransportError):
        await alice.connect(bob.peer_id)
    assert seen == [True, False]
    again = memory_mesh.restart(bob.peer_id)
    await alice.connect(again.peer_id)
    assert alice.is_connected(bob.peer_id)


async def test_a_frozen_peer_is_connected_and_silent_until_thawed(
    memory_mesh: MemoryMesh, autojump_clock: trio.testing.MockClock
) -> None:
    alice, bob, carol = memory_mesh(3)
    bob.handle("/echo", echo)
    stream = await alice.open_stream(bob.peer_id, "/echo")
    memory_mesh.freeze(bob.peer_id)
    await stream.send_all(b"late")
    with trio.move_on_after(30) as waiting:
        await stream.receive_some()
    assert waiting.cancelled_caught
    with pytest.raises(TransportError):
        await carol.connect(bob.peer_id)
    memory_mesh.thaw(bob.peer_id)
    assert await stream.receive_some() == b"late"


async def test_a_cut_link_heals_only_when_told(memory_mesh: MemoryMesh) -> None:
    alice, bob = memory_mesh(2, connected=True)
    memory_mesh.cut(alice.peer_id, bob.peer_id)
    with pytest.raises(TransportError):
        await alice.connect(bob.peer_id)
    memory_mesh.heal(alice.peer_id, bob.peer_id)
    await alice.connect(bob.peer_id)
    assert bob.paths()[alice.peer_id].inbound


async def test_gossip_travels_through_peers_that_find_it_valid(
    memory_mesh: MemoryMesh, autojump_clock: trio.testing.MockClock
) -> None:
    alice, bob, carol = memory_mesh(3)
    memory_mesh.join(alice, bob)
    memory_mesh.join(bob, carol)
    heard: list[tuple[str, bytes]] = []

    def hear(author: str, payload: bytes) -> bool:
        heard.append((author, payload))
        return payload != b"bad"

    for peer in (alice, bob, carol):
        await peer.subscribe("/topic", hear)
    await alice.publish("/topic", b"good")
    await alice.publish("/topic", b"bad")
    await trio.sleep(1)
    assert sorted(heard) == [(alice.peer_id, b"bad"), (alice.peer_id, b"good"), (alice.peer_id, b"good")]
    assert bob.gossip_refused == 1


async def test_records_and_providers_are_shared(memory_mesh: MemoryMesh) -> None:
    alice, bob = memory_mesh(2)
    await alice.put_record("/swarmd/offer/x", b"one")
    with pytest.raises(TransportError):
        await bob.put_record("/swarmd/offer/x", bytes(MAX_RECORD_BYTES + 1))
    assert await bob.get_record("/swarmd/offer/x") == b"one"
    await alice.provide("/swarmd/model/m")
    assert await bob.find_providers("/swarmd/model/m") == {alice.peer_id: alice.addresses()}


async def test_a_handler_that_raises_costs_its_stream_alone(memory_mesh: MemoryMesh) -> None:
    alice, bob = memory_mesh(2)

    async def broken(stream: Stream) -> None:
        raise ValueError("a bug")

    bob.handle("/broken", broken)
    bob.handle("/echo", echo)
    good = await alice.open_stream(bob.peer_id, "/echo")
    bad = await alice.open_stream(bob.peer_id, "/broken")
    with pytest.raises(TransportError):
        await bad.receive_some()
    await good.send_all(b"still")
    assert (await good.receive_some(), bob.faults) == (b"still", 1)
