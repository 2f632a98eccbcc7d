"""What may become of a claim or a proof that is offered to a replica. Values alone."""

import msgspec

from crdt_store.checkpoints import CheckpointEntry
from crdt_store.claims import SignedClaim
from crdt_store.forks import Fork
from protocol.wire.ids import PeerId


class Dropped(msgspec.Struct, frozen=True, gc=False):
    """A log that is kept no longer."""

    issuer: PeerId
    epoch: int


class Inserted(msgspec.Struct, frozen=True, gc=False):
    """The claim, or all of a checkpoint, is new and kept, as `entry` has it. `dropped` names what had to go for it: older epochs
    of its issuer, or borrowed room."""

    entry: SignedClaim
    dropped: tuple[Dropped, ...] = ()


class Compacted(msgspec.Struct, frozen=True, gc=False):
    """The claims of the checkpoint `entry` are kept as that from now on. Nothing else changed."""

    entry: CheckpointEntry


class Duplicate(msgspec.Struct, frozen=True, gc=False):
    """Held already."""


class Gap(msgspec.Struct, frozen=True, gc=False):
    """Claims before this one are missing: ask for `expected` and on."""

    issuer: PeerId
    epoch: int
    expected: int


class Forked(msgspec.Struct, frozen=True, gc=False):
    """The issuer is frozen from `fork.epoch` on, and its claims from there are dropped."""

    fork: Fork


class Ignored(msgspec.Struct, frozen=True, gc=False):
    """Valid, and of no use: "frozen" issuer, "retired" epoch, or "full": no room for it. Nobody's fault."""

    reason: str


Outcome = Inserted | Duplicate | Gap | Forked | Ignored


def reclaimed(outcome: Outcome) -> bool:
    """Whether logs of others were dropped for it: what fits into their own part may come back, from whoever has it."""
    return isinstance(outcome, Inserted) and any(gone.issuer != outcome.entry.claim.issuer for gone in outcome.dropped)
