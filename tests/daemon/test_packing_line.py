"""Which lines big bodies are compressed for: by the path's shortest round trip, which a busy process does not lengthen."""

from types import SimpleNamespace
from typing import Any, cast

import trio
from trio.testing import MockClock

from daemon.lines import LOOK_SECONDS, PACKED_FROM_SECONDS, Lines
from daemon.transport.interface import PathKind
from protocol.wire.ids import PeerId

ALICE = PeerId("alice")
NEAR, FAR = PACKED_FROM_SECONDS / 10, PACKED_FROM_SECONDS * 2


async def test_the_shortest_round_trip_of_a_path_decides(autojump_clock: MockClock) -> None:
    path = SimpleNamespace(kind=PathKind.DIRECT, rtt=None, since=0.0)
    paths = {ALICE: path}
    lines = Lines(cast("Any", SimpleNamespace(path=paths.get)))

    async def packs(rtt: float | None, **changes: object) -> bool:
        await trio.sleep(LOOK_SECONDS)
        path.rtt = rtt
        vars(path).update(changes)
        return lines.are_slow(ALICE)

    assert not await packs(None)
    assert await packs(FAR)
    path.rtt = NEAR
    assert lines.are_slow(ALICE)  # looked at a moment ago
    assert not await packs(NEAR)
    assert not await packs(FAR)  # the same path, under load
    assert await packs(FAR, since=1.0)  # another path
    assert await packs(NEAR, kind=PathKind.RELAYED)
    paths.clear()
    await trio.sleep(LOOK_SECONDS)
    assert not lines.are_slow(ALICE)
