"""What peers claim of each other reaches every peer, whatever was cut or lost; and lies cost who tells them."""

import pytest
import trio
import trio.testing

from crdt_store import sync_messages
from crdt_store.claims import NO_HASH, Claim, Kind, sign_claim
from crdt_store.forks import ForkProof, proof_hash
from crdt_store.heads import IssuerHeads, LogHead
from crdt_store.own_log import Statement
from crdt_store.sync import MAX_FAULTS
from crdt_store.sync_messages import HEADS_METHOD, RANGE_METHOD, TOPIC, Announcement, HeadsRequest, Range, RangeRequest
from daemon.calls import InboundCall
from daemon.claim_sync import MAX_SERVED
from daemon.reputation import FORKS_AN_HOUR
from protocol.wire.codec import encode
from protocol.wire.errors import Code
from protocol.wire.ids import Hash
from tests.daemon.conftest import Peer, Swarm, failure, until

Clock = trio.testing.MockClock


def digests(*peers: Peer) -> set[bytes]:
    return {bytes(peer.store.replica.digest()) for peer in peers}


def say(peer: Peer, subject: Peer, count: int = 1) -> None:
    peer.reputation.record([Statement(subject.id, Kind.CALL_SERVED, value=number) for number in range(count)])


async def test_claims_reach_everybody_soon(swarm: Swarm, autojump_clock: Clock) -> None:
    peers = await swarm(4)
    say(peers[0], peers[1], 3)
    say(peers[1], peers[0], 2)
    await until(lambda: len(digests(*peers)) == 1 and len(peers[3].store.replica) == 5, 3)
    view = peers[3].reputation.view(None)
    assert (view["claims"], view["issuers"], view["forks"]) == (5, 2, [])
    assert {row["kind"] for row in view["claims_list"]} == {"call_served"}
    about = peers[3].reputation.view(peers[1].id)["claims_list"]
    assert {(row["issuer"], row["subject"], row["value"]) for row in about} == {(peers[0].id, peers[1].id, n) for n in range(3)}


async def test_a_partition_heals_without_gossip(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = await swarm(2)
    say(alice, bob, 5)
    await until(lambda: len(digests(alice, bob)) == 1)
    swarm.mesh.cut(alice.id, bob.id)
    say(alice, bob, 150)
    say(bob, alice, 70)
    await trio.sleep(5)
    assert len(digests(alice, bob)) == 2
    swarm.mesh.heal(alice.id, bob.id)
    await alice.transport.connect(bob.id)
    await until(lambda: len(digests(alice, bob)) == 1, 60)
    assert len(alice.store.replica) == 225
    assert sum(alice.reputation.faults.values()) == sum(bob.reputation.faults.values()) == 0


async def test_a_newcomer_gets_everything_from_one_neighbour(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = await swarm(2)
    say(alice, bob, 120)
    say(bob, alice, 30)
    await until(lambda: len(digests(alice, bob)) == 1)
    (carol,) = await swarm(1, connected=False)
    await carol.transport.connect(bob.id)
    await until(lambda: len(digests(alice, bob, carol)) == 1, 5)


async def test_old_claims_are_compacted_in_time_and_nobody_sees_a_difference(
    swarm: Swarm, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.claim_sync._COMPACT_SECONDS", 100.0)
    alice, bob = await swarm(2)
    for came in range(6, 301, 6):  # news, not a run
        say(alice, bob, 6)
        await until(lambda n=came: len(bob.store.replica) == n, 5)  # type: ignore[misc]
    view = bob.reputation.view(bob.id)
    await until(lambda: bob.store.replica.total_bytes < alice.store.replica.total_bytes / 2, 120)
    assert all(len(raw) < 1_000 for raw, _ in alice.store.replica.records(alice.id, alice.store.epoch)), "our own keep theirs"
    assert len(digests(alice, bob)) == 1
    later = bob.reputation.view(bob.id)
    assert sum(row.pop("compacted") for row in later["claims_list"]) == 232
    assert [row.pop("compacted") for row in view["claims_list"]] == [False] * 300
    assert later["claims_list"] == view["claims_list"]
    (carol,) = await swarm(1, connected=False)
    await carol.transport.connect(bob.id)
    await until(lambda: len(digests(alice, bob, carol)) == 1, 60)
    assert sum(sum(peer.reputation.faults.values()) for peer in (alice, bob, carol)) == 0


async def test_others_get_their_turn_between_two_issuers_of_a_pass(
    swarm: Swarm, nursery: trio.Nursery, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.claim_sync._COMPACT_SECONDS", 5.0)
    peers = await swarm(4)
    for peer in peers:
        say(peer, peers[0])
    await until(lambda: len(digests(*peers)) == 1 and len(peers[0].store.replica) == 4, 5)
    looked_at: list[int] = []
    turns = 0

    async def turn() -> None:
        nonlocal turns
        turns += 1

    def compact(issuer: str, most: int) -> int:
        looked_at.append(turns)
        nursery.start_soon(turn)
        return 0

    monkeypatch.setattr(peers[0].store, "compact", compact)
    await until(lambda: len(looked_at) == 4, 20)
    assert all(seen >= number - 1 for number, seen in enumerate(looked_at)), "a task runs before or after another of its round"


async def test_heads_without_claims_cost_their_sender(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, liar, bob = await swarm(3)
    await trio.sleep(1)  # news during an exchange waits for the next one
    for number in range(MAX_FAULTS):
        lie = IssuerHeads(bob.id, (LogHead(epoch=2 * 10**12 + number, length=5, hash=Hash(bytes([number]) * 32)),))
        await liar.transport.publish(TOPIC, encode(Announcement(Hash(bytes(32)), (lie,))))
        await until(lambda n=number: alice.reputation.faults["malformed"] == n + 1, 30)  # type: ignore[misc]
    assert alice.reputation.sync._sync.shunned(liar.id, trio.current_time())
    say(bob, alice)
    await until(lambda: len(digests(alice, bob)) == 1, 3)


async def test_garbage_is_refused_counted_and_does_not_travel(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = await swarm(2)
    for method in (HEADS_METHOD, RANGE_METHOD):
        for body in (b"", b"\xc1", bytes(300_000)):
            error = await failure(_drain(alice, bob, method, body))
            assert error.code in (Code.MALFORMED, Code.OVERSIZED)
    await alice.transport.publish(TOPIC, b"\xc1")
    await trio.sleep(1)
    assert bob.transport.gossip_refused == 1
    assert bob.transport.faults == 0


async def _drain(asker: Peer, server: Peer, method: str, body: bytes) -> list[bytes]:
    async with asker.calls.stream(server.id, method, body, timeout=100) as stream:
        return [item async for item in stream]


async def test_a_peer_that_answers_with_garbage_is_counted(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = await swarm(2, connected=False)

    async def garbage(call: InboundCall) -> bytes:
        return b"\xc1garbage"

    bob.calls._handlers[HEADS_METHOD] = garbage
    await alice.transport.connect(bob.id)
    await until(lambda: alice.reputation.faults["malformed"] == 1, 5)
    assert not alice.reputation.sync._sync.busy(bob.id)
    assert alice.reputation.sync._calling == {}


async def test_the_end_of_an_exchange_cancels_the_call_that_is_open(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = await swarm(2, connected=False)
    sent = 0

    async def endless(call: InboundCall) -> bytes:
        nonlocal sent
        while True:
            await call.send(encode(sync_messages.RangeChunk((b"not a claim",))))
            sent += 1
            await trio.sleep(0.1)

    say(bob, alice, 3)
    bob.calls._handlers[RANGE_METHOD] = endless
    await alice.transport.connect(bob.id)
    await until(lambda: alice.reputation.sync._sync.shunned(bob.id, trio.current_time()), 10)
    await trio.sleep(5)
    assert sent <= MAX_FAULTS + 1
    assert alice.reputation.sync._calling == {}
    assert len(alice.store.replica) == 0


async def test_one_peer_has_a_few_answers_at_once(swarm: Swarm, nursery: trio.Nursery, autojump_clock: Clock) -> None:
    alice, bob, carol = await swarm(3)
    say(bob, alice, 150)
    request = encode(RangeRequest((Range(bob.id, bob.store.epoch, 0, 150),)))
    async with trio.open_nursery() as slow:
        for _ in range(MAX_SERVED):
            await slow.start(_hold, alice, bob, request)
        error = await failure(_drain(alice, bob, RANGE_METHOD, request))
        assert (error.code, error.retry_after) == (Code.OVERLOADED, 1.0)
        assert len(await _drain(carol, bob, RANGE_METHOD, request)) > 1
        slow.cancel_scope.cancel()
    await trio.sleep(1)
    assert len(await _drain(alice, bob, RANGE_METHOD, request)) > 1


async def _hold(asker: Peer, server: Peer, body: bytes, *, task_status: "trio.TaskStatus[None]") -> None:  # type: ignore[name-defined]
    gate = trio.Event()

    async def handler_blocked() -> None:
        with server.reputation.sync._served.hold(asker.id):
            gate.set()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(handler_blocked)
        await gate.wait()
        task_status.started()


async def test_equal_replicas_exchange_one_hash(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = await swarm(2)
    say(alice, bob, 50)
    await until(lambda: len(digests(alice, bob)) == 1)
    body = await alice.calls.unary(bob.id, HEADS_METHOD, encode(HeadsRequest(alice.store.replica.digest())), timeout=5)
    assert len(body) < 60


async def test_a_full_disk_costs_the_claim_and_not_the_daemon(swarm: Swarm, autojump_clock: Clock) -> None:
    from crdt_store.store import StorageError

    alice, bob = await swarm(2)

    def full(entry: object) -> None:
        raise StorageError("the disk is full")

    original = alice.store._storage.append_own
    alice.store._storage.append_own = full  # type: ignore[method-assign]
    say(alice, bob)
    await trio.sleep(0.1)
    assert len(alice.store.replica) == 0
    alice.store._storage.append_own = original  # type: ignore[method-assign]
    say(alice, bob)
    await until(lambda: len(bob.store.replica) == 1)


async def _fork(author: Peer, *witnesses: Peer, epoch: int = 3 * 10**12) -> None:
    """A claim of one place in two versions, one given to each of two witnesses; they then compare."""
    for number, witness in enumerate(witnesses):
        place = (author.id, epoch, 0, NO_HASH, witness.id, Kind.CALL_SERVED, "", number, NO_HASH, 0)
        witness.store.insert_many([sign_claim(Claim(*place), author.store._key).raw])


async def test_who_proves_a_fork_claims_it_and_who_hears_of_it_does_not(swarm: Swarm, autojump_clock: Clock) -> None:
    forker, alice, bob, carol = await swarm(4)
    await trio.sleep(1)
    await _fork(forker, alice, bob)
    alice.reputation.begin(bob.id)
    await until(lambda: all(peer.store.replica.fork_of(forker.id) is not None for peer in (alice, bob, carol)), 10)
    await until(lambda: len(digests(alice, bob, carol)) == 1, 60)
    said = [entry.claim for entry in carol.store.replica.claims() if entry.claim.kind == Kind.FORK_PROVED]
    assert {(claim.issuer, claim.subject) for claim in said} == {(alice.id, forker.id)}
    fork = alice.store.replica.fork_of(forker.id)
    assert fork is not None
    assert said[0].evidence == proof_hash(fork.proof)


async def test_forks_by_the_dozen_do_not_fill_our_log(swarm: Swarm, autojump_clock: Clock) -> None:
    peers = await swarm(FORKS_AN_HOUR + 4)
    alice, bob, *forkers = peers
    await trio.sleep(1)
    for forker in forkers:
        await _fork(forker, alice, bob)
    alice.reputation.begin(bob.id)
    await until(lambda: len(alice.store.replica.forks()) == len(forkers), 30)
    await trio.sleep(1)
    said = [entry.claim for entry in alice.store.replica.claims(alice.id) if entry.claim.kind == Kind.FORK_PROVED]
    assert len(said) == FORKS_AN_HOUR


async def test_a_liar_that_is_shunned_before_its_last_question_left_ends_nobody(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, liar, bob = await swarm(3)
    await until(lambda: not alice.reputation.sync.busy(liar.id))
    lie = encode(Announcement(Hash(bytes(32)), proofs=(ForkProof(b"\xc1", b"\xc0"),)))
    heads = IssuerHeads(bob.id, (LogHead(epoch=2 * 10**12, length=5, hash=Hash(bytes(32))),))
    question = encode(Announcement(Hash(bytes(32)), (heads,)))
    for payload in (lie, lie, question, lie):  # one frame of gossip may hold them all: no other task has a turn between two
        alice.reputation.sync._on_gossip(liar.id, payload)
    assert alice.reputation.faults["malformed"] == MAX_FAULTS
    assert alice.reputation.sync._sync.shunned(liar.id, trio.current_time())
    say(bob, alice)
    await until(lambda: len(digests(alice, bob)) == 1, 3)
