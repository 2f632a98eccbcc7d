"""Two replicas become equal with few bytes, and a liar makes neither a loop nor a hole."""

import pytest

from crdt_store.claims import NO_HASH
from crdt_store.forks import ForkProof
from crdt_store.heads import IssuerHeads, LogHead, LogRow, log_id
from crdt_store.memory import MemoryStorage
from crdt_store.room import Bounds
from crdt_store.store import ClaimStore
from crdt_store.sync import (
    MAX_FAULTS,
    SHUN_SECONDS,
    Sync,
)
from crdt_store.sync_events import (
    Announced,
    AskHeads,
    AskRange,
    Begin,
    CallFailed,
    ChunkArrived,
    Fault,
    Finished,
    HeadsArrived,
    RangeEnded,
    Verify,
    check,
)
from crdt_store.sync_messages import (
    AS_HELD,
    MAX_RANGE_BYTES,
    MAX_RANGE_CLAIMS,
    HeadsReply,
    HeadsRequest,
    IssuerSummary,
    Range,
    RangeChunk,
    RangeRequest,
    announce,
    serve_heads,
    serve_range,
)
from crdt_store.sync_plan import plan, wants_of
from protocol.wire.codec import decode, encode
from protocol.wire.limits import MAX_CHUNK_BYTES, MAX_FRAME_BYTES, MAX_GOSSIP_BYTES

NEVER = MAX_RANGE_CLAIMS + 1
"""As `bulk` and `run`: every claim comes in its envelope and is checked by itself."""


class Honest:
    """Answers as the daemon does; everything passes through bytes."""

    def __init__(self, replica):
        self.replica = replica
        self.calls = 0
        self.bytes = 0

    def carry(self, kind, message, limit):
        raw = encode(message)
        assert len(raw) <= limit
        self.bytes += len(raw)
        return decode(kind, raw, limit)

    def heads(self, request):
        self.calls += 1
        return self.carry(
            HeadsReply, serve_heads(self.replica, self.carry(HeadsRequest, request, MAX_FRAME_BYTES)), MAX_FRAME_BYTES
        )

    def range(self, request):
        self.calls += 1
        chunks = list(serve_range(self.replica, self.carry(RangeRequest, request, MAX_FRAME_BYTES)))
        assert sum(len(encode(chunk)) for chunk in chunks) <= MAX_RANGE_BYTES + 4096
        return [self.carry(RangeChunk, chunk, MAX_CHUNK_BYTES) for chunk in chunks]


def given(sync, peer, chunk, now=0.0):
    """Hand over one chunk as the driver does: the signatures that the machine wants checked are checked first."""
    told = []
    for effect in sync.handle(ChunkArrived(peer, chunk), now):
        told += sync.handle(check(effect), now) if isinstance(effect, Verify) else [effect]
    return told


def exchange(sync, peer, server, event=None, now=0.0):
    """Drive one exchange to its end; the effects that are no question."""
    told = []
    effects = sync.handle(event or Begin(peer), now)
    for _ in range(1_000):
        if not effects:
            return told
        effect, effects = effects[0], effects[1:]
        match effect:
            case AskHeads(_, request):
                effects += sync.handle(HeadsArrived(peer, server.heads(request)), now)
            case AskRange(_, request):
                for chunk in server.range(request):
                    effects += given(sync, peer, chunk, now)
                effects += sync.handle(RangeEnded(peer), now)
            case _:
                told.append(effect)
    raise AssertionError("the exchange does not end")


@pytest.fixture
def store(author):
    """A store of a peer that writes nothing itself."""
    return lambda *entries: filled(ClaimStore(MemoryStorage(), author(200).key, 1), entries)


def filled(store, entries):
    store.insert_many([entry.raw for entry in entries])
    return store


def test_a_newcomer_gets_everything_and_equal_replicas_exchange_one_hash(store, alice, bob):
    full = store(*alice.log(40), *alice.log(3, epoch=2), *bob.log(7))
    empty = store()
    sync = Sync(empty)
    server = Honest(full.replica)
    assert exchange(sync, alice.id, server) == [Finished(alice.id, 50)]
    assert empty.replica.digest() == full.replica.digest()
    assert server.calls == 2
    server.calls = server.bytes = 0
    assert exchange(sync, alice.id, server) == [Finished(alice.id, 0)]
    assert (server.calls, server.bytes < 100) == (1, True)


@pytest.mark.slow
def test_bytes_grow_with_the_difference_and_not_with_the_state(store, author):
    common = [entry for number in range(1, 60) for entry in author(number).log(3)]
    news = author(1).log(8)[3:]
    ahead, behind = store(*common, *news), store(*common)
    server = Honest(ahead.replica)
    exchange(Sync(behind), author(1).id, server)
    assert behind.replica.digest() == ahead.replica.digest()
    assert server.bytes < 59 * 100 + sum(len(entry.raw) for entry in news) + 500


@pytest.mark.slow
def test_one_answer_is_bounded_and_the_rest_is_asked_again(store, alice):
    entries = alice.log(1000)
    full, empty = store(*entries), store()
    server = Honest(full.replica)
    assert exchange(Sync(empty, NEVER, NEVER), alice.id, server) == [Finished(alice.id, 1000)]
    assert server.calls == 3
    assert empty.replica.digest() == full.replica.digest()


@pytest.mark.parametrize("shape", ["same length", "ours longer", "theirs longer", "they know", "we know"])
def test_branches_meet_and_both_sides_end_equal(store, alice, bob, shape):
    base = alice.log(2)
    left, right = alice.log(6, value=1, after=base), alice.log(6, value=2, after=base)
    if shape == "ours longer":
        left = alice.log(9, value=1, after=left)
    if shape == "theirs longer":
        right = alice.log(9, value=2, after=right)
    ours, theirs = store(*left, *bob.log(1)), store(*right)
    if shape == "they know":
        theirs.insert_many([left[4].raw])
    if shape == "we know":
        ours.insert_many([right[4].raw])
    for target, source in ((ours, theirs), (theirs, ours)):
        told = exchange(Sync(target), bob.id, Honest(source.replica))
        assert not [effect for effect in told if isinstance(effect, Fault)]
    assert ours.replica.digest() == theirs.replica.digest()
    assert [fork.issuer for fork in theirs.replica.forks()] == [alice.id]
    assert len(list(theirs.replica.claims())) == 1


def test_plan_asks_for_what_is_missing_newest_first(store, alice):
    ours = store(*alice.log(3, epoch=1), *alice.log(2, epoch=2), *alice.log(4, epoch=3))
    equal = ours.replica.heads(alice.id).logs[0]
    heads = IssuerHeads(
        alice.id, (equal, LogHead(2, 5, bytes(32)), LogHead(3, 2, bytes(32)), LogHead(4, 7, bytes(32))), frozen_from=9
    )
    request = plan(ours.replica, wants_of(heads)).request
    ranges = (Range(alice.id, 4, 0, 7), Range(alice.id, 3, 1, 1), Range(alice.id, 2, 2, 3))
    assert request == RangeRequest(ranges, (alice.id,), b"", AS_HELD)


class Liar(Honest):
    """Claims heads of its own making and serves `answer` for every range."""

    def __init__(self, replica, issuers, answer=()):
        super().__init__(replica)
        self.issuers = issuers
        self.answer = list(answer)
        self.salt = 0

    def heads(self, request):
        self.calls += 1
        self.salt += 1
        lie = bytes([self.salt % 256]) * 32
        if request.cells or request.listed >= 0:
            rows = [LogRow(log_id(name, 3), 900, lie[:3]) for name in self.issuers]
            return HeadsReply(lie, logs=len(rows), rows=b"".join(row.pack() for row in rows))
        if not request.issuers:
            names = sorted(self.issuers)
            return HeadsReply(lie, tuple(IssuerSummary(name, lie) for name in names))
        return HeadsReply(lie, heads=tuple(IssuerHeads(name, (LogHead(3, 900, lie),), 1) for name in request.issuers))

    def range(self, request):
        self.calls += 1
        return self.answer


def test_a_lying_head_is_closed_after_one_question_and_the_liar_after_three(store, alice, bob):
    victim = store(*alice.log(2))
    before = victim.replica.digest()
    sync = Sync(victim)
    liar = Liar(victim.replica, [alice.id, bob.id])
    told = []
    now = 0.0
    while not sync.shunned(bob.id, now):
        told += exchange(sync, bob.id, liar, now=now)
        now += 1
    assert len([effect for effect in told if isinstance(effect, Fault)]) == MAX_FAULTS
    assert liar.calls <= 3 * MAX_FAULTS
    assert exchange(sync, bob.id, liar, now=now) == []
    assert victim.replica.digest() == before
    honest = Honest(store(*alice.log(5)).replica)
    assert exchange(sync, alice.id, honest, now=now) == [Finished(alice.id, 3)], "others are asked as ever"
    assert exchange(sync, bob.id, honest, now=now + SHUN_SECONDS), "and the liar again, later"


def test_the_same_lie_is_not_asked_about_again(store, alice, bob):
    class Stubborn(Liar):
        def heads(self, request):
            self.salt = 0
            return super().heads(request)

    victim = store(*alice.log(2))
    sync = Sync(victim)
    liar = Stubborn(victim.replica, [alice.id])
    told = [effect for second in range(10) for effect in exchange(sync, bob.id, liar, now=float(second))]
    assert len([effect for effect in told if isinstance(effect, Fault)]) == 2, "a log, and a proof"
    assert not sync.shunned(bob.id, 10.0)


@pytest.mark.parametrize(
    "answer",
    ["garbage", "forged", "bad proof", "flood", "gap", "duplicates"],
)
def test_a_bad_answer_costs_its_sender_and_leaves_the_replica_whole(store, alice, bob, answer):
    log = alice.log(6)
    forged = bytearray(log[2].raw)
    forged[-1] ^= 1
    chunk = {
        "garbage": RangeChunk((b"\x90" * 100,)),
        "forged": RangeChunk((bytes(forged),)),
        "bad proof": RangeChunk((), (ForkProof(log[0].raw, log[1].raw),)),
        "flood": RangeChunk((bytes(4000),) * 100),
        "gap": RangeChunk((log[4].raw,)),
        "duplicates": RangeChunk((log[0].raw, log[1].raw, log[0].raw)),
    }[answer]
    victim = store(*log[:2])
    before = victim.replica.digest()
    told = exchange(Sync(victim), bob.id, Liar(victim.replica, [alice.id], [chunk]))
    assert [effect for effect in told if isinstance(effect, Fault)]
    assert isinstance(told[-1], Finished)
    assert victim.replica.digest() == before


@pytest.mark.parametrize(
    "reply",
    [
        lambda a, b: HeadsReply(bytes(32), (IssuerSummary(max(a, b), bytes(32)), IssuerSummary(min(a, b), bytes(32)))),
        lambda a, b: HeadsReply(bytes(32), (IssuerSummary(a, bytes(32)), IssuerSummary(a, bytes(32)))),
        lambda a, b: HeadsReply(bytes(32), (), more=True),
    ],
)
def test_summaries_out_of_order_end_the_exchange(store, alice, bob, reply):
    sync = Sync(store())
    sync.handle(Begin(bob.id), 0.0)
    sync.handle(HeadsArrived(bob.id, HeadsReply(bytes(32))), 0.0)
    fault, finished = sync.handle(HeadsArrived(bob.id, reply(alice.id, bob.id)), 0.0)
    assert isinstance(fault, Fault)
    assert finished == Finished(bob.id, 0)


def test_heads_that_were_not_asked_for_end_the_exchange(store, alice, bob):
    sync = Sync(store())
    sync.handle(Begin(bob.id), 0.0)
    sync.handle(HeadsArrived(bob.id, HeadsReply(bytes(32))), 0.0)
    sync.handle(HeadsArrived(bob.id, HeadsReply(bytes(32), (IssuerSummary(alice.id, bytes(32)),))), 0.0)
    fault, finished = sync.handle(HeadsArrived(bob.id, HeadsReply(bytes(32), heads=(IssuerHeads(bob.id, ()),))), 0.0)
    assert isinstance(fault, Fault)
    assert finished == Finished(bob.id, 0)


def test_a_failed_call_ends_the_exchange_and_late_answers_change_nothing(store, alice):
    sync = Sync(store())
    assert sync.handle(CallFailed(alice.id), 0.0) == []
    sync.handle(Begin(alice.id), 0.0)
    assert sync.busy(alice.id)
    assert sync.handle(Begin(alice.id), 0.0) == []
    assert sync.handle(CallFailed(alice.id), 0.0) == [Finished(alice.id, 0)]
    assert not sync.busy(alice.id)
    for event in (
        HeadsArrived(alice.id, HeadsReply(NO_HASH)),
        ChunkArrived(alice.id, RangeChunk((alice.claim(0).raw,))),
        RangeEnded(alice.id),
    ):
        assert sync.handle(event, 0.0) == []


def test_pages_of_rows_are_walked(store, author, monkeypatch):
    monkeypatch.setattr("crdt_store.sync_messages.MAX_ROWS", 4)
    full, empty = store(*(author(number).claim(0) for number in range(1, 12))), store()
    server = Honest(full.replica)
    exchange(Sync(empty), author(1).id, server)
    assert empty.replica.digest() == full.replica.digest()
    assert server.calls == 3 + 1


def test_whole_hashes_are_compared_where_rows_say_nothing(store, author, alice, monkeypatch):
    """Rows are short, so that a forger may find two branches with one row: the proof is found all the same, page by page."""
    monkeypatch.setattr("crdt_store.replica.log_row", lambda log, head: LogRow(log, head.length, b"sam"))
    monkeypatch.setattr("crdt_store.sync_messages.MAX_SUMMARIES", 4)
    monkeypatch.setattr("crdt_store.sync.MAX_ASKED", 3)
    common = [author(number).claim(0) for number in range(2, 12)]
    ours, theirs = store(*common, *alice.log(3, value=1)), store(*common, *alice.log(3, value=2))
    told = exchange(Sync(ours), alice.id, Honest(theirs.replica))
    assert [type(effect) for effect in told] == [Finished]
    assert [fork.issuer for fork in ours.replica.forks()] == [alice.id]


def test_two_logs_of_one_short_name_are_found_by_their_whole_names(store, alice, bob, monkeypatch):
    monkeypatch.setattr("crdt_store.replica.log_id", lambda issuer, epoch: b"one name")
    ours, theirs = store(*alice.log(2)), store(*alice.log(3), *bob.log(2))
    sync = Sync(ours)
    for now in (0.0, 1_000.0):
        assert not [effect for effect in exchange(sync, bob.id, Honest(theirs.replica), now=now) if isinstance(effect, Fault)]
    assert ours.replica.digest() == theirs.replica.digest()


def test_news_by_gossip_is_fetched_in_one_call(store, alice, bob):
    ahead, behind = store(*alice.log(4)), store(*alice.log(2))
    announcement = announce(ahead.replica, alice.id)
    assert len(encode(announcement)) < 300
    server = Honest(ahead.replica)
    sync = Sync(behind)
    assert exchange(sync, alice.id, server, Announced(alice.id, announcement)) == [Finished(alice.id, 2)]
    assert server.calls == 1
    assert exchange(sync, alice.id, server, Announced(alice.id, announcement)) == []
    assert announce(store().replica, alice.id).heads == ()


def test_a_proof_by_gossip_freezes_at_once_and_a_false_one_costs(store, alice, bob):
    holder = store(alice.claim(0))
    proof = ForkProof(alice.claim(0, value=1).raw, alice.claim(0, value=2).raw)
    announcement = announce(holder.replica, alice.id, (proof,))
    assert len(encode(announcement)) < MAX_GOSSIP_BYTES
    assert Sync(holder).handle(Announced(bob.id, announcement), 0.0) == []
    assert [fork.issuer for fork in holder.replica.forks()] == [alice.id]
    false = announce(holder.replica, alice.id, (ForkProof(alice.claim(0).raw, bob.claim(0).raw),))
    other = store()
    assert isinstance(Sync(other).handle(Announced(bob.id, false), 0.0)[0], Fault)
    assert other.replica.forks() == ()


def test_a_full_replica_asks_for_nothing_and_blames_nobody(alice, bob, author):
    full = filled(ClaimStore(MemoryStorage(), author(200).key, 1, Bounds(total_bytes=6_000)), alice.log(7))
    source = filled(ClaimStore(MemoryStorage(), author(200).key, 1), [*alice.log(30), *bob.log(30)])
    sync = Sync(full, run=NEVER)
    told = [exchange(sync, alice.id, Honest(source.replica)) for _ in range(5)]
    assert told == [[Finished(alice.id, 2)], *[[Finished(alice.id, 0)]] * 4], "the last 700 bytes are two claims of bob"
    sync.made_room()
    assert exchange(sync, alice.id, server := Honest(source.replica)) == [Finished(alice.id, 0)]
    assert server.calls > 1, "what found no room is asked for once more, and is nobody's fault"
    crowded = filled(ClaimStore(MemoryStorage(), author(200).key, 1, Bounds(strangers=1)), alice.log(1))
    assert exchange(Sync(crowded), alice.id, Honest(source.replica)) == [Finished(alice.id, 29)]


def test_what_found_no_room_in_an_answer_is_asked_again_and_nobodys_fault(store, alice, bob, monkeypatch):
    monkeypatch.setattr("crdt_store.sync_messages.MAX_RANGE_BYTES", 10_000)
    full, empty = store(*alice.log(40), *bob.log(40)), store()
    assert exchange(Sync(empty), alice.id, Honest(full.replica)) == [Finished(alice.id, 80)]


def test_an_answer_beyond_its_bounds_is_cut_off(store, alice, bob):
    sync = Sync(store(*alice.log(1)))
    sync.handle(Announced(bob.id, announce(store(*alice.log(2)).replica, alice.id)), 0.0)
    flood = ChunkArrived(bob.id, RangeChunk((alice.claim(0).raw,) * 64))
    effects = [effect for _ in range(17) for effect in sync.handle(flood, 0.0)]
    assert [type(effect) for effect in effects] == [Fault, Finished]
    assert "more claims" in effects[0].error.message


def test_one_exchange_is_bounded_so_that_others_get_their_turn(store, alice, bob, monkeypatch):
    monkeypatch.setattr("crdt_store.sync.MAX_REQUESTS", 2)
    monkeypatch.setattr("crdt_store.sync_plan.MAX_RANGE_CLAIMS", 10)
    full, empty = store(*alice.log(50)), store()
    sync = Sync(empty)
    told = [effect for _ in range(3) for effect in exchange(sync, alice.id, Honest(full.replica))]
    assert told == [Finished(alice.id, 20), Finished(alice.id, 20), Finished(alice.id, 10)]


@pytest.mark.parametrize("known", [True, False])
def test_a_log_that_was_dropped_for_a_fork_while_it_was_asked_for_is_answered_by_the_proof(store, alice, bob, known):
    """Found by the simulation of fifty peers: honest peers blamed each other in the second in which a fork was proved."""
    theirs = store(*alice.log(5), *bob.log(1))
    ours = store(*(alice.log(2) if known else bob.log(1)))

    class Overtaken(Honest):
        def range(self, request):
            self.replica.insert(alice.claim(0, value=9).raw)
            return super().range(request)

    told = exchange(Sync(ours), bob.id, Overtaken(theirs.replica))
    assert not [effect for effect in told if isinstance(effect, Fault)]
    assert [fork.issuer for fork in ours.replica.forks()] == [alice.id]
