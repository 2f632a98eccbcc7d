"""Fixtures for every test: the in-memory mesh."""

import pytest
import trio

from tests.sim.memory_transport import MemoryMesh


@pytest.fixture
async def memory_mesh(nursery: trio.Nursery) -> MemoryMesh:
    """Call it to add peers: `alice, bob = memory_mesh(2)`; its methods kill, freeze, cut and heal."""
    return MemoryMesh(nursery)
