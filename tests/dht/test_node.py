"""The rest of a node: the key space, the estimate of the mesh, what is answered, and when it looks after itself."""

from random import Random

import pytest

from dht import upkeep
from dht.contacts import Contact, contact_of
from dht.density import Density
from dht.kad_messages import AddProvider, FindNode, GetProviders, GetValue, Ping, PutValue
from dht.keyspace import MAX_POINT_BITS, name_of_peer, parts_of, place_of, point_in, shared_bits
from dht.lookup_events import Done, Verdict
from dht.node import Node
from dht.queries import GET, STORE, Providers, Values, holders
from dht.record_store import Opened
from dht.table import Table
from protocol.wire.errors import RemoteError, malformed
from protocol.wire.ids import peer_id_of

RNG = Random(9)
WALL = 1_700_000_000_000


def peer(ip: str = "127.0.0.1") -> Contact:
    return contact_of(peer_id_of(RNG.randbytes(32)), (f"/ip4/{ip}/tcp/1",))


def opened(key: str, value: bytes, wall: int) -> Opened:
    if value == b"bad":
        raise malformed("bad")
    return Opened((len(value), 0, value), wall + 1000)


@pytest.mark.parametrize("bits", [0, 1, 5, 12, 14, MAX_POINT_BITS, 40])
def test_a_point_stands_where_it_is_wanted(bits: int) -> None:
    place = RNG.getrandbits(256)
    name = point_in(place, bits)
    assert shared_bits(place, place_of(name)) >= min(bits, MAX_POINT_BITS)
    assert point_in(place, bits) == name
    assert 2 <= len(name) <= 50, "what a stock node takes for the id of a peer"


def test_parts_cover_a_region_evenly() -> None:
    place = RNG.getrandbits(256)
    parts = parts_of(place, 7, 3)
    assert all(shared_bits(place, part) >= 7 for part in parts)
    assert len({part >> 246 for part in parts}) == 8


@pytest.mark.parametrize("size", [50, 500, 5000])
def test_the_mesh_is_estimated_within_a_factor_of_two_and_one_crowded_place_changes_little(size: int) -> None:
    rng = Random(size)
    mesh = [rng.getrandbits(256) for _ in range(size)]
    density = Density(Table(0))
    assert density.peers() == 0
    assert density.region_bits(20) == 0
    for _ in range(7):
        place = rng.getrandbits(256)
        density.note(place, sorted(mesh, key=lambda p: p ^ place)[:20])
    assert size / 2 < density.peers() < size * 2
    before = density.peers()
    place = rng.getrandbits(256)
    density.note(place, [place ^ n for n in range(1, 21)])
    assert density.peers() < 2 * before
    members = sum(shared_bits(p, place) >= density.region_bits(20) for p in mesh)
    assert 5 <= members <= 90


def test_a_lookup_that_had_its_answers_early_says_nothing_of_how_many_there_are() -> None:
    node = Node(peer(), opened, Random(1))
    for contact in (peer() for _ in range(60)):
        node.answered(contact, 0.0)
    for config, verdict, counts in ((GET, Verdict.FOUND, False), (GET, Verdict.ABSENT, True), (STORE, Verdict.FOUND, True)):
        lookup, _ = node.lookup(b"name", config)
        closest = tuple(sorted(node.table, key=lambda c: c.place ^ lookup.place)[:20])
        before = len(node.density._samples)
        node.concluded(lookup, Done(verdict, "", closest, (), 1, 20, 0, 4, 4, False))
        assert (len(node.density._samples) > before) is counts


def test_what_a_node_answers() -> None:
    node = Node(peer(), opened, Random(1))
    asker, others = peer(), [peer() for _ in range(30)]
    for contact in (asker, *others):
        node.answered(contact, 0.0)
    answer = node.responder.answer
    assert answer(Ping(), asker, 0.0, WALL).closer == ()
    goal = others[3]
    closer = answer(FindNode(name_of_peer(goal.peer)), asker, 0.0, WALL).closer
    assert closer[0] == goal
    assert len(closer) == 20
    assert asker not in closer
    assert answer(GetValue(b"/swarmd/a"), asker, 0.0, WALL).value is None
    assert answer(PutValue(b"/swarmd/a", b"v"), asker, 0.0, WALL).value == b"v"
    got = answer(GetValue(b"/swarmd/a"), asker, 0.0, WALL)
    assert got.value == b"v"
    assert len(got.closer) == 20
    answer(AddProvider(b"k", ("/ip4/8.8.8.8/tcp/1",)), asker, 0.0, WALL)
    (provider,) = answer(GetProviders(b"k"), others[0], 0.0, WALL).providers
    assert (provider.peer, provider.addresses) == (asker.peer, ("/ip4/8.8.8.8/tcp/1",))
    for question in (
        FindNode(b""),
        FindNode(bytes(200)),
        GetValue(b""),
        PutValue(b"/swarmd/a", b"bad"),
        PutValue(b"", b"v"),
        AddProvider(b"k", ()),
        AddProvider(bytes(81), ("/ip4/8.8.8.8/tcp/1",)),
    ):
        with pytest.raises(RemoteError):
            answer(question, asker, 0.0, WALL)


def test_a_stranger_is_a_provider_under_its_own_name_alone() -> None:
    node = Node(peer(), opened, Random(1))
    asker = peer("8.8.8.8")
    for number in range(100):
        node.responder.answer(AddProvider(b"k%d" % (number % 50), ("/ip4/9.9.9.9/tcp/1",)), asker, 0.0, WALL)
    assert {c.peer for name in node.providers.names() for c in node.providers.get(name, 0.0)} == {asker.peer}


def test_upkeep_refreshes_after_arrivals_ever_more_rarely_and_republishes_once_it_knows_somebody() -> None:
    node = Node(peer(), opened, Random(2))
    clock, now, looked, republished = node.upkeep, 0.0, [], []
    effects = clock.handle(upkeep.Tick(), now)
    while now < 1800:
        wake = next(e.time for e in effects if isinstance(e, upkeep.WakeAt))
        assert wake >= now
        now = max(now + 0.01, min(wake, now + 0.5) if now < 60 else wake)
        event: upkeep.Event = upkeep.Tick()
        if now < 60:
            node.answered(peer(), now)
            event = upkeep.Arrived()
        effects = clock.handle(event, now)
        for effect in effects:
            if isinstance(effect, upkeep.LookUp):
                looked.append(now)
                effects = [*effects, *clock.handle(upkeep.LookedUp(effect.name), now)]
        republished += [now for e in effects if isinstance(e, upkeep.Republish)]
    assert 4 <= sum(t < 60 for t in looked) <= 14, "twenty arrivals a second are no reason for twenty lookups"
    assert sum(t > 120 for t in looked) >= 2
    assert republished[0] < 2
    assert sum(t < 60 for t in republished) <= 6, "each time that it knows twice as many, until it knows forty"
    assert 1 <= sum(t > 60 for t in republished) <= 3


def test_thin_buckets_are_looked_up_after_ourselves() -> None:
    node = Node(peer(), opened, Random(2))
    for _ in range(200):
        node.answered(peer(), 0.0)
    node.upkeep.handle(upkeep.Tick(), 0.0)
    (own,) = [e.name for e in node.upkeep.handle(upkeep.Arrived(), 1.0) if isinstance(e, upkeep.LookUp)] or [
        e.name for e in node.upkeep.handle(upkeep.Tick(), 2.0) if isinstance(e, upkeep.LookUp)
    ]
    assert own == name_of_peer(node.me.peer)
    names = [own]
    for now in range(20):
        found = [e.name for e in node.upkeep.handle(upkeep.LookedUp(names[-1]), 3.0 + now) if isinstance(e, upkeep.LookUp)]
        if not found:
            break
        names += found
    thin = {bits for bits, size in node.table.sizes().items() if size < 10}
    assert all(shared_bits(place_of(name), node.table.me) in thin for name in names[1:])


def test_silent_entries_are_checked() -> None:
    node = Node(peer(), opened, Random(2))
    quiet = peer()
    node.answered(quiet, 0.0)
    node.upkeep.handle(upkeep.Tick(), 0.0)
    checks = [
        e.contact for t in range(600, 760, 10) for e in node.upkeep.handle(upkeep.Tick(), float(t)) if isinstance(e, upkeep.Check)
    ]
    assert quiet in checks


def test_values_keep_the_best_and_providers_leave_out_whom_we_know_better() -> None:
    values = Values("/swarmd/a", opened)
    assert [values.take(v, WALL) for v in (None, b"bad", b"22", b"1", b"22")] == [False, False, True, True, True]
    assert (values.best, values.invalid) == (b"22", 1)
    node = Node(peer(), opened, Random(1))
    squatter, honest = peer(), peer()
    providers = Providers(node.me.peer, lambda c: c.peer != squatter.peer)
    node.providers.add(b"k", squatter, 0.0)
    assert not providers.take(node.responder.answer(GetProviders(b"k"), peer(), 0.0, WALL))
    node.providers.add(b"k", honest, 0.0)
    node.providers.add(b"k", node.me, 0.0, own=True)
    assert providers.take(node.responder.answer(GetProviders(b"k"), peer(), 0.0, WALL))
    assert set(providers.found) == {honest.peer}


def test_holders_of_a_crowded_region_are_not_the_crowd_alone() -> None:
    node = Node(peer(), opened, Random(1))
    lookup, begin = node.lookup(b"k", STORE)
    (done,) = lookup.handle(begin, 0.0)
    assert holders(done) == ()  # type: ignore[arg-type]
    contacts = tuple(sorted((peer() for _ in range(150)), key=lambda c: c.place))
    crowded = type(done)(done.verdict, "", contacts[:20], contacts, 1, 1, 0, 4, 4, False)  # type: ignore[call-arg, union-attr]
    held = holders(crowded)
    assert len(held) == len(set(held)) == 64
    assert contacts[149] in held
    assert sum(contact in held for contact in contacts[100:]) >= 12
