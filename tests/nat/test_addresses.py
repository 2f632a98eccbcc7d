"""Addresses as tables: what an address is, at which may be knocked, and what we dial in which order."""

import pytest

from nat.addresses import (
    MAX_ADDRESSES,
    Endpoint,
    Reach,
    dial_order,
    is_public,
    multiaddr_of,
    parse,
    punch_targets,
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


@pytest.mark.parametrize(("host", "public"), [("8.8.8.8", True), ("2600::1", True), ("10.0.0.1", False), ("fe80::1", False)])
def test_an_ip_address_becomes_a_multiaddr(host, public):
    assert parse(multiaddr_of(host, 4001, "udp")) == Endpoint(host, "udp", 4001, None, False)
    assert is_public(host) is public


@pytest.mark.parametrize(
    ("theirs", "seen", "expected"),
    [
        ([("8.8.8.8", 7), ("8.8.8.8", 7)], ["9.9.9.9"], (("8.8.8.8", 7),)),
        ([("192.168.1.5", 7), ("8.8.8.8", 7)], ["9.9.9.9"], (("8.8.8.8", 7),)),
        ([("192.168.1.5", 7), ("9.9.9.9", 7)], ["9.9.9.9"], (("9.9.9.9", 7), ("192.168.1.5", 7))),
        ([("192.168.1.5", 7)], [], (("192.168.1.5", 7),)),
        ([("127.0.0.1", 7), ("::1", 7), ("0.0.0.0", 7), ("224.0.0.1", 7), ("169.254.1.1", 7)], [], ()),
        ([("2600::1", 7)], [], (("2600::1", 7),)),
        ([("rubbish", 7), ("node.example", 7)], [], ()),
    ],
    ids=["public", "not our household", "behind our own NAT", "nothing known of us", "never", "IPv6", "no addresses"],
)
def test_a_peer_cannot_aim_us_at_our_own_boxes(theirs, seen, expected):
    assert punch_targets(theirs, seen) == expected


def test_targets_are_bounded():
    assert len(punch_targets([("8.8.8.8", port) for port in range(1, 99)], [])) == MAX_ADDRESSES


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
