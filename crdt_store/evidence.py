"""What each claim proves of its subject, kept as sums that grow and shrink with the replica. Weighs nothing and trusts nobody.

A trial is one thing that the subject did right or wrong. Sums are kept by subject, skill, step of time and issuer, so that a
claim is added or taken out in constant time, and what is taken out (a retired epoch, a fork) leaves no trace.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from math import isqrt

from crdt_store.checkpoints import stretch
from crdt_store.claims import Claim, Kind
from crdt_store.outcomes import Forked, Inserted, Outcome
from protocol.wire.ids import PeerId

SERVICE = "service"
"""The skill that calls, rounds and verified outputs are evidence of: doing what was accepted. No probe counts for it."""

GENERAL = "general"
"""The skill of a probe that names none."""

JUDGING = "judge."
"""In front of a skill: judging answers to its questions (protocol/skills.py says the same)."""

MAX_COUNT = 1_000
"""Trials in one claim."""

REFUTED_TRIALS = 10
"""Wrong trials that one refuted output counts for. An honest peer is refuted once in a hundred checks, which leaves it at 0.9."""

MILLI = 1_000

TOLERANCE_MILLI = 50
"""A difference between two records that needs no excuse: a subject is not the same to everybody."""

_PROVES: dict[int, bool] = {
    Kind.CALL_SERVED: True,
    Kind.CALLS_SERVED: True,
    Kind.ROUND_TOOK_PART: True,
    Kind.OUTPUT_VERIFIED: True,
    Kind.PROBE_PASSED: True,
    Kind.CALL_FAILED: False,
    Kind.CALLS_FAILED: False,
    Kind.ROUND_ABORTED: False,
    Kind.OUTPUT_REFUTED: False,
    Kind.PROBE_FAILED: False,
}
"""Kinds that prove something of their subject, and whether in its favour."""

_COUNTED: frozenset[int] = frozenset({Kind.PROBE_PASSED, Kind.PROBE_FAILED, Kind.CALLS_SERVED, Kind.CALLS_FAILED})
_PROBES: frozenset[int] = frozenset({Kind.PROBE_PASSED, Kind.PROBE_FAILED})

Trials = tuple[str, int, int]
"""A skill, how often right, how often wrong."""


def trials_of(claim: Claim) -> Trials | None:
    """What a claim proves; None where it proves nothing of a skill.

    To have won a round proves nothing: agreement with the swarm is what the swarm's colluders give each other. Nor does what a
    peer says of itself.
    """
    favour = _PROVES.get(claim.kind)
    if favour is None or claim.issuer == claim.subject:
        return None
    count, skill = 1, SERVICE
    if claim.kind in _COUNTED:
        count = claim.value
        if not 1 <= count <= MAX_COUNT:
            return None
        if claim.kind in _PROBES:
            skill = claim.skill or GENERAL
            if skill == SERVICE:
                return None
    elif claim.kind == Kind.OUTPUT_REFUTED:
        count = REFUTED_TRIALS
    return (skill, count, 0) if favour else (skill, 0, count)


def family_of(skill: str) -> str:
    """What kind of skill it is: "service", "judging" or "answering". Skills of one kind say a little of each other."""
    return SERVICE if skill == SERVICE else "judging" if skill.startswith(JUDGING) else "answering"


def deviation(first: tuple[int, int], second: tuple[int, int], unit: int = 1) -> tuple[int, int]:
    """How far apart two records [right, wrong] of one thing are, and how far chance alone brings them (one sigma), in milli.

    The standard error of the difference of two proportions, after adding one right and one wrong trial. `unit`: of the records,
    in trials (1) or thousandths (1000).
    """
    n, m = first[0] + first[1], second[0] + second[1]
    gap = abs(first[0] * MILLI // n - second[0] * MILLI // m)
    share = (first[0] + second[0] + unit) * MILLI // (n + m + 2 * unit)
    return gap, isqrt(share * (MILLI - share) * (n + m) * unit // (n * m))


Sums = tuple[int, int]
"""How often right and how often wrong. A tuple, as bytes for places: the collector looks at hundreds of thousands of lists for
a tenth of a second, in which the daemon stands still, and at these not at all."""

_PLACE_BYTES = 2


@dataclass(slots=True)
class Cell:
    """The evidence about one subject and skill, by step of time and issuer."""

    steps: dict[int, dict[PeerId, Sums]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    """Ascending, as the keys of `steps`."""
    totals: dict[PeerId, Sums] = field(default_factory=dict)
    """By issuer over all steps."""
    trials: int = 0
    """All together."""
    stamp: int = 0
    """Never the same again, not even in a cell that was gone in between."""


Key = tuple[PeerId, str]
"""Subject and skill."""

Entry = tuple[PeerId, str, int, int, int]
"""Subject, skill, step, right, wrong: what one claim added. A subject of claims that prove nothing has one of no trials."""

_NOTHING = (0, 0)


class Ledger:
    """Sums of all claims that a replica holds. Feed it every outcome of the replica, in any order that the replica allows."""

    def __init__(self, step_ms: int) -> None:
        """`step_ms`: claims of one such span of time are as old as each other."""
        self._step_ms = step_ms
        self._cells: dict[Key, Cell] = {}
        self._logs: dict[PeerId, dict[int, list[Entry]]] = {}
        self._skills: dict[PeerId, dict[str, None]] = {}
        self._mentions: dict[PeerId, dict[tuple[PeerId, int], bytes]] = {}
        self._places: dict[tuple[PeerId, int], tuple[PeerId, int]] = {}
        """Keys in `_mentions`, each itself: one for all subjects takes less room, and the collector does not look at it again."""
        self._changes = 0
        self.frozen: dict[PeerId, int] = {}
        """Issuers that signed two histories, and the epoch from which nothing of theirs stands."""
        self.touched: dict[tuple[PeerId, str, PeerId], None] = {}
        """(subject, skill, issuer) of every sum that changed since a reader cleared it."""

    def observe(self, outcome: Outcome) -> None:
        """Take what the replica did with a claim or a proof."""
        if isinstance(outcome, Inserted):
            for entry in stretch(outcome.entry):
                self._add(entry.claim)
            for gone in outcome.dropped:
                self._drop(gone.issuer, gone.epoch)
        elif isinstance(outcome, Forked):
            fork = outcome.fork
            self.frozen[fork.issuer] = fork.epoch
            for epoch in [held for held in self._logs.get(fork.issuer, {}) if held >= fork.epoch]:
                self._drop(fork.issuer, epoch)

    def cell(self, subject: PeerId, skill: str) -> Cell | None:
        """The evidence about one subject and skill; None where there is none."""
        return self._cells.get((subject, skill))

    def subjects(self) -> tuple[PeerId, ...]:
        """Every peer that something is known of, sorted."""
        return tuple(sorted(self._mentions))

    def skills(self, subject: PeerId) -> tuple[str, ...]:
        """Every skill that something is known of for a subject, sorted."""
        return tuple(sorted(self._skills.get(subject, ())))

    def mentions(self, subject: PeerId) -> Iterator[tuple[PeerId, int, list[int]]]:
        """Where every claim about `subject` is: issuer and epoch, sorted, and the places in that log as they came."""
        for (issuer, epoch), packed in sorted(self._mentions.get(subject, {}).items()):
            places = range(0, len(packed), _PLACE_BYTES)
            yield issuer, epoch, [int.from_bytes(packed[at : at + _PLACE_BYTES], "big") for at in places]

    def kin(self, subject: PeerId, skill: str, most: int) -> list[str]:
        """The subject's other skills of the same family, at most so many, those with most evidence first."""
        family = family_of(skill)
        others = [other for other in self._skills.get(subject, ()) if other != skill and family_of(other) == family]
        return sorted(others, key=lambda other: (-self._cells[subject, other].trials, other))[:most]

    def step_of(self, time_ms: int) -> int:
        """The step of time in which `time_ms` (unix milliseconds) lies."""
        return time_ms // self._step_ms

    def _add(self, claim: Claim) -> None:
        trials = trials_of(claim)
        issuer, subject = PeerId(claim.issuer), PeerId(claim.subject)
        log_key = (issuer, claim.epoch)
        log_key = self._places.setdefault(log_key, log_key)
        mentions = self._mentions.get(subject)
        if mentions is None:
            mentions = self._mentions[subject] = {}
        places = mentions.get(log_key, b"")
        mentions[log_key] = places + claim.seq.to_bytes(_PLACE_BYTES, "big")
        if trials is None and places:
            return
        skill, right, wrong = trials or (SERVICE, 0, 0)
        entry = (subject, skill, claim.time // self._step_ms, right, wrong)
        if trials is not None:
            self._move(issuer, entry, 1)
        logs = self._logs.get(issuer)
        if logs is None:
            logs = self._logs[issuer] = {}
        log = logs.get(claim.epoch)
        if log is None:
            logs[claim.epoch] = [entry]
        else:
            log.append(entry)

    def _drop(self, issuer: PeerId, epoch: int) -> None:
        """Work for each claim of the log, whatever else is held: who opens one epoch after the other drops one with each."""
        place = (issuer, epoch)
        for entry in self._logs.get(issuer, {}).pop(epoch, ()):
            subject, _, _, right, wrong = entry
            if right or wrong:
                self._move(issuer, entry, -1)
            mentions = self._mentions.get(subject, {})
            if mentions.pop(place, None) and not mentions:
                del self._mentions[subject]
        self._places.pop(place, None)

    def _move(self, issuer: PeerId, entry: Entry, sign: int) -> None:
        subject, skill, step, right, wrong = entry
        right, wrong = sign * right, sign * wrong
        cell = self._cells.get((subject, skill))
        if cell is None:
            cell = self._cells[subject, skill] = Cell()
            self._skills.setdefault(subject, {})[skill] = None
        _move(cell, step, issuer, right, wrong)
        self._changes += 1
        cell.stamp = self._changes
        if not cell.totals:
            del self._cells[subject, skill]
            del self._skills[subject][skill]
            if not self._skills[subject]:
                del self._skills[subject]
        self.touched[subject, skill, issuer] = None


def _move(cell: Cell, step: int, issuer: PeerId, right: int, wrong: int) -> None:
    cell.trials += right + wrong
    at = cell.steps.get(step)
    if at is None:
        at = cell.steps[step] = {}
        insort(cell.order, step)
    _add_to(at, issuer, right, wrong)
    if not at:
        del cell.steps[step]
        del cell.order[bisect_left(cell.order, step)]
    _add_to(cell.totals, issuer, right, wrong)


@lru_cache(maxsize=4_096)
def _sums(right: int, wrong: int) -> Sums:
    """One tuple for all that are alike, as most are: a new one would make the collector look at the whole dictionary again."""
    return right, wrong


def _add_to(sums: dict[PeerId, Sums], issuer: PeerId, right: int, wrong: int) -> None:
    before = sums.get(issuer, _NOTHING)
    now = _sums(before[0] + right, before[1] + wrong)
    if now == _NOTHING:
        del sums[issuer]
    else:
        sums[issuer] = now
