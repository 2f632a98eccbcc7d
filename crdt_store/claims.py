"""One signed statement about a peer, and what makes its bytes valid. Knows no log, no replica and no storage."""

from enum import IntEnum
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.wire.codec import Message, decoder, encode
from protocol.wire.envelope import Envelope, require_signature, seal, statement_hash
from protocol.wire.errors import LocalError, malformed
from protocol.wire.ids import Hash, HashField, PeerId, PeerIdField, is_peer_id
from protocol.wire.limits import MAX_CLAIM_BYTES

DOMAIN = "claim"

MAX_EPOCH = 2**53 - 1
"""Epochs, times and values stay exact in JSON, whose numbers are doubles (RFC 8259 section 6)."""

MAX_LOG_CLAIMS = 1_000
"""Claims in one log, that is of one issuer in one epoch; then the issuer opens its next epoch. One sync message carries 1,000."""

NO_HASH = Hash(bytes(32))
"""`previous` of a log's first claim, and `evidence` where there is none."""

Epoch = Annotated[int, msgspec.Meta(ge=0, le=MAX_EPOCH)]
Seq = Annotated[int, msgspec.Meta(ge=0, lt=MAX_LOG_CLAIMS)]
RawClaim = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_CLAIM_BYTES)]
Skill = Annotated[str, msgspec.Meta(pattern=r"^([a-z0-9][a-z0-9._-]{0,62})?\Z", max_length=63)]


class Kind(IntEnum):
    """What a claim says of its subject. Append only; a number is never reused.

    A replica keeps kinds that it does not know yet, because a log with a hole could not be verified any more.
    """

    CALL_SERVED = 1
    """The subject served a call; `value` is the time to its first token in milliseconds."""
    CALL_FAILED = 2
    """The subject accepted a call and did not serve it; `value` is 0."""
    ROUND_WON = 3
    """The subject's answer won a round; `value` is the confidence in milli."""
    ROUND_TOOK_PART = 4
    """The subject sealed, revealed and judged in time; `value` is the rank of its answer, from 1."""
    ROUND_ABORTED = 5
    """The subject sealed and did not reveal, or did not judge; `value` is 0."""
    PROBE_PASSED = 6
    """The subject answered questions of `skill` right whose answers the issuer knew; `value` is how many, 1 to 1000."""
    PROBE_FAILED = 7
    """The subject answered questions of `skill` wrong whose answers the issuer knew; `value` is how many, 1 to 1000."""
    OUTPUT_VERIFIED = 8
    """The subject's output is what its offered model gives; `value` is the deviation found, in millinats."""
    OUTPUT_REFUTED = 9
    """The subject's output is not what its offered model gives; `value` is the deviation found, in millinats."""
    FORK_PROVED = 10
    """The subject signed two histories of one epoch; `evidence` is the proof's hash."""
    MEMBER_ADMITTED = 11
    """The issuer lets the subject into its mesh."""
    MEMBER_REMOVED = 12
    """The issuer no longer lets the subject into its mesh."""
    CALLS_SERVED = 13
    """The subject served `value` more calls, 1 to 1000, beside the one that a CALL_SERVED of the same minute describes."""
    CALLS_FAILED = 14
    """The subject did not serve `value` more calls, 1 to 1000, beside the one of a CALL_FAILED of the same minute."""


class Claim(Message, frozen=True):
    """One statement of `issuer` about `subject`. `epoch` and `seq` place it in the issuer's log, `previous` chains it there.

    `kind` is a `Kind` or a number of a later version; `skill` is "" where none applies; `evidence` is the address of what
    the claim rests on (a verdict, a call) or NO_HASH; `time` is the issuer's clock in unix milliseconds, a hint alone.
    """

    issuer: PeerIdField
    epoch: Epoch
    seq: Seq
    previous: HashField
    subject: PeerIdField
    kind: Annotated[int, msgspec.Meta(ge=1, le=0xFFFF)]
    skill: Skill
    value: Annotated[int, msgspec.Meta(ge=-MAX_EPOCH, le=MAX_EPOCH)]
    evidence: HashField
    time: Epoch


class SignedClaim(msgspec.Struct, frozen=True, gc=False):
    """A verified claim, its address, and the bytes that it came in and travels on in."""

    claim: Claim
    hash: Hash
    raw: bytes
    envelope: Envelope | None = None
    """Of `raw`, for `verify_claim`."""


_decode_envelope = decoder(Envelope, MAX_CLAIM_BYTES)
_decode_claim = decoder(Claim, MAX_CLAIM_BYTES)


def sign_claim(claim: Claim, key: Ed25519PrivateKey) -> SignedClaim:
    """Sign `claim`; raises LocalError where it is not valid, because a signed bad claim would block its own log forever."""
    raw = seal(DOMAIN, encode(claim), key)
    try:
        return open_claim(raw)
    except Exception as error:
        raise LocalError(f"refused to sign an invalid claim: {error}") from error


def open_claim(raw: bytes) -> SignedClaim:
    """Verify an encoded claim; raises RemoteError(malformed | oversized | bad_signature)."""
    return verify_claim(read_claim(raw))


def verify_claim(entry: SignedClaim) -> SignedClaim:
    """The signature of one; raises RemoteError(bad_signature | malformed)."""
    require_signature(DOMAIN, entry.envelope or _decode_envelope(entry.raw))
    return _about_a_peer(entry)


def read_claim(raw: bytes) -> SignedClaim:
    """As `open_claim` but WITHOUT verifying the signature: for bytes whose integrity is known, and to look up duplicates.

    `raw` of the result is the envelope's shortest form: what somebody on the way appended is not the issuer's, and takes no room.
    """
    envelope = _decode_envelope(raw)
    shortest = encode(envelope)
    if shortest != raw:
        raw = shortest
    signer = PeerId(envelope.signer)
    return SignedClaim(_checked(signer, envelope.payload), statement_hash(DOMAIN, signer, envelope.payload), raw, envelope)


def _about_a_peer(entry: SignedClaim) -> SignedClaim:
    if not is_peer_id(entry.claim.subject):
        raise malformed("a claim's subject is no peer id")
    return entry


def _checked(signer: PeerId, payload: bytes) -> Claim:
    claim = _decode_claim(payload)
    if claim.issuer != signer:
        raise malformed("a claim is signed by another peer than its issuer")
    if (claim.seq == 0) != (claim.previous == NO_HASH):
        raise malformed("only the first claim of a log, and always it, has no previous claim")
    return claim
