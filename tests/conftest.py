"""What every test shares: the in-memory mesh, and properties that are tried with the same examples at every run."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
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


@pytest.fixture
def in_own_network(tmp_path: Path) -> Callable[[str], "subprocess.CompletedProcess[str]"]:
    """Runs a program in a network of its own, where d0 has 10.9.0.1/24 and multicast; skips where there can be none."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 for a network of its own")

    def run(program: str) -> "subprocess.CompletedProcess[str]":
        (tmp_path / "program.py").write_text(program)
        setup = (
            "ip link set lo up && ip link add d0 type veth peer name d1 && ip addr add 10.9.0.1/24 dev d0 && "
            "ip link set d0 up && ip link set d1 up && ip route add 224.0.0.0/4 dev d0 && exec "
        )
        command = ["unshare", "--net", "sh", "-c", f"{setup} {sys.executable} {tmp_path / 'program.py'}"]
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        if "Operation not permitted" in done.stderr or "Unknown device type" in done.stderr:
            pytest.skip(f"no network namespace here: {done.stderr.strip()[:100]}")
        return done

    return run
