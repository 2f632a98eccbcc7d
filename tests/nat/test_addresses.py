"""Addresses as tables: what an address is, what we give to others, and what we dial in which order."""

import pytest

from nat.addresses import (
    MAX_ADDRESSES,
    Endpoint,
    Reach,
    advertised,
    dial_order,
    expand,
    parse,
    reach_of,
    with_peer,
    without_peer,
)

A, B, R = ("12D3KooWA", "12D3KooWB", "12D3KooWR")
RELAYED = f"/ip4/198.51.100.7/tcp/4001/p2p/{R}/p2p-circuit"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("/ip4/192.0.2.1/tcp/4001", Endpoint("192.0.2.1", "tcp", 4001, None, False)),
        (f"/ip4/192.0.2.1/tcp/4001/p2p/{A}", Endpoint("192.0.2.1", "tcp", 4001, A, False)),
        ("/ip4/192.0.2.1/udp/4001/quic-v1", Endpoint("192.0.2.1", "quic", 4001, None, False)),
        ("/ip4/192.0.2.1/tcp/443/ws", Endpoint("192.0.2.1", "ws", 443, None, False)),
        ("/ip6/2001:db8::1/tcp/1", Endpoint("2001:db8::1", "tcp", 1, None, False)),
        ("/dns4/node.example/tcp/4001", Endpoint("node.example", "tcp", 4001, None, False)),
        (f"{RELAYED}/p2p/{A}", Endpoint("198.51.100.7", "tcp", 4001, A, True)),
        (RELAYED, Endpoint("198.51.100.7", "tcp", 4001, None, True)),
        ("", None),
        ("/ip4/192.0.2.1", None),
        ("ip4/192.0.2.1/tcp/4001", None),
        ("/ip4/192.0.2.1/tcp/65536", None),
        ("/ip4/192.0.2.1/tcp/-1", None),
        ("/ip4/192.0.2.1/tcp/٤", None),
        ("/ip4/999.0.2.1/tcp/1", None),
        ("/ip4/192.0.2.1/sctp/1", None),
        ("/unix/tmp/tcp/1", None),
    ],
)
def test_parse(address, expected):
    assert parse(address) == expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("/ip4/8.8.8.8/tcp/1", Reach.PUBLIC),
        ("/ip6/2600::1/tcp/1", Reach.PUBLIC),
        ("/dns/node.example/tcp/1", Reach.PUBLIC),
        ("/ip4/192.168.1.5/tcp/1", Reach.PRIVATE),
        ("/ip4/10.0.0.1/udp/1/quic-v1", Reach.PRIVATE),
        ("/ip4/100.64.0.1/tcp/1", Reach.PRIVATE),
        ("/ip6/fd00::1/tcp/1", Reach.PRIVATE),
        ("/ip4/127.0.0.1/tcp/1", Reach.LOOPBACK),
        ("/ip6/::1/tcp/1", Reach.LOOPBACK),
        (RELAYED, Reach.RELAYED),
        ("/ip4/127.0.0.1/tcp/1/p2p/R/p2p-circuit/p2p/A", Reach.RELAYED),
        ("/ip4/0.0.0.0/tcp/1", Reach.NOWHERE),
        ("/ip6/::/tcp/1", Reach.NOWHERE),
        ("/ip4/224.0.0.1/tcp/1", Reach.NOWHERE),
        ("/ip4/169.254.1.1/tcp/1", Reach.NOWHERE),
        ("/ip6/fe80::1/tcp/1", Reach.NOWHERE),
        ("/ip4/8.8.8.8/tcp/0", Reach.NOWHERE),
        ("rubbish", Reach.NOWHERE),
    ],
)
def test_reach(address, expected):
    assert reach_of(address) is expected


@pytest.mark.parametrize(
    ("listening", "interfaces", "expected"),
    [
        (["/ip4/0.0.0.0/tcp/7"], ["127.0.0.1", "192.168.1.5", "8.8.8.8"], ("/ip4/192.168.1.5/tcp/7", "/ip4/8.8.8.8/tcp/7")),
        (["/ip4/0.0.0.0/tcp/7"], ["127.0.0.1"], ("/ip4/127.0.0.1/tcp/7",)),
        (["/ip4/0.0.0.0/tcp/7"], ["169.254.3.3", "fe80::1"], ()),
        (["/ip6/::/tcp/7"], ["192.168.1.5", "fd00::1", "::1"], ("/ip6/fd00::1/tcp/7",)),
        (["/ip4/0.0.0.0/udp/7/quic-v1"], ["192.168.1.5"], ("/ip4/192.168.1.5/udp/7/quic-v1",)),
        (["/ip4/127.0.0.1/tcp/7", "/ip4/0.0.0.0/tcp/8"], ["10.0.0.1"], ("/ip4/127.0.0.1/tcp/7", "/ip4/10.0.0.1/tcp/8")),
        (["/ip4/10.0.0.1/tcp/7", "/ip4/0.0.0.0/tcp/7"], ["10.0.0.1"], ("/ip4/10.0.0.1/tcp/7",)),
        (["/ip4/10.0.0.1/tcp/0", "rubbish"], ["10.0.0.1", "rubbish"], ()),
    ],
)
def test_expand_never_yields_what_cannot_be_dialed(listening, interfaces, expected):
    assert expand(listening, interfaces) == expected


def test_advertised_orders_by_use_to_strangers_and_puts_relays_last():
    direct = [f"/ip4/{host}/tcp/7" for host in ("127.0.0.1", "192.168.1.5", "0.0.0.0", "8.8.8.8")]
    assert advertised([*direct, f"/ip4/8.8.8.8/tcp/7/p2p/{A}"], [RELAYED], A) == (
        f"/ip4/8.8.8.8/tcp/7/p2p/{A}",
        f"/ip4/192.168.1.5/tcp/7/p2p/{A}",
        f"/ip4/127.0.0.1/tcp/7/p2p/{A}",
        f"{RELAYED}/p2p/{A}",
    )
    assert len(advertised([f"/ip4/8.8.8.8/tcp/{port}" for port in range(1, 99)], [], A)) == MAX_ADDRESSES


@pytest.mark.parametrize(
    ("address", "bare"),
    [
        (f"/ip4/8.8.8.8/tcp/7/p2p/{A}", "/ip4/8.8.8.8/tcp/7"),
        ("/ip4/8.8.8.8/tcp/7", "/ip4/8.8.8.8/tcp/7"),
        (f"{RELAYED}/p2p/{A}", RELAYED),
        (RELAYED, RELAYED),
    ],
)
def test_the_peer_part_comes_off_and_goes_back_on(address, bare):
    assert without_peer(address) == bare
    assert without_peer(with_peer(bare, B)) == bare
    assert with_peer(with_peer(bare, B), B) == f"{bare}/p2p/{B}"


LAN, PUBLIC, OTHER, LOCAL = ("/ip4/192.168.1.9/tcp/7", "/ip4/8.8.8.8/tcp/7", "/ip4/10.9.9.9/tcp/7", "/ip4/127.0.0.1/tcp/7")


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        ([RELAYED, OTHER, PUBLIC, LAN], ["/ip4/192.168.1.5/tcp/1"], (LAN, PUBLIC, OTHER, RELAYED)),
        ([LOCAL, PUBLIC], ["/ip4/192.168.1.5/tcp/1"], (PUBLIC,)),
        ([PUBLIC, LAN, LOCAL], ["/ip4/192.168.1.9/tcp/1"], (LOCAL, LAN, PUBLIC)),
        ([LOCAL], ["/ip4/127.0.0.1/tcp/1"], (LOCAL,)),
        ([LOCAL], [], ()),
        ([LOCAL], ["/ip4/127.0.0.1/tcp/7"], ()),
        ([LAN], [LAN], ()),
        (["/ip4/0.0.0.0/tcp/7", "rubbish", PUBLIC, PUBLIC], [], (PUBLIC,)),
        (["/ip6/fd00::2/tcp/7", "/ip6/2600::1/tcp/7"], ["/ip6/fd00::1/tcp/7"], ("/ip6/fd00::2/tcp/7", "/ip6/2600::1/tcp/7")),
        ([RELAYED], [RELAYED], (RELAYED,)),
    ],
)
def test_dial_order(theirs, ours, expected):
    assert dial_order(theirs, ours) == expected


def test_a_stranger_cannot_aim_us_at_our_own_services():
    aimed = ["/ip4/127.0.0.1/tcp/22", "/ip6/::1/tcp/5432", "/ip4/169.254.169.254/tcp/80"]
    assert dial_order(aimed, ["/ip4/192.168.1.5/tcp/4001", "/ip4/127.0.0.1/tcp/4001"]) == ()


def test_a_stranger_with_a_thousand_addresses_gets_few_dials():
    assert len(dial_order([f"/ip4/8.8.8.8/tcp/{port}" for port in range(1, 1001)], [])) == MAX_ADDRESSES
