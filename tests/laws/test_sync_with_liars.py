"""Whatever a peer answers, an exchange ends, nothing unverified is kept, and an honest peer still brings everything."""

from collections.abc import Iterable

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crdt_store.checkpoints import Checkpoint, compact
from crdt_store.claims import NO_HASH, Claim, Kind, SignedClaim, read_claim, sign_claim
from crdt_store.forks import ForkProof
from crdt_store.heads import IssuerHeads, LogHead
from crdt_store.memory import MemoryStorage
from crdt_store.store import ClaimStore
from crdt_store.sync import Sync
from crdt_store.sync_events import (
    Announced,
    AskHeads,
    AskRange,
    Begin,
    CallFailed,
    ChunkArrived,
    Effect,
    HeadsArrived,
    RangeEnded,
    Verify,
    check,
)
from crdt_store.sync_messages import Announcement, HeadsReply, IssuerSummary, RangeChunk, serve_heads, serve_range
from protocol.wire.codec import decode, encode
from protocol.wire.envelope import public_bytes
from protocol.wire.ids import PeerId, peer_id_of

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(1, 4)]
NAMES = sorted(peer_id_of(public_bytes(key)) for key in KEYS)
LIAR, HONEST = NAMES[0], NAMES[1]
JUNK = [bytes([value]) * 32 for value in (1, 2)]


def log_of(key: Ed25519PrivateKey, epoch: int, length: int, value: int) -> list[SignedClaim]:
    name, log = peer_id_of(public_bytes(key)), list[SignedClaim]()
    while len(log) < length:
        previous = log[-1].hash if log else NO_HASH
        log.append(sign_claim(Claim(name, epoch, len(log), previous, LIAR, Kind.CALL_FAILED, "", value, NO_HASH, 0), key))
    return log


LOGS = [log_of(key, epoch, 5, 0) for key in KEYS for epoch in (1, 2)]
TWIN = log_of(KEYS[2], 2, 4, 9)
POOL = [entry.raw for log in [*LOGS, TWIN] for entry in log]
SPOILED = [raw[:-1] + bytes([raw[-1] ^ 1]) for raw in POOL]
"""The same claims under signatures that are none: as links of a chain that is signed they count, by themselves they do not."""

heads = st.builds(
    IssuerHeads,
    st.sampled_from(NAMES),
    st.lists(
        st.builds(LogHead, st.integers(0, 3), st.integers(1, 9), st.sampled_from([*JUNK, LOGS[0][2].hash, LOGS[4][4].hash])),
        max_size=3,
    ).map(tuple),
    st.sampled_from([None, None, 0, 2]),
)
replies = st.builds(
    HeadsReply,
    st.sampled_from(JUNK),
    st.lists(st.builds(IssuerSummary, st.sampled_from(NAMES), st.sampled_from(JUNK)), max_size=3).map(
        lambda found: tuple(sorted(found, key=lambda summary: summary.issuer))
    ),
    st.booleans(),
    st.lists(heads, max_size=3).map(tuple),
)
raws = st.sampled_from([*POOL, *SPOILED, b"\x90"])
stretches = st.builds(
    lambda log, start, spoiled: [one if i != spoiled else SPOILED[POOL.index(one)] for i, one in enumerate(log[start:])],
    st.sampled_from([[entry.raw for entry in log] for log in [*LOGS, TWIN]]),
    st.integers(0, 3),
    st.integers(0, 8),
)
FOLDS = [compact(log[start:end]).raw for log in [*LOGS, TWIN] for start, end in ((0, 4), (2, 4), (1, 3))]
FALSE = [
    encode(Checkpoint(made.previous, made.subjects, made.skills, made.rows[:-1], made.claim))
    for made in (decode(Checkpoint, raw) for raw in FOLDS[:2])
]
records = st.sampled_from([*POOL, *FOLDS, *FALSE, FOLDS[0][:-1] + b"\0"])
chunks = st.builds(
    RangeChunk,
    st.lists(raws, max_size=6).map(tuple),
    st.lists(st.builds(ForkProof, records, records), max_size=2).map(tuple),
    st.lists(records, max_size=6).map(tuple) | stretches.map(tuple),
)


def answered(sync: Sync, peer: PeerId, chunks: Iterable[RangeChunk], behind: int) -> list[Effect]:
    """A whole answer, whose signatures are checked `behind` chunks later, as in another process."""
    told: list[Effect] = []
    waiting: list[Verify] = []
    for chunk in chunks:
        for effect in sync.handle(ChunkArrived(peer, chunk), 0.0):
            if isinstance(effect, Verify):
                waiting.append(effect)
            else:
                told.append(effect)
        if len(waiting) > behind:
            told += sync.handle(check(waiting.pop(0)), 0.0)
    for effect in waiting:
        told += sync.handle(check(effect), 0.0)
    return told + sync.handle(RangeEnded(peer), 0.0)


@pytest.mark.slow
@settings(max_examples=80, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(lies=st.data())
def test_no_answer_makes_a_loop_or_a_hole(lies: st.DataObject) -> None:
    store = ClaimStore(MemoryStorage(), KEYS[0], 10)
    store.insert_many([entry.raw for entry in [*LOGS[0][:3], *LOGS[4][:2]]])
    sync = Sync(store, run=lies.draw(st.sampled_from([2, 3, 8])))
    events = st.sampled_from([Begin(LIAR), Begin(LIAR), Announced(LIAR, Announcement(JUNK[0], (lies.draw(heads),)))])
    for exchange in range(3):
        effects = sync.handle(lies.draw(events), float(exchange))
        steps = 0
        while effects:
            steps += 1
            assert steps < 300
            effect, effects = effects[0], effects[1:]
            match effect:
                case AskHeads():
                    effects += sync.handle(HeadsArrived(LIAR, lies.draw(replies)), 0.0)
                case AskRange() if lies.draw(st.integers(0, 5)) == 0:
                    effects += sync.handle(CallFailed(LIAR), 0.0)
                case AskRange():
                    effects += answered(sync, LIAR, lies.draw(st.lists(chunks, max_size=4)), lies.draw(st.integers(0, 3)))
        assert not sync.busy(LIAR)
    assert {entry.hash for entry in store.replica.claims()} <= {read_claim(raw).hash for raw in POOL}
    source = ClaimStore(MemoryStorage(), KEYS[1], 10)
    source.insert_many([entry.raw for log in LOGS for entry in log])
    effects = sync.handle(Begin(HONEST), 0.0)
    while effects:
        effect, effects = effects[0], effects[1:]
        if isinstance(effect, AskHeads):
            effects += sync.handle(HeadsArrived(HONEST, serve_heads(source.replica, effect.request)), 0.0)
        elif isinstance(effect, AskRange):
            effects += answered(sync, HONEST, serve_range(source.replica, effect.request), lies.draw(st.integers(0, 3)))
    forked = [fork for fork in store.replica.forks() if fork.issuer != peer_id_of(public_bytes(KEYS[2]))]
    assert not forked, "nobody can be made to look forked who signed one history"
    for key in KEYS[:2]:
        name = peer_id_of(public_bytes(key))
        assert store.replica.heads(name) == source.replica.heads(name)
