"""mDNS answers the local network alone: which sources are on it, and what queries from both sides draw."""

import ipaddress
from typing import Any

import pytest

from daemon.lan_link import on_link

NETWORKS = [ipaddress.ip_network("192.168.1.0/24"), ipaddress.ip_network("fd00:1::/64")]


@pytest.mark.parametrize(
    ("source", "local"),
    [
        ("192.168.1.7", True), ("192.168.2.7", False), ("44.1.1.21", False), ("127.0.0.1", False), ("::ffff:192.168.1.7", True),
        ("::ffff:8.8.8.8", False), ("fd00:1::7", True), ("fd00:2::7", False), ("fe80::1%eth0", True), ("169.254.3.4", True),
    ],
)  # fmt: skip
def test_which_sources_are_on_the_link(source: str, local: bool) -> None:
    assert on_link(source, NETWORKS) is local


PROGRAM = """
import socket, sys, time
import trio
from daemon.lan_discovery import LanDiscovery
PEER = "12D3KooWRpRMTtJfBF5tJFtLWhaB8XHSurC2eFeDhudVYzMT6DS3"
QUERY = bytes.fromhex("000000000001000000000000045f703270045f756470056c6f63616c00000c0001")

def drawn(source):
    received, end = 0, time.monotonic() + 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.bind((source, 0))
        asker.settimeout(0.2)
        asker.sendto(QUERY, ("10.9.0.1", 5353))
        while time.monotonic() < end:
            try:
                received += len(asker.recv(9000))
            except TimeoutError:
                continue
    return received

async def main():
    discovery = LanDiscovery(PEER, lambda: [f"/ip4/10.9.0.1/tcp/7/p2p/{PEER}"], lambda *_: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(discovery.run)
        with trio.fail_after(15):
            while not discovery.counters["announced"]:
                await trio.sleep(0.05)
        for source in ("10.9.0.1", "127.0.0.1"):
            print("drawn", source, await trio.to_thread.run_sync(drawn, source), flush=True)
        nursery.cancel_scope.cancel()

trio.run(main)
"""


@pytest.mark.live
@pytest.mark.slow
def test_a_query_from_elsewhere_draws_nothing(in_own_network: Any) -> None:
    done = in_own_network(PROGRAM)
    drawn = {line.split()[1]: int(line.split()[2]) for line in done.stdout.splitlines() if line.startswith("drawn ")}
    assert drawn["10.9.0.1"] > 0, done.stderr
    assert drawn["127.0.0.1"] == 0, done.stderr
