"""What every test shares: the in-memory mesh, and properties that are tried with the same examples at every run."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import settings

from tests.sim.memory_transport import MemoryMesh

settings.register_profile("same-every-time", derandomize=True, deadline=None, database=None)
settings.load_profile("same-every-time")


@pytest.fixture
async def memory_mesh(nursery: trio.Nursery) -> MemoryMesh:
    """Call it to add peers: `alice, bob = memory_mesh(2)`; its methods kill, freeze, cut and heal."""
    return MemoryMesh(nursery)


@pytest.fixture
def inline_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs what goes to a thread in place: a virtual clock would run on while a thread works."""

    async def run_sync(work: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
