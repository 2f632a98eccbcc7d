"""Which offers are valid, which of two wins, and what the DHT may hold."""

from random import Random

import msgspec
import pytest

from dht import records
from dht.offers import CLOCK_SLACK_MS, LIFETIME_MS, better, open_offer, renewal_delay, renewed, sign_offer, withdraw
from dht.queries import Values
from dht.records import ANY_KEY, model_key, offer_key, open_for_store, open_record
from protocol.wire.codec import encode
from protocol.wire.envelope import seal
from protocol.wire.errors import Code, LocalError, RemoteError

WALL = 1_700_000_000_000
EMPTY = {
    "model": "",
    "config_digest": "",
    "engine": "",
    "engine_version": "",
    "judge_prompt": "",
    "context_tokens": 0,
    "slots": 0,
}


def test_an_offer_survives_the_wire(alice):
    signed = alice.offer()
    assert open_offer(signed.raw, WALL) == signed
    assert open_offer(alice.offer(**EMPTY).raw, WALL).offer.model == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "-flag"},
        {"model": "../etc"},
        {"model": "a/b/c"},
        {"model": "small\n"},
        {"model": "x" * 194},
        {"model": ""},
        {"slots": 0},
        {"slots": 4097},
        {"slots": -1},
        {"context_tokens": 0},
        {"config_digest": ""},
        {"config_digest": "AB" * 32},
        {"config_digest": "ab" * 31},
        {"config_digest": "ab" * 32 + "\n"},
        {"judge_prompt": ""},
        {"judge_prompt": "other"},
        {"engine": ""},
        {"engine": "a\x1b[31m"},
        {"engine_version": "v" * 65},
        {"addresses": ("/ip4/1.2.3.4/tcp/1",) * 17},
        {"addresses": ("/" + "x" * 256,)},
        {"addresses": ("1.2.3.4:80",)},
        {"addresses": ("/ip4/1.2.3.4/tcp/1 /dns/x",)},
        {"addresses": ("/ip4/1.2.3.4/tcp/1\n",)},
        {"epoch": -1},
        {"version": 2**53},
        {"expires": WALL},
        {"expires": WALL - 1},
        {"expires": WALL + LIFETIME_MS + 1},
        {"peer": "12D3KooWnobody"},
    ],
)
def test_an_invalid_offer_is_neither_signed_nor_accepted(alice, changes):
    offer = msgspec.structs.replace(alice.fields(), **changes)
    with pytest.raises(LocalError):
        sign_offer(offer, alice.key)
    with pytest.raises(RemoteError) as refused:
        open_offer(seal("offer", encode(offer), alice.key), WALL)
    assert refused.value.code is Code.MALFORMED


def test_an_offer_of_another_peer_or_domain_is_refused(alice, bob):
    with pytest.raises(RemoteError, match="another peer"):
        open_offer(seal("offer", encode(alice.fields()), bob.key), WALL)
    with pytest.raises(RemoteError) as refused:
        open_offer(seal("claim", encode(alice.fields()), alice.key), WALL)
    assert refused.value.code is Code.BAD_SIGNATURE


def valid(key, raw, wall):
    try:
        open_for_store(key, raw, wall)
    except RemoteError:
        return False
    return True


@pytest.mark.parametrize(
    ("wall", "code"),
    [
        (WALL, None),
        (WALL + LIFETIME_MS - 1, None),
        (WALL + LIFETIME_MS, Code.GONE),
        (WALL + 10 * LIFETIME_MS, Code.GONE),
        (WALL - CLOCK_SLACK_MS, None),
        (WALL - CLOCK_SLACK_MS - 1, Code.REFUSED),
    ],
)
def test_an_offer_is_valid_between_two_times(alice, wall, code):
    raw = alice.offer().raw
    assert valid(offer_key(alice.id), raw, wall) is (code is None)
    if code is not None:
        with pytest.raises(RemoteError) as refused:
            open_offer(raw, wall)
        assert refused.value.code is code


def test_epoch_then_version_decide_and_never_the_clock(alice):
    old = alice.offer(1, 9, issued=WALL + 5_000, expires=WALL + 6_000)
    new = alice.offer(2, 0)
    assert better(old, new) is better(new, old) is new
    newer = alice.offer(2, 1, slots=1)
    assert better(new, newer) is newer
    twins = [alice.offer(2, 1, slots=slots) for slots in (1, 2, 3)]
    assert (
        len({better(better(a, b), c).hash for a in twins for b in twins for c in twins if len({a.hash, b.hash, c.hash}) == 3})
        == 1
    )


def test_a_renewed_offer_wins_and_a_withdrawn_one_stands(alice):
    first = alice.offer()
    second = sign_offer(renewed(first.offer, WALL + 60_000), alice.key)
    last = sign_offer(withdraw(second.offer, WALL + 70_000), alice.key)
    assert (second.offer.version, second.offer.expires) == (1, WALL + 60_000 + LIFETIME_MS)
    assert better(better(first, last), second) is last
    assert last.offer.withdrawn


def test_renewals_are_spread_and_early():
    delays = [renewal_delay(Random(seed)) for seed in range(200)]
    assert min(delays) >= 12 * 60
    assert max(delays) <= 18 * 60
    assert 3 * max(delays) * 1000 < LIFETIME_MS
    assert max(delays) - min(delays) > 5 * 60


def test_only_a_peers_own_offer_stands_under_its_key(alice, bob):
    raw = alice.offer().raw
    assert valid(offer_key(alice.id), raw, WALL)
    assert open_record(offer_key(alice.id), raw, WALL).offer.peer == alice.id
    keys = ["", "/", "/swarmd/offer/", f"/swarmd/offer/{alice.id}/x", f"/other/offer/{alice.id}", alice.id, ANY_KEY]
    for key in [*keys, offer_key(bob.id), offer_key(alice.id) + "\n", model_key("small"), "/swarmd/offer/" + "x" * 4096]:
        assert not valid(key, raw, WALL)
    for value in [b"", raw[:-1], raw + b"\0", b"\x90" * 9000, bytes(8193)]:
        assert not valid(offer_key(alice.id), value, WALL)


def test_of_answers_the_newest_counts_and_never_what_is_not_valid(alice, bob):
    values = Values(offer_key(alice.id), open_for_store)
    offers = [alice.offer(2, version).raw for version in (0, 3, 1)]
    taken = [values.take(raw, WALL) for raw in (b"junk", bob.offer(9).raw, None, *offers, offers[0])]
    assert taken == [False, False, False, True, True, True, True]
    assert (values.best, values.invalid) == (offers[1], 2)


def test_model_keys_are_for_names_alone():
    assert model_key("acme/small") == "/swarmd/model/acme/small"
    with pytest.raises(LocalError):
        model_key("../x")


def test_what_can_be_provided_has_a_key_of_its_own_and_other_words_have_none() -> None:
    keys = [records.ANY_KEY, records.model_key("acme/small"), records.skill_key("embeddings"), records.config_key("ab" * 32)]
    assert keys[2:] == ["/swarmd/skill/embeddings", "/swarmd/config/" + "ab" * 32]
    assert len(set(keys)) == 4
    skill, config = records.skill_key, records.config_key
    for make, word in ((skill, "Not a word"), (skill, ""), (config, "ab"), (config, "AB" * 32)):
        with pytest.raises(LocalError):
            make(word)


def test_a_store_gets_order_expiry_and_issuer_of_an_offer(alice) -> None:
    old, new = alice.offer(1, 5), alice.offer(2, 0)
    opened = [records.open_for_store(records.offer_key(alice.id), signed.raw, WALL) for signed in (old, new)]
    assert opened[0].order < opened[1].order
    assert {(o.expires, o.issuer) for o in opened} == {(WALL + LIFETIME_MS, alice.id)}
    with pytest.raises(RemoteError):
        records.open_for_store(records.offer_key(alice.id), new.raw, WALL + LIFETIME_MS)


def test_people_mean_a_key_by_what_they_say(alice):
    said = {alice.id: offer_key(alice.id), "acme/small": model_key("acme/small"), "ab" * 32: records.config_key("ab" * 32)}
    assert {what: records.key_of(what) for what in said} == said
    assert records.key_of(ANY_KEY) == ANY_KEY
    for what in ("", "two words", "../x", "/swarmd/" + "x" * 200):
        with pytest.raises(RemoteError):
            records.key_of(what)
