"""What to ask for, given what someone else says he holds. Pure: reads a replica, and keeps no state of its own."""

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from crdt_store.checkpoints import CHECKPOINT_CLAIMS
from crdt_store.claims import MAX_LOG_CLAIMS
from crdt_store.heads import FROZEN, IssuerHeads, LogRow, fork_row, log_id, log_row
from crdt_store.replica import FROZEN_PLACE, Replica
from crdt_store.runs import RUN_CLAIMS
from crdt_store.sync_messages import AS_HELD, FOLDED, MAX_PICKS, MAX_RANGE_CLAIMS, MAX_RANGES, Pick, Range, RangeRequest
from protocol.wire.ids import PeerId

MIN_SLICE = 16
"""Claims of one log asked for at a time while many lack some: a newcomer hears a little of everybody before all of anybody."""

BULK_CLAIMS = MAX_RANGE_CLAIMS
"""Claims that are wanted at once, from which on they come in checkpoints. News comes with every signature: it is small, and what
contradicts it is proved by two claims."""

Place = tuple[PeerId, int]
"""An issuer and an epoch, or FROZEN_PLACE for the issuer's fork proof."""


class Want(msgspec.Struct, frozen=True, gc=False):
    """One log or proof that another replica has more of. `place` is None where only the short name is known."""

    row: LogRow
    place: Place | None = None


class Part(msgspec.Struct, frozen=True, gc=False):
    """Claims `start` to `start + count - 1` of a log."""

    start: int
    count: int


def wants_of(heads: IssuerHeads) -> list[Want]:
    """An issuer's logs by name, newest first, and its proof before them."""
    issuer = PeerId(heads.issuer)
    wants = [Want(log_row(log_id(issuer, head.epoch), head, whole=True), (issuer, head.epoch)) for head in reversed(heads.logs)]
    if heads.frozen_from is not None:
        wants.insert(0, Want(fork_row(issuer, heads.frozen_from), (issuer, FROZEN_PLACE)))
    return wants


def part_of(replica: Replica, want: Want) -> Part | None:
    """What to ask of the other one's log: what follows ours, or, where the two part, one claim that proves the fork.

    None where there is nothing to ask. A length that no log has is treated as the longest: whoever says it will not deliver.
    """
    if want.place is None and replica.clashing(want.row.id):
        return None
    place = want.place or replica.place(want.row.id)
    if want.row.length == FROZEN:
        fork = None if place is None else replica.fork_of(place[0])
        held = None if fork is None else fork_row(fork.issuer, fork.epoch)
        return None if held == want.row else Part(FROZEN, 1)
    length = max(1, min(want.row.length, MAX_LOG_CLAIMS))
    if place is None:
        return Part(0, length)
    issuer, epoch = place
    if not replica.wants(issuer, epoch):
        return None
    ours = replica.length(issuer, epoch)
    if ours < length:
        return Part(ours, length - ours)
    held_hash = replica.hash_at(issuer, epoch, length - 1)
    return None if held_hash is not None and held_hash.startswith(want.row.head) else Part(length - 1, 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """One request, and the wants that it asks about, in order."""

    request: RangeRequest
    asked: tuple[Want, ...]
    done: frozenset[bytes]
    """Ids of wants about which there is nothing to ask any more."""
    claims: int
    """That its answer may hold."""
    fewest: int
    """Of them, of any log; 0 where only proofs are asked for."""


def plan(replica: Replica, wants: Iterable[Want], bulk: int = BULK_CLAIMS, run: int = RUN_CLAIMS) -> Plan:
    """A request for a slice of each want, as far as one answer goes; proofs first, because they travel first.

    Where one answer would bring `bulk` claims or more, all of them may come in checkpoints; more than MAX_RANGE_CLAIMS it never
    brings. So they may where each log would bring `run` or more: those would lose their signatures on arrival (`runs`).
    """
    wanted = list(wants)
    if bulk:
        planned = _plan(replica, wanted, MIN_SLICE, AS_HELD)
        if planned.claims < bulk and planned.fewest < run:
            return planned
    return _plan(replica, wanted, CHECKPOINT_CLAIMS, FOLDED)


def _plan(replica: Replica, wants: Iterable[Want], least: int, records: int) -> Plan:
    """A plan with slices of `least` claims or more."""
    proofs: list[Want] = []
    logs: list[Want] = []
    for want in wants:
        (proofs if want.row.length == FROZEN else logs).append(want)
    slice_claims = max(least, MAX_RANGE_CLAIMS // max(len(logs), 1))
    done: list[bytes] = []
    asked: list[Want] = []
    ranges: list[Range] = []
    issuers: list[PeerId] = []
    picks: list[Pick] = []
    left, fewest = MAX_RANGE_CLAIMS, 0
    for want in [*proofs, *logs]:
        if left <= 0:
            break  # what is behind is not even looked at: a newcomer wants a thousand logs and asks about sixty at a time
        part = part_of(replica, want)
        if part is None:
            done.append(want.row.id)
            continue
        count = 1 if part.start == FROZEN else min(part.count, slice_claims, left)
        if len(picks) >= MAX_PICKS if want.place is None else len(ranges) >= MAX_RANGES or len(issuers) >= MAX_RANGES:
            continue
        if want.place is None:
            picks.append(Pick(want.row.id, part.start, count))
        elif part.start == FROZEN:
            issuers.append(want.place[0])
        else:
            ranges.append(Range(*want.place, part.start, count))
        if part.start != FROZEN:
            left -= count
            fewest = min(fewest or count, count)
        asked.append(want)
    packed = b"".join(pick.pack() for pick in picks)
    request = RangeRequest(tuple(ranges), tuple(issuers), packed, records)
    return Plan(request, tuple(asked), frozenset(done), MAX_RANGE_CLAIMS - left, fewest)
