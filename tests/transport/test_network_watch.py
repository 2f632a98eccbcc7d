"""Another network: what hung on the old address is closed and the parts are told, within ten seconds."""

import pytest
import trio
import trio.testing
from libp2p.connection_types import ConnectionType

from daemon.transport.network_watch import CHECK_SECONDS, NetworkWatch


class Swarm:
    def __init__(self):
        self.connections = []

    def get_connections(self):
        return self.connections


async def test_a_change_is_noticed_and_no_change_is_not(autojump_clock: trio.testing.MockClock, nursery: trio.Nursery):
    now, told, gone = {"192.168.1.2"}, [], []

    def changed(lost: frozenset[str]) -> None:
        told.append(trio.current_time())
        gone.append(lost)

    watch = NetworkWatch(Swarm(), changed, lambda: frozenset(now))
    nursery.start_soon(watch.run)
    await trio.sleep(30)
    assert told == []
    now.clear()
    now.add("10.0.0.7")
    began = trio.current_time()
    await trio.sleep(10)
    assert len(told) == watch.changes == 1
    assert told[0] - began <= CHECK_SECONDS < 10
    assert gone == [{"192.168.1.2"}], "also where no connection hung on it"


@pytest.mark.live
@pytest.mark.slow
async def test_a_connection_over_loopback_stays(running):
    async with running(2) as (a, b):
        await a.connect(b.peer_id, b.addresses())
        await watch_once(a._swarm, frozenset({"10.0.0.7"}))
        assert b.peer_id in a.paths()


class Connection:
    def __init__(self, address, kind):
        self.address, self.kind, self.muxed_conn, self.closed = address, kind, None, False

    def get_transport_addresses(self):
        return [self.address]

    def get_connection_type(self):
        return self.kind

    async def close(self):
        self.closed = True


@pytest.mark.parametrize(("addresses", "moves"), [({"10.0.0.7"}, 1), ({"192.0.2.1", "10.0.0.7"}, 0)])
async def test_others_are_told_of_a_move_where_a_connection_hangs_on_it(autojump_clock, monkeypatch, addresses, moves):
    swarm, told = Swarm(), []
    hangs = Connection("/ip4/44.1.1.31/tcp/4001", ConnectionType.DIRECT)
    swarm.connections.append(hangs)
    monkeypatch.setattr("daemon.transport.network_watch._local_host", {hangs: "192.0.2.1"}.get)
    await watch_once(swarm, frozenset(addresses), lambda: told.append(hangs.closed))
    assert told == [False] * moves, "before what hangs is closed, so that its end is held against nobody"


async def test_connections_from_an_address_that_is_gone_are_closed(autojump_clock: trio.testing.MockClock, monkeypatch):
    swarm = Swarm()
    gone, left = (Connection("/ip4/44.1.1.31/tcp/4001", ConnectionType.DIRECT) for _ in range(2))
    swarm.connections += [gone, left]
    monkeypatch.setattr("daemon.transport.network_watch._local_host", {gone: "192.0.2.1", left: "10.0.0.7"}.get)
    await watch_once(swarm, frozenset({"10.0.0.7"}))
    assert (gone.closed, left.closed) == (True, False)


@pytest.mark.parametrize(("addresses", "closed"), [({"10.0.0.7"}, True), ({"192.0.2.1", "10.0.0.7"}, False)])
async def test_udp_paths_are_closed_where_an_address_is_gone(autojump_clock: trio.testing.MockClock, addresses, closed):
    swarm = Swarm()
    punched = Connection("/ip4/44.1.1.31/udp/4001/quic-v1", ConnectionType.DIRECT)
    relayed = Connection("/ip4/44.1.1.10/udp/4001/quic-v1/p2p/R/p2p-circuit/p2p/P", ConnectionType.RELAYED)
    swarm.connections += [punched, relayed]
    await watch_once(swarm, frozenset(addresses))
    assert punched.closed is closed
    assert not relayed.closed, "it ends with the connection to its relay"


async def watch_once(swarm, addresses, moved=lambda: None):
    told = trio.Event()
    seen = iter([frozenset({"192.0.2.1"}), addresses])
    watch = NetworkWatch(swarm, lambda _: told.set(), lambda: next(seen, addresses))
    watch.moved = moved
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await told.wait()
        nursery.cancel_scope.cancel()


PROGRAM = """
import subprocess, sys, time
import trio
from daemon.transport.network_watch import NetworkWatch

class Swarm:
    def get_connections(self):
        return []

async def main():
    told = trio.Event()
    watch = NetworkWatch(Swarm(), lambda _: told.set())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        await trio.sleep(0.3)
        began = time.monotonic()
        for change in ("del 10.9.0.1/24", "add 10.9.0.7/24"):
            subprocess.run(["ip", "addr", *change.split(), "dev", "d0"], check=True)
        await told.wait()
        print("noticed", watch.changes, time.monotonic() - began, flush=True)
        nursery.cancel_scope.cancel()

trio.run(main)
"""


@pytest.mark.live
@pytest.mark.slow
def test_the_kernel_tells_of_a_change(in_own_network):
    done = in_own_network(PROGRAM)
    _, changes, seconds = done.stdout.split()
    assert int(changes) == 1, "one change, not one for each step of it"
    assert float(seconds) < CHECK_SECONDS, done.stderr
