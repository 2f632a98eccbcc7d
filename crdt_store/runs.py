"""Claims that came in their envelopes, one behind the other: the last one's signature vouches for those before it.

Each claim holds the hash of the one before it, so that a signed claim says all that is before it (`checkpoints`). Of a run the
last signature alone is checked; those before it are dropped unseen, as bytes that nobody checked may neither be kept nor
passed on. What is not so vouched for is checked claim by claim. Decides nothing on what is taken in.
"""

from collections.abc import Callable, Sequence

from crdt_store.checkpoints import CHECKPOINT_CLAIMS, CheckpointEntry, can_be_row, checkpoint_of, verify_record
from crdt_store.claims import SignedClaim
from crdt_store.replica import Replica
from protocol.wire.errors import RemoteError

RUN_CLAIMS = 8
"""Claims of one log that are taken in as a run. Fewer keep their signatures: they are the news of every day, which is proved by
two claims where it contradicts itself, and checking them costs less than a millisecond a log."""

Verdict = Callable[[SignedClaim], SignedClaim]
"""Gives back a record whose signature and rows are good; raises RemoteError for any other."""


def find_runs(replica: Replica, entries: Sequence[SignedClaim], least: int = RUN_CLAIMS) -> tuple[range, ...]:
    """Places of `least` entries or more that continue a log as the replica holds it.

    What contradicts it is in none: it is checked claim by claim, and so proved by two claims, which every version understands.
    """
    found: list[range] = []
    start = 0
    for place in range(1, len(entries) + 1):
        if place == len(entries) or place - start == CHECKPOINT_CLAIMS or not _follows(entries[place - 1], entries[place]):
            if place - start >= least and replica.continues(entries[start]):
                found.append(range(start, place))
            start = place
    return tuple(found)


def _follows(before: SignedClaim, entry: SignedClaim) -> bool:
    one, other = before.claim, entry.claim
    return (
        other.previous == before.hash
        and (other.issuer, other.epoch, other.seq) == (one.issuer, one.epoch, one.seq + 1)
        and not isinstance(before, CheckpointEntry)
        and not isinstance(entry, CheckpointEntry)
        and can_be_row(before)  # else all would be checked for the price of one
    )


def verify_runs(
    entries: Sequence[SignedClaim], runs: Sequence[range], verdict: Verdict = verify_record
) -> list[SignedClaim | RemoteError]:
    """What is good of `entries`, in order: a checkpoint for each run, else each by itself, or why it is not.

    Touches no shared state, so that it may run in another thread.
    """
    verified: list[SignedClaim | RemoteError] = []
    done = 0
    for run in runs:
        verified += _each(entries[done : run.start], verdict)
        some = entries[run.start : run.stop]
        folded = _fold(some, verdict)
        verified += _each(some, verdict) if folded is None else [folded]
        done = run.stop
    return verified + _each(entries[done:], verdict)


def _fold(run: Sequence[SignedClaim], verdict: Verdict) -> SignedClaim | None:
    """The checkpoint of a run whose last claim is good; None where its claims must be looked at one by one."""
    try:
        return checkpoint_of([*run[:-1], verdict(run[-1])])
    except RemoteError:
        return None


def _each(entries: Sequence[SignedClaim], verdict: Verdict) -> list[SignedClaim | RemoteError]:
    verified: list[SignedClaim | RemoteError] = []
    for entry in entries:
        try:
            verified.append(verdict(entry))
        except RemoteError as error:
            verified.append(error)
    return verified
