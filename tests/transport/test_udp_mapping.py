"""What observers say of our UDP port, over real sockets: observers that stand behind simulated NATs of ours."""

import itertools
import os

import pytest
import trio
import trio.testing

from daemon.transport.udp_mapping import UdpMapping
from daemon.transport.udp_port import UdpPort, bound_socket, receive_from, send_now
from nat.datagrams import Ask, Tell, decode, encode
from nat.observed import Mapping
from nat.port_count import PortCount

HOST, OUTSIDE = "127.0.0.1", "203.0.113.9"


class CountingNat:
    """Answers as observers behind which a NAT would stand that gives each pair of addresses the next port."""

    def __init__(self, first=40000, gives=None):
        self.ports = gives or itertools.count(first)
        self.mapped = {}

    async def observer(self, host, task_status):
        socket = bound_socket(host, 0)
        with socket:
            here = socket.getsockname()
            task_status.started(here)
            while True:
                source, payload = await receive_from(socket)
                asked = decode(payload)
                assert isinstance(asked, Ask)
                if (source, here) not in self.mapped:
                    self.mapped[source, here] = next(self.ports)
                send_now(socket, source, encode(Tell(asked.nonce, OUTSIDE, self.mapped[source, here])))


async def mapping_behind(nat, hosts, nursery):
    port = UdpPort(HOST, 0, os.urandom)
    nursery.start_soon(port.run)
    mapping = UdpMapping(lambda: port, os.urandom)
    observers = [await nursery.start(nat.observer, host) for host in hosts]
    mapping.observers = lambda: observers
    mapping.interfaces = lambda: [("192.168.1.2", port.port)]
    return mapping


@pytest.mark.parametrize("hosts", [("127.0.0.2", "127.0.0.3"), ("127.0.0.2", "127.0.0.3", "127.0.0.4")])
async def test_a_nat_that_counts_is_seen_through(hosts):
    async with trio.open_nursery() as nursery:
        nat = CountingNat()
        mapping = await mapping_behind(nat, hosts, nursery)
        assert mapping.kind() is Mapping.UNKNOWN
        await mapping.refresh()
        assert mapping.kind() is Mapping.PREDICTABLE
        assert mapping.works
        made = len(nat.mapped)
        assert await mapping.count() == PortCount(40000 + made + 4, 1), "four more mappings, each of them new"
        mapping.forget()
        assert mapping.kind() is Mapping.UNKNOWN
        nursery.cancel_scope.cancel()


async def test_whether_a_nat_counts_is_not_asked_again_each_time():
    async with trio.open_nursery() as nursery:
        nat = CountingNat()
        mapping = await mapping_behind(nat, ("127.0.0.2", "127.0.0.3"), nursery)
        await mapping.refresh()
        made = len(nat.mapped)
        for _ in range(3):
            await mapping.refresh()
        assert len(nat.mapped) == made == 6, "two of the port's own, and four of new sockets once"
        assert mapping.kind() is Mapping.PREDICTABLE
        mapping.forget()
        await mapping.refresh()
        assert len(nat.mapped) == made + 4, "another network"
        nursery.cancel_scope.cancel()


async def test_random_ports_are_symmetric():
    async with trio.open_nursery() as nursery:
        nat = CountingNat(gives=iter([50000, 41000, 63000, 1100, 2000, 9000]))
        mapping = await mapping_behind(nat, ("127.0.0.2", "127.0.0.3"), nursery)
        await mapping.refresh()
        assert mapping.kind() is Mapping.SYMMETRIC
        assert mapping.hosts() == {OUTSIDE}
        nursery.cancel_scope.cancel()


async def test_nobody_to_ask_is_no_answer():
    mapping = UdpMapping(lambda: None, os.urandom)
    await mapping.refresh()
    assert await mapping.count() is None
    assert (mapping.works, mapping.kind(), mapping.candidates()) == (None, Mapping.UNKNOWN, ())


async def test_observers_that_are_silent_cost_a_second(autojump_clock: trio.testing.MockClock):
    async with trio.open_nursery() as nursery:
        port = UdpPort(HOST, 0, os.urandom)
        nursery.start_soon(port.run)
        silent = bound_socket(HOST, 0)
        mapping = UdpMapping(lambda: port, os.urandom)
        mapping.observers = lambda: [silent.getsockname()]
        began = trio.current_time()
        assert await mapping.count() is None
        assert trio.current_time() - began < 1.0
        silent.close()
        nursery.cancel_scope.cancel()
