"""What may become of a claim or a proof that is offered to a replica. Values alone."""

from dataclasses import dataclass

from crdt_store.checkpoints import CheckpointEntry
from crdt_store.claims import SignedClaim
from crdt_store.forks import Fork
from protocol.wire.ids import PeerId


@dataclass(frozen=True, slots=True)
class Dropped:
    """A log that is kept no longer."""

    issuer: PeerId
    epoch: int


@dataclass(frozen=True, slots=True)
class Inserted:
    """The claim, or all of a checkpoint, is new and kept, as `entry` has it. `dropped` names what had to go for it: older epochs
    of its issuer, or borrowed room."""

    entry: SignedClaim
    dropped: tuple[Dropped, ...] = ()


@dataclass(frozen=True, slots=True)
class Compacted:
    """The claims of the checkpoint `entry` are kept as that from now on. Nothing else changed."""

    entry: CheckpointEntry


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Held already."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Claims before this one are missing: ask for `expected` and on."""

    issuer: PeerId
    epoch: int
    expected: int


@dataclass(frozen=True, slots=True)
class Forked:
    """The issuer is frozen from `fork.epoch` on, and its claims from there are dropped."""

    fork: Fork


@dataclass(frozen=True, slots=True)
class Ignored:
    """Valid, and of no use: "frozen" issuer, "retired" epoch, or "full": no room for it. Nobody's fault."""

    reason: str


Outcome = Inserted | Duplicate | Gap | Forked | Ignored
