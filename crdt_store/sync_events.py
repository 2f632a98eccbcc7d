"""What happens in an exchange by which one peer pulls from another what it lacks: events, and effects for a driver to carry out.

Values alone, and the one thing that a driver does in another thread: checking signatures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from crdt_store.checkpoints import verify_record
from crdt_store.claims import SignedClaim
from crdt_store.forks import Fork, ForkProof, open_proofs
from crdt_store.runs import Verdict, verify_runs
from crdt_store.sync_messages import Announcement, HeadsReply, HeadsRequest, RangeChunk, RangeRequest
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId

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
    """What a `Verify` found, in its order (`check`): for a run, the checkpoint that it is from now on."""

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
    """Check these signatures, not before the time `at`, in another thread (`check`); the next chunk waits for the verdict."""

    peer: PeerId
    claims: tuple[SignedClaim, ...]
    """Claims and checkpoints, decoded; signatures and rows are not checked yet."""
    proofs: tuple[ForkProof, ...]
    at: float
    runs: tuple[range, ...] = ()
    """Places of `claims` that follow each other in one log, so that the last one of each vouches for those before it."""

    @property
    def signatures(self) -> int:
        """Signatures of claims to be checked, where all of them are good."""
        return len(self.claims) - sum(len(run) - 1 for run in self.runs)


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


def check(effect: Verify, verdict: Verdict = verify_record) -> Verified:
    """Carry out a `Verify`: about 0.1 ms a signature. Touches no shared state, so that it may run in another thread."""
    return Verified(effect.peer, verify_runs(effect.claims, effect.runs, verdict), open_proofs(effect.proofs))
