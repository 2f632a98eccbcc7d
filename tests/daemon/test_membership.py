"""Who is in the mesh, as its peers see it: joining, dying, returning, leaving, and a model that comes and goes."""

import msgspec
import pytest
import trio
import trio.lowlevel
import trio.testing

from daemon.config import LimitsConfig
from daemon.engine.interface import EngineState
from daemon.membership import MAX_JOINING, OFFER_METHOD
from daemon.peer_exchange import ANSWER_SECONDS, PeerOffers
from daemon.peer_exchange import METHOD as PEERS_METHOD
from dht import records
from dht.offers import Offer, open_any_offer, sign_offer
from dht.presence import MAX_BUSY, TOPIC, Presence, sign_presence
from dht.standing import Standing
from protocol.wire.codec import decode, encode
from protocol.wire.errors import Code
from protocol.wire.ids import Hash, peer_id_of
from tests.daemon.conftest import FakeEngine, Heard, Peer, Swarm, ask, failure, full, model, unix_ms, until
from tests.sim.memory_transport import memory_key

Clock = trio.testing.MockClock


def sees(peer: Peer, *others: Peer) -> bool:
    return {view.peer for view in peer.membership.peers()} == {other.id for other in others}


def routes_to(peer: Peer) -> set[str]:
    return {candidate.peer for candidate in peer.membership.candidates("")}


async def everyone_knows(peers: list[Peer]) -> None:
    ids = {peer.id for peer in peers}
    await until(lambda: all(routes_to(peer) == ids for peer in peers), 30)


async def test_peers_joined_through_one_know_and_reach_each_other(swarm: Swarm, autojump_clock: Clock) -> None:
    peers = await swarm(6, connected=False)
    for other in peers[1:]:
        await other.transport.connect(peers[0].id)
    await everyone_knows(peers)
    await until(lambda: all(len(peer.transport.paths()) == 5 for peer in peers), 30)
    assert {row["name"] for row in peers[3].membership.models()} == {f"tiny-{number}" for number in range(6)}
    assert peers[5].membership.committee()[0].peer_id == peers[5].id
    assert len(peers[5].membership.committee()) == 6


async def test_peers_tell_of_each_other_before_gossip_does(swarm: Swarm, autojump_clock: Clock) -> None:
    """A newcomer asks the peer that it met first; a signed offer is all that passes."""
    first, *others = await swarm(4, connected=False)
    for other in others:
        await other.transport.connect(first.id)
    await until(lambda: len(first.transport.paths()) == 3)
    await until(lambda: all(len(peer.transport.paths()) == 3 for peer in others), 3)


async def test_a_peer_is_answered_now_and_then_and_lies_are_counted(
    swarm: Swarm, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = await swarm(2)
    await until(lambda: bob.id in routes_to(alice), 30)
    await trio.sleep(ANSWER_SECONDS)
    raw = await alice.calls.unary(bob.id, PEERS_METHOD, b"", timeout=5)
    assert [open_any_offer(offer).offer.peer for offer in decode(PeerOffers, raw).offers] == [bob.id]
    assert (await failure(alice.calls.unary(bob.id, PEERS_METHOD, b"", timeout=5))).code is Code.OVERLOADED

    async def lie(*_arguments: object, **_options: object) -> bytes:
        return encode(PeerOffers((b"no offer at all", raw)))

    monkeypatch.setattr(bob.calls, "unary", lie)
    assert await bob.membership._exchange.ask(alice.id) == 0
    assert bob.membership.counters()["exchange_bad"] == 2


async def test_a_peer_found_in_the_dht_alone_is_joined(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob, carol = await swarm(3, connected=False)
    swarm.mesh.join(bob.transport, carol.transport)
    await until(lambda: bob.id in swarm.mesh.providers.get(records.ANY_KEY, ()), 30)
    swarm.mesh.part(bob.id, carol.id)
    swarm.mesh.cut(alice.id, bob.id)
    swarm.mesh.join(alice.transport, carol.transport)
    swarm.mesh.cut(bob.id, carol.id)
    swarm.mesh.heal(alice.id, bob.id)
    await until(lambda: bob.id in routes_to(alice), 90)


async def test_what_is_served_no_more_is_taken_back_from_the_dht(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = await swarm(2)

    def named(peer: Peer) -> set[str]:
        return {key for key, peers in swarm.mesh.providers.items() if peer.id in peers}

    assert alice.engine is not None
    for name in ("one", "two"):
        alice.engine.model = model(name)
        keys = {records.ANY_KEY, records.model_key(name), records.config_key(alice.engine.model.config_digest)}
        await until(lambda keys=keys: named(alice) == keys, 30)  # type: ignore[misc]
    alice.engine.state = EngineState.FAILED
    await until(lambda: not named(alice), 30)
    assert records.ANY_KEY in named(bob)


async def test_squatted_provider_names_delay_nobody(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = await swarm(2, connected=False)
    for transport in swarm.mesh(12):
        swarm.mesh.providers.setdefault(records.ANY_KEY, set()).add(transport.peer_id)
        swarm.mesh.freeze(transport.peer_id)
    swarm.mesh.join(alice.transport, bob.transport)
    await until(lambda: bob.id in routes_to(alice), 2)
    assert routes_to(alice) == {alice.id, bob.id}


async def test_a_killed_peer_is_not_asked_twice_and_is_forgotten_within_a_minute(swarm: Swarm, autojump_clock: Clock) -> None:
    peers = await swarm(3)
    await everyone_knows(peers)
    alice, bob, carol = peers
    assert alice.engine is not None
    killed_at = trio.current_time()
    bob.kill()
    assert bob.id in routes_to(alice)
    started = trio.current_time()
    assert (await failure(alice.asking.route(ask(peer=bob.id), Heard().emit))).code is Code.GONE
    assert trio.current_time() - started <= 5
    assert routes_to(alice) == {alice.id, carol.id}
    await until(lambda: bob.id not in routes_to(carol) and sees(carol, alice) and sees(alice, carol), 60)
    assert trio.current_time() - killed_at <= 60


async def test_a_restarted_peer_replaces_itself_at_once(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob, carol = peers = await swarm(3)
    await everyone_knows(peers)
    bob.kill()
    await failure(alice.asking.route(ask(peer=bob.id), Heard().emit))
    again = await swarm.start(swarm.mesh.restart(bob.id), epoch=2)
    await again.transport.connect(carol.id)
    await until(lambda: again.id in routes_to(alice), 5)
    assert {view.epoch for view in alice.membership.peers() if view.peer == bob.id} == {2}
    heard = Heard()
    await alice.asking.route(ask(peer=again.id), heard.emit)
    assert heard.result.peer_id == bob.id


async def test_a_signed_leave_removes_at_once_and_for_good(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob, carol = peers = await swarm(3)
    await everyone_knows(peers)
    await bob.membership.leave()
    await until(lambda: bob.id not in routes_to(alice) | routes_to(carol), 1)
    assert bob.engine is not None
    bob.engine.state = EngineState.STOPPED  # as when the engine ends before the process does
    await trio.sleep(70)
    assert bob.id not in routes_to(alice) | routes_to(carol)
    raw = await alice.calls.unary(bob.id, OFFER_METHOD, b"", timeout=5)
    assert open_any_offer(raw).offer.withdrawn


async def test_a_model_is_offered_only_while_its_engine_answers(swarm: Swarm, autojump_clock: Clock) -> None:
    transports = swarm.mesh(2, connected=True)
    alice = await swarm.start(transports[0], no_engine=True)
    bob = await swarm.start(transports[1], FakeEngine(state=EngineState.STARTING, reason="it warms up"))
    await until(lambda: sees(alice, bob), 5)
    await trio.sleep(15)
    assert routes_to(alice) == set()
    assert alice.membership.models() == []
    assert bob.engine is not None
    bob.engine.state = EngineState.READY
    await until(lambda: routes_to(alice) == {bob.id}, 1)
    bob.engine.state = EngineState.RESTARTING
    await until(lambda: routes_to(alice) == set(), 1)
    assert {view.standing for view in alice.membership.peers()} == {Standing.ALIVE}, "the peer is there; its model is not"


async def test_load_is_told_and_never_more_than_a_heartbeat_can_say(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = peers = await swarm(2, limits=LimitsConfig(queue=10_000))
    await everyone_knows(peers)
    with full(bob, MAX_BUSY + 1):
        await until(lambda: any(c.busy == MAX_BUSY for c in alice.membership.candidates("")), 15)
    assert alice.membership.counters() == {}


async def test_a_connection_that_broke_is_made_again(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = peers = await swarm(2)
    await everyone_knows(peers)
    await trio.sleep(10)
    swarm.mesh.part(alice.id, bob.id)
    await until(lambda: bob.id in alice.transport.paths(), 3)
    assert await alice.membership.reach(bob.id)
    swarm.mesh.cut(alice.id, bob.id)
    assert not await alice.membership.reach(bob.id)


async def test_a_peer_that_keeps_hanging_up_is_dialled_once_a_minute(
    swarm: Swarm, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    alice, bob = peers = await swarm(2)
    await everyone_knows(peers)
    bob.scope.cancel()  # only its transport lives on
    taken = 0

    def hang_up(peer: str, connected: bool) -> None:
        nonlocal taken
        if connected:
            taken += 1
            nursery.start_soon(bob.transport.disconnect, alice.id)

    bob.transport.listen_to_peers(hang_up)
    await trio.sleep(12)
    swarm.mesh.part(alice.id, bob.id)
    await trio.sleep(25)
    assert taken <= 2


async def test_forged_presence_is_refused_counted_and_not_passed_on(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob, carol = peers = await swarm(3)
    await everyone_knows(peers)
    stranger = memory_key(99)
    lies = [
        b"",
        b"\xc1" * 50,
        sign_presence(Presence(alice.id, 9, 9, Hash(bytes(32)), 0, unix_ms()), stranger),
        sign_presence(Presence(bob.id, 9, 9, Hash(bytes(32)), 0, unix_ms() - 10**6), bob.transport.key),
    ]
    for lie in lies:
        await bob.transport.publish(TOPIC, lie)
    await trio.sleep(1)
    assert sum(alice.membership.refused.values()) == len(lies)
    assert alice.membership.counters()["presence_refused"] == 1
    assert routes_to(alice) == {alice.id, bob.id, carol.id}


async def test_an_offer_of_somebody_else_in_the_dht_is_not_believed(swarm: Swarm, autojump_clock: Clock) -> None:
    (alice,) = await swarm(1)
    stranger = memory_key(77)
    (transport,) = swarm.mesh(1)
    offer = msgspec.structs.replace(await _offer(alice), peer=transport.peer_id)
    with pytest.raises(Exception, match="invalid offer"):
        sign_offer(offer, stranger)
    swarm.mesh.records[records.offer_key(transport.peer_id)] = await _raw(alice)
    await alice.membership._fetch(transport.peer_id)
    assert routes_to(alice) == {alice.id}


async def _raw(peer: Peer) -> bytes:
    assert peer.membership._own.signed is not None
    return peer.membership._own.signed.raw


async def _offer(peer: Peer) -> Offer:
    return open_any_offer(await _raw(peer)).offer


async def test_only_peers_that_were_reached_go_into_the_cache(swarm: Swarm, autojump_clock: Clock) -> None:
    peers = await swarm(2)
    await everyone_knows(peers)
    alice, bob = peers
    await until(lambda: bool(alice.membership._bootstrap._cache.entries), 5)
    assert {entry.peer for entry in alice.membership._bootstrap._cache.entries} == {bob.id}
    carol = (await swarm(1, connected=False))[0]
    swarm.mesh.cut(alice.id, carol.id)
    await carol.transport.connect(bob.id)
    await until(lambda: carol.id in routes_to(alice), 30)
    await trio.sleep(5)
    assert {entry.peer for entry in alice.membership._bootstrap._cache.entries} == {bob.id}


async def test_any_number_of_announced_peers_is_dialled_a_bounded_number_at_a_time(swarm: Swarm, autojump_clock: Clock) -> None:
    (alice,) = await swarm(1)
    before, most = len(alice.membership._nursery.child_tasks), 0
    for number in range(600):
        alice.membership.learn(peer_id_of(number.to_bytes(32, "big")), ("/ip4/10.0.0.1/tcp/1",))
        await trio.lowlevel.checkpoint()
        most = max(most, len(alice.membership._nursery.child_tasks) - before)
    assert 100 < most <= MAX_JOINING + 1
    await until(lambda: not alice.membership._joining, 600)
