"""What a node keeps for others: records and providers, their shares, what gives way, what never does."""

from random import Random

import pytest

from dht.contacts import Contact, contact_of
from dht.keyspace import place_of
from dht.provider_store import ProviderLimits, ProviderStore
from dht.record_store import Opened, RecordLimits, RecordStore
from protocol.wire.errors import Code, RemoteError, malformed
from protocol.wire.ids import peer_id_of

RNG = Random(5)
WALL = 1_700_000_000_000
HOUR = 3_600_000


def stranger(ip: str = "") -> Contact:
    return contact_of(peer_id_of(RNG.randbytes(32)), (f"/ip4/{ip}/tcp/1",) if ip else ())


def opened(key: str, value: bytes, wall: int) -> Opened:
    """`version:lifetime in hours`, anything else is no record."""
    if not key.startswith("/swarmd/"):
        raise malformed("no key")
    version, _, hours = value.decode().partition(":")
    if not version.isdigit():
        raise malformed("no version")
    expires = WALL + int(hours or 1) * HOUR
    if expires <= wall:
        raise RemoteError(Code.GONE, "expired")
    return Opened((int(version), 0, value), expires)


def refusal(call: object, *arguments: object) -> Code:
    with pytest.raises(RemoteError) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.code


def test_the_better_record_stands_until_it_expires() -> None:
    store = RecordStore(0, opened)
    a, b = stranger(), stranger()
    store.put(b"/swarmd/a", b"2", a, WALL)
    assert refusal(store.put, b"/swarmd/a", b"1", b, WALL) is Code.REFUSED
    store.put(b"/swarmd/a", b"2", b, WALL)
    assert store.get(b"/swarmd/a", WALL) == b"2"
    assert store.get(b"/swarmd/a", WALL + HOUR) is None, "what is past its time is not served"
    assert refusal(store.put, b"/swarmd/a", b"1:9", b, WALL + HOUR) is Code.REFUSED, "an older one never comes back"
    assert store.expire(WALL + HOUR) == 1
    assert refusal(store.put, b"/swarmd/a", b"1:9", b, WALL + HOUR) is Code.REFUSED, "not after it was swept either"
    store.put(b"/swarmd/a", b"3:3", b, WALL + HOUR)
    assert store.expire(WALL + 2 * HOUR) == 0
    assert store.expire(WALL + 3 * HOUR) == 1
    assert store.expire(WALL + 9 * HOUR) == 0
    assert not store._floors
    assert len(store) == store.size == 0
    assert store._order == []
    assert not store._shares


def test_a_flood_meets_its_shares_before_any_signature_is_checked() -> None:
    checked = []
    store = RecordStore(0, lambda k, v, w: (checked.append(k), opened(k, v, w))[1])
    flooders = [stranger("8.8.8.8"), stranger("8.8.8.9")]
    outcomes = {refused(store, number, flooders[number % 2]) for number in range(200)}
    assert outcomes == {None, Code.OVERLOADED}
    assert len(store) == len(checked) == 64
    store.put(b"/swarmd/0", b"2", flooders[0], WALL)
    assert store.get(b"/swarmd/0", WALL) == b"2", "who has its share may still renew it"
    honest = [stranger(f"9.{n}.1.1") for n in range(20)]
    for number, sender in enumerate(honest):
        store.put(b"/swarmd/honest/%d" % number, b"1", sender, WALL)


def test_one_network_has_a_share_of_its_own() -> None:
    store = RecordStore(0, opened, RecordLimits(per_narrow=5, per_wide=8))
    same = [refused(store, n, stranger("8.8.8.8")) for n in range(7)]
    near = [refused(store, 10 + n, stranger(f"8.8.{n}.8")) for n in range(10)]
    assert (same.count(None), near.count(None)) == (5, 3)
    assert refused(store, 50, stranger("8.9.1.1")) is None


def refused(store: RecordStore, number: int, sender: Contact) -> Code | None:
    try:
        store.put(b"/swarmd/%d" % number, b"1", sender, WALL)
    except RemoteError as error:
        return error.code
    return None


def test_when_it_is_full_the_farthest_gives_way_and_never_ours_or_a_close_one() -> None:
    store = RecordStore(0, opened, RecordLimits(records=8))
    store.put_own("/swarmd/own", b"1", WALL)
    names = sorted((b"/swarmd/%d" % n for n in range(400)), key=place_of)
    for name in reversed(names):
        store.put(name, b"1", stranger(), WALL)
    assert set(store.names()) == {b"/swarmd/own", *names[:7]}
    assert refusal(store.put, names[50], b"1", stranger(), WALL) is Code.OVERLOADED
    store.close_bits = 256 - place_of(names[6]).bit_length()
    closer = next(n for n in (b"/swarmd/x%d" % i for i in range(200_000)) if place_of(n) < place_of(names[0]))
    assert refusal(store.put, closer, b"1", stranger(), WALL) is Code.OVERLOADED, "all that are held are ours to hold"
    store.put_own("/swarmd/own2", b"1", WALL)
    assert len(store) == 8


def test_bytes_are_bounded_too() -> None:
    limits = RecordLimits(total_bytes=40_000)
    store = RecordStore(0, lambda k, v, w: Opened((len(v), 0, v), w + HOUR), limits)
    for number in range(100):
        try:
            store.put(b"/swarmd/%d" % number, bytes(8192), stranger(), WALL)
        except RemoteError:
            assert store.size > 30_000
        assert store.size <= limits.total_bytes
    assert refusal(store.put, b"/swarmd/z", bytes(8193), stranger(), WALL) is Code.OVERSIZED


@pytest.mark.parametrize("name", [b"", b"plain", b"\xff\xfe", b"/swarmd/" + bytes(200)])
def test_a_name_that_is_none_is_refused(name: bytes) -> None:
    assert refusal(RecordStore(0, opened).put, name, b"1", stranger(), WALL) is Code.MALFORMED


def test_ours_is_not_replaced_by_a_stranger() -> None:
    store = RecordStore(0, opened)
    store.put_own("/swarmd/own", b"1", WALL)
    assert refusal(store.put, b"/swarmd/own", b"9", stranger(), WALL) is Code.REFUSED
    assert store.own() == (b"/swarmd/own",)


def test_a_squatter_holds_no_list() -> None:
    store = ProviderStore(0, Random(1))
    for number in range(40):
        store.add(b"m", stranger(f"8.8.{number % 4}.{number}"), 0.0)
    assert len(store.get(b"m", 0.0)) == 6, "one /16 has six places, two of each /24"
    rented = [stranger(f"{11 + n}.1.1.1") for n in range(200)]
    for contact in rented:
        assert store.add(b"m", contact, 0.0)
    honest = stranger("99.1.1.1")
    assert store.add(b"m", honest, 1.0), "a full list is no closed one"
    assert honest in store.get(b"m", 1.0)
    assert len(store) == 40
    some = ProviderStore(0, Random(1), ProviderLimits(named=20))
    for contact in (*rented[:39], honest):
        some.add(b"m", contact, 0.0)
    named = sum(honest in some.get(b"m", 1.0) for _ in range(100))
    assert 25 < named < 75, "where not all are named, they are drawn anew"


def test_providers_are_forgotten_in_time_and_give_their_places_back() -> None:
    store = ProviderStore(0, Random(1), ProviderLimits(per_peer=3))
    contact = stranger("8.8.8.8")
    assert [store.add(b"%d" % n, contact, float(n)) for n in range(4)] == [True, True, True, False]
    assert store.add(b"0", contact, 50.0), "saying it again is no new place"
    assert store.expire(3601.5) == 1
    assert store.add(b"9", contact, 3602.0)
    assert store.get(b"0", 3640.0) == (contact,)
    assert store.expire(10_000.0) == 3
    assert len(store) == 0
    assert store.names() == ()
    assert not store._held
    assert not store.add(bytes(81), contact, 0.0)
    assert not store.add(b"", contact, 0.0)


def test_a_full_store_keeps_the_nearest_names() -> None:
    store = ProviderStore(0, Random(1), ProviderLimits(names=10))
    names = sorted((b"%d" % n for n in range(100)), key=place_of)
    for name in RNG.sample(names, 100):
        store.add(name, stranger(), 0.0)
    assert set(store.names()) == set(names[:10])
