"""The cache of peers: what is kept, in which order, and what a damaged file costs."""

import pytest

from dht.peer_cache import MAX_ENTRIES, CachedPeer, PeerCache, decode_cache


def addresses(number):
    return (f"/ip4/10.0.0.{number % 250}/tcp/4001",)


def test_what_was_seen_comes_back_from_the_file(alice, bob):
    cache = PeerCache().seen(alice.id, addresses(1), 1_000).seen(bob.id, addresses(2), 2_000).seen(alice.id, (), 3_000)
    assert decode_cache(cache.encode()) == cache
    known = {entry.peer: entry for entry in cache.entries}
    assert known[alice.id] == CachedPeer(alice.id, addresses(1), 1_000, 3_000, 2)
    assert known[bob.id] == CachedPeer(bob.id, addresses(2), 2_000, 2_000, 1)
    assert b"\n" in cache.encode()


@pytest.mark.slow
def test_anchors_stay_and_the_stalest_goes(peer):
    cache = PeerCache()
    for number in (1, 2, 3):
        cache = cache.seen(peer(number).id, addresses(number), 0).seen(peer(number).id, addresses(number), 100_000 + number)
    for number in range(4, MAX_ENTRIES + 20):
        cache = cache.seen(peer(number).id, addresses(number), 200_000 + number)
    assert len(cache.entries) == MAX_ENTRIES
    names = [entry.peer for entry in cache.ordered()]
    assert set(names[:3]) == {peer(number).id for number in (1, 2, 3)}
    assert names[3] == peer(MAX_ENTRIES + 19).id
    assert peer(4).id not in names


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}", b"[]", b"\xff\xfe", b'{"peers": [{"peer": "x"}]}', b'{"peers": 7}', b"[" * 100_000, b" " * (3 << 20)],
)
def test_a_damaged_file_is_an_empty_cache(raw):
    assert decode_cache(raw) == PeerCache()


def test_a_half_written_file_is_an_empty_cache(alice):
    raw = PeerCache().seen(alice.id, addresses(1), 1).encode()
    assert [decode_cache(raw[:cut]) for cut in range(len(raw) - 1)] == [PeerCache()] * (len(raw) - 1)
