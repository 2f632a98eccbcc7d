"""Getting into the mesh: pauses that grow, bootstraps that come late or hang up, and the peers of the run before."""

from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

from daemon.bootstrap import CHECK_SECONDS, LONGEST_PAUSE, Bootstrap
from dht.peer_cache import MAX_BYTES, PeerCache, decode_cache
from protocol.wire.ids import PeerId
from tests.daemon.conftest import UNIX_MS, until
from tests.sim.memory_transport import MemoryMesh, MemoryTransport

pytestmark = pytest.mark.usefixtures("inline_threads")

Clock = trio.testing.MockClock


def bootstrap(transport: MemoryTransport, folder: Path, *targets: MemoryTransport) -> Bootstrap:
    addresses = [target.addresses()[0] for target in targets]
    return Bootstrap(transport, addresses, folder / "peers.json", Random(1), lambda: UNIX_MS)


async def test_a_bootstrap_that_comes_up_late_is_joined(
    memory_mesh: MemoryMesh, nursery: trio.Nursery, tmp_path: Path, autojump_clock: Clock
) -> None:
    alice, bob = memory_mesh(2)
    memory_mesh.kill(bob.peer_id)
    joining = bootstrap(alice, tmp_path, bob)
    nursery.start_soon(joining.run)
    await trio.sleep(100)
    assert joining.view() == [{"address": bob.addresses()[0], "connected": False, "error": "the peer is not reachable"}]
    assert joining.problem() == f"no bootstrap answers: {bob.addresses()[0]}: the peer is not reachable"
    memory_mesh.restart(bob.peer_id)
    await until(lambda: bob.peer_id in alice.paths(), LONGEST_PAUSE + 1)
    assert joining.view()[0]["error"] is None
    assert joining.problem() is None
    await trio.sleep(2 * CHECK_SECONDS)
    memory_mesh.part(alice.peer_id, bob.peer_id)
    await until(lambda: bob.peer_id in alice.paths(), CHECK_SECONDS + 0.1)


async def test_pauses_double_with_jitter_up_to_the_longest(
    memory_mesh: MemoryMesh, nursery: trio.Nursery, tmp_path: Path, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = memory_mesh(2)
    memory_mesh.kill(bob.peer_id)
    tries: list[float] = []
    connect = alice.connect

    async def counted(*arguments: object) -> None:
        tries.append(trio.current_time())
        await connect(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(alice, "connect", counted)
    nursery.start_soon(bootstrap(alice, tmp_path, bob).run)
    await trio.sleep(300)
    pauses = [b - a for a, b in pairwise(tries)]
    for place, pause in enumerate(pauses):
        full = min(LONGEST_PAUSE, 0.5 * 2**place)
        assert full / 2 <= pause <= full
    assert len(tries) < 30


async def test_a_bootstrap_that_hangs_up_at_once_is_not_dialled_every_second(
    memory_mesh: MemoryMesh, nursery: trio.Nursery, tmp_path: Path, autojump_clock: Clock
) -> None:
    alice, bob = memory_mesh(2)
    taken = 0

    def hang_up(peer: str, connected: bool) -> None:
        nonlocal taken
        if connected:
            taken += 1
            nursery.start_soon(bob.disconnect, alice.peer_id)

    bob.listen_to_peers(hang_up)
    joining = bootstrap(alice, tmp_path, bob)
    nursery.start_soon(joining.run)
    await trio.sleep(120)
    assert 4 <= taken < 15
    assert joining.view()[0]["error"] == "it closes the connection at once"


async def test_peers_of_an_earlier_run_are_tried_when_no_bootstrap_answers(
    memory_mesh: MemoryMesh, nursery: trio.Nursery, tmp_path: Path, autojump_clock: Clock
) -> None:
    alice, bob, carol = memory_mesh(3)
    first = bootstrap(alice, tmp_path, bob)
    async with trio.open_nursery() as run:
        run.start_soon(first.run)
        await until(lambda: bob.peer_id in alice.paths())
        first.met(carol.peer_id, carol.addresses())
        run.cancel_scope.cancel()
    assert [entry.peer for entry in decode_cache((tmp_path / "peers.json").read_bytes()).entries] == [carol.peer_id]
    memory_mesh.kill(bob.peer_id)
    nursery.start_soon(bootstrap(alice, tmp_path, bob).run)
    await until(lambda: carol.peer_id in alice.paths(), 2)


async def test_anchors_are_dialled_at_once_although_a_bootstrap_answers(
    memory_mesh: MemoryMesh, nursery: trio.Nursery, tmp_path: Path, autojump_clock: Clock
) -> None:
    """A hostile bootstrap shows us its friends alone; whoever was met before is not its to choose."""
    alice, hostile, anchor = memory_mesh(3)
    cache = PeerCache().seen(anchor.peer_id, anchor.addresses(), UNIX_MS)
    (tmp_path / "peers.json").write_bytes(cache.encode())
    nursery.start_soon(bootstrap(alice, tmp_path, hostile).run)
    await until(lambda: {hostile.peer_id, anchor.peer_id} <= set(alice.paths()), 1)


async def test_all_of_a_cache_is_tried_in_turn(
    memory_mesh: MemoryMesh, nursery: trio.Nursery, tmp_path: Path, autojump_clock: Clock
) -> None:
    alice, *others = memory_mesh(30)
    cache = PeerCache()
    for age, other in enumerate(reversed(others)):
        cache = cache.seen(other.peer_id, other.addresses(), UNIX_MS + age)
    (tmp_path / "peers.json").write_bytes(cache.encode())
    last = PeerId(cache.ordered()[-1].peer)
    for other in others:
        if other.peer_id != last:
            memory_mesh.kill(other.peer_id)
    joining = bootstrap(alice, tmp_path)
    nursery.start_soon(joining.run)
    await trio.sleep(1)
    assert joining.problem() == "none of the 29 peers that were met before answers"
    await until(lambda: last in alice.paths(), 30)
    assert joining.problem() is None


async def test_with_nobody_to_join_by_it_says_what_to_do(
    memory_mesh: MemoryMesh, nursery: trio.Nursery, tmp_path: Path, autojump_clock: Clock
) -> None:
    alice, bob = memory_mesh(2)
    joining = bootstrap(alice, tmp_path)
    nursery.start_soon(joining.run)
    await trio.sleep(5)
    assert joining.problem() is None
    assert "no public bootstraps yet" in str(joining.hint())
    assert "swarmd bootstrap" in str(joining.hint())
    await bob.connect(alice.peer_id)
    assert joining.hint() is None


@pytest.mark.parametrize("content", [b"", b"{]", b'{"peers": [{"peer": "x"}]}', b"\x00" * (MAX_BYTES + 5)])
async def test_a_damaged_cache_is_an_empty_one(
    memory_mesh: MemoryMesh, nursery: trio.Nursery, tmp_path: Path, autojump_clock: Clock, content: bytes
) -> None:
    alice, bob = memory_mesh(2)
    (tmp_path / "peers.json").write_bytes(content)
    joining = bootstrap(alice, tmp_path, bob)
    nursery.start_soon(joining.run)
    await until(lambda: bob.peer_id in alice.paths(), 2)
    assert joining._cache == PeerCache()


async def test_we_are_no_bootstrap_of_our_own_and_nobody_named_is_no_problem(
    memory_mesh: MemoryMesh, tmp_path: Path, autojump_clock: Clock
) -> None:
    (alice,) = memory_mesh(1)
    joining = bootstrap(alice, tmp_path, alice)
    assert joining.view() == []
    assert joining.problem() is None
