"""The routing table: who gets a place, who keeps it, who loses it, and what one network can take."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.contacts import Contact, contact_of, met_at, network_of
from dht.keyspace import shared_bits
from dht.table import Admission, Table, TableConfig
from protocol.wire.ids import peer_id_of

RNG = Random(1)


def peer(ip: str = "", bits: int | None = None, me: int = 0) -> Contact:
    """A stranger at `ip`; with `bits` one that shares exactly so many with `me`."""
    addresses = (f"/ip4/{ip}/tcp/4001",) if ip else ()
    contact = contact_of(peer_id_of(RNG.randbytes(32)), addresses)
    if bits is None:
        return contact
    place = (me >> (255 - bits) ^ 1) << (255 - bits) | RNG.getrandbits(255 - bits)
    return Contact(contact.peer, place, contact.addresses, contact.network)


def test_newcomers_never_push_out_who_answers() -> None:
    table = Table(0)
    old = [peer(bits=3) for _ in range(20)]
    assert {table.answered(contact, 1.0) for contact in old} == {Admission.ADDED}
    assert {table.answered(peer(bits=3), 2.0) for _ in range(1000)} == {Admission.FULL}
    assert set(table) == set(old)


def test_one_failure_is_the_end_and_a_waiting_peer_is_asked() -> None:
    table = Table(0)
    old, late = [peer(bits=3) for _ in range(20)], peer(bits=3)
    for contact in (*old, late):
        table.answered(contact, 1.0)
    assert table.failed(old[7].peer) == late, "it is asked, and has no place before it answers"
    assert old[7].peer not in table
    assert late.peer not in table
    assert table.answered(late, 2.0) is Admission.ADDED
    assert table.failed(old[7].peer) is None, "twice dead is dead once"
    assert table.failed(old[8].peer) is None, "nobody waits"


def test_one_network_has_its_share_of_a_bucket_and_of_the_table() -> None:
    table = Table(0)
    assert [table.answered(peer("8.8.8.1", bits), 0) for bits in (0, 0, 0, 1, 2)] == [
        Admission.ADDED,
        Admission.ADDED,
        Admission.CROWDED,
        Admission.ADDED,
        Admission.CROWDED,
    ]
    wide = [table.answered(peer(f"9.9.{n}.1", n % 6), 0) for n in range(100)]
    assert wide.count(Admission.ADDED) == table.config.wide_all
    assert table.answered(peer("9.10.1.1", 0), 0) is Admission.ADDED
    assert not table.wants(peer("9.9.200.1", 7))


def test_private_addresses_are_nobodys_network_and_a_relay_is_one() -> None:
    assert network_of(("/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1", "/dns4/a.example/tcp/1")) is None
    assert network_of(("/ip4/10.0.0.1/tcp/1", "/ip4/8.8.4.4/tcp/1")) == ("4/80804", "4/808")
    assert network_of(("/ip6/2600:1:2:3::1/udp/1/quic-v1",)) == ("6/260000010002", "6/26000001")
    relayed = network_of(("/ip4/8.8.4.4/tcp/1/p2p/R/p2p-circuit/p2p/P",))
    assert relayed == ("relay R", "relay R")
    assert network_of(("/ip4/999.1.1.1/tcp/1", "nonsense", "")) is None
    claimed = peer("8.8.8.8")
    assert met_at(claimed, "/ip4/9.9.9.9/tcp/5").network == ("4/90909", "4/909")
    assert met_at(claimed, "/ip4/8.8.8.8/tcp/5") is claimed


def test_a_peer_that_moves_is_a_newcomer_where_it_moves_to() -> None:
    table = Table(0)
    mover = peer("8.8.8.1", 0)
    for contact in (mover, peer("9.9.9.1", 0), peer("9.9.9.2", 0)):
        assert table.answered(contact, 0) is Admission.ADDED
    assert table.answered(met_at(mover, "/ip4/9.9.9.3/tcp/1"), 1) is Admission.CROWDED
    assert mover.peer not in table
    assert table.answered(peer("8.8.8.2", 0), 1) is Admission.ADDED
    assert table.answered(peer("8.8.8.3", 0), 1) is Admission.ADDED, "what it took at its old network is free again"


def test_one_identity_is_one_place_whatever_its_addresses() -> None:
    table = Table(0)
    contact = peer("8.8.8.1", 4)
    table.answered(contact, 0)
    elsewhere = Contact(contact.peer, contact.place, ("/ip4/9.1.1.1/tcp/1",), network_of(("/ip4/9.1.1.1/tcp/1",)))
    assert table.answered(elsewhere, 1) is Admission.ADDED
    assert len(table) == 1
    assert table.get(contact.peer) == elsewhere


def test_the_silent_are_to_be_asked_the_longest_silent_first() -> None:
    table = Table(0, TableConfig(fresh=10))
    contacts = [peer(bits=n) for n in range(5)]
    for now, contact in enumerate(contacts):
        table.answered(contact, float(now))
    table.answered(contacts[0], 9.0)
    assert table.doubtful(13.0, 2) == contacts[1:3]
    assert table.doubtful(5.0, 9) == []


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(seed=st.integers(0, 10_000), size=st.integers(0, 120), count=st.integers(1, 30))
def test_the_closest_are_those_of_the_whole_table(seed: int, size: int, count: int) -> None:
    rng = Random(seed)
    table = Table(rng.getrandbits(256), TableConfig(bucket=1000))
    held = [peer(bits=rng.randrange(12), me=table.me) for _ in range(size)]
    for contact in held:
        table.answered(contact, 0)
    for target in (rng.getrandbits(256), table.me, held[0].place if held else 0):
        assert table.closest(target, count) == sorted(held, key=lambda c: c.place ^ target)[:count]


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(program=st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=120))
def test_counts_of_networks_are_never_wrong(program: list[tuple[int, bool]]) -> None:
    rng = Random(7)
    table = Table(0, TableConfig(bucket=6))
    pool = [peer(f"8.{n % 3}.{n % 5}.1", n % 3) for n in range(31)]
    for number, answers in program:
        moved = met_at(pool[number], f"/ip4/8.{rng.randrange(3)}.1.1/tcp/1")
        if answers:
            table.answered(moved if rng.random() < 0.2 else pool[number], 0)
        else:
            table.failed(pool[number].peer)
        held = [contact.network for contact in table if contact.network]
        assert all(0 < n <= table.config.narrow_all for n in table._narrow.values())
        assert sum(table._narrow.values()) == sum(table._wide.values()) == len(held)
        assert sum(table.sizes().values()) == len(table) == len(held)
        assert all(shared_bits(0, contact.place) < 3 for contact in table)
        for bucket in table._buckets.values():
            standing = [entry.contact for entry in bucket.entries.values()]
            assert sorted(bucket.contacts, key=lambda c: c.place) == sorted(standing, key=lambda c: c.place)
            networks = [contact.network for contact in standing if contact.network]
            assert bucket.narrow == Counter(network.narrow for network in networks)
            assert bucket.wide == Counter(network.wide for network in networks)


@pytest.mark.parametrize("count", [1, 20])
def test_ourselves_have_no_place(count: int) -> None:
    table = Table(5)
    me = Contact(peer().peer, 5)
    assert table.answered(me, 0) is Admission.CROWDED
    assert not table.wants(me)
    assert table.closest(5, count) == []
