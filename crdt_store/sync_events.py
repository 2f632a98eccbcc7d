"""What happens in an exchange by which one peer pulls from another what it lacks: events, and effects for a driver to carry out.

Values alone, and the one thing that a driver does in another thread: checking signatures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from crdt_store.claims import SignedClaim, judged, signature_of, verify_claims
from crdt_store.forks import Fork, ForkProof, open_proofs
from crdt_store.sync_messages import Announcement, HeadsReply, HeadsRequest, RangeChunk, RangeRequest
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId
from protocol.wire.signature import SignatureJob

# Events


@dataclass(frozen=True, slots=True)
class Begin:
    """Compare with `peer` now (the driver picks a random connected peer about every SYNC_EVERY seconds)."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Announced:
    """`peer` gossiped that heads moved or that a fork was proven."""

    peer: PeerId
    announcement: Announcement


@dataclass(frozen=True, slots=True)
class HeadsArrived:
    peer: PeerId
    reply: HeadsReply


@dataclass(frozen=True, slots=True)
class ChunkArrived:
    peer: PeerId
    chunk: RangeChunk


@dataclass(frozen=True, slots=True)
class Verified:
    """What a `Verify` found, in its order (`check`)."""

    peer: PeerId
    claims: Sequence[SignedClaim | RemoteError]
    forks: Sequence[Fork | RemoteError]


@dataclass(frozen=True, slots=True)
class RangeEnded:
    """The answer to the latest AskRange is complete, and what it held is verified."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class CallFailed:
    """The latest call to `peer` failed or ran past its deadline."""

    peer: PeerId


Event = Begin | Announced | HeadsArrived | ChunkArrived | Verified | RangeEnded | CallFailed


# Effects


@dataclass(frozen=True, slots=True)
class AskHeads:
    peer: PeerId
    request: HeadsRequest


@dataclass(frozen=True, slots=True)
class AskRange:
    peer: PeerId
    request: RangeRequest


@dataclass(frozen=True, slots=True)
class Verify:
    """Check these signatures aside, not before the time `at`: by `check`, or by whoever judges `signature_jobs`.

    A few chunks of one peer may be checked at once; their `Verified` come in order, and before `RangeEnded`.
    """

    peer: PeerId
    claims: tuple[SignedClaim, ...]
    """Decoded, their signatures not checked yet."""
    proofs: tuple[ForkProof, ...]
    at: float


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that costs `peer`: count it."""

    peer: PeerId
    error: RemoteError


@dataclass(frozen=True, slots=True)
class Finished:
    """The exchange with `peer` is over; `inserted` claims and proofs were new. A call still open for it should be cancelled."""

    peer: PeerId
    inserted: int


Effect = AskHeads | AskRange | Verify | Fault | Finished


def check(effect: Verify) -> Verified:
    """Carry out a `Verify`: about 0.1 ms a signature. Touches no shared state, so that it may run in another thread."""
    return Verified(effect.peer, verify_claims(effect.claims), open_proofs(effect.proofs))


def signature_jobs(effect: Verify) -> list[SignatureJob]:
    """The signatures of the claims of a `Verify`, for another process; raises RemoteError for a signer that is no key."""
    return [signature_of(entry) for entry in effect.claims]


def with_verdicts(effect: Verify, verdicts: Sequence[int]) -> Verified:
    """What a `Verify` without proofs found, by a verdict (1 or 0) on each of `signature_jobs`."""
    return Verified(effect.peer, [judged(entry, good == 1) for entry, good in zip(effect.claims, verdicts, strict=True)], ())
