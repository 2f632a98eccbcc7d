"""Claims to measure with, made from a seed: 100,000 of 200 issuers in 1,000 logs, and 10,000 that each come alone."""

from dataclasses import dataclass, field
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from crdt_store.claims import DOMAIN, NO_HASH, Claim, Kind
from protocol.wire.codec import encode
from protocol.wire.envelope import public_bytes, seal, statement_hash
from protocol.wire.ids import PeerId, peer_id_of

ISSUERS, LOGS, LENGTH = 200, 5, 100
LONERS, NEWS = 2_000, 5
"""Further issuers, and the epochs in each of which one claim of theirs is all."""
NOW = 1_700_000_000_000
SKILLS = ("math", "code", "")
PLACES = ("math", "code", "general")
"""What they are called in scores."""


@dataclass
class Corpus:
    """100,000 claims of 200 issuers in 1,000 logs, by log."""

    keys: list[Ed25519PrivateKey]
    names: list[PeerId]
    skill_of: list[int]
    """How many of a thousand questions each answers right."""
    logs: list[list[bytes]] = field(default_factory=list)


def build(seed: int = 1) -> Corpus:
    rng = Random(seed)
    keys = [Ed25519PrivateKey.from_private_bytes(rng.randbytes(32)) for _ in range(ISSUERS)]
    names = [peer_id_of(public_bytes(key)) for key in keys]
    corpus = Corpus(keys, names, [rng.randrange(300, 950) for _ in range(ISSUERS)])
    for epoch in range(LOGS):
        for number, key in enumerate(keys):
            issuer, previous, log = corpus.names[number], NO_HASH, []
            for seq in range(LENGTH):
                subject = rng.randrange(ISSUERS)
                kind = Kind.PROBE_PASSED if rng.randrange(1000) < corpus.skill_of[subject] else Kind.PROBE_FAILED
                at = NOW - (LOGS - epoch) * 86_400_000 + seq * 600_000
                claim = Claim(issuer, NOW + epoch, seq, previous, corpus.names[subject], kind, SKILLS[seq % 3], 1, NO_HASH, at)
                payload = encode(claim)
                log.append(seal(DOMAIN, payload, key))
                previous = statement_hash(DOMAIN, issuer, payload)
            corpus.logs.append(log)
    return corpus


def behind(corpus: Corpus, difference: int) -> list[bytes]:
    """All claims but `difference`, which are the last of as many logs as there are, or the last few of every log."""
    short = min(difference, len(corpus.logs))
    cut = difference // short
    return [raw for i, log in enumerate(corpus.logs) for raw in (log[:-cut] if i < short else log)]


def alone(corpus: Corpus, seed: int = 4) -> list[bytes]:
    """Claims that are each the only one of their log, so that no other vouches for them."""
    rng = Random(seed)
    raws: list[bytes] = []
    for _ in range(LONERS):
        key = Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))
        issuer = peer_id_of(public_bytes(key))
        for epoch in range(NEWS):
            subject = corpus.names[rng.randrange(ISSUERS)]
            claim = Claim(issuer, NOW + epoch, 0, NO_HASH, subject, Kind.PROBE_PASSED, SKILLS[epoch % 3], 1, NO_HASH, NOW)
            raws.append(seal(DOMAIN, encode(claim), key))
    rng.shuffle(raws)
    return raws
