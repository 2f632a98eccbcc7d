"""Where our own next claim goes. Pure; `store` makes each step durable before anyone may see it.

An epoch is opened at EVERY start of the daemon and is durable before its first claim, as max(previous + 1, unix milliseconds).
A start cannot know whether it sees all that it signed before: a backup may have been restored, the last writes may be lost. In
a new epoch it need not know, because a log that nobody else has seen cannot contradict itself. (Syncthing does the same with a
new index id.) Should the mesh show us a claim of our own from this epoch or a later one, which happens when a clock was
set back with the backup or when the key runs twice, the log moves above it at once.
"""

from dataclasses import dataclass

import msgspec

from crdt_store.claims import MAX_EPOCH, MAX_LOG_CLAIMS, NO_HASH, Claim, Kind, SignedClaim
from protocol.wire.errors import LocalError, SwarmdError
from protocol.wire.ids import Hash, PeerId


class OwnLogFrozen(SwarmdError):
    """A proof exists that our key signed two histories: the mesh counts nothing more of ours. A person must act."""


class Statement(msgspec.Struct, frozen=True):
    """What we say of a peer, before it has a place in our log. `value` as its `Kind` defines it."""

    subject: PeerId
    kind: Kind
    skill: str = ""
    value: int = 0
    evidence: Hash = NO_HASH


def next_epoch(previous: int, now_ms: int) -> int:
    """The epoch of a new log: above every earlier one, and above a lost one wherever the clock (unix ms) moved on."""
    epoch = max(previous + 1, now_ms)
    if epoch > MAX_EPOCH:
        raise LocalError(f"epoch {epoch} is out of range: check this machine's clock")
    return epoch


@dataclass(slots=True)
class OwnLog:
    """The tail of our newest log. `closed` says that it takes no more claims and that a new epoch must be opened first."""

    issuer: PeerId
    epoch: int
    length: int = 0
    head: Hash = NO_HASH
    closed: bool = False
    highest_seen: int = 0
    """The highest epoch in which a claim of our own key is known from elsewhere."""

    def place(self, statement: Statement, now_ms: int) -> Claim:
        """The claim that says `statement` at the end of the log; raises LocalError on a closed log."""
        if self.closed:
            raise LocalError("a closed log takes no claim: open an epoch first")
        return Claim(
            issuer=self.issuer,
            epoch=self.epoch,
            seq=self.length,
            previous=self.head,
            subject=statement.subject,
            kind=statement.kind,
            skill=statement.skill,
            value=statement.value,
            evidence=statement.evidence,
            time=now_ms,
        )

    def advance(self, entry: SignedClaim) -> None:
        """`entry` is durable and is now the tail."""
        if (entry.claim.epoch, entry.claim.seq, entry.claim.previous) != (self.epoch, self.length, self.head):
            raise LocalError("our own log was advanced by a claim that does not follow its tail")
        self.length += 1
        self.head = entry.hash
        self.closed = self.length >= MAX_LOG_CLAIMS

    def saw(self, epoch: int) -> None:
        """A claim that our key signed and this log did not make exists in `epoch`."""
        self.highest_seen = max(self.highest_seen, epoch)
        if epoch >= self.epoch:
            self.closed = True

    def reopen(self, epoch: int) -> None:
        """Begin the log of a newer epoch, which is durable already."""
        if epoch <= max(self.epoch, self.highest_seen):
            raise LocalError("a new epoch must be above every earlier one")
        self.epoch, self.length, self.head, self.closed = epoch, 0, NO_HASH, False
