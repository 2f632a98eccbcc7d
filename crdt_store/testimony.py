"""Weighs the evidence about one subject and skill: our own first, then others' as far as they are believed. Pure; whole numbers.

A record is a window of trials, the newest first, and what is missing in it counts as wrong for what a peer has earned. So new
trials push old ones out, and a bad past is outlived exactly as fast as a new key earns its dues: whitewashing gains nothing.
What many say is not added up blindly: each witness has a share of the window by how far it is believed, so that nobody crowds
out the others; who contradicts the rest beyond chance is left out, who leans is pulled back to half of what chance explains.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from typing import NamedTuple

from crdt_store.evidence import MILLI, TOLERANCE_MILLI, Cell, Sums, deviation
from crdt_store.witnesses import STRANGER_MILLI
from protocol.wire.ids import PeerId

DECAY_STEPS = 16
"""Steps of time in a half-life: 21 hours each in one of 14 days."""


def _decays(halvings: int) -> tuple[int, ...]:
    """2^(-k/16) in milli, by whole numbers alone: the 16th root of a half is four square roots."""
    one = 1 << 62
    root = one >> 1
    for _ in range(4):
        root = isqrt(root << 62)
    table, value = [], one
    for _ in range(halvings * DECAY_STEPS):
        table.append((value * MILLI + (one >> 1)) >> 62)
        value = value * root >> 62
    return tuple(table)


DECAY_MILLI = _decays(10)
"""What evidence weighs by its age in steps; beyond, less than a thousandth: nothing."""

OWN_WORTH = 4
"""Trials of a witness that is fully believed that weigh as much as one of our own."""

OWN_RESERVE = 5
"""This part (a fifth) of the window is for our own newest trials, however old: nobody pushes them out."""

LEAST_SHARE = 64
"""A witness may fill this part of the window however many witnesses there are, or a large mesh would never fill one."""

STRANGERS_SHARE = 10
"""All strangers together fill at most a tenth of a window, however many they are."""

MAX_WALK = 4_096
"""Sums of strangers looked at for one record, or of one step where that has more."""


@dataclass(slots=True)
class Witnessed:
    """What one issuer says of the subject: decayed, in milli trials, and what of it counts in the end.

    `verdict` is "", "pulled" (it leans) or "contradicted" (left out). `taken`, by step: milli of each trial that were taken.
    """

    issuer: PeerId
    weight: int
    """As a witness; ours is above all, OWN_WORTH times 1000."""
    cap: int
    right: int = 0
    wrong: int = 0
    mass: int = 0
    """The sum of both."""
    said_right: int = 0
    said_wrong: int = 0
    """Trials that it speaks of in the time looked at, beyond its cap too: who says more is held to it more exactly."""
    counts_right: int = 0
    counts_wrong: int = 0
    verdict: str = ""
    taken: dict[int, int] = field(default_factory=dict)


class Weighed(NamedTuple):
    """Milli trials that count, and who said them; ourselves first."""

    right: int
    wrong: int
    said: tuple[Witnessed, ...]


@dataclass(frozen=True, slots=True)
class Bench:
    """How witnesses stand with us: `weight` of each, and `total` of all that are known."""

    me: PeerId
    weight: Callable[[PeerId], int]
    total: int


def weigh(cell: Cell, bench: Bench, now: int, window: int) -> Weighed:
    """Weigh all evidence of `cell` at step `now`; `window` is a full record, in trials."""
    full = window * MILLI
    said = _gather(cell, bench, now, full, ())
    liars = _judge(said)
    if liars:
        # As if they had never spoken: the others may fill what they took.
        left_out = [one for one in said if one.issuer in liars]
        said = _gather(cell, bench, now, full, liars)
        _judge(said)
        said += left_out
    _limit([one for one in said if one.weight <= STRANGER_MILLI], full // STRANGERS_SHARE)
    return Weighed(sum(one.counts_right for one in said), sum(one.counts_wrong for one in said), tuple(said))


def _gather(cell: Cell, bench: Bench, now: int, full: int, without: Collection[PeerId]) -> list[Witnessed]:
    """Newest first and whole steps at a time, so that no order of arrival shows; up to a full window of own and known.

    Strangers are gathered apart: however many speak at once, they hide nothing that a known witness said before.
    """
    own = Witnessed(bench.me, OWN_WORTH * MILLI, full)
    known = {bench.me: own} if bench.me in cell.totals else {}
    trusted = max(1, bench.total - sum(map(bench.weight, without)))
    strangers: set[PeerId] = set()
    for issuer in cell.totals:
        weight = bench.weight(issuer)
        if issuer == bench.me or issuer in without:
            continue
        if weight == STRANGER_MILLI:
            strangers.add(issuer)
        elif weight > STRANGER_MILLI:
            part = max(full * weight // trusted, full // LEAST_SHARE)
            known[issuer] = Witnessed(issuer, weight, part * OWN_WORTH * MILLI // weight)
    filled = _reserve(cell, own, now, full) if bench.me in known else 0
    for step in reversed(cell.order) if known else ():
        if now - step >= len(DECAY_MILLI) or filled >= full:
            break
        if step <= now:  # a clock that runs ahead makes a claim wait, never count more
            filled += _fill(known, cell.steps[step], step, DECAY_MILLI[now - step], full - filled)
    said = [known[issuer] for issuer in sorted(known) if known[issuer].mass]
    return said + _gather_strangers(cell, strangers, now, full)


def _fill(known: Mapping[PeerId, Witnessed], sums_of: Mapping[PeerId, Sums], step: int, decay: int, room: int) -> int:
    """Take one step's evidence of own and known; where there is less room than that, the same part of all. The mass taken."""
    drawn = []
    mass = 0
    for issuer in known if len(known) < len(sums_of) else sums_of:
        one, sums = known.get(issuer), sums_of.get(issuer)
        if one is None or sums is None:
            continue
        one.said_right += sums[0]
        one.said_wrong += sums[1]
        share = min(decay - one.taken.get(step, 0), (one.cap - one.mass) // (sums[0] + sums[1]))
        if share > 0:
            drawn.append((one, sums, share))
            mass += _worth(one, (sums[0] + sums[1]) * share)
    for one, sums, share in drawn:
        _take(one, step, sums, share if mass <= room else share * room // mass)
    return min(mass, room)


def _gather_strangers(cell: Cell, strangers: Collection[PeerId], now: int, full: int) -> list[Witnessed]:
    found: dict[PeerId, Witnessed] = {}
    cap = full // LEAST_SHARE * OWN_WORTH * MILLI // STRANGER_MILLI
    mass = walked = 0
    for step in reversed(cell.order) if strangers else ():
        if now - step >= len(DECAY_MILLI) or mass >= full // STRANGERS_SHARE or walked >= MAX_WALK:
            break
        if step > now:
            continue
        walked += len(cell.steps[step])
        for issuer, sums in cell.steps[step].items():
            if issuer not in strangers:
                continue
            one = found.get(issuer)
            if one is None:
                one = found[issuer] = Witnessed(issuer, STRANGER_MILLI, cap)
            one.said_right += sums[0]
            one.said_wrong += sums[1]
            before = one.mass
            _take(one, step, sums, min(DECAY_MILLI[now - step], (one.cap - one.mass) // (sums[0] + sums[1])))
            mass += _worth(one, one.mass - before)
    return [found[issuer] for issuer in sorted(found) if found[issuer].mass]


def _reserve(cell: Cell, own: Witnessed, now: int, full: int) -> int:
    room = full // OWN_RESERVE
    for step in reversed(cell.order):
        sums = cell.steps[step].get(own.issuer)
        if sums is None or now < step:
            continue
        if now - step >= len(DECAY_MILLI) or own.mass >= room:
            break
        _take(own, step, sums, min(DECAY_MILLI[now - step], (room - own.mass) // (sums[0] + sums[1])))
    return own.mass


def _worth(one: Witnessed, mass: int) -> int:
    """Milli trials of a witness in milli trials of our own."""
    return mass * one.weight // (OWN_WORTH * MILLI)


def _take(one: Witnessed, step: int, sums: Sums, share: int) -> None:
    one.right += sums[0] * share
    one.wrong += sums[1] * share
    one.mass = one.right + one.wrong
    one.taken[step] = one.taken.get(step, 0) + share


def _judge(said: Sequence[Witnessed]) -> set[PeerId]:
    """Decide what counts of each, by how far it is from the middle of all; returns whom to leave out."""
    liars: set[PeerId] = set()
    if not said:
        return liars
    middle = _median(said)
    mean = middle[0] * MILLI // (middle[0] + middle[1])
    for one in said:
        if one.weight == OWN_WORTH * MILLI:
            one.counts_right, one.counts_wrong = one.right, one.wrong
            continue
        mass = _worth(one, one.mass)
        gap, sigma = deviation((one.said_right * MILLI, one.said_wrong * MILLI), middle, MILLI)
        if gap > 3 * sigma + TOLERANCE_MILLI:
            one.verdict = "contradicted"
            liars.add(one.issuer)
            continue
        if gap > sigma // 2:
            one.verdict = "pulled"
            above = one.said_right * MILLI > mean * (one.said_right + one.said_wrong)
            one.counts_right = mass * (mean + sigma // 2 if above else mean - sigma // 2) // MILLI
        else:
            one.counts_right = _worth(one, one.right)
        one.counts_wrong = mass - one.counts_right
    return liars


def _median(said: Sequence[Witnessed]) -> tuple[int, int]:
    """The weighted median share of those that are known, of all where nobody is, as a record of their whole weight."""
    known = [one for one in said if one.weight > STRANGER_MILLI] or said
    ordered = sorted((one.right * MILLI // one.mass, _worth(one, one.mass) + 1) for one in known)
    total = sum(mass for _, mass in ordered)
    below = 0
    for share, mass in ordered:
        below += mass
        if 2 * below >= total:
            return total * share // MILLI, total - total * share // MILLI
    raise AssertionError("a median lies within its weights")


def _limit(some: Sequence[Witnessed], room: int) -> None:
    total = sum(one.counts_right + one.counts_wrong for one in some)
    if total > room:
        for one in some:
            one.counts_right = one.counts_right * room // total
            one.counts_wrong = one.counts_wrong * room // total
