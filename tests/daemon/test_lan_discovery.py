"""mDNS: what is announced, what is believed of what is heard, and two of them that find each other in a network of their own."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.lan_discovery import KEY, MAX_ADDRESSES, private_addresses, read_text

PEER = "12D3KooWRpRMTtJfBF5tJFtLWhaB8XHSurC2eFeDhudVYzMT6DS3"
OTHER = "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5"
LAN = f"/ip4/192.168.1.5/tcp/4711/p2p/{PEER}"


def text(*addresses: str) -> bytes:
    entries = [KEY + address.encode() for address in addresses]
    return b"".join(bytes([len(entry)]) + entry for entry in entries)


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        (LAN, True),
        (f"/ip4/10.0.0.1/tcp/1/p2p/{PEER}", True),
        (f"/ip6/fd00::1/tcp/1/p2p/{PEER}", True),
        (f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}", False),
        (f"/ip4/8.8.8.8/tcp/1/p2p/{PEER}", False),
        (f"/dns4/example.org/tcp/1/p2p/{PEER}", False),
        (f"/ip4/10.0.0.1/tcp/1/p2p/{OTHER}/p2p-circuit/p2p/{PEER}", False),
        ("nonsense", False),
    ],
)
def test_only_addresses_of_the_local_network_are_told_and_believed(address: str, kept: bool) -> None:
    assert private_addresses([address]) == ((address,) if kept else ())
    assert read_text(text(address)) == ((PEER, (address,)) if kept else (None, ()))


def test_an_announcement_of_two_peers_or_of_too_many_addresses_is_bounded() -> None:
    assert read_text(text(LAN, LAN.replace(PEER, OTHER))) == (None, ())
    many = [f"/ip4/10.0.0.{number}/tcp/1/p2p/{PEER}" for number in range(30)]
    assert len(read_text(text(*many))[1]) == MAX_ADDRESSES


@given(st.binary(max_size=600))
def test_garbage_names_nobody(raw: bytes) -> None:
    assert read_text(raw) == (None, ())


PROGRAM = f"""
import trio
from daemon.lan_discovery import LanDiscovery

NETWORK = "{"0a" * 16}"  # as long as the daemon's

async def main():
    found = trio.Event()
    def heard(peer, addresses):
        print(peer, addresses, flush=True)
        found.set()
    async with trio.open_nursery() as nursery:
        one = LanDiscovery("{PEER}", lambda: ["/ip4/10.9.0.1/tcp/7/p2p/{PEER}"], heard, NETWORK)
        two = LanDiscovery("{OTHER}", lambda: ["/ip4/10.9.0.1/tcp/8/p2p/{OTHER}"], lambda *_: None, NETWORK)
        public = LanDiscovery("{OTHER}", lambda: ["/ip4/10.9.0.1/tcp/9/p2p/{OTHER}"], lambda *_: print("leak"), "")
        for part in (one, two, public):
            nursery.start_soon(part.run)
        with trio.fail_after(15):
            await found.wait()
        await trio.sleep(0.3)
        nursery.cancel_scope.cancel()

trio.run(main)
"""


@pytest.mark.live
@pytest.mark.slow
def test_two_peers_of_one_mesh_find_each_other_and_no_other_mesh_hears_it(in_own_network: Any) -> None:
    done = in_own_network(PROGRAM)
    heard = [line for line in done.stdout.splitlines() if "info" not in line]  # what the daemon logs
    assert heard == [f"{OTHER} ('/ip4/10.9.0.1/tcp/8/p2p/{OTHER}',)"], done.stderr
