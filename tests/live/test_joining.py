"""Joining with real processes: a bootstrap is killed and comes back, a rejoin from the cache, daemons at their limits."""

import contextlib
import resource
import socket
import time
from pathlib import Path

import pytest

from tests.live.conftest import Daemon, Starter, until

pytestmark = [pytest.mark.live, pytest.mark.slow]


def connected(daemon: Daemon) -> set[str]:
    return {peer["peer_id"] for peer in daemon.client.peers() if peer.get("path")}


def port_of(daemon: Daemon) -> int:
    return int(daemon.address.split("/")[4])


def test_a_killed_bootstrap_is_survived_and_joined_again(starter: Starter) -> None:
    boot = starter("boot", "--set", "role=bootstrap", "--no-model")
    port, address = port_of(boot), boot.address
    one = starter.start("one", "--no-model", "--join", address)
    two = starter.start("two", "--no-model", "--join", address)
    one.wait_ready()
    two.wait_ready()
    until(lambda: two.peer_id in connected(one) and one.peer_id in connected(two))
    assert boot.client.status()["state"] == "ready"
    boot.child.kill()
    boot.child.wait()
    until(lambda: boot.peer_id not in connected(one))
    assert two.peer_id in connected(one)

    cache = two.folder / "data" / "peers.json"
    until(lambda: cache.exists() and one.peer_id in cache.read_text())
    two.child.kill()
    two.child.wait()
    again = starter("two", "--no-model", "--join", address)  # the bootstrap is gone; the cache is not
    began = time.monotonic()
    until(lambda: one.peer_id in connected(again), 10)
    assert time.monotonic() - began < 10
    assert [row["connected"] for row in again.client.status()["mesh"]["bootstrap"]] == [False]

    starter.start("boot", "--set", "role=bootstrap", "--no-model", listen=f"/ip4/127.0.0.1/tcp/{port}").wait_ready()
    until(lambda: boot.peer_id in connected(one) and boot.peer_id in connected(again), 40)


def test_at_the_limit_of_descriptors_and_of_memory_a_daemon_refuses_and_recovers(starter: Starter) -> None:
    full = starter("full", "--no-model")
    process = Path(f"/proc/{full.child.pid}")
    limit = len(list((process / "fd").iterdir())) + 12
    resource.prlimit(full.child.pid, resource.RLIMIT_NOFILE, (limit, limit))
    used = int((process / "status").read_text().partition("VmSize:")[2].split()[0]) << 10
    resource.prlimit(full.child.pid, resource.RLIMIT_AS, (used + (96 << 20), used + (96 << 20)))
    crowd = []
    for _ in range(60):
        knocking = socket.socket()
        knocking.settimeout(1)
        with contextlib.suppress(OSError):  # refused is what it may be
            knocking.connect(("127.0.0.1", port_of(full)))
            knocking.sendall(b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\xff" * 4096)
        crowd.append(knocking)
    until(lambda: len(list((process / "fd").iterdir())) >= limit - 2, 10)  # it is at its limit
    assert full.child.poll() is None
    for knocking in crowd:
        knocking.close()
    began = time.monotonic()
    other = starter("other", "--no-model", "--join", full.address)
    until(lambda: full.peer_id in connected(other))
    assert full.child.poll() is None
    assert full.client.status()["peer_id"] == full.peer_id
    assert time.monotonic() - began < 30
    assert "Traceback" not in full.log
