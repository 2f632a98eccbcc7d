"""Offers and heartbeats only move forward: no order of arrival, replay or duplicate ever brings an older statement back."""

from functools import partial
from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.directory import Connected, Directory, OfferHeard, PresenceHeard, Tick
from dht.offers import LIFETIME_MS, Offer, SignedOffer, better, rank, sign_offer
from dht.presence import Presence, sign_presence
from dht.queries import Values
from dht.records import offer_key, open_for_store
from protocol.wire.envelope import public_bytes
from protocol.wire.ids import peer_id_of

pytestmark = pytest.mark.slow

LAW = settings(max_examples=60, derandomize=True, deadline=None, database=None)
WALL = 1_700_000_000_000
KEY = Ed25519PrivateKey.from_private_bytes(bytes([3]) * 32)
ME = peer_id_of(public_bytes(KEY))


def offer(epoch: int, version: int, slots: int, withdrawn: bool) -> SignedOffer:
    digest, addresses = "cd" * 32, ("/ip4/10.0.0.1/tcp/1",)
    engine = ("llama.cpp", "b1", "compact", 2048)
    return sign_offer(Offer(ME, epoch, version, "m", digest, *engine, slots, addresses, WALL, WALL + LIFETIME_MS, withdrawn), KEY)


# Two contradicting offers in each place too: a peer that signs both must not make others flap between them.
OFFERS = [offer(e, v, s, w) for e in (1, 2, 3) for v in (0, 1) for s, w in ((1, False), (2, False), (2, True))]
BEATS = {
    (index, beat, full): sign_presence(Presence(ME, o.offer.epoch, beat, o.hash, 0, WALL, o.raw if full else b""), KEY)
    for index, o in enumerate(OFFERS)
    for beat in (0, 1, 2)
    for full in (False, True)
}

events = st.one_of(
    st.sampled_from(OFFERS).map(lambda o: OfferHeard(o.raw, WALL)),
    st.sampled_from(list(BEATS.values())).map(lambda raw: PresenceHeard(ME, raw, WALL)),
    st.just(Connected(ME)),
    st.just(Tick(WALL)),
)


@LAW
@given(program=st.lists(events, max_size=30))
def test_what_a_directory_holds_of_a_peer_never_goes_back(program: list[object]) -> None:
    directory = Directory(peer_id_of(bytes([7]) * 32), 1, partial(sign_presence, key=KEY), Random(0))
    epoch, best = -1, (-1, -1, b"")
    for now, event in enumerate(program):
        directory.handle(event, now / 100)  # type: ignore[arg-type]
        held = directory.offer_of(ME)
        known = next((view.epoch for view in directory.peers(now / 100)), epoch)
        assert known >= epoch
        epoch = known
        if held is not None:
            assert rank(held) >= best
            assert held.offer.epoch >= epoch or not directory.candidates("", now / 100)
            best = rank(held)
    routed = directory.candidates("", len(program) / 100)
    assert all(not candidate.signed.offer.withdrawn for candidate in routed)


@LAW
@given(offers=st.lists(st.sampled_from(OFFERS), min_size=1, max_size=12), shuffle=st.randoms(use_true_random=False))
def test_the_winner_does_not_depend_on_the_order(offers: list[SignedOffer], shuffle: Random) -> None:
    def last(order: list[SignedOffer]) -> SignedOffer:
        held = order[0]
        for other in order[1:]:
            before, held = held, better(held, other)
            assert rank(held) >= rank(before)
        return held

    shuffled = list(offers)
    shuffle.shuffle(shuffled)
    assert last(offers).hash == last(shuffled).hash
    values = Values(offer_key(ME), open_for_store)
    assert all(values.take(o.raw, WALL) for o in shuffled)
    assert values.best == last(offers).raw


@LAW
@given(raw=st.binary(max_size=200), cut=st.integers(0, 400), flip=st.integers(0, 400))
def test_damaged_offers_and_heartbeats_change_nothing(raw: bytes, cut: int, flip: int) -> None:
    directory = Directory(peer_id_of(bytes([7]) * 32), 1, partial(sign_presence, key=KEY), Random(0))
    beat = bytearray(BEATS[0, 0, True])
    beat[flip % len(beat)] ^= 1
    for bad in (raw, bytes(beat), OFFERS[0].raw[: cut % len(OFFERS[0].raw)], OFFERS[0].raw + raw + b"\0"):
        directory.handle(OfferHeard(bad, WALL), 0.0)
        directory.handle(PresenceHeard(ME, bad, WALL), 0.0)
    assert directory.peers(0.0) == ()
    assert directory.offer_of(ME) is None
