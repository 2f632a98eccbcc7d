"""Proofs that an issuer signed two histories of one epoch. Decides what proves that; the replica decides what follows."""

from collections.abc import Sequence

import msgspec

from crdt_store.checkpoints import RawRecord, expand, is_checkpoint, open_record, stretch
from crdt_store.claims import SignedClaim
from protocol.wire.codec import Message
from protocol.wire.errors import RemoteError, malformed
from protocol.wire.ids import Hash, PeerId, sha256


class ForkProof(Message, frozen=True):
    """Two claims of one issuer that no honest issuer signs both; anyone can check them.

    Each in its envelope, or as the first row of a checkpoint: then the chain of hashes up to its signed claim is the signature.
    """

    first: RawRecord
    second: RawRecord

    @property
    def plain(self) -> bool:
        """Whether peers that know no checkpoints understand it."""
        return not is_checkpoint(self.first) and not is_checkpoint(self.second)


class Fork(msgspec.Struct, frozen=True):
    """A verified proof: from `epoch` on nothing that `issuer` says stands."""

    issuer: PeerId
    epoch: int
    seq: int
    proof: ForkProof


def contradict(first: SignedClaim, second: SignedClaim) -> bool:
    """Whether one honest log cannot hold both: two claims in one place, or a claim that denies the one before it.

    The second form matters: a replica that meets only the tail of another branch has its proof at once, without a search
    for the place where the branches part.
    """
    a, b = first.claim, second.claim
    if (a.issuer, a.epoch) != (b.issuer, b.epoch):
        return False
    if a.seq == b.seq:
        return first.hash != second.hash
    return b.seq == a.seq + 1 and b.previous != first.hash


def fork_of(first: SignedClaim, second: SignedClaim) -> Fork:
    """The fork that the first claims of two records prove; raises RemoteError(malformed) where they do not contradict."""
    one, other = stretch(expand(first))[0], stretch(expand(second))[0]
    if not contradict(one, other):
        raise malformed("two claims that fit one log prove no fork")
    return Fork(PeerId(one.claim.issuer), one.claim.epoch, one.claim.seq, ForkProof(first.raw, second.raw))


def proof_hash(proof: ForkProof) -> Hash:
    """The address of a proof, for a claim that speaks of it. One fork may have many proofs."""
    return sha256(b"swarmd/1/fork", proof.first, proof.second)


def open_proof(proof: ForkProof) -> Fork:
    """Verify a proof from a peer; raises RemoteError(malformed | oversized | bad_signature)."""
    return fork_of(open_record(proof.first), open_record(proof.second))


def open_proofs(proofs: Sequence[ForkProof]) -> list[Fork | RemoteError]:
    """Verify many, one result each. Touches no shared state, so that it may run in another thread."""
    opened: list[Fork | RemoteError] = []
    for proof in proofs:
        try:
            opened.append(open_proof(proof))
        except RemoteError as error:
            opened.append(error)
    return opened
