"""Peers that exchange files over the in-memory mesh, with real files in a temporary folder."""

import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest
import trio

from daemon.calls import Calls
from daemon.content.events import PullEvent, PullProgress, PullResult
from daemon.content.exchange import ContentExchange, ContentPolicy
from protocol.wire.ids import Hash, PeerId
from tests.sim.memory_transport import MemoryMesh, MemoryTransport

MIB = 1 << 20
UNLIMITED = ContentPolicy(1 << 40, 0.0)


def gguf(size: int, seed: int = 1) -> bytes:
    """A GGUF file of `size` bytes with one tensor of random numbers."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    entries = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    values = (size - 256) // 4
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + entries + text("w") + struct.pack("<IQIQ", 1, values, 0, 0)
    return (head + bytes(-len(head) % 32) + Random(seed).randbytes(size))[:size]


class Sharer:
    """One peer that shares and fetches. `pulled` pulls to the end and tells all events."""

    def __init__(self, transport: MemoryTransport, folder: Path, policy: ContentPolicy) -> None:
        self.transport = transport
        self.folder = folder
        self.calls = Calls(transport)
        self.exchange = ContentExchange(folder, self.calls, transport, policy, Random(transport.index))
        self.scope = trio.CancelScope()

    @property
    def id(self) -> PeerId:
        return self.transport.peer_id

    async def run(self, *, task_status: "trio.TaskStatus[None]") -> None:  # type: ignore[name-defined]
        with self.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.calls.run)
                await nursery.start(self.exchange.run)
                task_status.started()

    async def pulled(self, address: Hash, *peers: PeerId, name: str = "") -> tuple[PullResult, list[PullProgress]]:
        events: list[PullEvent] = []

        async def emit(event: PullEvent) -> None:
            events.append(event)
            await trio.lowlevel.checkpoint()

        await self.exchange.pull(address, peers, name, emit)
        result = events[-1]
        assert isinstance(result, PullResult)
        return result, [event for event in events if isinstance(event, PullProgress)]

    def lies(self, about: Callable[[int], bytes]) -> None:
        """From now on this peer answers for each chunk with `about(index)`."""
        self.exchange.serving._read = lambda address, index: about(index)  # type: ignore[method-assign]


Sharers = Callable[..., Awaitable[list[Sharer]]]


@pytest.fixture
async def sharers(
    memory_mesh: MemoryMesh, nursery: trio.Nursery, tmp_path: Path, inline_threads: None
) -> Sharers:
    memory_mesh.latency = 0.005

    async def make(count: int, policy: ContentPolicy = UNLIMITED) -> list[Sharer]:
        made = [Sharer(one, tmp_path / f"peer{one.index}", policy) for one in memory_mesh(count)]
        for one in made:
            await nursery.start(one.run)
        everyone = list(memory_mesh.peers.values())
        for place, one in enumerate(everyone):
            for other in everyone[:place]:
                memory_mesh.join(one, other)
        return made

    return make

