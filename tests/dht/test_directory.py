"""Who is routed: heartbeats, silence, failed calls, restarts and leaves, on a simulated clock."""

from functools import partial
from itertools import pairwise
from random import Random

import pytest

from dht.directory import (
    CallFailed,
    CallSucceeded,
    Connected,
    Directory,
    Disconnected,
    FetchOffer,
    Moved,
    OfferHeard,
    OwnLoad,
    OwnOffer,
    PeerGone,
    PeerJoined,
    PeerSuspect,
    PresenceHeard,
    Refused,
    RenewOffer,
    SendPresence,
    Tick,
    WakeAt,
)
from dht.offers import renewed, sign_offer, withdraw
from dht.presence import MAX_PRESENCE_BYTES, Presence, open_presence, sign_presence
from dht.standing import Config, Load, Standing
from protocol.wire.codec import encode
from protocol.wire.envelope import seal
from protocol.wire.errors import Code, RemoteError
from protocol.wire.limits import MAX_GOSSIP_BYTES

WALL = 1_700_000_000_000


@pytest.fixture
def directory(peer):
    """Bob's view of the mesh."""
    me = peer(99)
    return Directory(me.id, 7, partial(sign_presence, key=me.key), Random(1))


def routed(directory, now, model=""):
    return [candidate.peer for candidate in directory.candidates(model, now)]


def standings(directory, now):
    return {view.peer: view.standing for view in directory.peers(now)}


def hear(directory, peer, beat, offer, now, **more):
    return directory.handle(PresenceHeard(peer.id, peer.beat(beat, offer, **more), WALL), now)


def without_wake(effects):
    return [effect for effect in effects if not isinstance(effect, WakeAt)]


def test_one_heartbeat_with_an_offer_makes_a_peer_routable(directory, alice):
    assert hear(directory, alice, 0, alice.offer(), 0.0, busy=1) == [PeerJoined(alice.id)]
    (candidate,) = directory.candidates("acme/small", 1.0)
    assert (candidate.peer, candidate.free, candidate.busy) == (alice.id, 3, 1)
    assert directory.candidates("other", 1.0) == ()
    assert directory.offer_of(alice.id) == alice.offer()


def test_a_heartbeat_without_its_offer_asks_for_it_at_growing_intervals(directory, alice):
    offer = alice.offer()
    assert hear(directory, alice, 0, offer, 0.0, carry=False) == [PeerJoined(alice.id), FetchOffer(alice.id)]
    assert routed(directory, 1.0) == []
    asked = []
    for second in range(1, 200):
        if second % 10 == 0:
            hear(directory, alice, second, offer, float(second), carry=False)
        asked += [second for effect in directory.handle(Tick(WALL), float(second)) if effect == FetchOffer(alice.id)]
    assert asked == [5, 15, 35, 75, 135, 195]
    directory.handle(OfferHeard(offer.raw, WALL), 200.0)
    assert routed(directory, 200.0) == [alice.id]
    newer = alice.offer(version=1)
    assert hear(directory, alice, 300, newer, 201.0, carry=False) == [FetchOffer(alice.id)]
    assert routed(directory, 201.0) == [alice.id], "the older offer serves until the newer one is here"


@pytest.mark.parametrize(
    ("second", "standing"),
    [(0, Standing.ALIVE), (25, Standing.ALIVE), (26, Standing.SUSPECT), (45, Standing.SUSPECT), (46, None)],
)
def test_silence_makes_suspect_and_then_gone(directory, alice, second, standing):
    hear(directory, alice, 0, alice.offer(), 0.0)
    told = [effect for now in range(second + 1) for effect in without_wake(directory.handle(Tick(WALL), float(now)))]
    assert standings(directory, float(second)).get(alice.id) == standing
    assert routed(directory, float(second)) == ([alice.id] if standing is Standing.ALIVE else [])
    expected = [PeerSuspect(alice.id, "silent")] * (second >= 26) + [PeerGone(alice.id, "silent")] * (second >= 46)
    assert told == expected


def test_a_failed_call_takes_a_peer_out_at_once_until_a_new_heartbeat(directory, alice):
    offer = alice.offer()
    hear(directory, alice, 5, offer, 0.0)
    assert directory.handle(CallFailed(alice.id), 1.0) == [PeerSuspect(alice.id, "a call failed")]
    assert routed(directory, 1.0) == []
    assert hear(directory, alice, 5, offer, 2.0) == [], "a replay is no sign of life"
    assert hear(directory, alice, 4, offer, 2.0) == []
    assert routed(directory, 2.0) == []
    assert hear(directory, alice, 6, offer, 3.0) == [PeerJoined(alice.id)]
    assert routed(directory, 3.0) == [alice.id]


def test_a_peer_that_fails_again_and_again_has_to_send_more_heartbeats(directory, alice):
    offer = alice.offer()
    hear(directory, alice, 0, offer, 0.0)
    beat, needed = 0, []
    for _ in range(6):
        directory.handle(CallFailed(alice.id), 0.0)
        before = beat
        while not routed(directory, 0.0):
            beat += 1
            hear(directory, alice, beat, offer, 0.0, carry=False)
        needed.append(beat - before)
    assert needed == [1, 2, 4, 8, 8, 8]
    directory.handle(CallSucceeded(alice.id), 0.0)
    directory.handle(CallFailed(alice.id), 0.0)
    assert hear(directory, alice, beat + 1, offer, 0.0) == [PeerJoined(alice.id)]


def test_a_served_call_and_a_connection_are_signs_of_life(directory, alice):
    hear(directory, alice, 0, alice.offer(), 0.0)
    directory.handle(CallSucceeded(alice.id), 20.0)
    assert routed(directory, 44.0) == [alice.id]
    directory.handle(Connected(alice.id), 44.0)
    assert routed(directory, 69.0) == [alice.id]
    assert routed(directory, 70.0) == [], "an open connection alone is none: a stopped process keeps it"


def test_what_our_own_move_broke_is_held_against_nobody(directory, alice):
    hear(directory, alice, 0, alice.offer(), 0.0)
    directory.handle(CallFailed(alice.id), 5.0)
    assert not routed(directory, 5.0)
    assert PeerJoined(alice.id) in directory.handle(Moved(), 6.0), "the call failed as our old address was gone"
    assert directory.handle(CallFailed(alice.id), 7.0) == []
    assert routed(directory, 7.0) == [alice.id]
    directory.handle(Connected(alice.id), 8.0)
    directory.handle(CallFailed(alice.id), 9.0)
    assert not routed(directory, 9.0), "met in the new network, it answers for itself again"
    directory.handle(Disconnected(alice.id), 9.0)
    directory.handle(Connected(alice.id), 9.5)
    assert routed(directory, 9.5) == [alice.id], "but what we lost has another end, which may break a call until it knows"
    directory.handle(CallFailed(alice.id), 40.0)
    directory.handle(Connected(alice.id), 41.0)
    assert not routed(directory, 41.0), "long after"


def test_whoever_stays_away_after_our_move_answers_for_it(directory, alice):
    hear(directory, alice, 0, alice.offer(), 0.0)
    directory.handle(Moved(), 1.0)
    directory.handle(CallFailed(alice.id), 20.0)
    assert routed(directory, 20.0)
    assert not routed(directory, 25.1), "silence counts, as long as nobody else is heard either"
    hear(directory, alice, 1, alice.offer(), 26.0)
    directory.handle(Moved(), 27.0)
    directory.handle(CallFailed(alice.id), 27.0 + Config().settling)
    assert not routed(directory, 58.0)


def test_the_time_for_which_we_were_deaf_counts_against_nobody(directory, alice, bob):
    hear(directory, alice, 0, alice.offer(), 0.0)
    hear(directory, bob, 0, bob.offer(), 0.0)
    directory.handle(Moved(), 10.0)
    directory.handle(Tick(WALL), 60.0)
    assert not routed(directory, 60.0)
    effects = directory.handle(Connected(bob.id), 61.0)
    assert [effect for effect in effects if isinstance(effect, PeerJoined)] == [PeerJoined(bob.id), PeerJoined(alice.id)]
    assert sorted(routed(directory, 61.0)) == sorted([alice.id, bob.id])
    directory.handle(Tick(WALL), 76.2)
    assert routed(directory, 76.2) == [bob.id], "10 s of silence before the move, and 15 after it"


def test_whoever_is_heard_after_our_move_meets_nobody_for_the_others(directory, alice, bob):
    hear(directory, alice, 0, alice.offer(), 9.9)
    hear(directory, bob, 0, bob.offer(), 9.9)
    directory.handle(Moved(), 10.0)
    directory.handle(Connected(bob.id), 12.0)
    assert directory.handle(CallFailed(alice.id), 13.0) == [], "not met in the new network"
    directory.handle(CallSucceeded(alice.id), 14.0)
    assert directory.handle(CallFailed(alice.id), 15.0) == [PeerSuspect(alice.id, "a call failed")]


def test_a_strangers_word_routes_nobody_and_the_peers_own_does(directory, alice):
    directory.handle(OfferHeard(alice.offer().raw, WALL), 0.0)
    assert (routed(directory, 0.0), standings(directory, 0.0)) == ([], {})
    assert directory.handle(Connected(alice.id), 1.0) == [PeerJoined(alice.id)]
    assert routed(directory, 1.0) == [alice.id]
    directory.handle(Disconnected(alice.id), 2.0)
    assert routed(directory, 2.0) == [alice.id], "idle connections may close"


def test_a_connected_stranger_is_asked_for_its_offer(directory, alice):
    assert directory.handle(Connected(alice.id), 0.0) == [PeerJoined(alice.id), FetchOffer(alice.id)]
    directory.handle(OfferHeard(alice.offer().raw, WALL), 0.5)
    assert routed(directory, 0.5) == [alice.id]


def test_a_restarted_peer_replaces_itself_at_once(directory, alice):
    old, new = alice.offer(epoch=1, version=50), alice.offer(epoch=2, slots=2)
    hear(directory, alice, 900, old, 0.0, busy=4)
    directory.handle(CallFailed(alice.id), 1.0)
    directory.handle(CallFailed(alice.id), 1.0)
    assert hear(directory, alice, 0, new, 2.0) == [PeerJoined(alice.id)]
    (candidate,) = directory.candidates("", 2.0)
    assert (candidate.signed.offer.epoch, candidate.free) == (2, 2)
    assert hear(directory, alice, 901, old, 3.0) == []
    directory.handle(OfferHeard(old.raw, WALL), 3.0)
    assert directory.offer_of(alice.id) == new


def test_a_new_epoch_without_its_offer_drops_the_old_one(directory, alice):
    hear(directory, alice, 3, alice.offer(epoch=1), 0.0)
    assert hear(directory, alice, 0, alice.offer(epoch=2), 1.0, carry=False) == [FetchOffer(alice.id)]
    directory.handle(OfferHeard(alice.offer(epoch=1, version=9).raw, WALL), 1.0)
    assert directory.offer_of(alice.id) is None
    assert routed(directory, 1.0) == []


def test_a_signed_leave_removes_at_once_and_nothing_old_brings_it_back(directory, alice):
    offer = alice.offer()
    leave = sign_offer(withdraw(offer.offer, WALL + 1_000), alice.key)
    hear(directory, alice, 0, offer, 0.0)
    directory.handle(Connected(alice.id), 0.0)
    assert hear(directory, alice, 2, leave, 1.0) == [PeerGone(alice.id, "left")]
    assert routed(directory, 1.0) == []
    for event in (
        PresenceHeard(alice.id, alice.beat(1, offer), WALL),
        PresenceHeard(alice.id, alice.beat(3, offer), WALL),
        OfferHeard(offer.raw, WALL),
        Connected(alice.id),
        CallSucceeded(alice.id),
        Tick(WALL),
    ):
        assert without_wake(directory.handle(event, 2.0)) == []
        assert routed(directory, 2.0) == []
    assert hear(directory, alice, 0, alice.offer(epoch=2), 3.0) == [PeerJoined(alice.id)]


def test_a_leave_by_record_counts_too(directory, alice):
    hear(directory, alice, 0, alice.offer(), 0.0)
    leave = sign_offer(withdraw(alice.fields(), WALL), alice.key)
    assert directory.handle(OfferHeard(leave.raw, WALL), 1.0) == [PeerGone(alice.id, "left")]


def test_an_offer_stops_counting_when_it_expires(directory, alice):
    offer = alice.offer(expires=WALL + 20_000)
    hear(directory, alice, 0, offer, 100.0)
    assert routed(directory, 119.0) == [alice.id]
    assert routed(directory, 120.0) == []
    assert standings(directory, 120.0) == {alice.id: Standing.ALIVE}
    assert directory.handle(OfferHeard(offer.raw, WALL + 20_000), 120.0) == [], "an expired offer is nobody's fault"


def test_a_peer_without_a_model_is_there_and_not_routed(directory, alice):
    empty = {
        "model": "",
        "config_digest": "",
        "engine": "",
        "engine_version": "",
        "judge_prompt": "",
        "context_tokens": 0,
        "slots": 0,
    }
    hear(directory, alice, 0, alice.offer(**empty), 0.0)
    assert routed(directory, 0.0) == []
    assert standings(directory, 0.0) == {alice.id: Standing.ALIVE}


@pytest.mark.parametrize(
    "case", ["other author", "other signer", "garbage", "other offer", "stolen offer", "old clock", "new clock"]
)
def test_a_false_heartbeat_costs_its_author_and_changes_nothing(directory, alice, bob, case):
    offer = alice.offer()
    author, wall = alice, WALL
    raw = alice.beat(0, offer)
    honest = Presence(alice.id, 1, 0, offer.hash, 0, WALL)
    if case == "other author":
        author = bob
    elif case == "other signer":
        raw = seal("presence", encode(honest), bob.key)
    elif case == "garbage":
        raw = b"\x90" * MAX_PRESENCE_BYTES
    elif case == "other offer":
        raw = sign_presence(Presence(alice.id, 1, 0, offer.hash, 0, WALL, alice.offer(version=1).raw), alice.key)
    elif case == "stolen offer":
        stolen = bob.offer()
        raw = sign_presence(Presence(alice.id, 1, 0, stolen.hash, 0, WALL, stolen.raw), alice.key)
    else:
        wall = WALL + (300_001 if case == "old clock" else -300_001)
    (refused,) = directory.handle(PresenceHeard(author.id, raw, wall), 0.0)
    assert isinstance(refused, Refused)
    assert refused.peer == author.id
    assert (refused.error.code is Code.REFUSED) == case.endswith("clock")
    assert directory.peers(0.0) == ()


def test_a_bad_offer_is_refused(directory, alice):
    (refused,) = directory.handle(OfferHeard(b"\x90", WALL), 0.0)
    assert refused.error.code is Code.MALFORMED


def test_replays_after_a_peer_is_forgotten_are_stopped_by_the_clock(directory, alice):
    raw = alice.beat(5, alice.offer())
    directory.handle(PresenceHeard(alice.id, raw, WALL), 0.0)
    for second in range(301):
        directory.handle(Tick(WALL), float(second))
        if second in (60, 200, 300):
            directory.handle(PresenceHeard(alice.id, raw, WALL + second * 1_000), float(second))
            assert routed(directory, float(second)) == []
    assert isinstance(directory.handle(PresenceHeard(alice.id, raw, WALL + 301_000), 301.0)[0], Refused)


def test_gone_peers_are_forgotten_once_nothing_of_them_could_return(directory, alice):
    hear(directory, alice, 0, alice.offer(), 0.0)
    directory.handle(Tick(WALL), 3_600.0)
    assert directory.offer_of(alice.id) is not None
    directory.handle(Tick(WALL), 3_601.0)
    assert directory.offer_of(alice.id) is None


def test_a_full_directory_forgets_the_absent_and_refuses_newcomers(peer):
    me = peer(99)
    directory = Directory(me.id, 1, partial(sign_presence, key=me.key), Random(1), Config(peers=3))
    for number in (1, 2, 3):
        hear(directory, peer(number), 0, peer(number).offer(), float(number))
    assert hear(directory, peer(4), 0, peer(4).offer(), 4.0) == []
    assert (directory.refused_full, len(routed(directory, 4.0))) == (1, 3)
    hear(directory, peer(2), 1, peer(2).offer(), 40.0)
    hear(directory, peer(3), 1, peer(3).offer(), 40.0)
    assert hear(directory, peer(4), 0, peer(4).offer(), 50.0) == [PeerJoined(peer(4).id)]
    assert set(routed(directory, 50.0)) == {peer(number).id for number in (2, 3, 4)}


def test_own_gossip_and_unknown_peers_change_nothing(directory, peer, alice):
    me = peer(99)
    assert directory.handle(PresenceHeard(me.id, me.beat(0, me.offer()), WALL), 0.0) == []
    assert directory.handle(Connected(me.id), 0.0) == []
    for event in (CallFailed(alice.id), CallSucceeded(alice.id), Disconnected(alice.id)):
        assert directory.handle(event, 0.0) == []
    assert directory.peers(0.0) == ()


def run(directory, start, stop, wall=WALL):
    """Serve WakeAt from `start` to `stop`; the heartbeats sent, with their times."""
    sent, now = [], start
    while now < stop:
        effects = directory.handle(Tick(wall + int(now * 1000)), now)
        sent += [(now, opened(directory, effect, now)) for effect in effects if isinstance(effect, SendPresence)]
        (wake,) = [effect.time for effect in effects if isinstance(effect, WakeAt)]
        assert now < wake <= now + 1.0
        now = wake
    return sent


def opened(directory, effect, now):
    return open_presence(directory.me, effect.payload, WALL + int(now * 1000))


def test_the_heart_beats_every_ten_seconds_with_jitter_and_carries_the_offer_sometimes(directory, peer):
    me = peer(99)
    assert run(directory, 0.0, 30.0) == [], "nothing to say before there is an offer"
    offer = me.offer(epoch=7)
    first, wake = directory.handle(OwnOffer(offer, WALL), 30.0)
    assert isinstance(wake, WakeAt)
    directory.handle(OwnLoad(Load(3, 1, 40, 90, 1500)), 30.0)
    sent = run(directory, 30.0, 630.0)
    beats = [opened(directory, first, 30.0), *(presence for _, presence in sent)]
    gaps = [b - a for (a, _), (b, _) in pairwise(sent)]
    assert 8.0 <= min(gaps) < 9 < 11 < max(gaps) <= 12.0
    assert [presence.beat for presence in beats] == list(range(len(beats)))
    assert [presence.busy for presence in beats][:3] == [0, 3, 3]
    told = [(one.waiting, one.first_token_ms, one.first_token_p95_ms, one.slot_ms) for one in beats]
    assert told[:2] == [(0, 0, 0, 0), (1, 40, 90, 1500)]
    assert [bool(presence.offer) for presence in beats][:14] == [i in (0, 1, 2, 6, 12) for i in range(14)]
    assert max(len(encode(presence)) for presence in beats) < MAX_GOSSIP_BYTES


def test_a_newcomer_makes_the_next_heartbeat_carry_the_offer(directory, peer, alice):
    directory.handle(OwnOffer(peer(99).offer(epoch=7), WALL), 0.0)
    assert [bool(p.offer) for _, p in run(directory, 0.0, 45.0)] == [True, True, False, False]
    hear(directory, alice, 0, alice.offer(), 45.0)
    assert run(directory, 45.0, 60.0)[0][1].offer


def test_the_offer_is_renewed_in_time_and_again_if_that_fails(directory, peer):
    me = peer(99)
    offer = me.offer(epoch=7)
    directory.handle(OwnOffer(offer, WALL), 0.0)
    asked, now = [], 0.0
    while now < 1_300:
        effects = directory.handle(Tick(WALL), now)
        asked += [now for effect in effects if isinstance(effect, RenewOffer)]
        now = next(effect.time for effect in effects if isinstance(effect, WakeAt))
    assert 720 <= asked[0] <= 1_080
    assert asked[1] - asked[0] == pytest.approx(60, abs=1.5)
    directory.handle(OwnOffer(sign_offer(renewed(offer.offer, WALL), me.key), WALL), 1_300.0)
    assert not [effect for effect in directory.handle(Tick(WALL), 1_400.0) if isinstance(effect, RenewOffer)]


def test_our_leave_is_said_once_and_then_we_are_silent(directory, peer):
    me = peer(99)
    offer = me.offer(epoch=7)
    directory.handle(OwnOffer(offer, WALL), 0.0)
    leave = sign_offer(withdraw(offer.offer, WALL), me.key)
    said = opened(directory, directory.handle(OwnOffer(leave, WALL), 1.0)[0], 1.0)
    assert said.offer == leave.raw
    assert run(directory, 1.0, 100.0) == []


def test_two_directories_find_each_other_and_notice_a_death_within_a_minute(peer):
    peers = [peer(1), peer(2)]
    two = [Directory(p.id, 1, partial(sign_presence, key=p.key), Random(i)) for i, p in enumerate(peers)]
    wakes = [0.0, 0.0]
    log = []
    for one, p in zip(two, peers, strict=True):
        one.handle(OwnOffer(p.offer(), WALL), 0.0)  # gossip was not up yet: the first heartbeat is lost
    now = 0.0
    while now < 200.0:
        i = wakes.index(min(wakes))
        now = wakes[i]
        if i == 1 and now > 100.0:
            wakes[1] = float("inf")  # the second one dies
            continue
        for effect in two[i].handle(Tick(WALL + int(now * 1000)), now):
            if isinstance(effect, WakeAt):
                wakes[i] = effect.time
            elif isinstance(effect, SendPresence):
                heard = two[1 - i].handle(PresenceHeard(peers[i].id, effect.payload, WALL + int(now * 1000)), now)
                log += [(now, 1 - i, e) for e in heard]
            else:
                log.append((now, i, effect))
    assert [(i, type(e)) for _, i, e in log if not isinstance(e, FetchOffer)] == [
        (log[0][1], PeerJoined),
        (1 - log[0][1], PeerJoined),
        (0, PeerSuspect),
        (0, PeerGone),
    ]
    joined, suspect, gone = log[1][0], log[-2][0], log[-1][0]
    assert joined <= 12.0
    assert suspect <= 100.0 + 26.0
    assert gone < 100.0 + 60.0


def test_presence_without_its_author_is_not_opened(alice, bob):
    with pytest.raises(RemoteError):
        open_presence(bob.id, alice.beat(0, alice.offer()), WALL)
