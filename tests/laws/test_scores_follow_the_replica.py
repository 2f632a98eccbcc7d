"""Scores are a function of the claims held, the reader and the time: what came, went, forked or was retired leaves no trace."""

from collections.abc import Iterator
from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crdt_store.claims import NO_HASH, Claim, Kind, SignedClaim, sign_claim
from crdt_store.outcomes import Forked, Inserted
from crdt_store.replica import Replica
from crdt_store.room import Bounds
from crdt_store.scores import Parameters, Scores
from protocol.wire.envelope import public_bytes
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId, peer_id_of

pytestmark = pytest.mark.slow

LAW = settings(max_examples=12, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(1, 6)]
NAMES = [peer_id_of(public_bytes(key)) for key in KEYS]
STEP_MS = 1_000
PARAMETERS = Parameters(half_life_ms=16 * STEP_MS, window=20)
BOUNDS = Bounds(issuer_claims=8, issuer_epochs=3)
NOW = 40 * STEP_MS
SKILLS = ("arithmetic", "string", "judge.string")
KINDS = (Kind.PROBE_PASSED, Kind.PROBE_FAILED, Kind.CALL_SERVED, Kind.CALLS_FAILED, Kind.OUTPUT_REFUTED, Kind.ROUND_WON)


def pool() -> list[SignedClaim]:
    """Five issuers with more epochs than a replica keeps; two fork in their second epoch; some claims are about the future."""
    rng = Random(7)
    made = []
    for author, key in enumerate(KEYS):
        for epoch in range(1, 6):
            for branch in range(2 if author in (1, 3) and epoch == 2 else 1):
                previous = NO_HASH
                for seq in range(4):
                    subject = NAMES[rng.choice([one for one in range(5) if one != author])]
                    kind, skill, count = rng.choice(KINDS), rng.choice(SKILLS), rng.randint(1, 6) + branch
                    time = rng.randint(0, NOW + 2 * STEP_MS)
                    claim = Claim(NAMES[author], epoch, seq, previous, subject, kind, skill, count, NO_HASH, time)
                    made.append(sign_claim(claim, key))
                    previous = made[-1].hash
    return made


POOL = pool()


def everything(scores: Scores, now: int = NOW) -> dict[tuple[str, str], object]:
    pairs = [(name, skill) for name in NAMES for skill in (*SKILLS, "service", "general")]
    return {(name, skill): (scores.tally(name, skill, now), scores.score(name, skill, now)) for name, skill in pairs}


def from_scratch(replica: Replica, me: PeerId) -> Scores:
    """The same claims in another order, one after the other, into new scores."""
    scores = Scores(me, PARAMETERS)
    for fork in replica.forks():
        scores.observe(Forked(fork))
    held = list(replica.claims())
    Random(len(held)).shuffle(held)
    for entry in held:
        scores.observe(Inserted(entry))
    return scores


def deliver(raws: list[bytes], me: PeerId, read_between: bool) -> Iterator[tuple[Replica, Scores]]:
    scores = Scores(me, PARAMETERS)
    replica = Replica(BOUNDS, observe=scores.observe)
    for raw in raws:
        try:
            replica.insert(raw)
        except RemoteError:
            pytest.fail("the pool is valid")
        if read_between:
            everything(scores)
            yield replica, scores
    yield replica, scores


@LAW
@given(order=st.permutations(POOL), me=st.sampled_from(NAMES), cut=st.integers(1, len(POOL)))
def test_incremental_equals_recomputed_from_scratch(order: list[SignedClaim], me: PeerId, cut: int) -> None:
    raws = [entry.raw for entry in order] * 2
    for replica, scores in deliver(raws[: cut + len(order)], me, read_between=False):
        assert everything(scores) == everything(from_scratch(replica, me))


def test_reads_in_between_change_nothing() -> None:
    raws = [entry.raw for entry in POOL]
    frozen = retired = 0
    for replica, scores in deliver(raws, NAMES[0], read_between=True):
        again = from_scratch(replica, NAMES[0])
        assert everything(scores) == everything(again)
        assert scores.witnesses.total == (again.witnesses.settle() or again.witnesses.total)
        frozen, retired = len(replica.forks()), len(POOL) - len(replica)
    assert frozen == 2, "the pool must fork, or this law is empty"
    assert retired > 10, "the pool must be too long for the quota"


def test_what_goes_to_make_room_for_others_goes_from_the_scores() -> None:
    """Strangers fill the replica, then issuers that are vouched for take the room back."""
    bounds = Bounds(total_bytes=40 * 400, vouched=2, strangers=3)
    scores = Scores(NAMES[0], PARAMETERS)
    replica = Replica(bounds, observe=scores.observe)
    most = 0
    for authors in ((3, 4), (0, 2)):
        replica.room.vouch(NAMES[author] for author in authors if author in (0, 2))
        for entry in POOL:
            if entry.claim.issuer in [NAMES[author] for author in authors]:
                replica.insert(entry.raw)
                assert everything(scores) == everything(from_scratch(replica, NAMES[0]))
        most = max(most, sum(entry.claim.issuer == NAMES[4] for entry in replica.claims()))
    assert sum(entry.claim.issuer == NAMES[4] for entry in replica.claims()) < most


def test_nothing_is_left_of_what_went() -> None:
    scores = Scores(NAMES[0], PARAMETERS)
    replica = Replica(BOUNDS, observe=scores.observe)
    for author in (1, 3):
        for entry in POOL:
            if entry.claim.issuer == NAMES[author] and entry.claim.epoch == 2:
                replica.insert(entry.raw)
    assert len(replica.forks()) == 2
    assert len(replica) == 0
    fresh = {key: value for key, value in everything(Scores(NAMES[0], PARAMETERS)).items() if key[0] not in scores.ledger.frozen}
    assert {key: value for key, value in everything(scores).items() if key[0] not in scores.ledger.frozen} == fresh
    assert (scores.ledger.subjects(), scores.witnesses.total) == ((), 0)
    assert scores.ledger.frozen == {NAMES[1]: 2, NAMES[3]: 2}


def test_evidence_that_went_and_came_back_different_is_read_anew() -> None:
    """Was wrong: a cell that was gone in between counted its changes from one again, so its old record was served."""
    scores = Scores(NAMES[0], PARAMETERS)
    replica = Replica(Bounds(issuer_claims=1, issuer_epochs=1), observe=scores.observe)

    def say(epoch: int, kind: Kind, subject: PeerId) -> None:
        claim = Claim(NAMES[1], epoch, 0, NO_HASH, subject, kind, "string", 9, NO_HASH, NOW)
        replica.insert(sign_claim(claim, KEYS[1]).raw)

    say(1, Kind.PROBE_PASSED, NAMES[2])
    assert scores.tally(NAMES[2], "string", NOW).wrong_milli == 0
    say(2, Kind.PROBE_PASSED, NAMES[3])
    say(3, Kind.PROBE_FAILED, NAMES[2])
    assert scores.tally(NAMES[2], "string", NOW).right_milli == 0


def test_time_passes_without_a_claim() -> None:
    """A claim of the future waits for its time, and what is old enough counts for nothing."""
    scores = Scores(NAMES[0], PARAMETERS)
    claim = Claim(NAMES[0], 1, 0, NO_HASH, NAMES[1], Kind.PROBE_PASSED, "string", 5, NO_HASH, 10 * STEP_MS)
    scores.observe(Inserted(sign_claim(claim, KEYS[0])))
    seen = [scores.tally(NAMES[1], "string", step * STEP_MS).right_milli for step in (9, 10, 26, 42, 10 + 159, 10 + 160)]
    assert seen == [0, 5_000, 2_500, 1_250, 5, 0]


@LAW
@given(count=st.integers(0, 40), right=st.integers(0, 40), seed=st.integers(0, 5))
def test_what_more_right_answers_do(count: int, right: int, seed: int) -> None:
    """More right answers never lower a score, more wrong ones never raise it, and every number stays in its range."""
    rng = Random(seed)

    def scored(good: int, bad: int) -> Scores:
        scores = Scores(NAMES[0], PARAMETERS)
        for place, (kind, value) in enumerate(((Kind.PROBE_PASSED, good), (Kind.PROBE_FAILED, bad))):
            if value:
                claim = Claim(NAMES[0], 1, place, NO_HASH, NAMES[1], kind, "string", value, NO_HASH, NOW)
                scores.observe(Inserted(SignedClaim(claim, NO_HASH, b"")))
        return scores

    base, better, worse = (
        scored(good, bad).score(NAMES[1], "string", NOW)
        for good, bad in ((right, count), (right + rng.randint(1, 9), count), (right, count + rng.randint(1, 9)))
    )
    # A step that is too large for the window is cut to it, to whole thousandths of each trial: two of 1000 are rounding.
    assert worse.mean_milli - 2 <= base.mean_milli <= better.mean_milli + 2
    assert worse.weight_milli - 2 <= base.weight_milli <= better.weight_milli + 2
    for score in (base, better, worse):
        assert 0 <= score.low_milli <= score.mean_milli <= score.high_milli <= 1000
        assert PARAMETERS.newcomer_milli <= score.weight_milli <= 1000
