"""How soon a fresh node's scores are near their final value, and how soon they could be at best. Measures no time."""

from collections.abc import Callable
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.claim_corpus import ISSUERS, NOW, PLACES, SKILLS, Corpus
from bench.claim_line import PEER
from crdt_store.checkpoints import expand
from crdt_store.claims import Kind
from crdt_store.memory import MemoryStorage
from crdt_store.own_log import Statement
from crdt_store.replica import Replica
from crdt_store.store import ClaimStore
from crdt_store.sync import Sync
from crdt_store.sync_events import AskHeads, AskRange, Begin, ChunkArrived, HeadsArrived, RangeEnded, Verified, Verify
from crdt_store.sync_messages import serve_heads, serve_range
from protocol.wire.codec import encode

NEAR = 0.05
"""A score this near to its final value, relative to that, is as good as final."""

Counts = Callable[[list[list[bool]], float], list[int]]
"""Of all answers by place, how many of each are taken at a share of them all."""

_STEPS = 50
_DRAWS = 9

Curve = list[tuple[float, float, float]]
"""What a fresh node has: its share of the claims; its bytes, as a share of all claims in full; and how far
off its scores are then."""


def early(corpus: Corpus, source: Replica, met: int) -> tuple[Curve, Curve]:
    """How far off the scores of a fresh node are while it pulls all, as it does, in checkpoints; at every fiftieth of the claims.

    It probed `met` peers itself, ten questions in each of three skills: by these it knows whom to believe. How far off: the
    difference from its score at the end, relative to that; at the 95th percentile of a quarter of the peers in all skills, and
    at the median of those that it probed. About the order of what comes alone, so that signatures are taken as checked.
    """
    store = ClaimStore(MemoryStorage(), Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x01"), NOW)
    rng = Random(3)
    probed = rng.sample(range(ISSUERS), met)
    for subject in probed:
        for skill in SKILLS:
            right = sum(rng.randrange(1000) < corpus.skill_of[subject] for _ in range(10))
            for kind, count in ((Kind.PROBE_PASSED, right), (Kind.PROBE_FAILED, 10 - right)):
                if count:
                    store.record(Statement(corpus.names[subject], kind, skill, count), NOW)
    places = [(name, skill) for name in corpus.names[::4] for skill in PLACES]
    known = [(corpus.names[subject], skill) for subject in probed for skill in PLACES] or places
    sync, peer, own = Sync(store), PEER, len(store.replica)
    seen: list[tuple[int, int, list[int]]] = []
    came = 0
    for _ in range(10):
        effects = sync.handle(Begin(peer), 0.0)
        while effects:
            effect = effects.pop(0)
            if isinstance(effect, AskHeads):
                effects += sync.handle(HeadsArrived(peer, serve_heads(source, effect.request)), 0.0)
            elif isinstance(effect, AskRange):
                for chunk in serve_range(source, effect.request):
                    came += len(encode(chunk))
                    for inner in sync.handle(ChunkArrived(peer, chunk), 0.0):
                        assert isinstance(inner, Verify)
                        effects += sync.handle(Verified(peer, list(map(expand, inner.claims)), ()), 0.0)
                effects += sync.handle(RangeEnded(peer), 0.0)
                arrived = len(store.replica) - own
                if arrived >= len(source) or not seen or arrived >= seen[-1][0] + len(source) // 50:
                    seen.append((arrived, came, [store.scores.score(*place, NOW).mean_milli for place in (*places, *known)]))
    assert len(store.replica) == len(source) + own, "the fresh node did not get everything"
    offs = [[abs(a - b) / max(b, 1) for a, b in zip(scores, seen[-1][2], strict=True)] for *_, scores in seen]
    shares = [(have / len(source), size / source.total_bytes) for have, size, _ in seen]
    every = [sorted(off[: len(places)])[len(places) * 95 // 100] for off in offs]
    of_known = [sorted(off[len(places) :])[len(known) // 2] for off in offs]
    together = [[(*share, off) for share, off in zip(shares, offs, strict=True)] for offs in (every, of_known)]
    return together[0], together[1]


def settled_at(curve: Curve) -> tuple[float, float]:
    """The shares of the claims and of their bytes from which on scores are within 5% and stay there."""
    last_wrong = max((i for i, (*_, wrong) in enumerate(curve) if wrong > NEAR), default=-1)
    return curve[min(last_wrong + 1, len(curve) - 1)][:2]


def off_at(curve: Curve, share: float) -> float:
    """How far off scores are once `share` of the claims arrived."""
    return next((wrong for arrived, _, wrong in curve if arrived >= share), 0.0)


def sampling_limit(replica: Replica, seed: int = 5) -> tuple[float, float]:
    """From which share of the claims on the plain share of right answers is within 5% of the final one for 95% of all peers and
    skills, where they come in a random order: equally many of each, and as many of each as were best for who knew all of them.

    Whatever estimates a share from n of N answers errs by sqrt(p (1 - p) / n * (N - n) / (N - 1)) or more, as long as those
    answers are no others than the rest. The second order needs most of what varies most: n so that that error, relative to p,
    is the same everywhere. Each is the median of nine draws.
    """
    found: dict[tuple[str, str], list[bool]] = {}
    for entry in replica.claims():
        claim = entry.claim
        if claim.issuer != claim.subject:
            found.setdefault((claim.subject, claim.skill), []).append(claim.kind == Kind.PROBE_PASSED)
    answers = [place for place in found.values() if any(place)]
    rng = Random(seed)
    equal = sorted(_settled(answers, rng, _in_equal_shares) for _ in range(_DRAWS))
    best = sorted(_settled(answers, rng, _where_they_vary) for _ in range(_DRAWS))
    return equal[_DRAWS // 2], best[_DRAWS // 2]


def _settled(answers: list[list[bool]], rng: Random, counts: Counts) -> float:
    orders = [rng.sample(place, len(place)) for place in answers]
    wrong = 0
    for step in range(1, _STEPS):
        offs = []
        for order, count in zip(orders, counts(answers, step / _STEPS), strict=True):
            final = sum(order) / len(order)
            offs.append(abs(sum(order[:count]) / count - final) / final)
        if sorted(offs)[len(offs) * 95 // 100] > NEAR:
            wrong = step
    return (wrong + 1) / _STEPS


def _in_equal_shares(answers: list[list[bool]], share: float) -> list[int]:
    return [max(1, round(share * len(place))) for place in answers]


def _where_they_vary(answers: list[list[bool]], share: float) -> list[int]:
    odds = [(len(place) - sum(place)) / sum(place) for place in answers]
    low, high = 1e-9, 1e3
    for _ in range(60):
        error = (low * high) ** 0.5
        counts = [one / (error + one / len(place)) for one, place in zip(odds, answers, strict=True)]
        low, high = (error, high) if sum(counts) > share * sum(map(len, answers)) else (low, error)
    return [max(1, min(len(place), round(count))) for count, place in zip(counts, answers, strict=True)]
